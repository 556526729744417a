"""Taking many NICs away in one round, now or in the background."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence

from vhostnet.host.nic import Nic
from vhostnet.process.forks import under_way
from vhostnet.removal import Surrendered, delete_all, leave_all

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
            delete_all(doomed)
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
                delete_all(doomed)
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
        leave_all(doomed)


_background = _Background()
os.register_at_fork(after_in_child=lambda: _background.forget())
