"""The process that makes NICs is killed, at every kernel call of a batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.torture.kit import Outcome

ROOT = Path(__file__).resolve().parents[2]


def crashes() -> Outcome:
    """Promise: within 3 s no link, no port and no fd is left, and the same names work at once.

    By the fault sweep, which needs a preloaded shim and so a process of its own.
    """
    command = [str(ROOT / "tests" / "faults" / "apart"), sys.executable, "-m", "tests.faults", "crashes"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    *told, last = done.stdout.splitlines() or [f"nothing: {done.stderr[-500:]}"]
    broken = [line for line in told if ": " in line] if done.returncode == 0 else [*told, last, done.stderr[-500:]]
    return last.removeprefix("faults: "), broken
