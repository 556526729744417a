"""What it means: percentiles, ratios, and the limits we set ourselves."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import vhostnet
from bench import udevd
from bench.cases import ASIDE, NONE

Result = dict[str, Any]
Place = tuple[str, str]  # a case, and a contestant


class Limit(NamedTuple):
    """How many times as long *one* may take as *other* (medians, in one run): at most, or at least."""

    one: Place
    other: Place
    times: float
    at_least: bool = False


class More(NamedTuple):
    """How many microseconds *one* may take more than *other* (medians, in one run)."""

    one: Place
    other: Place
    most: float


class Absolute(NamedTuple):
    """What a quantity may be at most: the median, or that percentile."""

    table: str
    place: Place
    most: float
    unit: str
    each: float
    percent: int | None = None


LIMITS = (
    # What a NIC by itself takes of Python is the more beside the kernel's share, the faster a CPU enters the kernel:
    # 1.15 to 1.40 were seen. So it is with the pure engine, and with a NIC that is taken.
    Limit(("8q x 1", "native"), ("8q x 1", "floor"), 1.5),
    Limit(("8q x 100", "native"), ("8q x 100", "floor"), 1.10),
    Limit(("8q x 128", "native"), ("8q x 128", "floor"), 1.10),
    Limit(("8q x 128", "libvirt"), ("8q x 128", "native"), 8, at_least=True),
    Limit(("8q x 128", "pure"), ("8q x 128", "native"), 1.5),
    Limit(("8q x 128 beside a busy thread", "pure"), ("8q x 128 beside a busy thread", "native"), 3, at_least=True),
    Limit(("8q x 128 with port settings", "native"), ("8q x 128 with port settings", "floor"), 1.15),
    Limit(("8q x 128 with port settings", "native"), ("8q x 128", "native"), 1.5),
    Limit(("8q x 128 with bandwidth", "native"), ("8q x 128 with bandwidth", "floor"), 1.15),
    Limit(("limit 8q x 16", "tc"), ("limit 8q x 16", "act"), 50, at_least=True),
    Limit(("8q x 1000 over 4 bridges", "native"), ("8q x 100", "native"), 1.5),
    # 30 to 60: one by one it is the kernel's grace periods, of which each machine and each kernel has its own.
    Limit(("close 8q x 128", "one by one"), ("close 8q x 128", "close_nics"), 25, at_least=True),
    Limit(("close 8q x 128", "close_nics"), ("close 8q x 128", "bare group"), 1.15),
    Limit(("8q x 128 macvtaps", "native"), ("8q x 128 macvtaps", "floor"), 1.15),
    Limit(("close 8q x 16 macvtaps", "each by itself"), ("close 8q x 16 macvtaps", "close_nics"), 4, at_least=True),
    Limit(("take 8q x 1", "take"), ("take 8q x 1", "bare exchange"), 1.7),
    Limit(("ask for 8q x 64", "broker"), ("ask for 8q x 64", "native"), 1.3),
    Limit(("plug in 1q x 100", "ovs-vsctl"), ("plug in 1q x 100", "one transaction"), 10, at_least=True),
    *(
        Limit((f"8q x {batch}, {ASIDE}", engine), (f"8q x {batch}, {NONE}", engine), 1.10)
        for batch in (1, 64, 128)
        for engine in ("native", "pure")
    ),
)
MORE = tuple(More((f"ask for {queues}q x 1", "broker"), (f"ask for {queues}q x 1", "native"), 150) for queues in (1, 8))
ABSOLUTES = (
    Absolute("bytes", ("8q", "noqueue"), 0.5, "MiB", 2**20),
    Absolute("ns", ("the seed's XML", "parse + plan + argv"), 150, "us", 1000),
    Absolute("ns", ("a fresh process", "import vhostnet"), 30, "ms", 10**6),
    Absolute("ns", ("late turns of a loop, 8q x 64", "aside"), 1, "ms", 10**6, percent=99),
)
# Beside a busy thread the floor, one C call, gives up the GIL once. Switch intervals that one batch may take longer.
BUSY_LIMIT = 2
BUSY = (("8q x 1 beside a busy thread", 1), ("8q x 128 beside a busy thread", 128))


def percentile(values: Sequence[int], percent: int) -> float:
    """The value that *percent* of them do not exceed."""
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)])


def table(result: Result) -> str:
    """One line a case and contestant: microseconds a NIC, and the ratio of medians to the case's first contestant."""
    lines = [f"{'case':<44} {'contestant':<20} {'p50':>10} {'p95':>10} {'p99':>10}  x the first   (us a NIC)"]
    for case, contestants in result["ns"].items():
        first = statistics.median(next(iter(contestants.values())))
        for name, taken in contestants.items():
            shown = "".join(f" {percentile(taken, percent) / 1000:10.1f}" for percent in (50, 95, 99))
            lines.append(f"{case:<44} {name:<20}{shown}  {statistics.median(taken) / first:10.2f}")
    lines.append("\nkernel memory of a NIC, KiB")
    for case, kinds in result["bytes"].items():
        lines += [f"{case:<44} {name:<20} {taken / 1024:10.1f}" for name, taken in kinds.items()]
    return "\n".join(lines)


