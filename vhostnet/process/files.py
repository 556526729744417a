"""The fds of this process: how many are open, and how many may be."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import sys
from collections.abc import Iterable, Sequence


def allowed_files() -> int:
    """RLIMIT_NOFILE: every fd's number is less than this."""
    try:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    except OSError:  # we may not ask: opening will tell
        return sys.maxsize
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def open_files(below: int) -> int:
    """How many fds there are whose number is less, by the list of them.

    All of them when not even the list can be opened, and none where nobody tells.
    """
    try:
        listed = os.listdir("/proc/self/fd")
    except OSError as error:
        return below if error.errno == errno.EMFILE else 0
    return sum(int(fd) < below for fd in listed) - 1  # the list's own


def fits(needed: int) -> bool:
    """Whether so many more can be opened. Linux 6.2 and later say at once how many there are."""
    allowed = allowed_files()
    with contextlib.suppress(OSError):
        if 0 < os.stat("/proc/self/fd").st_size <= allowed - needed:
            return True
    return open_files(allowed) + needed <= allowed


def close_fd(fd: int) -> None:
    """Close it, whatever the kernel answers: Linux has freed the fd by then, EINTR or not (close(2))."""
    with contextlib.suppress(OSError):
        os.close(fd)


def close_fds(fds: Sequence[int]) -> None:
    """Close them, as close_fd() does; those of a NIC have numbers in a row, as a rule."""
    low, high = min(fds, default=0), max(fds, default=-1)
    if len(fds) == high - low + 1 and len(set(fds)) == len(fds):
        os.closerange(low, high + 1)
    else:
        for fd in fds:
            close_fd(fd)


def copy_fds(fds: Iterable[int]) -> tuple[int, ...]:
    """A copy of each, O_CLOEXEC, all of them or none. Raises OSError."""
    copies: list[int] = []
    try:
        copies.extend(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0) for fd in fds)  # as far as it comes
    except OSError:
        for copy in copies:
            close_fd(copy)
        raise
    return tuple(copies)
