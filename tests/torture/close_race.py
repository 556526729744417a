"""Threads that use a NIC while others close it."""

from __future__ import annotations

import fcntl
import os
import random
import threading
from collections import Counter
from collections.abc import Callable

import vhostnet
from tests.torture.kit import (
    ENGINES,
    Outcome,
    Promises,
    fresh_namespace,
    link_names,
    open_fds,
    spec,
    threads,
    wait_until,
)
from vhostnet import HostError, Nic, NicClosed
from vhostnet.engines import _uapi as uapi
from vhostnet.program.parts import TunFlag

THREADS = 8
QUEUES = 4
DETACH = 0x0400  # IFF_DETACH_QUEUE


def close_race(*, rounds: int = 300) -> Outcome:
    """Promise: any thread may close, give away or use a NIC at any time; each fd is closed once.

    Whoever comes too late gets NicClosed. No call of ours ever reaches a number that is somebody else's by then:
    other threads open files all the time, which get the numbers that were closed just now.
    """
    fresh_namespace()
    expect = Promises()
    before, fds, alone = link_names(), open_fds(), threading.active_count()
    raised: Counter[str] = Counter()
    with _Sentries(expect) as sentries:
        for engine in ENGINES:
            for number in range(rounds):
                _round(engine, random.Random(number), expect, raised)
    # The one that closes in the background may have deleted the last NIC and still have its fds.
    expect(wait_until(lambda: threads() == threading.active_count() == alone), "a thread is left")
    expect(link_names() == before, "links are left")
    expect(open_fds() == fds, "fds are left, or too many were closed")
    figures = (
        f"{THREADS} threads x {rounds} rounds x 2 engines beside {sentries.count} sentry fds: "
        f"{raised['NicClosed']} NicClosed, {raised['HostError']} HostError"
    )
    return figures, expect.broken


def _round(engine: str, chance: random.Random, expect: Promises, raised: Counter[str]) -> None:
    nic = vhostnet.open_nic(spec(queues=QUEUES), engine=engine)
    together = threading.Barrier(THREADS)

    def work(use: Callable[[Nic], object]) -> None:
        together.wait()
        for _ in range(20):
            try:
                use(nic)
            except NicClosed:
                raised["NicClosed"] += 1
            except HostError as error:
                raised["HostError"] += 1
                expect(isinstance(error, vhostnet.DeviceGone), f"{use.__name__}: {error}")
            except BaseException as error:
                expect(False, f"{use.__name__} raised {error!r}")

    uses = [chance.choice(CLOSERS), *chance.choices(CLOSERS + USERS, k=THREADS - 3), Nic.reset_queues, Nic.reset_queues]
    crowd = [threading.Thread(target=work, args=(use,)) for use in uses]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    expect(nic.closed and wait_until(lambda: nic.ifname not in link_names()), "the NIC is still there")


def detach_and_close(nic: Nic) -> None:
    for fd in (fds := nic.detach()).vhost + fds.tap:
        os.close(fd)


def close_nics(nic: Nic) -> None:
    vhostnet.close_nics([nic])


def close_nics_later(nic: Nic) -> None:
    vhostnet.close_nics([nic], wait=False)


def look(nic: Nic) -> object:
    return nic.fds, nic.qemu_argv(), nic.vhost, repr(nic)


CLOSERS = [Nic.close, detach_and_close, close_nics, close_nics_later]
USERS = [look, Nic.reset_queues]


class _Sentries:
    """Threads with files of their own, each opened, looked at again, and closed.

    One kind are queues of a TAP of theirs, detached: a reset_queues() that took one for its own would attach it.
    """

    def __init__(self, expect: Promises) -> None:
        self._expect = expect
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._watch, args=(kind,)) for kind in (self._queue, self._file) * 2]
        self.count = 0

    def __enter__(self) -> _Sentries:
        self._tap = _open_queue()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        os.close(self._tap)

    def _watch(self, kind: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                kind()
            except OSError as error:
                self._expect(False, f"the fd of a sentry: {error}")
            self.count += 4

    def _queue(self) -> None:
        fds = [_open_queue() for _ in range(4)]
        for fd in fds:
            fcntl.ioctl(fd, uapi.TUNSETQUEUE, uapi.IFREQ_FLAGS.pack(b"", DETACH))
        self._stop.wait(0.0005)
        for fd in fds:
            flags = uapi.IFREQ_FLAGS.unpack(fcntl.ioctl(fd, uapi.TUNGETIFF, bytes(uapi.IFREQ_FLAGS.size)))[1]
            self._expect(flags & DETACH, "a queue of somebody else's was attached")
            os.close(fd)

    def _file(self) -> None:
        fds = [os.memfd_create("sentry") for _ in range(4)]
        files = [os.fstat(fd).st_ino for fd in fds]
        self._stop.wait(0.0005)
        self._expect([os.fstat(fd).st_ino for fd in fds] == files, "the fd of a sentry is another file")
        for fd in fds:
            os.close(fd)


def _open_queue() -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    flags = TunFlag.TAP | TunFlag.NO_PI | TunFlag.MULTI_QUEUE
    fcntl.ioctl(fd, uapi.TUNSETIFF, uapi.IFREQ_FLAGS.pack(b"sentry", flags))
    return fd
