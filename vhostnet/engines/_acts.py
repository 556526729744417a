"""The acts of the pure engine, one function each."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from vhostnet.engines import _uapi as uapi
from vhostnet.engines._calls import get_mac, ifreq, ioctl, kernel_call, name_of, open_device, refusal, retry, set_mac
from vhostnet.engines._links import describe, ifreq_data
from vhostnet.engines._removal import DELETE_BATCH, Doomed
from vhostnet.engines._rtnetlink import (
    NL_BATCH,
    NL_DISPENSABLE,
    Netlink,
    attribute,
    device_number,
    open_uevents,
    take_ack,
)
from vhostnet.engines._tc import put_bandwidth
from vhostnet.engines._vhost import open_vhost, prove_vhost, try_vhost
from vhostnet.process.files import close_fd
from vhostnet.program.parts import Act, Fds, Link, Macvtap, NicRow, Op, Persist, Port, TunFlag, VlanEntry, VlanFlag

_IDENTIFY_TRIES: Final = 3
_IPV6_MIN_MTU: Final = 1280
_VNET_HDR_BYTES: Final = 10  # struct virtio_net_hdr
_NODE: Final = "/dev/.vhostnet-tap"  # with the ifindex: unlinked again as soon as the queues are open


class Nic:
    """A row on its way: what there is of it."""

    def __init__(self, row: NicRow) -> None:
        held = row.held or Fds((), ())
        self.row = row
        self.ifindex = row.ifindex
        self.master = row.master
        self.mtu = row.mtu
        self.parent = 0  # the ifindex of the link a macvtap is to be on
        self.default_vid = 0  # the VLAN that a new port of its bridge is in
        self.tap_fds = list(held.tap)
        self.vhost_fds = list(held.vhost)
        self.macvtap = row.macvtap is not None
        self.failed = False  # an act of it was refused, and the later ones are left out

    def doomed(self) -> Doomed:
        mark = self.row.alias if self.macvtap else None
        return Doomed(self.tap_fds, self.vhost_fds, self.ifindex, mark)


class Running:
    """An act on its way."""

    def __init__(self, number: int, act: Act) -> None:
        self.number = number
        self.act = act
        self.errno = 0
        self.call = ""
        self.queue: int | None = None
        self.ns = 0
        self.pending = 0  # answers that it waits for
        self.said = ""

    def refuse(self, error: OSError) -> None:
        self.errno = error.errno or errno.EIO
        self.call = str(error.filename or "")
        self.pending = 0


def _tap_open(netlink: Netlink, nic: Nic, running: Running) -> None:
    row = nic.row
    request = bytes(ifreq(row.ifname, row.tun_flags | TunFlag.EXCL))  # not to be written to: the name stays ours
    for queue in range(row.queues):
        running.queue = queue
        fd = open_device(row.tap_path)
        nic.tap_fds.append(fd)
        ioctl(fd, uapi.TUNSETIFF, request, "TUNSETIFF")
        if queue == 0:
            if row.mac:
                _set_unique_mac(fd)
            request = bytes(ifreq(row.ifname, row.tun_flags))
    running.queue = None
    _identify(netlink, nic)
    if row.mac:
        set_mac(nic.tap_fds[0], row.mac)  # the one it is to have: soon, since udev's rules may look at it


def _set_unique_mac(fd: int) -> None:
    """A MAC that no other link has, by which this device can be told from all of them.

    It is set at once, before udev looks whether the MAC is still the kernel's own random one and gives it another.
    """
    with kernel_call("getrandom"):
        mac = b"\xfe" + os.urandom(5)
    set_mac(fd, mac)


def _identify(netlink: Netlink, nic: Nic) -> None:
    """The ifindex, and proof that it is our device's, and that every queue is.

    Names can be changed by others between any two calls; what no rename changes is the MAC, and no other link has this
    one. A fd tells that of its device, and one answer of rtnetlink has ifindex and MAC together. udev may set another
    in between, once.
    """
    name = nic.row.ifname
    for _ in range(_IDENTIFY_TRIES):
        call = "SIOCGIFHWADDR"
        macs = set(map(get_mac, nic.tap_fds))
        if len(macs) == 1:
            call = "RTM_GETLINK"
            link = describe(netlink, [name]).get(name)
            if link and {link.mac} == macs:
                nic.ifindex = link.ifindex
                return
    raise refusal(errno.ESTALE, call)


def _adopt(netlink: Netlink, nic: Nic, running: Running) -> None:
    """Whether it can have so many queues is its own, and so is what it was made as.

    A macvtap's are had by the node that it has where nodes are made; that it is this one's is seen when it is open.
    """
    row = nic.row
    link = describe(netlink, [row.ifname]).get(row.ifname)
    if link is None:
        raise refusal(errno.ENODEV, "RTM_GETLINK")
    nic.macvtap = link.kind == "macvtap"
    if nic.macvtap:
        _open_node(nic, running, f"/dev/tap{link.ifindex}")
    else:
        _attach_queues(nic, running, link)
    _check_still(netlink, nic, link)
    nic.ifindex, nic.mtu = link.ifindex, link.mtu
    # What a QEMU that had it may have left in it: offloads that the next one has not asked for, and a larger header.
    ioctl(nic.tap_fds[0], uapi.TUNSETOFFLOAD, 0, "TUNSETOFFLOAD")
    ioctl(nic.tap_fds[0], uapi.TUNSETVNETHDRSZ, bytearray(struct.pack("=i", _VNET_HDR_BYTES)), "TUNSETVNETHDRSZ")


def _attach_queues(nic: Nic, running: Running, link: Link) -> None:
    row = nic.row
    if not link.tun_flags & TunFlag.TAP or (row.queues > 1 and not link.tun_flags & TunFlag.MULTI_QUEUE):
        raise refusal(errno.EINVAL, "TUNSETIFF")
    request = bytes(ifreq(row.ifname, row.tun_flags & ~TunFlag.MULTI_QUEUE | link.tun_flags & TunFlag.MULTI_QUEUE))
    for queue in range(row.queues):
        running.queue = queue
        nic.tap_fds.append(open_device(row.tap_path))
        ioctl(nic.tap_fds[queue], uapi.TUNSETIFF, request, "TUNSETIFF")
    running.queue = None


def _check_still(netlink: Netlink, nic: Nic, before: Link) -> None:
    """Every queue is of the link that was there before: had it gone, TUNSETIFF would have made another."""
    name = nic.row.ifname
    now = describe(netlink, [name]).get(name)
    if now is None or now.ifindex != before.ifindex:
        raise refusal(errno.ESTALE, "RTM_GETLINK")
    if set(map(get_mac, nic.tap_fds)) != {now.mac}:
        raise refusal(errno.ESTALE, "SIOCGIFHWADDR")


def _macvtap(netlink: Netlink, nic: Nic, running: Running) -> None:
    with kernel_call("getrandom"):  # one that nobody has: whatever is lost on the way, it is known what to delete
        nic.ifindex = int.from_bytes(os.urandom(4), sys.byteorder) & 0x0FFFFFFF | 0x10000000
    try:
        events = open_uevents()
    except OSError:
        nic.ifindex = 0
        raise
    try:
        _make_macvtap(netlink, nic)
        path = f"{_NODE}{nic.ifindex}"  # one of our own: nobody can vouch for what others call it
        number = device_number(events, nic.ifindex)
        with kernel_call("mknod"):
            retry(os.mknod, path, stat.S_IFCHR | 0o600, number)
        try:
            _open_node(nic, running, path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
        _check_still_has(netlink, nic)
    finally:
        close_fd(events.detach())


def _make_macvtap(netlink: Netlink, nic: Nic) -> None:
    """The link, whole and down.

    In one send with what the kernel takes of a link that is there, and not in the message that makes it: the mark, and
    for passthru the MAC, which is the parent's. Where the first is refused the second finds no link of that ifindex.
    """
    _, mode, all_multicast = nic.row.macvtap or Macvtap()
    flags = uapi.IFF_ALLMULTI if all_multicast else 0
    data = attribute(uapi.IFLA_INFO_DATA, attribute(uapi.IFLA_MACVLAN_MODE, struct.pack("=I", mode)))
    body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, nic.ifindex, flags, flags)
    body += attribute(uapi.IFLA_IFNAME, os.fsencode(nic.row.ifname) + b"\0")
    body += attribute(uapi.IFLA_LINK, struct.pack("=i", nic.parent)) + attribute(uapi.IFLA_ADDRESS, nic.row.mac)
    body += attribute(uapi.IFLA_LINKINFO, attribute(uapi.IFLA_INFO_KIND, b"macvtap\0") + data)
    netlink.put(0, uapi.RTM_NEWLINK, uapi.NLM_F_ACK | uapi.NLM_F_CREATE | uapi.NLM_F_EXCL, body)
    netlink.put(1, uapi.RTM_NEWLINK, uapi.NLM_F_ACK, _link_body(nic))
    errors: dict[int, int] = {}
    try:
        netlink.exchange(partial(take_ack, errors))
    except OSError:
        if not any(errors.values()):
            raise
    if errors.get(0):
        nic.ifindex = 0
    for code in filter(None, (errors.get(0), errors.get(1))):
        raise refusal(code, "RTM_NEWLINK")


def _open_node(nic: Nic, running: Running, path: str) -> None:
    """The queues of a macvtap, by its device's node."""
    request = bytes(ifreq("", nic.row.tun_flags))
    for queue in range(nic.row.queues):
        running.queue = queue
        nic.tap_fds.append(open_device(path))
        ioctl(nic.tap_fds[queue], uapi.TUNSETIFF, request, "TUNSETIFF")
    running.queue = None


