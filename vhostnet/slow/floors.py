"""Floors: what a bridge guarantees a guest of all that it sends, as the networks of libvirt have it.

Whoever gives a bridge a bandwidth as libvirt does, for a network that has one, makes it an HTB tree: class 1:1 for all
that it sends, and under it 1:2 for what is nobody's. A NIC with a floor gets a class beside that, to which a filter
leads whatever is for its guest's MAC, and 1:2 has what is left of 1:1. libvirt's filters have priority 2, and its
classes numbers from 3 on; ours are known by a priority of their own, and their numbers begin at the other end.

They outlive the NIC, so they are taken away before that goes. Nothing of them can carry a mark: one that a crash has
left is known by this, that no link has the TAP's MAC, and goes when the next floor is put on its bridge, at the latest.
Until then it lends to the others what nobody uses. Whatever is refused is an OSError, its ``filename`` the call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

from vhostnet.engines import _uapi as uapi
from vhostnet.engines._calls import ifreq, ioctl
from vhostnet.engines._rtnetlink import Netlink, attribute, attributes, take_ack
from vhostnet.engines._tc import htb_class, sfq
from vhostnet.program.parts import Floor, NicRow
from vhostnet.program.rows import least_ticks
from vhostnet.slow.listing import RTM_GETTCLASS, RTM_GETTFILTER, listed
from vhostnet.spec.mac import tap_mac
from vhostnet.spec.parts import TICK

PRIORITY: Final = 0x7668  # of our filters, and of nobody else's: libvirt's have 1 and 2
_FIRST_MINOR: Final = 0x7FFF  # of ours, and down from there
_ALL, _REST, _ROOT = 1 << 16 | 1, 1 << 16 | 2, 1 << 16  # 1:1, 1:2, and the tree
_LEAST_REST: Final = 1000  # bytes a second: the kernel has no class of none
_BATCH: Final = 16  # NICs of one send, of three messages each
_TRIES: Final = 3  # where somebody else takes the same number, or a listing is torn

_RTM_DELTCLASS, _RTM_DELTFILTER = 41, 45
_KEY: Final = struct.Struct("=4s4sii")  # struct tc_u32_key: mask, value, offset from the network header, offmask
_EVERY: Final = PRIORITY << 16 | socket.htons(uapi.ETH_P_ALL)

_Refused = dict[str, OSError]  # by the NIC's name


class _Class(NamedTuple):
    """One of the tree's: bytes a second, and ticks."""

    parent: int
    rate: int
    ceil: int
    burst: int
    ceil_burst: int
    quantum: int


class _Filter(NamedTuple):
    """One of ours: whose frames it leads where."""

    handle: int
    classid: int
    mac: bytes


# --- a floor in and out ----------------------------------------------------------------------------------


def put_floors(rows: Sequence[NicRow]) -> _Refused:
    """A class for each of these NICs. Name -> why it has none; nothing is left of those."""
    return _on_each_bridge(rows, _put_all)


def _put_all(bridge: str, rows: Sequence[NicRow]) -> _Refused:
    refused: _Refused = {}
    with tree_of(bridge) as tree:
        tree.drop(tree.stale({_floor(row).guest_mac for row in rows}))
        for first in range(0, len(rows), _BATCH):
            refused |= _put(tree, rows[first : first + _BATCH])
        tree.settle()
    return refused


def _put(tree: _Tree, rows: Sequence[NicRow]) -> _Refused:
    refused, waiting = _fitting(tree.classes(), tree.bridge, rows)
    for _ in range(_TRIES):
        if not waiting:
            break
        outcomes = tree.add([_floor(row) for row in waiting])
        for row, (code, call) in zip(waiting, outcomes, strict=True):
            refused.pop(row.ifname, None)
            if code:
                refused[row.ifname] = _error(code, call)
        waiting = [row for row, (code, _) in zip(waiting, outcomes, strict=True) if code == errno.EEXIST]
    return refused


def remove_floors(rows: Sequence[NicRow]) -> _Refused:
    """Those that are there, by the guests' MACs; the bridge, or its tree, may have gone. Name -> why one is left."""
    return _on_each_bridge(rows, _remove_all)


