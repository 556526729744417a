"""The pure engine: the same acts by fcntl, socket and struct. For hosts without a compiler, and as the C core's twin.

Where the C core returns -errno, this raises OSError with the kernel call in ``filename``; ``_Run`` is the
one place that catches it.
"""

from __future__ import annotations

import array
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
from dataclasses import replace
from functools import partial
from typing import Final

from vhostnet.engines import _uapi as uapi
from vhostnet.engines._protocol import ActResult, NicResult, Result, failures_of
from vhostnet.engines._removal import DELETE_BATCH, Doomed, close_fds, delete_links
from vhostnet.engines._rtnetlink import Netlink, attribute, attributes, error_of, kernel_call, malformed, retry
from vhostnet.files import fits
from vhostnet.plan import MAX_PORTS, Act, Fds, Link, NicRow, Op, Program, TunFlag, fds_needed

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
    """A row on its way: what there is of it."""

    def __init__(self, row: NicRow) -> None:
        held = row.held or Fds((), ())
        self.row = row
        self.ifindex = row.ifindex
        self.master = row.master
        self.mtu = row.mtu
        self.tap_fds = list(held.tap)
        self.vhost_fds = list(held.vhost)
        self.failed = False  # an act of it was refused, and the later ones are left out

    def doomed(self) -> Doomed:
        return Doomed(self.tap_fds, self.vhost_fds, self.ifindex)


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
        self.answered = True

    @property
    def refused(self) -> bool:
        return self.errno not in (0, errno.ECANCELED)


class _Run:
    """One execution of a Program."""

    def __init__(self, program: Program) -> None:
        self.nics = [_Nic(row) for row in program.nics]
        self.acts = [_Running(number, act) for number, act in enumerate(program.acts)]
        self.keep = program.keep
        self.needed = fds_needed(program)
        self.queued: list[_Running] = []  # they wait for the next flush
        self.batch = 0  # how many of their kind may

    def execute(self) -> None:
        try:
            self.netlink = Netlink()
        except OSError as error:
            self.acts[0].refuse(error)
            for nic in self.nics:
                nic.failed = True
            return
        try:
            done = self._check_files() and self._find_bridges() and all(map(self._step, self.acts)) and self._flush()
            self._unmake(every=not done)
        except BaseException:
            self._unmake(every=True)
            raise
        finally:
            self.netlink.close()

    def _unmake(self, *, every: bool) -> None:
        """Delete what this run made of the NICs that failed: by the group, and by closing what it could not have."""
        failed = [nic for nic in self.nics if (nic.failed or every) and not nic.row.held]
        for first in range(0, len(failed), DELETE_BATCH):
            doomed = [nic.doomed() for nic in failed[first : first + DELETE_BATCH]]
            delete_links(self.netlink, doomed, held=False)
            for d in doomed:
                d.error = 0
            close_fds(doomed)

    def _check_files(self) -> bool:
        """Whether all that must be opened fits under RLIMIT_NOFILE, before the first of it is."""
        if self.keep or not self.needed or fits(self.needed):
            return True
        return self._refuse(self.acts[0], OSError(errno.EMFILE, os.strerror(errno.EMFILE), "RLIMIT_NOFILE"))

    def _find_bridges(self) -> bool:
        """Every bridge that is only named, and room on it for every NIC, before anything is made."""
        found: dict[str, _Bridge] = {}
        for number, nic in enumerate(self.nics):
            name = nic.row.bridge
            if not name or nic.master:
                continue
            try:
                if name not in found:
                    found[name] = _Bridge(self.netlink.fileno(), name)
                nic.master = found[name].ifindex
                nic.mtu = nic.mtu or found[name].mtu
                if not nic.row.held:
                    found[name].add_port()
            except OSError as error:
                blamed = (a for a in self.acts if (a.act.op, a.act.nic) == (Op.LINK, number))
                if not self._refuse(next(blamed, self.acts[0]), error):
                    return False
        return True

    def _refuse(self, running: _Running, error: OSError) -> bool:
        """An act was refused: True when the run goes on without this NIC."""
        running.refuse(error)
        self.nics[running.act.nic].failed = True
        return self.keep

    def _step(self, running: _Running) -> bool:
        function, batch = _ACTS[running.act.op]
        full = batch != self.batch or running.act.barrier or len(self.queued) == batch
        if full and not self._flush():
            return False
        nic = self.nics[running.act.nic]
        if nic.failed:
            running.errno = running.errno or errno.ECANCELED
            return True
        started = time.monotonic_ns()
        try:
            function(self, nic, running)
        except OSError as error:
            running.refuse(error)
            return running.act.optional or self._refuse(running, error)
        finally:
            running.ns = time.monotonic_ns() - started
        if batch:
            running.answered = False
            self.queued.append(running)
            self.batch = batch
        return True

    def _flush(self) -> bool:
        """Do what was put together since the last flush; each act has its share of the time."""
        if not self.queued:
            return True
        queued, self.queued = self.queued, []
        started = time.monotonic_ns()
        if self.batch == DELETE_BATCH:
            self._delete(queued)
        else:
            self._send(queued)
        each = (time.monotonic_ns() - started) // len(queued)
        on = True
        for running in queued:
            running.ns += each
            if running.errno:
                on = self._refuse(running, OSError(running.errno, "", running.call)) and on
        return on

    def _send(self, queued: list[_Running]) -> None:
        lost: OSError | None = None
        try:
            self.netlink.exchange(self._answer)
        except OSError as error:
            lost = error
        for running in queued:
            if not running.answered and lost:
                running.refuse(lost)

    def _answer(self, tag: int, kind: int, body: bytes) -> int:
        running = self.acts[tag]
        if kind != uapi.NLMSG_ERROR or running.answered:
            return 0
        running.errno = error_of(body)
        running.answered = True
        return 1

    def _delete(self, queued: list[_Running]) -> None:
        doomed = [self.nics[running.act.nic].doomed() for running in queued]
        delete_links(self.netlink, doomed, held=True)
        close_fds(doomed)
        for running, d in zip(queued, doomed, strict=True):
            running.errno, running.call = d.error, d.call

    def put(self, running: _Running, kind: int, flags: int, body: bytes, call: str) -> None:
        """Queue a message for the next flush; its answer is the act's."""
        running.call = call
        self.netlink.put(running.number, kind, uapi.NLM_F_ACK | flags, body)