def _check_still_has(netlink: Netlink, nic: Nic) -> None:
    """As long as the link is there its device number is no other's: it still is, so every queue is of it."""
    request = ifreq("")
    ioctl(nic.tap_fds[-1], uapi.TUNGETIFF, request, "TUNGETIFF")
    ioctl(netlink.fileno(), uapi.SIOCGIFINDEX, request, "SIOCGIFINDEX")
    if uapi.IFREQ_INDEX.unpack(request)[1] != nic.ifindex:
        raise refusal(errno.ESTALE, "SIOCGIFINDEX")


def _vhost_open(netlink: Netlink, nic: Nic, running: Running) -> None:  # noqa: ARG001
    try:
        for queue in range(nic.row.queues):
            running.queue = queue
            nic.vhost_fds.append(open_vhost(nic.row.vhost_path))
            prove_vhost(nic.vhost_fds[-1])
    except BaseException:
        while nic.vhost_fds:  # all or none: QEMU refuses fewer vhost fds than TAP fds
            close_fd(nic.vhost_fds.pop())
        raise
    running.queue = None


def _selftest(netlink: Netlink, nic: Nic, running: Running) -> None:  # noqa: ARG001
    try_vhost(nic.row.vhost_path, nic.tap_fds[0])


def _attach(netlink: Netlink, nic: Nic, running: Running) -> None:  # noqa: ARG001
    """Queue 0 is attached always; QEMU leaves the others detached when it ends.

    A macvtap does not say which: EINVAL does.
    """
    macvtap = nic.row.macvtap
    for queue, fd in enumerate(nic.tap_fds[1:], 1):
        running.queue = queue
        request = ifreq("", 0)
        ioctl(fd, uapi.TUNGETIFF, request, "TUNGETIFF")
        if not uapi.IFREQ_FLAGS.unpack(request)[1] & TunFlag.DETACH_QUEUE and not macvtap:
            continue
        try:
            ioctl(fd, uapi.TUNSETQUEUE, ifreq("", uapi.IFF_ATTACH_QUEUE), "TUNSETQUEUE")
        except OSError as error:
            if not macvtap or error.errno != errno.EINVAL:
                raise
    running.queue = None


