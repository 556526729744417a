"""Ports of a real Open vSwitch: one transaction for a batch, what is in it, and that nothing of it is left behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, lacks, link_names
from kernel import ip, link

import vhostnet
from bench import openvswitch
from vhostnet import (
    Bandwidth,
    DeviceGone,
    HostError,
    InterfaceSpec,
    NameBusy,
    NoSuchBridge,
    Rate,
    SpecError,
    Unsupported,
    VirtualPort,
    Vlan,
)
from vhostnet.slow import ovsdb
from vhostnet.values import replace

pytestmark = [pytest.mark.ovs, pytest.mark.tap]
UUID = "09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f"
VM = "c7a5fdbd-cdaf-9455-926a-d65c16db1809"


@pytest.fixture
def switch(net):
    """With bridges ovs0 and ovs1."""
    with openvswitch.switch("ovs0", "ovs1") as made:
        yield made


@pytest.fixture
def nothing_left(switch, no_leaks):
    """Nor ports, nor queues."""
    yield
    assert [*switch.ports("ovs0"), *switch.ports("ovs1")] == []
    assert switch.queueing() == []


pytestmark.append(pytest.mark.usefixtures("nothing_left"))


def wish(name="nic0", **fields):
    port = VirtualPort(interfaceid=UUID)
    return InterfaceSpec(**{"bridge": "ovs0", "vhost": "off", "ifname": name, "virtualport": port, **fields})


def columns(switch, name="nic0"):
    """Of port and interface what libvirt sets, less the mark."""
    port, interface = switch.row("Port", name), switch.row("Interface", name)
    ids = dict(interface["external_ids"])
    mark = ids.pop("vhostnet")
    assert port["external_ids"] == {"vhostnet": mark}
    tagging = {key: port[key] for key in ("tag", "trunks", "vlan_mode") if port[key] != []}
    return tagging, ids, port["other_config"], mark


IDS = {"attached-mac": "52:54:00:00:00:01", "iface-id": UUID, "iface-status": "active"}


# What libvirt 11.3 was seen to have ovs-vsctl write for these.
@pytest.mark.parametrize(
    ("fields", "tagging", "more"),
    [
        ({}, {}, {}),
        ({"vlan": Vlan((5,))}, {"tag": 5}, {}),
        ({"vlan": Vlan((0,))}, {"tag": 0}, {}),
        ({"vlan": Vlan((0, 4095), trunk=True)}, {"trunks": [0, 4095]}, {}),
        ({"vlan": Vlan((5, 6), trunk=True)}, {"trunks": [5, 6]}, {}),
        ({"vlan": Vlan((5,), trunk=True)}, {"trunks": 5}, {}),
        (
            {"vlan": Vlan((5, 6), True, 5, "tagged")},
            {"tag": 5, "trunks": [5, 6], "vlan_mode": "native-tagged"},
            {},
        ),
        (
            {"vlan": Vlan((5, 6), True, 6)},
            {"tag": 6, "trunks": [5, 6], "vlan_mode": "native-untagged"},
            {},
        ),
        (
            {"virtualport": VirtualPort(UUID, "bob", VM)},
            {},
            {"port-profile": "bob", "ifname": "nic0", "vm-id": VM},
        ),
    ],
)
def test_as_libvirt_has_it(engine, switch, fields, tagging, more):
    spec = wish(mac="52:54:00:00:00:01", **fields)
    with vhostnet.open_nic(spec, engine=engine) as nic:
        found, ids, config, mark = columns(switch)
        assert (found, ids, config) == (tagging, {**IDS, **more}, {"transient": "true"})
        assert mark == link_alias("nic0")
        interface = switch.seen("nic0")
        assert (interface["ifindex"], interface["mac_in_use"]) == (nic.ifindex, nic.mac)
        assert interface["ofport"] > 0
        assert switch.ports("ovs0") == ["nic0"]
        assert nic.needs_closing


def link_alias(name):
    return ip(f"link show dev {name}").split("alias ")[1].strip()


def test_a_process_that_ends_with_one_open_leaves_no_port(engine, switch):
    code = (
        "import sys, vhostnet\n"
        "spec = vhostnet.InterfaceSpec(bridge='ovs0', vhost='off', virtualport=vhostnet.VirtualPort(sys.argv[2]))\n"
        "nic = vhostnet.open_nic(spec, engine=sys.argv[1])\n"
    )
    command = [sys.executable, "-W", "always", "-c", code, engine, UUID]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (switch.ports("ovs0"), done.stderr.count("ResourceWarning: unclosed <Nic")) == ([], 1)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("queues", [1, 8])
def test_the_link_is_as_any_but_for_its_bridge(engine, switch, queues):
    """noqueue stands, though the switch takes away what it finds; UP is last."""
    with vhostnet.open_nic(wish(queues=queues), engine=engine) as nic:
        facts = link("nic0")
        assert (facts["up"], facts["master"], facts["mac"], facts["qdisc"]) == (True, None, nic.mac, "noqueue")
        acts = [timing.act for timing in nic.timings]
        assert acts == ["TAP_OPEN", "LINK", "PLUG", "QDISC", "UP"]
        switch.vsctl("set", "Port", "nic0", "tag=7")
        assert link("nic0")["qdisc"] == "noqueue"


def test_an_mtu_is_the_bridges(engine, switch):
    ip("link set dev ovs0 mtu 1400")
    with vhostnet.open_nic(wish(), engine=engine) as nic:
        assert (nic.mtu, link("nic0")["mtu"]) == (1400, 1400)
    with vhostnet.open_nic(wish(mtu=1300), engine=engine) as nic:
        assert (nic.mtu, link("nic0")["mtu"], link("ovs0")["mtu"]) == (1300, 1300, 1300)


def test_a_batch_is_two_transactions_and_its_end_one(engine, switch, monkeypatch):
    sent, real = [], ovsdb._Database.transact

    def transact(self, *operations, **how):
        sent.append(operations)
        return real(self, *operations, **how)

    monkeypatch.setattr(ovsdb._Database, "transact", transact)
    specs = [wish(f"nic{n}", bridge=f"ovs{n % 2}", virtualport=VirtualPort()) for n in range(20)]
    nics = vhostnet.open_nics([*specs, InterfaceSpec(type="ethernet", vhost="off")], engine=engine)
    writing = [any(one["op"] != "select" for one in operations) for operations in sent]
    assert writing.count(True) == 2  # to put them in, and to wait
    assert (len(switch.ports("ovs0")), len(switch.ports("ovs1"))) == (10, 10)
    sent.clear()
    vhostnet.close_nics(nics)
    assert len(sent) == 2
    assert link_names() == ["lo", "ovs-netdev", "ovs0", "ovs1"]


def test_the_same_name_again_and_again(engine, switch):
    for _ in range(10):
        with vhostnet.open_nic(wish(), engine=engine) as nic:
            assert switch.seen("nic0")["ifindex"] == nic.ifindex


def test_beside_a_thousand_fds(engine, switch):
    """Whoever waits by select() has no place for those above 1023."""
    with contextlib.ExitStack() as stack:
        for _ in range(1100):
            stack.callback(os.close, os.open("/dev/null", os.O_RDONLY))
        with vhostnet.open_nic(wish(), engine=engine):
            assert switch.ports("ovs0") == ["nic0"]
    assert switch.ports("ovs0") == []


def test_the_program(engine, switch):
    spec = wish(vlan=Vlan((5, 6), True, 5))
    lines = str(vhostnet.plan_nics([spec], engine=engine)).splitlines()
    assert lines[1:] == [
        f"1  LINK        nic0  mac fe{spec.mac[2:]}  mtu 1500",
        "2  PLUG        nic0  openvswitch ovs0  tag 5  trunks 5,6  native-untagged",
        "3  QDISC       nic0  noqueue",
        "4  UP          nic0",
    ]


# --- what is refused -------------------------------------------------------------------------------------


def refused(engine, *specs, kind=HostError, **how):
    with pytest.raises(kind) as caught:
        vhostnet.open_nics(specs, engine=engine, **how)
    assert caught.value.act == "PLUG"
    assert caught.value.remedy
    return caught.value


def test_no_such_bridge(engine, switch):
    error = refused(engine, wish("nic1"), wish(bridge="ovs9"), kind=NoSuchBridge)
    assert (error.ifname, error.remedy) == ("nic0", "make it: ovs-vsctl add-br ovs9")
    assert "it has ovs0, ovs1" in error.strerror
    with pytest.raises(NoSuchBridge, match="it has ovs0, ovs1"):
        vhostnet.plan_nics([wish(bridge="ovs9")], engine=engine)


def test_somebody_elses_port(engine, switch):
    """It stays, whether its device is there or not."""
    switch.vsctl("--no-wait", "add-port", "ovs1", "nic0")  # whose device is not there
    before = switch.row("Port", "nic0")["_uuid"]
    error = refused(engine, wish("nic1"), wish(), kind=NameBusy)
    assert error.ifname == "nic0"
    assert "del-port nic0" in error.remedy
    kept, busy = vhostnet.open_nics([wish("nic1"), wish()], engine=engine, on_error="keep")
    assert isinstance(busy, NameBusy)
    kept.close()
    assert switch.row("Port", "nic0")["_uuid"] == before
    switch.vsctl("del-port", "nic0")


def test_somebody_elses_port_that_comes_meanwhile(engine, switch, monkeypatch):
    real = ovsdb._left_over
    monkeypatch.setattr(ovsdb, "_left_over", lambda *what: switch.vsctl("add-port", "ovs1", "nic0") or real(*what))
    error = refused(engine, wish(), kind=NameBusy)
    assert "constraint violation" in error.strerror
    assert switch.ports("ovs1") == ["nic0"]
    switch.vsctl("del-port", "nic0")


def test_a_bridge_that_goes_meanwhile(engine, switch, monkeypatch):
    switch.add_bridge("ovs2")
    real = ovsdb._left_over
    monkeypatch.setattr(ovsdb, "_left_over", lambda *what: switch.vsctl("del-br", "ovs2") or real(*what))
    assert "any more" in refused(engine, wish(bridge="ovs2"), kind=NoSuchBridge).strerror


def test_a_switch_in_another_network_namespace(engine, switch):
    """It has no such device, or another of that name: it must not take that."""
    ip("tuntap add nic1 mode tap")
    subprocess.run(["ip", "netns", "add", "vhostnet-ovs"], check=True)
    try:
        error = refused(engine, wish(), netns="vhostnet-ovs")
        assert "could not open network device nic0" in error.strerror
        assert "another link of that name" in refused(engine, wish("nic1"), netns="vhostnet-ovs").strerror
    finally:
        subprocess.run(["ip", "netns", "del", "vhostnet-ovs"], check=True)
    ip("link del nic1")


def test_ovs_vswitchd_does_not_answer(engine, switch, monkeypatch):
    monkeypatch.setattr(ovsdb, "SWITCH", 0.3)
    switch.daemon.send_signal(signal.SIGSTOP)
    error = refused(engine, wish("nic1"), wish())
    assert "ovs-vswitchd does not answer" in error.strerror
    assert switch.vsctl("--no-wait", "list-ports", "ovs0") == ""
    switch.daemon.send_signal(signal.SIGCONT)


def test_ovsdb_server_does_not_answer(engine, switch, monkeypatch):
    monkeypatch.setattr(ovsdb, "ANSWER", 0.3)
    switch.database.send_signal(signal.SIGSTOP)
    assert "ovsdb-server does not answer" in refused(engine, wish()).strerror
    switch.database.send_signal(signal.SIGCONT)


def test_no_ovsdb_server(engine, switch, monkeypatch):
    monkeypatch.setenv("OVS_RUNDIR", "/nowhere")
    error = refused(engine, wish(), kind=Unsupported)
    assert "/nowhere/db.sock" in error.strerror
    assert "systemctl start openvswitch-switch" in error.remedy
    with pytest.raises(Unsupported, match="/nowhere/db.sock"):
        vhostnet.plan_nics([wish()], engine=engine)
    monkeypatch.setenv("OVS_RUNDIR", str(switch.directory))


def test_a_connection_that_ends_before_its_answer(engine, switch, monkeypatch):
    """It may have done what it was asked: it is looked at before it is undone."""
    real, numbers = ovsdb._Database._receive, []

    def lost(self):
        numbers.append(real(self))
        if any("uuid" in (one or {}) for one in numbers[-1]["result"]):
            raise OSError(104, "ovsdb-server has gone away", "recv")
        return numbers[-1]

    monkeypatch.setattr(ovsdb._Database, "_receive", lost)
    assert refused(engine, wish()).call == "recv"


def test_nics_after_it_are_undone_too(engine, switch):
    """A script says no, when all the others are in the switch."""
    script = InterfaceSpec(type="ethernet", vhost="off", ifname="nic2", script="false")
    with pytest.raises(HostError, match="SCRIPT"):
        vhostnet.open_nics([limited(1000), wish("nic1", virtualport=VirtualPort()), script], engine=engine)


def test_with_keep_only_what_is_refused_goes(engine, switch):
    """Of each kind: no bridge, a script that says no, an address twice; the port of the one that is kept stays."""
    twice = (vhostnet.HostIp("10.0.0.1"), vhostnet.HostIp("10.0.0.1"))
    specs = [
        wish("nic1", bridge="ovs9"),
        InterfaceSpec(type="ethernet", vhost="off", ifname="nic2", script="false"),
        wish(),
        InterfaceSpec(type="ethernet", vhost="off", ifname="nic3", tap_ips=twice),
    ]
    bridge, script, kept, address = vhostnet.open_nics(specs, engine=engine, on_error="keep")
    assert [error.act for error in (bridge, script, address)] == ["PLUG", "SCRIPT", "ADDRESS"]
    assert switch.ports("ovs0") == ["nic0"]
    assert {"nic1", "nic2", "nic3"}.isdisjoint(link_names())
    kept.close()


# --- its end ---------------------------------------------------------------------------------------------

LEAVE = """
import os, sys, vhostnet
limit = vhostnet.Bandwidth(vhostnet.Rate(1000))
specs = [vhostnet.InterfaceSpec(bridge="ovs0", vhost="off", ifname=name, virtualport=port, bandwidth=limit)
         for name in sys.argv[2:] for port in [vhostnet.VirtualPort()]]
