"""on_event(): every finished run, told by the caller's thread when nothing is under way any more."""

import contextvars
import dataclasses
import errno
import logging
import os
import sys
import threading
import time
from itertools import pairwise

import pytest
from conftest import BRIDGE, link_names, open_fds

import vhostnet
from vhostnet import Event, InterfaceSpec, NicPool, on_event
from vhostnet.process.forks import under_way
from vhostnet.process.netns import call_aside
from vhostnet.values import replace

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("bridge", "no_leaks")]


def spec(**fields):
    return InterfaceSpec(bridge=BRIDGE, vhost="off", **fields)


def acts(event):
    return [act.act for act in event.acts]


@pytest.fixture
def heard():
    """The events of the test."""
    events = []
    with on_event(events.append):
        yield events


def test_an_event_is_a_run(engine, heard):
    before = time.time_ns()
    with vhostnet.open_nic(spec(queues=2), engine=engine) as nic:
        (event,) = heard
        assert (event.engine, event.program.nics[0].ifname) == (engine, nic.ifname)
        assert event.result.nics[0].ifindex == nic.ifindex
        assert acts(event) == ["TAP_OPEN", "QDISC", "LINK", "UP"] == [timing.act for timing in nic.timings]
        assert [act.ns for act in event.acts] == [timing.ns for timing in nic.timings]
        assert {act.ifname for act in event.acts} == {nic.ifname}
    assert before <= event.started <= event.started + event.ns <= time.time_ns()
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.ns = 0


def test_acts_follow_one_another_within_the_run(engine, heard):
    vhostnet.close_nics(vhostnet.open_nics([spec() for _ in range(3)], engine=engine))
    for event in heard:
        done = list(event.acts)
        assert done[0].started == event.started
        assert all(one.started + one.ns == other.started for one, other in pairwise(done))
        assert done[-1].started + done[-1].ns <= event.started + event.ns
    assert [len(list(event.acts)) for event in heard] == [12, 3]


def test_a_nics_whole_life(engine, heard):
    nic = vhostnet.open_nic(spec(queues=2), engine=engine)
    nic.down()
    nic.up()
    nic.update(replace(nic.spec, isolated=True))
    nic.reset_queues()
    nic.close()
    opened, down, up, updated, reset, closed = heard
    assert (acts(down), acts(up), acts(reset)) == (["DOWN"], ["UP"], ["ATTACH"])
    assert acts(updated)[-1] == "UP"
    assert (acts(opened)[0], closed.program.acts) == ("TAP_OPEN", ())
    assert closed.result.nics[0].fds == ((), ())
    assert {event.program.nics[0].ifname for event in heard} == {nic.ifname}


def test_what_is_closed_in_the_background(engine, heard):
    nics = vhostnet.open_nics([spec(), spec()], engine=engine)
    vhostnet.close_nics(nics, wait=False)
    deadline = time.monotonic() + 10
    while len(heard) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert acts(heard[1]) == ["DELETE", "DELETE"]
    while any(thread.name == "vhostnet-close" for thread in threading.enumerate()):
        time.sleep(0.001)


@pytest.mark.parametrize("wish", [None, "web0"])
def test_a_pool(engine, heard, wish):
    with NicPool(spec(queues=2), size=1, low=0, engine=engine) as pool:
        pool.fill()
        asked = spec(queues=2, mac="52:54:00:00:00:07", ifname=wish)
        with pool.take(asked) as nic:
            made = [event for event in heard if event.program.nics[0].held is None]
            (taken,) = [event for event in heard if event not in made]
            assert all(acts(event) == ["TAP_OPEN", "QDISC", "LINK"] for event in made)
            assert acts(taken) == ["ALTNAME", "LINK"][wish is None :]
            assert taken.program.nics[0].mac.hex(":") == nic.mac == "fe:54:00:00:00:07"
            assert taken.engine == engine
    assert acts(heard[-1]) in ([], ["DELETE"])


