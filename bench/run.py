"""How it is measured: contestants in random order, in one process and one namespace, each checked, deleting not timed.

python -m bench.run [--rounds-percent N] [--output FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import report
from bench.cases import BRIDGE, CASES, Case, Contestant, Floor, Library, Opened
from vhostnet import bridge
from vhostnet.demo import enter_own_namespace


def main() -> int:
    """Measure, print the table, keep the JSON."""
    options = _options()
    facts = report.host_facts()  # before the namespace, which hides some
    enter_own_namespace()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    floor = Floor(bridge.make_bridge(BRIDGE))
    contestants: dict[str, Contestant] = {"floor": floor, "native": Library("native"), "pure": Library("pure")}
    measured = {}
    for case in CASES:
        print(f"{case.name} ...", file=sys.stderr, flush=True)
        measured[case.name] = _measure(case, contestants, floor, options.rounds_percent)
    result = {"host": facts, "ns_per_nic": measured}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result))
    print(report.table(measured))
    print(report.verdicts(measured))
    print(f"kept in {options.output}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds-percent", type=int, default=100, help="fewer rounds: 3 is a smoke test")
    default = Path("bench/results") / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    parser.add_argument("--output", type=Path, default=default, help=f"default: {default}")
    return parser.parse_args()


def _measure(case: Case, contestants: dict[str, Contestant], floor: Floor, rounds_percent: int) -> dict[str, list[int]]:
    """Nanoseconds a NIC, of each contestant and round."""
    taken: dict[str, list[int]] = {name: [] for name in contestants}
    rounds = max(1, case.rounds * rounds_percent // 100)
    with BESIDE[case.beside]():
        for number in range(rounds + 1):  # the first warms up
            for name, ns in _round(case, contestants, floor):
                if number:
                    taken[name].append(ns // case.batch)
    return taken


def _round(case: Case, contestants: dict[str, Contestant], floor: Floor) -> list[tuple[str, int]]:
    order = random.sample(list(contestants), len(contestants))
    taken: list[tuple[str, int]] = []
    made: list[Opened] = []
    for name in (name for name in order for _ in range(case.per_round)):
        contestant = contestants[name]
        asked = contestant.prepare(case.batch, case.queues)
        started = time.perf_counter_ns()
        opened = contestant.open(asked)
        taken.append((name, time.perf_counter_ns() - started))
        made.append(contestant.give(opened))
    _check(made, case)
    floor.delete([index for opened in made for index in opened.indexes])
    for opened in made:
        for fd in opened.fds:
            os.close(fd)
    return taken


def _check(made: list[Opened], case: Case) -> None:
    """What was asked for is there: ports that are up, without a queue, and as many fds as queues."""
    command = ["ip", "-d", "-o", "link", "show", "master", BRIDGE]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    queues = f"numqueues {case.queues} " if case.queues > 1 else "tun type tap"
    wanted = (",UP", " qdisc noqueue ", queues)
    good = [line for line in shown.splitlines() if all(fact in line for fact in wanted)]
    nics = sum(len(opened.indexes) for opened in made)
    fds = sum(len(opened.fds) for opened in made)
    if (len(good), fds) != (nics, nics * case.queues):
        raise RuntimeError(f"{case.name}: {len(good)} of {nics} NICs are as asked for, {fds} fds")


@contextlib.contextmanager
def _busy_thread() -> Iterator[None]:
    """One thread that never gives up the GIL by itself."""
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def _busy_process() -> Iterator[None]:
    """One process that never rests."""
    process = subprocess.Popen([sys.executable, "-c", "while True: sum(range(1000))"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


BESIDE: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "": contextlib.nullcontext,
    "process": _busy_process,
    "thread": _busy_thread,
}


if __name__ == "__main__":
    sys.exit(main())