class _Bridge:
    """A bridge that NICs join, by ioctls: asked by RTM_GETLINK it recites all of itself. Raises OSError."""

    def __init__(self, fd: int, name: str) -> None:
        index, mtu = _ifreq(name, 0), _ifreq(name, 0)
        _ioctl(fd, uapi.SIOCGIFINDEX, index, "SIOCGIFINDEX")
        _ioctl(fd, uapi.SIOCGIFMTU, mtu, "SIOCGIFINDEX")
        self.ifindex: int = uapi.IFREQ_INDEX.unpack(index)[1]
        self.mtu: int = uapi.IFREQ_INDEX.unpack(mtu)[1]
        self._fd, self._name = fd, name
        self._ports: int | None = None

    def add_port(self) -> None:
        if self._ports is None:
            self._check()
            self._ports = _count_ports(self._fd, self._name)
        self._ports += 1
        if self._ports > MAX_PORTS:
            raise OSError(errno.EXFULL, os.strerror(errno.EXFULL), "BRCTL_GET_PORT_LIST")

    def _check(self) -> None:
        info = bytearray(uapi.DRVINFO.pack(uapi.ETHTOOL_GDRVINFO, b""))
        _ioctl(self._fd, uapi.SIOCETHTOOL, _ifreq_data(self._name, info), "SIOCGIFINDEX")
        if uapi.DRVINFO.unpack(info)[1].rstrip(b"\0") != b"bridge":
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), "SIOCGIFINDEX")