def verdicts(result: Result) -> str:
    """The limits, and whether this run kept them."""
    return "\n".join((*_limits(result), *_more(result["ns"]), *_absolutes(result), *_busy(result["ns"])))


def _limits(result: Result) -> Iterator[str]:
    for limit in LIMITS:
        if limit.one[0] not in result["ns"] or limit.other[0] not in result["ns"]:
            continue
        one, other = (statistics.median(result["ns"][case][who]) for case, who in (limit.one, limit.other))
        times = one / other
        kept = times >= limit.times if limit.at_least else times <= limit.times
        sense = "at least" if limit.at_least else "at most"
        what = f"{limit.one[0]}, {limit.one[1]}: {times:.2f} times {limit.other[1]}"
        among = f" of {limit.other[0]}" if limit.other[0] != limit.one[0] else ""
        yield f"{_word(kept)}  {what}{among}, {sense} {limit.times}"


def _more(times: dict[str, dict[str, list[int]]]) -> Iterator[str]:
    for limit in MORE:
        if limit.one[0] in times:
            one, other = (statistics.median(times[case][who]) / 1000 for case, who in (limit.one, limit.other))
            what = f"{limit.one[0]}, {limit.one[1]}: {one - other:.0f} us more than {limit.other[1]}"
            yield f"{_word(one - other <= limit.most)}  {what}, at most {limit.most:.0f}"


def _absolutes(result: Result) -> Iterator[str]:
    for table_name, (case, name), most, unit, each, percent in ABSOLUTES:
        if case not in result[table_name]:
            continue
        found = result[table_name][case][name]
        if not isinstance(found, int):
            found = percentile(found, percent) if percent else statistics.median(found)
        value, which = found / each, f" (p{percent})" if percent else ""
        yield f"{_word(value <= most)}  {case}, {name}{which}: {value:.2f} {unit}, at most {most}"


def _busy(times: dict[str, dict[str, list[int]]]) -> Iterator[str]:
    for case, batch in BUSY:
        if case not in times:
            continue
        taken = {name: statistics.median(ns) * batch for name, ns in times[case].items()}
        for name in ("native", "pure"):
            intervals = (taken[name] - taken["floor"]) / (sys.getswitchinterval() * 1e9)
            verdict = _word(intervals <= BUSY_LIMIT) if name == "native" else "      "
            limit = f", at most {BUSY_LIMIT}" if name == "native" else ""
            yield f"{verdict}  {case}, {name}: {intervals:+.2f} switch intervals more than floor{limit}"


def _word(kept: bool) -> str:
    return "kept  " if kept else "MISSED"


def _read(path: str) -> str:
    file = Path(path)
    return file.read_text().strip() if file.exists() else "not to be seen from this network namespace"


def host_facts() -> dict[str, Any]:
    """Without these no number means anything."""
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": cpus[0].partition(": ")[2] if cpus else "",
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "switch_interval_s": sys.getswitchinterval(),
        "default_qdisc": _read("/proc/sys/net/core/default_qdisc"),
        "udevd": udevd.version(),
        "load": os.getloadavg(),
        "vhostnet": vhostnet.__version__,
        "git": revision.stdout.strip(),
    }
