"""Others who use the name of a NIC of ours."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections import Counter
from collections.abc import Callable

import vhostnet
from tests.torture.kit import (
    ENGINES,
    Outcome,
    Promises,
    beside,
    fresh_namespace,
    link_names,
    open_fds,
    spec,
    wait_until,
)
from vhostnet import HostError, Nic
from vhostnet.engines import _uapi as uapi
from vhostnet.program.parts import TunFlag

NAME = "held0"


def strangers(*, rounds: int = 500) -> Outcome:
    """Promise: a held name is NameBusy, however it is asked for; and no stranger's TAP is taken for ours.

    A stranger with the same privileges may attach a queue of his to a multi-queue TAP of ours: the kernel lets him, and
    he shares its frames. The TAP then lives on after close() for as long as he holds it; close_nics() deletes it.
    """
    fresh_namespace()
    expect = Promises()
    before, fds = link_names(), open_fds()
    for engine in ENGINES:
        for queues in (1, 4):
            _two_handles(engine, queues, expect)
    opened: Counter[str] = Counter()
    with beside(_stranger) as answers:
        for number in range(rounds):
            _round(ENGINES[number % 2], bool(number // 2 % 2), expect, opened)
    shared, first, gone = answers[0]
    expect(wait_until(lambda: link_names() == before), "links are left")
    expect(open_fds() == fds, "fds are left")
    figures = (
        f"{rounds} rounds: {opened['made']} made, {opened['busy']} NameBusy; the stranger was first {first} times and "
        f"had a queue of ours {shared} times, of which {gone} were deleted under him"
    )
    return figures, expect.broken


def _two_handles(engine: str, queues: int, expect: Promises) -> None:
    with vhostnet.open_nic(spec(ifname=NAME, queues=queues), engine=engine):
        for again in (1, 4):
            try:
                vhostnet.open_nic(spec(ifname=NAME, queues=again), engine=engine).close()
                expect(False, "a held name was given twice")
            except vhostnet.NameBusy as error:
                expect(error.errno == errno.EBUSY and error.ifname == NAME, f"another error: {error}")


def _round(engine: str, delete: bool, expect: Promises, opened: Counter[str]) -> None:
    try:
        nic = vhostnet.open_nic(spec(ifname=NAME, queues=4), engine=engine)
    except vhostnet.NameBusy:
        opened["busy"] += 1
        time.sleep(0.001)
        return
    except HostError as error:
        expect(False, f"no sensible error: {error}")
        return
    opened["made"] += 1
    time.sleep(0.004)
    expect(_names(nic) == {NAME}, "a queue is in another TAP")
    if delete:
        vhostnet.close_nics([nic])
    else:
        nic.close()


def _names(nic: Nic) -> set[str]:
    """What the TAP of each queue is called."""
    requests = [fcntl.ioctl(fd, uapi.TUNGETIFF, bytes(uapi.IFREQ_FLAGS.size)) for fd in nic.tap_fds]
    return {request[:16].rstrip(b"\0").decode() for request in requests}


def _stranger(stopped: Callable[[], bool]) -> tuple[int, int, int]:
    """How often he had a queue of ours, made the TAP himself, and was left with a dead fd."""
    request = uapi.IFREQ_FLAGS.pack(NAME.encode(), TunFlag.TAP | TunFlag.NO_PI | TunFlag.VNET_HDR | TunFlag.MULTI_QUEUE)
    shared = first = gone = 0
    while not stopped():
        there = NAME in link_names()
        fd = os.open("/dev/net/tun", os.O_RDWR)
        try:
            fcntl.ioctl(fd, uapi.TUNSETIFF, request)
            shared, first = shared + there, first + (not there)
            time.sleep(0.003)
            fcntl.ioctl(fd, uapi.TUNGETIFF, bytes(uapi.IFREQ_FLAGS.size))
        except OSError as error:
            gone += error.errno == errno.EBADFD
        finally:
            os.close(fd)
        time.sleep(0.002)
    return shared, first, gone
