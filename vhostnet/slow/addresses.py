"""Addresses and routes of the host's end of a NIC's cable, by rtnetlink, as libvirt gives them to it."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

from vhostnet.engines import _uapi as uapi
from vhostnet.engines._rtnetlink import Netlink, attribute, take_ack
from vhostnet.program.parts import Address, NicRow, Route
from vhostnet.program.text import address_text, route_text

_RTM_NEWADDR, _RTM_DELADDR, _RTM_NEWROUTE, _RTM_DELROUTE = 20, 21, 24, 25
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 1, 4, 5, 6
_RT_TABLE_MAIN, _RTPROT_BOOT, _RT_SCOPE_UNIVERSE, _RTN_UNICAST = 254, 3, 0, 1
_IFADDRMSG: Final = struct.Struct("=BBBBi")  # family, prefix, flags, scope, ifindex
_RTMSG: Final = struct.Struct("=BBBBBBBBI")  # family, to and from how long, tos, table, protocol, scope, type, flags


class _Message(NamedTuple):
    kind: int
    body: bytes
    call: str  # what an error calls it
    what: str


def add_addresses(row: NicRow) -> None:
    """All of them, or none. Raises OSError, its ``filename`` the message that was refused."""
    made = _new(row)
    refused = _exchange(uapi.NLM_F_CREATE | uapi.NLM_F_EXCL, made)
    if refused:
        _remove([message for number, message in enumerate(made) if number not in refused])
        number, code = min(refused.items())
        raise OSError(code, f"{made[number].what}: {os.strerror(code)}", made[number].call)


def remove_addresses(row: NicRow) -> None:
    """What add_addresses() set, of a link that stays. What is not there any more is passed over."""
    _remove(_new(row))


def _remove(made: Sequence[_Message]) -> None:
    for message in reversed(made):
        code = _exchange(0, [message._replace(kind=message.kind + 1)]).get(0, 0)
        if code not in (0, errno.EADDRNOTAVAIL, errno.ESRCH, errno.ENODEV):
            call = message.call.replace("NEW", "DEL")
            raise OSError(code, f"{message.what}: {os.strerror(code)}", call)


def _new(row: NicRow) -> list[_Message]:
    made = [
        _Message(_RTM_NEWADDR, _address(row.ifindex, address), "RTM_NEWADDR", address_text(address))
        for address in row.slow.addresses
    ]
    return made + [
        _Message(_RTM_NEWROUTE, _route(row.ifindex, route), "RTM_NEWROUTE", route_text(route))
        for route in row.slow.routes
    ]


def _exchange(flags: int, messages: Sequence[_Message]) -> dict[int, int]:
    """Place of each that was refused, and the errno."""
    answers: dict[int, int] = {}
    netlink = Netlink()
    try:
        for number, message in enumerate(messages):
            netlink.put(number, message.kind, uapi.NLM_F_ACK | flags, message.body)
        netlink.exchange(partial(take_ack, answers))
    finally:
        netlink.close()
    return {number: code for number, code in answers.items() if code}


def _family(packed: bytes) -> int:
    return socket.AF_INET if len(packed) == 4 else socket.AF_INET6


def _address(ifindex: int, address: Address) -> bytes:
    body = _IFADDRMSG.pack(_family(address.ip), address.prefix, 0, 0, ifindex)
    body += attribute(_IFA_LOCAL, address.ip) + attribute(_IFA_ADDRESS, address.peer or address.ip)
    return body + b"".join(_broadcast(address))


def _broadcast(address: Address) -> Iterator[bytes]:
    """Of an IPv4 network: all its bits set."""
    if len(address.ip) == 4 and not address.peer:
        hosts = (1 << 32 - address.prefix) - 1
        yield attribute(_IFA_BROADCAST, (int.from_bytes(address.ip, "big") | hosts).to_bytes(4, "big"))


def _route(ifindex: int, route: Route) -> bytes:
    where = (_RT_TABLE_MAIN, _RTPROT_BOOT, _RT_SCOPE_UNIVERSE, _RTN_UNICAST, 0)
    body = _RTMSG.pack(_family(route.network), route.prefix, 0, 0, *where)
    body += attribute(_RTA_DST, route.network) if route.prefix else b""
    body += attribute(_RTA_GATEWAY, route.gateway) + attribute(_RTA_OIF, struct.pack("=I", ifindex))
    return body + attribute(_RTA_PRIORITY, struct.pack("=I", route.metric))
