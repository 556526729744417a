"""How one turn is measured: act, check, take away; only the act is timed. Among what, and beside what."""

from __future__ import annotations

import contextlib
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import vhostnet
from bench.cases import Case
from bench.contestants import Contestant, Floor, Opened, bridge_names, close_all, specs_of
from vhostnet.program.parts import Fds

DELETE_AT_ONCE = 128


def raise_file_limit() -> None:
    """As many open files as this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def measure(case: Case, who: dict[str, Contestant], floor: Floor, rounds_percent: int) -> dict[str, list[int]]:
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
        check(made, case, contestant)
        delete(floor, [index for opened in made for index in opened.indexes])
        fds = [fd for opened in made for fd in opened.fds]
        if case.direct:  # each waits for a grace period
            vhostnet.select_engine().close([Fds((), tuple(fds))])
        else:
            close_all(fds)
    return taken


def delete(floor: Floor, indexes: list[int]) -> None:
    """All these links."""
    for first in range(0, len(indexes), DELETE_AT_ONCE):
        floor.delete(indexes[first : first + DELETE_AT_ONCE])


def check(made: Sequence[Opened], case: Case, contestant: Contestant) -> None:
    """What was asked for is there: ports that are up, of so many queues, and no other; and as many fds.

    A macvtap does not say how many queues it has.
    """
    indexes = {index for opened in made for index in opened.indexes}
    wanted = [",UP", f"numqueues {case.queues} " if case.queues > 1 else "tun type tap"]
    wanted += [" qdisc htb " if case.limited else " qdisc noqueue "] if contestant.noqueue else []
    places = [("master", name) for name in bridge_names(case)]
    if case.direct:
        places, wanted = [("type", "macvtap")], [",UP", "macvtap mode vepa", " qdisc noqueue "]
    ports = [line for place in places for line in _ip("-d", "-o", "link", "show", *place, "up").splitlines()]
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
            delete(floor, opened.indexes)
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