nics = vhostnet.open_nics(specs, engine=sys.argv[1])
os.kill(os.getpid(), 9)
"""


def crash(switch, engine, *names):
    done = subprocess.run([sys.executable, "-c", LEAVE, engine, *names], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    await_noticed()


def await_noticed():
    """Until ovs-vswitchd knows that the devices are gone."""
    deadline = time.monotonic() + 20
    while any(port.open for port in ovsdb.list_ports()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_crash_leaves_is_listed_and_deleted(engine, switch):
    crash(switch, engine, "nic0", "nic1")
    assert switch.ports("ovs0") == ["nic0", "nic1"]
    found = vhostnet.list_nics()
    assert [(nic.ifname, nic.ifindex, nic.bridge, nic.plugged) for nic in found] == [
        ("nic0", 0, "ovs0", True),
        ("nic1", 0, "ovs0", True),
    ]
    assert not found[0].mark.maker_lives
    done = subprocess.run([sys.executable, "-m", "vhostnet", "list"], cwd=ROOT, capture_output=True, text=True)
    assert "its port of Open vSwitch is all there is of it" in done.stdout
    vhostnet.delete_nics(["nic0", "nic1"], engine=engine)
    assert vhostnet.list_nics() == ()


def test_what_a_crash_left_is_replaced(engine, switch):
    crash(switch, engine, "nic0")
    before = switch.row("Port", "nic0")["_uuid"]
    with vhostnet.open_nic(wish(bridge="ovs1"), engine=engine) as nic:
        assert switch.row("Port", "nic0")["_uuid"] != before
        assert switch.seen("nic0")["ifindex"] == nic.ifindex
        assert (switch.ports("ovs0"), switch.ports("ovs1")) == ([], ["nic0"])
        assert switch.queueing() == []


def test_one_that_the_switch_has_just_got_is_none_that_was_left(engine, switch, monkeypatch):
    """ovs-vswitchd has not looked at its device yet, and says nothing of it: no ifindex."""
    with vhostnet.open_nic(wish(), engine=engine):
        real = ovsdb._Database.transact

        def not_yet(self, *operations, **how):
            answers = real(self, *operations, **how)
            rows = [row for answer in answers for row in answer.get("rows", ()) if "ifindex" in row]
            for row in rows:
                row["ifindex"] = ["set", []]
            return answers

        monkeypatch.setattr(ovsdb._Database, "transact", not_yet)
        refused(engine, wish(), kind=NameBusy)
        assert [nic.plugged for nic in vhostnet.list_nics()] == [True]


def test_a_living_one_of_ours_is_not(engine, switch):
    """Its TAP is in the switch's namespace; another of that name is made elsewhere."""
    subprocess.run(["ip", "netns", "add", "vhostnet-ovs"], check=True)
    try:
        with vhostnet.open_nic(wish(), engine=engine) as nic:
            refused(engine, wish(), kind=NameBusy, netns="vhostnet-ovs")
            assert switch.seen("nic0")["ifindex"] == nic.ifindex
    finally:
        subprocess.run(["ip", "netns", "del", "vhostnet-ovs"], check=True)


