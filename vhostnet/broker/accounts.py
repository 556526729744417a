"""How many NICs and queues each user has, by the marks of those that are there: a restarted broker knows, too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from vhostnet.broker.peer import Peer
from vhostnet.broker.policy import Rule
from vhostnet.errors import PolicyRefused
from vhostnet.host.marks import Mark, read_mark
from vhostnet.others import bridge

_FRESH: Final = 0.2  # seconds that a count of all links is believed: it takes longer than making a NIC


class Holding(NamedTuple):
    """What a user has."""

    nics: int = 0
    queues: int = 0


class Accounts:
    """Nobody tells when a NIC goes with its last fd. So what a user may have is counted up as NICs are made, and all
    links are counted anew where that would be too much.
    """

    def __init__(self) -> None:
        self._held = count_links()
        self._counted = time.monotonic()

    def check(self, peer: Peer, rule: Rule, nics: int, queues: int) -> None:
        """That so many more fit into what *rule* allows. Raises PolicyRefused."""
        try:
            self._check(peer, rule, nics, queues)
        except PolicyRefused:
            if time.monotonic() - self._counted < _FRESH:
                raise
            self._held, self._counted = count_links(), time.monotonic()
            self._check(peer, rule, nics, queues)

    def _check(self, peer: Peer, rule: Rule, nics: int, queues: int) -> None:
        has = self.of(peer.uid)
        for what, more, most, there in (
            ("NICs", nics, rule.nics, has.nics),
            ("queues", queues, rule.queues, has.queues),
        ):
            if there + more > most:
                problem = f"rule {rule.name!r} allows {most} {what} at a time: {there} are there, {more} are asked for"
                raise PolicyRefused(problem, rule=rule.name)

    def add(self, uid: int, nics: int, queues: int) -> None:
        """They are made, or were not after all where the numbers are negative."""
        has = self.of(uid)
        self._held[uid] = Holding(max(0, has.nics + nics), max(0, has.queues + queues))

    def of(self, uid: int) -> Holding:
        """At the most: some may have gone since."""
        return self._held.get(uid, Holding())

    @property
    def total(self) -> dict[int, Holding]:
        """By uid, at the most."""
        return dict(self._held)


def marked_links() -> Iterator[tuple[Any, Mark]]:
    """The links of this network namespace that a broker has made for somebody."""
    for link in bridge.list_links():
        mark = read_mark(link.get("ifalias"))
        if mark and mark.uid is not None:
            yield link, mark


def queues_of(link: Any) -> tuple[int, int]:
    """Attached and detached ones, of a TAP; the kernel counts those of multi-queue devices only."""
    info = link.get("linkinfo")
    data = info.get("data") if info and info.get("kind") == "tun" else None
    attached = data.get_attr("IFLA_TUN_NUM_QUEUES") if data else None
    detached = data.get_attr("IFLA_TUN_NUM_DISABLED_QUEUES") if data else None
    return 1 if attached is None else int(attached), int(detached or 0)


def count_links() -> dict[int, Holding]:
    """By uid."""
    held: dict[int, Holding] = {}
    for link, mark in marked_links():
        has = held.get(mark.uid or 0, Holding())
        held[mark.uid or 0] = Holding(has.nics + 1, has.queues + sum(queues_of(link)))
    return held
