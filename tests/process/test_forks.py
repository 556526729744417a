"""Threads that open, use and close NICs while another one forks, or closes."""

import os
import signal
import threading
import time
import traceback
import warnings
from contextlib import contextmanager

import pytest
from conftest import open_fds

import vhostnet
from vhostnet import InterfaceSpec, NicClosed
from vhostnet.process.forks import under_way

pytestmark = [pytest.mark.tap, pytest.mark.slow, pytest.mark.usefixtures("net", "bridge")]


def spec(**fields):
    return InterfaceSpec(bridge="vbr2525476", vhost="off", **fields)


@contextmanager
def over_and_over(work):
    """A thread that does *work* until the block ends."""
    stop = threading.Event()

    def repeat():
        while not stop.is_set():
            work()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def status_of_fork(work):
    """What a forked child's *work* answers, as its exit status; one that hangs says where, by pytest's faulthandler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: that is the point
        child = os.fork()
    if child == 0:
        _do_and_exit(work)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (done := os.waitpid(child, os.WNOHANG)) != (0, 0):
            return os.waitstatus_to_exitcode(done[1])
        time.sleep(0.001)
    os.kill(child, signal.SIGABRT)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _do_and_exit(work):
    try:
        os._exit(work())
    except BaseException:
        traceback.print_exc()
        os._exit(254)


def tun_fds():
    return sum(what == "/dev/net/tun" for what in open_fds().values())


def test_a_child_has_nothing_of_what_is_being_opened(engine):
    def work():
        vhostnet.close_nics(vhostnet.open_nics([spec(queues=2) for _ in range(32)], engine=engine))

    with over_and_over(work):
        assert [status_of_fork(tun_fds) for _ in range(20)] == [0] * 20


def test_a_child_has_nothing_of_what_is_being_closed(engine):
    with over_and_over(lambda: vhostnet.open_nic(spec(queues=64), engine=engine).close()):
        assert [status_of_fork(tun_fds) for _ in range(20)] == [0] * 20


def test_a_child_can_close_what_is_being_used(engine):
    """Its own copy: a thread of the parent's may have had the lock."""
    nic = vhostnet.open_nic(spec(queues=64), engine=engine)
    with over_and_over(nic.reset_queues):
        assert [status_of_fork(lambda: nic.close() or 0) for _ in range(20)] == [0] * 20
    assert not nic.closed
    nic.close()


def test_a_fork_does_not_wait_for_itself():
    started = time.monotonic()
    with under_way:
        assert status_of_fork(lambda: 0) == 0
    assert time.monotonic() - started < 5


def test_a_nic_that_is_dropped_during_a_fork():
    """Its destructor runs in the thread that forks, which must not wait for itself."""
    before = tun_fds()
    kept = [vhostnet.open_nic(spec())]
    under_way.before_fork()
    try:
        with pytest.warns(ResourceWarning):
            kept.clear()
    finally:
        under_way.after_fork()
    assert tun_fds() == before


def test_reset_queues_never_meets_somebody_elses_fd(engine):
    """close() gives the numbers to whoever opens next; reset_queues() is done by then, or says NicClosed."""
    for _ in range(30):
        nic = vhostnet.open_nic(spec(queues=64), engine=engine)
        failures = []

        def use(nic=nic, failures=failures):
            try:
                while True:
                    nic.reset_queues()
            except NicClosed:
                pass
            except vhostnet.HostError as error:
                failures.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        nic.close()
        thread.join()
        assert failures == []