def test_what_was_refused(engine, heard):
    with pytest.raises(vhostnet.NameBusy):
        vhostnet.open_nic(spec(ifname=BRIDGE), engine=engine)
    (event,) = heard
    (act,) = event.acts  # the others were not come to
    assert (act.act, act.ifname, act.errno, act.call, act.queue) == ("TAP_OPEN", BRIDGE, errno.EBUSY, "TUNSETIFF", 0)
    assert not act.optional
    assert event.result.nics == ()


def test_what_goes_on_without(engine, heard):
    specs = [spec(), spec(ifname=BRIDGE)]
    nic, error = vhostnet.open_nics(specs, engine=engine, on_error="keep")
    nic.close()
    assert isinstance(error, vhostnet.NameBusy)
    of_each = [[act.act for act in heard[0].acts if act.ifname == name] for name in (nic.ifname, BRIDGE)]
    assert of_each == [["TAP_OPEN", "QDISC", "LINK", "UP"], ["TAP_OPEN"]]


def test_an_optional_act(engine, heard):
    asked = InterfaceSpec(bridge=BRIDGE, vhost="auto", vhost_path="/dev/null")
    vhostnet.open_nic(asked, engine=engine).close()
    assert [act.act for act in heard[0].acts if act.errno and act.optional] == ["VHOST_OPEN"]


