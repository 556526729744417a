"""Whoever asked hears of every finished run: what was to be done, what became of it, when, and how long it took.

Where nobody listens that is one look at an empty list a run. A listener is called when the work is over that the run
was part of: by the caller's thread, in its network namespace, with no lock of ours held, and with every fd owned. So
whatever it does or raises, no NIC is the worse for it.
"""

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import NamedTuple

from vhostnet.engines import Engine, NicResult, Result
from vhostnet.process.forks import under_way
from vhostnet.program.parts import Fds, NicRow
from vhostnet.program.program import Program
from vhostnet.values import dataclass, replace


class DoneAct(NamedTuple):
    """One act that a run came to: on which NIC, when it began (nanoseconds since the epoch), how long it took.

    ``errno`` is 0, or why it was refused; then ``call`` is the kernel call that said so (or what of a slow act), and
    ``said`` its words, if any. One that is ``optional`` may be: the NIC is there without it.
    """

    act: str
    ifname: str
    errno: int
    call: str
    queue: int | None
    said: str
    optional: bool
    started: int
    ns: int

    @property
    def refused(self) -> bool:
        """By the host. EXDEV is no refusal: the NIC is in another network namespace, and the next run is there."""
        return self.errno not in (0, errno.EXDEV)


@dataclass(frozen=True)
class Event:
    """A run that is over: its Program and its Result, the engine's name, when it began and how long it took.

    ``started`` is in nanoseconds since the epoch, ``ns`` by the monotonic clock. A Program without acts is a
    ``close()``: the fds of its NICs are closed, and whoever else has them open still has the NIC.
    """

    program: Program
    result: Result
    engine: str
    started: int
    ns: int

    @property
    def acts(self) -> Iterator[DoneAct]:
        """What was done, in order, up to what was refused; of a NIC that others go on without, up to that.

        Acts follow one another from the start: how long each took is measured, when it began is the sum of those
        before.
        """
        began = self.started
        for (op, nic, optional, _), (code, call, queue, ns, said) in zip(
            self.program.acts, self.result.acts, strict=True
        ):
            if code != errno.ECANCELED and (code or ns):  # else the run did not get there
                name = self.program.nics[nic].ifname
                yield DoneAct(op.name, name, code, call, queue, said, optional, began, ns)
                began += ns

    @property
    def failure(self) -> DoneAct | None:
        """The first act that was refused, and had to be done; None where all went well."""
        if not self.result.failures:
            return None
        return next((act for act in self.acts if act.refused and not act.optional), None)


Listener = Callable[[Event], object]


class Listening:
    """That a listener is called. As a context manager, or with close(), for so long; else until the process ends."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        _listening.append(self)

    def close(self) -> None:
        """The listener is called no more, once what is being said now has been said. Idempotent."""
        with contextlib.suppress(ValueError):
            _listening.remove(self)

    def hear(self, event: Event) -> None:
        """What the listener raises goes to the log, as with concurrent.futures' callbacks.

        But an interrupt or exit of the main thread's is that: another thread has nobody to raise it to.
        """
        try:
            self._listener(event)
        except BaseException as error:
            if not isinstance(error, Exception) and threading.current_thread() is threading.main_thread():
                raise
            import logging  # takes longer to import than this package

            logging.getLogger("vhostnet").exception("a listener of on_event() raised: %r", self._listener)

    def __enter__(self) -> "Listening":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


_listening: list[Listening] = []  # its append, remove and copy are atomic


def on_event(listener: Listener) -> Listening:
    """Call *listener* with an Event after every run: NICs opened, taken, changed, closed, by whatever thread.

    Until what is returned is closed; it is a context manager, too. Who listens twice is called twice. It is called
    when the call that the run was for is as good as over, by the same thread: before open_nics() returns or raises, and
    after ``close_nics(wait=False)`` and a pool's refill by their threads. It may open and close NICs itself, and hears
    of those next. What it raises is logged (logger ``vhostnet``, ERROR), and the others are called; but what is no
    Exception (KeyboardInterrupt, SystemExit) goes up in the main thread.
    """
    return Listening(listener)


def told(engine: Engine, program: Program, run: Callable[[Program], Result], mac: bytes = b"") -> Result:
    """``run(program)``, and whoever listens will hear of it. With *mac* its one row was made ready without."""
    if not _listening or not program.nics:
        return run(program)
    started, begun = time.time_ns(), time.monotonic_ns()
    result = run(program)
    ns = time.monotonic_ns() - begun
    if mac:
        (row,) = program.nics
        program = replace(program, nics=(row._replace(mac=mac),))
    under_way.afterwards(partial(_tell, Event(program, result, engine.name, started, ns)))
    return result


def close(engine: Engine, rows: Sequence[NicRow], held: Sequence[Fds]) -> None:
    """``engine.close(held)``, which are the fds of *rows*, and whoever listens will hear of it."""

    def closed(program: Program) -> Result:
        engine.close(held)
        return Result(tuple([NicResult(row.ifindex, row.mtu, Fds((), ())) for row in program.nics]), ())

    if _listening and rows:
        told(engine, Program(tuple(rows), ()), closed)
    else:
        engine.close(held)


def _tell(event: Event) -> None:
    for listening in tuple(_listening):
        listening.hear(event)