def _remove_all(bridge: str, rows: Sequence[NicRow]) -> _Refused:
    macs = {_floor(row).guest_mac for row in rows}
    with contextlib.suppress(_Lacking), tree_of(bridge) as tree:
        tree.drop([found for found in tree.filters() if found.mac in macs])
        tree.settle()
    return {}


def change_floor(row: NicRow) -> None:
    """Make it what the row says now: another, on another bridge, or none (a rate of 0)."""
    floor = _floor(row)
    if floor.before:
        _remove_all(floor.before, [row])
    if floor.rate:
        for error in put_floors([row]).values():
            raise error


def look(rows: Sequence[NicRow]) -> _Refused:
    """Name -> why the bridge will not guarantee that."""
    return _on_each_bridge(rows, _look)


def _look(bridge: str, rows: Sequence[NicRow]) -> _Refused:
    with tree_of(bridge) as tree:
        return _fitting(tree.classes(), bridge, rows)[0]


def left_over(bridge: str) -> list[bytes]:
    """The guests whose TAP is gone, by their MACs; none where the bridge guarantees nobody anything."""
    with contextlib.suppress(_Lacking), tree_of(bridge) as tree:
        return [found.mac for found in tree.stale(set())]
    return []


def _fitting(classes: dict[int, _Class], bridge: str, rows: Sequence[NicRow]) -> tuple[_Refused, list[NicRow]]:
    """Those that are more than what is left, and the others."""
    refused: _Refused = {}
    fitting = []
    left = _left(classes)
    for row in rows:
        rate = _floor(row).rate
        if rate > left:
            whole = classes[_ALL].rate // 1000
            words = f"bridge {bridge!r} has {max(left, 0) // 1000} of its {whole} kB/s left to guarantee"
            refused[row.ifname] = OSError(errno.ENOSPC, f"{words}, and {rate // 1000} are asked for", "RTM_NEWTCLASS")
        else:
            fitting.append(row)
            left -= rate
    return refused, fitting


def _left(classes: dict[int, _Class]) -> int:
    """Of what the bridge sends, in bytes a second: what no floor has."""
    return classes[_ALL].rate - sum(
        one.rate for classid, one in classes.items() if one.parent == _ALL and classid != _REST
    )


def _on_each_bridge(rows: Sequence[NicRow], work: Callable[[str, Sequence[NicRow]], _Refused]) -> _Refused:
    """What one refuses is no matter of another's."""
    found: dict[str, list[NicRow]] = {}
    for row in rows:
        found.setdefault(_floor(row).bridge, []).append(row)
    refused: _Refused = {}
    for bridge, there in found.items():
        try:
            refused |= work(bridge, there)
        except OSError as error:
            refused |= {row.ifname: error for row in there}
    return refused


def _floor(row: NicRow) -> Floor:
    assert row.slow.floor, "it has none"
    return row.slow.floor


class _Lacking(OSError):
    """There is no such bridge, or it has no bandwidth of its own."""


def _error(code: int, call: str) -> OSError:
    return OSError(code, os.strerror(code), call)


# --- the tree --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tree_of(bridge: str) -> Iterator[_Tree]:
    """Raises _Lacking where the bridge has none such."""
    netlink = Netlink()
    try:
        tree = _Tree(netlink, bridge, _index_of(bridge, netlink))
        if not {_ALL, _REST} <= tree.classes().keys():
            words = f"bridge {bridge!r} has no bandwidth of its own to guarantee some of"
            raise _Lacking(errno.EOPNOTSUPP, words, "RTM_GETTCLASS")
        yield tree
    finally:
        netlink.close()


def _index_of(bridge: str, netlink: Netlink) -> int:
    request = ifreq(bridge)
    try:
        ioctl(netlink.fileno(), uapi.SIOCGIFINDEX, request, "SIOCGIFINDEX")
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        raise _Lacking(errno.ENODEV, f"no bridge {bridge!r}", "SIOCGIFINDEX") from None
    index: int = uapi.IFREQ_INDEX.unpack(request)[1]
    return index


