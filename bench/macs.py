"""Whose MACs NICs have when udev is done with them, and whether their bridges' ever moved.

python -m bench.macs [--suite SUITE] [--nics N] [--batches N...] [--who NAME...] [--output FILE]

The NICs go round two bridges, each with a port that stands for the host's own NIC: one was given a MAC of its own by
udev, as bridges are by default; the other has none and takes its lowest port's. Every MAC of a TAP that we give is
above that, nearly every one that udev makes up is below. Read back by ``ip``.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench import report
from bench.beside_udevd import run_module
from bench.cases import Case
from bench.contestants import Way, bridge_names, specs_of, ways
from bench.measure import BESIDE, raise_file_limit
from bench.udevd import Udevd, end_other, udevd
from bench.watch import watched

ROW = 128  # so many NICs are there at once
BATCHES, QUEUES, BUSY = (1, 16, 128), (1, 8), (0, 2)
UPLINK = "fc:54:00:00:00:0"
PAUSE = 0.01  # seconds, at most, between NICs that are opened one by one: udevd is idle or not, as it happens
LATER = 1.0
STOCK, BARE = bridge_names(Case(1, 1, rounds=1, bridges=2))
BRIDGES = {STOCK: "a MAC of its own, from udev", BARE: "its lowest port's MAC"}
SET = "3"  # NET_ADDR_SET: a bridge of such an addr_assign_type keeps its MAC


@dataclass(frozen=True)
class Count:
    """How many of *nics* NICs had another MAC than they were given: when udev had settled, and a second later."""

    who: str
    queues: int
    batch: int
    busy: int
    nics: int = 0
    wrong: int = 0
    still: int = 0


def main() -> int:
    """Count, print, keep the JSON; 0 where no MAC was wrong and that of the bridge that has its own never moved."""
    options = _options()
    if options.inside:
        contestants = ways()
        print(json.dumps(count({name: contestants[name] for name in options.who}, options.batches, options.nics)))
        return 0
    started = time.monotonic()
    result = run_module("bench.macs", [*sys.argv[1:], "--inside"], options.suite)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result))
    print(summary(result), f"{time.monotonic() - started:.0f} s; kept in {options.output}", sep="\n\n")
    return 1 if any(one["wrong"] for one in result["counts"]) or moves(result)[STOCK] else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="", help="the Debian whose udevd it is; default: this one's")
    parser.add_argument("--nics", type=int, default=20_000, help="at least so many in all; default: 20000")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, help="default: 1 16 128")
    parser.add_argument("--who", nargs="+", default=["native", "pure"], help="default: native pure")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    default = Path("bench/results") / f"macs-{time.strftime('%Y%m%d-%H%M%S')}.json"
    parser.add_argument("--output", type=Path, default=default, help=f"default: {default}")
    return parser.parse_args()


def count(who: dict[str, Way], batches: Sequence[int], nics: int) -> dict[str, Any]:
    """The host's facts, the counts, and which MACs each bridge has had. For under tools/with-udevd."""
    end_other()
    raise_file_limit()
    _make_bridge(BARE)  # before there is a udevd to hear of it
    with udevd() as daemon:
        _make_bridge(STOCK)
        daemon.settle()
        _check_bridges()
        bridges = {name: (index, mac) for index, (name, mac) in _links().items() if name in (STOCK, BARE)}
        with watched(dict(bridges.values())) as history:
            counts = list(_counted(who, batches, nics, daemon))
    had = {name: history[index] for name, (index, _) in bridges.items()}
    return {"host": report.host_facts(), "counts": [asdict(one) for one in counts], "bridges": had}


def _make_bridge(name: str) -> None:
    """It, and a port: the end of a veth pair, for the host's own NIC."""
    uplink = ["name", f"{name}-up", "address", f"{UPLINK}{name[-1]}", "type", "veth", "peer", "name", f"{name}-out"]
    _ip("link", "add", name, "type", "bridge")
    _ip("link", "add", *uplink)
    _ip("link", "set", f"{name}-up", "master", name, "up")
    _ip("link", "set", name, "up")


def _check_bridges() -> None:
    """The one has its MAC from udev, the other its port's."""
    kinds = [Path(f"/sys/class/net/{name}/addr_assign_type").read_text().strip() == SET for name in (STOCK, BARE)]
    if kinds != [True, False] or dict(_links().values())[BARE] != f"{UPLINK}{BARE[-1]}":
        raise RuntimeError(f"{STOCK} and {BARE} are not what is to be watched: {kinds}, {_links()}")


def _counted(who: dict[str, Way], batches: Sequence[int], nics: int, daemon: Udevd) -> Iterator[Count]:
    """The idle ones first, then those beside the busy loops; each half in random order."""
    for busy in BUSY:
        print(f"beside {busy} busy loops ...", file=sys.stderr, flush=True)
        counts = [Count(name, queues, batch, busy) for name, queues, batch in itertools.product(who, QUEUES, batches)]
        wanted = -(-nics // (len(counts) * len(BUSY)))
        with contextlib.ExitStack() as stack:
            for _ in range(busy):
                stack.enter_context(BESIDE["process"]())
            while left := [at for at, count in enumerate(counts) if count.nics < wanted]:
                at = random.choice(left)
                acts = -(-min(ROW, wanted - counts[at].nics) // counts[at].batch)
                counts[at] = _row(counts[at], acts, who[counts[at].who], daemon)
        yield from counts


def _row(count: Count, acts: int, way: Way, daemon: Udevd) -> Count:
    """So many batches one after the other, until udev has settled; what they have come to be; and they go."""
    made = []
    for number in range(acts):
        time.sleep(random.random() * PAUSE)
        case = Case(count.queues, count.batch, rounds=1, bridges=2, first=number)
        made.append(way.act(way.prepare(case, specs_of(case))))
    daemon.settle()
    asked = {index: mac for there in map(way.look, made) for index, mac in zip(there.indexes, there.macs, strict=True)}
    wrong = _wrong(asked)
    if wrong:
        time.sleep(LATER)
    still = _wrong(asked) if wrong else 0
    for there in made:
        way.end(there)
    daemon.settle()
    return replace(count, nics=count.nics + len(asked), wrong=count.wrong + wrong, still=count.still + still)


def _wrong(asked: dict[int, str]) -> int:
    found = _links()
    return sum(found[index][1] != mac for index, mac in asked.items())


def _links() -> dict[int, tuple[str, str]]:
    """The name and the MAC of every link."""
    return {link["ifindex"]: (link["ifname"], link["address"]) for link in json.loads(_ip("-j", "link", "show"))}


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


def moves(result: Any) -> dict[str, int]:
    """How often each bridge's MAC moved."""
    return {name: len(result["bridges"][name]) - 1 for name in BRIDGES}


def summary(result: Any) -> str:
    """A line for each way, queues, batch and load; and what it comes to."""
    counts = [Count(**one) for one in result["counts"]]
    lines = [f"{'':<10} {'queues':>6} {'batch':>6} {'busy loops':>10} {'NICs':>8} {'wrong':>6}  a second later"]
    lines += [
        f"{one.who:<10} {one.queues:>6} {one.batch:>6} {one.busy:>10} {one.nics:>8} {one.wrong:>6}  {one.still:>14}"
        for one in counts
    ]
    nics, wrong, still = (sum(getattr(one, name) for one in counts) for name in ("nics", "wrong", "still"))
    lines += ["", f"wrong MACs beside udevd {result['host']['udevd']}: {wrong} of {nics} NICs, {still} a second later"]
    lines += [f"a bridge with {BRIDGES[name]}: it moved {times} times" for name, times in moves(result).items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