def _put(netlink: Netlink, running: Running, kind: int, flags: int, body: bytes, call: str) -> None:
    """Queue a message for the next flush; its answer is the act's."""
    running.call = call
    netlink.put(running.number, kind, uapi.NLM_F_ACK | flags, body)


def _put_qdisc(netlink: Netlink, nic: Nic, running: Running) -> None:
    body = uapi.TCMSG.pack(socket.AF_UNSPEC, nic.ifindex, 0, uapi.TC_H_ROOT, 0) + attribute(uapi.TCA_KIND, b"noqueue\0")
    _put(netlink, running, uapi.RTM_NEWQDISC, uapi.NLM_F_CREATE | uapi.NLM_F_REPLACE, body, "RTM_NEWQDISC")


def _put_link(netlink: Netlink, nic: Nic, running: Running) -> None:
    _put(netlink, running, uapi.RTM_NEWLINK, 0, _link_body(nic), "RTM_NEWLINK")


def _link_body(nic: Nic) -> bytes:
    """What is the link's own, and its bridge."""
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
    return body


def _put_leave(netlink: Netlink, nic: Nic, running: Running) -> None:
    """Down, and then off its bridge: with the port goes all that was set of it."""
    body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, nic.ifindex, 0, uapi.IFF_UP)
    body += attribute(uapi.IFLA_MASTER, struct.pack("=I", 0))
    _put(netlink, running, uapi.RTM_NEWLINK, 0, body, "RTM_NEWLINK")


