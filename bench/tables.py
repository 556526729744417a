"""The documents' tables, each a function from the kept results to Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench import libvirt, report
from bench.cases import ASIDE, ENGINES, HERE, NONE, OTHERS, WORLD_CASES
from bench.macs import BRIDGES, moves
from bench.worlds import CLOSED, CPU, OPENED, SETTLED

Results = dict[str, Any]  # performance, macs and libvirt: the JSON of docs/


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def _middle(results: Results, case: str, who: str) -> float:
    """The median in microseconds a NIC."""
    return float(statistics.median(results["performance"]["ns"][case][who])) / 1000


def _us(results: Results, case: str, who: str) -> str:
    return f"{_middle(results, case, who):,.0f}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"


# --- with and without udev -------------------------------------------------------------------------------


def _host(results: Results) -> str:
    host = results["performance"]["host"]
    return (
        f"{host['cpus']} vCPUs ({host['cpu']}), Linux {host['kernel'].partition('-')[0]}, Python {host['python']}, "
        f"systemd-udevd {host['udevd']}, `default_qdisc` {host['default_qdisc']}."
    )


def _worlds(results: Results) -> str:
    rows = []
    for case in WORLD_CASES:
        here = [_us(results, f"{case.name}, {HERE}{phase}", "native") for phase in (OPENED, SETTLED, CPU)]
        aside, none = (_middle(results, f"{case.name}, {world}", "native") for world in (ASIDE, NONE))
        what = f"{case.queues} queue{'s' * (case.queues > 1)}, {case.batch} at a time"
        rows.append([what, *here, f"**{aside:,.0f}**", f"{none:,.0f}", f"{aside / none:.2f}"])
    head = ["native, us a NIC", HERE, "until it has settled", "its CPU", ASIDE, NONE, "own / none"]
    return _table(head, rows)


def _ways(results: Results) -> str:
    def row(who: str) -> list[str]:
        here = [_us(results, f"8q x 16, {HERE}{phase}", who) for phase in (OPENED, SETTLED, CPU, CLOSED)]
        return [who, *here, *(_us(results, f"8q x 16, {ASIDE}{phase}", who) for phase in (OPENED, CLOSED))]

    head = ["us a NIC of 8 queues, 16 at a time", HERE, "until it has settled", "its CPU", "closed", ASIDE, "closed"]
    return _table(head, map(row, (*ENGINES, *OTHERS)))


def _macs(results: Results) -> str:
    rows = []
    for result in results["macs"]:
        for who in dict.fromkeys(one["who"] for one in result["counts"]):
            counts = [one for one in result["counts"] if one["who"] == who]
            sums = (sum(one[name] for one in counts) for name in ("nics", "wrong", "still"))
            rows.append([result["host"]["udevd"], who, *(f"{number:,}" for number in sums)])
    return _table(["systemd-udevd", "", "NICs", "another MAC when it had settled", "a second later"], rows)


def _moves(results: Results) -> str:
    rows = []
    for result in results["macs"]:
        who = ", ".join(dict.fromkeys(one["who"] for one in result["counts"]))
        rows.append([result["host"]["udevd"], who, *map(str, moves(result).values())])
    return _table(["the MAC moved of a bridge with", "", *BRIDGES.values()], rows)


# --- real libvirt ----------------------------------------------------------------------------------------


def _libvirt(results: Results) -> str:
    def table(world: str) -> str:
        rows = libvirt.rows(results["libvirt"], world)
        shown = [[kind, f"{one:.0f}", f"{nine:.0f}", f"{more:.1f}"] for kind, one, nine, more in rows]
        return _table([f"ms, {world}", "1 NIC", "9 NICs", "a NIC more"], shown)

    return "\n\n".join(map(table, libvirt.WORLDS))


def _start(results: Results) -> str:
    names = {
        "virsh create, 8q, returned": "`virsh create` returns",
        "virsh create, 8q": "its QEMU answers",
        "vhostnet exec, 8q": "`vhostnet exec`'s QEMU answers",
    }
    rows = {name: [label] for name, label in names.items()}
    for world in libvirt.WORLDS:
        for kind, *figures in libvirt.rows(results["libvirt"], world):
            if kind in rows:
                rows[kind] += [f"{value:.0f}" for value in figures[:2]]
    return _table(
        ["ms", *(f"{world}, {nics}" for world in libvirt.WORLDS for nics in ("1 NIC", "9 NICs"))], rows.values()
    )


# --- without udev ----------------------------------------------------------------------------------------


def _against_floor(results: Results, what: str, cases: Mapping[str, str]) -> str:
    rows = []
    for label, case in cases.items():
        floor = _middle(results, case, "floor")
        ours = [_middle(results, case, engine) for engine in ENGINES]
        rows.append([label, f"{floor:,.0f}", *(f"{us:,.0f} ({us / floor:.2f}x)" for us in ours)])
    return _table([what, "floor", *ENGINES], rows)


def _quiet(results: Results) -> str:
    cases = {"one at a time": "8q x 1", "16 at a time": "8q x 16", "128 at a time": "8q x 128"}
    cases["1000 at a time, over 4 bridges"] = "8q x 1000 over 4 bridges"
    return _against_floor(results, "us a NIC of 8 queues, no udevd", cases)


def _busy(results: Results) -> str:
    cases = {"one at a time": "8q x 1 beside a busy thread", "128 at a time": "8q x 128 beside a busy thread"}
    return _against_floor(results, "the same beside a busy thread", cases)


def _growth(results: Results) -> str:
    beside = [
        "",
        *(f" beside {count} ports" for count in (500, 1000)),
        *(f" among {count} links" for count in (1000, 4000)),
    ]
    rows = [[f"8 queues, 16 at a time{what}", _us(results, f"8q x 16{what}", "native")] for what in beside]
    return _table(["", "us a NIC, native"], rows)


def _closing(results: Results) -> str:
    case = "close 8q x 128"
    middles = {who: _middle(results, case, who) for who in results["performance"]["ns"][case]}
    rows = [[who, f"{us / 1000:.2f}", f"{us / middles['close_nics']:.2f}"] for who, us in middles.items()]
    return _table(["128 NICs of 8 queues", "ms a NIC", "times `close_nics`"], rows)


def _taking(results: Results) -> str:
    case = "take 8q x 1"
    middles = {who: _middle(results, case, who) for who in results["performance"]["ns"][case]}
    names = {"native": "made on that bridge, native"}
    rows = [[names.get(who, who), f"{us:,.0f}", f"{us / middles['bare exchange']:.2f}"] for who, us in middles.items()]
    return _table(["a NIC of 8 queues", "us", "times the bare exchange"], rows)


def _rest(results: Results) -> str:
    memory, package = results["performance"]["bytes"]["8q"], _middle(results, "a fresh process", "import vhostnet")
    rows = [
        ["from the seed's XML to a Program and QEMU's arguments", f"{_us(results, *SEED)} us"],
        ["importing the package, without pyroute2 and the XML parser", f"{package / 1000:.1f} ms"],
        ["kernel memory of a NIC of 8 queues with `noqueue`", _mib(memory["noqueue"])],
        ["the same with the kernel's default qdisc", _mib(memory["default"])],
    ]
    return _table(["besides", ""], rows)


SEED = ("the seed's XML", "parse + plan + argv")


def _limits(results: Results) -> str:
    return f"```text\n{report.verdicts(results['performance'])}\n```"


# --- in short, for README --------------------------------------------------------------------------------


def _short(results: Results) -> str:
    rows = []
    for label, case in {"one at a time": "8q x 1", "a batch of 128": "8q x 128"}.items():
        for engine in ENGINES:
            us = [
                _us(results, f"{case}, {world}", engine) for world in (f"{HERE}{OPENED}", f"{HERE}{CPU}", ASIDE, NONE)
            ]
            rows.append([f"{label}, {engine}", *us])
    return _table(["us a NIC of 8 queues", HERE, "its CPU besides", ASIDE, NONE], rows)


def _otherwise(results: Results) -> str:
    opened = {who: _middle(results, "8q x 128", who) for who in ("libvirt", "native")}
    closed = {who: _middle(results, "close 8q x 128", who) / 1000 for who in ("one by one", "close_nics")}
    pooled = {who: _middle(results, "take 8q x 1", who) for who in ("native", "take")}
    memory = results["performance"]["bytes"]["8q"]

    def times(values: Mapping[str, float], other: str, ours: str) -> str:
        return f"({values[other] / values[ours]:.1f}x)"

    rows = [
        [
            f"set up: `noqueue` before UP, {opened['native']:.0f} us",
            f"libvirt's order and its `tc`: {opened['libvirt']:,.0f} us {times(opened, 'libvirt', 'native')}",
        ],
        [
            f"kernel memory: {_mib(memory['noqueue'])}",
            f"with the default qdisc: {_mib(memory['default'])} {times(memory, 'default', 'noqueue')}",
        ],
        [
            f"taken away: 128 in one round, {closed['close_nics']:.2f} ms",
            f"one by one: {closed['one by one']:.1f} ms {times(closed, 'one by one', 'close_nics')}",
        ],
        [
            f"taken from the pool: {pooled['take']:.0f} us",
            f"made then: {pooled['native']:.0f} us {times(pooled, 'native', 'take')}",
        ],
    ]
    return _table(["a NIC of 8 queues, no udevd", "otherwise"], rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "host": _host,
    "worlds": _worlds,
    "ways": _ways,
    "macs": _macs,
    "moves": _moves,
    "libvirt": _libvirt,
    "start": _start,
    "quiet": _quiet,
    "busy": _busy,
    "growth": _growth,
    "closing": _closing,
    "taking": _taking,
    "rest": _rest,
    "limits": _limits,
    "short": _short,
    "otherwise": _otherwise,
}
