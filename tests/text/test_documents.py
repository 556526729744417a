"""Documents such as people have them: each comes out right, or is refused by the name of what we do not do, with a way
out. What is expected stands here, from what libvirt does with each.
"""

import re
from pathlib import Path

import pytest
from conftest import TESTS

import vhostnet
from vhostnet import (
    Bandwidth,
    CcwAddress,
    DirectSource,
    MmioAddress,
    PciAddress,
    Rate,
    SocketSource,
    SpecError,
    VhostnetWarning,
    VhostUserSource,
    VirtualPort,
    Vlan,
)

DOCUMENTS = TESTS / "documents"


def parse(name, **how):
    return vhostnet.parse_any((DOCUMENTS / f"{name}.xml").read_bytes(), **how)


def devices(specs):
    """What QEMU is to make of each."""
    specs = vhostnet.assign_machine(specs)
    return [vhostnet.qemu_properties(spec, tap_fds=range(3, 3 + spec.queues if spec.tap else 3))[1] for spec in specs]


def test_each_document_is_expected_to_be_something():
    source = Path(__file__).read_text()
    assert [path.stem for path in DOCUMENTS.rglob("*.xml") if f'"{path.stem}"' not in source] == []


# --- taken, and nothing to say ---------------------------------------------------------------------------


def test_an_empty_source_and_an_acpi_index():
    (spec,) = parse("kubevirt", strict=True)
    assert (spec.type, spec.bridge, spec.ifname, spec.mtu) == ("ethernet", None, "tap0", 1450)
    assert (spec.rom_file, spec.acpi_index, spec.alias) == ("", 1, "ua-default")
    assert spec.address == PciAddress(bus=1)


def test_a_lab_of_sockets():
    lan, link = parse("vagrant", strict=True)
    assert (lan.bridge, lan.iommu, link.bridge) == ("virbr1", False, None)
    assert link.source == SocketSource("127.0.0.1", 8001, "127.0.0.1", 9001)


def test_no_tap_at_all():
    slirp, switch = parse("slirp-only", strict=True)
    assert (slirp.tap, slirp.source, slirp.vhost) == (False, None, "off")
    assert (switch.tap, switch.source) == (False, VhostUserSource("/run/v"))


def test_a_switch_on_huge_pages_of_one_numa_cell():
    (spec,) = parse("openstack-dpdk", strict=True)
    assert spec.source == VhostUserSource("/var/run/openvswitch/vhu0a1b2c3d-4e", server=True)
    assert (spec.queues, spec.rx_queue_size, spec.tx_queue_size) == (4, 1024, 1024)
    assert vhostnet.fitted(spec) is spec  # a switch gives what a TAP does not


def test_empty_bandwidths():
    first, second = parse("ovirt", strict=True)
    assert (first.vhost, first.queues, first.mtu, second.bridge) == ("require", 4, 1500, "storage")


def test_a_port_that_is_not_isolated():
    (spec,) = parse("ravada", networks={"default": "virbr0"}, strict=True)
    assert (spec.bridge, spec.address.bus_name) == ("virbr0", "pci.1")


def test_a_hybrid_bridge():
    (spec,) = parse("nova", strict=True)
    assert (spec.ifname, spec.mtu, spec.vhost, spec.address.bus_name) == ("tap1b2c3d4e-5f", 1442, "require", "pci.0")
    assert spec.tx_queue_size == 512


def test_nova_with_open_vswitch():
    (spec,) = parse("nova-ovs", strict=True)
    assert (spec.bridge, spec.bandwidth) == ("br-int", Bandwidth(Rate(1250, 2500, 1000)))
    assert spec.virtualport == VirtualPort("09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f")


# --- taken, with a note ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
def test_a_nic_that_is_not_ours_is_left_out_and_said(strict):
    with pytest.warns(VhostnetWarning, match="line \\d+: <interface type='hostdev'> is left out") as caught:
        (spec,) = parse("virt-manager-running", strict=strict)
    assert len(caught) == 1
    assert spec.bridge == "virbr0"


