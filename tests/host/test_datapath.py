"""Ports of Open vSwitch in the kernel's datapath, which is what a host has: what passes them, and from when on."""

import time

import pytest
from conftest import link_names
from frames import BROADCAST, MARK, Talker, check_heard, frame, heard, said
from kernel import link

import vhostnet
from bench import openvswitch
from vhostnet import Bandwidth, InterfaceSpec, Rate, VirtualPort, Vlan

pytestmark = [pytest.mark.tap, pytest.mark.datapath, pytest.mark.usefixtures("nothing_left")]
MAC = "52:54:00:00:00:0{}"


@pytest.fixture
def switch(net):
    with openvswitch.switch("ovs0", datapath="system") as made:
        yield made


@pytest.fixture
def nothing_left(switch, no_leaks):
    yield
    assert switch.ports("ovs0") == []


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
