"""Messages over a Unix stream socket: JSON, ended by a NUL, and the fds that go with its first byte.

So Varlink has it, and sd-varlink the fds. A message is one sendmsg() as a rule, and the kernel ends a recvmsg() behind
the bytes that fds came with: they are of the last message that has begun.
"""

from __future__ import annotations

import array
import contextlib
import json
import select
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from vhostnet.errors import HandoverError
from vhostnet.process.files import close_fd

SCM_MAX_FD: Final = 253  # of one sendmsg(), for the kernel
MAX_FDS: Final = 252  # for musl as well: its sendmsg() takes 1024 bytes of control messages
MAX_MESSAGE: Final = 4 * 2**20  # bytes
MAX_MESSAGE_FDS: Final = 1024  # of one message: a NIC of 256 queues with vhost-net has 512
CHUNK: Final = 2**16
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode
_decode: Final = json.JSONDecoder().decode
_SPACE: Final = socket.CMSG_SPACE(SCM_MAX_FD * array.array("i").itemsize)


class Message(NamedTuple):
    """What was said, and the fds (O_CLOEXEC) that came along: whoever has the message closes them."""

    said: dict[str, Any]
    fds: tuple[int, ...] = ()


class Reader:
    """Puts messages together of what comes in. It owns the fds of the one that is not whole yet.

    Where they are *counted* a message says how many fds are its, and some may come together.
    """

    def __init__(self, most: int = MAX_MESSAGE, *, counted: bool = False) -> None:
        self._most = most
        self._counted = counted
        self._parts: list[bytes] = []
        self.size = 0  # bytes of the message that is not whole yet
        self._fds: list[int] = []

    def feed(self, data: bytes, fds: Sequence[int]) -> list[Message]:
        """The messages that *data* completes. Raises HandoverError; then everything that has come is closed."""
        *ends, rest = data.split(b"\0")
        whole: list[Message] = []
        arrived = list(fds)
        if self._counted:
            self._fds, arrived = self._fds + arrived, []
        try:
            for number, end in enumerate(ends, 1):
                if number == len(ends) and not rest:
                    self._fds, arrived = self._fds + arrived, []
                whole.append(self._whole(end))
            self._fds, arrived = self._fds + arrived, []
            self._keep(rest)
        except HandoverError:
            for fd in (*arrived, *(fd for message in whole for fd in message.fds)):
                close_fd(fd)
            self.close()
            raise
        return whole

    def _keep(self, part: bytes) -> None:
        self._parts.append(part)
        self.size += len(part)
        if self.size > self._most or len(self._fds) > MAX_MESSAGE_FDS:
            raise HandoverError(f"a message of more than {self._most} bytes, or {MAX_MESSAGE_FDS} fds")

    def _whole(self, end: bytes) -> Message:
        self._keep(end)
        text, self._parts, self.size = b"".join(self._parts), [], 0
        try:
            said = _decode(text.decode())
        except (ValueError, RecursionError):
            raise HandoverError(f"what came is no JSON: {text[:64]!r}") from None
        if not isinstance(said, dict):
            raise HandoverError(f"what came is no JSON object: {text[:64]!r}")
        count = said.get("fds", 0) if self._counted else len(self._fds)
        if type(count) is not int or not 0 <= count <= len(self._fds):
            raise HandoverError(f"{len(self._fds)} fds came, and {count!r} were said to")
        fds, self._fds = tuple(self._fds[:count]), self._fds[count:]
        return Message(said, fds)

    def close(self) -> None:
        """Close what has come of a message that will not be whole."""
        for fd in self._fds:
            close_fd(fd)
        self._fds = []


def packed(said: dict[str, Any]) -> bytes:
    """A message as it goes out."""
    return _encode(said).encode() + b"\0"


