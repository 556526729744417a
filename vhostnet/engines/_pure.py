"""The pure engine: the same acts by fcntl, socket and struct. For hosts without a compiler, and as the C core's twin.

Where the C core returns -errno, this raises OSError with the kernel call in ``filename``; ``_Run`` is the
one place that catches it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from vhostnet.engines import _uapi as uapi
from vhostnet.engines._protocol import ActResult, Failure, NicResult, Result
from vhostnet.engines._rtnetlink import Netlink, attribute, attributes, error_of, kernel_call, malformed, message, retry
from vhostnet.plan import Act, Link, NicRow, Op, Program, TunFlag

_VHOST_NEEDED: Final = 1 << uapi.VIRTIO_NET_F_MRG_RXBUF | 1 << uapi.VIRTIO_F_VERSION_1
_NL_BATCH: Final = 64
_NL_LOOKUPS: Final = 16
_IPV6_MIN_MTU: Final = 1280
_RING_ENTRIES: Final = 256
_RING_BYTES: Final = 16384


def _open(path: str, flags: int = 0) -> int:
    try:
        return retry(os.open, path, os.O_RDWR | os.O_CLOEXEC | flags)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "open") from None


def _ioctl(fd: int, request: int, argument: bytearray | int, name: str) -> None:
    try:
        retry(fcntl.ioctl, fd, request, argument)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None


def _ifreq(name: str, flags: int) -> bytearray:
    return bytearray(uapi.IFREQ_FLAGS.pack(os.fsencode(name), flags & 0xFFFF))


# --- the run ---------------------------------------------------------------------------------------------


class _Nic:
    """A row on its way: what this run opened of it."""

    def __init__(self, row: NicRow) -> None:
        self.row = row
        self.ifindex = 0
        self.master = row.master
        self.mtu = row.mtu
        self.tap_fds: list[int] = []
        self.vhost_fds: list[int] = []


class _Running:
    """An act on its way."""

    def __init__(self, number: int, act: Act) -> None:
        self.number = number
        self.act = act
        self.errno = 0
        self.call = ""
        self.queue: int | None = None
        self.ns = 0
        self.answered = True

    def refuse(self, error: OSError) -> None:
        self.errno = error.errno or errno.EIO
        self.call = str(error.filename or "")


def _close_all(fds: list[int]) -> None:
    while fds:
        with contextlib.suppress(OSError):
            os.close(fds.pop())


class _Run:
    """One execution of a Program."""

    def __init__(self, program: Program) -> None:
        self.nics = [_Nic(row) for row in program.nics]
        self.acts = [_Running(number, act) for number, act in enumerate(program.acts)]
        self.queued: list[int] = []

    def execute(self) -> bool:
        """True when every act was done; else everything that was opened is closed."""
        try:
            self.netlink = Netlink()
        except OSError as error:
            self.acts[0].refuse(error)
            return False
        try:
            done = self._find_bridges() and all(map(self._step, range(len(self.acts)))) and self._flush()
        except BaseException:
            self._unwind()
            raise
        finally:
            self.netlink.close()
        if not done:
            self._unwind()
        return done

    def _unwind(self) -> None:
        for nic in reversed(self.nics):
            _close_all(nic.vhost_fds)
            _close_all(nic.tap_fds)

    def _find_bridges(self) -> bool:
        """Every bridge that a row only names, before anything is made; one not found is the LINK act's to report."""
        found: dict[str, tuple[int, int]] = {}
        for number, nic in enumerate(self.nics):
            name = nic.row.bridge
            try:
                if name and not nic.master:
                    nic.master, mtu = found[name] = found.get(name) or _bridge(self.netlink.fileno(), name)
                    nic.mtu = nic.mtu or mtu
            except OSError as error:
                blamed = (a for a in self.acts if (a.act.op, a.act.nic) == (Op.LINK, number))
                next(blamed, self.acts[0]).refuse(error)
                return False
        return True

    def _step(self, number: int) -> bool:
        running = self.acts[number]
        function, queued = _ACTS[running.act.op]
        if (not queued or running.act.barrier or len(self.queued) == _NL_BATCH) and not self._flush():
            return False
        started = time.monotonic_ns()
        try:
            function(self, self.nics[running.act.nic], running)
        except OSError as error:
            running.refuse(error)
        running.ns = time.monotonic_ns() - started
        if queued:
            running.answered = False
            self.queued.append(number)
        return not running.errno or running.act.optional

    def _flush(self) -> bool:
        if not self.queued:
            return True
        started = time.monotonic_ns()
        lost: OSError | None = None
        try:
            self.netlink.exchange(self._answer)
        except OSError as error:
            lost = error
        each = (time.monotonic_ns() - started) // len(self.queued)
        batch, self.queued = [self.acts[number] for number in self.queued], []
        for running in batch:
            running.ns += each
            if not running.answered and lost:
                running.refuse(lost)
        return not any(running.errno for running in batch)

    def _answer(self, kind: int, seq: int, body: bytes) -> int:
        number = seq - 1
        if kind != uapi.NLMSG_ERROR or number not in self.queued or self.acts[number].answered:
            return 0
        self.acts[number].errno = error_of(body)
        self.acts[number].answered = True
        return 1

    def put(self, running: _Running, kind: int, flags: int, body: bytes, call: str) -> None:
        """Queue a message for the next flush; its sequence number says whose the answer is."""
        running.call = call
        self.netlink.out.append(message(kind, uapi.NLM_F_ACK | flags, running.number + 1, body))


