"""Children of every kind, while threads open and close NICs."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import vhostnet
from tests.torture.kit import (
    ENGINES,
    PATIENCE,
    Outcome,
    Promises,
    fresh_namespace,
    link_names,
    open_fds,
    spec,
    tun_fds,
    wait_until,
)

# A program that says which TAPs' fds it has, and lives until its input ends.
LOOK = """
import os, sys
def what(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""
print(*(fd for fd in os.listdir("/proc/self/fd") if what(fd) == "/dev/net/tun"), flush=True)
sys.stdin.read()
"""


def forked(*, rounds: int = 40) -> Outcome:
    """Promise: no child keeps a NIC alive, and one that runs another program has the fds it was given alone.

    However the child is made, and though other threads open and close NICs at that moment.
    """
    fresh_namespace()
    expect = Promises()
    names, fds = link_names(), open_fds()
    children = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: that is the point
        for engine in ENGINES:
            with _busy_threads(engine):
                for number in range(rounds):
                    for kind in KINDS if number % 10 == 0 else KINDS[:4]:
                        _child(kind, engine, expect)
                        children += 1
    wrong = expect.count
    expect(wait_until(lambda: link_names() == names), "links are left")
    _stop_helpers()
    expect(wait_until(lambda: open_fds() == fds), "fds are left")
    figures = f"{children} children of {len(KINDS)} kinds, {wrong} kept a NIC alive or had an fd they were not given"
    return figures, expect.broken


@contextmanager
def _busy_threads(engine: str) -> Iterator[None]:
    """Two threads that open NICs, and close them by both roads."""
    stop = threading.Event()

    def work(close: Callable[[list[vhostnet.Nic]], None]) -> None:
        while not stop.is_set():
            close(vhostnet.open_nics([spec(queues=4) for _ in range(4)], engine=engine))

    crowd = [threading.Thread(target=work, args=(close,)) for close in (vhostnet.close_nics, _close_each)]
    for thread in crowd:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in crowd:
            thread.join()


def _close_each(nics: list[vhostnet.Nic]) -> None:
    for nic in nics:
        nic.close()


def _child(kind: Callable[[vhostnet.Nic], Any], engine: str, expect: Promises) -> None:
    """It is there, and the NIC is closed: then the link is gone while the child lives on."""
    nic = vhostnet.open_nic(spec(queues=2), engine=engine)
    given = sorted(nic.fds) if kind is _popen_with_fds else []
    with kind(nic) as has:
        expect(has == given, f"{kind.__name__}: the child has fds {has} and was given {given}")
        nic.close()
        expect(given or nic.ifname not in link_names(), f"{kind.__name__}: a child keeps a NIC alive")
    expect(wait_until(lambda: nic.ifname not in link_names()), f"{kind.__name__}: the NIC is left")


@contextmanager
def _fork(nic: vhostnet.Nic) -> Iterator[list[int]]:
    yield from _forked_child(lambda write: os.write(write, " ".join(map(str, tun_fds())).encode() + b"\n"))


@contextmanager
def _fork_and_exec(nic: vhostnet.Nic) -> Iterator[list[int]]:
    def become(write: int) -> None:
        os.dup2(write, 1)
        os.execv(sys.executable, [sys.executable, "-S", "-c", LOOK])

    yield from _forked_child(become)


def _forked_child(work: Callable[[int], object]) -> Iterator[list[int]]:
    """os.fork(): the child does *work*, and lives until its standard input ends."""
    read, write = os.pipe()
    inside, outside = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os.close(outside)
            os.dup2(inside, 0)
            work(write)
            os.read(0, 1)
        os._exit(0)
    os.close(write)
    os.close(inside)
    with open(read) as answer:
        yield sorted(map(int, answer.readline().split()))
    os.close(outside)
    os.waitpid(child, 0)


@contextmanager
def _popen(nic: vhostnet.Nic, **how: Any) -> Iterator[list[int]]:
    command = [sys.executable, "-S", "-c", LOOK]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **how) as child:
        yield sorted(map(int, child.stdout.readline().split()))


def _popen_with_fds(nic: vhostnet.Nic) -> Any:
    return _popen(nic, pass_fds=nic.fds)


def _process(method: str) -> Callable[[vhostnet.Nic], Any]:
    @contextmanager
    def work(nic: vhostnet.Nic) -> Iterator[list[int]]:
        context: Any = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        child = context.Process(target=report, args=(theirs,))
        child.start()
        theirs.close()
        if not ours.poll(PATIENCE):
            raise TimeoutError(f"a child by {method} does not answer")
        yield ours.recv()
        ours.send("done")
        ours.close()
        child.join()
        child.close()

    work.__name__ = method
    return work


def report(pipe: Any) -> None:
    """What a child of multiprocessing does."""
    pipe.send(tun_fds())
    pipe.recv()


def _stop_helpers() -> None:
    """Those that multiprocessing keeps for its next children."""
    from multiprocessing import forkserver, resource_tracker

    forkserver._forkserver._stop()
    resource_tracker._resource_tracker._stop()


KINDS = [_fork, _process("fork"), _popen, _popen_with_fds, _fork_and_exec, _process("spawn"), _process("forkserver")]