def test_a_listed_one_that_lives(engine, switch):
    with vhostnet.open_nic(wish(), engine=engine) as nic:
        (found,) = vhostnet.list_nics()
        assert (found.ifindex, found.bridge, found.plugged) == (nic.ifindex, "ovs0", True)
        with pytest.raises(NameBusy):
            vhostnet.delete_nics(["nic0"], engine=engine)


def test_one_that_lasts(engine, switch):
    with vhostnet.open_nic(limited(1000), engine=engine, persist=True) as nic:
        assert not nic.needs_closing
    assert switch.ports("ovs0") == ["nic0"]
    vhostnet.delete_nics(["nic0"], engine=engine)


def test_closed_while_the_database_is_down(engine, switch, caplog):
    nic = vhostnet.open_nic(limited(1000), engine=engine)
    switch.stop(switch.database)
    nic.close()
    assert "UNPLUG (connect) of nic0" in caplog.text
    assert "nic0" not in link_names()
    switch.start_database()
    await_noticed()
    vhostnet.delete_nics(["nic0"], engine=engine)


def test_a_port_that_is_another_s_by_now_stays(engine, switch):
    """By its name alone it could be taken for ours."""
    with vhostnet.open_nic(wish(), engine=engine):
        switch.vsctl("del-port", "nic0", "--", "add-port", "ovs1", "nic0")
    assert switch.ports("ovs1") == ["nic0"]
    switch.vsctl("del-port", "nic0")


