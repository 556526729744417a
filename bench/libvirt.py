"""From the command to a QEMU that answers QMP: real libvirt's ``virsh create`` against ``vhostnet exec``.

python -m bench.libvirt [--rounds N] [--output FILE]

In a Debian 13 of its own (tools/inside), with its libvirtd and its QEMU. Both read the same domain, and the QEMUs are
of one machine type and alike but for how the NICs came to them. Contestants go in random order, in a namespace where a
udevd listens and with none; each QEMU is asked whether it has its NICs, and the kernel whether their TAPs are on the
bridge with all their queues. NICs of type user, which are nobody's TAPs, say what is QEMU's own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import report
from bench.beside_udevd import run_module
from bench.cases import HERE, NONE
from bench.libvirtd import VIRSH, libvirtd
from bench.udevd import end_other, udevd

SUITE = "trixie"
QEMU, MACHINE, MEMORY_MIB = "/usr/bin/qemu-system-x86_64", "pc-i440fx-10.0", 64
BRIDGE, DOMAIN, QMP = "bench0", "bench", "/run/bench.qmp"
NICS, QUEUES = (1, 9), (1, 8)
PATIENCE = 60.0
WORLDS = HERE, NONE
UDEVD_ROUNDS = 2  # a round with a udevd for so many without


@dataclass(frozen=True)
class Start:
    """One way to a QEMU with so many NICs of so many queues; none for NICs of type user."""

    who: str
    nics: int
    queues: int = 0

    @property
    def kind(self) -> str:
        return f"{self.who}, {f'{self.queues}q' if self.queues else 'user'}"

    def xml(self) -> str:
        """The domain, for libvirt and for ``vhostnet exec``."""
        return f"""\
<domain type="qemu" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
  <name>{DOMAIN}</name>
  <memory unit="MiB">{MEMORY_MIB}</memory>
  <os><type arch="x86_64" machine="{MACHINE}">hvm</type></os>
  <devices>
    <emulator>{QEMU}</emulator>
    <controller type="usb" model="none"/>
    <memballoon model="none"/>
    {"".join(self._interface(number) for number in range(self.nics))}
  </devices>
  <qemu:commandline><qemu:arg value="-qmp"/><qemu:arg value="unix:{QMP},server=on,wait=off"/></qemu:commandline>
</domain>
"""

    def _interface(self, number: int) -> str:
        mac = f'<mac address="{_mac(number)}"/><model type="virtio"/>'
        if not self.queues:
            return f'<interface type="user">{mac}</interface>'
        driver = f'<driver name="qemu" queues="{self.queues}"/>'
        return f'<interface type="bridge"><source bridge="{BRIDGE}"/>{mac}{driver}</interface>'

    def command(self, file: str) -> list[str]:
        """What is timed."""
        if self.who == "virsh create":
            return [*VIRSH, "create", file, "--paused"]
        machine = [QEMU, "-machine", f"{MACHINE},usb=off", "-accel", "tcg", "-m", str(MEMORY_MIB)]
        machine += [
            "-no-user-config",
            "-nodefaults",
            "-display",
            "none",
            "-S",
            "-qmp",
            f"unix:{QMP},server=on,wait=off",
        ]
        if self.who == "vhostnet exec":
            return ["/opt/vhostnet/bin/vhostnet", "exec", file, "--", *machine]
        for number in range(self.nics):
            machine += ["-netdev", f"user,id=hostnet{number}"]
            machine += ["-device", f"virtio-net-pci,netdev=hostnet{number},id=net{number},mac={_mac(number)}"]
        return machine


def _mac(number: int) -> str:
    return f"52:54:00:be:7c:{number:02x}"


STARTS = (
    *(Start(who, nics, queues) for who in ("virsh create", "vhostnet exec") for queues in QUEUES for nics in NICS),
    *(Start(who, nics) for who in ("virsh create", "qemu") for nics in NICS),
)


def main() -> int:
    """Measure there, print here, keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="default: 20")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    default = Path("bench/results") / f"libvirt-{time.strftime('%Y%m%d-%H%M%S')}.json"
    parser.add_argument("--output", type=Path, default=default, help=f"default: {default}")
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(_inside(options.rounds)))
        return 0
    result = run_module("bench.libvirt", ["--inside", "--rounds", str(options.rounds)], SUITE)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result))
    print(summary(result), f"kept in {options.output}", sep="\n\n")
    return 0


# --- in there --------------------------------------------------------------------------------------------


