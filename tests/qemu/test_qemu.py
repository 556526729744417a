"""QEMU's arguments: golden pairs, and what is refused before it could become an option."""

import dataclasses
import json

import pytest
from conftest import SEED, TESTS

import vhostnet
from vhostnet import (
    CcwAddress,
    InterfaceSpec,
    PasstSource,
    PciAddress,
    SpecError,
    VdpaSource,
    VhostnetWarning,
    VhostUserSource,
)

GOLDEN = sorted((TESTS / "golden").glob("*.xml"))
DIALECTS = ("classic", "keyval", "json")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::vhostnet.VhostnetWarning")
def test_golden(path, dialect):
    expected = json.loads(path.with_suffix(".json").read_text())
    spec = vhostnet.parse_interface(path.read_bytes(), strict=True)
    assert vhostnet.qemu_argv(spec, dialect=dialect, **expected["arguments"]) == expected[dialect]


def test_the_seed_to_the_letter():
    with pytest.warns(VhostnetWarning, match="256"):
        argv = vhostnet.qemu_argv(
            vhostnet.parse_interface(SEED),
            tap_fds=range(80, 88),
            vhost_fds=range(88, 96),
            alias="net2",
            bus="pci.0",
            addr="0x7",
        )
    assert argv == [
        "-netdev",
        "tap,fds=80:81:82:83:84:85:86:87,id=hostnet2,vhost=on,vhostfds=88:89:90:91:92:93:94:95",
        "-device",
        "virtio-net-pci,event_idx=on,mq=on,vectors=18,rx_queue_size=1024,tx_queue_size=1024,"
        "netdev=hostnet2,id=net2,mac=20:90:6f:28:84:f2,bus=pci.0,addr=0x7",
    ]


def bare(**fields):
    return InterfaceSpec(bridge="br0", mac="52:54:00:00:00:01", **fields)


def test_one_queue_has_singular_keys_and_no_mq():
    netdev, device = vhostnet.qemu_properties(bare(), tap_fds=[5], vhost_fds=[6])
    assert netdev == {"type": "tap", "fd": "5", "vhost": True, "vhostfd": "6", "id": "hostnet0"}
    assert "mq" not in device
    assert "vectors" not in device


@pytest.mark.parametrize(
    ("address", "driver", "vectors"),
    [
        (None, "virtio-net-pci", 10),
        (vhostnet.CcwAddress(devno=1), "virtio-net-ccw", None),
        (vhostnet.MmioAddress(), "virtio-net-device", None),
    ],
)
def test_vectors_are_for_pci(address, driver, vectors):
    _, device = vhostnet.qemu_properties(bare(queues=4, address=address), tap_fds=[3, 4, 5, 6])
    assert (device["driver"], device["mq"], device.get("vectors")) == (driver, True, vectors)


def test_the_json_dialect_is_what_qmp_takes():
    argv = vhostnet.qemu_argv(bare(queues=2, mtu=9000), tap_fds=[3, 4], dialect="json")
    netdev, device = vhostnet.qemu_properties(bare(queues=2, mtu=9000), tap_fds=[3, 4])
    assert [json.loads(argv[1]), json.loads(argv[3])] == [netdev, device]
    assert device["host_mtu"] == 9000


def test_a_comma_in_a_value_is_doubled():
    argv = vhostnet.qemu_argv(bare(rom_file="/a,script=/tmp/evil"), tap_fds=[3])
    assert argv[3].endswith("romfile=/a,,script=/tmp/evil")


def test_place_given_by_the_caller_comes_before_the_specs():
    spec = bare(address=PciAddress(bus=1, slot=2, function=3))
    assert vhostnet.qemu_argv(spec, tap_fds=[3])[3].endswith("bus=pci.1,addr=0x2.0x3")
    assert vhostnet.qemu_argv(spec, tap_fds=[3], bus="pcie.0", addr="0x9")[3].endswith("bus=pcie.0,addr=0x9")


REFUSED = [
    ({"tap_fds": [3]}, "tap_fds"),
    ({"tap_fds": [3, 3]}, "tap_fds"),
    ({"tap_fds": [3, -1]}, "tap_fds"),
    ({"tap_fds": ["3", "4"]}, "tap_fds"),
    ({"vhost_fds": [5]}, "vhost_fds"),
    ({"vhost_fds": [3, 4]}, "vhost_fds"),
    ({"alias": "net0,script=x"}, "alias"),
    ({"alias": "0net"}, "alias"),
    ({"alias": "net\n0"}, "alias"),
    ({"bus": "pci.0,addr=1"}, "bus"),
    ({"addr": "0x7,x=y"}, "addr"),
    ({"addr": "0x20"}, "addr"),
    ({"alias": ""}, "alias"),
    ({"bus": ""}, "bus"),
    ({"addr": ""}, "addr"),
    ({"dialect": "yaml"}, "dialect"),
]


@pytest.mark.parametrize(("arguments", "name"), REFUSED, ids=str)
def test_refused(arguments, name):
    with pytest.raises(SpecError) as caught:
        vhostnet.qemu_argv(bare(queues=2), **{"tap_fds": [3, 4], **arguments})
    assert caught.value.attribute == name
    assert caught.value.expected


