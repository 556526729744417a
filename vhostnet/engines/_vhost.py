"""vhost-net: one fd of it, opened and proven, or tried on a TAP and thrown away."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import struct
from typing import Final

from vhostnet.engines import _uapi as uapi
from vhostnet.engines._calls import ioctl, kernel_call, open_device, refusal
from vhostnet.process.files import close_fd

_VHOST_NEEDED: Final = 1 << uapi.VIRTIO_NET_F_MRG_RXBUF | 1 << uapi.VIRTIO_F_VERSION_1
_RING_ENTRIES: Final = 256
_RING_BYTES: Final = 16384


def open_vhost(path: str) -> int:
    """O_NONBLOCK | O_NOCTTY: the path is the user's and may be a tty or a FIFO; QEMU sets O_NONBLOCK anyway."""
    return open_device(path, os.O_NONBLOCK | os.O_NOCTTY)


def prove_vhost(fd: int) -> None:
    """Proof that it is vhost-net, without ever owning it: a second VHOST_SET_OWNER, QEMU's, would be EBUSY."""
    with kernel_call("fstat"):
        mode = os.fstat(fd).st_mode
    if not stat.S_ISCHR(mode):
        raise refusal(errno.ENOTTY, "VHOST_GET_FEATURES")
    word = bytearray(8)
    ioctl(fd, uapi.VHOST_GET_FEATURES, word, "VHOST_GET_FEATURES")
    if struct.unpack("=Q", word)[0] & _VHOST_NEEDED != _VHOST_NEEDED:
        raise refusal(errno.EPROTONOSUPPORT, "VHOST_GET_FEATURES")


def is_owned(fd: int) -> bool:
    """Some process has it for its own: only then is a VHOST_SET_OWNER refused. One that nobody has stays nobody's."""
    try:
        ioctl(fd, uapi.VHOST_SET_OWNER, 0, "VHOST_SET_OWNER")
    except OSError as refused:
        return refused.errno == errno.EBUSY
    ioctl(fd, uapi.VHOST_RESET_OWNER, 0, "VHOST_RESET_OWNER")
    return False


def try_vhost(path: str, tap: int) -> None:
    """That it takes this TAP: by an fd of its own, which nobody else gets."""
    fd = open_vhost(path)
    try:
        prove_vhost(fd)
        with kernel_call("mmap"):
            memory = mmap.mmap(-1, 2 * _RING_BYTES)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        _wire_up(fd, base, tap)
    finally:
        close_fd(fd)


def _wire_up(fd: int, base: int, tap: int) -> None:
    """A whole dummy ring, and the TAP bound to it: anything but a TAP answers ENOTSOCK."""

    def tell(request: int, layout: str, call: str, *values: int) -> None:
        ioctl(fd, request, bytearray(struct.pack(layout, *values)), call)

    ioctl(fd, uapi.VHOST_SET_OWNER, 0, "VHOST_SET_OWNER")
    tell(uapi.VHOST_SET_FEATURES, "=Q", "VHOST_SET_FEATURES", _VHOST_NEEDED)
    tell(uapi.VHOST_SET_MEM_TABLE, "=IIQQQQ", "VHOST_SET_MEM_TABLE", 1, 0, 0, 2 * _RING_BYTES, base, 0)
    for index in (0, 1):
        start = base + index * _RING_BYTES
        tell(uapi.VHOST_SET_VRING_NUM, uapi.VRING_STATE.format, "VHOST_SET_VRING", index, _RING_ENTRIES)
        tell(uapi.VHOST_SET_VRING_BASE, uapi.VRING_STATE.format, "VHOST_SET_VRING", index, 0)
        # flags, then descriptors, used, available, log
        addresses = (start, start + 8192, start + 4096, 0)
        tell(uapi.VHOST_SET_VRING_ADDR, uapi.VRING_ADDR.format, "VHOST_SET_VRING", index, 0, *addresses)
    for index in (0, 1):
        for backend in (tap, -1):
            tell(uapi.VHOST_NET_SET_BACKEND, uapi.VRING_FILE.format, "VHOST_NET_SET_BACKEND", index, backend)
