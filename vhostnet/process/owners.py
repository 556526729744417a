"""Who owns fds.

A forked child does not: there they are the parent's, and the child's copies go. At the process's end what would outlive
them ends.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from collections.abc import Iterator
from typing import Final, Protocol


class Owner(Protocol):
    """It has fds that are this process's."""

    def leave_to_parent(self) -> None:
        """In a forked child: its copies of the fds go. A thread that is not there may have had a lock."""

    def leave_nothing(self) -> None:
        """At the process's end: what would outlive the fds ends, and its user is told that it was left open."""


_living: Final[dict[int, weakref.ref[Owner]]] = {}  # those that own fds, by id()


def own(owner: Owner) -> None:
    """It is asked to leave them in a forked child, and nothing at the process's end, for as long as it lives."""
    _living[id(owner)] = weakref.ref(owner)


def disown(owner: Owner) -> None:
    """It owns none any more. Idempotent."""
    _living.pop(id(owner), None)


def _after_fork_in_child() -> None:
    """A child must not keep the parent's NICs alive, unless it is on its way to exec with the fds it was given."""
    if _in_popen():
        return
    for owner in _owners():
        owner.leave_to_parent()


@atexit.register
def _at_exit() -> None:
    """While Python is whole: a destructor that runs later can import nothing, and some of what is to end takes that."""
    for owner in _owners():
        try:
            owner.leave_nothing()
        except Exception:  # the others' turn comes all the same
            sys.excepthook(*sys.exc_info())


def _owners() -> Iterator[Owner]:
    return (owner for living in list(_living.values()) if (owner := living()))


def _in_popen() -> bool:
    """subprocess runs the fork handlers in the child of a Popen that has a preexec_fn."""
    popen = sys.modules.get("subprocess")
    code = popen.Popen._execute_child.__code__ if popen else None
    frame = sys._getframe()
    while frame.f_back and frame.f_code is not code:
        frame = frame.f_back
    return frame.f_code is code


os.register_at_fork(after_in_child=_after_fork_in_child)
