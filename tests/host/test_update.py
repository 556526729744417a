"""A NIC that becomes another port while it is there: all of what is asked for, or nothing, and no frame in between."""

import dataclasses
import threading

import pytest
from conftest import BRIDGE, open_fds
from kernel import ethtool, ip, link, run_json

import vhostnet
from vhostnet import HostError, InterfaceSpec, NicClosed, SpecError, Unsupported, Vlan
from vhostnet.commands.demo import ask_qemu
from vhostnet.others import bridge as bridges

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("net")]
SPEC = InterfaceSpec(bridge=BRIDGE, mac="52:54:00:00:00:01", queues=2, vhost="off")


def but(**fields):
    return dataclasses.replace(SPEC, **fields)


@pytest.fixture
def other(bridge):
    bridges.make_bridge("br9", mtu=9000)


def port_of(nic):
    (found,) = run_json(f"bridge -d link show dev {nic.ifname}")
    entries = [row["mac"] for row in run_json(f"bridge fdb show dev {nic.ifname}") if row.get("state") == "static"]
    return {
        "master": found["master"],
        "mtu": found["mtu"],
        **{name: found[name] for name in ("isolated", "learning", "flood")},
        "entry": nic.spec.mac in entries,
        "frames": ethtool(nic.ifname, 0x0E, 23)[2],
        "up": link(nic.ifname)["up"],
    }


PLAIN = {
    "master": BRIDGE,
    "mtu": 1500,
    "isolated": False,
    "learning": True,
    "flood": True,
    "entry": False,
    "frames": 0,
    "up": True,
}
ALL = {"isolated": True, "mac_table_manager": "libvirt", "rx_frames": 7}
SET = {**PLAIN, "isolated": True, "learning": False, "flood": False, "entry": True, "frames": 7}


def test_there_and_back(engine, other):
    fds = open_fds()
    with vhostnet.open_nic(SPEC, engine=engine) as nic:
        before = nic.fds, nic.ifindex, nic.mac
        for fields, wanted in [
            ({}, PLAIN),
            (ALL, SET),
            ({"rx_frames": 9}, {**PLAIN, "frames": 9}),
            ({"bridge": "br9"}, {**PLAIN, "master": "br9", "mtu": 9000}),
            ({"bridge": "br9", "mtu": 1400, **ALL}, {**SET, "master": "br9", "mtu": 1400}),
            ({}, PLAIN),
        ]:
            nic.update(but(**fields))
            assert port_of(nic) == wanted
            assert (nic.spec, nic.mtu) == (but(**fields), wanted["mtu"])
            assert (nic.fds, nic.ifindex, nic.mac) == before
            assert link(nic.ifname)["qdisc"] == "noqueue"
        nic.reset_queues()
    assert open_fds() == fds


@pytest.mark.parametrize(
    ("fields", "act", "kind"),
    [
        ({"bridge": "nowhere", **ALL}, "LINK", vhostnet.NoSuchBridge),
        ({"bridge": "lo"}, "LINK", HostError),
        ({"vlan": Vlan((10,)), **ALL}, "VLAN_ADD", Unsupported),
        ({"bridge": "br9", "vlan": Vlan((10,))}, "VLAN_ADD", Unsupported),
    ],
)
@pytest.mark.parametrize("was", [{}, ALL], ids=["plain", "set"])
def test_what_is_refused_leaves_it_as_it_was(engine, other, was, fields, act, kind):
    with vhostnet.open_nic(but(**was), engine=engine) as nic:
        before = port_of(nic), nic.spec
        with pytest.raises(kind) as caught:
            nic.update(but(**fields))
        assert (caught.value.act, caught.value.undoing) == (act, None)
        assert (port_of(nic), nic.spec) == before


def test_where_it_cannot_be_what_it_was_that_is_said(engine, other):
    with vhostnet.open_nic(SPEC, engine=engine) as nic:
        ip(f"link del {BRIDGE}")
        with pytest.raises(vhostnet.NoSuchBridge) as caught:
            nic.update(but(bridge="nowhere"))
        assert isinstance(caught.value.undoing, HostError)
        nic.update(but(bridge="br9"))
        assert port_of(nic)["master"] == "br9"


