"""A result of bench.run as SVG plots."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

from bench.cases import ASIDE, HERE

Times = dict[str, dict[str, list[int]]]

matplotlib.use("svg")
matplotlib.rcParams.update(
    {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "vhostnet",  # the same data is the same file
        "figure.figsize": (7, 3.2),
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.3,
    }
)
WORLD_COLOURS = {HERE: "#d62728", ASIDE: "#1f77b4"}
COLOURS = {"floor": "#888888", "native": "#1f77b4", "pure": "#ff7f0e"}


def draw_all(result: Any, directory: Path) -> None:
    """Every plot, as directory/NAME.svg."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, draw in PLOTS.items():
        figure = pyplot.figure()
        draw(figure.add_subplot(), result)
        figure.savefig(directory / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)


def _middle(times: Times, case: str, who: str) -> float:
    """The median in microseconds a NIC."""
    return statistics.median(times[case][who]) / 1000


def _bars(axes: Any, values: Mapping[str, float], label: str, *, log: bool = True) -> None:
    names = list(values)[::-1]
    bars = axes.barh(names, [values[name] for name in names], color=[COLOURS.get(name, "#2ca02c") for name in names])
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.set_xlabel(label + (", logarithmic" if log else ""))
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.15)
    if log:
        axes.set_xscale("log")


def _ways(axes: Any, result: Any) -> None:
    times = result["ns"]
    names = list(times[f"8q x 16, {HERE}"])[::-1]
    for at, world in enumerate((ASIDE, HERE)):
        places = [place + 0.4 * at - 0.2 for place in range(len(names))]
        middles = [_middle(times, f"8q x 16, {world}", name) for name in names]
        bars = axes.barh(places, middles, height=0.38, label=world, color=WORLD_COLOURS[world])
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    axes.set_xlabel("us a NIC of 8 queues, 16 at a time, logarithmic")
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.15)
    axes.legend(frameon=False, reverse=True, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))


def _queues(axes: Any, result: Any) -> None:
    queues = (1, 2, 4, 8, 16)
    for who, colour in COLOURS.items():
        taken = [_middle(result["ns"], f"{count}q x 16", who) for count in queues]
        axes.plot(queues, taken, "o-", label=who, color=colour)
    axes.set_xticks(queues)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("queues")
    axes.set_ylabel("us a NIC, 16 at a time")
    axes.legend(frameon=False)


def _growth(axes: Any, result: Any) -> None:
    series = {
        "ports on its bridge": {0: "8q x 16", 500: "8q x 16 beside 500 ports", 1000: "8q x 16 beside 1000 ports"},
        "links on no bridge": {0: "8q x 16", 1000: "8q x 16 among 1000 links", 4000: "8q x 16 among 4000 links"},
    }
    for label, cases in series.items():
        axes.plot(list(cases), [_middle(result["ns"], case, "native") for case in cases.values()], "o-", label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("others that are there already")
    axes.set_ylabel("us a NIC of 8 queues, native")
    axes.legend(frameon=False)


def _closing(axes: Any, result: Any) -> None:
    times = result["ns"]["close 8q x 128"]
    _bars(axes, {who: _middle(result["ns"], "close 8q x 128", who) for who in times}, "us a NIC, 128 of 8 queues")


def _busy(axes: Any, result: Any) -> None:
    cases = {"quiet": "8q x 128", "beside a busy thread": "8q x 128 beside a busy thread"}
    values = {f"{who}, {label}": _middle(result["ns"], case, who) for label, case in cases.items() for who in COLOURS}
    _bars(axes, values, "us a NIC of 8 queues, 128 at a time")


def _taking(axes: Any, result: Any) -> None:
    times = result["ns"]["take 8q x 1"]
    values = {who: _middle(result["ns"], "take 8q x 1", who) for who in times}
    values["make one"] = values.pop("native")
    _bars(axes, values, "us a NIC of 8 queues", log=False)


def _memory(axes: Any, result: Any) -> None:
    values = {
        f"{case}, {qdisc}": size / 1024 for case, kinds in result["bytes"].items() for qdisc, size in kinds.items()
    }
    _bars(axes, values, "KiB of kernel memory a NIC")


PLOTS: dict[str, Callable[[Any, Any], None]] = {
    "ways": _ways,
    "queues": _queues,
    "growth": _growth,
    "closing": _closing,
    "busy": _busy,
    "taking": _taking,
    "memory": _memory,
}
