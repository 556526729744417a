"""InterfaceSpec: every limit, and what an error says."""

import dataclasses

import pytest

from vhostnet import CcwAddress, InterfaceSpec, MmioAddress, PciAddress, SpecError
from vhostnet.spec import mac as macs


def test_the_shortest_spec_there_is():
    spec = InterfaceSpec(bridge="br0")
    assert (spec.type, spec.queues, spec.model, spec.vhost) == ("bridge", 1, "virtio", "auto")
    assert spec.mac.startswith("52:54:00:")


def test_random_macs_differ():
    assert len({InterfaceSpec(bridge="br0").mac for _ in range(64)}) == 64


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        InterfaceSpec(bridge="br0").queues = 2


GOOD = [
    {"queues": 256},
    {"mtu": 68},
    {"mtu": 65521},
    {"rx_queue_size": 256, "tx_queue_size": 1024},
    {"ifname": "a23456789012345"},
    {"ifname": "tap%d"},
    {"ifname": "_x.y-z"},
    {"mac": "2:0:0:0:0:1"},
    {"bridge": "br,0=x"},
    {"sndbuf": 2**64 - 1},
    {"acpi_index": 16383},
    {"address": PciAddress(slot=31, function=7)},
    {"address": CcwAddress(devno=0xFFFF)},
    {"address": MmioAddress()},
    {"rom_file": ""},
    {"model": "e1000", "vhost": "off"},
]


@pytest.mark.parametrize("fields", GOOD, ids=str)
def test_allowed(fields):
    assert InterfaceSpec(**{"bridge": "br0", **fields})


BAD = [
    ("queues", 0),
    ("queues", 257),
    ("queues", -1),
    ("queues", "8"),
    ("queues", 1.0),
    ("queues", True),
    ("queues", None),
    ("mtu", 67),
    ("mtu", 65522),
    ("rx_queue_size", 128),
    ("rx_queue_size", 2048),
    ("tx_queue_size", 300),
    ("mac", "01:00:5e:00:00:01"),
    ("mac", "ff:ff:ff:ff:ff:ff"),
    ("mac", "00:00:00:00:00:00"),
    ("mac", "52:54:00:00:00"),
    ("mac", "52-54-00-00-00-01"),
    ("mac", "52:54:00:00:00:0g"),
    ("mac", "\u0665\u0662:54:00:00:00:01"),
    ("mac", b"52:54:00:00:00:01"),
    ("ifname", ""),
    ("ifname", "a234567890123456"),
    ("ifname", "a/b"),
    ("ifname", "a b"),
    ("ifname", "a\nb"),
    ("ifname", "a\0b"),
    ("ifname", "."),
    ("ifname", ".."),
    ("ifname", "-x"),
    ("ifname", "a,b"),
    ("ifname", "a=b"),
    ("ifname", "a:b"),
    ("ifname", "all"),
    ("ifname", "default"),
    ("ifname", "%s"),
    ("ifname", "a%d%d"),
    ("ifname", "a23456789012345%d"),
    ("ifname", "caf\u00e9"),
    ("bridge", "a" * 16),
    ("bridge", "a/b"),
    ("bridge", ".."),
    ("bridge", ""),
    ("type", "direct"),
    ("model", "ne2k_pci"),
    ("vhost", "yes"),
    ("txmode", "bh"),
    ("ioeventfd", "on"),
    ("ioeventfd", 1),
    ("tap_path", "dev/net/tun"),
    ("tap_path", "/dev/net/\x1btun"),
    ("vhost_path", "/" + "a" * 5000),
    ("sndbuf", -1),
    ("sndbuf", 2**64),
    ("link_state", "UP"),
    ("alias", "0net"),
    ("alias", "net0,addr=1"),
    ("boot_order", 0),
    ("rom_file", "a\nb"),
    ("acpi_index", 16384),
    ("address", "0x7"),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: repr(value)[:24])
def test_refused_by_name_with_what_would_be_right(name, value):
    with pytest.raises(SpecError) as caught:
        InterfaceSpec(**{"bridge": "br0", name: value})
    error = caught.value
    assert (error.attribute, error.value) == (name, value)
    assert error.expected
    assert name in str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("fields", "attribute"),
    [
        ({}, "bridge"),
        ({"type": "network"}, "network"),
        ({"type": "ethernet", "bridge": "br0"}, "bridge"),
        ({"bridge": "br0", "network": "default"}, "network"),
        ({"bridge": "br0", "model": "e1000", "queues": 2}, "queues"),
        ({"bridge": "br0", "model": "rtl8139", "vhost": "require"}, "vhost"),
        ({"bridge": "br0", "model": "vmxnet3", "packed": True}, "packed"),
        ({"bridge": "br0", "model": "e1000e", "address": CcwAddress()}, "address"),
        ({"bridge": "br0", "model": "virtio-transitional", "address": MmioAddress()}, "address"),
        ({"bridge": "br0", "address": MmioAddress(), "rom_bar": True}, "rom_bar"),
        ({"bridge": "br0", "address": CcwAddress(), "acpi_index": 1}, "acpi_index"),
    ],
)
def test_what_does_not_go_together(fields, attribute):
    with pytest.raises(SpecError) as caught:
        InterfaceSpec(**fields)
    assert caught.value.attribute == attribute


@pytest.mark.parametrize(
    ("make", "attribute"),
    [
        (lambda: PciAddress(slot=32), "slot"),
        (lambda: PciAddress(bus=256), "bus"),
        (lambda: PciAddress(function=8), "function"),
        (lambda: PciAddress(root="pci.0,addr=1"), "root"),
        (lambda: CcwAddress(cssid=0xFF), "cssid"),
        (lambda: CcwAddress(ssid=4), "ssid"),
        (lambda: CcwAddress(devno=65536), "devno"),
    ],
)
def test_addresses_out_of_range(make, attribute):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.attribute == attribute


@pytest.mark.parametrize(
    ("guest", "tap"),
    [
        ("20:90:6f:28:84:f2", "fe:90:6f:28:84:f2"),
        ("fe:90:6f:28:84:f2", "fa:90:6f:28:84:f2"),
        ("fa:90:6f:28:84:f2", "fe:90:6f:28:84:f2"),
    ],
)
def test_the_taps_mac(guest, tap):
    assert macs.tap_mac(guest).hex(":") == tap
