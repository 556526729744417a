"""Who is at the other end of a socket: what the kernel says of it, and nothing that it says itself."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import struct
from typing import Final, NamedTuple

from vhostnet.host.marks import Maker
from vhostnet.others.holders import started
from vhostnet.process.files import close_fd

_SO_PEERGROUPS: Final = 59
_SO_PEERPIDFD: Final = 77  # Linux 6.5
_UCRED: Final = struct.Struct("iII")
_GROUPS: Final = 256  # what getsockopt() of Python has room for


class Peer(NamedTuple):
    """The process that has connected: ids as they were then, its cgroup (v2) where that is known, else "".

    ``started`` in clock ticks since boot; "0" of one that had gone when it was looked at.
    """

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]
    cgroup: str
    started: str

    @property
    def maker(self) -> Maker:
        """As a NIC's mark has it."""
        return Maker(self.pid, self.started, self.uid)

    def __str__(self) -> str:
        return f"pid {self.pid}, uid {self.uid}"


def peer_of(sock: socket.socket) -> Peer:
    """By SO_PEERCRED, SO_PEERGROUPS and, for what /proc says of the process, SO_PEERPIDFD. Raises OSError.

    A pid may be another process's by the time that /proc is read: so what was read counts only while the pidfd says
    that its process is still there. Before Linux 6.5 the pidfd is of who has the pid when the connection is accepted.
    """
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    groups = array.array("I")
    with contextlib.suppress(OSError):  # more than that: it has its first one
        groups.frombytes(sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, groups.itemsize * _GROUPS))
    cgroup, since = _of_process(sock, pid)
    return Peer(pid, uid, gid, frozenset((gid, *groups)), cgroup, since)


def _of_process(sock: socket.socket, pid: int) -> tuple[str, str]:
    pidfd = -1
    with contextlib.suppress(OSError):
        try:
            pidfd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError:
            pidfd = os.pidfd_open(pid)
    if pidfd < 0:
        return "", "0"
    try:
        found = _cgroup(pid), started(pid) or "0"
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return ("", "0") if poll.poll(0) else found
    finally:
        close_fd(pidfd)


def _cgroup(pid: int) -> str:
    """Its path in the unified hierarchy (cgroups(7)): ``/system.slice/vm-1.service``."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cgroup", errors="replace") as file:
        for line in file:
            if line.startswith("0::"):
                return line[3:].rstrip("\n")
    return ""