def _bridge(fd: int, name: str) -> tuple[int, int]:
    """The ifindex and MTU of a bridge, by three ioctls: asked by RTM_GETLINK it recites all of itself."""
    index, mtu = _ifreq(name, 0), _ifreq(name, 0)
    _ioctl(fd, uapi.SIOCGIFINDEX, index, "SIOCGIFINDEX")
    _ioctl(fd, uapi.SIOCGIFMTU, mtu, "SIOCGIFINDEX")
    info = bytearray(uapi.DRVINFO.pack(uapi.ETHTOOL_GDRVINFO, b""))
    address = ctypes.addressof(ctypes.c_char.from_buffer(info))
    _ioctl(fd, uapi.SIOCETHTOOL, bytearray(uapi.IFREQ_DATA.pack(os.fsencode(name), address)), "SIOCGIFINDEX")
    if uapi.DRVINFO.unpack(info)[1].rstrip(b"\0") != b"bridge":
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), "SIOCGIFINDEX")
    return uapi.IFREQ_INDEX.unpack(index)[1], uapi.IFREQ_INDEX.unpack(mtu)[1]


def _tap_open(run: _Run, nic: _Nic, running: _Running) -> None:
    row = nic.row
    for queue in range(row.queues):
        running.queue = queue
        fd = _open(row.tap_path)
        nic.tap_fds.append(fd)
        flags = row.tun_flags | (0 if queue else TunFlag.EXCL)
        _ioctl(fd, uapi.TUNSETIFF, _ifreq(row.ifname, flags), "TUNSETIFF")
    running.queue = None
    _identify(run, nic)


def _identify(run: _Run, nic: _Nic) -> None:
    """The ifindex, and proof that it is our device's: names can be changed by others, ifindexes cannot."""
    request = _ifreq(nic.row.ifname, 0)
    _ioctl(run.netlink.fileno(), uapi.SIOCGIFINDEX, request, "SIOCGIFINDEX")
    nic.ifindex = uapi.IFREQ_INDEX.unpack(request)[1]
    request = _ifreq("", 0)
    _ioctl(nic.tap_fds[0], uapi.TUNGETIFF, request, "TUNGETIFF")
    if bytes(request[:16]).partition(b"\0")[0] != os.fsencode(nic.row.ifname):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "TUNGETIFF")


def _open_vhost(path: str) -> int:
    """O_NONBLOCK | O_NOCTTY: the path is the user's and may be a tty or a FIFO; QEMU sets O_NONBLOCK anyway."""
    return _open(path, os.O_NONBLOCK | os.O_NOCTTY)