def test_one_whose_port_was_taken_out_leaves_no_queue(engine, switch):
    with vhostnet.open_nic(limited(1000), engine=engine):
        switch.vsctl("del-port", "nic0")
        assert len(switch.queueing()) == 2


def test_queues_that_no_port_leads_to_any_more_go_with_the_next(engine, switch):
    """Those of transient ports, which Open vSwitch takes out when the host has started anew; and nobody else's."""
    crash(switch, engine, "nic0")
    switch.vsctl("del-port", "nic0")
    theirs = [switch.vsctl("create", table, "external_ids:somebody=else").strip() for table in ("QoS", "Queue")]
    assert len(switch.queueing()) == 4
    with vhostnet.open_nic(limited(1000), engine=engine) as nic, vhostnet.open_nic(limited(7, "nic1"), engine=engine):
        assert len(switch.queueing()) == 6
        assert nic.mark in {row["external_ids"].get("vhostnet") for row in switch.queueing()}
    assert sorted(row["_uuid"] for row in switch.queueing()) == sorted(theirs)
    for table, uuid in zip(("QoS", "Queue"), theirs, strict=True):
        switch.vsctl("destroy", table, uuid)


# --- bandwidth: the switch's -----------------------------------------------------------------------------


def limited(average, name="nic0", **fields):
    """In what its guest gets, which any kernel here can limit."""
    return wish(name, bandwidth=Bandwidth(Rate(average)), **fields)


