"""A stock systemd-udevd of our own, started and stopped. For processes that run under tools/with-udevd."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

DAEMON = "/lib/systemd/systemd-udevd"
CONTROL = Path("/run/udev/control")  # a daemon that no systemd started leaves it behind
PATIENCE = 120  # seconds for it to settle


class Udevd:
    """It hears of the links of the network namespace it was started in."""

    def __init__(self, group: Path) -> None:
        self._group = group

    def cpu_ns(self) -> int:
        """What it, its workers and what they run have used. By its cgroup: /proc rounds each of them down to 10 ms."""
        stat = dict(line.split() for line in (self._group / "cpu.stat").read_text().splitlines())
        return int(stat["usage_usec"]) * 1000

    def settle(self) -> None:
        """Wait until it has done all that it heard of."""
        subprocess.run(["udevadm", "settle", f"--timeout={PATIENCE}"], check=True)


def end_other() -> None:
    """The one that tools/with-udevd started goes: from here on there is one only where it is asked for."""
    ending = os.pidfd_open(int(os.environ["UDEVD_PID"]))
    signal.pidfd_send_signal(ending, signal.SIGTERM)
    select.select([ending], [], [])
    os.close(ending)
    CONTROL.unlink(missing_ok=True)


@contextlib.contextmanager
def udevd() -> Iterator[Udevd]:
    """One for this block, in this thread's network namespace."""
    group = Path(tempfile.mkdtemp(prefix="vhostnet-bench-", dir=_groups()))  # a machine's cgroups know no PID namespace
    into = f"echo $$ >{group}/cgroup.procs && exec {DAEMON}"
    process = subprocess.Popen(["sh", "-c", into], stderr=subprocess.DEVNULL)
    try:
        while subprocess.run(["udevadm", "control", "--ping", "--timeout=1"], stderr=subprocess.DEVNULL).returncode:
            if process.poll() is not None:
                raise RuntimeError(f"{DAEMON} ended with {process.returncode}")
        yield Udevd(group)
    finally:
        process.terminate()
        process.wait()
        CONTROL.unlink(missing_ok=True)
        group.rmdir()


@cache
def _groups() -> Path:
    """The second version of cgroups, whose cpu.stat is there without any controller."""
    mounted = Path("/run/cgroup")
    mounted.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "cgroup2", mounted], check=True)
    return mounted


def version() -> str:
    """The version of this host's, such as 252."""
    done = subprocess.run(["udevadm", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.strip()
