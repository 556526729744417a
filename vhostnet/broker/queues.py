"""A NIC that is a client's, by one of its queues: who has an fd of it, and is whom it was made for, may change it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from vhostnet.engines import Engine, NicResult, Result, get_mac, get_name, open_vhost
from vhostnet.errors import HostError, NotPermitted, SpecError, host_error
from vhostnet.host.marks import read_mark
from vhostnet.host.nic import Nic, Run
from vhostnet.host.reasons import describe
from vhostnet.others.holders import TUN
from vhostnet.process.files import close_fd, copy_fds
from vhostnet.program.parts import Fds, Link, Op, held_row
from vhostnet.program.program import Program
from vhostnet.program.rows import slow_of
from vhostnet.spec.interface import InterfaceSpec


def nic_of(engine: Engine, fd: int, uid: int, spec: InterfaceSpec | None, *, up: bool = True) -> Nic:
    """That NIC, by a copy of the fd: *spec* is what it is said to be, None where that does not matter.

    Raises NotPermitted where it was not made for *uid*, or is not here; SpecError for an fd of anything else. Root's
    are all.
    """
    link = _link(engine, fd)
    mark = read_mark(link.alias)
    if mark is None or mark.uid is None or uid not in (0, mark.uid):
        problem = f"it was not made by a broker for uid {uid}"
        raise _not_yours(problem, link.name)
    spec = spec or InterfaceSpec(type="ethernet", vhost="off")
    held = Fds(copy_fds([fd]), ())
    row = held_row(link.name, link.ifindex, held, link.alias, slow=slow_of(spec, link.name))
    row = row._replace(mtu=link.mtu, up=up)
    return Nic(spec, engine, Run(Program((row,), ()), Result((NicResult(row.ifindex, row.mtu, held),), ()), 0))


def _link(engine: Engine, fd: int) -> Link:
    """By name, and by the MAC that the TAP says it has: another of that name is in another network namespace."""
    try:
        if os.fstat(fd).st_rdev != TUN:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        name, mac = get_name(fd), get_mac(fd)
    except OSError as error:
        raise SpecError(f"is no queue of a TAP: {error.strerror}", attribute="fd") from None
    link = describe(engine, [name]).get(name)
    if link is None or link.mac != mac:
        raise _not_yours("it is not here: the broker's network namespace is another", name)
    return link


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