class _Tree:
    """A bridge's, as the kernel has it."""

    def __init__(self, netlink: Netlink, bridge: str, ifindex: int) -> None:
        self.bridge = bridge
        self._netlink, self._ifindex = netlink, ifindex

    def classes(self) -> dict[int, _Class]:
        found = {}
        for body in listed(
            self._netlink, RTM_GETTCLASS, uapi.RTM_NEWTCLASS, uapi.TCMSG.pack(0, self._ifindex, 0, 0, 0)
        ):
            _, _, classid, parent, _ = uapi.TCMSG.unpack_from(body)
            options = dict(attributes(_said(body).get(uapi.TCA_OPTIONS, b"")))
            if len(options.get(uapi.TCA_HTB_PARMS, b"")) >= uapi.TC_HTB_OPT.size:
                found[classid] = _class_of(parent, options)
        return found

    def filters(self) -> list[_Filter]:
        """Ours."""
        asked = uapi.TCMSG.pack(0, self._ifindex, 0, _ROOT, _EVERY)
        found = []
        for body in listed(self._netlink, RTM_GETTFILTER, uapi.RTM_NEWTFILTER, asked):
            _, _, handle, _, info = uapi.TCMSG.unpack_from(body)
            options = dict(attributes(_said(body).get(uapi.TCA_OPTIONS, b"")))
            selector = options.get(uapi.TCA_U32_SEL, b"")
            if info >> 16 == PRIORITY and uapi.TCA_U32_CLASSID in options and len(selector) >= _SELECTED:
                (classid,) = struct.unpack_from("=I", options[uapi.TCA_U32_CLASSID])
                found.append(_Filter(handle, classid, _mac_of(selector)))
        return found

    def stale(self, macs: set[bytes]) -> list[_Filter]:
        """Ours of these guests, which are to have others, and of those whose TAP is gone: a crash has left them."""
        found = self.filters()
        if not found:
            return []
        asked = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        links = listed(self._netlink, uapi.RTM_GETLINK, uapi.RTM_NEWLINK, asked)
        taps = {dict(attributes(body[uapi.IFINFOMSG.size :])).get(uapi.IFLA_ADDRESS) for body in links}
        whole = not self._netlink.torn  # or a link that is there may be missing
        return [one for one in found if one.mac in macs or (whole and tap_mac(one.mac.hex(":")) not in taps)]

    def add(self, floors: Sequence[Floor]) -> list[tuple[int, str]]:
        """What became of each: an errno and the call, and nothing is left of it; or 0."""
        classes = self.classes()
        ceil = classes[_ALL].ceil
        free = (number for number in range(_FIRST_MINOR, 2, -1) if (1 << 16 | number) not in classes)
        ids = [1 << 16 | minor for minor, _ in zip(free, floors, strict=False)]
        for number, (classid, floor) in enumerate(zip(ids, floors, strict=True)):
            made = _Class(_ALL, floor.rate, ceil, floor.burst, least_ticks(ceil), floor.quantum)
            self._put_class(3 * number, _ADD, classid, made)
            self._put(3 * number + 1, uapi.RTM_NEWQDISC, _ADD, (0, classid, 0), b"sfq", sfq())
            leads = _leads(floor.guest_mac, classid)
            self._put(3 * number + 2, uapi.RTM_NEWTFILTER, _ADD, (0, _ROOT, _EVERY), b"u32", leads)
        codes = self._exchange()
        outcomes = [_outcome(codes[3 * number], codes[3 * number + 2]) for number in range(len(floors))]
        for number, (_, call) in enumerate(outcomes):
            if call == "RTM_NEWTFILTER":
                self._put(number, _RTM_DELTCLASS, 0, (ids[number], 0, 0))
        self._exchange()
        return outcomes

    def drop(self, found: Sequence[_Filter]) -> None:
        for first in range(0, len(found), _BATCH):
            self._drop(found[first : first + _BATCH])

    def _drop(self, found: Sequence[_Filter]) -> None:
        """In one send with what that leaves: whoever is killed has done all of it, or nothing."""
        left = self.classes()
        for number, one in enumerate(found):
            self._put(2 * number, _RTM_DELTFILTER, 0, (one.handle, _ROOT, _EVERY), b"u32")
            self._put(2 * number + 1, _RTM_DELTCLASS, 0, (one.classid, 0, 0))
            left.pop(one.classid, None)
        self._put_rest(2 * len(found), left)
        calls = ["RTM_DELTFILTER", "RTM_DELTCLASS"] * len(found) + ["RTM_NEWTCLASS"]
        for tag, code in self._exchange().items():
            if code not in (0, errno.ENOENT):
                raise _error(code, calls[tag])

    def settle(self) -> None:
        """Leave to what is nobody's what is left: by what there is now, whoever else has changed it meanwhile."""
        self._put_rest(0, self.classes())
        for code in filter(None, self._exchange().values()):
            raise _error(code, "RTM_NEWTCLASS")

    def _put_rest(self, tag: int, classes: dict[int, _Class]) -> None:
        if not {_ALL, _REST} <= classes.keys():
            return
        was, rate = classes[_REST], max(_LEAST_REST, _left(classes))
        if rate == was.rate:
            return
        # As many bytes as before: to the nearest, or it would be fewer each time.
        size = round(was.burst * TICK * was.rate / 10**9)
        burst = min(round(size * 10**9 / (rate * TICK)), 2**32 - 1)
        self._put_class(tag, 0, _REST, was._replace(rate=rate, burst=burst))

    def _put_class(self, tag: int, flags: int, classid: int, numbers: _Class) -> None:
        parent, *told = numbers
        self._put(tag, uapi.RTM_NEWTCLASS, flags, (classid, parent, 0), b"htb", htb_class(*told))

    def _put(
        self, tag: int, kind: int, flags: int, where: tuple[int, int, int], what: bytes = b"", options: bytes = b""
    ) -> None:
        """*where* is its handle, its parent, and of a filter its priority and protocol."""
        body = uapi.TCMSG.pack(socket.AF_UNSPEC, self._ifindex, *where)
        body += attribute(uapi.TCA_KIND, what + b"\0") if what else b""
        body += attribute(uapi.TCA_OPTIONS, options) if options else b""
        self._netlink.put(tag, kind, uapi.NLM_F_ACK | flags, body)

    def _exchange(self) -> dict[int, int]:
        """The errno that each was answered with."""
        codes: dict[int, int] = {}
        self._netlink.exchange(partial(take_ack, codes))
        return codes