def _prove_vhost(fd: int) -> None:
    """Proof that it is vhost-net, without ever owning it: a second VHOST_SET_OWNER, QEMU's, would be EBUSY."""
    with kernel_call("fstat"):
        mode = os.fstat(fd).st_mode
    if not stat.S_ISCHR(mode):
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY), "VHOST_GET_FEATURES")
    word = bytearray(8)
    _ioctl(fd, uapi.VHOST_GET_FEATURES, word, "VHOST_GET_FEATURES")
    if struct.unpack("=Q", word)[0] & _VHOST_NEEDED != _VHOST_NEEDED:
        raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT), "VHOST_GET_FEATURES")


def _vhost_open(run: _Run, nic: _Nic, running: _Running) -> None:  # noqa: ARG001
    try:
        for queue in range(nic.row.queues):
            running.queue = queue
            nic.vhost_fds.append(_open_vhost(nic.row.vhost_path))
            _prove_vhost(nic.vhost_fds[-1])
    except BaseException:
        _close_all(nic.vhost_fds)  # all or none: QEMU refuses fewer vhost fds than TAP fds
        raise
    running.queue = None


def _selftest(run: _Run, nic: _Nic, running: _Running) -> None:  # noqa: ARG001
    fd = _open_vhost(nic.row.vhost_path)
    try:
        _prove_vhost(fd)
        with kernel_call("mmap"):
            memory = mmap.mmap(-1, 2 * _RING_BYTES)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        _wire_up(fd, base, nic.tap_fds[0])
    finally:
        os.close(fd)


def _wire_up(fd: int, base: int, tap: int) -> None:
    """A whole dummy ring, and the TAP bound to it: anything but a TAP answers ENOTSOCK."""

    def tell(request: int, layout: str, call: str, *values: int) -> None:
        _ioctl(fd, request, bytearray(struct.pack(layout, *values)), call)

    _ioctl(fd, uapi.VHOST_SET_OWNER, 0, "VHOST_SET_OWNER")
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


def _attach(run: _Run, nic: _Nic, running: _Running) -> None:  # noqa: ARG001
    """Queue 0 is attached always; QEMU leaves the others detached when it ends."""
    for queue, fd in enumerate(nic.row.tap_fds[1:], 1):
        running.queue = queue
        request = _ifreq("", 0)
        _ioctl(fd, uapi.TUNGETIFF, request, "TUNGETIFF")
        if uapi.IFREQ_FLAGS.unpack(request)[1] & TunFlag.DETACH_QUEUE:
            _ioctl(fd, uapi.TUNSETQUEUE, _ifreq("", uapi.IFF_ATTACH_QUEUE), "TUNSETQUEUE")
    running.queue = None


def _put_qdisc(run: _Run, nic: _Nic, running: _Running) -> None:
    body = uapi.TCMSG.pack(socket.AF_UNSPEC, nic.ifindex, 0, uapi.TC_H_ROOT, 0) + attribute(uapi.TCA_KIND, b"noqueue\0")
    run.put(running, uapi.RTM_NEWQDISC, uapi.NLM_F_CREATE | uapi.NLM_F_REPLACE, body, "RTM_NEWQDISC")


def _put_link(run: _Run, nic: _Nic, running: _Running) -> None:
    row = nic.row
    body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, nic.ifindex, 0, 0)
    if row.mac:
        body += attribute(uapi.IFLA_ADDRESS, row.mac)
    if nic.mtu:
        body += attribute(uapi.IFLA_MTU, struct.pack("=I", nic.mtu))
    if nic.master:
        body += attribute(uapi.IFLA_MASTER, struct.pack("=I", nic.master))
    if row.no_ipv6 and nic.mtu >= _IPV6_MIN_MTU:  # below it there is no IPv6 to set anything in
        mode = attribute(uapi.IFLA_INET6_ADDR_GEN_MODE, bytes([uapi.IN6_ADDR_GEN_MODE_NONE]))
        body += attribute(uapi.IFLA_AF_SPEC, attribute(socket.AF_INET6, mode))
    run.put(running, uapi.RTM_NEWLINK, 0, body, "RTM_NEWLINK")


