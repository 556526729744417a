"""Traffic control, for the pure engine: what holds a NIC to its bandwidth. Only written here; the loop sends.

It is the tree that libvirt makes of a TAP or a macvtap by running tc, message by message, but for its fw filter: that
one sends what is marked 1 to a class that is not there.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from vhostnet.engines import _uapi as uapi
from vhostnet.engines._rtnetlink import NL_DISPENSABLE, NL_MESSAGE, Netlink, attribute
from vhostnet.program.parts import Shaping

_ROOT, _CLASS, _LEAF, _INGRESS = 1 << 16, 1 << 16 | 1, 2 << 16, 0xFFFF << 16
_HTB_VERSION, _R2Q = 3, 10  # what tc says; our class has a quantum of its own
_HTB_CELL: Final = 3  # as of tc's 1600 bytes of MTU;
_POLICE_MTU, _POLICE_CELL = 65536, 9  # a frame of more is dropped: as libvirt has it
_PERTURB: Final = 10  # seconds until SFQ hashes otherwise
_THIS: Final = 1  # the only class
_ADD, _PUT = uapi.NLM_F_CREATE | uapi.NLM_F_EXCL, uapi.NLM_F_CREATE | uapi.NLM_F_REPLACE
_TABLE: Final = attribute(uapi.TCA_POLICE_RATE, bytes(uapi.TC_RTAB_SIZE))

_CALLS: Final = {
    uapi.RTM_DELQDISC: "RTM_DELQDISC",
    uapi.RTM_NEWTCLASS: "RTM_NEWTCLASS",
    uapi.RTM_NEWTFILTER: "RTM_NEWTFILTER",
}


def bandwidth_messages(shaping: Shaping, held: bool) -> int:
    """How many messages put_bandwidth() writes."""
    return held + 3 * bool(shaping.rate) + 2 * bool(shaping.police_rate)


def bandwidth_room(shaping: Shaping, held: bool) -> int:
    """The most bytes they take."""
    return bandwidth_messages(shaping, held) * NL_MESSAGE + bool(shaping.police_rate) * len(_TABLE)


def bandwidth_call(body: bytes) -> str:
    """Which of them an NLMSG_ERROR answers to."""
    return _CALLS.get(uapi.NLMSGHDR.unpack_from(body, 4)[1], "RTM_NEWQDISC")


class _Tree:
    """The messages about one device."""

    def __init__(self, netlink: Netlink, tag: int, ifindex: int) -> None:
        self._netlink, self._tag, self._ifindex = netlink, tag, ifindex

    def _put(
        self, kind: int, flags: int, where: tuple[int, int], what: bytes, options: bytes = b"", dispensable: int = 0
    ) -> None:
        """*where* is its handle and its parent."""
        info = socket.htons(uapi.ETH_P_ALL) if kind == uapi.RTM_NEWTFILTER else 0
        body = uapi.TCMSG.pack(socket.AF_UNSPEC, self._ifindex, *where, info) + attribute(uapi.TCA_KIND, what + b"\0")
        body += attribute(uapi.TCA_OPTIONS, options) if options else b""
        self._netlink.put(self._tag | dispensable, kind, uapi.NLM_F_ACK | flags, body)

    def root(self) -> None:
        """HTB in the place of whatever is the root, so that there is never a queue for each of the device's 256."""
        tree = attribute(uapi.TCA_HTB_INIT, uapi.TC_HTB_GLOB.pack(_HTB_VERSION, _R2Q, _THIS, 0, 0))
        self._put(uapi.RTM_NEWQDISC, _PUT, (_ROOT, uapi.TC_H_ROOT), b"htb", tree)

    def node(self, shaping: Shaping) -> None:
        """The class that everything goes through."""
        self._put(uapi.RTM_NEWTCLASS, _ADD, (_CLASS, _ROOT), b"htb", htb_class(*shaping[:5]))

    def leaf(self) -> None:
        """So that the flows share it fairly. A kernel without SFQ leaves the class its FIFO: the rate is the same."""
        self._put(uapi.RTM_NEWQDISC, _ADD, (_LEAF, _CLASS), b"sfq", sfq(), NL_DISPENSABLE)

    def ingress(self) -> None:
        self._put(uapi.RTM_NEWQDISC, _ADD, (_INGRESS, uapi.TC_H_INGRESS), b"ingress")

    def no_ingress(self) -> None:
        where = 0, uapi.TC_H_INGRESS
        self._put(uapi.RTM_DELQDISC, 0, where, b"ingress", dispensable=NL_DISPENSABLE)

    def police(self, shaping: Shaping) -> None:
        """All that comes in, of whatever protocol. The table is of kernels before 3.8: it must be there, and nobody
        reads it."""
        rate = _narrow(shaping.police_rate, _POLICE_CELL)
        limit = uapi.TC_POLICE.pack(0, uapi.TC_POLICE_SHOT, 0, shaping.police_burst, _POLICE_MTU, rate)
        police = attribute(uapi.TCA_POLICE_TBF, limit) + _TABLE
        police += _wide(uapi.TCA_POLICE_RATE64, shaping.police_rate)
        match = uapi.TC_U32_SEL.pack(uapi.TC_U32_TERMINAL, 1) + uapi.TC_U32_KEY.pack()  # any word at all
        options = attribute(uapi.TCA_U32_CLASSID, struct.pack("=I", _THIS)) + attribute(uapi.TCA_U32_SEL, match)
        options += attribute(uapi.TCA_U32_POLICE, police)
        self._put(uapi.RTM_NEWTFILTER, _ADD, (0, _INGRESS), b"u32", options)


def _narrow(rate: int, cell: int) -> bytes:
    """A rate of 32 bits or more is said once more, in 64."""
    return uapi.TC_RATESPEC.pack(cell, uapi.TC_LINKLAYER_ETHERNET, 0, -1, 0, min(rate, 2**32 - 1))


def _wide(kind: int, rate: int) -> bytes:
    return attribute(kind, struct.pack("=Q", rate)) if rate >= 2**32 else b""


def htb_class(rate: int, ceil: int, burst: int, ceil_burst: int, quantum: int) -> bytes:
    """Its options, from numbers as a Shaping has them."""
    numbers = uapi.TC_HTB_OPT.pack(_narrow(rate, _HTB_CELL), _narrow(ceil, _HTB_CELL), burst, ceil_burst, quantum)
    return _wide(uapi.TCA_HTB_RATE64, rate) + _wide(uapi.TCA_HTB_CEIL64, ceil) + attribute(uapi.TCA_HTB_PARMS, numbers)


def sfq() -> bytes:
    """Its options, as libvirt has them."""
    return uapi.TC_SFQ_QOPT.pack(0, _PERTURB, 0, 0, 0)


def put_bandwidth(netlink: Netlink, ifindex: int, shaping: Shaping, held: bool, tag: int) -> None:
    """One that is held may have had another tree: QDISC has put its root away, and here goes the rest."""
    tree = _Tree(netlink, tag, ifindex)
    if held:
        tree.no_ingress()
    if shaping.rate:
        tree.root()
        tree.node(shaping)
        tree.leaf()
    if shaping.police_rate:
        tree.ingress()
        tree.police(shaping)
