"""What an engine is, and what it answers."""

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from vhostnet.program.parts import Act, Fds, Link, NicRow, Op
from vhostnet.program.program import Program

MAX_SAID: Final = 95  # bytes of the kernel's words that are kept

# The kernel call an error came from; the place in this list is the C core's number (VN_CALL_*).
CALLS: Final = (
    *("", "open", "fstat", "TUNSETIFF", "TUNGETIFF", "SIOCGIFINDEX", "TUNSETQUEUE"),
    *("VHOST_GET_FEATURES", "VHOST_SET_OWNER", "VHOST_SET_FEATURES", "VHOST_SET_MEM_TABLE", "VHOST_SET_VRING"),
    *("VHOST_NET_SET_BACKEND", "mmap", "socket", "send", "recv", "RTM_NEWQDISC", "RTM_NEWLINK", "TUNGETFEATURES"),
    *("BRCTL_GET_PORT_LIST", "TUNGETDEVNETNS", "RTM_GETLINK", "RTM_DELLINK", "RTM_NEWLINKPROP", "RLIMIT_NOFILE"),
    *("SIOCGIFHWADDR", "SIOCSIFHWADDR", "getrandom", "IFLA_BR_VLAN_FILTERING", "RTM_SETLINK", "RTM_NEWNEIGH"),
    *("ETHTOOL_SCOALESCE", "TUNSETOFFLOAD", "TUNSETVNETHDRSZ", "TUNSETOWNER", "TUNSETGROUP"),
    *("TUNSETPERSIST", "RTM_DELQDISC", "RTM_NEWTCLASS", "RTM_NEWTFILTER", "uevent", "mknod", "RTM_DELNEIGH"),
)


class ActResult(NamedTuple):
    """What became of one act: 0 or the errno and the call it came from, the queue, and how long it took.

    ECANCELED is an act that was left out, because an earlier one of its NIC was refused. Acts that were
    done together (netlink messages of one send, links deleted in one round) share the time evenly. ``said`` is what the
    kernel said of a TC that it refused in words, or whoever did a slow act; "" where they said nothing.
    """

    errno: int
    call: str
    queue: int | None
    ns: int
    said: str = ""


class NicResult(NamedTuple):
    """What exists now: the caller owns the fds. None are left of a NIC that was deleted."""

    ifindex: int
    mtu: int
    fds: Fds


class Failure(NamedTuple):
    """An act that was refused: its place in the Program and its result."""

    act: int
    result: ActResult


class Result(NamedTuple):
    """The outcome of a run.

    Without failures ``nics`` has every row. With one, nothing of what the run made is left and ``nics`` is
    empty; but in a Program that keeps the others, ``nics`` has None for each row that failed, and
    ``failures`` the first refused act of each. ``undo`` is what was refused first while NICs that failed were
    deleted, and they were closed instead.
    """

    nics: tuple[NicResult | None, ...]
    acts: Sequence[ActResult]
    failures: tuple[Failure, ...] = ()
    undo: ActResult | None = None


class Run(NamedTuple):
    """What an engine made of a Program; which row of it is the NIC, and which acts, by their numbers, are the NIC's."""

    program: Program
    result: Result
    row: int
    numbers: Sequence[int]

    @property
    def nic(self) -> NicRow:
        return self.program.nics[self.row]

    @property
    def made(self) -> NicResult | None:
        return self.result.nics[self.row]

    @property
    def acts(self) -> Iterator[tuple[Act, ActResult]]:
        """The NIC's, and what became of each."""
        return ((self.program.acts[number], self.result.acts[number]) for number in self.numbers)

    def did(self, op: Op) -> bool:
        """Such an act was among them."""
        return any(self.program.acts[number].op == op for number in self.numbers)


def runs_of(program: Program, result: Result) -> list[Run]:
    """One a row, of a Program that has made them."""
    numbers: list[list[int]] = [[] for _ in program.nics]
    for number, act in enumerate(program.acts):
        numbers[act.nic].append(number)
    return [Run(program, result, row, own) for row, own in enumerate(numbers)]


def words_in(said: bytes) -> str:
    """The kernel's words, up to their NUL, as one line."""
    text = said.partition(b"\0")[0][:MAX_SAID].decode("ascii", "replace")
    return "".join(letter if letter.isprintable() else " " for letter in text)


def failures_of(program: Program, results: Sequence[ActResult]) -> tuple[Failure, ...]:
    """The refused acts: of each NIC the first."""
    found: dict[int, Failure] = {}
    for number, (act, result) in enumerate(zip(program.acts, results, strict=True)):
        if result.errno and result.errno != errno.ECANCELED and not act.optional:
            found.setdefault(act.nic, Failure(number, result))
    return tuple(found.values())


class Engine(Protocol):
    """Executes Programs. Stateless; any method may run in many threads at once."""

    name: str

    def run(self, program: Program) -> Result:
        """Every act in order, all or none. What the host refuses is in the Result; it does not raise."""

    def ready(self, program: Program) -> Callable[[bytes], Result]:
        """A Program of one NIC, made ready ahead of time: what is returned runs it, once, with that MAC for the TAP."""

    def close(self, held: Sequence[Fds]) -> None:
        """Close every fd, side by side: the last of a TAP and each of vhost-net wait for a grace period."""

    def describe(self, names: Sequence[str]) -> dict[str, Link]:
        """Those of the links *names* that exist in this thread's network namespace. Raises OSError."""

    def features(self, tap_path: str) -> int:
        """TUNGETFEATURES of the device at *tap_path*. Raises OSError, its ``filename`` the call that refused."""