def queue_of(switch, name="nic0"):
    """What the switch is told of what its guest gets: of all, and the same of the one queue."""
    qos, queue = switch.queueing_of(name)
    assert qos["type"] == "linux-htb"
    assert qos["external_ids"] == queue["external_ids"] == {"vhostnet": link_alias(name), "ifname": name}
    assert qos["other_config"] == queue["other_config"]
    return queue["other_config"]


# libvirt 11.3 was seen to write these of a queue, and no max-rate where there is no peak.
@pytest.mark.parametrize(
    ("rate", "queue", "says"),
    [
        (Rate(1000), {"min-rate": "8000000", "max-rate": "8000000"}, "rate 8Mbit ceil 8Mbit"),
        (
            Rate(1000, peak=5000, burst=2048),
            {"min-rate": "8000000", "max-rate": "40000000", "burst": "16777216"},
            "rate 8Mbit ceil 40Mbit burst 2Mb",
        ),
        (Rate(1), {"min-rate": "8000", "max-rate": "8000"}, "rate 8Kbit ceil 8Kbit"),
        (Rate(7, peak=3), {"min-rate": "56000", "max-rate": "56000"}, "rate 56Kbit ceil 56Kbit"),
        (
            Rate(4294967, burst=2**22 - 1),
            {"min-rate": "34359736000", "max-rate": "34359736000", "burst": "34359730176"},
            "rate 34359Mbit ceil 34359Mbit",
        ),
    ],
)
def test_the_switch_limits_what_its_guest_gets(engine, switch, rate, queue, says):
    with vhostnet.open_nic(wish(bandwidth=Bandwidth(rate)), engine=engine) as nic:
        assert [timing.act for timing in nic.timings] == ["TAP_OPEN", "LINK", "PLUG", "UP"]
        assert queue_of(switch) == queue
        assert (link("nic0")["qdisc"], says in classes("nic0")["1:1"]) == ("htb", True)


