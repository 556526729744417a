"""How it is measured: contestants in random order, in one process and one namespace, each checked, cleaning not timed.

python -m bench.run [--quick] [--rounds-percent N] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from bench import beside_udevd, openvswitch, quantities, report
from bench.brokers import ByBroker, of_loop
from bench.cases import CASES, PLUG, Case
from bench.contestants import bridge_names, everybody
from bench.measure import measure, raise_file_limit
from vhostnet.commands.demo import enter_own_namespace
from vhostnet.others import bridge


def main() -> int:
    """Measure, print the table, keep the JSON."""
    options = _options()
    facts = report.host_facts()  # before the namespace, which hides some
    times = quantities.of_text(options.rounds_percent)
    worlds = _worlds(options.rounds_percent, quick=options.quick)
    enter_own_namespace()
    raise_file_limit()
    for name in bridge_names(Case(1, 1, 1, bridges=4)):
        bridge.make_bridge(name)
    floor, contestants = everybody()
    contestants["broker"] = ByBroker()
    no_switch = openvswitch.missing()
    for case in (case for case in CASES if case.quick or not options.quick):
        if case.what == PLUG and no_switch:
            print(f"{case.name}: left out: {no_switch}", file=sys.stderr)
            continue
        print(f"{case.name} ...", file=sys.stderr, flush=True)
        times[case.name] = measure(case, {who: contestants[who] for who in case.who}, floor, options.rounds_percent)
    times |= worlds
    memory = quantities.of_memory(quick=options.quick)
    times["late turns of a loop, 8q x 64"] = of_loop(max(1, 30 * options.rounds_percent // 100))
    result = {"host": facts, "ns": times, "bytes": memory}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result))
    print(report.table(result), report.verdicts(result), f"kept in {options.output}", sep="\n\n")
    return 0


def _worlds(rounds_percent: int, *, quick: bool) -> Any:
    """What bench.worlds measures; nothing where that is not allowed."""
    if not beside_udevd.possible():
        return {}
    quickly = ["--quick"] if quick else []
    return beside_udevd.run_module("bench.worlds", ["--rounds-percent", str(rounds_percent), *quickly])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, and not the cases that take long")
    parser.add_argument("--rounds-percent", type=int, default=100, help="so many of each case's rounds")
    default = Path("bench/results") / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    parser.add_argument("--output", type=Path, default=default, help=f"default: {default}")
    options = parser.parse_args()
    if options.quick:
        options.rounds_percent = min(options.rounds_percent, 10)
    return options


if __name__ == "__main__":
    sys.exit(main())
