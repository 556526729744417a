"""The same NICs where a udevd hears of them, in a namespace of its own beside one, and without any.

tools/with-udevd python -m bench.worlds [--quick] [--rounds-percent N]  (JSON on stdout)

One process goes from world to world in random order, so the worlds of a case are one run. A namespace of its own and
no udevd are even the same namespace: whether a udevd runs in the parent's is all they differ in.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import time
from collections import defaultdict
from typing import NamedTuple

from bench.cases import ASIDE, HERE, HERE_PERCENT, NONE, WORLD_CASES, WORLDS, Case
from bench.contestants import Way, bridge_names, specs_of, ways
from bench.measure import check, raise_file_limit
from bench.udevd import Udevd, end_other, udevd
from vhostnet.others import bridge
from vhostnet.process import netns

Times = dict[str, dict[str, list[int]]]
PHASES = OPENED, SETTLED, CPU, CLOSED = "", ", settled", ", udevd's CPU", ", closed"


def main() -> int:
    """Measure, and print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds-percent", type=int, default=100, help="so many of each case's rounds")
    parser.add_argument("--quick", action="store_true", help="not the cases that take long")
    options = parser.parse_args()
    end_other()
    raise_file_limit()
    parent = _namespace_with_bridge()
    own = netns.call_aside(_own_namespace)
    contestants = ways()
    times: Times = {}
    for case in (case for case in WORLD_CASES if case.quick or not options.quick):
        print(f"{case.name}, with and without udevd ...", file=sys.stderr, flush=True)
        who = {name: contestants[name] for name in case.who}
        times |= _measure(case, who, {HERE: parent, ASIDE: own, NONE: own}, options.rounds_percent)
    print(json.dumps(times))
    return 0


def _namespace_with_bridge() -> int:
    """An fd of this thread's network namespace, where the cases' bridge is now."""
    (name,) = bridge_names(WORLD_CASES[0])
    bridge.make_bridge(name)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _own_namespace() -> int:
    netns.unshare_net()
    return _namespace_with_bridge()


class Sample(NamedTuple):
    """One phase of a turn, and its nanoseconds a NIC."""

    phase: str
    ns: int


def _measure(case: Case, who: dict[str, Way], places: dict[str, int], rounds_percent: int) -> Times:
    """A table for each world and phase."""
    rounds = {world: max(1, case.rounds * rounds_percent // 100) for world in WORLDS}
    rounds[HERE] = max(1, rounds[HERE] * HERE_PERCENT // 100)
    taken: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number in range(max(rounds.values()) + 1):  # the first warms up
        for world in random.sample(WORLDS, len(WORLDS)):
            if number > rounds[world]:
                continue
            with udevd() if world != NONE else contextlib.nullcontext() as daemon:
                hearing = daemon if world == HERE else None
                for name in random.sample(list(who), len(who)):
                    for phase, ns in netns.call_inside(places[world], _turn, case, who[name], hearing):
                        if number:
                            taken[f"{case.name}, {world}{phase}"][name].append(ns)
    tables = [f"{case.name}, {world}{phase}" for world in WORLDS for phase in PHASES]
    return {table: {name: taken[table][name] for name in who} for table in tables if table in taken}


def _turn(case: Case, way: Way, daemon: Udevd | None) -> list[Sample]:
    """Open, until udev has settled; look; take away. What udevd used for the first."""
    before = daemon.cpu_ns() if daemon else 0
    samples, all_made = [], []
    for _ in range(case.per_round):
        asked = way.prepare(case, specs_of(case))
        started = time.perf_counter_ns()
        all_made.append(way.act(asked))
        samples.append(Sample(OPENED, (time.perf_counter_ns() - started) // case.batch))
        if daemon:
            daemon.settle()
            samples.append(Sample(SETTLED, (time.perf_counter_ns() - started) // case.batch))
    if daemon:
        samples.append(Sample(CPU, (daemon.cpu_ns() - before) // case.batch // case.per_round))
    check([way.look(made) for made in all_made], case, way)
    for made in all_made:
        started = time.perf_counter_ns()
        way.end(made)
        samples.append(Sample(CLOSED, (time.perf_counter_ns() - started) // case.batch))
    if daemon:
        daemon.settle()
    return samples


if __name__ == "__main__":
    sys.exit(main())
