"""Taking NICs away, for the pure engine: many links in one round, and many fds side by side.

A link's last close() waits for the kernel's grace periods, 20 ms each time. Links that are in one group are
unregistered together: one round for all of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from vhostnet.engines import _uapi as uapi
from vhostnet.engines._calls import get_mac, ioctl, kernel_call, refusal
from vhostnet.engines._links import find_link
from vhostnet.engines._rtnetlink import NL_BATCH, Netlink, attribute, attributes, error_of, malformed, take_ack
from vhostnet.process.files import close_fd

DELETE_BATCH: Final = 128  # links of one group: RTNL is held until the last one is gone
_LIST_TRIES: Final = 8  # a listing is of no use when links come and go meanwhile
_CLOSERS: Final = 64


class Doomed:
    """One NIC that is to go: its fds, its ifindex (0 where it is not known yet), and what became of it."""

    def __init__(self, tap: list[int], vhost: list[int], ifindex: int, mark: str | None = None) -> None:
        """*mark* is a macvtap's."""
        self.tap = tap
        self.vhost = vhost
        self.ifindex = ifindex
        self.mark = mark
        self.error = 0
        self.call = ""
        self.gone = False  # it has no link any more

    @property
    def slow_taps(self) -> int:
        """How many wait: the last one of a TAP that has its link, and every one of a macvtap, dead or alive."""
        return not self.gone if self.mark is None else len(self.tap)

    @property
    def has_link(self) -> bool:
        return not self.error and not self.gone

    def refuse(self, error: OSError) -> None:
        self.error = error.errno or errno.EIO
        self.call = str(error.filename or "")


def close_fds(doomed: Sequence[Doomed]) -> None:
    """Close the fds of those without an error; those who wait for a grace period at the same time share one."""
    fds = [fd for d in doomed if not d.error for fd in (*reversed(d.vhost), *reversed(d.tap))]
    slow = sum(len(d.vhost) + d.slow_taps for d in doomed if not d.error)
    for d in doomed:
        if not d.error:
            d.tap.clear()
            d.vhost.clear()
    _close_all(fds, min(slow, _CLOSERS))


def _close_all(fds: Iterable[int], closers: int) -> None:
    """By so many threads with this one, or as many as are to be had."""
    waiting = deque(fds)

    def work() -> None:
        with contextlib.suppress(IndexError):
            while True:
                close_fd(waiting.popleft())

    started: list[threading.Thread] = []
    with contextlib.suppress(RuntimeError):
        while len(started) + 1 < closers:
            thread = threading.Thread(target=work, name="vhostnet-close")
            thread.start()
            started.append(thread)
    work()
    for thread in started:
        thread.join()


def delete_links(netlink: Netlink, doomed: Sequence[Doomed], *, held: bool) -> None:
    """Delete the links of at most DELETE_BATCH NICs.

    Those that have no error afterwards are gone; their fds are dead and still open. Nothing else has been
    touched. *held* NICs may be in another network namespace, those made just now cannot.
    """
    _claim_all(netlink, doomed, held)
    if not any(d.has_link for d in doomed):
        return
    try:
        _delete_group(netlink, doomed)
    except OSError as error:
        for d in doomed:
            if d.has_link:
                d.refuse(error)
    for d in doomed:
        d.gone = d.gone or not d.error
        if d.error and d.mark is not None:
            with contextlib.suppress(OSError):
                _delete_alone(netlink, d, held=held)


def _delete_alone(netlink: Netlink, d: Doomed, *, held: bool) -> None:
    """What the group could not have, and closing does not take away: by itself, and once more from the beginning."""
    if _claim_macvtap(netlink, d, held=held):
        answers: dict[int, int] = {}
        netlink.put(0, uapi.RTM_DELLINK, uapi.NLM_F_ACK, _link(d.ifindex))
        netlink.exchange(partial(take_ack, answers))
        if answers[0]:
            return
    d.error, d.gone = 0, True


def _claim_all(netlink: Netlink, doomed: Sequence[Doomed], held: bool) -> None:
    here: tuple[int, int] | OSError | None = None
    if held:
        try:
            here = netns_of(netlink.fileno(), uapi.SIOCGSKNS)
        except OSError as error:
            here = error
    for d in doomed:
        try:
            if isinstance(here, OSError):
                raise here
            there = d.tap if d.mark is None else d.ifindex
            d.gone = not there or not claim(netlink, d, here)
        except OSError as error:
            d.refuse(error)


