"""InterfaceSpec: every limit, and what an error says."""

import dataclasses

import pytest

from vhostnet import (
    Bandwidth,
    CcwAddress,
    InterfaceSpec,
    MmioAddress,
    PasstSource,
    PciAddress,
    Rate,
    SocketSource,
    SpaprVioAddress,
    SpecError,
    UsbAddress,
    UserSource,
    VdpaSource,
    VhostUserSource,
    VirtualPort,
    ZpciAddress,
)
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
    {"model": "a" * 63},
    {"teaming": "persistent"},
    {"address": CcwAddress(), "loadparm": "A. 1"},
    {"model": "usb-net", "address": UsbAddress(255, "255.1.2.3")},
    {"model": "spapr-vlan", "address": SpaprVioAddress(0xFFFFFFFF)},
    {"address": PciAddress(slot=1, zpci=ZpciAddress(1, 0xFFFFFFFF))},
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
    ("type", "hostdev"),
    ("model", ""),
    ("model", "a" * 64),
    ("model", "e1000,mac=x"),
    ("source", "10.0.0.0/24"),
    ("teaming", "transient"),
    ("loadparm", "lower"),
    ("loadparm", "A" * 9),
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
        ({"bridge": "br0", "loadparm": "A"}, "loadparm"),
        ({"bridge": "br0", "model": "e1000", "teaming": "persistent"}, "teaming"),
        ({"bridge": "br0", "address": UsbAddress()}, "address"),
        ({"bridge": "br0", "model": "usb-net", "address": PciAddress(slot=1)}, "address"),
        ({"bridge": "br0", "model": "usb-net", "acpi_index": 1}, "acpi_index"),
        ({"bridge": "br0", "model": "e1000", "address": SpaprVioAddress(1)}, "address"),
        ({"bridge": "br0", "source": UserSource()}, "source"),
        ({"type": "user", "bridge": "br0"}, "bridge"),
        ({"type": "user", "network": "default"}, "network"),
        ({"type": "user", "source": VdpaSource("/dev/vhost-vdpa-0")}, "source"),
        ({"type": "vdpa"}, "source"),
        ({"type": "vhostuser"}, "source"),
        ({"type": "client"}, "source"),
        ({"type": "udp", "source": SocketSource("a", 1)}, "local_port"),
        ({"type": "client", "source": SocketSource("a", 1, "b", 2)}, "local_port"),
        ({"type": "mcast", "source": SocketSource(port=1)}, "address"),
        ({"type": "user", "ifname": "tap0"}, "ifname"),
        ({"type": "user", "tap_path": "/dev/tun2"}, "tap_path"),
        ({"type": "user", "vhost_path": "/dev/v"}, "vhost_path"),
        ({"type": "user", "sndbuf": 1}, "sndbuf"),
        ({"type": "user", "mtu": 1500}, "mtu"),
        ({"type": "user", "queues": 2}, "queues"),
        ({"type": "user", "isolated": True}, "isolated"),
        ({"type": "user", "vhost": "require"}, "vhost"),
        ({"type": "user", "rx_frames": 1}, "rx_frames"),
        ({"type": "user", "bandwidth": Bandwidth(Rate(1))}, "bandwidth"),
        ({"type": "vdpa", "source": VdpaSource("/dev/v"), "bandwidth": Bandwidth(Rate(1))}, "bandwidth"),
        ({"bridge": "br0", "bandwidth": Bandwidth(Rate(floor=1))}, "bandwidth"),
        ({"type": "ethernet", "bandwidth": Bandwidth(Rate(1, floor=1))}, "bandwidth"),
        ({"type": "ethernet", "managed": False, "ifname": "t", "bandwidth": Bandwidth(Rate(1))}, "bandwidth"),
        ({"bridge": "br0", "bandwidth": Rate(1)}, "bandwidth"),
        ({"bridge": "br0", "bandwidth": 1}, "bandwidth"),
        ({"type": "vdpa", "source": VdpaSource("/dev/v"), "mtu": 1500}, "mtu"),
        ({"type": "vdpa", "source": VdpaSource("/dev/v"), "model": "e1000"}, "model"),
        ({"type": "vhostuser", "source": VhostUserSource("/v"), "model": "e1000"}, "model"),
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
        (lambda: PciAddress(name="pci.0,addr=1"), "name"),
        (lambda: CcwAddress(cssid=0xFF), "cssid"),
        (lambda: CcwAddress(ssid=4), "ssid"),
        (lambda: CcwAddress(devno=65536), "devno"),
        (lambda: UsbAddress(256), "bus"),
        (lambda: UsbAddress(0, "0"), "port"),
        (lambda: UsbAddress(0, "1.2.3.4.5"), "port"),
        (lambda: UsbAddress(0, 1), "port"),
        (lambda: SpaprVioAddress(2**32), "reg"),
        (lambda: ZpciAddress(0, 1), "uid"),
        (lambda: ZpciAddress(65536, 1), "uid"),
        (lambda: ZpciAddress(1, 2**32), "fid"),
        (lambda: PciAddress(zpci=1), "zpci"),
        (lambda: UserSource(ipv4="10.0.0.0/3"), "ipv4"),
        (lambda: UserSource(ipv4="10.0.0.0/28"), "ipv4"),
        (lambda: UserSource(ipv4="10.0.0.0/"), "ipv4"),
        (lambda: UserSource(ipv4="10.0.0"), "ipv4"),
        (lambda: UserSource(ipv4=7), "ipv4"),
        (lambda: UserSource(ipv6="fe80::/63"), "ipv6"),
        (lambda: UserSource(ipv6="10.0.0.0/64"), "ipv6"),
        (lambda: VhostUserSource("run/v"), "path"),
        (lambda: VhostUserSource("/v", server=1), "server"),
        (lambda: VhostUserSource("/v", reconnect=-1), "reconnect"),
        (lambda: VhostUserSource("/v", reconnect=2147484), "reconnect"),
        (lambda: VhostUserSource("/v", server=True, reconnect=0), "reconnect"),
        (lambda: PasstSource(-1), "reconnect"),
        (lambda: PasstSource(2147484), "reconnect"),
        (lambda: PasstSource("5"), "reconnect"),
        (lambda: VdpaSource("vhost-vdpa-0"), "dev"),
        (lambda: SocketSource("a", 0), "port"),
        (lambda: SocketSource("a", 65536), "port"),
        (lambda: SocketSource("a b", 1), "address"),
        (lambda: SocketSource("a", 1, "b", 0), "local_port"),
        (lambda: SocketSource("a", 1, "", 1), "local_address"),
        (lambda: Bandwidth(), "inbound"),
        (lambda: Bandwidth(1), "inbound"),
        (lambda: Bandwidth(outbound=(1,)), "outbound"),
        (lambda: Bandwidth(outbound=Rate(1, floor=1)), "outbound"),
        (lambda: Rate(), "average"),
        (lambda: Rate(peak=1, floor=1), "peak"),
        *[
            (lambda name=name, value=value: Rate(**{"average": 1, name: value}), name)
            for name in ("average", "peak", "burst", "floor")
            for value in (0, -1, 2**54 + 1, True, 1.0, "1")
        ],
        (lambda: Rate(2**54, burst=2**22), "burst"),
        (lambda: Rate(3, burst=806), "burst"),
    ],
)
def test_addresses_out_of_range(make, attribute):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.attribute == attribute


