"""Kernel calls for the pure engine: tried again on EINTR, and what refuses is named.

Each failed kernel call surfaces as an OSError whose ``filename`` is the call's name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from vhostnet.engines import _uapi as uapi
from vhostnet.program.parts import TunFlag

EINTR_TRIES: Final = 16

_T = TypeVar("_T")


def refusal(errno: int, call: str) -> OSError:
    """The kernel call *call* was refused, or might as well have been."""
    return OSError(errno, os.strerror(errno), call)


@contextlib.contextmanager
def kernel_call(name: str) -> Iterator[None]:
    """Whatever fails inside is reported as the kernel call *name*."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None


def retry(function: Callable[..., _T], *arguments: Any) -> _T:
    try:
        return function(*arguments)
    except InterruptedError:
        return _again(function, *arguments)


def _again(function: Callable[..., _T], *arguments: Any) -> _T:
    for _ in range(EINTR_TRIES - 1):
        with contextlib.suppress(InterruptedError):
            return function(*arguments)
    return function(*arguments)


def open_device(path: str, flags: int = 0) -> int:
    try:
        return retry(os.open, path, os.O_RDWR | os.O_CLOEXEC | flags)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "open") from None


def ioctl(fd: int, request: int, argument: bytearray | bytes | int, name: str) -> Any:
    """What fcntl.ioctl() returns; errors name it *name*."""
    try:
        try:
            return fcntl.ioctl(fd, request, argument)  # not by retry(): two of these a queue
        except InterruptedError:
            return _again(fcntl.ioctl, fd, request, argument)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None


_NO_IFREQ: Final = bytes(uapi.IFREQ_MAC.size)
_MAC_TRIES: Final = 3


def get_mac(fd: int) -> bytes:
    """A TAP's, by its fd: no name that could be another link's by now, and no need to be in its network namespace."""
    mac: bytes = uapi.IFREQ_MAC.unpack(ioctl(fd, uapi.SIOCGIFHWADDR, _NO_IFREQ, "SIOCGIFHWADDR"))[2]
    return mac


def get_name(fd: int) -> str:
    """What a TAP is called at the moment, by its fd."""
    return name_of(ioctl(fd, uapi.TUNGETIFF, bytes(uapi.IFREQ_FLAGS.size), "TUNGETIFF"))


def get_name_and_flags(fd: int) -> tuple[str, int]:
    """Of a queue of a TAP or a macvtap; the flags are a TunFlag's."""
    answer = ioctl(fd, uapi.TUNGETIFF, bytes(uapi.IFREQ_FLAGS.size), "TUNGETIFF")
    return name_of(answer), uapi.IFREQ_FLAGS.unpack(answer)[1]


def is_detached(fd: int) -> bool:
    """A TAP's queue that gets nothing: whoever had the NIC has not attached it, or has detached it since."""
    return bool(get_name_and_flags(fd)[1] & TunFlag.DETACH_QUEUE)


def netns_of_tap(fd: int) -> int:
    """An fd (O_CLOEXEC, the caller's) of the network namespace that a TAP is in, which takes CAP_NET_ADMIN there."""
    netns: int = ioctl(fd, uapi.TUNGETDEVNETNS, 0, "TUNGETDEVNETNS")
    return netns


def set_mac(fd: int, mac: bytes) -> None:
    ioctl(fd, uapi.SIOCSIFHWADDR, uapi.IFREQ_MAC.pack(b"", uapi.ARPHRD_ETHER, mac), "SIOCSIFHWADDR")


def keep_mac(fd: int, mac: bytes) -> None:
    """The MAC a TAP was given, put right where somebody has set another since, as udev does if it looked before us."""
    for _ in range(_MAC_TRIES):
        if get_mac(fd) == mac:
            return
        set_mac(fd, mac)


def name_of(request: bytes | bytearray) -> str:
    """The name in a struct ifreq."""
    return os.fsdecode(bytes(request[:16]).partition(b"\0")[0])


def ifreq(name: str, flags: int = 0) -> bytearray:
    """A struct ifreq of the link *name*."""
    return bytearray(uapi.IFREQ_FLAGS.pack(os.fsencode(name), flags & 0xFFFF))