def classes(name):
    """Class -> what tc says of it."""
    done = subprocess.run(["tc", "class", "show", "dev", name], capture_output=True, text=True, check=True)
    return {line.split()[2]: line for line in done.stdout.splitlines()}


def test_its_bandwidth_changes_where_it_is(engine, switch):
    """The root is noqueue where there is none, and stays what it is where the VLANs alone are others."""
    plain = limited(1000, mac="52:54:00:00:00:01")
    with vhostnet.open_nic(plain, engine=engine) as nic:
        for average in (600, 700):
            nic.update(replace(plain, bandwidth=Bandwidth(Rate(average))))
            assert queue_of(switch)["max-rate"] == str(average * 8000)
            assert f"rate {8 * average}Kbit" in classes("nic0")["1:1"]
        before = classes("nic0")
        nic.update(replace(nic.spec, vlan=Vlan((5,))))
        assert (columns(switch)[0], classes("nic0"), len(switch.queueing())) == ({"tag": 5}, before, 2)
        nic.update(replace(plain, bandwidth=None))
        assert (classes("nic0"), link("nic0")["qdisc"], switch.queueing()) == ({}, "noqueue", [])
        assert switch.row("Port", "nic0")["qos"] == []
        nic.update(plain)
        assert (len(queue_of(switch)), link("nic0")["qdisc"]) == (2, "htb")


def test_what_others_have_limited_is_theirs(engine, switch):
    """Of a NIC without a bandwidth: as OpenStack does."""
    plain = wish(mac="52:54:00:00:00:01")
    with vhostnet.open_nic(plain, engine=engine) as nic:
        switch.vsctl("set", "Interface", "nic0", "ingress_policing_burst=7")
        theirs = ("--id=@q", "create", "QoS", "type=linux-htb", "other_config:max-rate=8000000")
        switch.vsctl("set", "Port", "nic0", "qos=@q", "--", *theirs)
        before = classes("nic0"), switch.queueing()
        nic.update(replace(plain, vlan=Vlan((5,))))
        assert (classes("nic0"), switch.queueing()) == before
        assert switch.row("Interface", "nic0")["ingress_policing_burst"] == 7
        nic.update(replace(plain, bandwidth=Bandwidth(Rate(7))))
        assert switch.row("Interface", "nic0")["ingress_policing_burst"] == 0
        nic.update(plain)
        assert (classes("nic0"), switch.row("Port", "nic0")["qos"]) == ({}, [])
    assert len(switch.queueing()) == 1
    switch.vsctl("--all", "destroy", "QoS")


def test_it_lasts_whatever_the_switch_is_told(engine, switch):
    with vhostnet.open_nic(limited(1000), engine=engine):
        before = classes("nic0")
        with vhostnet.open_nic(wish("nic1"), engine=engine):  # for which the switch looks at all it has
            assert classes("nic0") == before
        assert classes("nic0") == before
        ip("link set nic0 down")
        ip("link set nic0 up")
        switch.restart_daemon()
        assert classes("nic0") == before


