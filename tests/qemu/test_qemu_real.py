"""A real QEMU takes the arguments, in every dialect it can know, and says it has what was asked for."""

import functools
import re
import subprocess

import pytest
from conftest import BRIDGE

import vhostnet
from vhostnet import CcwAddress, InterfaceSpec, MmioAddress, PciAddress, VhostnetWarning
from vhostnet.commands.demo import ask_qemu

pytestmark = [pytest.mark.tap, pytest.mark.qemu, pytest.mark.usefixtures("bridge")]

QEMU = ["qemu-system-x86_64", "-S", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-qmp", "stdio"]
NETWORK = ("human-monitor-command", {"command-line": "info network"})


@functools.cache
def devices():
    """The device models this QEMU has."""
    shown = subprocess.run(["qemu-system-x86_64", "-device", "help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r'name "([^"]+)"', shown))


def ask(nic, *questions, machine="pc", dialect="classic"):
    argv = nic.qemu_argv(alias="net2", dialect=dialect)
    return ask_qemu([*QEMU, "-M", machine, *argv], nic.fds, [NETWORK, *questions])


def prop(name):
    return "qom-get", {"path": "/machine/peripheral/net2", "property": name}


@pytest.mark.parametrize("dialect", ["classic", "keyval", "json"])
@pytest.mark.parametrize(
    "model",
    ["virtio", "virtio-transitional", "virtio-non-transitional", "e1000e", "vmxnet3", "igb", "e1000", "rtl8139"],
)
def test_every_model_in_every_dialect(model, dialect):
    driver = model.replace("virtio", "virtio-net-pci", 1)
    spec = InterfaceSpec(bridge=BRIDGE, model=model, vhost="off", mac="52:54:00:00:00:01")
    if driver not in devices():
        assert driver == "igb"  # the one that a QEMU before 8.0 does not know
        return
    with vhostnet.open_nic(spec) as nic:
        (network,) = ask(nic, dialect=dialect)
    assert f"model={driver},macaddr=52:54:00:00:00:01" in network


@pytest.mark.parametrize("dialect", ["classic", "keyval", "json"])
def test_every_option_at_once(dialect):
    on_off = {
        f"{side}_{name}": False
        for side, names in {"host": "csum gso tso4 tso6 ecn ufo mrg_rxbuf", "guest": "csum tso4 tso6 ecn ufo"}.items()
        for name in names.split()
    }
    spec = InterfaceSpec(
        bridge=BRIDGE,
        model="virtio-non-transitional",
        vhost="off",
        queues=3,
        rx_queue_size=512,
        tx_queue_size=256,
        txmode="timer",
        ioeventfd=False,
        event_idx=True,
        iommu=True,
        ats=True,
        packed=True,
        page_per_vq=True,
        rss=True,
        rss_hash_report=True,
        sndbuf=1600,
        mtu=1400,
        boot_order=3,
        rom_bar=False,
        acpi_index=17,
        address=PciAddress(slot=5, function=0, multifunction=True),
        **on_off,
    )
    names = [
        "mq",
        "vectors",
        "rx_queue_size",
        "tx_queue_size",
        "tx",
        "event_idx",
        "host_mtu",
        "packed",
        "iommu_platform",
    ]
    names += ["rss", "hash", "bootindex", "acpi-index", "multifunction", "host_tso4", "guest_csum", "page-per-vq"]
    with vhostnet.open_nic(spec) as nic:
        _, *values = ask(nic, *map(prop, names), dialect=dialect)
    assert dict(zip(names, values, strict=True)) == {
        "mq": True,
        "vectors": 8,
        "rx_queue_size": 512,
        "tx_queue_size": 256,
        "tx": "timer",
        "event_idx": True,
        "host_mtu": 1400,
        "packed": True,
        "iommu_platform": True,
        "rss": True,
        "hash": True,
        "bootindex": 3,
        "acpi-index": 17,
        "multifunction": True,
        "host_tso4": False,
        "guest_csum": False,
        "page-per-vq": True,
    }


def test_the_seed_and_the_ring_that_qemu_makes_smaller(seed):
    with vhostnet.open_nic(seed, vhost="auto") as nic, pytest.warns(VhostnetWarning, match="256"):
        network, rx, tx, vectors = ask(nic, prop("rx_queue_size"), prop("tx_queue_size"), prop("vectors"))
    assert (rx, tx, vectors) == (1024, 256, 18)
    assert network.count("hostnet2: index=") == 8


def test_a_rom_file_with_a_comma_in_its_name(tmp_path):
    rom = tmp_path / "a,script=b.rom"
    rom.write_bytes(b"\x55\xaa\x01" + bytes(509))
    spec = InterfaceSpec(bridge=BRIDGE, vhost="off", rom_file=str(rom))
    for dialect in ("classic", "keyval", "json"):
        with vhostnet.open_nic(spec) as nic:
            assert ask(nic, prop("romfile"), dialect=dialect)[1] == str(rom)


def test_mmio_on_the_microvm():
    spec = InterfaceSpec(bridge=BRIDGE, vhost="off", queues=2, address=MmioAddress())
    with vhostnet.open_nic(spec) as nic:
        network, mq = ask(nic, prop("mq"), machine="microvm")
    assert "model=virtio-net-device" in network
    assert mq is True


def test_ccw_is_not_for_this_machine_and_qemu_says_so():
    """What needs an s390 machine gets the arguments an s390 QEMU takes; this one names the driver it lacks."""
    with vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, vhost="off", address=CcwAddress(devno=1))) as nic:
        with pytest.raises(RuntimeError, match="virtio-net-ccw"):
            ask(nic)


def test_twenty_qemus_one_after_the_other_on_the_same_fds(engine):
    spec = InterfaceSpec(bridge=BRIDGE, vhost="off", queues=4)
    with vhostnet.open_nic(spec, engine=engine) as nic:
        for _ in range(20):
            (network,) = ask(nic)
            assert network.count("hostnet2: index=") == 4
            nic.reset_queues()


def test_several_nics_of_one_vm():
    specs = [InterfaceSpec(bridge=BRIDGE, vhost="off") for _ in range(3)]
    nics = vhostnet.open_nics(specs)
    argv, fds = [], []
    for nic, alias in zip(nics, vhostnet.assign_aliases(specs), strict=True):
        argv += nic.qemu_argv(alias=alias)
        fds += nic.fds
    (network,) = ask_qemu([*QEMU, "-M", "pc", *argv], fds, [NETWORK])
    for nic in nics:
        nic.close()
    assert [f"net{number}: index=0" in network for number in range(3)] == [True] * 3