def claim(netlink: Netlink, d: Doomed, here: tuple[int, int] | None) -> bool:
    """Proof that the ifindex is ours, in this namespace; False when it has no link any more.

    A TAP's by what holds it, a macvtap's by its mark.
    """
    if not d.ifindex:
        raise refusal(errno.ESTALE, "")  # it was not made to the end, and never proven: it can only be closed
    if d.mark is not None:
        return _claim_macvtap(netlink, d, held=here is not None)
    request = bytearray(uapi.IFREQ_INDEX.size)
    try:
        ioctl(d.tap[0], uapi.TUNGETIFF, request, "TUNGETIFF")
    except OSError as error:
        if error.errno == errno.EBADFD:
            return False
        raise
    if here and netns_of(d.tap[0], uapi.TUNGETDEVNETNS) != here:
        raise refusal(errno.EXDEV, "TUNGETDEVNETNS")
    ioctl(netlink.fileno(), uapi.SIOCGIFINDEX, request, "SIOCGIFINDEX")
    index = uapi.IFREQ_INDEX.unpack(request)[1]
    if d.ifindex != index:
        raise refusal(errno.ESTALE, "SIOCGIFINDEX")
    return True


def _claim_macvtap(netlink: Netlink, d: Doomed, *, held: bool) -> bool:
    """A macvtap is known by its mark: no fd tells the network namespace that it is in.

    One that was made just now may not have it yet; its ifindex was chosen such that it is no other's.
    """
    link = find_link(netlink, d.ifindex)
    if link and link.kind == "macvtap" and (not held or link.alias == d.mark):
        return True
    if d.tap and _is_alive(d.tap[0]):
        raise refusal(errno.EXDEV, "RTM_GETLINK")
    return False


def _is_alive(tap: int) -> bool:
    """A macvtap's queue whose link is there, wherever that is."""
    try:
        get_mac(tap)
    except OSError as error:
        return error.errno != errno.ENOLINK
    return True


def netns_of(fd: int, request: int) -> tuple[int, int]:
    """The network namespace of a socket (SIOCGSKNS) or a TAP (TUNGETDEVNETNS), to compare with another."""
    netns = ioctl(fd, request, 0, "TUNGETDEVNETNS")
    try:
        with kernel_call("TUNGETDEVNETNS"):
            status = os.fstat(netns)
    finally:
        close_fd(netns)
    return status.st_dev, status.st_ino


def _delete_group(netlink: Netlink, doomed: Sequence[Doomed]) -> None:
    """One RCU round for all of them."""
    # 0 is where every link is at first.
    group = struct.pack("=I", int.from_bytes(os.urandom(4), "little") & 0x3FFFFFFF | 0x40000000)
    _set_group(netlink, doomed, group)
    _check_group(netlink, doomed, group)
    netlink.put(0, uapi.RTM_DELLINK, uapi.NLM_F_ACK, _link(0) + attribute(uapi.IFLA_GROUP, group))
    answers: dict[int, int] = {}
    netlink.exchange(partial(take_ack, answers))
    if answers[0]:
        raise refusal(answers[0], "RTM_DELLINK")


def _link(ifindex: int) -> bytes:
    return uapi.IFINFOMSG.pack(0, 0, ifindex, 0, 0)


def _set_group(netlink: Netlink, doomed: Sequence[Doomed], group: bytes) -> None:
    """Put every link into the group; those that refuse have their error."""
    answers: dict[int, int] = {}
    for number, d in enumerate(doomed):
        if d.has_link:
            body = _link(d.ifindex) + attribute(uapi.IFLA_GROUP, group)
            netlink.put(number, uapi.RTM_NEWLINK, uapi.NLM_F_ACK, body)
        if netlink.queued == NL_BATCH or (netlink.queued and number + 1 == len(doomed)):
            netlink.exchange(partial(take_ack, answers))
    for number, code in answers.items():
        if code:
            doomed[number].refuse(refusal(code, "RTM_NEWLINK"))


def _take_listed(members: list[int], group: bytes, tag: int, kind: int, body: bytes) -> int:  # noqa: ARG001
    if kind == uapi.NLMSG_DONE:
        return 1
    if kind == uapi.NLMSG_ERROR:
        code = error_of(body) or errno.EBADMSG
        raise OSError(code, os.strerror(code))
    if kind == uapi.RTM_NEWLINK:
        if len(body) < uapi.IFINFOMSG.size:
            raise malformed()
        if dict(attributes(body[uapi.IFINFOMSG.size :])).get(uapi.IFLA_GROUP) == group:
            members.append(uapi.IFINFOMSG.unpack_from(body)[2])
    return 0


def _check_group(netlink: Netlink, doomed: Sequence[Doomed], group: bytes) -> None:
    """That the group holds what is to go, all of it and nothing else; whatever is in it dies."""
    body = _link(0) + attribute(uapi.IFLA_EXT_MASK, struct.pack("=I", uapi.RTEXT_FILTER_SKIP_STATS))
    for _ in range(_LIST_TRIES):
        members: list[int] = []
        netlink.put(0, uapi.RTM_GETLINK, uapi.NLM_F_DUMP, body)
        netlink.exchange(partial(_take_listed, members, group))
        if not netlink.torn:
            break
    if netlink.torn or sorted(members) != sorted(d.ifindex for d in doomed if d.has_link):
        raise refusal(errno.ESTALE, "RTM_GETLINK")
