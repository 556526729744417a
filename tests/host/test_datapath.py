"""Ports of Open vSwitch in the kernel's datapath, which is what a host has: what passes them, and from when on."""

import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, link_names
from frames import BROADCAST, MARK, Talker, check_heard, frame, heard, said
from kernel import ip, link

import vhostnet
from bench import openvswitch
from vhostnet import Bandwidth, HostError, InterfaceSpec, Rate, VirtualPort, Vlan
from vhostnet.values import replace

pytestmark = [pytest.mark.tap, pytest.mark.datapath, pytest.mark.usefixtures("nothing_left")]
MAC = "52:54:00:00:00:0{}"


@pytest.fixture
def switch(net):
    with openvswitch.switch("ovs0", datapath="system") as made:
        yield made


@pytest.fixture
def nothing_left(switch, no_leaks):
    yield
    assert (switch.ports("ovs0"), switch.queueing()) == ([], [])


def wish(number, **fields):
    # A model without vnet_hdr: what is read and written is a frame.
    how = {"bridge": "ovs0", "virtualport": VirtualPort(), "model": "e1000", "mac": MAC.format(number)}
    return InterfaceSpec(**{**how, **fields})


def test_it_is_a_port_of_the_kernels_switch(engine, switch):
    spec = wish(1, queues=4, model="virtio", vlan=Vlan((7,)), bandwidth=Bandwidth(Rate(1000), Rate(1000)))
    with vhostnet.open_nic(spec, engine=engine, vhost="off") as nic:
        facts = link(nic.ifname)
        assert (facts["up"], facts["master"], facts["mac"], facts["qdisc"]) == (True, "ovs-system", nic.mac, "htb")
        assert switch.seen(nic.ifname)["ofport"] > 0
        assert switch.row("Port", nic.ifname)["tag"] == 7
    assert nic.ifname not in link_names()


def test_frames_stay_in_their_vlan(engine, switch):
    vlans = [Vlan((10,)), Vlan((20,)), Vlan((10, 20), trunk=True), None]
    nics = vhostnet.open_nics([wish(at, vlan=vlan) for at, vlan in enumerate(vlans, 1)], engine=engine)
    ten, twenty, both, plain = nics
    said(ten, BROADCAST)
    # A port without any VLAN is a trunk of all of them there.
    assert [got[12:16] for nic in (both, plain) for got in heard(nic, 1)] == [b"\x81\x00\x00\x0a"] * 2
    said(both, BROADCAST, tag=20)
    assert [got[12:14] for got in heard(twenty, 1)] == [MARK[:2]]
    assert heard(ten) == []
    vhostnet.close_nics(nics)


def test_what_it_is_told_later_the_kernel_hears_a_moment_after_its_daemon(engine, switch):
    """The flows that the daemon has there go the old way until it has looked at them again."""
    nics = vhostnet.open_nics([wish(1, vlan=Vlan((10,))), wish(2, vlan=Vlan((20,)))], engine=engine)
    first, second = nics
    said(first, BROADCAST)
    first.update(wish(1, vlan=Vlan((20,))))
    deadline = time.monotonic() + 20
    while not heard(second):
        assert time.monotonic() < deadline
        said(first, BROADCAST)
    said(second, BROADCAST)
    assert MARK in heard(first, 1)[0]
    vhostnet.close_nics(nics)


def test_a_port_that_comes_after_another_takes_over_none_of_its_flows(switch):
    with vhostnet.open_nic(wish(9, vlan=Vlan((20,)))) as other:
        for _ in range(5):
            check_heard(other, wish(1, vlan=Vlan((20,))))
            with vhostnet.open_nic(wish(1, vlan=Vlan((10,)))) as nic:
                said(nic, BROADCAST)
                assert heard(other) == []


def test_no_frame_passes_before_its_vlan_stands(switch):
    with vhostnet.open_nic(wish(9, vlan=Vlan((20,)))) as other:
        with Talker(frame(BROADCAST, MAC.format(1)), other) as talker:
            for _ in range(20):
                with vhostnet.open_nic(wish(1, vlan=Vlan((10,)))):
                    talker.until_heard()
        assert heard(other) == []
        check_heard(other, wish(1, vlan=Vlan((20,))))


# --- bandwidth: the switch's -----------------------------------------------------------------------------

BOTH = Bandwidth(Rate(1000, 3000, 20), Rate(500))
HTB, POLICER = (
    "class htb 1:1 parent 1:fffe prio 0 rate 8Mbit ceil 24Mbit",
    "rate 4Mbit burst 500Kb mtu 64Kb action drop",
)


def shaped(name):
    """What tc shows of classes and policers, less what counts, and what the kernel numbers."""
    asked = (f"class show dev {name}", f"filter show dev {name} ingress")
    lines = [line.strip() for one in asked for line in tc(one).splitlines()]
    return [re.sub(r"police 0x\w+|index \d+|ref \d+ bind \d+|leaf \w+:", "", line) for line in lines]


def tc(command):
    return subprocess.run(["tc", *command.split()], capture_output=True, text=True, check=True).stdout


def is_shaped(name, *words):
    text = "\n".join(shaped(name))
    return [word in text for word in words]


