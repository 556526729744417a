"""``python3 -m tests.daemons``, as root in a Debian that has its daemons (make test-daemons).

Each scenario has a host of its own, and all run side by side. It prints what was found, and fails where that is not
what docs/real-hosts.md says.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
HOST = ROOT / "tests" / "daemons" / "host"
SHIPPED = ROOT / "examples" / "host"
SECONDS = "10"

LINK, NETWORK, MANAGER = "10-vhostnet.link", "10-vhostnet.network", "90-vhostnet.conf"
PLACES = {LINK: "systemd/network", NETWORK: "systemd/network", MANAGER: "NetworkManager/conf.d"}
CATCH_ALL = {"systemd/network/50-all.network": "[Match]\nName=*\n[Network]\nDHCP=yes\n"}
# Another bridge of networkd's, by its name: the way it is meant.
BY_NAME = {
    "systemd/network/50-br0.netdev": "[NetDev]\nName=br0\nKind=bridge\n",
    "systemd/network/50-br0.network": "[Match]\nName=br0\n[Network]\nAddress=192.0.2.1/24\n",
}
OWNED = "nmcli -w 5 con add type bridge ifname br0 con-name br0 stp no ipv4.method disabled ipv6.method disabled"
NONE: Mapping[str, str] = MappingProxyType({})
AS_ASKED, TAKEN = "as asked", "off the bridge"


class Scenario(NamedTuple):
    """What runs with which files, what becomes of NICs, and what ``doctor`` says is to be looked at.

    ``others`` is what networkd or NetworkManager has for the links that are not ours, whichever of our files lie there.
    ``netns`` is the NICs' network namespace, if it is not the daemons'. ``before`` is run before anything is made, each
    of ``acts`` when everything stands, with what becomes of the NICs.
    """

    name: str
    daemon: str
    nics: str
    notes: str = ""
    shipped: tuple[str, ...] = ()
    etc: Mapping[str, str] = NONE
    ifname: str = "vnet%d"
    others: Mapping[str, str] = NONE
    state: str = ""  # what the daemon has for our NICs
    netns: str = ""
    before: str = ""
    acts: Mapping[str, str] = NONE


EXTERNAL = {"br0": "connected (externally)", "other": "unmanaged", "port": "unmanaged"}
SCENARIOS = (
    Scenario(
        "networkd, no file matches", "networkd", AS_ASKED, "udev", others={"other": "unmanaged"}, state="unmanaged",
    ),
    Scenario("networkd, a bridge of its own", "networkd", AS_ASKED, "udev", etc=BY_NAME, state="unmanaged"),
    Scenario("networkd, Name=*", "networkd", TAKEN, "networkd udev", etc=CATCH_ALL, others={"other": "configuring"}),
    Scenario(
        "networkd, Name=*, our files", "networkd", AS_ASKED, shipped=(LINK, NETWORK), etc=CATCH_ALL,
        others={"other": "configuring"}, state="unmanaged",
    ),
    Scenario(
        "networkd, Name=*, only .link", "networkd", TAKEN, "networkd", shipped=(LINK,), etc=CATCH_ALL,
        others={"other": "configuring"},
    ),
    Scenario(
        "networkd, Name=*, only .network", "networkd", AS_ASKED, "udev", shipped=(NETWORK,), etc=CATCH_ALL,
        others={"other": "configuring"}, state="unmanaged",
    ),
    Scenario(
        "networkd, Name=*, a namespace beside it", "networkd", AS_ASKED, "networkd udev", etc=CATCH_ALL,
        others={"other": "configuring"}, netns="vms", before=f"{SHIPPED}/vms-switch up",
    ),
    Scenario("networkd, vt-*", "networkd", TAKEN, "udev", ifname="vt-%d", others={"other": "unmanaged"}),
    Scenario(
        "networkd, vt-*, our files", "networkd", AS_ASKED, ifname="vt-%d", shipped=(LINK, NETWORK),
        others={"other": "unmanaged"}, state="unmanaged",
    ),
    Scenario(
        "NetworkManager", "NetworkManager", AS_ASKED, "udev", others=EXTERNAL, state="connected (externally)",
    ),
    Scenario(
        "NetworkManager, a namespace beside it", "NetworkManager", AS_ASKED, "udev", netns="vms",
        before=f"{SHIPPED}/vms-switch up", acts={"nmcli networking off": AS_ASKED},
    ),
    Scenario(
        "NetworkManager, our files", "NetworkManager", AS_ASKED, shipped=(LINK, MANAGER), others=EXTERNAL,
        state="unmanaged",
    ),
    Scenario(
        "NetworkManager's own bridge", "NetworkManager", AS_ASKED, "bridge udev", before=OWNED,
        acts={"nmcli -w 5 device reapply br0": AS_ASKED, "nmcli -w 5 con up br0": TAKEN, "nmcli networking off": TAKEN},
    ),
    Scenario(
        "NetworkManager's own bridge, our files", "NetworkManager", AS_ASKED, "bridge", shipped=(LINK, MANAGER),
        before=OWNED, acts={"nmcli -w 5 device reapply br0": AS_ASKED, "nmcli -w 5 con up br0": TAKEN},
    ),
)  # fmt: skip
LOOKED_AT = ("udev", "networkd", "bridge", "sysctl")


def run(scenario: Scenario) -> dict[str, Any]:
    """What tests.daemons.look finds on a host of its own."""
    with tempfile.TemporaryDirectory() as etc:
        for path, text in scenario.etc.items():
            put(Path(etc) / path).write_text(text)
        for file in scenario.shipped:
            shutil.copy(SHIPPED / file, put(Path(etc) / PLACES[file] / file))
        look = [sys.executable, "-m", "tests.daemons.look", SECONDS, scenario.ifname, *scenario.acts]
        script = f'{scenario.before or "true"} >&2 && exec "$@"'
        command = [HOST, "--etc", etc, "udevd", scenario.daemon, "--", "sh", "-c", script, "sh", *look]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "VHOSTNET_ENGINE": "pure"}
        env.update({"NETNS": scenario.netns} if scenario.netns else {})
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=150)
    if done.returncode:
        raise RuntimeError(f"{scenario.name}: {done.stderr}{done.stdout}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def wrong(scenario: Scenario, found: dict[str, Any]) -> Iterator[str]:
    """What is not as it is said to be."""
    if became(found["nics"]) != scenario.nics:
        yield f"NICs are {became(found['nics'])}, not {scenario.nics}: {found['nics']}"
    notes = sorted(name for name in LOOKED_AT if found["doctor"].get(name) == "note")
    if notes != sorted(scenario.notes.split()):
        yield f"doctor notes {notes}, not {scenario.notes}: {found['said']}"
    if set(found["assigned"].values()) != {"3"}:
        yield f"udev has no MAC any more for links that are not ours: {found['assigned']}"
    states = found["manager"] or {link if link == "other" else "nic": said for link, said in found["networkd"].items()}
    for link, state in scenario.others.items():
        if states[link] != state:
            yield f"{link} is {states[link]}, not {state}"
    if scenario.state and states["nic"] != scenario.state:
        yield f"NICs are {states['nic']}, not {scenario.state}"
    for act, nics in scenario.acts.items():
        if became(found["after"][act]) != nics:
            yield f"after {act} NICs are {became(found['after'][act])}, not {nics}"


def became(nics: list[str]) -> str:
    """networkd now and then leaves the first NIC of a batch on its bridge: one that is taken is taken."""
    taken = any("bridge" in nic.split() for nic in nics)
    return TAKEN if taken else ", ".join(filter(None, nics)) or AS_ASKED


def main() -> int:
    failed = 0
    with ThreadPoolExecutor(7) as pool:
        for scenario, found in zip(SCENARIOS, pool.map(run, SCENARIOS), strict=True):
            problems = list(wrong(scenario, found))
            failed += bool(problems)
            acts = "".join(f"; {act}: {became(nics)}" for act, nics in found["after"].items())
            print(f"{'FAIL' if problems else 'ok':<5} {scenario.name:<40} {became(found['nics'])}{acts}", flush=True)
            for problem in problems:
                print(f"      {problem}")
    print(f"{len(SCENARIOS) - failed} of {len(SCENARIOS)} as docs/real-hosts.md has them")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