def test_what_a_lab_script_writes():
    with pytest.warns(VhostnetWarning) as caught:
        (spec,) = parse("lab")
    assert [re.search(r"<(\w+ \w+)", str(warning.message))[1] for warning in caught] == ["source network", "alias name"]
    assert (spec.bridge, spec.alias) == ("lab0", None)
    with pytest.raises(SpecError):
        parse("lab", strict=True)


def test_a_domain_without_kvm_has_no_vhost_whatever_it_says():
    with pytest.warns(VhostnetWarning, match="<driver name='vhost'> has no effect in a domain of type 'qemu'"):
        (spec,) = parse("ci")
    assert (spec.vhost, spec.queues) == ("off", 2)
    with pytest.raises(SpecError, match="type 'qemu'"):
        parse("ci", strict=True)


def test_a_copied_nic_has_another_id():
    specs = parse("clone", strict=True)
    assert [spec.alias for spec in specs] == ["net0", "net0"]
    assert [device["id"] for device in devices(specs)] == ["net0", "net1"]


# --- where the domain says they go -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["aarch64", "riscv64", "loongarch64"])
def test_virt_has_pcie_and_takes_virtio_where_no_model_is_named(name):
    first, second = devices(parse(name, strict=True))
    assert (first["driver"], first["bus"], first["addr"]) == ("virtio-net-pci", "pcie.0", "0x4")
    assert second["driver"] == "virtio-net-pci"
    assert "bus" not in second


def test_where_one_device_has_mmio_all_have():
    (spec,) = parse("aarch64-mmio", strict=True)
    assert spec.address == MmioAddress()


def test_s390x_has_channels():
    specs = parse("s390x", strict=True)
    assert [spec.address for spec in specs] == [CcwAddress(), CcwAddress(devno=3), None]
    first, second, third = devices(specs)
    assert (first["driver"], first["mq"]) == ("virtio-net-ccw", True)
    assert not {"vectors", "devno", "bus"} & set(first)
    assert second["devno"] == "fe.0.0003"
    assert third["driver"] == "virtio-net-pci"  # it says so


@pytest.mark.parametrize("machine", ["arch='x86_64' machine='q35'", "arch='aarch64'", "machine='virt-10.0'"])
@pytest.mark.filterwarnings("ignore::vhostnet.VhostnetWarning")  # q35 does not take virtio where no model is named
def test_channels_are_of_s390x(machine):
    domain = (DOCUMENTS / "s390x.xml").read_text().replace("arch='s390x' machine='s390-ccw-virtio-7.2'", machine)
    with pytest.raises(SpecError, match="line 12: <address> of type ccw is for s390x"):
        vhostnet.parse_domain(domain)


def test_a_microvm_has_no_bus_at_all():
    (device,) = devices(parse("microvm", strict=True))
    assert (device["driver"], device["mq"], "vectors" in device) == ("virtio-net-device", True, False)


def test_a_tap_that_is_there_already():
    (spec,) = parse("kubevirt-unmanaged", strict=True)
    assert (spec.managed, spec.ifname, spec.mac) == (False, "tap0", "02:00:00:1a:2b:3c")
    (device,) = devices([spec])
    assert (device["mac"], device["host_mtu"]) == ("02:00:00:1a:2b:3c", 1450)


