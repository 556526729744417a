"""udev: whether one listens where our NICs are made, and when it is done with one."""

from __future__ import annotations

import os
import re
import time
from typing import Final

_CONTROL: Final = "/run/udev/control"  # there while udevd's socket is
_DATA: Final = "/run/udev/data/n"  # and an ifindex: what its rules found, written when they have run
# A row of /proc/net/netlink: the kernel's uevents (NETLINK_KOBJECT_UEVENT) and a listener to group 1, which is theirs.
_HEARS: Final = re.compile(rb"^\S+ +15 +\S+ +[0-9a-f]{7}[13579bdf] ", re.MULTILINE)
_REMEMBERED: Final = 1.0  # seconds
TICK: Final = 0.01  # seconds a file's time may lag behind the clock

_known: dict[tuple[int, int], tuple[float, bool]] = {}  # network namespace -> until when, what


def listens() -> bool:
    """A udevd hears of the links of this thread's network namespace.

    By /run/udev/control, and a listener to the kernel's uevents in /proc, which takes no privilege. Never False where
    there is one, but in its first second; True as well where another program listens beside a udevd of another
    namespace (libvirtd, ``udevadm monitor -k``).
    """
    if not os.path.exists(_CONTROL):
        return False
    status = os.stat("/proc/thread-self/ns/net")
    netns, now = (status.st_dev, status.st_ino), time.monotonic()
    until, heard = _known.get(netns, (0.0, False))
    if now > until:
        heard = _is_heard()
        _known.clear()  # few processes open NICs in more than one at a time
        _known[netns] = now + _REMEMBERED, heard
    return heard


def _is_heard() -> bool:
    try:
        with open("/proc/thread-self/net/netlink", "rb", 0) as table:
            return _HEARS.search(table.readall()) is not None
    except OSError:  # there is no telling
        return True


def is_done(ifindex: int, since: float) -> bool:
    """udev's rules have run for the link of *ifindex* that appeared after *since* (``time.time()``)."""
    try:
        return os.stat(f"{_DATA}{ifindex}").st_mtime > since - TICK
    except OSError:
        return False


def link_file(ifindex: int) -> str:
    """The .link file by which udev settled a link; empty where it has not, or tells us nothing."""
    try:
        with open(f"{_DATA}{ifindex}", errors="replace") as data:
            found = [line.partition("=")[2] for line in data if line.startswith("E:ID_NET_LINK_FILE=")]
    except OSError:
        return ""
    return found[0].rstrip("\n") if found else ""
