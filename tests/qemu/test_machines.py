"""QEMU's machines, each started and stopped at once, take our arguments for every place that a NIC can have there, in
every dialect, on the fds of a real TAP; a place that they do not have they refuse by its name.
"""

import itertools

import pytest
from conftest import BRIDGE
from machine import ARM, S390, X86
from test_qemu_starts import NETWORK, ask, start

import vhostnet
from vhostnet import CcwAddress, InterfaceSpec, MmioAddress, PciAddress

pytestmark = [pytest.mark.tap, pytest.mark.qemu]
LESS = pytest.mark.filterwarnings("ignore:(ats|page_per_vq|ioeventfd):vhostnet.VhostnetWarning")

PLACES = {
    "pci.0": PciAddress(slot=5),
    "pcie.0": PciAddress(slot=5, name="pcie.0"),
    "ccw": CcwAddress(devno=0xA1),
    "ccw, any": CcwAddress(),
    "mmio": MmioAddress(),
}
# What it is there: its driver, and the property that says where it is.
THERE = {
    "pci.0": ("virtio-net-pci", "addr", 5 << 3),
    "pcie.0": ("virtio-net-pci", "addr", 5 << 3),
    "ccw": ("virtio-net-ccw", "dev_id", "fe.0.00a1"),
    "ccw, any": ("virtio-net-ccw", "dev_id", "fe.0.0000"),
    "mmio": ("virtio-net-device", "realized", True),
}
MACHINES = {
    "pc": (X86, "pc", ("pci.0",)),
    "q35": (X86, "q35", ("pcie.0",)),
    "microvm": (X86, "microvm", ("mmio",)),
    "microvm, pcie": (X86, "microvm,pcie=on", ("mmio", "pcie.0")),
    "virt": (ARM, "virt", ("pcie.0", "mmio")),
    "s390x": (S390, "s390-ccw-virtio", ("ccw", "ccw, any", "pci.0")),
}
EVERY = [
    pytest.param(name, marks=pytest.mark.machines if emulator != X86 else ())
    for name, (emulator, _, _) in MACHINES.items()
]
# What a virtio NIC can be told wherever it is, as QEMU then has it.
ANYWHERE = {
    "txmode": ("tx", "timer"),
    "event_idx": ("event_idx", False),
    "packed": ("packed", True),
    "rss": ("rss", True),
    "rx_queue_size": ("rx_queue_size", 512),
    "mtu": ("host_mtu", 1400),
    "boot_order": ("bootindex", 3),
    "host_tso4": ("host_tso4", False),
    "guest_csum": ("guest_csum", False),
}
# And what no QEMU has in every place.
SOMEWHERE = {"ats": ("ats", True), "page_per_vq": ("page-per-vq", True), "ioeventfd": ("ioeventfd", True)}
OFF_PCI = {"ccw": {"ats", "page_per_vq"}, "mmio": {"ats", "page_per_vq", "ioeventfd"}}


def told(fields):
    """The value of each of them that is asked for."""
    return {name: "timer" if name == "txmode" else value for name, (_, value) in fields.items()}


def prop(name):
    return "qom-get", {"path": "/machine/peripheral/net2", "property": name}


@pytest.mark.parametrize("dialect", vhostnet.qemu.argv.DIALECTS)
@pytest.mark.parametrize("name", EVERY)
def test_a_machine_takes_a_nic_wherever_it_has_a_place(name, dialect, bridge):
    emulator, machine, places = MACHINES[name]
    for place in places:
        driver, where, value = THERE[place]
        spec = InterfaceSpec(bridge=BRIDGE, queues=4, vhost="off", mac="52:54:00:00:00:01", address=PLACES[place])
        with vhostnet.open_nic(spec) as nic:
            questions = [NETWORK, *map(prop, ("type", "mq", where))]
            network, *said = ask(nic, emulator, machine, questions, alias="net2", dialect=dialect)
        assert said == [driver, True, value]
        assert f"model={driver},macaddr=52:54:00:00:00:01" in network
        assert network.count("hostnet2: index=") == 4


@pytest.mark.parametrize("dialect", vhostnet.qemu.argv.DIALECTS)
@pytest.mark.parametrize("name", EVERY)
@LESS
def test_a_machine_takes_all_that_a_nic_can_be_told(name, dialect, bridge):
    emulator, machine, places = MACHINES[name]
    for place in places:
        lacking = OFF_PCI.get(place.partition(",")[0], set())
        has = {**ANYWHERE, **{name: of for name, of in SOMEWHERE.items() if name not in lacking}}
        fields = told({**ANYWHERE, **SOMEWHERE})
        with vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, vhost="off", address=PLACES[place], **fields)) as nic:
            questions = [prop(name) for name, _ in has.values()]
            said = ask(nic, emulator, machine, questions, alias="net2", dialect=dialect)
        assert said == [value for _, value in has.values()]


@pytest.mark.parametrize("name", EVERY)
@LESS
def test_a_machine_refuses_libvirts_arguments_for_what_its_device_lacks(name, bridge):
    """Which is why it is not asked for, of a QEMU that is started."""
    emulator, machine, places = MACHINES[name]
    for place, (field, (of, value)) in itertools.product(places, SOMEWHERE.items()):
        spec = InterfaceSpec(bridge=BRIDGE, vhost="off", address=PLACES[place], **{field: value})
        with vhostnet.open_nic(spec) as nic:
            if field in OFF_PCI.get(place.partition(",")[0], ()):
                with pytest.raises(RuntimeError, match=f"'{THERE[place][0]}.{of}' not found"):
                    start(nic, emulator, machine, exact=True)
            else:
                assert THERE[place][0] in start(nic, emulator, machine, exact=True)


@pytest.mark.parametrize("name", EVERY)
def test_a_place_that_a_machine_does_not_have(name, bridge):
    emulator, machine, places = MACHINES[name]
    for place, address in PLACES.items():
        if place not in places:
            with vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, vhost="off", address=address)) as nic:
                driver = THERE[place][0]
                says = f"Bus '{place}' not found|No '.*' bus found for device '{driver}'|'{driver}' is not a valid"
                with pytest.raises(RuntimeError, match=says):
                    start(nic, emulator, machine)


@pytest.mark.parametrize("name", EVERY)
def test_a_domain_that_says_nothing_of_places(name, bridge):
    """Its NIC goes where libvirt would have it, and the machine takes it there."""
    emulator, machine, places = MACHINES[name]
    arch, kind = emulator.removeprefix("qemu-system-"), machine.partition(",")[0]
    nic = f"<interface type='bridge'><source bridge='{BRIDGE}'/><model type='virtio'/></interface>"
    text = f"<domain><os><type arch='{arch}' machine='{kind}'>hvm</type></os><devices>{nic}</devices></domain>"
    with vhostnet.open_nics(vhostnet.parse_domain(text), vhost="off")[0] as nic:
        assert f"model={THERE[places[0]][0]}," in start(nic, emulator, machine)
