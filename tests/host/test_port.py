"""What a NIC is on its bridge, beyond a port of it: isolated, in VLANs, in the forwarding table; and its coalescing."""

import errno
import os
import subprocess
import sys

import pytest
from conftest import BRIDGE, link_names, open_fds
from frames import BROADCAST, MARK, Talker, check_heard, frame, heard, said
from kernel import ethtool, ip, link, run_json

import vhostnet
from vhostnet import InterfaceSpec, SpecError, Unsupported, Vlan
from vhostnet.others import bridge as bridges

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("net")]
MAC = "52:54:00:00:00:0{}"


def wish(number=1, **fields):
    # A model without vnet_hdr: what is read and written is a frame.
    return InterfaceSpec(**{"bridge": BRIDGE, "model": "e1000", "mac": MAC.format(number), **fields})


def port_of(nic):
    (found,) = run_json(f"bridge -d link show dev {nic.ifname}")
    return {name: found[name] for name in ("isolated", "learning", "flood")}


PLAIN = {"isolated": False, "learning": True, "flood": True}


def entries_of(nic):
    """The guest's MAC in the forwarding table: in which VLANs."""
    found = run_json(f"bridge fdb show dev {nic.ifname}")
    own = [row for row in found if row["mac"] == nic.spec.mac]
    assert all(row["state"] == "static" and row["master"] == nic.spec.bridge for row in own)
    return sorted(row.get("vlan", 0) for row in own)


def vlans_of(nic):
    """VLAN -> its flags; ranges are taken apart."""
    found = {}
    for port in run_json(f"bridge vlan show dev {nic.ifname}"):
        for row in port["vlans"]:
            for vid in range(row["vlan"], row.get("vlanEnd", row["vlan"]) + 1):
                found[vid] = set(row.get("flags", ()))
    return found


def frames_of(nic):
    """What its ethtool says of rx-frames."""
    return ethtool(nic.ifname, 0x0E, 23)[2]  # ETHTOOL_GCOALESCE, struct ethtool_coalesce


# --- ports -----------------------------------------------------------------------------------------------


def test_an_isolated_port(engine, bridge):
    specs = [wish(1, isolated=True), wish(2, isolated=True), wish(3), wish(4, isolated=False)]
    nics = vhostnet.open_nics(specs, engine=engine)
    assert [port_of(nic)["isolated"] for nic in nics] == [True, True, False, False]
    first, second, *others = nics
    said(first, BROADCAST)
    assert [len(heard(nic, 1)) for nic in others] == [1, 1]
    assert heard(second) == []
    said(others[0], BROADCAST)
    assert [len(heard(nic, 1)) for nic in (first, second)] == [1, 1]
    vhostnet.close_nics(nics)


def test_the_forwarding_table_instead_of_learning(engine, bridge):
    nics = vhostnet.open_nics([wish(1, mac_table_manager="libvirt"), wish(2)], engine=engine)
    managed, plain = nics
    assert port_of(managed) == {"isolated": False, "learning": False, "flood": False}
    # On a kernel with VLANs in that of the port, too, whether the bridge heeds it or not.
    assert (entries_of(managed)[0], port_of(plain), entries_of(plain)) == (0, PLAIN, [])
    said(plain, "52:54:00:00:00:99")  # nobody's
    said(plain, managed.spec.mac)
    assert [got[:6].hex(":") for got in heard(managed, 1)] == [managed.spec.mac]
    os.write(managed.tap_fds[0], frame(BROADCAST, "52:54:00:00:00:77"))  # a MAC that is not its own
    assert len(heard(plain, 1)) == 1
    assert "52:54:00:00:00:77" not in [row["mac"] for row in run_json(f"bridge fdb show br {BRIDGE}")]
    vhostnet.close_nics(nics)


@pytest.mark.parametrize(("asked", "found"), [(None, 0), (0, 0), (1, 1), (7, 7), (64, 64), (65, 64), (4294967295, 64)])
def test_coalescing_is_what_the_kernel_takes_of_it(engine, bridge, asked, found):
    with vhostnet.open_nic(wish(rx_frames=asked), engine=engine) as nic:
        assert frames_of(nic) == found


def test_a_port_that_asks_for_nothing_is_as_any(engine, bridge):
    with vhostnet.open_nic(wish(isolated=False, mac_table_manager="kernel", rx_frames=0), engine=engine) as nic:
        assert port_of(nic) == PLAIN