def receive_some(sock: socket.socket, flags: int = 0) -> tuple[bytes, tuple[int, ...]]:
    """What one recvmsg() brings: no bytes at the end. Raises OSError."""
    data, ancillary, flags, _ = sock.recvmsg(CHUNK, _SPACE, socket.MSG_CMSG_CLOEXEC | flags)
    fds = array.array("i")
    for level, kind, rights in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:  # this process may have no more files open: some are lost
        for fd in fds:
            close_fd(fd)
        raise HandoverError("fds were lost on their way: raise the limit on open files (ulimit -n)")
    return data, tuple(fds)


def send_some(sock: socket.socket, data: memoryview | bytes, fds: Sequence[int], flags: int = 0) -> int:
    """As much as one sendmsg() takes: how many bytes, and with them at most MAX_FDS of the fds. Raises OSError."""
    if not fds:
        return sock.send(data, flags)
    return sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))], flags)


def pieces(data: bytes, fds: Sequence[int]) -> Iterable[tuple[memoryview, Sequence[int]]]:
    """A message in parts, none with more than MAX_FDS fds: a byte goes with each but the last."""
    view, start = memoryview(data), 0
    while len(fds) > MAX_FDS:
        yield view[start : start + 1], fds[:MAX_FDS]
        start, fds = start + 1, fds[MAX_FDS:]
    yield view[start:], fds


class Channel:
    """Messages there and back, by a socket that stays its owner's, blocking or not."""

    def __init__(self, sock: socket.socket, timeout: float, *, counted: bool = False) -> None:
        """*timeout*, in seconds, is what one message may take. Raises HandoverError for a socket that is no stream."""
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise HandoverError(f"fds go over a Unix stream socket, and this is {sock.family.name}, {sock.type.name}")
        self.sock = sock
        self.timeout = timeout
        self._reader = Reader(counted=counted)
        self._ready: list[Message] = []

    def send(self, said: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Raises OSError, TimeoutError among them."""
        until = time.monotonic() + self.timeout
        for part, some in pieces(packed(said), fds):
            left, beside = part, some
            while left:
                with contextlib.suppress(BlockingIOError):
                    sent = send_some(self.sock, left, beside, _FLAGS)
                    left, beside = left[sent:], ()
                    continue
                self._wait(select.POLLOUT, until)

    def receive(self) -> Message | None:
        """The next one; None at the end. Raises OSError, TimeoutError among them; HandoverError."""
        until = time.monotonic() + self.timeout
        while not self._ready:
            try:
                data, fds = receive_some(self.sock, _FLAGS)
            except BlockingIOError:
                self._wait(select.POLLIN, until)
                continue
            if not data:
                self._reader.close()
                return None
            self._ready += self._reader.feed(data, fds)
        return self._ready.pop(0)

    def hear(self) -> dict[str, Any] | None:
        """What is said next; fds that come with it are nobody's. Otherwise as receive()."""
        message = self.receive()
        for fd in message.fds if message else ():
            close_fd(fd)
        return message.said if message else None

    def overhear(self) -> dict[str, Any] | None:
        """As hear(), and it stays there to be heard: an interrupt cannot lose it. Of one that ends a conversation."""
        until = time.monotonic() + self.timeout
        while True:
            try:
                data, fds = receive_some(self.sock, _FLAGS | socket.MSG_PEEK)
            except BlockingIOError:
                self._wait(select.POLLIN, until)
                continue
            reader = Reader()
            whole = reader.feed(data, fds)
            reader.close()
            for fd in (fd for message in whole for fd in message.fds):
                close_fd(fd)
            if whole or not data:
                return whole[0].said if whole else None
            if time.monotonic() > until:
                raise TimeoutError(f"the other end said half of it, and no more in {self.timeout:g} s")
            time.sleep(0.001)

    def _wait(self, event: int, until: float) -> None:
        """Whatever the socket's own timeout is: it is not ours."""
        poll = select.poll()
        poll.register(self.sock, event)
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise TimeoutError(f"the other end took longer than {self.timeout:g} s")

    def close(self) -> None:
        """Close the fds of messages that nobody has asked for; the socket is its owner's."""
        self._reader.close()
        for message in self._ready:
            for fd in message.fds:
                close_fd(fd)
        self._ready = []
