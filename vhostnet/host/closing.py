"""Taking many NICs away in one round, now or in the background.

The kernel waits for grace periods when a link goes, 20 ms for each that is closed by itself. Links of one group are
unregistered together, so those that are to go are put into a group of their own, and the group is deleted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from vhostnet import slow
from vhostnet.engines import Engine, _uapi
from vhostnet.errors import HostError
from vhostnet.events import close, told
from vhostnet.host.nic import Nic, Surrendered, close_here, delete_macvtaps, queues_of
from vhostnet.process.files import close_fd
from vhostnet.process.forks import under_way
from vhostnet.process.netns import Home, NetNs, call_inside
from vhostnet.program.parts import NicRow
from vhostnet.program.plan import plan_delete

Doomed = list[Surrendered]


def close_nics(nics: Iterable[Nic], *, wait: bool = True) -> None:
    """Delete all these NICs and close their fds, in rounds of 128: 0.5 ms a NIC, not the 20 ms of ``close()``.

    For NICs whose VM is gone: unlike ``close()``, which lets a NIC live on in whoever else has its fds, this takes it
    away from a QEMU that still runs. Those that are closed already are passed over. What cannot be deleted so
    (somebody has put another link into the group, or the TAP is not where it was) is closed by threads side by side.

    With *wait* False it returns at once, and one thread in the background deletes whatever has gathered; the
    process's end waits for it, and so does open_nics() for the names it asks for. NICs of other network namespaces are
    deleted there.
    """
    with under_way:
        nics = list(nics)
        doomed = [given for nic in nics if (given := nic.surrender())]
        if wait:
            _delete(doomed)
        else:
            _background.add(doomed, _names_of(nics))


def close_later(nics: Sequence[Nic], then: Callable[[], None]) -> None:
    """As close_nics() without *wait*; when they are gone the thread in the background calls *then*."""
    with under_way:
        doomed = [given for nic in nics if (given := nic.surrender())]
        _background.add(doomed, _names_of(nics), then)


def _names_of(nics: Iterable[Nic]) -> set[str]:
    return {name for nic in nics for name in (nic.ifname, nic.spec.ifname) if name}


def await_names(names: Iterable[str]) -> None:
    """Return when none of these is the name of a NIC that close_nics() is deleting in the background."""
    _background.await_names(names)


def _delete(doomed: Doomed) -> None:
    by_engine: defaultdict[tuple[Engine, Home | None], list[NicRow]] = defaultdict(list)
    for engine, row, home in doomed:
        by_engine[engine, home].append(row)
    for (engine, home), rows in by_engine.items():
        if home is None:
            _delete_by(engine, rows)
        else:
            delete_macvtaps(engine, rows, home)
    _release_homes(doomed)


def _delete_by(engine: Engine, rows: Sequence[NicRow]) -> None:
    """In this thread's network namespace what is here, then in that of the first of the others, and so on."""
    slow.end(engine, rows)
    staying = [row for row in rows if row.adopted]
    close(engine, staying, [queues_of(row) for row in staying])
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


def _release_homes(doomed: Doomed) -> None:
    """Each has held where it was made."""
    for _, _, home in doomed:
        if home:
            home.release()


class _Background:
    """Whatever is to be deleted without anybody waiting, and the one thread that does it while there is any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gathered: Doomed = []
        self._working = False
        # Of those that are gathered, and of those that are being deleted; with the names that were wished for.
        self._names: set[str] = set()
        self._then: list[Callable[[], None]] = []  # what is to be called when they are gone
        self._leaving: set[str] = set()
        self._deleted = threading.Condition(self._lock)

    def add(self, doomed: Doomed, names: set[str], then: Callable[[], None] | None = None) -> None:
        with self._lock:
            self._gathered += doomed
            self._names |= names
            self._then += [then] if then else []
            idle = not self._working and bool(self._gathered or self._then)
            self._working = self._working or idle
        if idle:
            self._start()

    def _start(self) -> None:
        try:
            # Not a daemon: the process's end waits for it.
            threading.Thread(target=self._work, name="vhostnet-close").start()
        except RuntimeError:  # no thread is to be had, as at the interpreter's end
            self._work()

    def _work(self) -> None:
        while self._delete_gathered():
            pass

    def await_names(self, names: Iterable[str]) -> None:
        with self._deleted:
            self._deleted.wait_for(lambda: (self._names | self._leaving).isdisjoint(names))

    def _delete_gathered(self) -> bool:
        """False when there was nothing."""
        with under_way:
            with self._lock:
                doomed, self._gathered = self._gathered, []
                self._leaving, self._names = self._names, set()
                then, self._then = self._then, []
                self._working = bool(doomed or then)
            try:
                _delete(doomed)
            finally:
                with self._deleted:
                    self._leaving = set()
                    self._deleted.notify_all()
            for call in then:
                call()
            return bool(doomed or then)

    def forget(self) -> None:
        """In a forked child, which has neither the thread nor the NICs: its copies of the fds go."""
        doomed = self._gathered
        self.__init__()  # type: ignore[misc]
        for _, row, _ in doomed:
            close_here(row.fds)
        _release_homes(doomed)


_background = _Background()
os.register_at_fork(after_in_child=lambda: _background.forget())