def test_one_that_was_made_ahead_has_them_when_it_is_taken(engine, bridge):
    shape = wish(rx_frames=3, isolated=True)
    with vhostnet.NicPool(shape, size=2, low=0, engine=engine) as pool:
        pool.fill()
        with pool.take() as nic, pool.take(wish(2, mac_table_manager="libvirt")) as other:
            assert (port_of(nic)["isolated"], frames_of(nic)) == (True, 3)
            assert port_of(other) == {"isolated": False, "learning": False, "flood": False}
            assert (entries_of(other)[0], frames_of(other)) == (0, 0)
        assert pool.stats.missed == 0


def test_no_frame_passes_before_it_is_isolated(bridge):
    with vhostnet.open_nic(wish(9, isolated=True)) as other:
        with Talker(frame(BROADCAST, MAC.format(1)), other) as talker:
            for _ in range(50):
                with vhostnet.open_nic(wish(1, isolated=True)):
                    talker.until_heard()
        assert heard(other) == []
        check_heard(other, wish(1))


def test_left_down_until_it_is_told(engine, bridge):
    with vhostnet.open_nic(wish(9), engine=engine) as other:
        with vhostnet.open_nic(wish(1, isolated=True, rx_frames=5), engine=engine, up=False) as nic:
            assert (link(nic.ifname)["up"], link(nic.ifname)["master"], frames_of(nic)) == (False, BRIDGE, 5)
            for _ in range(2):  # again does no harm
                nic.up()
            assert (link(nic.ifname)["up"], port_of(nic)["isolated"]) == (True, True)
            said(nic, BROADCAST)
            assert len(heard(other, 1)) == 1
        with pytest.raises(vhostnet.NicClosed):
            nic.up()


def test_one_that_is_gone_cannot_be_brought_up(engine, bridge):
    nic = vhostnet.open_nic(wish(), engine=engine, up=False)
    ip(f"link del {nic.ifname}")
    for turn in (nic.up, nic.down):
        with pytest.raises(vhostnet.HostError) as caught:
            turn()
        assert (caught.value.act, caught.value.ifname) == (turn.__name__.upper(), nic.ifname)
    nic.close()
    with pytest.raises(vhostnet.NicClosed):
        nic.down()


# --- down, and up again ----------------------------------------------------------------------------------


def learned(nic):
    return any(row["mac"] == nic.spec.mac for row in run_json(f"bridge fdb show dev {nic.ifname}"))


@pytest.mark.parametrize("settings", [{}, {"isolated": True, "rx_frames": 5}, {"mac_table_manager": "libvirt"}])
def test_down_it_is_the_port_that_it_was_and_nobody_hears_of_it(engine, bridge, settings):
    before = open_fds()
    with vhostnet.open_nic(wish(9), engine=engine) as other, vhostnet.open_nic(wish(**settings), engine=engine) as nic:
        said(nic, BROADCAST)
        assert (len(heard(other, 1)), learned(nic)) == (1, True)
        was = port_of(nic), frames_of(nic), link(nic.ifname)
        said(other, BROADCAST)
        for _ in range(2):  # again does no harm
            nic.down()
        assert (link(nic.ifname)["up"], link(nic.ifname)["master"], learned(nic)) == (False, BRIDGE, False)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            said(nic, BROADCAST)
        said(other, nic.spec.mac)
        said(other, BROADCAST)
        assert heard(other) == []
        for _ in range(2):
            nic.up()
        assert (port_of(nic), frames_of(nic), link(nic.ifname)) == was
        assert len(heard(nic, 1)) == 1  # what came before it went down, and nothing since
        said(nic, BROADCAST)
        assert (len(heard(other, 1)), learned(nic)) == (1, True)
    assert open_fds() == before


def test_one_that_was_never_up_goes_down_as_well(engine, bridge):
    with vhostnet.open_nic(wish(), engine=engine, up=False) as nic:
        nic.down()
        nic.up()
        nic.update(wish(isolated=True))
        assert (link(nic.ifname)["up"], port_of(nic)["isolated"]) == (True, True)
        nic.down()
        nic.update(wish(mac_table_manager="libvirt"))
        assert (link(nic.ifname)["up"], entries_of(nic)) == (False, [])
        nic.up()
        assert (link(nic.ifname)["up"], entries_of(nic)[0]) == (True, 0)