def _inside(rounds: int) -> dict[str, Any]:
    """The host's facts, and by world, kind and number of NICs: nanoseconds until QMP answers, until virsh returns."""
    end_other()
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("link", "set", BRIDGE, "up")
    taken: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    with libvirtd(), tempfile.TemporaryDirectory() as directory:
        for number in range(rounds + 1):  # the first warms up
            print(f"round {number} of {rounds} ...", file=sys.stderr, flush=True)
            for world in random.sample(WORLDS, 2) if number % UDEVD_ROUNDS == 0 else [NONE]:
                with udevd() if world == HERE else contextlib.nullcontext() as daemon:
                    for start in random.sample(STARTS, len(STARTS)):
                        answered, returned = _turn(start, Path(directory) / "domain.xml")
                        if daemon:
                            daemon.settle()
                        if number:
                            taken[world][f"{start.kind}, {start.nics}"].append(answered)
                            if returned:
                                taken[world][f"{start.kind}, {start.nics}, returned"].append(returned)
    versions = {"libvirt": _said("libvirtd", "--version"), "qemu": _said(QEMU, "--version").splitlines()[0]}
    return {"host": report.host_facts(), "versions": versions, "ns": taken}


def _turn(start: Start, file: Path) -> tuple[int, int]:
    file.write_text(start.xml())
    Path(QMP).unlink(missing_ok=True)
    started = time.perf_counter_ns()
    process = subprocess.Popen(start.command(str(file)), cwd="/", stdout=subprocess.DEVNULL)
    with _answering(process) as ask:
        answered = time.perf_counter_ns() - started
        returned = 0
        if start.who == "virsh create":
            process.wait()
            returned = time.perf_counter_ns() - started
        _check(start, ask("query-rx-filter"))
        if start.who == "virsh create":
            subprocess.run([*VIRSH, "destroy", DOMAIN], check=True)
        else:
            ask("quit")
    if process.wait(PATIENCE):
        raise RuntimeError(f"{start}: exit code {process.returncode}")
    if _ports():
        raise RuntimeError(f"{start}: ports are left")
    return answered, returned


@contextlib.contextmanager
def _answering(process: subprocess.Popen[bytes]) -> Iterator[Any]:
    """A QMP that has answered once, to be asked more."""
    with socket.socket(socket.AF_UNIX) as sock:
        deadline = time.monotonic() + PATIENCE
        while sock.connect_ex(QMP):
            if time.monotonic() > deadline or process.poll():
                raise RuntimeError(f"no QMP: {process.args!r} {process.poll()}")
            time.sleep(0.0005)
        lines = sock.makefile("rw")
        lines.readline()  # the greeting

        def ask(what: str) -> Any:
            print(json.dumps({"execute": what}), file=lines, flush=True)
            while "return" not in (answer := json.loads(lines.readline())):
                if "error" in answer:
                    raise RuntimeError(f"{what}: {answer}")
            return answer["return"]

        ask("qmp_capabilities")
        ask("query-status")
        yield ask


def _check(start: Start, filters: Sequence[Any]) -> None:
    """QEMU has the NICs, and the bridge their TAPs: up, with all their queues."""
    macs = sorted(one["main-mac"] for one in filters)
    queues = [_queues(port["linkinfo"]["info_data"]) for port in _ports() if "UP" in port["flags"]]
    wanted = [start.queues] * start.nics if start.queues else []
    if (macs, queues) != ([_mac(number) for number in range(start.nics)], wanted):
        raise RuntimeError(f"{start}: {macs}, queues {queues}")


def _queues(tap: Any) -> int:
    """QEMU attaches those after the first when the guest asks for them."""
    return int(tap["numqueues"] + tap["numdisabled"]) if tap["multi_queue"] else 1


def _ports() -> list[Any]:
    return list(json.loads(_ip("-d", "-j", "link", "show", "master", BRIDGE) or "[]"))


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _ip(*arguments: str) -> str:
    return _said("ip", *arguments)


# --- what it means ---------------------------------------------------------------------------------------


Row = tuple[str, float, float, float]


def rows(result: Any, world: str) -> list[Row]:
    """Each way and kind: medians in milliseconds with one NIC and with nine, and what one more takes."""
    found = []
    for kind in dict.fromkeys(start.kind for start in STARTS):
        for until in ("", ", returned"):
            if f"{kind}, 1{until}" in result["ns"][world]:
                one, nine = (statistics.median(result["ns"][world][f"{kind}, {nics}{until}"]) / 1e6 for nics in NICS)
                found.append((kind + until, one, nine, (nine - one) / (NICS[1] - NICS[0])))
    return found


def summary(result: Any) -> str:
    """Both worlds, a line for each row."""
    lines = ["; ".join(f"{name}: {version}" for name, version in result["versions"].items())]
    for world in WORLDS:
        lines += ["", f"{world + ', ms':<30} {'1 NIC':>8} {'9 NICs':>8} {'a NIC more':>11}"]
        lines += [f"{kind:<30} {one:>8.0f} {nine:>8.0f} {more:>11.2f}" for kind, one, nine, more in rows(result, world)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
