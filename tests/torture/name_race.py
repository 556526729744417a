"""Many processes want one name at the same moment."""

from __future__ import annotations

import errno

import vhostnet
from tests.torture.kit import Crew, Outcome, Promises, crew, fresh_namespace, link_names, spec
from vhostnet import Nic

NAME = "race0"


def name_race(*, processes: int = 16, rounds: int = 200) -> Outcome:
    """Promise: of all who ask for a name exactly one gets it, the others get NameBusy and leave nothing.

    Nobody shares the winner's TAP, and the name is free again as soon as the winner has closed it.
    """
    fresh_namespace()
    expect = Promises()
    winners = 0
    before = link_names()
    with crew(processes, _Racer().turn) as racers:
        for engine in ("native", "pure"):
            for queues in (1, 4):
                for _ in range(rounds):
                    winners += _round(racers, engine, queues, expect)
                    expect(link_names() == before, "something is left after the winner closed")
    lost = 4 * rounds * (processes - 1)
    figures = (
        f"{processes} processes x {rounds} rounds x 1 and 4 queues x 2 engines: {winners} winners, {lost} NameBusy"
    )
    return figures, expect.broken


def _round(racers: Crew, engine: str, queues: int, expect: Promises) -> int:
    answers = racers.each("open", engine, queues)
    won = answers.count("won")
    expect(won == 1, f"{won} processes have one name")
    expect(answers.count("busy") == len(answers) - won, f"a loser's error: {set(answers) - {'won', 'busy'}}")
    racers.each("close", engine, queues)
    with vhostnet.open_nic(spec(ifname=NAME, queues=queues), engine=engine) as again:
        expect(again.ifname == NAME, "the name is not to be had again")
        vhostnet.close_nics([again])
    return won


class _Racer:
    """One process: it holds what it has won until it is told to close it."""

    def __init__(self) -> None:
        self._nic: Nic | None = None

    def turn(self, act: str, engine: str, queues: int) -> str:
        if act == "close":
            if self._nic:
                self._nic.close()
            self._nic = None
            return "closed"
        try:
            self._nic = vhostnet.open_nic(spec(ifname=NAME, queues=queues), engine=engine)
            return "won"
        except vhostnet.NameBusy as error:
            right = (error.errno, error.act, error.ifname) == (errno.EBUSY, "TAP_OPEN", NAME)
            return "busy" if right else str(error)
        except vhostnet.HostError as error:
            return str(error)