def test_a_guest_that_is_at_another_port_next(engine, bridge):
    """The forwarding table has it at one port at a time, whoever is the first to go."""
    managed = wish(mac_table_manager="libvirt")
    with vhostnet.open_nic(managed, engine=engine) as old, vhostnet.open_nic(managed, engine=engine, up=False) as new:
        assert (entries_of(old)[0], entries_of(new)) == (0, [])
        old.down()
        new.up()
        assert (entries_of(old), entries_of(new)[0]) == ([], 0)
        old.up()
        new.down()
        assert (entries_of(old)[0], entries_of(new)) == (0, [])


# --- VLANs, on a bridge that heeds them ------------------------------------------------------------------


def test_a_bridge_that_does_not_heed_vlans_is_refused(engine, bridge):
    before = open_fds(), link_names()
    with pytest.raises(Unsupported) as caught:
        vhostnet.open_nics([wish(1), wish(2, vlan=Vlan((10,)), ifname="vl-2")], engine=engine)
    assert (open_fds(), link_names()) == before
    error = caught.value
    assert (error.act, error.call, error.ifname) == ("VLAN_ADD", "IFLA_BR_VLAN_FILTERING", "vl-2")
    assert f"ip link set {BRIDGE} type bridge vlan_filtering 1" in str(error)


def test_the_other_nics_of_such_a_batch_are_kept(engine, bridge):
    specs = [wish(1, vlan=Vlan((10,))), wish(2)]
    refused, nic = vhostnet.open_nics(specs, engine=engine, on_error="keep")
    assert isinstance(refused, Unsupported)
    assert port_of(nic) == PLAIN
    nic.close()


@pytest.mark.slow
def test_the_plan_and_the_doctor_say_so_before(engine, bridge):
    with pytest.raises(Unsupported) as caught:
        vhostnet.plan_nics([wish(1), wish(2, vlan=Vlan((10,)), ifname="vl-2")], engine=engine)
    assert (caught.value.act, caught.value.ifname) == ("VLAN_ADD", "vl-2")
    inside = f"<source bridge='{BRIDGE}'/><vlan><tag id='7'/></vlan><model type='virtio'/>"
    text = f"<interface type='bridge'>{inside}</interface>"
    done = subprocess.run([sys.executable, "-m", "vhostnet", "doctor", "-"], input=text, capture_output=True, text=True)
    assert f"ip link set {BRIDGE} type bridge vlan_filtering 1" in done.stdout
    assert done.returncode != 0


@pytest.mark.vlan
def test_nor_do_they_where_it_heeds_them(engine, filtering):
    (row,) = vhostnet.plan_nics([wish(1, vlan=Vlan((10,)))], engine=engine).nics
    assert row.port.vlans == ((6, 10),)


@pytest.fixture
def filtering(bridge):
    ip(f"link set {BRIDGE} type bridge vlan_filtering 1")


PVID, UNTAGGED = "PVID", "Egress Untagged"


@pytest.mark.vlan
@pytest.mark.usefixtures("filtering")
@pytest.mark.parametrize(
    ("vlan", "found"),
    [
        (Vlan((10,)), {10: {PVID, UNTAGGED}}),
        (Vlan((1,)), {1: {PVID, UNTAGGED}}),
        (Vlan((4094,)), {4094: {PVID, UNTAGGED}}),
        (Vlan((10,), trunk=True), {10: set()}),
        (Vlan((1, 2), trunk=True), {1: set(), 2: set()}),
        (Vlan((30, 10, 11, 12), trunk=True), {10: set(), 11: set(), 12: set(), 30: set()}),
        (Vlan((10, 20), trunk=True, native=20), {10: set(), 20: {PVID, UNTAGGED}}),
        (Vlan((10, 11, 12), True, 11, "tagged"), {10: set(), 11: {PVID}, 12: set()}),
        (Vlan(tuple(range(1, 4095)), trunk=True), {key: set() for key in range(1, 4095)}),
        (Vlan(tuple(range(2, 2050, 2)), trunk=True), {key: set() for key in range(2, 2050, 2)}),
    ],
    ids=str,
)
def test_the_vlans_of_a_port(engine, vlan, found):
    with vhostnet.open_nic(wish(vlan=vlan), engine=engine) as nic:
        assert vlans_of(nic) == found


@pytest.mark.vlan
def test_a_bridge_without_a_default_vlan(engine, filtering):
    ip(f"link set {BRIDGE} type bridge vlan_default_pvid 0")
    with vhostnet.open_nic(wish(vlan=Vlan((1,), trunk=True)), engine=engine) as nic:
        assert vlans_of(nic) == {1: set()}


