"""Somebody looks at a NIC's MAC once more when udev is done with it, without anybody waiting.

udev reads once whether a new link's MAC is the kernel's random one, and sets another some 100 us later. A MAC of ours
is set before it looks, as a rule, and is looked at when the run ends. What is left is a worker of udev's that has read
before our first MAC and is held up until after that: here one thread looks again, when udev's rules have run.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterable
from typing import Final, Protocol

_FIRST: Final = 0.004  # seconds between looks, at first
_SLOWEST: Final = 0.25
_PATIENCE: Final = 180.0  # seconds until udev kills a worker of its own, and is done with a link in any case


class Settling(Protocol):
    """A NIC that udev may not be done with."""

    def look_again(self) -> bool:
        """True when that is over: udev is done and the MAC is right, or the NIC is closed."""


class _Watch:
    """The NICs that are looked at, and the one thread that does it while there are any. It keeps none alive."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[weakref.ref[Settling], float]] = []  # until when
        self._working = False

    def add(self, nics: Iterable[Settling]) -> None:
        until = time.monotonic() + _PATIENCE
        with self._lock:
            self._waiting += [(weakref.ref(nic), until) for nic in nics]
            idle, self._working = not self._working, True
        if not idle:
            return
        try:
            # A daemon: with the process go its NICs.
            threading.Thread(target=self._work, name="vhostnet-udev", daemon=True).start()
        except RuntimeError:  # no thread is to be had; the next one may be
            self._working = False

    def _work(self) -> None:
        pause = _FIRST
        while self._look():
            time.sleep(pause)
            pause = min(pause * 1.5, _SLOWEST)

    def _look(self) -> bool:
        """False when there are none left."""
        with self._lock:
            looked_at = list(self._waiting)
        over = {entry for entry in looked_at if _is_over(*entry)}
        with self._lock:
            self._waiting = [entry for entry in self._waiting if entry not in over]
            self._working = bool(self._waiting)
            return self._working

    def forget(self) -> None:
        """In a forked child, which has neither the thread nor the NICs."""
        self.__init__()  # type: ignore[misc]


def _is_over(reference: weakref.ref[Settling], until: float) -> bool:
    nic = reference()
    return nic is None or nic.look_again() or time.monotonic() > until


_watch = _Watch()
watch: Final = _watch.add
os.register_at_fork(after_in_child=_watch.forget)
