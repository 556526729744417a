"""Which MACs some links have had: rtnetlink's announcements, by a process of its own that misses none."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from vhostnet.engines import _uapi as uapi
from vhostnet.engines._rtnetlink import attributes

RTMGRP_LINK = 1
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33
_INDEX_AT = uapi.NLMSGHDR.size + 4  # of ifi_index in a message
_fork = multiprocessing.get_context("fork")

History = dict[int, list[str]]  # by ifindex: each MAC that differs from the one before, the first included


@contextlib.contextmanager
def watched(macs: dict[int, str]) -> Iterator[History]:
    """What the MACs of these links (ifindex: the one it has now) become during the block: told at its end."""
    sock = _listener(list(macs))
    ours, theirs = _fork.Pipe()
    process = _fork.Process(target=_follow, args=(sock, theirs, macs), daemon=True)
    process.start()
    sock.close()
    theirs.close()
    history: History = {}
    try:
        yield history
        ours.send("stop")
        history |= ours.recv()
    finally:
        ours.close()
        process.join(10)
        process.kill()


def _listener(indexes: Sequence[int]) -> socket.socket:
    """The kernel gives it what is announced of these links only, so nothing is lost among what is said of others."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, uapi.NETLINK_ROUTE)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
    count = len(indexes)
    steps = [(0x20, 0, 0, _INDEX_AT)]  # load it; it comes as if it were big-endian
    steps += [(0x15, count - at, 0, socket.htonl(index)) for at, index in enumerate(indexes)]  # equal: to the last
    steps += [(0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF_FFFF)]  # drop; take all of it
    _attach(sock, steps)
    sock.bind((0, RTMGRP_LINK))
    return sock


class _Step(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.POINTER(_Step)))


def _attach(sock: socket.socket, steps: Sequence[tuple[int, int, int, int]]) -> None:
    made = _Filter(len(steps), (_Step * len(steps))(*(_Step(*step) for step in steps)))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(made))


def _follow(sock: socket.socket, pipe: Any, macs: dict[int, str]) -> None:
    history = {index: [mac] for index, mac in macs.items()}
    sock.settimeout(0.2)
    told = False
    while not told:
        told = pipe.poll()  # then what has been announced until now is still read
        with contextlib.suppress(TimeoutError):
            while True:
                _note(sock.recv(1 << 16), history)  # OSError ENOBUFS where something was lost: then there is no answer
    pipe.send(history)


def _note(message: bytes, history: History) -> None:
    _, _, index, *_ = uapi.IFINFOMSG.unpack_from(message, uapi.NLMSGHDR.size)
    found = dict(attributes(message[uapi.NLMSGHDR.size + uapi.IFINFOMSG.size :]))
    mac = found.get(uapi.IFLA_ADDRESS, b"").hex(":")
    if mac and mac != history[index][-1]:
        history[index].append(mac)
