"""A fork waits for what is under way.

Between the kernel's open() and the Nic that will own the fd, and between a Nic that is closed and the kernel's close(),
the fds are nobody's that a forked child could ask. It would have copies of them for as long as it lives, and the NIC
would live as long. So threads that are there say so, and a fork waits for them. Nor is it a place for code of others:
calls of that wait, too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

PATIENCE: Final = 10.0  # seconds a fork waits at the most: nobody knows how long others hold RTNL


class _UnderWay:
    """``with under_way:`` around what no fork may come between. A thread may enter it again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: list[int] = []
        self._forking: list[int] = []
        self._aside: dict[int, int] = {}  # a thread that works for another, which waits for it
        self._calls: dict[int, list[Callable[[], object]]] = {}  # that wait, by the thread that will make them
        self._calling: set[int] = set()

    def __enter__(self) -> None:
        me = threading.get_ident()
        self._inside.append(me)  # and then the look: whoever forks does it the other way round
        if self._forking:
            self._give_way(me)

    def _give_way(self, me: int) -> None:
        """Those a fork waits for, and the one that forks (it may run a destructor), must not wait for it."""
        self._inside.remove(me)
        with self._changed:
            self._changed.notify_all()
            while self._forking and me not in self._forking and me not in self._inside:
                self._changed.wait()
            self._inside.append(me)

    def __exit__(self, *failure: object) -> None:
        me = threading.get_ident()
        self._inside.remove(me)
        if self._forking:
            with self._changed:
                self._changed.notify_all()
        if self._calls:
            self._make_calls(me)

    def afterwards(self, call: Callable[[], object]) -> None:
        """*call* is made when this thread, or the one that it works for, has nothing under way any more; now, where
        that is so.
        """
        me = threading.get_ident()
        maker = self._aside.get(me, me)
        self._calls.setdefault(maker, []).append(call)
        if maker == me:
            self._make_calls(me)

    @contextmanager
    def aside(self, asking: int) -> Iterator[None]:
        """This thread works for thread *asking*, which waits for it, and whose the calls are that it leaves."""
        me = threading.get_ident()
        self._aside[me] = self._aside.get(asking, asking)
        try:
            yield
        finally:
            del self._aside[me]

    def back(self) -> None:
        """The thread that worked for this one has ended."""
        if self._calls:
            self._make_calls(threading.get_ident())

    def _make_calls(self, me: int) -> None:
        """Those that come of a call are made after it: it may hold locks of its own."""
        if me in self._inside or me in self._calling:
            return
        self._calling.add(me)
        try:
            while calls := self._calls.pop(me, None):
                for call in calls:
                    call()
        finally:
            self._calling.discard(me)

    def before_fork(self) -> None:
        """Returns with the lock, so that nobody enters until the fork is done."""
        me = threading.get_ident()
        self._changed.acquire()
        self._forking.append(me)
        self._changed.wait_for(lambda: all(thread == me for thread in self._inside), PATIENCE)

    def after_fork(self) -> None:
        self._forking.remove(threading.get_ident())
        self._changed.notify_all()
        self._changed.release()

    def after_fork_in_child(self) -> None:
        self.__init__()  # type: ignore[misc]


under_way: Final = _UnderWay()
os.register_at_fork(
    before=under_way.before_fork,
    after_in_parent=under_way.after_fork,
    after_in_child=under_way.after_fork_in_child,
)
