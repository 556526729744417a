"""On a host of its own: NICs on a bridge, time for the daemons, and what there is then, as JSON.

    python3 -m tests.daemons.look SECONDS NAME [COMMAND...]

NAME is the NICs' template; they are made in the network namespace NETNS, if there is one in the environment. Each
COMMAND is run after that time, and the NICs looked at again. A port of the bridge is not ours, and neither is another
link beside it: what the daemons do to these is looked at, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import vhostnet
from vhostnet.process.netns import call_inside

NETNS = os.environ.get("NETNS")
PATIENCE = 30  # seconds for daemons on a busy machine
# The bridge may be there already: networkd's, or NetworkManager's.
MAKE = """
ip link show br0 >/dev/null 2>&1 || ip link add br0 up type bridge
ip link add port type veth peer name other
ip link set port up master br0
ip link set other up
udevadm settle
"""


def sh(command: str) -> str:
    return subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, text=True, check=True).stdout


def links(netns: str | None = None) -> dict[str, Any]:
    shown = call_inside(netns, sh, "ip -j -d address show")
    return {link["ifname"]: link for link in json.loads(shown)}


def look_at(nics: list[vhostnet.Nic]) -> list[str]:
    here = links(NETNS)
    return call_inside(NETNS, lambda: [as_asked(nic, here.get(nic.ifname)) for nic in nics])


def look_after(seconds: float, nics: list[vhostnet.Nic]) -> list[str]:
    """Then, or as soon as none is in between any more: networkd gives a link its addresses before it takes it away."""
    time.sleep(seconds)
    deadline = time.monotonic() + PATIENCE
    while any(wrong and "bridge" not in wrong for wrong in look_at(nics)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return look_at(nics)


def as_asked(nic: vhostnet.Nic, link: dict[str, Any] | None) -> str:
    """Empty, or what is not."""
    if link is None:
        return "gone"
    wrong = {
        "bridge": link.get("master") != "br0",
        "mac": link["address"] != nic.mac,
        "up": "UP" not in link["flags"],
        "mtu": link["mtu"] != 1500,
        "address": bool(link["addr_info"]),
        "ipv6": Path(f"/proc/sys/net/ipv6/conf/{nic.ifname}/addr_gen_mode").read_text() != "1\n",
    }
    return " ".join(what for what, found in wrong.items() if found)


def state(path: str, key: str) -> str:
    """Of a line KEY=VALUE; empty where there is none."""
    file = Path(path)
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition("=")[2] for line in lines if line.startswith(f"{key}=")), "")


def assigned(ifname: str) -> str:
    return Path(f"/sys/class/net/{ifname}/addr_assign_type").read_text().strip()


def managed() -> dict[str, str]:
    """What NetworkManager says of each link, where it runs."""
    if not Path("/run/log/NetworkManager").exists():
        return {}
    return dict(row.split(":") for row in sh("nmcli -t -f DEVICE,STATE device").splitlines())


def main() -> None:
    seconds, name, *commands = sys.argv[1:]
    sh(MAKE)
    checks = json.loads(sh(f"{sys.executable} -m vhostnet doctor -j"))
    nics = vhostnet.open_nics(
        [vhostnet.InterfaceSpec(bridge="br0", ifname=name, vhost="off") for _ in range(4)], netns=NETNS
    )
    became = look_after(float(seconds), nics)
    here = links()
    found: dict[str, Any] = {
        "nics": became,
        "networkd": {
            link: state(f"/run/systemd/netif/links/{here[link]['ifindex']}", "ADMIN_STATE")
            for link in ("other", nics[0].ifname)
            if link in here
        },
        "manager": {"nic" if link == nics[0].ifname else link: said for link, said in managed().items()},
        "assigned": {link: assigned(link) for link in ("other", "port")},
        "doctor": {check["name"]: check["state"] for check in checks},
        "said": [check["detail"] for check in checks if check["state"] != "ok"],
        "after": {},
    }
    for command in commands:
        for nic in nics:
            call_inside(NETNS, sh, f"ip link set {nic.ifname} master br0 up")
        sh(f"{command} >&2")
        found["after"][command] = look_after(2, nics)
    print(json.dumps(found))
    vhostnet.close_nics(nics)


if __name__ == "__main__":
    main()
