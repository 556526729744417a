"""The whole job on the XML this project was created for, in a network namespace of its own."""

from __future__ import annotations

import json
import platform
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from vhostnet import engines
from vhostnet.errors import HostError, VhostnetWarning
from vhostnet.host.nic import Nic
from vhostnet.host.opening import open_nic, plan_nics
from vhostnet.others import bridge
from vhostnet.process import netns
from vhostnet.program.parts import Op, held_row
from vhostnet.program.plan import plan_delete
from vhostnet.program.program import Program
from vhostnet.spec.interface import InterfaceSpec
from vhostnet.text.parse import parse_interface

SEED = """\
<interface type="bridge">
  <mac address="20:90:6F:28:84:F2"/>
  <model type="virtio"/>
  <driver name="vhost" queues="8" event_idx="on" rx_queue_size="1024" tx_queue_size="1024"/>
  <source bridge="vbr2525476"/>
  <target dev="veni_vFsp6g8y"/>
</interface>
"""
ROUNDS = 3


def main(nics: int = 64) -> int:
    """Show it all; 0, or an error that says what this host lacks."""
    enter_own_namespace()
    bridge.make_bridge("vbr2525476")
    spec = parse_interface(SEED)
    _title("The XML")
    print(SEED, end="")
    _title("The plan: every kernel act, in order")
    print(plan_nics([spec], vhost="auto"))
    with open_nic(spec, vhost="auto") as nic:
        _title("What the kernel says of the NIC")
        _kernel_says(nic)
        _title("QEMU's arguments")
        argv = _quietly(lambda: nic.qemu_argv(alias="net2", bus="pci.0", addr="0x7"))
        print(f"{argv[0]} {argv[1]}\n{argv[2]} {argv[3]}")
        _title("What QEMU says of the NIC")
        _qemu_says(nic, argv)
    _title(f"{nics} such NICs, {spec.queues} queues each, in one batch (median of {ROUNDS} rounds)")
    _race(spec, nics)
    return 0


def enter_own_namespace() -> None:
    """A network namespace nobody else sees; without root, a user namespace with it where the host allows that."""
    try:
        netns.unshare_net()
        return
    except HostError:
        pass
    try:
        netns.become_root_of_own()
    except HostError as error:
        error.remedy = "run it as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)"
        raise


def _title(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _quietly(function: Callable[[], list[str]]) -> list[str]:
    """The warning's text, shown in its place here instead of somewhere on stderr."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VhostnetWarning)
        result = function()
    for warning in caught:
        print(f"note: {warning.message}")
    return result


def _kernel_says(nic: Nic) -> None:
    print(f"{nic!r}\nvhost-net: {'on' if nic.vhost else nic.vhost.why}", flush=True)
    if shutil.which("ip"):
        subprocess.run(["ip", "-d", "link", "show", "dev", nic.ifname], check=True)
    else:
        print("install iproute2 to see what 'ip -d link' says")


# --- QEMU ------------------------------------------------------------------------------------------------


def _qemu_says(nic: Nic, argv: Sequence[str]) -> None:
    qemu = shutil.which(f"qemu-system-{platform.machine()}")
    if qemu is None:
        print(f"no qemu-system-{platform.machine()} here (Debian: apt-get install qemu-system-x86)")
        return
    command = [qemu, "-S", "-M", "pc", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-qmp", "stdio"]
    print(shlex.join(command), "...", flush=True)
    network, rx, tx = ask_qemu(
        [*command, *argv],
        nic.fds,
        [
            ("human-monitor-command", {"command-line": "info network"}),
            ("qom-get", {"path": "/machine/peripheral/net2", "property": "rx_queue_size"}),
            ("qom-get", {"path": "/machine/peripheral/net2", "property": "tx_queue_size"}),
        ],
    )
    print(f"{network.strip()}\nrx_queue_size={rx} tx_queue_size={tx}")


def ask_qemu(command: Sequence[str], fds: Sequence[int], questions: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
    """Start a QEMU whose QMP is its standard input and output, ask, and let it quit: what it answered."""
    lines: list[dict[str, Any]] = [{"execute": "qmp_capabilities"}]
    lines += [{"execute": name, "arguments": arguments} for name, arguments in questions]
    lines += [{"execute": "quit"}]
    script = "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run(command, input=script, pass_fds=fds, capture_output=True, text=True, timeout=60, check=False)
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    answers = [reply for reply in replies if "return" in reply or "error" in reply]
    if len(answers) != len(lines) or any("error" in answer for answer in answers):
        raise RuntimeError(f"QEMU (exit {done.returncode}) said {done.stderr or done.stdout}")
    return [answer["return"] for answer in answers[1:-1]]


# --- the race --------------------------------------------------------------------------------------------


def libvirt_order(program: Program) -> Program:
    """The same acts as libvirt has them: NIC by NIC, one answer at a time, noqueue only after UP."""
    order = {Op.TAP_OPEN: 0, Op.LINK: 1, Op.UP: 2, Op.QDISC: 3}
    acts = sorted(program.acts, key=lambda act: (act.nic, order[act.op]))
    return Program(program.nics, tuple(act._replace(barrier=True) for act in acts))


def _race(spec: InterfaceSpec, nics: int) -> None:
    _allow_files(nics * spec.queues + 64)
    specs = [InterfaceSpec(bridge=spec.bridge, queues=spec.queues, vhost="off") for _ in range(nics)]
    best = engines.select().name
    contestants: dict[str, tuple[str, Callable[[Program], Program]]] = {
        "native": (best, lambda program: program),
        "pure Python": ("pure", lambda program: program),
        "libvirt's order": (best, libvirt_order),
    }
    if best == "pure":
        del contestants["native"]
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, (engine, arrange) in contestants.items():
            times[name].append(_time(engine, arrange(plan_nics(specs))) / nics)
    fastest = min(map(statistics.median, times.values()))
    for name, taken in times.items():
        middle = statistics.median(taken)
        print(f"{name:<16} {middle * 1e6:8.0f} us a NIC  {middle / fastest:5.1f}x")
    print("(libvirt's order here without the 'tc' that libvirt forks for noqueue; closing is not timed)")


def _time(engine: str, program: Program) -> float:
    chosen = engines.select(engine)
    started = time.perf_counter()
    result = chosen.run(program)
    taken = time.perf_counter() - started
    if result.failures:
        raise RuntimeError(f"{program.acts[result.failures[0].act]}: {result.failures[0].result}")
    made = [nic for nic in result.nics if nic]
    rows = [held_row(row.ifname, nic.ifindex, nic.fds) for row, nic in zip(program.nics, made, strict=True)]
    chosen.run(plan_delete(rows))
    return taken


def _allow_files(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed <= hard or hard == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))


if __name__ == "__main__":
    sys.exit(main())
