"""What links there are, for the pure engine: bridges by ioctl, others by RTM_GETLINK."""

from __future__ import annotations

import array
import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Sequence
from functools import partial
from typing import Final

from vhostnet.engines import _uapi as uapi
from vhostnet.engines._calls import ifreq, ioctl, refusal
from vhostnet.engines._rtnetlink import Netlink, attribute, attributes, error_of, malformed
from vhostnet.program.parts import ALIASSIZ, MAX_PORTS, Link, TunFlag
from vhostnet.values import replace

_NL_LOOKUPS: Final = 16  # each answer takes kilobytes of the receive buffer


class Bridge:
    """A bridge that NICs join, by ioctls: asked by RTM_GETLINK it recites all of itself. Raises OSError."""

    def __init__(self, fd: int, name: str) -> None:
        index, mtu = ifreq(name, 0), ifreq(name, 0)
        ioctl(fd, uapi.SIOCGIFINDEX, index, "SIOCGIFINDEX")
        ioctl(fd, uapi.SIOCGIFMTU, mtu, "SIOCGIFINDEX")
        self.ifindex: int = uapi.IFREQ_INDEX.unpack(index)[1]
        self.mtu: int = uapi.IFREQ_INDEX.unpack(mtu)[1]
        self._fd, self._name = fd, name
        self._ports: int | None = None

    def add_port(self) -> None:
        if self._ports is None:
            self._check()
            self._ports = count_ports(self._fd, self._name)
        self._ports += 1
        if self._ports > MAX_PORTS:
            raise refusal(errno.EXFULL, "BRCTL_GET_PORT_LIST")

    def _check(self) -> None:
        info = bytearray(uapi.DRVINFO.pack(uapi.ETHTOOL_GDRVINFO, b""))
        ioctl(self._fd, uapi.SIOCETHTOOL, ifreq_data(self._name, info), "SIOCGIFINDEX")
        if uapi.DRVINFO.unpack(info)[1].rstrip(b"\0") != b"bridge":
            raise refusal(errno.EOPNOTSUPP, "SIOCGIFINDEX")


def ask_vlans(netlink: Netlink, ifindex: int) -> int:
    """The VLAN that a new port of a bridge is in, 0 for none. Raises OSError: EOPNOTSUPP where it heeds none."""
    found: dict[int, bytes] = {}
    errors: list[int] = []
    body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0)
    body += attribute(uapi.IFLA_EXT_MASK, struct.pack("=I", uapi.RTEXT_FILTER_SKIP_STATS))
    netlink.put(0, uapi.RTM_GETLINK, 0, body)
    netlink.exchange(partial(_take_vlans, found, errors))
    if errors:
        raise refusal(errors[0], "RTM_GETLINK")
    if not _filters(found):
        raise refusal(errno.EOPNOTSUPP, "IFLA_BR_VLAN_FILTERING")
    return int.from_bytes(found.get(uapi.IFLA_BR_VLAN_DEFAULT_PVID, b""), sys.byteorder)


def _filters(bridge: dict[int, bytes]) -> bool:
    """A kernel without VLAN filtering has no such attribute."""
    return any(bridge.get(uapi.IFLA_BR_VLAN_FILTERING, b""))


def _take_vlans(found: dict[int, bytes], errors: list[int], tag: int, kind: int, body: bytes) -> int:  # noqa: ARG001
    if kind == uapi.NLMSG_ERROR:
        errors.append(error_of(body))
        return 1
    if kind != uapi.RTM_NEWLINK:
        return 0
    if len(body) < uapi.IFINFOMSG.size:
        raise malformed()
    info = dict(attributes(dict(attributes(body[uapi.IFINFOMSG.size :])).get(uapi.IFLA_LINKINFO, b"")))
    found.update(attributes(info.get(uapi.IFLA_INFO_DATA, b"")))
    return 1