def _ifreq_data(name: str, data: bytearray | array.array[int]) -> bytearray:
    """A request that points to *data*, which must outlive it."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(data))
    return bytearray(uapi.IFREQ_DATA.pack(os.fsencode(name), address))


def _count_ports(fd: int, name: str) -> int:
    """How many ports a bridge has, by brctl's own ioctl: nothing younger gives that in one call.

    Not to be asked of any other link, to which it would mean something else. 0 where a kernel has it no more.
    """
    ports = array.array("i", bytes(4 * (MAX_PORTS + 1)))
    arguments = array.array("L", [uapi.BRCTL_GET_PORT_LIST, ports.buffer_info()[0], len(ports), 0])
    try:
        _ioctl(fd, uapi.SIOCDEVPRIVATE, _ifreq_data(name, arguments), "BRCTL_GET_PORT_LIST")
    except OSError:
        return 0
    return sum(map(bool, ports))


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
        while nic.vhost_fds:  # all or none: QEMU refuses fewer vhost fds than TAP fds
            os.close(nic.vhost_fds.pop())
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
    for queue, fd in enumerate(nic.tap_fds[1:], 1):
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
    flags = uapi.IFF_UP if row.up else 0
    body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, nic.ifindex, flags, flags)
    if row.mac:
        body += attribute(uapi.IFLA_ADDRESS, row.mac)
    if nic.mtu:
        body += attribute(uapi.IFLA_MTU, struct.pack("=I", nic.mtu))
    if row.alias:
        body += attribute(uapi.IFLA_IFALIAS, row.alias.encode())
    if nic.master:
        body += attribute(uapi.IFLA_MASTER, struct.pack("=I", nic.master))
    if row.no_ipv6 and nic.mtu >= _IPV6_MIN_MTU:  # below it there is no IPv6 to set anything in
        mode = attribute(uapi.IFLA_INET6_ADDR_GEN_MODE, bytes([uapi.IN6_ADDR_GEN_MODE_NONE]))
        body += attribute(uapi.IFLA_AF_SPEC, attribute(socket.AF_INET6, mode))
    run.put(running, uapi.RTM_NEWLINK, 0, body, "RTM_NEWLINK")


def _put_up(run: _Run, nic: _Nic, running: _Running) -> None:
    body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, nic.ifindex, uapi.IFF_UP, uapi.IFF_UP)
    run.put(running, uapi.RTM_NEWLINK, 0, body, "RTM_NEWLINK")


def _put_rename(run: _Run, nic: _Nic, running: _Running) -> None:
    body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, nic.ifindex, 0, 0)
    body += attribute(uapi.IFLA_IFNAME, os.fsencode(nic.row.wish) + b"\0")
    run.put(running, uapi.RTM_NEWLINK, 0, body, "RTM_NEWLINK")


def _put_altname(run: _Run, nic: _Nic, running: _Running) -> None:
    body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, nic.ifindex, 0, 0)
    name = attribute(uapi.IFLA_ALT_IFNAME, os.fsencode(nic.row.wish) + b"\0")
    body += attribute(uapi.NLA_F_NESTED | uapi.IFLA_PROP_LIST, name)
    flags = uapi.NLM_F_CREATE | uapi.NLM_F_EXCL | uapi.NLM_F_APPEND
    run.put(running, uapi.RTM_NEWLINKPROP, flags, body, "RTM_NEWLINKPROP")


def _put_delete(run: _Run, nic: _Nic, running: _Running) -> None:
    """Nothing yet: those of one round are deleted together."""


# op -> what does it, and how many are put together until the next flush does them; 0: it is done at once
_ACTS: Final[dict[Op, tuple[Callable[[_Run, _Nic, _Running], None], int]]] = {
    Op.TAP_OPEN: (_tap_open, 0),
    Op.VHOST_OPEN: (_vhost_open, 0),
    Op.SELFTEST: (_selftest, 0),
    Op.QDISC: (_put_qdisc, _NL_BATCH),
    Op.LINK: (_put_link, _NL_BATCH),
    Op.UP: (_put_up, _NL_BATCH),
    Op.ATTACH: (_attach, 0),
    Op.ALTNAME: (_put_altname, _NL_BATCH),
    Op.RENAME: (_put_rename, _NL_BATCH),
    Op.DELETE: (_put_delete, DELETE_BATCH),
}


class PureEngine:
    """Programs by the standard library alone."""

    name = "pure"

    def run(self, program: Program) -> Result:
        if not program.acts:
            return Result((), ())
        run = _Run(program)
        run.execute()
        results = tuple(
            ActResult(a.errno, a.call if a.errno else "", a.queue if a.errno else None, a.ns) for a in run.acts
        )
        failures = failures_of(program, results)
        if failures and not program.keep:
            return Result((), results, failures[:1])
        nics = (
            None if nic.failed else NicResult(nic.ifindex, nic.mtu, Fds(tuple(nic.tap_fds), tuple(nic.vhost_fds)))
            for nic in run.nics
        )
        return Result(tuple(nics), results, failures)

    def close(self, held: Sequence[Fds]) -> None:
        close_fds([Doomed(list(fds.tap), list(fds.vhost), 0) for fds in held])

    def describe(self, names: Sequence[str]) -> dict[str, Link]:
        netlink = Netlink()
        found: dict[str, Link] = {}
        try:
            for first in range(0, len(names), _NL_LOOKUPS):
                for number, name in enumerate(names[first : first + _NL_LOOKUPS], first):
                    netlink.put(number, uapi.RTM_GETLINK, 0, _lookup(name))
                netlink.exchange(partial(_take_link, found, names))
            for name, link in found.items():
                if link.kind == "bridge":
                    found[name] = replace(link, ports=_count_ports(netlink.fileno(), name))
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


def _lookup(name: str) -> bytes:
    body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    body += attribute(uapi.IFLA_IFNAME, os.fsencode(name) + b"\0")
    return body + attribute(uapi.IFLA_EXT_MASK, struct.pack("=I", uapi.RTEXT_FILTER_SKIP_STATS))


def _take_link(found: dict[str, Link], names: Sequence[str], tag: int, kind: int, body: bytes) -> int:
    if kind not in (uapi.RTM_NEWLINK, uapi.NLMSG_ERROR):
        return 0
    if kind == uapi.NLMSG_ERROR:
        code = error_of(body)
        if code != errno.ENODEV:
            raise OSError(code, os.strerror(code))
        return 1
    if len(body) < uapi.IFINFOMSG.size:
        raise malformed()
    found[names[tag]] = _read_link(names[tag], body)
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