def _put_down(netlink: Netlink, nic: Nic, running: Running) -> None:
    """On its bridge as it is: what that has learned of the port goes, and nothing that was set."""
    body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, nic.ifindex, 0, uapi.IFF_UP)
    _put(netlink, running, uapi.RTM_NEWLINK, 0, body, "RTM_NEWLINK")


def _put_up(netlink: Netlink, nic: Nic, running: Running) -> None:
    body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, nic.ifindex, uapi.IFF_UP, uapi.IFF_UP)
    port = nic.row.port
    if port.isolated or port.guest_mac:
        body += _port(port)
    _put(netlink, running, uapi.RTM_NEWLINK, 0, body, "RTM_NEWLINK")


def _port(port: Port) -> bytes:
    """As a port of its bridge: in a message of its own link, and not in the one that makes it a port."""
    data = b""
    if port.isolated:
        data += attribute(uapi.IFLA_BRPORT_ISOLATED, b"\1")
    if port.guest_mac:
        data += attribute(uapi.IFLA_BRPORT_LEARNING, b"\0") + attribute(uapi.IFLA_BRPORT_UNICAST_FLOOD, b"\0")
    kind = attribute(uapi.IFLA_INFO_SLAVE_KIND, b"bridge\0")
    return attribute(uapi.IFLA_LINKINFO, kind + attribute(uapi.IFLA_INFO_SLAVE_DATA, data))


def _put_vlans(netlink: Netlink, nic: Nic, running: Running, kind: int, vlans: Sequence[VlanEntry], call: str) -> None:
    listed = b"".join(attribute(uapi.IFLA_BRIDGE_VLAN_INFO, uapi.VLAN_INFO.pack(*vlan)) for vlan in vlans)
    body = uapi.IFINFOMSG.pack(socket.AF_BRIDGE, 0, nic.ifindex, 0, 0) + attribute(uapi.IFLA_AF_SPEC, listed)
    _put(netlink, running, kind, 0, body, call)


def _put_vlan_add(netlink: Netlink, nic: Nic, running: Running) -> None:
    _put_vlans(netlink, nic, running, uapi.RTM_SETLINK, nic.row.port.vlans, "RTM_SETLINK")


def _put_vlan_del(netlink: Netlink, nic: Nic, running: Running) -> None:
    """The VLAN that every new port of its bridge is in, where the NIC is not to be."""
    running.call = "RTM_DELLINK"
    if nic.default_vid and not any(vid == nic.default_vid for vid in _vids(nic.row.port.vlans)):
        _put_vlans(netlink, nic, running, uapi.RTM_DELLINK, [VlanEntry(0, nic.default_vid)], "RTM_DELLINK")


def _vids(vlans: Sequence[VlanEntry]) -> Iterator[int]:
    first = 0
    for flags, vid in vlans:
        if flags & VlanFlag.RANGE_BEGIN:
            first = vid
            continue
        yield from range(first or vid, vid + 1)
        first = 0


def _put_fdb(netlink: Netlink, nic: Nic, running: Running) -> None:
    flags = uapi.NLM_F_CREATE | uapi.NLM_F_REPLACE
    _put(netlink, running, uapi.RTM_NEWNEIGH, flags, _neighbour(nic), "RTM_NEWNEIGH")


def _put_unfdb(netlink: Netlink, nic: Nic, running: Running) -> None:
    """Dispensable: the guest may be at another port by now."""
    running.call = "RTM_DELNEIGH"
    netlink.put(running.number | NL_DISPENSABLE, uapi.RTM_DELNEIGH, uapi.NLM_F_ACK, _neighbour(nic))


def _neighbour(nic: Nic) -> bytes:
    """Static (NUD_NOARP): any other entry is refused on a port that is down. Without a VLAN it is in all of its."""
    body = uapi.NDMSG.pack(socket.AF_BRIDGE, nic.ifindex, uapi.NUD_NOARP, uapi.NTF_MASTER)
    return body + attribute(uapi.NDA_LLADDR, nic.row.port.guest_mac)


