"""What on this host is ours: listed by its mark, with who made it and who has it open."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from conftest import BRIDGE, link_names
from kernel import ip
from test_nic import detach_queue

import vhostnet
from vhostnet import InterfaceSpec
from vhostnet.commands.cli import main
from vhostnet.host.marks import make_marks, read_mark
from vhostnet.others import bridge as bridges

pytestmark = [pytest.mark.tap, pytest.mark.slow, pytest.mark.usefixtures("net")]


def wish(**fields):
    return InterfaceSpec(**{"bridge": BRIDGE, "queues": 3, "vhost": "off", **fields})


def test_what_is_ours_is_listed_and_nothing_else(engine, bridge):
    ip("tuntap add dev alien mode tap")
    ip("link set alien alias vhostnet:not-a-mark")
    nics = vhostnet.open_nics([wish(), InterfaceSpec(type="ethernet", vhost="off")], engine=engine)
    found = vhostnet.list_nics()
    vhostnet.close_nics(nics)
    assert [(nic.ifname, nic.ifindex) for nic in found] == [(nic.ifname, nic.ifindex) for nic in nics]
    assert [(nic.bridge, nic.up, nic.attached, nic.detached) for nic in found] == [
        (BRIDGE, True, 3, 0),
        (None, True, 1, 0),
    ]
    assert {(nic.mark.pid, nic.mark.maker_lives, nic.mark.parked) for nic in found} == {(os.getpid(), True, False)}
    assert [[holder.pid for holder in nic.holders] for nic in found] == [[os.getpid()]] * 2
    assert vhostnet.list_nics() == ()


def test_queues_that_were_left_detached_are_counted(engine, bridge):
    with vhostnet.open_nic(wish(), engine=engine) as nic:
        detach_queue(nic.tap_fds[2])
        (found,) = vhostnet.list_nics()
    assert (found.attached, found.detached) == (2, 1)


def test_parked_is_said(engine, bridge):
    with vhostnet.NicPool(wish(), size=2, low=0, engine=engine) as pool:
        pool.fill()
        with pool._making, pool.take():  # its thread makes none meanwhile
            assert sorted((nic.mark.parked, nic.up) for nic in vhostnet.list_nics()) == [(False, True), (True, False)]


ORPHAN = """
import os, subprocess, sys, vhostnet
nic = vhostnet.open_nic(vhostnet.InterfaceSpec(bridge=sys.argv[2], queues=2, vhost="off"), engine=sys.argv[1])
print(nic.ifname, subprocess.Popen(["sleep", "60"], pass_fds=nic.fds, stdout=subprocess.DEVNULL).pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_an_orphan_is_said_to_be_one(engine, bridge):
    """Its maker was killed, and another process still holds it."""
    command = [sys.executable, "-c", ORPHAN, engine, BRIDGE]
    made = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    ifname, holder = made.stdout.readline().split()
    made.stdout.close()
    made.wait()
    (found,) = vhostnet.list_nics()
    os.kill(int(holder), signal.SIGKILL)
    assert (found.ifname, found.mark.pid, found.mark.maker_lives) == (ifname, made.pid, False)
    assert [(held.pid, held.command) for held in found.holders] == [(int(holder), "sleep")]


def test_those_of_another_namespace(engine, bridge):
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    with vhostnet.open_nic(wish(), engine=engine) as nic:
        vhostnet.process.netns.unshare_net()
        assert vhostnet.list_nics() == ()
        (found,) = vhostnet.list_nics(netns=fd)
        assert (found.ifname, found.holders[0].pid) == (nic.ifname, os.getpid())
    os.close(fd)


def test_the_command_prints_a_line_each(bridge, capsys):
    with vhostnet.open_nic(wish(ifname="mine")):
        assert main(["list"]) == 0
        line = capsys.readouterr().out
        assert main(["list", "-j"]) == 0
        (found,) = json.loads(capsys.readouterr().out)
    assert line.split()[:5] == ["mine", BRIDGE, "UP", "queues", "3"]
    assert f"made by {os.getpid()}  held by " in line
    assert f"({os.getpid()})" in line
    assert (found["ifname"], found["bridge"], found["mark"]["maker_lives"]) == ("mine", BRIDGE, True)
    assert found["holders"][0]["pid"] == os.getpid()


def test_it_works_beside_a_running_event_loop(engine):
    """pyroute2 brings a loop of its own, and a thread can run only one."""

    async def work():
        bridges.make_bridge("br0")
        with vhostnet.open_nic(wish(bridge="br0"), engine=engine):
            return vhostnet.list_nics(), bridges.list_bridges()

    nics, found = asyncio.run(work())
    assert (len(nics), [b.ports for b in found]) == (1, [1])
    assert link_names() == ["br0", "lo"]
    assert "vhostnet-netns" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("parked", [False, True])
def test_a_mark_is_read_as_it_was_written(parked):
    one, two = make_marks(2, parked=parked)
    mark = read_mark(one)
    assert (mark.pid, mark.parked, mark.maker_lives) == (os.getpid(), parked, True)
    assert mark.uuid != read_mark(two).uuid


@pytest.mark.parametrize("alias", [None, "", "vhostnet:", "vhostnet:x:1:2", make_marks(1, parked=True)[0] + ":more"])
def test_what_is_no_mark(alias):
    assert read_mark(alias) is None