def look_up_parent(fd: int, name: str) -> tuple[int, int]:
    """Ifindex and MTU of the link that a macvtap is to be on. Raises OSError."""
    index, mtu = ifreq(name), ifreq(name)
    ioctl(fd, uapi.SIOCGIFINDEX, index, "SIOCGIFINDEX")
    ioctl(fd, uapi.SIOCGIFMTU, mtu, "SIOCGIFINDEX")
    return uapi.IFREQ_INDEX.unpack(index)[1], uapi.IFREQ_INDEX.unpack(mtu)[1]


def ifreq_data(name: str, data: bytearray | array.array[int]) -> bytearray:
    """A request that points to *data*, which must outlive it."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(data))
    return bytearray(uapi.IFREQ_DATA.pack(os.fsencode(name), address))


def count_ports(fd: int, name: str) -> int:
    """How many ports a bridge has, by brctl's own ioctl: nothing younger gives that in one call.

    Not to be asked of any other link, to which it would mean something else. 0 where a kernel has it no more.
    """
    ports = array.array("i", bytes(4 * (MAX_PORTS + 1)))
    arguments = array.array("L", [uapi.BRCTL_GET_PORT_LIST, ports.buffer_info()[0], len(ports), 0])
    try:
        ioctl(fd, uapi.SIOCDEVPRIVATE, ifreq_data(name, arguments), "BRCTL_GET_PORT_LIST")
    except OSError:
        return 0
    return sum(map(bool, ports))


def find_link(netlink: Netlink, ifindex: int) -> Link | None:
    """The link of that ifindex, if there is one."""
    found: dict[str, Link] = {}
    body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0)
    body += attribute(uapi.IFLA_EXT_MASK, struct.pack("=I", uapi.RTEXT_FILTER_SKIP_STATS))
    netlink.put(0, uapi.RTM_GETLINK, 0, body)
    netlink.exchange(partial(_take_link, found, [""]))
    return found.get("")


def describe(netlink: Netlink, names: Sequence[str]) -> dict[str, Link]:
    """Those of the links that exist."""
    found: dict[str, Link] = {}
    for first in range(0, len(names), _NL_LOOKUPS):
        for number, name in enumerate(names[first : first + _NL_LOOKUPS], first):
            netlink.put(number, uapi.RTM_GETLINK, 0, _lookup(name))
        netlink.exchange(partial(_take_link, found, names))
    for name, link in found.items():
        if link.kind == "bridge":
            found[name] = replace(link, ports=count_ports(netlink.fileno(), name))
    return found


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
    kind = info.get(uapi.IFLA_INFO_KIND, b"").rstrip(b"\0").decode()
    data = info.get(uapi.IFLA_INFO_DATA, b"")
    return Link(
        name,
        uapi.IFINFOMSG.unpack_from(body)[2],
        kind,
        struct.unpack("=I", found[uapi.IFLA_MTU])[0],
        found.get(uapi.IFLA_ADDRESS, b""),
        tun_flags=_read_tun(data) if kind == "tun" else 0,
        vlan_filtering=kind == "bridge" and _filters(dict(attributes(data))),
        alias=found.get(uapi.IFLA_IFALIAS, b"").rstrip(b"\0")[: ALIASSIZ - 1].decode("utf-8", "replace"),
    )


def _read_tun(data: bytes) -> int:
    """Each attribute of a TUN or TAP device is one octet."""
    told = {kind: value[0] for kind, value in attributes(data) if len(value) == 1}
    flags = told.get(uapi.IFLA_TUN_TYPE, 0)
    flags |= TunFlag.NO_PI * (told.get(uapi.IFLA_TUN_PI) == 0)
    flags |= TunFlag.PERSIST * bool(told.get(uapi.IFLA_TUN_PERSIST))
    flags |= TunFlag.VNET_HDR * bool(told.get(uapi.IFLA_TUN_VNET_HDR))
    return flags | TunFlag.MULTI_QUEUE * bool(told.get(uapi.IFLA_TUN_MULTI_QUEUE))
