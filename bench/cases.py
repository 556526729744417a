"""What is measured: who does what, how many NICs at a time, of how many queues, among what, and beside what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OURS = ("floor", "native", "pure")
ENGINES = ("native", "pure")
OTHERS = ("libvirt", "ganeti", "ip -batch", "ip", "pyroute2")
EVERYBODY = (*OURS, *OTHERS)
CLOSERS = ("bare group", "close_nics", "32 threads", "8 threads", "one by one")
PLUG = "plug in"  # ports of Open vSwitch, where there is one
PLUGGERS = ("one transaction", "one ovs-vsctl", "ovs-vsctl")  # the last is libvirt's way
LIMITERS = ("act", "act, pure", "tc")
MACVTAP_CLOSERS = ("close_nics", "each by itself")
BROKERED = ("native", "broker")
TAKERS = ("bare exchange", "take", "take, pure", "native")


@dataclass(frozen=True)
class Case:
    """One line of the table: *batch* NICs of *queues* queues in one go, by each of *who*.

    ``bridges`` share them; ``ports`` others are on each of these, and ``links`` others on none. ``process`` is the
    control for ``thread``: the same load on the machine, but another GIL.
    """

    queues: int
    batch: int
    rounds: int
    who: tuple[str, ...] = OURS
    what: str = ""
    beside: Literal["", "process", "thread"] = ""
    bridges: int = 1
    first: int = 0  # on which of them the first NIC is
    ports: int = 0
    links: int = 0
    settings: bool = False  # every port has some
    limited: bool = False  # what every guest gets is
    direct: bool = False  # macvtaps on the first of the bridges, which is a link like any other to them
    per_round: int = 1  # how often in a row each contestant acts before all is deleted: deleting a link takes 20 ms
    quick: bool = True  # in the quick run, too

    @property
    def name(self) -> str:
        parts = [
            f"{self.what} {self.queues}q x {self.batch}".strip(),
            "macvtaps" if self.direct else "",
            "with port settings" if self.settings else "",
            "with bandwidth" if self.limited else "",
            f"over {self.bridges} bridges" if self.bridges > 1 else "",
            f"among {self.links} links" if self.links else "",
            f"beside {self.ports} ports" if self.ports else "",
            f"beside a busy {self.beside}" if self.beside else "",
        ]
        return " ".join(filter(None, parts))


CASES = (
    *(Case(queues, 1, rounds=20, per_round=10) for queues in (1, 2, 4, 16)),
    Case(8, 1, rounds=80, per_round=10),
    *(Case(queues, 16, rounds=10) for queues in (1, 2, 4, 16)),
    Case(8, 16, rounds=8, who=EVERYBODY),
    Case(8, 100, rounds=30),
    Case(8, 128, rounds=20, who=(*OURS, "libvirt")),
    Case(8, 128, rounds=20, settings=True),
    Case(8, 128, rounds=20, limited=True),
    Case(8, 1000, rounds=8, bridges=4, quick=False),
    *(Case(8, 16, rounds=8, links=links, quick=False) for links in (1000, 4000)),
    *(Case(8, 16, rounds=8, ports=ports, quick=False) for ports in (500, 1000)),
    Case(8, 1, rounds=10, beside="process", per_round=10),
    Case(8, 1, rounds=8, beside="thread", per_round=10),
    Case(8, 128, rounds=10, beside="process", quick=False),
    Case(8, 128, rounds=3, beside="thread", quick=False),  # the pure engine takes seconds
    Case(8, 128, rounds=25, who=CLOSERS, what="close"),
    Case(8, 1, rounds=80, who=TAKERS, what="take", per_round=5),
    Case(1, 100, rounds=5, who=PLUGGERS, what=PLUG),
    *(Case(queues, 1, rounds=40, who=BROKERED, what="ask for", per_round=5) for queues in (1, 8)),
    Case(8, 64, rounds=20, who=BROKERED, what="ask for"),
    Case(8, 16, rounds=8, who=LIMITERS, what="limit"),
    Case(8, 1, rounds=30, direct=True, per_round=5),
    Case(8, 128, rounds=20, direct=True),
    Case(8, 16, rounds=6, who=MACVTAP_CLOSERS, what="close", direct=True),
)
# Where the NICs are made: a udevd hears of them; or one listens in the parent's namespace only; or there is none.
HERE, ASIDE, NONE = WORLDS = ("udevd here", "a namespace of its own", "no udevd")
WORLD_CASES = (
    Case(8, 1, rounds=24, who=ENGINES, per_round=5),
    Case(8, 16, rounds=4, who=(*ENGINES, *OTHERS), quick=False),
    Case(1, 64, rounds=8, who=ENGINES, quick=False),
    Case(8, 64, rounds=20, who=ENGINES),
    Case(8, 128, rounds=12, who=ENGINES, quick=False),
)
HERE_PERCENT = 25  # of a case's rounds, where a udevd hears of it: it takes ten times as long
MEMORY_QUEUES = (1, 2, 4, 8, 16)
MEMORY_BATCH = 128
