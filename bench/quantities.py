"""What is measured once, without contestants: the way of the text, the import, and the kernel's memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import vhostnet
from bench.cases import MEMORY_BATCH, MEMORY_QUEUES
from vhostnet.commands.demo import SEED
from vhostnet.program.plan import Qdisc, plan
from vhostnet.program.rows import Features

ROUNDS = 300
IMPORTS = 20
IMPORT = "import time; t = time.perf_counter_ns(); import vhostnet; print(time.perf_counter_ns() - t)"


def of_text(rounds_percent: int) -> dict[str, dict[str, list[int]]]:
    """Nanoseconds: from the seed's XML to a Program and QEMU's arguments; and importing the package."""
    rounds, imports = (max(3, count * rounds_percent // 100) for count in (ROUNDS, IMPORTS))
    return {
        "the seed's XML": {"parse + plan + argv": [_text() for _ in range(rounds + 3)][3:]},
        "a fresh process": {"import vhostnet": [_import() for _ in range(imports + 1)][1:]},
    }


def _text() -> int:
    features = Features(0x7173, ipv6=True)
    with warnings.catch_warnings():  # QEMU would not give the tx_queue_size that the seed asks for
        warnings.simplefilter("ignore", vhostnet.VhostnetWarning)
        started = time.perf_counter_ns()
        spec = vhostnet.parse_interface(SEED)
        plan([spec], ["veni_vFsp6g8y"], features)
        vhostnet.qemu_argv(spec, tap_fds=range(80, 88), vhost_fds=range(88, 96), alias="net2")
        return time.perf_counter_ns() - started


def _import() -> int:
    """With compiled files, as an installed package has them."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", IMPORT], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def of_memory(*, quick: bool) -> dict[str, dict[str, int]]:
    """Bytes of unreclaimable slab and percpu that a NIC takes, by its queues and qdisc, settled."""
    queues = MEMORY_QUEUES[3:4] if quick else MEMORY_QUEUES
    return {f"{count}q": {qdisc: _memory(count, qdisc) for qdisc in ("noqueue", "default")} for count in queues}


def _memory(queues: int, qdisc: Qdisc) -> int:
    print(f"memory of {queues}q, qdisc {qdisc} ...", file=sys.stderr, flush=True)
    for warm in (True, False):
        before = 0 if warm else _settled()
        specs = [vhostnet.InterfaceSpec(bridge="bench0", queues=queues, vhost="off") for _ in range(MEMORY_BATCH)]
        nics = vhostnet.open_nics(specs, qdisc=qdisc)
        after = 0 if warm else _settled()
        vhostnet.close_nics(nics)
    return (after - before) // MEMORY_BATCH


def _settled() -> int:
    """In bytes, when it does not change any more: RCU frees late."""
    last = -1
    for _ in range(40):
        now = _kernel_memory()
        if abs(now - last) < 200 * 1024:
            break
        last = now
        time.sleep(0.25)
    return now


def _kernel_memory() -> int:
    """Slab and percpu, but not the slabs that can be reclaimed: those are whoever's inodes and directory entries."""
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(facts[name].split()[0]) for name in ("SUnreclaim", "Percpu")) * 1024
