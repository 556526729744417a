"""Several processes delete by group at once, while links come and go."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from pyroute2 import IPRoute

import vhostnet
from tests.torture.kit import (
    ENGINES,
    Event,
    Facts,
    Monitor,
    Outcome,
    Promises,
    beside,
    crew,
    fresh_namespace,
    links,
    spec,
)
from vhostnet.engines import _uapi as uapi
from vhostnet.engines import select
from vhostnet.program.parts import Op
from vhostnet.program.program import Program

BATCH = 32
DECOYS = 8
OURS = 0x40000000  # in every group that close_nics() makes


def group_deletes(*, processes: int = 4, rounds: int = 150) -> Outcome:
    """Promise: close_nics() deletes what it is given and no other link, whoever deletes what at the same time.

    A stranger sees the group of each batch as it is set, and puts links of his into the groups next to it; others
    of his come and go, so that listings are torn. What cannot go by its group is closed by threads.
    """
    fresh_namespace()
    expect = Promises()
    with IPRoute() as ip:
        for number in range(DECOYS):
            ip.link("add", ifname=f"decoy{number}", kind="bridge", group=number)
    before = links()
    roads: Counter[str] = Counter()
    with beside(_neighbour) as moves, beside(_comer_and_goer) as came, crew(processes, _Deleter().turn) as deleters:
        for number in range(rounds):
            for own in deleters.each(ENGINES[number % 2]):
                roads.update(own)
    left = links()
    expect(set(left) == set(before), f"links are left or gone: {set(left) ^ set(before)}")
    expect(_decoys(left) == _decoys(before), "a decoy was changed")
    expect(not roads["lost"], f"{roads['lost']} NICs are left after close_nics()")
    lost = len(set(before) - set(left))
    figures = (
        f"{processes} processes x {rounds} rounds x {BATCH} NICs: {roads['group']} by group, {roads['threads']} by "
        f"threads, {lost} others, while {moves[0]} decoys moved next to a group and {came[0]} links came and went"
    )
    return figures, expect.broken


def _decoys(found: dict[int, tuple[str, Facts]]) -> dict[str, Facts]:
    """But for their groups."""
    return {name: facts._replace(group=0) for name, facts in found.values() if name.startswith("decoy")}


class _Counted:
    """An engine that counts what became of each DELETE."""

    def __init__(self, name: str, roads: Counter[str]) -> None:
        self._engine = select(name)
        self._roads = roads

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def run(self, program: Program) -> object:
        result = self._engine.run(program)
        for act, outcome in zip(program.acts, result.acts, strict=True):
            if act.op == Op.DELETE:
                self._roads["threads" if outcome.errno else "group"] += 1
        return result


class _Deleter:
    """One process: a batch is made, and deleted together with the others' batches."""

    def turn(self, engine: str) -> Counter[str]:
        roads: Counter[str] = Counter()
        nics = vhostnet.open_nics([spec(queues=1 + number % 2) for number in range(BATCH)], engine=engine)
        ours = {nic.ifindex for nic in nics}
        counted = _Counted(engine, roads)
        for nic in nics:
            nic._engine = counted
        vhostnet.close_nics(nics)
        roads["lost"] += len(ours & set(links()))
        return roads


def _neighbour(stopped: Callable[[], bool]) -> int:
    """How often a decoy moved next to a group that appeared."""
    monitor = Monitor()
    decoys = [index for index, (name, _) in links().items() if name.startswith("decoy")]
    seen: set[int] = set()
    moves = 0
    with IPRoute() as ip:
        while not stopped():
            new = {group for event in monitor.events() if (group := _group(event, decoys))} - seen
            for group in new:
                for decoy, aside in zip(decoys, (-1, 1) * (DECOYS // 2), strict=True):
                    ip.link("set", index=decoy, group=group + aside)
                    moves += 1
            seen |= new
            time.sleep(0.0005)
    return moves


def _group(event: Event, decoys: list[int]) -> int:
    """That of a NIC that is to go; 0 where it is not about one."""
    if event.type != uapi.RTM_NEWLINK or not event.facts or event.ifindex in decoys or event.facts.group < OURS:
        return 0
    return event.facts.group


def _comer_and_goer(stopped: Callable[[], bool]) -> int:
    """How many links came and went."""
    churn = 0
    with IPRoute() as ip:
        while not stopped():
            ip.link("add", ifname="coming", kind="bridge")
            ip.link("del", ifname="coming")
            churn += 1
    return churn
