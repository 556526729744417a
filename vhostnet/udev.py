"""udev: whether one listens where our NICs are made, and when it is done with one."""

from __future__ import annotations

import os
from typing import Final

_CONTROL: Final = "/run/udev/control"  # there while udevd's socket is
_UEVENTS: Final = 15  # NETLINK_KOBJECT_UEVENT


def listens() -> bool:
    """A udevd hears of the links of this thread's network namespace.

    By /run/udev/control, and a listener to the kernel's uevents (group 1) in /proc: 50 us, no privilege. Never False
    where there is one; True as well where another program listens beside a udevd of another namespace (libvirtd,
    ``udevadm monitor -k``).
    """
    return os.path.exists(_CONTROL) and _somebody_hears()


def _somebody_hears() -> bool:
    try:
        with open("/proc/thread-self/net/netlink") as table:
            rows = [line.split() for line in table]
    except OSError:  # there is no telling
        return True
    return any(row[1] == str(_UEVENTS) and int(row[3], 16) & 1 for row in rows[1:] if len(row) > 3)
