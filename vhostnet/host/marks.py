"""The mark that every NIC carries as its alias (IFLA_IFALIAS): ``vhostnet:UUID:PID:STARTTIME[:UID][:parked]``."""

import itertools
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from vhostnet.others.holders import started

_HEAD: Final = "vhostnet"
_PARKED: Final = ":parked"  # it waits in a pool
_MARK = re.compile(
    rf"{_HEAD}:([0-9a-f-]{{36}}):([0-9]{{1,10}}):([0-9]{{1,20}})(?::([0-9]{{1,10}}))?({_PARKED})?", re.ASCII
)


class Maker(NamedTuple):
    """Whose a NIC is that a broker makes: a process by pid and start, in clock ticks since boot, and its user."""

    pid: int
    started: str
    uid: int


class Mark(NamedTuple):
    """Of a NIC: its own UUID, and the process that made it by pid and start, in clock ticks since boot.

    A broker's NIC has those of the client it is for, and that one's ``uid``; it is None of all others.
    """

    uuid: str
    pid: int
    started: str
    parked: bool
    uid: int | None = None

    @property
    def text(self) -> str:
        """As a link has it."""
        uid = "" if self.uid is None else f":{self.uid}"
        return f"{_HEAD}:{self.uuid}:{self.pid}:{self.started}{uid}{_PARKED if self.parked else ''}"

    @property
    def maker_lives(self) -> bool:
        """The process that made it is still there, and is no other of the same pid."""
        return started(self.pid) == self.started


NOBODY: Final = Mark("", 0, "0", False)  # of what carries none: whoever made it is gone


def make_marks(count: int, *, parked: bool, makers: Sequence[Maker] = ()) -> list[str]:
    """One a NIC: this process's, or each of its maker.

    The UUID (RFC 9562, version 8: of our own making) is 64 random bits of this process, and a counter: no system
    call, since each that gives up the GIL can wait 5 ms to get it back.
    """
    head, tail = _ours()
    end = _PARKED if parked else ""
    if makers:
        return [f"{head}{next(_uuids):012x}:{pid}:{since}:{uid}{end}" for pid, since, uid in makers]
    return [f"{head}{next(_uuids):012x}{tail}{end}" for _ in range(count)]


def taken(mark: str) -> str:
    """The mark of one that was parked, when it is taken."""
    return mark.removesuffix(_PARKED)


def read_mark(alias: str | None) -> Mark | None:
    """What an alias says; None for one that is no mark of ours."""
    found = _MARK.fullmatch(alias or "")
    if not found:
        return None
    uid = int(found[4]) if found[4] else None
    return Mark(found[1], int(found[2]), found[3], bool(found[5]), uid)


_uuids = itertools.count()


@lru_cache(maxsize=1)
def _ours() -> tuple[str, str]:
    """What the marks of this process have in common: all before the last twelve digits of the UUID, and all after."""
    digits, pid = os.urandom(9).hex(), os.getpid()
    uuid = f"{digits[:8]}-{digits[8:12]}-8{digits[12:15]}-a{digits[15:18]}-"
    return f"{_HEAD}:{uuid}", f":{pid}:{started(pid) or 0}"


os.register_at_fork(after_in_child=_ours.cache_clear)
