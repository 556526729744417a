"""How NICs go, once their owners have given them up: one as its fds are closed, many as their links are deleted.

The kernel waits for grace periods when a link goes, 20 ms for each that is closed by itself. Links of one group are
unregistered together, so those that are to go are put into a group of their own, and the group is deleted.
"""

import errno
import fcntl
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from vhostnet import slow
from vhostnet.engines import Engine, _uapi
from vhostnet.errors import HostError
from vhostnet.events import close, told
from vhostnet.process.files import close_fd, close_fds
from vhostnet.process.netns import Home, NetNs, call_inside
from vhostnet.program.parts import Fds, NicRow
from vhostnet.program.plan import plan_delete


class Surrendered(NamedTuple):
    """A NIC that is to go, with the engine to do it; and where it is, of a macvtap, to be released."""

    engine: Engine
    row: NicRow
    home: Home | None


def close_one(given: Surrendered) -> None:
    """Close its fds: a TAP goes with the last one, whoever has it. A macvtap is deleted."""
    engine, row, home = given
    if home is None:
        slow.end(engine, [row])
        close(engine, [row], [_queues_of(row)])
    else:
        _delete_macvtaps(engine, [row], home)
        home.release()


def delete_all(doomed: Sequence[Surrendered]) -> None:
    """Take them away from whoever has their fds, too; those that are to stay stay."""
    by_engine: defaultdict[tuple[Engine, Home | None], list[NicRow]] = defaultdict(list)
    for engine, row, home in doomed:
        by_engine[engine, home].append(row)
    for (engine, home), rows in by_engine.items():
        if home is None:
            _delete_taps(engine, rows)
        else:
            _delete_macvtaps(engine, rows, home)
    _release_homes(doomed)


def leave_all(doomed: Sequence[Surrendered]) -> None:
    """In a forked child: its copies of their fds go, and no NIC does."""
    for _, row, _ in doomed:
        close_here(row.fds)
    _release_homes(doomed)


def close_here(fds: Fds) -> None:
    """Close the fds one after the other: in a forked child, where no close() is the last one."""
    close_fds((*fds.vhost, *fds.tap))


def _release_homes(doomed: Sequence[Surrendered]) -> None:
    """Each has held where it was made."""
    for _, _, home in doomed:
        if home:
            home.release()


def _delete_taps(engine: Engine, rows: Sequence[NicRow]) -> None:
    """In this thread's network namespace what is here, then in that of the first of the others, and so on."""
    slow.end(engine, rows)
    staying = [row for row in rows if row.adopted]
    close(engine, staying, [_queues_of(row) for row in staying])
    elsewhere = _delete_in(None, engine, [row for row in rows if not row.adopted])
    while elsewhere:
        first, *others = elsewhere
        try:
            netns = fcntl.ioctl(first.fds.tap[0], _uapi.TUNGETDEVNETNS)
        except OSError:
            close(engine, [first], [first.fds])
            elsewhere = others
            continue
        try:
            left = _delete_in(netns, engine, elsewhere)
        finally:
            close_fd(netns)
        if first in left:  # it was moved on meanwhile
            close(engine, [first], [first.fds])
        elsewhere = [row for row in left if row is not first]


def _delete_in(netns: NetNs | None, engine: Engine, rows: Sequence[NicRow]) -> list[NicRow]:
    """Those that are in another namespace; everything else is gone."""
    if not rows:
        return []
    program = plan_delete(rows)
    try:
        result = call_inside(netns, told, engine, program, engine.run)
    except HostError:  # no way into that namespace
        close(engine, rows, [row.fds for row in rows])
        return []
    refused = [(rows[program.acts[failure.act].nic], failure.result.errno) for failure in result.failures]
    if len(refused) < sum(nic is None for nic in result.nics):  # the run did not get as far as its acts
        refused = [(row, errno.EIO) for row in rows]
    there = [row for row, code in refused if code != errno.EXDEV]
    close(engine, there, [row.fds for row in there])
    return [row for row, code in refused if code == errno.EXDEV]


def _delete_macvtaps(engine: Engine, rows: Sequence[NicRow], home: Home) -> None:
    """Where they were made, in one round, with their fds; of those that are to stay the fds go."""
    refused = _delete_at(engine, [row for row in rows if not row.adopted], home)
    left = [row for row in rows if row.adopted or row in refused]
    close(engine, left, [_queues_of(row) for row in left])
    _delete_at(engine, [row._replace(held=Fds((), ())) for row in refused], home)  # now that fds are to be had


def _delete_at(engine: Engine, rows: Sequence[NicRow], home: Home) -> list[NicRow]:
    """Those that could not be deleted."""
    if not rows:
        return []
    program = plan_delete(rows)
    try:
        result = home.call(told, engine, program, engine.run)
    except OSError:  # no way to there
        return list(rows)
    return [row for row, nic in zip(rows, result.nics or [None] * len(rows), strict=True) if nic is None]


def _queues_of(row: NicRow) -> Fds:
    """Its fds as they are to be closed: each of a macvtap's waits for a grace period of its own, as vhost-net's do."""
    return Fds((), row.fds.tap + row.fds.vhost) if row.macvtap else row.fds