ENDS = [
    {"type": "user"},
    {"type": "user", "source": UserSource("16.0.0.0/4", "fe80::/64"), "model": "e1000"},
    {"type": "user", "source": UserSource("10.0.0.0/27")},
    {"type": "user", "queues": 1, "vhost": "auto", "tx_queue_size": 1024},
    {"type": "vhostuser", "source": VhostUserSource("/v", reconnect=2147483), "queues": 256, "mtu": 65521},
    {"type": "vhostuser", "source": VhostUserSource("/v", server=True), "mtu": 68},
    {"type": "user", "source": PasstSource(), "model": "e1000", "mtu": 65521},
    {"type": "vhostuser", "source": PasstSource(2147483), "queues": 256, "mtu": 68},
    {"type": "vdpa", "source": VdpaSource("/dev/vhost-vdpa-0"), "queues": 256},
    {"type": "udp", "source": SocketSource("a", 1, "b", 65535)},
    {"type": "server", "source": SocketSource(port=65535)},
]


@pytest.mark.parametrize("fields", ENDS, ids=str)
def test_what_has_no_tap(fields):
    spec = InterfaceSpec(**fields)
    assert not spec.tap
    assert spec == InterfaceSpec(**{**fields, "mac": spec.mac})


def test_the_largest_bandwidths():
    largest = Rate(2**54, 2**54, 2**22 - 1)
    assert InterfaceSpec(bridge="br0", bandwidth=Bandwidth(largest, largest)).bandwidth.inbound == largest
    assert InterfaceSpec(type="network", network="n", bandwidth=Bandwidth(Rate(floor=2**54))).bandwidth.outbound is None
    assert Rate(3, burst=805).burst == 805  # 274 s


def on_a_switch(*rates):
    return InterfaceSpec(bridge="br0", virtualport=VirtualPort(), bandwidth=Bandwidth(*rates))


def test_the_largest_bandwidths_of_a_port_of_open_vswitch():
    most = 4294967
    on_a_switch(Rate(most, most, 2**22 - 1), Rate(most, most + 1, 2**19 - 1))
    for rates, problem in (
        ((Rate(most + 1),), "an inbound average of 4294968"),
        ((Rate(1, most + 1),), "an inbound peak of 4294968"),
        ((None, Rate(most + 1)), "an outbound average of 4294968"),
    ):
        with pytest.raises(SpecError) as caught:
            on_a_switch(*rates)
        assert caught.value.problem == f"has {problem}, and no port of Open vSwitch counts so far"
        assert (caught.value.attribute, caught.value.expected) == ("bandwidth", "kB a second, 1..4294967")
    with pytest.raises(SpecError, match="an outbound burst of 524288, .*; expected KiB, 1..524287"):
        on_a_switch(None, Rate(most, burst=2**19))


def test_networks_are_written_in_one_way():
    assert UserSource("10.9.0.0/08", "2001:DB8:0::/64") == UserSource("10.9.0.0/8", "2001:db8::/64")


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