def test_a_port_keeps_its_bandwidth_whatever_comes_and_goes(engine, switch):
    """The switch makes policers anew whenever something is new, and would take away one of anybody else's."""
    with vhostnet.open_nic(wish(1, model="virtio", queues=2, vhost="off", bandwidth=BOTH), engine=engine) as nic:
        assert [timing.act for timing in nic.timings] == ["TAP_OPEN", "LINK", "PLUG", "UP"]
        before = shaped(nic.ifname)
        assert is_shaped(nic.ifname, HTB, POLICER) == [True, True]
        for _ in range(2):
            with vhostnet.open_nic(wish(2), engine=engine):
                switch.await_daemon()
                assert shaped(nic.ifname) == before
            switch.await_daemon()
            assert shaped(nic.ifname) == before
            ip(f"link set {nic.ifname} down")
            ip(f"link set {nic.ifname} up")
        switch.restart_daemon()
        assert shaped(nic.ifname) == before
        with vhostnet.open_nic(wish(2), engine=engine):
            switch.await_daemon()
            assert shaped(nic.ifname) == before


def test_it_stands_before_the_nic_is_up(engine, switch):
    with vhostnet.open_nic(wish(1, bandwidth=BOTH), engine=engine, up=False) as nic:
        before = shaped(nic.ifname)
        assert is_shaped(nic.ifname, HTB, POLICER) == [True, True]
        nic.up()
        assert (link(nic.ifname)["up"], shaped(nic.ifname)) == (True, before)


def test_its_bandwidth_changes_where_it_is(engine, switch):
    plain = wish(1, model="virtio", queues=2, vhost="off")
    with vhostnet.open_nic(replace(plain, bandwidth=BOTH), engine=engine) as nic:
        name, port = nic.ifname, switch.seen(nic.ifname)["ofport"]
        for bandwidth, root, words in (
            (Bandwidth(Rate(600), Rate(600)), "htb", ("rate 4800Kbit ceil 4800Kbit", "rate 4800Kbit burst 600Kb")),
            (Bandwidth(outbound=Rate(600, burst=30)), "noqueue", ("rate 4800Kbit burst 30Kb",)),
            (Bandwidth(Rate(700)), "htb", ("rate 5600Kbit ceil 5600Kbit",)),
            (None, "noqueue", ()),
            (BOTH, "htb", (HTB, POLICER)),
        ):
            nic.update(replace(plain, bandwidth=bandwidth))
            assert is_shaped(name, *words) == [True] * len(words)
            assert link(name)["qdisc"] == root
            assert bool(bandwidth and bandwidth.outbound) == ("ingress" in tc(f"qdisc show dev {name}"))
            assert len(switch.queueing()) == 2 * bool(bandwidth and bandwidth.inbound)
            assert switch.seen(name)["ofport"] == port


def test_nothing_of_it_is_left_when_a_batch_is_undone(engine, switch):
    script = InterfaceSpec(type="ethernet", vhost="off", script="false")
    with pytest.raises(HostError, match="SCRIPT"):
        vhostnet.open_nics([wish(1, bandwidth=BOTH), wish(2), script], engine=engine)


LEAVE = """
import os, sys, vhostnet
from vhostnet import Bandwidth, Rate
spec = vhostnet.InterfaceSpec(bridge="ovs0", vhost="off", ifname="nic0", virtualport=vhostnet.VirtualPort(),
                              bandwidth=Bandwidth(Rate(1000), Rate(1000)))
nic = vhostnet.open_nic(spec, engine=sys.argv[1])
os.kill(os.getpid(), 9)
"""


def test_what_a_crash_leaves_of_it_goes_with_its_port(engine, switch):
    done = subprocess.run([sys.executable, "-c", LEAVE, engine], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert (switch.ports("ovs0"), len(switch.queueing())) == (["nic0"], 2)
    deadline = time.monotonic() + 20
    while [nic.ifindex for nic in vhostnet.list_nics()] != [0]:  # until the kernel has taken the TAP away
        assert time.monotonic() < deadline
        time.sleep(0.01)
    vhostnet.delete_nics(["nic0"], engine=engine)


LONG = b"\xff" * 6 + bytes.fromhex("525400000002") + b"\x88\xb5" + bytes(1400)  # to everybody


def test_a_guest_gets_no_more_than_its_rate(switch):
    """200 kB at 100 kB/s: 2 s, or longer where nobody has the time."""
    with vhostnet.open_nic(wish(1, bandwidth=Bandwidth(Rate(100)))) as nic, vhostnet.open_nic(wish(2)) as other:
        tap, sender = nic.tap_fds[0], other.tap_fds[0]
        got, started = 0, time.monotonic()
        while got < 200_000 and time.monotonic() - started < 60:
            for _ in range(20):
                os.write(sender, LONG)
            while select.select([tap], [], [], 0.001)[0]:
                got += len(os.read(tap, 2048))
        taken = time.monotonic() - started
    assert got >= 200_000
    assert taken >= 1


def test_a_guest_sends_no_more_than_its_rate(switch):
    """Eight times what it may, and at most twice that arrives, whatever else comes to the switch meanwhile."""
    limited = wish(2, bandwidth=Bandwidth(outbound=Rate(50, burst=50)))
    with vhostnet.open_nic(wish(1)) as other, vhostnet.open_nic(limited) as nic, vhostnet.open_nic(wish(3)):
        tap, listener = nic.tap_fds[0], other.tap_fds[0]
        sent, arrived, started = 0, 0, time.monotonic()
        while sent < 8 * (may := 50 * 1024 + 50_000 * (time.monotonic() - started)):
            sent += os.write(tap, LONG)
            while select.select([listener], [], [], 0)[0]:
                arrived += LONG[6:12] == os.read(listener, 2048)[6:12] and len(LONG)
            assert time.monotonic() - started < 60
        while select.select([listener], [], [], 0.2)[0]:
            arrived += LONG[6:12] == os.read(listener, 2048)[6:12] and len(LONG)
    assert may / 4 <= arrived <= 2 * may
