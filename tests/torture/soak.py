"""A hundred thousand NICs, made and taken away."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import vhostnet
from tests.torture.kit import (
    Outcome,
    Promises,
    fresh_namespace,
    link_names,
    open_fds,
    resident,
    spec,
    threads,
    wait_until,
)
from vhostnet import NicPool

BATCH = 128
WARM = 4  # batches until every cache has what it needs
RSS_KIB = 1024  # what may be more afterwards
KERNEL_KIB = 8 * 1024


class Way(NamedTuple):
    """One way of making NICs and taking them away: it yields the ifindexes of each turn."""

    name: str
    turn: Callable[[], list[int]]
    cycles: int  # in a turn


def soak(*, cycles: int = 100_000) -> Outcome:
    """Promise: nothing grows. After any number of NICs, fds, links and threads are what they were.

    This process has not grown by more than a MiB, nor the kernel's own memory (SUnreclaim, Percpu) by more than eight
    once RCU has freed what it had to; and no ifindex was given twice. Both engines in batches, closing one by one, and
    the pool, whose NICs the background deletes.
    """
    fresh_namespace()
    expect = Promises()
    one_by_one, of_pool = Way("close()", _close_each, 8), Way("pool", _pool, 32)
    ways = (
        (Way("native", lambda: _batch("native"), BATCH), cycles),
        (Way("pure", lambda: _batch("pure"), BATCH), cycles // 20),
        (one_by_one, cycles // 200),
        (of_pool, cycles // 25),
    )
    wait_until(lambda: threads() == threading.active_count())  # one that was joined may still be on its way out
    quiet = _state()
    return "; ".join(_soak(way, count, quiet, expect) for way, count in ways), expect.broken


def _state() -> tuple[dict[int, str], set[str], int]:
    return open_fds(), link_names(), threads()


def _soak(way: Way, cycles: int, quiet: tuple[dict[int, str], set[str], int], expect: Promises) -> str:
    turns = max(1, cycles // way.cycles)
    for _ in range(min(WARM, turns)):
        way.turn()
    wait_until(lambda: _state() == quiet)  # what is deleted in the background
    rss, kernel = resident(), _kernel_memory()
    started = time.monotonic()
    last = 0
    for _ in range(turns):
        for index in way.turn():
            expect(index > last, f"{way.name}: an ifindex was given again")
            last = index
    rate = turns * way.cycles / (time.monotonic() - started)
    expect(wait_until(lambda: _state() == quiet), f"{way.name}: {quiet} became {_state()}")
    more = resident() - rss
    expect(more <= RSS_KIB, f"{way.name}: {more} KiB more")
    expect(wait_until(lambda: _kernel_memory() - kernel <= KERNEL_KIB), f"{way.name}: the kernel's memory has grown")
    return f"{way.name} {turns * way.cycles} at {rate:.0f}/s, {more:+} KiB, kernel {_kernel_memory() - kernel:+} KiB"


def _kernel_memory() -> int:
    """KiB that cannot be reclaimed."""
    drop = Path("/proc/sys/vm/drop_caches")
    if os.access(drop, os.W_OK):
        drop.write_text("2")  # inodes and entries that nobody holds
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(facts[name].split()[0]) for name in ("SUnreclaim", "Percpu"))


# --- the ways ------------------------------------------------------------------------------------------------


def _batch(engine: str) -> list[int]:
    nics = vhostnet.open_nics([spec(queues=1 + number % 2) for number in range(BATCH)], engine=engine)
    vhostnet.close_nics(nics)
    return [nic.ifindex for nic in nics]


def _close_each() -> list[int]:
    return list(_opened_and_closed(8))


def _opened_and_closed(count: int) -> Iterator[int]:
    for number in range(count):
        with vhostnet.open_nic(spec(queues=1 + number % 2)) as nic:
            yield nic.ifindex


def _pool() -> list[int]:
    """What is taken is given back, what is parked goes with the pool."""
    with NicPool(spec(queues=2), size=32) as pool:
        taken = [pool.take() for _ in range(32)]
        for nic in taken:
            pool.give_back(nic)
    return sorted(nic.ifindex for nic in taken)