@pytest.mark.parametrize(
    ("fields", "arguments", "name"),
    [
        ({"type": "user"}, {"tap_fds": [3]}, "tap_fds"),
        ({"type": "user"}, {"vhost_fds": [3]}, "vhost_fds"),
        ({"type": "user"}, {"vdpa_fd": 3}, "vdpa_fd"),
        ({"type": "vdpa", "source": VdpaSource("/dev/vhost-vdpa-0")}, {}, "vdpa_fd"),
        ({"type": "vdpa", "source": VdpaSource("/dev/vhost-vdpa-0")}, {"vdpa_fd": -1}, "vdpa_fd"),
        ({"type": "vdpa", "source": VdpaSource("/dev/vhost-vdpa-0")}, {"vdpa_fd": True}, "vdpa_fd"),
        ({"type": "user"}, {"passt_socket": "/p"}, "passt_socket"),
        ({"type": "vhostuser", "source": VhostUserSource("/v")}, {"passt_socket": "/p"}, "passt_socket"),
        ({"type": "user", "source": PasstSource()}, {}, "passt_socket"),
        ({"type": "user", "source": PasstSource()}, {"passt_socket": "p"}, "passt_socket"),
        ({"type": "vhostuser", "source": PasstSource()}, {"passt_socket": ""}, "passt_socket"),
        ({"bridge": "br0"}, {"tap_fds": [3], "passt_socket": "/p"}, "passt_socket"),
        ({"bridge": "br0"}, {}, "tap_fds"),
        ({"bridge": "br0"}, {"tap_fds": [3], "vdpa_fd": 4}, "vdpa_fd"),
    ],
    ids=str,
)
def test_fds_are_those_of_the_type(fields, arguments, name):
    with pytest.raises(SpecError) as caught:
        vhostnet.qemu_argv(InterfaceSpec(**fields), **arguments)
    assert caught.value.attribute == name
    assert caught.value.expected


@pytest.mark.parametrize(("kind", "start"), [("user", "passt --socket"), ("vhostuser", "passt --vhost-user --socket")])
def test_who_has_no_passt_is_told_how_to_start_one(kind, start):
    with pytest.raises(SpecError, match=f"passt_socket.*the socket of a passt that runs: {start} PATH"):
        vhostnet.qemu_argv(InterfaceSpec(type=kind, source=PasstSource()))


@pytest.mark.parametrize(
    ("qemu", "kind", "reconnect", "said"),
    [
        ((7, 1, 0), "user", 5, "has no -netdev stream"),
        ((7, 2, 22), "user", 5, "calls passt once"),
        ((7, 2, 22), "user", None, ""),
        ((7, 2, 22), "vhostuser", 5, ""),
        ((8, 0, 0), "user", 5, ""),
    ],
)
def test_what_a_qemu_knows_of_passt(qemu, kind, reconnect, said):
    facts = vhostnet.caveats(InterfaceSpec(type=kind, source=PasstSource(reconnect)), qemu=qemu)
    assert [said in fact for fact in facts] == ([True] if said else [])


@pytest.mark.parametrize("kind", ["vhostuser", "vdpa"])
def test_a_long_ring_is_honoured_where_there_is_no_tap(kind):
    source = VhostUserSource("/v") if kind == "vhostuser" else VdpaSource("/dev/vhost-vdpa-0")
    spec = InterfaceSpec(type=kind, source=source, tx_queue_size=1024)
    assert vhostnet.fitted(spec) is spec
    assert vhostnet.caveats(spec) == ()


def test_a_long_ring_is_not_honoured_by_slirp():
    with pytest.warns(VhostnetWarning, match="QEMU gives type user at most 256"):
        assert vhostnet.fitted(InterfaceSpec(type="user", tx_queue_size=1024)).tx_queue_size == 256


def test_a_bus_on_what_is_not_pci_is_refused():
    with pytest.raises(SpecError, match="bus"):
        vhostnet.qemu_argv(bare(address=vhostnet.MmioAddress()), tap_fds=[3], bus="pci.0")


def test_vhost_fds_on_a_model_without_vhost_are_refused():
    with pytest.raises(SpecError, match="not virtio"):
        vhostnet.qemu_argv(bare(model="e1000"), tap_fds=[3], vhost_fds=[4])


def test_what_qemu_will_not_give_is_said():
    facts = vhostnet.caveats(bare(tx_queue_size=512, link_state="down"), "net7")
    assert "256" in facts[0]
    assert '"name": "net7"' in facts[1]
    assert vhostnet.caveats(bare(tx_queue_size=256, rx_queue_size=1024)) == ()


def test_what_no_qemu_gives_is_not_asked_of_one_that_is_started():
    asked = bare(tx_queue_size=1024, rx_queue_size=1024, iommu=True)
    with pytest.warns(VhostnetWarning) as caught:
        spec = vhostnet.fitted(asked)
    assert (spec.tx_queue_size, spec.rx_queue_size, spec.model) == (256, 1024, "virtio-non-transitional")
    assert [str(warning.message).partition(":")[0] for warning in caught] == ["tx_queue_size=1024", "iommu='on'"]
    assert vhostnet.fitted(spec) is spec  # and in silence


