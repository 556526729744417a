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
from typing import Final

from vhostnet.engines._calls import kernel_call, retry
from vhostnet.engines._protocol import words_in
from vhostnet.engines._uapi import (
    NETLINK_EXT_ACK,
    NETLINK_KOBJECT_UEVENT,
    NETLINK_ROUTE,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    NLMSGERR_ATTR_MSG,
    NLMSGHDR,
    RTATTR,
    SOL_NETLINK,
)
from vhostnet.process.files import close_fd

NL_BATCH: Final = 64  # messages of one send: what it holds RTNL for stays short
NL_MESSAGE: Final = 256  # bytes, more than any message there is, but for those with a list or a table
NL_SEND: Final = NL_BATCH * NL_MESSAGE
# Of a tag: what the message is about may be missing, or be of another kind (ENOENT, EINVAL), and that is good, too.
NL_DISPENSABLE: Final = 1 << 31
ANSWER_BYTES: Final = 32768  # what the kernel puts into one datagram of a listing, at the most

_UEVENTS: Final = 1  # the kernel's own, of its two groups
_UEVENT_BYTES: Final = 4096  # more than one is: UEVENT_BUFFER_SIZE, and its head


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


# (tag, type, body) -> 1: the last answer, 0: there is more to come; raises OSError for one that is malformed.
Answer = Callable[[int, int, bytes], int]


class Netlink:
    """A rtnetlink socket and what is queued for its next send, each message with a tag: what it is about."""

    def __init__(self) -> None:
        self._in = memoryview(bytearray(ANSWER_BYTES))
        with kernel_call("socket"):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
            try:
                self._socket.bind((0, 0))
                self._port = self._socket.getsockname()[0]
            except BaseException:
                self.close()
                raise
        self._first = 1  # sequence number of the first message of the next send
        self._out: list[bytes] = []
        self._tags: list[int | None] = []  # None: it has its answer
        self.size = 0  # bytes that are queued
        self.torn = False  # links came or went during the last exchange's listing
        self._flags = 0  # of the answer that is being taken

    def close(self) -> None:
        close_fd(self._socket.detach())

    def fileno(self) -> int:
        return self._socket.fileno()

    def ask_for_words(self) -> None:
        """From now on a refusal may have words; a kernel that has none says nothing but the errno."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)

    def words(self, body: bytes) -> str:
        """Those of the NLMSG_ERROR that is being taken, after what was asked: of an error that is there whole."""
        asked = NLMSGHDR.size if self._flags & NLM_F_CAPPED else NLMSGHDR.unpack_from(body, 4)[0]
        if not self._flags & NLM_F_ACK_TLVS:
            return ""
        said = dict(attributes(body[4 + ((asked + 3) & ~3) :])).get(NLMSGERR_ATTR_MSG, b"")
        return words_in(said)

    def put(self, tag: int, kind: int, flags: int, body: bytes) -> None:
        """Queue a message for the next exchange."""
        seq = self._first + len(self._out)
        self._out.append(NLMSGHDR.pack(NLMSGHDR.size + len(body), kind, NLM_F_REQUEST | flags, seq, 0) + body)
        self._tags.append(tag)
        self.size += len(self._out[-1])

    @property
    def queued(self) -> int:
        return len(self._out)

    def exchange(self, answer: Answer) -> None:
        """Send what is queued and read every answer."""
        if not self._out:
            return  # the kernel warns of empty messages
        data = b"".join(self._out)
        self.torn = False
        call = "send"
        try:
            if retry(self._socket.sendto, data, (0, 0)) != len(data):
                raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
            call = "recv"
            pending = len(self._out)
            while pending > 0:
                pending -= self._receive(answer)
        except OSError as error:
            raise OSError(error.errno, error.strerror, call) from None
        finally:  # a late answer to these is nobody's
            self._first += len(self._out)
            self._out, self._tags, self.size = [], [], 0

    def _receive(self, answer: Answer) -> int:
        # rtnetlink answers inside send(): an answer that is not there now will never come.
        size, _, flags, sender = retry(self._socket.recvmsg_into, [self._in], 0, socket.MSG_DONTWAIT)
        data = bytes(self._in[:size])
        if flags & socket.MSG_TRUNC:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        if sender[0] != 0:
            return 0  # not from the kernel
        answers, at = 0, 0
        while at < len(data):
            if len(data) - at < NLMSGHDR.size:
                raise malformed()
            size, kind, flags, seq, port = NLMSGHDR.unpack_from(data, at)
            if size < NLMSGHDR.size or at + size > len(data):
                raise malformed()
            number = seq - self._first
            tag = self._tags[number] if port == self._port and 0 <= number < len(self._tags) else None
            if tag is not None:
                self.torn = self.torn or bool(flags & NLM_F_DUMP_INTR)
                self._flags = flags
                if answer(tag, kind, data[at + NLMSGHDR.size : at + size]):
                    self._tags[number] = None
                    answers += 1
            at += (size + 3) & ~3
        return answers


def open_uevents() -> socket.socket:
    """One that hears what the kernel says of this network namespace's new devices, from now on."""
    with kernel_call("uevent"):
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT)
        try:
            opened.bind((0, _UEVENTS))
        except BaseException:
            close_fd(opened.detach())
            raise
        return opened


def device_number(events: socket.socket, ifindex: int) -> int:
    """That of the character device of the macvtap of this ifindex. ENODATA where the kernel said nothing of it.

    It is said inside the send that makes the link: what is not there now will never come.
    """
    wanted = f"tap{ifindex}".encode()
    with kernel_call("uevent"):
        try:
            while True:
                said = _next_uevent(events)
                if said.get(b"DEVNAME") == wanted and b"MAJOR" in said and b"MINOR" in said:
                    return os.makedev(int(said[b"MAJOR"]), int(said[b"MINOR"]))
        except BlockingIOError:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA)) from None


def _next_uevent(events: socket.socket) -> dict[bytes, bytes]:
    """The variables of one; none of what is no whole one of the kernel's."""
    data = bytearray(_UEVENT_BYTES)
    size, _, flags, sender = retry(events.recvmsg_into, [data], 0, socket.MSG_DONTWAIT)
    if sender[0] != 0 or flags & socket.MSG_TRUNC:
        return {}
    pairs = (text.partition(b"=") for text in bytes(data[:size]).split(b"\0"))
    return {name: value for name, equals, value in pairs if equals}


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


def take_ack(errors: dict[int, int], tag: int, kind: int, body: bytes) -> int:
    """An Answer, by partial(): to each message one, its errno by the message's tag."""
    if kind != NLMSG_ERROR:
        return 0
    errors[tag] = error_of(body)
    return 1