def _coalesce(netlink: Netlink, nic: Nic, running: Running) -> None:  # noqa: ARG001
    """ethtool's ioctl takes a name, and a name can be changed: the TAP's fd has it, before and after."""
    for _ in range(_IDENTIFY_TRIES):
        before, after = ifreq("", 0), ifreq("", 0)
        ioctl(nic.tap_fds[0], uapi.TUNGETIFF, before, "TUNGETIFF")
        asked = bytearray(uapi.COALESCE.pack(uapi.ETHTOOL_SCOALESCE, nic.row.frames))
        request = ifreq_data(name_of(before), asked)
        ioctl(netlink.fileno(), uapi.SIOCETHTOOL, request, "ETHTOOL_SCOALESCE")
        ioctl(nic.tap_fds[0], uapi.TUNGETIFF, after, "TUNGETIFF")
        if name_of(before) == name_of(after):
            return
    raise refusal(errno.ESTALE, "ETHTOOL_SCOALESCE")


def _put_tc(netlink: Netlink, nic: Nic, running: Running) -> None:
    running.call = "RTM_NEWQDISC"
    put_bandwidth(netlink, nic.ifindex, nic.row.shaping, nic.row.held is not None, running.number)


def _persist(netlink: Netlink, nic: Nic, running: Running) -> None:  # noqa: ARG001
    """Whoever is let in, before it stays."""
    persist = nic.row.persist or Persist()
    if persist.owner >= 0:
        ioctl(nic.tap_fds[0], uapi.TUNSETOWNER, persist.owner, "TUNSETOWNER")
    if persist.group >= 0:
        ioctl(nic.tap_fds[0], uapi.TUNSETGROUP, persist.group, "TUNSETGROUP")
    ioctl(nic.tap_fds[0], uapi.TUNSETPERSIST, 1, "TUNSETPERSIST")


def _put_rename(netlink: Netlink, nic: Nic, running: Running) -> None:
    body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, nic.ifindex, 0, 0)
    body += attribute(uapi.IFLA_IFNAME, os.fsencode(nic.row.wish) + b"\0")
    _put(netlink, running, uapi.RTM_NEWLINK, 0, body, "RTM_NEWLINK")


def _put_altname(netlink: Netlink, nic: Nic, running: Running) -> None:
    body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, nic.ifindex, 0, 0)
    name = attribute(uapi.IFLA_ALT_IFNAME, os.fsencode(nic.row.wish) + b"\0")
    body += attribute(uapi.NLA_F_NESTED | uapi.IFLA_PROP_LIST, name)
    flags = uapi.NLM_F_CREATE | uapi.NLM_F_EXCL | uapi.NLM_F_APPEND
    _put(netlink, running, uapi.RTM_NEWLINKPROP, flags, body, "RTM_NEWLINKPROP")


def _put_delete(netlink: Netlink, nic: Nic, running: Running) -> None:
    """Nothing yet: those of one round are deleted together."""


# op -> what does it, and how many are put together until the next flush does them; 0: it is done at once
ACTS: Final[dict[Op, tuple[Callable[[Netlink, Nic, Running], None], int]]] = {
    Op.TAP_OPEN: (_tap_open, 0),
    Op.ADOPT: (_adopt, 0),
    Op.MACVTAP: (_macvtap, 0),
    Op.VHOST_OPEN: (_vhost_open, 0),
    Op.SELFTEST: (_selftest, 0),
    Op.QDISC: (_put_qdisc, NL_BATCH),
    Op.LEAVE: (_put_leave, NL_BATCH),
    Op.LINK: (_put_link, NL_BATCH),
    Op.VLAN_ADD: (_put_vlan_add, NL_BATCH),
    Op.VLAN_DEL: (_put_vlan_del, NL_BATCH),
    Op.FDB: (_put_fdb, NL_BATCH),
    Op.COALESCE: (_coalesce, 0),
    Op.TC: (_put_tc, NL_BATCH),
    Op.UP: (_put_up, NL_BATCH),
    Op.DOWN: (_put_down, NL_BATCH),
    Op.UNFDB: (_put_unfdb, NL_BATCH),
    Op.PERSIST: (_persist, 0),
    Op.ATTACH: (_attach, 0),
    Op.ALTNAME: (_put_altname, NL_BATCH),
    Op.RENAME: (_put_rename, NL_BATCH),
    Op.DELETE: (_put_delete, DELETE_BATCH),
}
