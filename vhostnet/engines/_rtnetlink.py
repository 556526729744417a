"""rtnetlink for the pure engine: requests out in one send, every answer read and checked.

Each failed kernel call surfaces as an OSError whose ``filename`` is the call's name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from vhostnet.engines._uapi import NETLINK_ROUTE, NLM_F_REQUEST, NLMSGHDR, RTATTR

ANSWER_BYTES: Final = 16384
EINTR_TRIES: Final = 16

_T = TypeVar("_T")


@contextlib.contextmanager
def kernel_call(name: str) -> Iterator[None]:
    """Whatever fails inside is reported as the kernel call *name*."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None


def retry(function: Callable[..., _T], *arguments: Any) -> _T:
    for _ in range(EINTR_TRIES):
        with contextlib.suppress(InterruptedError):
            return function(*arguments)
    return function(*arguments)


def attribute(kind: int, value: bytes) -> bytes:
    return RTATTR.pack(RTATTR.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + RTATTR.size <= len(data):
        size, kind = RTATTR.unpack_from(data, at)
        if size < RTATTR.size or at + size > len(data):
            return
        yield kind, data[at + RTATTR.size : at + size]
        at += (size + 3) & ~3


def message(kind: int, flags: int, seq: int, body: bytes) -> bytes:
    return NLMSGHDR.pack(NLMSGHDR.size + len(body), kind, NLM_F_REQUEST | flags, seq, 0) + body


# 1: it answers a request of ours, 0: it does not; raises OSError for one that is malformed.
Answer = Callable[[int, int, bytes], int]


class Netlink:
    """A rtnetlink socket and what is queued for its next send."""

    def __init__(self) -> None:
        with kernel_call("socket"):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
            try:
                self._socket.bind((0, 0))
                self._port = self._socket.getsockname()[0]
            except BaseException:
                self._socket.close()
                raise
        self.out: list[bytes] = []

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def exchange(self, answer: Answer) -> None:
        """Send what is queued and read every answer."""
        out, self.out = self.out, []
        data = b"".join(out)
        with kernel_call("send"):
            if retry(self._socket.sendto, data, (0, 0)) != len(data):
                raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        pending = len(out)
        with kernel_call("recv"):
            while pending > 0:
                pending -= self._receive(answer)

    def _receive(self, answer: Answer) -> int:
        # rtnetlink answers inside send(): an answer that is not there now will never come.
        data, _, flags, sender = retry(self._socket.recvmsg, ANSWER_BYTES, 0, socket.MSG_DONTWAIT)
        if flags & socket.MSG_TRUNC:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        if sender[0] != 0:
            return 0  # not from the kernel
        answers, at = 0, 0
        while at < len(data):
            if len(data) - at < NLMSGHDR.size:
                raise malformed()
            size, kind, _, seq, port = NLMSGHDR.unpack_from(data, at)
            if size < NLMSGHDR.size or at + size > len(data):
                raise malformed()
            if port == self._port:
                answers += answer(kind, seq, data[at + NLMSGHDR.size : at + size])
            at += (size + 3) & ~3
        return answers


def malformed() -> OSError:
    return OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))


def error_of(body: bytes) -> int:
    """The errno in an NLMSG_ERROR; 0 is an acknowledgement."""
    if len(body) < 4 + NLMSGHDR.size:
        raise malformed()
    code: int = struct.unpack_from("=i", body)[0]
    if code > 0:
        raise malformed()
    return -code