def test_slow_acts_are_of_the_run(engine, heard, tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    asked = InterfaceSpec(type="ethernet", vhost="off", script=str(script), downscript=str(script))
    vhostnet.open_nic(asked, engine=engine).close()
    opened, ended, closed = heard
    assert (acts(opened)[-1], acts(ended), acts(closed)) == ("SCRIPT", ["DOWNSCRIPT"], [])


def test_undoing_is_of_the_run(engine, heard, tmp_path):
    asked = InterfaceSpec(type="ethernet", vhost="off", script=str(tmp_path / "none"))
    with pytest.raises(vhostnet.HostError):
        vhostnet.open_nic(asked, engine=engine)
    (event,) = heard
    assert (acts(event)[-1], [act.errno for act in event.acts][-1]) == ("SCRIPT", errno.ENOENT)


# --- when, and by whom -----------------------------------------------------------------------------------


def test_nobody_hears_who_has_stopped_listening(engine):
    first, second = [], []
    listening, twice = on_event(first.append), on_event(first.append)
    with on_event(second.append):
        vhostnet.open_nic(spec(), engine=engine).close()
        twice.close()
        twice.close()
        vhostnet.open_nic(spec(), engine=engine).close()
    listening.close()
    vhostnet.open_nic(spec(), engine=engine).close()
    assert (len(first), len(second)) == (6, 4)


def test_it_is_told_where_the_caller_is(engine):
    """By its thread, in its network namespace, with its context, and with nothing under way."""
    asking = contextvars.ContextVar("asking")
    asking.set("this test")
    told = []

    def listener(event):
        me = threading.get_ident()
        told.append((me, os.readlink("/proc/thread-self/ns/net"), asking.get(None), me in under_way._inside))

    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with on_event(listener):
            vhostnet.open_nic(spec(), engine=engine, netns=here).close()
            call_aside(lambda: call_aside(lambda: vhostnet.open_nic(spec(), engine=engine).close()))
    finally:
        os.close(here)
    me, where = threading.get_ident(), os.readlink("/proc/thread-self/ns/net")
    assert told == [(me, where, "this test", False)] * 4


def test_a_refusal_is_told_before_it_is_raised(engine, heard):
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        vhostnet.open_nic(spec(ifname=BRIDGE), engine=engine, netns=here)
    except vhostnet.NameBusy:
        assert len(heard) == 1
    finally:
        os.close(here)


def test_a_listener_may_fork(engine):
    """Nothing is under way, so that no fork waits; and the child does not have the NIC."""

    def fork(event):
        if child := os.fork():
            assert os.waitpid(child, 0)[1] == 0
        else:
            os._exit(BRIDGE not in link_names())

    with on_event(fork):
        vhostnet.open_nic(spec(), engine=engine).close()


def test_a_listener_may_open_nics_itself(engine, heard):
    def beside(event):
        if event.program.acts and len(heard) < 4:
            vhostnet.open_nic(spec(), engine=engine).close()

    with on_event(beside):
        vhostnet.open_nic(spec(), engine=engine).close()
    assert sum(event.program.acts == () for event in heard) == len(heard) / 2 >= 2


def test_a_listener_may_use_the_pool(engine):
    with NicPool(spec(), size=2, low=1, engine=engine) as pool:
        with on_event(lambda event: pool.fill()):
            pool.fill()
            pool.take().close()
        assert pool.stats.taken == 1


def test_one_call_at_a_time(engine):
    """A listener that opens a NIC hears of it when it has returned, so that it may hold a lock of its own."""
    depth, told, lock = [], [], threading.Lock()

    def listener(event):
        assert lock.acquire(blocking=False)
        depth.append(event)
        told.append(len(depth))
        if len(told) < 5:
            vhostnet.open_nic(spec(), engine=engine).close()
        depth.pop()
        lock.release()

    with on_event(listener):
        vhostnet.open_nic(spec(), engine=engine).close()
    assert told == [1] * 10


def test_one_that_raises_harms_nobody(engine, heard, caplog):
    def broken(event):
        raise LookupError("of a test")

    with on_event(broken), on_event(heard.append), vhostnet.open_nic(spec(), engine=engine) as nic:
        assert nic.ifname in link_names()
    assert len(heard) == 4
    assert [record.levelno for record in caplog.records if record.name == "vhostnet"] == [logging.ERROR] * 2
    assert "LookupError: of a test" in caplog.text
    assert "broken" in caplog.text


def test_one_that_exits_in_the_background_leaves_nothing_undone(engine, caplog):
    """The thread that deletes goes on, for those that come after."""
    told = threading.Semaphore(0)

    def exits(event):
        if threading.current_thread().name == "vhostnet-close":
            told.release()
            sys.exit("of a test")

    with on_event(exits):
        for _ in range(3):
            vhostnet.close_nics([vhostnet.open_nic(spec(), engine=engine)], wait=False)
            assert told.acquire(timeout=30)
    while any(thread.name == "vhostnet-close" for thread in threading.enumerate()):
        time.sleep(0.001)
    assert caplog.text.count("SystemExit: of a test") == 3


def test_an_interrupt_while_lasting_ones_are_deleted(engine):
    """All is done by then: adopting them, deleting them."""
    vhostnet.open_nic(spec(), engine=engine, persist=True).close()
    (found,) = vhostnet.list_nics()

    def interrupted(event):
        raise KeyboardInterrupt

    before = open_fds()
    with on_event(interrupted), pytest.raises(KeyboardInterrupt):
        vhostnet.delete_nics([found.ifname], engine=engine)
    assert (open_fds(), vhostnet.list_nics()) == (before, ())


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_an_interrupt_of_a_listener_is_the_callers(engine):
    """As anywhere else between two lines of open_nic(): the NIC that nobody got is closed."""

    def interrupted(event: Event):
        if event.program.acts:
            raise KeyboardInterrupt

    before = open_fds()
    with on_event(interrupted), pytest.raises(KeyboardInterrupt):
        vhostnet.open_nic(spec(), engine=engine)
    assert open_fds() == before


@pytest.mark.slow
def test_many_threads(engine):
    """Each run is told once, to whoever listens all the while, by the thread that asked for it."""
    told = []

    def work():
        with on_event(lambda event: None):
            for _ in range(10):
                vhostnet.open_nic(spec(), engine=engine).close()

    with on_event(lambda event: told.append(threading.get_ident())):
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(told) == 160
    assert threading.get_ident() not in told
