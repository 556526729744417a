"""What it means: percentiles, ratios to the floor, and the limits we set ourselves."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vhostnet

Measured = dict[str, dict[str, list[int]]]

# case, how much slower than the floor the native engine may be (both medians, in one run)
LIMITS = (("8q x 1", 1.25), ("8q x 100", 1.10))
# Beside a busy thread the floor, one C call, gives up the GIL once. Switch intervals that one batch may take longer.
BUSY_LIMIT = 2
BUSY = (("8q x 1", 1), ("8q x 100", 100))


def percentile(values: Sequence[int], percent: int) -> float:
    """The value that *percent* of them do not exceed."""
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)])


def table(measured: Measured) -> str:
    """One line a case and contestant: microseconds a NIC, and the ratio of medians to the floor's."""
    lines = [f"{'case':<30} {'contestant':<10} {'p50':>9} {'p95':>9} {'p99':>9}   x floor   (us a NIC)"]
    for case, contestants in measured.items():
        floor = statistics.median(contestants["floor"])
        for name, taken in contestants.items():
            shown = "".join(f" {percentile(taken, percent) / 1000:9.1f}" for percent in (50, 95, 99))
            lines.append(f"{case:<30} {name:<10}{shown}   {statistics.median(taken) / floor:7.2f}")
    return "\n".join(lines)


def verdicts(measured: Measured) -> str:
    """The limits, and whether this run kept them."""
    lines = []
    for case, limit in LIMITS:
        ratio = statistics.median(measured[case]["native"]) / statistics.median(measured[case]["floor"])
        lines.append(f"{_word(ratio <= limit)}  {case}: native {ratio:.2f}x the floor, limit {limit:.2f}x")
    for case, batch in BUSY:
        taken = {name: statistics.median(ns) * batch for name, ns in measured[f"{case} beside a busy thread"].items()}
        for name in ("native", "pure"):
            intervals = (taken[name] - taken["floor"]) / (sys.getswitchinterval() * 1e9)
            verdict = _word(intervals <= BUSY_LIMIT) if name == "native" else "      "
            lines.append(f"{verdict}  {case} beside a busy thread: {name} {intervals:+.2f} switch intervals")
    return "\n".join(lines)


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
        "load": os.getloadavg(),
        "vhostnet": vhostnet.__version__,
        "git": revision.stdout.strip(),
    }