# --- refused, with the way out ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "what", "way_out"),
    [
        ("ovirt-filterref", "<filterref>", "nft"),
        ("hostdev-only", "<interface type='hostdev'>", "-device vfio-pci"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_refused_by_name_with_a_way_out(name, what, way_out, strict):
    with pytest.raises(SpecError, match=f"{what} is not supported: .*{way_out}") as caught:
        parse(name, strict=strict)
    assert caught.value.line


# --- one of many -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("nic", [0, "52:54:00:8f:12:9a", "52:54:0:8F:12:9A", "net0"])
def test_one_is_picked_and_the_others_are_not_looked_at(nic):
    (spec,) = parse("virt-manager-running", nic=nic, strict=True)
    assert spec.bridge == "virbr0"


@pytest.mark.parametrize("nic", [1, "hostdev0", "52:54:00:6d:90:02"])
def test_one_that_is_not_ours_can_be_picked_and_is_refused(nic):
    with pytest.raises(SpecError, match="'hostdev'> is not supported"):
        parse("virt-manager-running", nic=nic)


@pytest.mark.parametrize(("nic", "says"), [(2, "none of"), (-1, "none of"), ("net9", "none of"), ("", "none of")])
def test_one_that_is_not_there(nic, says):
    with pytest.raises(SpecError, match=f"is {says} the document's NICs.*0 .52:54:00:8f:12:9a") as caught:
        parse("virt-manager-running", nic=nic)
    assert caught.value.attribute == "nic"


def test_one_that_is_there_twice():
    with pytest.raises(SpecError, match="is more than one of"):
        parse("clone", nic="net0")
    assert parse("clone", nic=1)[0].mac.endswith("02")


def test_an_interface_alone_is_picked_too():
    assert parse("kubevirt", nic="ua-default") == parse("kubevirt")
    with pytest.warns(VhostnetWarning):
        assert len(parse("lab", nic="nic00")) == 1
    with pytest.raises(SpecError, match="none of"):
        parse("lab", nic=1)


# --- networks --------------------------------------------------------------------------------------------


def network(name):
    return vhostnet.parse_network((DOCUMENTS / "networks" / f"{name}.xml").read_bytes(), strict=True)


def plugged(name, group=None):
    """A NIC of that network."""
    there = network(name)
    source = f"network='{there.name}'" + (f" portgroup='{group}'" if group else "")
    text = f"<interface type='network'><model type='virtio'/><source {source}/></interface>"
    return vhostnet.parse_interface(text, networks={there.name: there}, strict=True)


@pytest.mark.parametrize(
    ("name", "bridge"),
    [("default", "virbr0"), ("default-running", "virbr0"), ("host-bridge", "br0"), ("vagrant", "virbr1")],
)
def test_a_network_that_is_its_bridge_and_no_more(name, bridge):
    spec = plugged(name)
    assert spec == vhostnet.InterfaceSpec(type="network", network=network(name).name, bridge=bridge, mac=spec.mac)


def test_what_a_cluster_and_a_laboratory_have():
    assert network("terraform") == vhostnet.Network(name="cluster", forward="nat", bridge="tt0")
    assert network("vagrant").mtu == 1450
    spec = plugged("minikube")
    assert (spec.bridge, spec.isolated) == ("virbr39", True)


def test_the_groups_of_a_trunk():
    assert plugged("vlan-groups").vlan is None
    assert plugged("vlan-groups", "dmz").vlan == Vlan((40,))
    spec = plugged("vlan-groups", "router")
    assert (spec.vlan, spec.mac_table_manager) == (Vlan((40, 41, 42), True, 40), "libvirt")


def test_the_groups_of_an_open_vswitch():
    spec = plugged("ovs-groups")
    assert (spec.bridge, spec.vlan, spec.virtualport.profileid) == ("ovsbr0", Vlan((100,)), "tenant")
    assert plugged("ovs-groups", "vlan-all").vlan == Vlan((100, 101), True)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sr-iov", "would make a NIC of type hostdev of it .*, which is not supported: .*-device vfio-pci"),
        ("before-define", "has no <bridge name=> yet; expected .*virsh net-dumpxml"),
    ],
)
def test_a_network_whose_nics_are_refused(name, says):
    with pytest.raises(SpecError, match=f"^line 1: <source network='{network(name).name}'> {says}"):
        plugged(name)


def test_a_group_that_limits_its_nics():
    limit = plugged("shaped-groups").bandwidth
    assert limit == Bandwidth(Rate(10000, 50000, 5120), Rate(5000))
    assert plugged("shaped-groups", "plain").bandwidth is None


def test_macvtaps_of_a_pool():
    spec = plugged("macvtap-pool")
    assert (spec.type, spec.source, spec.network) == ("direct", DirectSource("enp1s0", "bridge"), None)


def test_a_group_without_the_settings_of_another():
    assert plugged("shaped-groups", "plain").bridge == "virbr4"