@pytest.mark.parametrize(
    "fields",
    [
        {"tx_queue_size": 256},
        {"iommu": True, "model": "virtio-non-transitional"},
        {"iommu": True, "address": vhostnet.CcwAddress()},
        {"iommu": False},
        {"model": "igb", "mtu": 9000},
    ],
)
def test_what_every_qemu_takes_is_left_alone(fields):
    spec = bare(**fields)
    assert vhostnet.fitted(spec) is spec
    assert vhostnet.caveats(spec) == ()


@pytest.mark.parametrize(
    ("address", "left"),
    [(vhostnet.CcwAddress(), (None, None, False)), (vhostnet.MmioAddress(), (None, None, None))],
)
def test_what_is_of_pci_is_not_asked_for_elsewhere(address, left):
    """Whether it is wanted or not: QEMU's device has no such property."""
    asked = bare(ats=True, page_per_vq=False, ioeventfd=False, address=address)
    with pytest.warns(VhostnetWarning, match="no QEMU has it") as caught:
        spec = vhostnet.fitted(asked)
    assert (spec.ats, spec.page_per_vq, spec.ioeventfd) == left
    assert len(caught) == left.count(None)
    assert vhostnet.fitted(spec) is spec


def test_what_no_qemu_starts_with_is_refused():
    with pytest.raises(SpecError, match="no QEMU starts with both"):
        vhostnet.fitted(bare(iommu=True, model="virtio-transitional"))


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ((7, 2, 22), "7.2.22 makes it 256 in silence"),
        ((8, 0, 3), "8.0.3 makes it"),
        ((8, 0, 4), "8.0.4 refuses to start"),
        ((8, 1, 0), "refuses"),
        ((11, 1, 2), "11.1.2 refuses"),
    ],
)
def test_which_qemu_does_what_with_a_long_ring(version, says):
    assert says in vhostnet.caveats(bare(tx_queue_size=512), qemu=version)[0]


def test_a_model_that_an_old_qemu_lacks():
    assert "7.2.22 has none" in vhostnet.caveats(bare(model="igb"), qemu=(7, 2, 22))[0]
    assert vhostnet.caveats(bare(model="igb"), qemu=(8, 0, 0)) == ()


def test_a_loadparm_that_an_old_qemu_lacks():
    spec = bare(address=CcwAddress(), boot_order=1, loadparm="2")
    assert "9.1.3 has it on the machine alone" in vhostnet.caveats(spec, qemu=(9, 1, 3))[0]
    assert vhostnet.caveats(spec, qemu=(9, 2, 0)) == vhostnet.caveats(spec) == ()


def test_aliases_are_counted_as_libvirt_counts():
    specs = [bare(), bare(alias="net0"), bare(alias="ua-x"), bare()]
    assert vhostnet.assign_aliases(specs) == ["net1", "net0", "ua-x", "net2"]


def machine(*fields, **how):
    specs = [bare(**one) for one in fields]
    return [spec.alias for spec in vhostnet.assign_machine(specs, **how)]


def test_a_generated_id_is_given_anew_where_it_clashes():
    assert machine({"alias": "net0"}, {"alias": "net0"}, {}, {"alias": "net1"}) == ["net0", "net2", "net3", "net1"]
    assert machine({"alias": "net0"}, {}, taken={"net0", "net1"}) == ["net2", "net3"]


def test_nothing_else_of_a_nic_is_changed():
    spec = bare(address=PciAddress(slot=3), boot_order=1, queues=2)
    (same,) = vhostnet.assign_machine([spec])
    assert same == dataclasses.replace(spec, alias="net0")


@pytest.mark.parametrize(
    ("fields", "others"),
    [
        ({"alias": "ua-x"}, {}),
        ({"boot_order": 1}, {}),
        ({"acpi_index": 7}, {}),
        ({"address": PciAddress(slot=3)}, {}),
        ({"address": PciAddress(slot=3)}, {"address": PciAddress(slot=3, multifunction=True)}),
        ({"address": vhostnet.CcwAddress(devno=3)}, {}),
    ],
)
def test_what_a_machine_has_once_is_refused_twice(fields, others):
    first, second = bare(**fields), dataclasses.replace(bare(**{**fields, **others}), mac="52:54:00:00:00:02")
    with pytest.raises(SpecError, match="of NIC 52:54:00:00:00:02 is that of NIC 52:54:00:00:00:01") as caught:
        vhostnet.assign_machine([first, bare(), second])
    assert caught.value.attribute == next(iter(fields))


@pytest.mark.parametrize("address", [None, vhostnet.MmioAddress(), vhostnet.CcwAddress()])
def test_places_that_qemu_finds_can_be_asked_for_many_times(address):
    assert machine({"address": address}, {"address": address}) == ["net0", "net1"]


def test_functions_of_one_slot_are_different_places():
    several = [{"address": PciAddress(slot=3, function=number)} for number in range(3)]
    assert machine(*several) == ["net0", "net1", "net2"]
