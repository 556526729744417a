"""A macvtap's own ways: it is a link that outlives its fds, and no fd tells which network namespace it is in."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from vhostnet.engines import Engine
from vhostnet.errors import HostError, host_error
from vhostnet.process.files import close_fd
from vhostnet.process.netns import call_inside
from vhostnet.program.plan import plan_delete
from vhostnet.program.program import Fds, NicRow

_TUN: Final = os.makedev(10, 200)  # Documentation/admin-guide/devices.txt, whatever the node is called
_HERE: Final = "/proc/thread-self/ns/net"
_T = TypeVar("_T")


def is_macvtap(tap: int) -> bool:
    """One of our queues is a macvtap's: those of a TAP are of another device."""
    return os.fstat(tap).st_rdev != _TUN


class Home:
    """The network namespace that this thread is in now, for as long as anybody has this. Raises HostError."""

    def __init__(self) -> None:
        try:
            self.fd: Final = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            code = error.errno or 0
            raise host_error(code, act="NETNS", call="open", ifname=None, queue=None, subject=_HERE) from None
        status = os.fstat(self.fd)
        self._which: Final = status.st_dev, status.st_ino

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Home) and self._which == other._which

    def __hash__(self) -> int:
        return hash(self._which)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            close_fd(self.fd)

    def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """What *function* returns or raises, called there: by this thread, if it is there. Raises HostError."""
        status = os.stat(_HERE)
        here = (status.st_dev, status.st_ino) == self._which
        return call_inside(None if here else self.fd, function, *arguments)


class Surrendered(NamedTuple):
    """A NIC that is to go, with the engine to do it; and where it is, of a macvtap."""

    engine: Engine
    row: NicRow
    home: Home | None


def delete_macvtaps(engine: Engine, rows: Sequence[NicRow], home: Home) -> None:
    """Take them away where they were made, in one round, and close their fds; those that are to stay stay."""
    doomed = [row for row in rows if not row.adopted]
    left = [row for row in rows if row.adopted]
    if doomed:
        program = plan_delete(doomed)
        try:
            result = home.call(engine.run, program)
        except HostError:  # no way to there
            left += doomed
        else:
            left += [row for row, nic in zip(doomed, result.nics or [None] * len(doomed), strict=True) if nic is None]
    engine.close([queues_of(row) for row in left])


def queues_of(row: NicRow) -> Fds:
    """Its fds as they are to be closed: each of a macvtap's waits for a grace period of its own, as vhost-net's do."""
    return Fds((), row.fds.tap + row.fds.vhost) if row.macvtap else row.fds