@pytest.mark.vlan
def test_a_batch_over_bridges_with_defaults_of_their_own(engine, filtering):
    bridges.make_bridge("br9")
    ip("link set br9 type bridge vlan_filtering 1 vlan_default_pvid 7")
    vlans = [Vlan((10,)), Vlan((7, 8), trunk=True), None]
    specs = [wish(at, bridge=name, vlan=vlan) for name in (BRIDGE, "br9") for at, vlan in enumerate(vlans, 1)]
    nics = vhostnet.open_nics(specs, engine=engine)
    mine = {10: {PVID, UNTAGGED}}, {7: set(), 8: set()}
    assert [vlans_of(nic) for nic in nics] == [*mine, {1: {PVID, UNTAGGED}}, *mine, {7: {PVID, UNTAGGED}}]
    vhostnet.close_nics(nics)


@pytest.mark.vlan
def test_more_entries_than_go_into_one_send(engine, filtering):
    """Each of these has a message of some KiB."""
    trunk = Vlan(tuple(range(2, 2050, 2)), trunk=True)
    nics = vhostnet.open_nics([wish(at, vlan=trunk, isolated=True) for at in range(1, 6)], engine=engine)
    assert all(vlans_of(nic) == {key: set() for key in trunk.tags} for nic in nics)
    vhostnet.close_nics(nics)


@pytest.mark.vlan
def test_the_forwarding_table_knows_every_vlan_of_the_port(engine, filtering):
    vlan = Vlan((10, 20), trunk=True, native=20)
    with vhostnet.open_nic(wish(vlan=vlan, mac_table_manager="libvirt"), engine=engine) as nic:
        assert set(entries_of(nic)) >= {10, 20}


@pytest.mark.vlan
def test_frames_stay_in_their_vlan(engine, filtering):
    trunk = Vlan((10, 20), trunk=True)
    vlans = [Vlan((10,)), Vlan((20,)), trunk, None]
    nics = vhostnet.open_nics([wish(at, vlan=vlan) for at, vlan in enumerate(vlans, 1)], engine=engine)
    ten, twenty, both, plain = nics
    said(ten, BROADCAST)
    (tagged,) = heard(both, 1)
    assert tagged[12:16] == b"\x81\x00\x00\x0a"
    said(both, BROADCAST, tag=20)
    assert [got[12:14] for got in heard(twenty, 1)] == [MARK[:2]]
    said(both, BROADCAST)  # it has no VLAN for what has no tag
    assert [heard(nic) for nic in (ten, plain)] == [[], []]
    vhostnet.close_nics(nics)


@pytest.mark.vlan
def test_no_frame_passes_before_its_vlan_stands(filtering):
    with vhostnet.open_nic(wish(9)) as other:
        with Talker(frame(BROADCAST, MAC.format(1)), other) as talker:
            for _ in range(50):
                with vhostnet.open_nic(wish(1, vlan=Vlan((10,)))):
                    talker.until_heard()
        assert heard(other) == []
        check_heard(other, wish(1))


@pytest.mark.vlan
def test_one_that_was_made_ahead_was_never_in_another_vlan(engine, filtering):
    with vhostnet.NicPool(wish(vlan=Vlan((10,))), size=1, low=0, engine=engine) as pool:
        pool.fill()
        with pool.take() as nic:
            assert vlans_of(nic) == {10: {PVID, UNTAGGED}}
        assert pool.stats.missed == 0


@pytest.mark.parametrize("vlan", [Vlan((0,)), Vlan((4095,)), Vlan((7, 4095), trunk=True)])
def test_a_vlan_that_no_linux_bridge_has(bridge, no_leaks, vlan):
    """libvirt takes it, too, and then the kernel does not."""
    for ask in (vhostnet.open_nic, lambda spec: vhostnet.plan_nics([spec])):
        with pytest.raises(SpecError, match=rf"vlan={vlan.tags[-1]} is none that a Linux bridge has; expected 1..4094"):
            ask(wish(vlan=vlan))


def test_vlans_that_are_too_many_for_one_message(bridge):
    with pytest.raises(SpecError, match="at most 1024 entries"):
        vhostnet.open_nic(wish(vlan=Vlan(tuple(range(2, 2054, 2)), trunk=True)))
