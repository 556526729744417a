"""A NIC that is a client's, by one of its queues: who has an fd of it, and is whom it was made for, may change it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Final

from vhostnet.engines import Engine, NicResult, Result, get_mac, get_name, open_vhost, runs_of
from vhostnet.errors import HostError, NotPermitted, SpecError, host_error
from vhostnet.host.marks import read_mark
from vhostnet.host.nic import Nic
from vhostnet.host.reasons import describe
from vhostnet.others.holders import TUN
from vhostnet.process.files import close_fd, copy_fds
from vhostnet.program.parts import Fds, Link, NicRow, Op, held_row
from vhostnet.program.program import Program
from vhostnet.program.rows import slow_of
from vhostnet.spec.interface import InterfaceSpec


def nic_of(engine: Engine, fd: int, uid: int, spec: InterfaceSpec, *, up: bool = True) -> Nic:
    """That NIC, by a copy of the fd: *spec* is what it is said to be. As nics_of()."""
    return nics_of(engine, [fd], uid, [spec], up=up)[0]


def nics_of(
    engine: Engine, fds: Sequence[int], uid: int, specs: Sequence[InterfaceSpec | None], *, up: bool = True
) -> list[Nic]:
    """Those NICs, each by a copy of its fd; None is for one of which nothing need be known. All or none.

    Raises NotPermitted for one that was not made for *uid*, or is not here; SpecError for an fd of anything else.
    Root's are all.
    """
    found = [_who_is(fd) for fd in fds]
    links = describe(engine, [name for name, _ in found])
    for name, mac in found:
        _check_link(links.get(name), name, mac, uid)
    copies = copy_fds(fds)
    rows = [
        held_row(name, links[name].ifindex, Fds((fd,), ()), links[name].alias)._replace(mtu=links[name].mtu, up=up)
        for (name, _), fd in zip(found, copies, strict=True)
    ]
    return [_nic(engine, row, spec or _ANY) for row, spec in zip(rows, specs, strict=True)]


_ANY: Final = InterfaceSpec(type="ethernet", vhost="off")


def _nic(engine: Engine, row: NicRow, spec: InterfaceSpec) -> Nic:
    row = row._replace(slow=slow_of(spec, row.ifname))
    result = Result((NicResult(row.ifindex, row.mtu, row.fds),), ())
    return Nic(spec, engine, *runs_of(Program((row,), ()), result))


def _who_is(fd: int) -> tuple[str, bytes]:
    """By name, and by the MAC that the TAP says it has."""
    try:
        if os.fstat(fd).st_rdev != TUN:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return get_name(fd), get_mac(fd)
    except OSError as error:
        raise SpecError(f"is no queue of a TAP: {error.strerror}", attribute="fd") from None


def _check_link(link: Link | None, name: str, mac: bytes, uid: int) -> None:
    """Another of that name may be here; its MAC is another."""
    if link is None or link.mac != mac:
        raise _not_yours("it is not here: the broker's network namespace is another", name)
    mark = read_mark(link.alias)
    if mark is None or mark.uid is None or uid not in (0, mark.uid):
        raise _not_yours(f"it was not made by a broker for uid {uid}", name)


def _not_yours(problem: str, name: str) -> HostError:
    remedy = "ask whoever made it"
    return NotPermitted(errno.EPERM, problem, act="POLICY", ifname=name, remedy=remedy)


def open_vhosts(path: str, count: int) -> Sequence[int]:
    """So many vhost-net fds, all or none, the caller's. Raises HostError."""
    fds: list[int] = []
    try:
        for _ in range(count):
            fds.append(open_vhost(path))  # noqa: PERF401
    except OSError as error:
        for fd in fds:
            close_fd(fd)
        call = str(error.filename or "open")
        raise host_error(
            error.errno or 0, act=Op.VHOST_OPEN.name, call=call, ifname=None, queue=len(fds), subject=path
        ) from None
    return fds
