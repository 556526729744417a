"""python -m tests.faults [PART...] [--errnos NAME...]: the sweep, in a network namespace of its own."""

from __future__ import annotations

import argparse
import errno
import sys
import time

from tests.faults import shim

KINDS = ("leak", "wrong error", "second error", "engines differ")


def main() -> int:
    """Print what was tried; 0 when every promise was kept."""
    options = _options()
    shim.preload()
    shim.forget()
    from tests.faults.sweep import ERRNOS, HERE, sweep
    from vhostnet.commands.demo import enter_own_namespace

    enter_own_namespace()
    started = time.monotonic()
    codes = [getattr(errno, name) for name in options.errnos] if options.errnos else ERRNOS
    tally = sweep(options.part or HERE, codes)
    for name, count in tally.cases.items():
        print(f"{name:<40} {count:6}")
    print(*tally.wrong, sep="\n")
    found = ", ".join(f"{sum(wrong.startswith(kind) for wrong in tally.wrong)} {kind}" for kind in KINDS)
    took = time.monotonic() - started
    print(f"faults: {tally.cases.total()} cases, {found}; {len(tally.wrong)} wrong in all, {took:.0f} s")
    return 1 if tally.wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = ("opening", "undoing", "answers", "life", "crashes", "slow", "vhost", "vlan", "shaping")
    parser.add_argument("part", nargs="*", help=f"of {' '.join(parts)} (default: all but vhost, vlan and shaping)")
    parser.add_argument("--errnos", nargs="+", metavar="NAME", help="only these, such as EIO")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
