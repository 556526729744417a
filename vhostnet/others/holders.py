"""Who has a TAP open: found in /proc, for those processes whose fds this one may see."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from vhostnet.engines import _uapi
from vhostnet.errors import Holder
from vhostnet.process.files import close_fd

TUN: Final = os.makedev(10, 200)  # Documentation/admin-guide/devices.txt, whatever the node is called
_PIDFD_GETFD: Final = 438  # the same on every architecture but alpha


def find_holders(names: Collection[str]) -> Mapping[str, tuple[Holder, ...]]:
    """By the interface's name, who has it open, of the interfaces of this thread's network namespace."""
    found: defaultdict[str, dict[int, Holder]] = defaultdict(dict)
    here = os.stat("/proc/thread-self/ns/net")
    macvtaps = _macvtap_major()
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        for fd, device in _tap_fds(pid, macvtaps):
            name = _ifname(pid, fd) if device == TUN else _macvtap_name(pid, fd)
            if name in names and (device != TUN or _is_in(pid, fd, here)):
                found[name][pid] = Holder(pid, _read(f"/proc/{pid}/comm").rstrip("\n"))
    return {name: tuple(holders.values()) for name, holders in found.items()}


def started(pid: int) -> str:
    """When a process started, in clock ticks since boot (proc(5), stat, field 22); empty when there is none."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if fields else ""


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:  # it is gone, or not ours to see
        return ""


def _macvtap_major() -> int:
    """The major number of macvtaps' devices, which the kernel chose; -1 where it has none."""
    for line in _read("/proc/devices").splitlines():
        number, _, name = line.strip().partition(" ")
        if name == "macvtap":
            return int(number)
    return -1


def _tap_fds(pid: int, macvtaps: int) -> Iterator[tuple[int, int]]:
    """Those of TAPs and of macvtaps, with their device's number."""
    try:
        entries = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for entry in entries:
        with contextlib.suppress(OSError):
            device = os.stat(f"/proc/{pid}/fd/{entry}").st_rdev
            if device == TUN or os.major(device) == macvtaps:
                yield int(entry), device


def _ifname(pid: int, fd: int) -> str:
    """What tun's own fdinfo says (drivers/net/tun.c, tun_chr_show_fdinfo)."""
    for line in _read(f"/proc/{pid}/fdinfo/{fd}").splitlines():
        key, _, value = line.partition(":\t")
        if key == "iff":
            return value
    return ""


def _macvtap_name(pid: int, fd: int) -> str:
    """By a copy of the fd: nothing in /proc has it. It may be another network namespace's: no fd of it tells."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        copy = _copy(pid, fd)
        stack.callback(close_fd, copy)
        answer = fcntl.ioctl(copy, _uapi.TUNGETIFF, bytes(_uapi.IFREQ_FLAGS.size))
        return os.fsdecode(answer[:16].partition(b"\0")[0])
    return ""


def _is_in(pid: int, fd: int, netns: os.stat_result) -> bool:
    """fdinfo gives a name, and every namespace has its own. True, too, where a copy of the fd is not to be had."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        copy = _copy(pid, fd)
        stack.callback(close_fd, copy)
        theirs = fcntl.ioctl(copy, _uapi.TUNGETDEVNETNS)
        stack.callback(close_fd, theirs)
        return os.path.samestat(os.fstat(theirs), netns)
    return True


def _copy(pid: int, fd: int) -> int:
    import ctypes  # takes longer to import than this module

    pidfd = os.pidfd_open(pid)
    try:
        copy = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, pidfd, fd, 0)
    finally:
        close_fd(pidfd)
    if copy < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(copy)
