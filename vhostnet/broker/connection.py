"""One client's connection: its calls, one at a time, and the replies on their way, bounded in size and in time."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

from vhostnet.broker.peer import Peer
from vhostnet.errors import HandoverError, SpecError
from vhostnet.handover.wire import (
    CHUNK,
    MAX_FDS,
    Message,
    Reader,
    packed,
    pieces,
    receive_some,
    send_some,
)
from vhostnet.host.nic import Nic
from vhostnet.process.files import close_fd

MAX_REQUEST: Final = 2**20  # bytes of a call: a batch of 4000 NICs
PATIENCE: Final = 10.0  # seconds to say what was begun, or to take a reply
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

_T = TypeVar("_T")
Given = Callable[[Sequence[Nic], bool], None]  # NICs that are on their way with a reply; or could not be sent


class Call:
    """A method that a client called, until it is answered. It owns the fds that came with it.

    Varlink: with ``more`` there may be many replies, with ``oneway`` none is wanted. Not Varlink's: with ``together``
    replies and their fds may come in one piece, and each says how many ``fds`` are its.
    """

    def __init__(self, connection: Connection, message: Message) -> None:
        said = message.said
        self.connection = connection
        self.peer: Final = connection.peer
        self.fds = message.fds
        self.method: Final = str(said.get("method", ""))
        given = said.get("parameters")
        self.parameters: Final[Mapping[str, Any]] = given if isinstance(given, dict) else {}
        self.more: Final = said.get("more") is True
        self.oneway: Final = said.get("oneway") is True
        self.together: Final = said.get("together") is True
        self.answered = False

    def reply(
        self, parameters: Mapping[str, Any], *, nic: Nic | None = None, fds: Sequence[int] = (), more: bool = False
    ) -> None:
        """An answer, the last one but for *more*. *nic* is the client's when it is sent, and so are its fds; *fds* are
        copies that go with it, and closed then.
        """
        message = {"parameters": parameters, **({"continues": True} if more else {})}
        self._answer(message, nic, fds, last=not more)

    def fail(self, error: str, parameters: Mapping[str, Any] | None = None) -> None:
        """An error, by its whole name."""
        self._answer({"error": error, "parameters": parameters or {}}, None, (), last=True)

    def flag(self, name: str, default: bool) -> bool:
        """A parameter that is true or false. Raises SpecError, as the others of these do."""
        value = self.parameters.get(name)
        return default if value is None else self._checked(name, value, bool, "true or false")

    def text(self, name: str) -> str:
        return self._checked(name, self.parameters.get(name), str, "a string")

    def number(self, name: str) -> int:
        return self._checked(name, self.parameters.get(name), int, "a whole number")

    def fields(self, name: str) -> Mapping[str, Any]:
        """Of an object."""
        return self._checked(name, self.parameters.get(name), dict, "an object")

    def fd(self) -> int:
        """The one that came with it, which stays the call's."""
        if len(self.fds) != 1:
            raise SpecError(f"came with {len(self.fds)} fds", attribute=self.method, expected="one, of a NIC's queue")
        return self.fds[0]

    def _checked(self, name: str, value: Any, kind: type[_T], expected: str) -> _T:
        if type(value) is not kind:
            raise SpecError("is not allowed", attribute=name, value=value, expected=expected)
        return value

    def _answer(self, message: dict[str, Any], nic: Nic | None, fds: Sequence[int], *, last: bool) -> None:
        self.answered = last
        if last:
            self._close()
        if self.together and (nic or fds):
            message["fds"] = len(nic.fds) + len(nic.home_fds) if nic else len(fds)
        self.connection.answer(self, b"" if self.oneway else packed(message), nic, fds)

    def _close(self) -> None:
        for fd in self.fds:
            close_fd(fd)
        self.fds = ()


class Leaving(NamedTuple):
    """A reply, or a part of one, on its way: *fds* go with it, *nic* is given with them, *copies* are closed then."""

    part: memoryview
    fds: Sequence[int]
    nic: Nic | None
    copies: Sequence[int]
    together: bool = False