def test_a_limit_that_the_kernel_cannot_make_is_an_error(engine, switch):
    """ovs-vswitchd says so in its log alone."""
    if lacks("shaping") is None:
        pytest.skip("this kernel can")
    both = wish(bandwidth=Bandwidth(Rate(1000), Rate(1000)))
    error = refused(engine, both, kind=Unsupported)
    assert error.strerror == "ovs-vswitchd has made no policer of what it sends"
    assert "act_police" in error.remedy
    plain = limited(1000)
    with vhostnet.open_nic(plain, engine=engine) as nic:
        before = queue_of(switch), classes("nic0")
        with pytest.raises(Unsupported, match="REPLUG .*no policer"):
            nic.update(replace(nic.spec, bandwidth=both.bandwidth, vlan=Vlan((5,))))
        assert (queue_of(switch), classes("nic0")) == before
        assert (columns(switch)[0], nic.spec) == ({}, plain)


# --- its changes -----------------------------------------------------------------------------------------

CHANGES = [
    ({"vlan": Vlan((5,))}, {"tag": 5}, {}),
    ({"vlan": Vlan((5, 6), True, 6)}, {"tag": 6, "trunks": [5, 6], "vlan_mode": "native-untagged"}, {}),
    ({"vlan": Vlan((7,), trunk=True)}, {"trunks": 7}, {}),
    (
        {"virtualport": VirtualPort(UUID, "bob", VM)},
        {},
        {"port-profile": "bob", "ifname": "nic0", "vm-id": VM},
    ),
    ({"vlan": Vlan((5,))}, {"tag": 5}, {}),
    ({}, {}, {}),
]


def test_it_changes_where_it_is(engine, switch):
    plain = wish(mac="52:54:00:00:00:01")
    with vhostnet.open_nic(plain, engine=engine) as nic:
        before, fds = switch.seen("nic0"), nic.fds
        for fields, tagging, more in CHANGES:
            nic.update(replace(plain, **fields))
            found, ids, _, mark = columns(switch)
            assert (found, ids, mark) == (tagging, {**IDS, **more}, link_alias("nic0"))
            assert (nic.fds, nic.spec) == (fds, replace(plain, **fields))
            after = switch.seen("nic0")
            assert (after["ofport"], after["_uuid"]) == (before["ofport"], before["_uuid"])
        assert nic.needs_closing


@pytest.mark.parametrize("fields", [{"bridge": "ovs1"}, {"isolated": False}, {"queues": 2}])
def test_what_of_it_cannot_change(engine, switch, fields):
    plain = wish(mac="52:54:00:00:00:01")
    with vhostnet.open_nic(plain, engine=engine) as nic:
        with pytest.raises(SpecError, match="cannot change while the NIC is there, on a bridge of Open vSwitch"):
            nic.update(replace(plain, **fields))
        with pytest.raises(SpecError, match="virtualport='bridge' is not for a NIC that is on a bridge of Open"):
            nic.update(replace(plain, virtualport=None))


def test_one_that_somebody_took_out_cannot_change(engine, switch):
    plain = wish(mac="52:54:00:00:00:01")
    with vhostnet.open_nic(plain, engine=engine) as nic:
        switch.vsctl("del-port", "nic0")
        with pytest.raises(DeviceGone, match="REPLUG \\(OVSDB\\) of nic0: no port of ours any more"):
            nic.update(replace(plain, vlan=Vlan((5,)), bandwidth=Bandwidth(Rate(1000))))
        assert (nic.spec, switch.queueing()) == (plain, [])


def test_one_whose_switch_does_not_answer_is_the_port_it_was(engine, switch, monkeypatch):
    plain = wish(mac="52:54:00:00:00:01", vlan=Vlan((5,)))
    with vhostnet.open_nic(plain, engine=engine) as nic:
        monkeypatch.setattr(ovsdb, "SWITCH", 0.3)
        switch.daemon.send_signal(signal.SIGSTOP)
        with pytest.raises(HostError, match="REPLUG .*ovs-vswitchd does not answer") as caught:
            nic.update(replace(plain, vlan=Vlan((6,))))
        assert caught.value.undoing
        assert json.loads(switch.vsctl("--no-wait", "get", "Port", "nic0", "tag")) == 5
        switch.daemon.send_signal(signal.SIGCONT)
        assert (columns(switch)[0], nic.spec) == ({"tag": 5}, plain)


