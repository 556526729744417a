"""How it is measured: contestants in random order, in one process and one namespace, each checked, cleaning not timed.

python -m bench.run [--quick] [--rounds-percent N] [--output FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import quantities, report
from bench.cases import CASES, Case
from bench.contestants import Contestant, Floor, Opened, bridge_names, close_all, everybody, specs_of
from vhostnet import bridge
from vhostnet.demo import enter_own_namespace

DELETE_AT_ONCE = 128


def main() -> int:
    """Measure, print the table, keep the JSON."""
    options = _options()
    facts = report.host_facts()  # before the namespace, which hides some
    times = quantities.of_text(options.rounds_percent)
    enter_own_namespace()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for name in bridge_names(Case(1, 1, 1, bridges=4)):
        bridge.make_bridge(name)
    floor, contestants = everybody()
    for case in (case for case in CASES if case.quick or not options.quick):
        print(f"{case.name} ...", file=sys.stderr, flush=True)
        times[case.name] = _measure(case, {who: contestants[who] for who in case.who}, floor, options.rounds_percent)
    memory = quantities.of_memory(quick=options.quick)
    result = {"host": facts, "ns": times, "bytes": memory}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result))
    print(report.table(result), report.verdicts(result), f"kept in {options.output}", sep="\n\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, and not the cases that take long")
    parser.add_argument("--rounds-percent", type=int, default=100, help="so many of each case's rounds")
    default = Path("bench/results") / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    parser.add_argument("--output", type=Path, default=default, help=f"default: {default}")
    options = parser.parse_args()
    if options.quick:
        options.rounds_percent = min(options.rounds_percent, 10)
    return options


def _measure(case: Case, who: dict[str, Contestant], floor: Floor, rounds_percent: int) -> dict[str, list[int]]:
    """Nanoseconds a NIC, of each contestant and round."""
    taken: dict[str, list[int]] = {name: [] for name in who}
    rounds = max(1, case.rounds * rounds_percent // 100)
    with _among(case, floor), BESIDE[case.beside]():
        for number in range(rounds + 1):  # the first warms up
            for name, ns in _round(case, who, floor):
                if number:
                    taken[name].append(ns // case.batch)
    for contestant in who.values():
        getattr(contestant, "close", lambda: None)()
    return taken


def _round(case: Case, who: dict[str, Contestant], floor: Floor) -> list[tuple[str, int]]:
    order = random.sample(list(who), len(who))
    taken: list[tuple[str, int]] = []
    for name in order:
        contestant = who[name]
        made: list[Opened] = []
        for _ in range(case.per_round):
            asked = contestant.prepare(case, specs_of(case))
            started = time.perf_counter_ns()
            done = contestant.act(asked)
            taken.append((name, time.perf_counter_ns() - started))
            made.append(contestant.give(done))
        _check(made, case, contestant)
        _delete(floor, [index for opened in made for index in opened.indexes])
        close_all([fd for opened in made for fd in opened.fds])
    return taken


def _delete(floor: Floor, indexes: list[int]) -> None:
    for first in range(0, len(indexes), DELETE_AT_ONCE):
        floor.delete(indexes[first : first + DELETE_AT_ONCE])


def _check(made: list[Opened], case: Case, contestant: Contestant) -> None:
    """What was asked for is there: ports that are up, of so many queues, and no other; and as many fds."""
    indexes = {index for opened in made for index in opened.indexes}
    wanted = [",UP", f"numqueues {case.queues} " if case.queues > 1 else "tun type tap"]
    wanted += [" qdisc noqueue "] if contestant.noqueue else []
    ports = [
        line
        for name in bridge_names(case)
        for line in _ip("-d", "-o", "link", "show", "master", name, "up").splitlines()
    ]
    good = sum(int(port.partition(":")[0]) in indexes and all(fact in port for fact in wanted) for port in ports)
    others = len(ports) - good - case.ports * case.bridges
    fds = sum(len(opened.fds) for opened in made)
    if (good, others, fds) != (len(indexes), 0, len(indexes) * case.queues):
        raise RuntimeError(f"{case.name}: {good} of {len(indexes)} NICs are as asked for, {others} others, {fds} fds")


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


# --- among what, beside what -----------------------------------------------------------------------------


@contextlib.contextmanager
def _among(case: Case, floor: Floor) -> Iterator[None]:
    """Other links, and other ports of the bridges."""
    made = [floor.act(floor.arguments(case.links, 1, []))] if case.links else []
    made += [floor.act(floor.arguments(case.ports, 1, [name])) for name in bridge_names(case) if case.ports]
    there = [floor.give(some) for some in made]
    try:
        yield
    finally:
        for opened in there:
            _delete(floor, opened.indexes)
            close_all(opened.fds)


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