_ADD: Final = uapi.NLM_F_CREATE | uapi.NLM_F_EXCL


def _outcome(of_class: int, of_filter: int) -> tuple[int, str]:
    """A kernel without SFQ leaves the class its FIFO: what it is guaranteed is the same."""
    if of_class:
        return of_class, "RTM_NEWTCLASS"
    return (of_filter, "RTM_NEWTFILTER") if of_filter else (0, "")


def _said(body: bytes) -> dict[int, bytes]:
    return dict(attributes(body[uapi.TCMSG.size :]))


def _class_of(parent: int, options: dict[int, bytes]) -> _Class:
    rate, ceil, *numbers = uapi.TC_HTB_OPT.unpack_from(options[uapi.TCA_HTB_PARMS])
    rates = [
        struct.unpack("=Q", options[kind])[0] if len(options.get(kind, b"")) == 8 else uapi.TC_RATESPEC.unpack(spec)[-1]
        for kind, spec in ((uapi.TCA_HTB_RATE64, rate), (uapi.TCA_HTB_CEIL64, ceil))
    ]
    return _Class(parent, *rates, *numbers)


# A frame's destination is before what the filter counts from; it looks at whole words.
_SELECTED: Final = uapi.TC_U32_SEL.size + 2 * _KEY.size


def _leads(mac: bytes, classid: int) -> bytes:
    keys = _KEY.pack(b"\xff" * 4, mac[2:], -12, 0) + _KEY.pack(b"\0\0\xff\xff", b"\0\0" + mac[:2], -16, 0)
    selector = uapi.TC_U32_SEL.pack(uapi.TC_U32_TERMINAL, 2) + keys
    return attribute(uapi.TCA_U32_CLASSID, struct.pack("=I", classid)) + attribute(uapi.TCA_U32_SEL, selector)


def _mac_of(selector: bytes) -> bytes:
    _, last, _, _ = _KEY.unpack_from(selector, uapi.TC_U32_SEL.size)
    _, first, _, _ = _KEY.unpack_from(selector, uapi.TC_U32_SEL.size + _KEY.size)
    return bytes(first[2:] + last)
