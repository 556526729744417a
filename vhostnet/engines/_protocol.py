"""What an engine is, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from vhostnet.plan import Link, Program

# The kernel call an error came from; the place in this list is the C core's number (VN_CALL_*).
CALLS: Final = (
    *("", "open", "fstat", "TUNSETIFF", "TUNGETIFF", "SIOCGIFINDEX", "TUNSETQUEUE"),
    *("VHOST_GET_FEATURES", "VHOST_SET_OWNER", "VHOST_SET_FEATURES", "VHOST_SET_MEM_TABLE", "VHOST_SET_VRING"),
    *("VHOST_NET_SET_BACKEND", "mmap", "socket", "send", "recv", "RTM_NEWQDISC", "RTM_NEWLINK", "TUNGETFEATURES"),
)


class ActResult(NamedTuple):
    """What became of one act: 0 or the errno and the call it came from, the queue, and how long it took.

    The netlink acts of one send share its time evenly.
    """

    errno: int
    call: str
    queue: int | None
    ns: int


class NicResult(NamedTuple):
    """What exists now: the caller owns the fds."""

    ifindex: int
    mtu: int
    tap_fds: tuple[int, ...]
    vhost_fds: tuple[int, ...]


class Failure(NamedTuple):
    """The act that ended the run: its place in the Program and its result."""

    act: int
    result: ActResult


class Result(NamedTuple):
    """The outcome of a run. With a ``failure`` there are no NICs and nothing is left open."""

    nics: tuple[NicResult, ...]
    acts: Sequence[ActResult]
    failure: Failure | None


class Engine(Protocol):
    """Executes Programs. Stateless; any method may run in many threads at once."""

    name: str

    def run(self, program: Program) -> Result:
        """Every act in order, all or none. What the host refuses is in the Result; it does not raise."""

    def describe(self, names: Sequence[str]) -> dict[str, Link]:
        """Those of the links *names* that exist in this thread's network namespace. Raises OSError."""

    def features(self, tap_path: str) -> int:
        """TUNGETFEATURES of the device at *tap_path*. Raises OSError, its ``filename`` the call that refused."""
