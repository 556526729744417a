"""What a NIC would leave behind ends before the NIC does, in the network namespace that it is in."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from functools import partial

from vhostnet.engines import Engine
from vhostnet.engines._uapi import TUNGETDEVNETNS
from vhostnet.errors import HostError
from vhostnet.events import told
from vhostnet.process.files import close_fd
from vhostnet.process.netns import call_inside
from vhostnet.program.parts import NicRow
from vhostnet.program.plan import plan_end
from vhostnet.slow.executor import execute


def end_all(engine: Engine, rows: Sequence[NicRow]) -> None:
    """As slow.end()."""
    with contextlib.ExitStack() as stack:
        for netns, there in _by_netns(rows, stack):
            program = plan_end(there)
            try:
                result = call_inside(netns, told, engine, program, partial(execute, engine))
            except HostError as error:  # no way into that namespace
                _log(", ".join(row.ifname for row in there), error)
                continue
            for act, outcome in zip(program.acts, result.acts, strict=True):
                if outcome.errno:
                    _log(f"{act.op.name} ({outcome.call}) of {there[act.nic].ifname}", outcome.said)


def _by_netns(rows: Sequence[NicRow], stack: contextlib.ExitStack) -> Iterator[tuple[int | None, list[NicRow]]]:
    """An fd of each network namespace, None for this thread's, and the NICs that are there; or were, and are gone."""
    here = os.stat("/proc/thread-self/ns/net").st_ino
    found: dict[int, tuple[int | None, list[NicRow]]] = {}
    for row in rows:
        netns, inode = None, here
        with contextlib.suppress(OSError, IndexError):
            netns = fcntl.ioctl(row.fds.tap[0], TUNGETDEVNETNS)
            stack.callback(close_fd, netns)
            inode = os.fstat(netns).st_ino
        found.setdefault(inode, (None if inode == here else netns, []))[1].append(row)
    yield from found.values()


def _log(what: str, why: object) -> None:
    import logging  # takes longer to import than this package

    logging.getLogger("vhostnet").warning("%s: %s", what, why)
