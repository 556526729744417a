"""``python -m tests.torture [NAME ...]``: one line a part, and status 1 where a promise was broken."""

from __future__ import annotations

import resource
import sys
import time
import traceback

from tests.torture.parts import PARTS, Part

SHOWN = 10  # broken promises of one part


def main(names: list[str]) -> int:
    unknown = set(names) - {part.name for part in PARTS}
    if unknown:
        print(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(part.name for part in PARTS)}")
        return 2
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    chosen = [part for part in PARTS if not names or part.name in names]
    kept = [_show(part, max(len(part.name) for part in chosen)) for part in chosen]
    return 0 if all(kept) else 1


def _show(part: Part, width: int) -> bool:
    started = time.monotonic()
    try:
        figures, broken = part.run()
    except Exception:
        figures, broken = "", [f"it did not come to its end: {traceback.format_exc()}"]
    seconds = time.monotonic() - started
    verdict = "BROKEN" if broken else "kept"
    print(f"{part.name:<{width}}  {verdict:<6}  {seconds:4.0f} s  {figures}", flush=True)
    for promise in [*broken[:SHOWN], *([f"and {len(broken) - SHOWN} more"] if len(broken) > SHOWN else [])]:
        print(f"{'':<{width}}          !! {promise}", flush=True)
    return not broken


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