class Connection:
    """A socket, and what is on its way in and out. While a call is not answered the next is not read.

    Our own copies of a NIC's fds go as soon as they are sent: before anybody's next call is read.
    """

    def __init__(self, sock: socket.socket, peer: Peer, given: Given) -> None:
        self.sock: Final = sock
        self.peer: Final = peer
        self.call: Call | None = None
        self.closed = False
        self.kept: dict[str, Any] = {}  # what a service has for it
        self._given = given
        self._reader = Reader(MAX_REQUEST)
        self._waiting: deque[Message] = deque()
        self._leaving: deque[Leaving] = deque()
        self._beside = 0  # fds that go with what is leaving
        self._since = 0.0  # when what is half done was begun, by the monotonic clock

    @property
    def reads(self) -> bool:
        """More may come in: nothing is being answered."""
        return self.call is None and not self._waiting and not self._leaving

    @property
    def writes(self) -> bool:
        """Replies are waiting for the client to take them."""
        return bool(self._leaving)

    @property
    def late(self) -> bool:
        """The client has been saying half a call, or taking no reply, for too long."""
        return bool(self._since) and time.monotonic() - self._since > PATIENCE

    @property
    def half(self) -> int:
        """Bytes of a call that is not whole yet."""
        return self._reader.size

    def read(self) -> Call | None:
        """The next call, where there is one. Raises HandoverError, OSError where there will be none any more."""
        if not self._waiting:
            data, fds = receive_some(self.sock, _FLAGS)
            if not data:
                raise HandoverError("the client has gone")
            self._waiting += self._reader.feed(data, fds)
            self._since = (self._since or time.monotonic()) if self._reader.size else 0.0
        return self.next_call()

    def next_call(self) -> Call | None:
        """One that came with another, where that is answered."""
        if self.call is None and self._waiting and not self._leaving:
            self.call = Call(self, self._waiting.popleft())
            return self.call
        return None

    def answer(self, call: Call, data: bytes, nic: Nic | None, fds: Sequence[int]) -> None:
        """Queue a reply; it goes out by ``write()``, or at once where there are many."""
        if call.answered and self.call is call:
            self.call = None
        if self.closed or not data:
            self._done(nic, fds, sent=not self.closed and not nic)
            return
        with_fds = [*nic.fds, *nic.home_fds] if nic else fds
        *first, (part, some) = pieces(data, with_fds)
        self._leaving += [Leaving(part, some, None, ()) for part, some in first]
        self._leaving.append(Leaving(part, some, nic, fds, call.together))
        self._beside += len(with_fds)
        if self._beside > MAX_FDS // 2 and not self._since:  # the client begins with these while others are told of
            with contextlib.suppress(OSError):  # whoever writes next hears of it
                self.write()

    def write(self) -> None:
        """As much as the client takes now. Raises OSError where it takes none any more."""
        while self._leaving:
            group = self._together()
            data = group[0].part if len(group) == 1 else memoryview(b"".join(one.part for one in group))
            try:
                sent = send_some(self.sock, data, [fd for one in group for fd in one.fds], _FLAGS)
            except BlockingIOError:
                self._since = self._since or time.monotonic()
                return
            self._since = 0.0
            for one in group:  # the fds go with the first byte
                self._leaving.popleft()
                self._done(one.nic, one.copies, sent=True)
            if sent < len(data):
                self._leaving.appendleft(Leaving(data[sent:], (), None, ()))
        self._beside = 0

    def _together(self) -> list[Leaving]:
        """What goes with the next sendmsg()."""
        group, fds, size = [self._leaving[0]], len(self._leaving[0].fds), len(self._leaving[0].part)
        for one in islice(self._leaving, 1, None):
            fds, size = fds + len(one.fds), size + len(one.part)
            if not (one.together and group[0].together) or fds > MAX_FDS or size > CHUNK:
                break
            group.append(one)
        return group

    def _done(self, nic: Nic | None, fds: Sequence[int], *, sent: bool) -> None:
        for fd in fds:
            close_fd(fd)
        if nic:
            self._given([nic], sent)

    def close(self) -> None:
        """What was not sent is nobody's: NICs that the client did not get go."""
        if self.closed:
            return
        self.closed = True
        for message in self._waiting:
            for fd in message.fds:
                close_fd(fd)
        unsent = [one.nic for one in self._leaving if one.nic]
        for one in self._leaving:
            self._done(None, one.copies, sent=False)
        if unsent:
            self._given(unsent, False)
        self._leaving.clear()
        self._reader.close()
        if self.call:
            self.call._close()
        with contextlib.suppress(OSError):
            self.sock.close()
