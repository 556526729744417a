"""Somebody looks at a NIC's MAC once more when udev is done with it, without anybody waiting.

udev reads once whether a new link's MAC is the kernel's random one, and sets another some 100 us later. A MAC of ours
is set before it looks, as a rule, and is looked at when the run ends. What is left is a worker of udev's that has read
before our first MAC and is held up until after that: here one thread looks again, when udev's rules have run.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from vhostnet.engines import keep_mac
from vhostnet.others import udev
from vhostnet.program.parts import Fds

_TICK: Final = 0.002  # seconds between looks, at the least
_PATIENCE: Final = 180.0  # seconds until udev kills a worker of its own, and is done with a link in any case


class Settling:
    """Who looks at a NIC's MAC when udev is done with it. It shares the NIC's fds and does not keep it alive."""

    def __init__(
        self, ifindex: int, mac: bytes, lock: contextlib.AbstractContextManager[Any], owned: Sequence[Fds], born: float
    ) -> None:
        """Whoever has *lock* uses the fds that are *owned*: none once the NIC is closed."""
        self.born: Final = born  # the time (time.time()) before the NIC was made
        self._ifindex = ifindex
        self._mac = mac
        self._lock, self._owned = lock, owned
        self._over = False

    def look_again(self) -> bool:
        """True when that is over: udev is done and the MAC is right, or the NIC is closed."""
        if self._over or not self._owned:
            return True
        if not udev.is_done(self._ifindex, self.born):
            return False
        with self._lock, contextlib.suppress(IndexError, OSError):  # closed meanwhile, or the TAP is gone
            keep_mac(self._owned[0].tap[0], self._mac)
        self._over = True
        return True


class _Watch:
    """The NICs that are looked at, and the one thread that does it while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[Settling, float]] = []  # since when
        self._working = False

    def add(self, nics: Iterable[Settling]) -> None:
        since = time.monotonic()
        with self._lock:
            self._waiting += [(nic, since) for nic in nics]
            idle, self._working = not self._working, True
        if not idle:
            return
        try:
            # A daemon: with the process go its NICs.
            threading.Thread(target=self._work, name="vhostnet-udev", daemon=True).start()
        except RuntimeError:  # no thread is to be had; the next one may be
            self._working = False

    def _work(self) -> None:
        started = time.thread_time()
        while self._look():
            took = time.thread_time() - started
            time.sleep(max(_TICK, 10 * took, (time.monotonic() - self._youngest()) / 100))
            started = time.thread_time()

    def _youngest(self) -> float:
        with self._lock:
            return max((since for _, since in self._waiting), default=0.0)

    def _look(self) -> bool:
        """False when there are none left."""
        with self._lock:
            looked_at = list(self._waiting)
        left = [entry for entry in looked_at if not _is_over(*entry)]
        with self._lock:
            self._waiting[: len(looked_at)] = left  # what has come since stands behind them
            self._working = bool(self._waiting)
            return self._working

    def forget(self) -> None:
        """In a forked child, which has neither the thread nor the NICs."""
        self.__init__()  # type: ignore[misc]


def _is_over(nic: Settling, since: float) -> bool:
    return nic.look_again() or time.monotonic() > since + _PATIENCE


_watch = _Watch()
watch: Final = _watch.add
os.register_at_fork(after_in_child=_watch.forget)