def test_with_a_limit_that_does_not_come_it_is_the_port_it_was(engine, switch):
    plain = wish(mac="52:54:00:00:00:01", vlan=Vlan((5,)))
    with vhostnet.open_nic(plain, engine=engine) as nic:
        ip("link set nic0 netns 1")  # where no switch of this namespace shapes it
        with pytest.raises(Unsupported, match="REPLUG .*no HTB"):
            nic.update(replace(plain, vlan=Vlan((6,)), bandwidth=Bandwidth(Rate(500))))
        assert (columns(switch)[0], nic.spec) == ({"tag": 5}, plain)


def test_left_down_it_is_in_the_switch_and_comes_up(engine, switch):
    with vhostnet.open_nic(wish(), engine=engine, up=False) as nic:
        assert (link("nic0")["up"], switch.ports("ovs0")) == (False, ["nic0"])
        nic.up()
        assert link("nic0")["up"]


EXEC = "ovs-vsctl --db=unix:$OVS_RUNDIR/db.sock list-ports ovs0; exit 7; : "


def test_exec_waits_for_it(engine, switch, tmp_path):
    file = tmp_path / "nic.xml"
    file.write_text(
        f"<domain type='qemu'><uuid>{VM}</uuid><devices><interface type='bridge'><source bridge='ovs0'/>"
        "<virtualport type='openvswitch'/><target dev='nic0'/><model type='virtio'/></interface></devices></domain>"
    )
    command = [sys.executable, "-m", "vhostnet", "exec", "--engine", engine, str(file), "--", "sh", "-c"]
    done = subprocess.run([*command, EXEC], cwd=ROOT, env=switch.environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "nic0\n")
    with subprocess.Popen([*command, "echo; exec sleep 60"], cwd=ROOT, stdout=subprocess.PIPE) as waiting:
        waiting.stdout.readline()
        assert switch.row("Interface", "nic0")["external_ids"]["vm-id"] == VM
        waiting.terminate()
        assert waiting.wait(20) == 128 + signal.SIGTERM


def test_the_bridge_that_is_one_of_open_vswitch_without_saying_so(engine):
    spec = replace(wish(), virtualport=None, bridge="ovs0")
    with pytest.raises(HostError) as caught:
        vhostnet.open_nic(spec, engine=engine)
    assert caught.value.act == "LINK"


def test_plan_as_json(engine, switch, tmp_path):
    file = tmp_path / "nic.xml"
    file.write_text("<interface type='bridge'><source bridge='ovs0'/><virtualport type='openvswitch'/></interface>")
    command = [sys.executable, "-m", "vhostnet", "plan", "-j", "--engine", engine, str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=dict(os.environ))
    (row,) = json.loads(done.stdout)["nics"]
    assert row["slow"]["plug"]["bridge"] == "ovs0"


def test_doctor_says_why(engine, switch, tmp_path):
    file = tmp_path / "nic.xml"
    file.write_text("<interface type='bridge'><source bridge='ovs9'/><virtualport type='openvswitch'/></interface>")
    command = [sys.executable, "-m", "vhostnet", "doctor", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "no bridge 'ovs9' in Open vSwitch: it has ovs0, ovs1" in done.stdout
    assert done.returncode == 1


def test_what_it_does_to_the_bridges_mtu_is_said(engine, switch):
    program = vhostnet.plan_nics([wish(mtu=1300)], engine=engine)
    (note,) = vhostnet.effects([wish(mtu=1300)], program, engine=engine)
    assert "ovs0's falls from 1500 to 1300" in note
    assert note.endswith("(ovs-vsctl set Interface ovs0 mtu_request=1500)")
    switch.vsctl("set", "Interface", "ovs0", "mtu_request=1500")
    with vhostnet.open_nic(wish(mtu=1300), engine=engine):
        assert link("ovs0")["mtu"] == 1500