@pytest.mark.parametrize(
    ("fields", "attribute"),
    [
        ({"mac": "52:54:00:00:00:02"}, "mac"),
        ({"queues": 4}, "queues"),
        ({"model": "e1000", "queues": 1}, "model"),
        ({"ifname": "another"}, "ifname"),
        ({"rx_queue_size": 512}, "rx_queue_size"),
        ({"type": "ethernet", "bridge": None}, "type"),
    ],
)
def test_what_the_guest_would_have_to_know_of(engine, bridge, fields, attribute):
    with vhostnet.open_nic(SPEC, engine=engine) as nic:
        before = port_of(nic)
        with pytest.raises(SpecError) as caught:
            nic.update(but(**fields))
        assert caught.value.attribute == attribute
        assert (port_of(nic), nic.spec) == (before, SPEC)


def test_the_link_is_qemus(engine, other):
    """What QEMU is to be told of it is returned; where nothing else changes, no act is run."""
    with vhostnet.open_nic(but(link_state="up"), engine=engine) as nic:
        assert nic.update(but(link_state="up", bridge="br9")) == ()
        ip("link del br9")
        assert nic.update(but(link_state="down", bridge="br9")) == (set_link("net0", up=False),)
        assert nic.spec == but(link_state="down", bridge="br9")
        with pytest.raises(vhostnet.NoSuchBridge):
            nic.update(but(link_state="up", bridge="br9", isolated=True))
        assert nic.spec.link_state == "down"
        assert nic.update(but(link_state="up", **ALL), alias="ua-net") == (set_link("ua-net", up=True),)
        assert port_of(nic) == SET
        assert nic.update(but(**ALL)) == ()  # up is what it is without a word
    with pytest.raises(NicClosed):
        nic.update(but(link_state="down"))


def set_link(name, *, up):
    return {"execute": "set_link", "arguments": {"name": name, "up": up}}


@pytest.mark.qemu
@pytest.mark.slow
def test_qemu_takes_what_it_is_told_of_the_link(engine, bridge):
    qemu = ["qemu-system-x86_64", "-S", "-M", "pc", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none"]
    with vhostnet.open_nic(SPEC, engine=engine) as nic:
        argv = nic.qemu_argv()
        told = [*nic.update(but(link_state="down")), *nic.update(but(link_state="up"))]
        ask = [(command["execute"], command["arguments"]) for command in told]
        assert ask_qemu([*qemu, "-qmp", "stdio", *argv], nic.fds, ask) == [{}, {}]


def test_one_that_is_down_stays_so(engine, other):
    with vhostnet.open_nic(SPEC, engine=engine, up=False) as nic:
        nic.update(but(bridge="br9", isolated=True))
        assert (link(nic.ifname)["up"], link(nic.ifname)["master"]) == (False, "br9")
        nic.up()
        found = port_of(nic)
        assert (found["up"], found["isolated"]) == (True, True)
        nic.update(SPEC)
        assert port_of(nic) == PLAIN


def test_one_that_is_closed(engine, bridge):
    nic = vhostnet.open_nic(SPEC, engine=engine)
    nic.close()
    with pytest.raises(NicClosed):
        nic.update(but(isolated=True))


def test_many_threads(engine, other):
    """Each update is whole, whichever is the last."""
    with vhostnet.open_nic(SPEC, engine=engine) as nic:
        wanted = {0: {**PLAIN, "master": "br9", "mtu": 9000}, 1: SET}

        def change(which):
            for _ in range(20):
                nic.update(but(bridge="br9") if which == 0 else but(**ALL))

        threads = [threading.Thread(target=change, args=(which,)) for which in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert port_of(nic) in wanted.values()


@pytest.mark.vlan
def test_vlans_of_another_kind(engine, other):
    ip(f"link set {BRIDGE} type bridge vlan_filtering 1")

    def vlans():
        (port,) = run_json(f"bridge vlan show dev {nic.ifname}")
        return [row["vlan"] for row in port["vlans"]]

    with vhostnet.open_nic(SPEC, engine=engine) as nic:
        for vlan, wanted in [(Vlan((10,)), [10]), (Vlan((20, 30), trunk=True), [20, 30]), (None, [1])]:
            nic.update(but(vlan=vlan))
            assert vlans() == wanted
        nic.update(but(vlan=Vlan((10,))))
        with pytest.raises(vhostnet.NoSuchBridge):
            nic.update(but(bridge="nowhere"))
        assert vlans() == [10]