def _put_up(run: _Run, nic: _Nic, running: _Running) -> None:
    body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, nic.ifindex, uapi.IFF_UP, uapi.IFF_UP)
    run.put(running, uapi.RTM_NEWLINK, 0, body, "RTM_NEWLINK")


# op -> what does it, and whether that only queues a message for the next flush
_ACTS: Final[dict[Op, tuple[Callable[[_Run, _Nic, _Running], None], bool]]] = {
    Op.TAP_OPEN: (_tap_open, False),
    Op.VHOST_OPEN: (_vhost_open, False),
    Op.SELFTEST: (_selftest, False),
    Op.QDISC: (_put_qdisc, True),
    Op.LINK: (_put_link, True),
    Op.UP: (_put_up, True),
    Op.ATTACH: (_attach, False),
}


class PureEngine:
    """Programs by the standard library alone."""

    name = "pure"

    def run(self, program: Program) -> Result:
        if not program.acts:
            return Result((), (), None)
        run = _Run(program)
        done = run.execute()
        results = tuple(
            ActResult(a.errno, a.call if a.errno else "", a.queue if a.errno else None, a.ns) for a in run.acts
        )
        if done:
            nics = tuple(NicResult(n.ifindex, n.mtu, tuple(n.tap_fds), tuple(n.vhost_fds)) for n in run.nics)
            return Result(nics, results, None)
        return Result((), results, _failure(program, results))

    def describe(self, names: Sequence[str]) -> dict[str, Link]:
        netlink = Netlink()
        found: dict[str, Link] = {}
        try:
            for first in range(0, len(names), _NL_LOOKUPS):
                some = names[first : first + _NL_LOOKUPS]
                netlink.out = [_lookup(name, seq) for seq, name in enumerate(some)]
                netlink.exchange(partial(_take_link, found, some))
        finally:
            netlink.close()
        return found

    def features(self, tap_path: str) -> int:
        fd = _open(tap_path)
        word = bytearray(4)
        try:
            _ioctl(fd, uapi.TUNGETFEATURES, word, "TUNGETFEATURES")
        finally:
            os.close(fd)
        return int(struct.unpack("=I", word)[0])


def _failure(program: Program, results: Sequence[ActResult]) -> Failure:
    return next(
        Failure(number, result)
        for number, (act, result) in enumerate(zip(program.acts, results, strict=True))
        if result.errno and not act.optional
    )


def _lookup(name: str, seq: int) -> bytes:
    body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    body += attribute(uapi.IFLA_IFNAME, os.fsencode(name) + b"\0")
    body += attribute(uapi.IFLA_EXT_MASK, struct.pack("=I", uapi.RTEXT_FILTER_SKIP_STATS))
    return message(uapi.RTM_GETLINK, 0, seq, body)


def _take_link(found: dict[str, Link], names: Sequence[str], kind: int, seq: int, body: bytes) -> int:
    if seq >= len(names) or kind not in (uapi.RTM_NEWLINK, uapi.NLMSG_ERROR):
        return 0
    if kind == uapi.NLMSG_ERROR:
        code = error_of(body)
        if code != errno.ENODEV:
            raise OSError(code, os.strerror(code))
        return 1
    if len(body) < uapi.IFINFOMSG.size:
        raise malformed()
    found[names[seq]] = _read_link(names[seq], body)
    return 1


def _read_link(name: str, body: bytes) -> Link:
    found = dict(attributes(body[uapi.IFINFOMSG.size :]))
    info = dict(attributes(found.get(uapi.IFLA_LINKINFO, b"")))
    return Link(
        name,
        uapi.IFINFOMSG.unpack_from(body)[2],
        info.get(uapi.IFLA_INFO_KIND, b"").rstrip(b"\0").decode(),
        struct.unpack("=I", found[uapi.IFLA_MTU])[0],
        found.get(uapi.IFLA_ADDRESS, b""),
    )
