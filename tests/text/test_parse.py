"""<interface> text -> InterfaceSpec: what is taken, what is refused, and where the error points."""

import dataclasses
import re

import pytest
from conftest import SEED

import vhostnet
from vhostnet import (
    Bandwidth,
    CcwAddress,
    HostIp,
    HostRoute,
    InterfaceSpec,
    MmioAddress,
    PciAddress,
    Rate,
    SpaprVioAddress,
    SpecError,
    UsbAddress,
    VhostnetWarning,
    Vlan,
    ZpciAddress,
)
from vhostnet.commands.demo import SEED as DEMO_SEED
from vhostnet.text import elements
from vhostnet.text.elements import UNSUPPORTED_TYPES

BARE = InterfaceSpec(bridge="br0", mac="52:54:00:00:00:01")


def interface(inside="", attributes="type='bridge'", source="<source bridge='br0'/>"):
    model = "" if "<model" in inside else "<model type='virtio'/>"
    return f"<interface {attributes}><mac address='52:54:00:00:00:01'/>{model}{source}{inside}</interface>"


def test_the_seed(seed):
    assert seed == InterfaceSpec(
        bridge="vbr2525476",
        mac="20:90:6f:28:84:f2",
        vhost="require",
        queues=8,
        event_idx=True,
        rx_queue_size=1024,
        tx_queue_size=1024,
        ifname="veni_vFsp6g8y",
    )
    assert vhostnet.parse_interface(DEMO_SEED) == seed


TAKEN = [
    ("<model type='virtio-non-transitional'/>", {"model": "virtio-non-transitional"}),
    ("<model type='e1000e'/>", {"model": "e1000e"}),
    ("<model type='igb'/>", {"model": "igb"}),
    ("<target dev='tap7'/>", {"ifname": "tap7"}),
    ("<target dev='tap%d' managed='yes'/>", {"ifname": "tap%d"}),
    ("<target dev='vnet3'/>", {"ifname": None}),
    ("<target dev='macvtap0'/>", {"ifname": None}),
    ("<target dev='vnet%d'/>", {"ifname": None}),
    ("<driver name='qemu'/>", {"vhost": "off"}),
    ("<driver name='vhost'/>", {"vhost": "require"}),
    ("<driver txmode='timer' ioeventfd='off'/>", {"txmode": "timer", "ioeventfd": False}),
    (
        "<driver iommu='on' ats='on' packed='on' page_per_vq='on'/>",
        dict.fromkeys(("iommu", "ats", "packed", "page_per_vq"), True),
    ),
    ("<driver rss='on' rss_hash_report='off'/>", {"rss": True, "rss_hash_report": False}),
    (
        "<driver><host csum='off' gso='off' tso4='off' tso6='off' ecn='off' ufo='off' mrg_rxbuf='off'/></driver>",
        {f"host_{n}": False for n in ("csum", "gso", "tso4", "tso6", "ecn", "ufo", "mrg_rxbuf")},
    ),
    (
        "<driver><guest csum='on' tso4='on' tso6='on' ecn='on' ufo='on'/></driver>",
        {f"guest_{n}": True for n in ("csum", "tso4", "tso6", "ecn", "ufo")},
    ),
    ("<backend tap='/dev/tun2' vhost='/dev/vhost2'/>", {"tap_path": "/dev/tun2", "vhost_path": "/dev/vhost2"}),
    ("<tune><sndbuf>1600</sndbuf></tune>", {"sndbuf": 1600}),
    ("<tune>\n  <sndbuf>0</sndbuf>\n</tune>", {"sndbuf": 0}),
    ("<model type='VirtIO'/>", {"model": "virtio"}),
    ("<model type='E1000'/>", {"model": "e1000"}),
    ("<address type='pci' slot='0' function='1'/>", {}),
    ("<address type='pci' multifunction='on'/>", {}),
    ("<address type='ccw'/>", {"address": CcwAddress()}),
    ("<mtu size='9000'/>", {"mtu": 9000}),
    ("<link state='down'/>", {"link_state": "down"}),
    ("<alias name='ua-lan'/>", {"alias": "ua-lan"}),
    ("<alias name='net3'/>", {"alias": "net3"}),
    ("<address type='pci'/>", {}),
    ("<address type='pci' domain='0x0000' bus='0x00' slot='0x00' function='0x0'/>", {}),
    (
        "<address type='pci' domain='0x0000' bus='0x02' slot='0x1f' function='0x1' multifunction='on'/>",
        {"address": PciAddress(2, 31, 1, True)},
    ),
    ("<address type='ccw' cssid='0xfe' ssid='0x0' devno='0x0001'/>", {"address": CcwAddress(devno=1)}),
    ("<address type='virtio-mmio'/>", {"address": MmioAddress()}),
    ("<boot order='2'/>", {"boot_order": 2}),
    ("<rom bar='off' file='/etc/fake/rom,1'/>", {"rom_bar": False, "rom_file": "/etc/fake/rom,1"}),
    ("<rom enabled='no'/>", {"rom_file": ""}),
    ("<rom enabled='yes'/>", {}),
    ("<acpi index='1729'/>", {"acpi_index": 1729}),
    ("<teaming type='persistent'/>", {"teaming": "persistent"}),
    ("<model type='ne2k_pci'/>", {"model": "ne2k_pci"}),
    ("<model type='usb-net'/><address type='usb' port='1.2'/>", {"model": "usb-net", "address": UsbAddress(0, "1.2")}),
    ("<model type='usb-net'/><address type='usb'/>", {"model": "usb-net"}),
    ("<model type='spapr-vlan'/><address type='spapr-vio'/>", {"model": "spapr-vlan"}),
    (
        "<model type='spapr-vlan'/><address type='spapr-vio' reg='0'/>",
        {"model": "spapr-vlan", "address": SpaprVioAddress(0)},
    ),
    (
        "<address type='pci' slot='3'><zpci uid='0x1' fid='0xffffffff'/></address>",
        {"address": PciAddress(slot=3, zpci=ZpciAddress(1, 0xFFFFFFFF))},
    ),
    (
        "<boot order='1' loadparm='prod'/><address type='ccw'/>",
        {"boot_order": 1, "loadparm": "PROD", "address": CcwAddress()},
    ),
    ("<port isolated='yes'/>", {"isolated": True}),
    ("<coalesce><rx><frames max='4294967295'/></rx></coalesce>", {"rx_frames": 4294967295}),
    ("<vlan><tag id='1'/></vlan>", {"vlan": Vlan((1,))}),
    ("<vlan trunk='no'><tag id='4094'/></vlan>", {"vlan": Vlan((4094,))}),
    ("<vlan><tag id='0'/></vlan>", {"vlan": Vlan((0,))}),
    ("<vlan><tag id='4095'/></vlan>", {"vlan": Vlan((4095,))}),
    ("<vlan trunk='yes'><tag id='42'/></vlan>", {"vlan": Vlan((42,), trunk=True)}),
    ("<vlan><tag id='42'/><tag id='47'/></vlan>", {"vlan": Vlan((42, 47), trunk=True)}),
    (
        "<vlan trunk='yes'><tag id='42'/><tag id='47' nativeMode='untagged'/></vlan>",
        {"vlan": Vlan((42, 47), trunk=True, native=47)},
    ),
    (
        "<vlan><tag id='42' nativeMode='tagged'/></vlan>",
        {"vlan": Vlan((42,), trunk=True, native=42, native_mode="tagged")},
    ),
    *[
        (f"<bandwidth>{inside}</bandwidth>", {"bandwidth": bandwidth})
        for inside, bandwidth in [
            ("<inbound average='1'/>", Bandwidth(Rate(1))),
            ("<outbound average='1' peak='0' burst='0'/>", Bandwidth(outbound=Rate(1))),
            ("<inbound average='0'/><outbound average='7'/>", Bandwidth(outbound=Rate(7))),
            (
                "<inbound average='1000' peak='5000' burst='1024'/>\n<outbound average='128' peak='256' burst='256'/>",
                Bandwidth(Rate(1000, 5000, 1024), Rate(128, 256, 256)),
            ),
            ("<inbound average='10' peak='5'/>", Bandwidth(Rate(10, 5))),
            (f"<inbound average='{2**54}' peak='{2**54}'/>", Bandwidth(Rate(2**54, 2**54))),
            (f"<outbound average='{2**54}' burst='4194303'/>", Bandwidth(outbound=Rate(2**54, burst=2**22 - 1))),
            # What the kernel can count to: 2^32-1 ticks of 64 ns.
            ("<inbound average='1' burst='268'/>", Bandwidth(Rate(1, burst=268))),
            ("<outbound average='1000' burst='268435'/>", Bandwidth(outbound=Rate(1000, burst=268435))),
        ]
    ],
    ("<!-- a comment --><?pi x?>", {}),
]

# What libvirt reads as nothing, or as its default.
NOTHING = [
    "<bandwidth/>",
    "<bandwidth>\n</bandwidth>",
    "<bandwidth><inbound average='0'/></bandwidth>",
    "<bandwidth><inbound average='0' peak='0' burst='0'/></bandwidth>",
    "<port/>",
    "<port isolated='no'/>",
    "<coalesce/>",
    "<coalesce><rx/></coalesce>",
    "<coalesce><rx><frames/></rx></coalesce>",
    "<coalesce><rx><frames max='0'/></rx></coalesce>",
    "<filterref/>",
    "<teaming/>",
    "<virtualport/>",
    "<virtualport><parameters/></virtualport>",
    "<script/>",
    "<script path=''/>",
    "<downscript path=''/>",
    "<backend/>",
    "<backend type='default'/>",
    "<target/>",
    "<target dev=''/>",
    "<target managed='yes'/>",
    "<driver/>",
    "<driver><host/><guest/></driver>",
    "<mtu/>",
    "<mtu size=''/>",
    "<mtu size='0'/>",
    "<link/>",
    "<link state=''/>",
    "<alias/>",
    "<alias name=''/>",
    "<tune/>",
    "<tune><sndbuf/></tune>",
    "<rom/>",
    "<rom enabled='yes'/>",
    "<acpi/>",
    "<address type='pci'/>",
    "<address type='pci'><zpci/></address>",
]

# What libvirt's QEMU driver takes and does nothing with, for a NIC on a bridge.
IGNORED = [
    "<alias name='nic7'/>",
    "<alias name='ua-a.b'/>",
    "<alias name='ua-,x'/>",
    "<alias name='hostdev0'/>",
    "<alias name='net'/>",
    "<target dev='vnet-web'/>",
    "<target dev='macvtap-a'/>",
    "<guest dev='eth0'/>",
    "<backenddomain name='x'/>",
    "<actual type='direct'/>",
    "<backend logFile='/x'/>",
    "<acpi nodeset='1-2'/>",
    "<backend hostname='x' fqdn='x.y'/>",
]
IGNORED_SOURCES = [
    "network='x'",
    "dev='eth0'",
    "mode='vepa'",
    "portgroup='x'",
    "path='/x'",
    "type='unix'",
    "portid='1'",
]


@pytest.mark.parametrize(("inside", "fields"), TAKEN, ids=lambda value: str(value)[:40])
def test_taken(inside, fields):
    assert vhostnet.parse_interface(interface(inside), strict=True) == dataclasses.replace(BARE, **fields)


@pytest.mark.parametrize("inside", NOTHING)
def test_what_asks_for_nothing_is_nothing(inside):
    assert vhostnet.parse_interface(interface(inside), strict=True) == BARE


def test_a_model_of_no_name_is_none():
    with pytest.warns(VhostnetWarning, match="<model type=> is missing"):
        assert vhostnet.parse_interface(interface("<model type=''/>")) == BARE


@pytest.mark.parametrize("attributes", ["trustGuestRxFilters='no'", "trustGuestRxFilters='yes'"])
def test_filters_that_libvirt_heeds_for_macvtap_alone(attributes):
    text = interface(attributes=f"type='bridge' {attributes}")
    if "yes" in attributes:
        with pytest.raises(SpecError, match="<interface trustGuestRxFilters='yes'> has no effect"):
            vhostnet.parse_interface(text, strict=True)
    else:
        assert vhostnet.parse_interface(text, strict=True) == BARE


@pytest.mark.parametrize("inside", IGNORED)
def test_what_libvirt_ignores_is_a_warning_and_with_strict_an_error(inside):
    check_ignored(interface("\n" + inside))


@pytest.mark.parametrize("source", IGNORED_SOURCES)
def test_a_source_of_another_type(source):
    check_ignored(interface(source=f"\n<source bridge='br0' {source}/>"))


def check_ignored(text):
    with pytest.warns(VhostnetWarning, match="^line 2: <\\w+.*(has no effect|is ignored)"):
        assert vhostnet.parse_interface(text) == BARE
    with pytest.raises(SpecError, match="^line 2: <\\w+.*(has no effect|is ignored)"):
        vhostnet.parse_interface(text, strict=True)


def test_a_bridge_of_a_nic_that_is_on_none():
    text = interface(attributes="type='ethernet'")
    with pytest.warns(VhostnetWarning, match="<source bridge='br0'> has no effect: .* for type ethernet"):
        assert vhostnet.parse_interface(text) == InterfaceSpec(type="ethernet", mac=BARE.mac)


def test_the_nodes_of_a_vhost_that_is_not_used():
    with pytest.warns(VhostnetWarning, match="<backend vhost='/dev/v'> has no effect on model e1000"):
        spec = vhostnet.parse_interface(interface("<model type='e1000'/><backend vhost='/dev/v'/>"))
    assert spec.vhost_path == "/dev/vhost-net"


def test_a_running_network_that_is_no_bridge():
    with pytest.raises(SpecError, match="<source dev='eth0'> is not supported: this network is not a bridge"):
        vhostnet.parse_interface(interface(attributes="type='network'", source="<source network='x' dev='eth0'/>"))


def test_bytes_with_a_declaration_and_text_with_one():
    text = '<?xml version="1.0" encoding="UTF-8"?>\n' + interface()
    assert vhostnet.parse_interface(text) == vhostnet.parse_interface(text.encode()) == BARE
    assert vhostnet.parse_interface(text.replace("UTF-8", "UTF-16").encode("utf-16")) == BARE


def test_ethernet():
    spec = vhostnet.parse_interface("<interface type='ethernet'><model type='virtio'/></interface>")
    assert (spec.type, spec.bridge) == ("ethernet", None)


def ethernet(inside):
    return vhostnet.parse_interface(f"<interface type='ethernet'>\n<model type='virtio'/>\n{inside}</interface>")


@pytest.mark.parametrize(
    ("inside", "fields"),
    [
        ("<script path='up'/><downscript path='/down'/>", {"script": "up", "downscript": "/down"}),
        ("<source><ip address='10.0.0.1'/></source>", {"tap_ips": (HostIp("10.0.0.1"),)}),
        ("<source><ip address='10.0.0.1' prefix='0'/></source>", {"tap_ips": (HostIp("10.0.0.1"),)}),
        (
            "<source><ip family='ipv6' address='fd00::1' prefix='7'/><ip address='10.0.0.1' peer='10.0.0.2'/></source>",
            {"tap_ips": (HostIp("fd00::1", 7), HostIp("10.0.0.1", peer="10.0.0.2"))},
        ),
        (
            "<source><route address='10.0.0.0' netmask='255.128.0.0' gateway='10.0.0.1' metric='7'/></source>",
            {"tap_routes": (HostRoute("10.0.0.0", "10.0.0.1", 9, 7),)},
        ),
        (
            "<source><route family='ipv6' address='::' gateway='fd00::1'/></source>",
            {"tap_routes": (HostRoute("::", "fd00::1"),)},
        ),
        ("<source><route family='ipv6' gateway='fd00::1'/></source>", {"tap_routes": (HostRoute("::", "fd00::1"),)}),
        ("<source><route gateway='10.0.0.1'/></source>", {"tap_routes": (HostRoute("0.0.0.0", "10.0.0.1"),)}),
    ],
)
def test_what_an_ethernet_has_besides(inside, fields):
    spec = ethernet(inside)
    given = {name: getattr(spec, name) for name in ("script", "downscript", "tap_ips", "tap_routes")}
    assert {name: value for name, value in given.items() if value} == fields


def test_a_route_of_no_length_is_to_everywhere():
    """As libvirt has it, which gives addresses alone the length of their class."""
    assert HostRoute("::", "fd00::1").length == 0
    with pytest.raises(SpecError, match="line 3: <route address='10.0.0.0'> is a network, and no prefix says which"):
        ethernet("<source><route address='10.0.0.0' gateway='10.0.0.1'/></source>")


REFUSED = [
    # what, element, attribute, value
    ("<driver queues='0'/>", "driver", "queues", "0"),
    ("<driver queues='-5'/>", "driver", "queues", "-5"),
    ("<driver queues='257'/>", "driver", "queues", "257"),
    ("<driver queues=' 4'/>", "driver", "queues", " 4"),
    ("<driver queues='+4'/>", "driver", "queues", "+4"),
    ("<driver queues='1_0'/>", "driver", "queues", "1_0"),
    ("<driver queues='\uff14'/>", "driver", "queues", "\uff14"),
    ("<driver queues=''/>", "driver", "queues", ""),
    (f"<driver queues='{'9' * 5000}'/>", "driver", "queues", "9" * 5000),
    ("<driver rx_queue_size='128'/>", "driver", "rx_queue_size", "128"),
    ("<driver name='vhost-net'/>", "driver", "name", "vhost-net"),
    ("<driver event_idx='yes'/>", "driver", "event_idx", "yes"),
    ("<driver><host csum='1'/></driver>", "host", "csum", "1"),
    ("<mtu size='67'/>", "mtu", "size", "67"),
    ("<target dev='a/b'/>", "target", "dev", "a/b"),
    ("<target dev='a' managed='perhaps'/>", "target", "managed", "perhaps"),
    ("<target dev='a23456789012345x'/>", "target", "dev", "a23456789012345x"),
    ("<target dev='a&#10;b'/>", "target", "dev", "a\nb"),
    ("<model type='ne2k pci'/>", "model", "type", "ne2k pci"),
    ("<backend tap='tun'/>", "backend", "tap", "tun"),
    ("<tune><sndbuf>many</sndbuf></tune>", "sndbuf", None, "many"),
    ("<tune><sndbuf> 5 </sndbuf></tune>", "sndbuf", None, " 5 "),
    ("<boot/>", "boot", "order", None),
    ("<address type='ccw' devno='1'/>", "address", None, None),
    ("<model type='e1000'/><driver iommu='on'/>", "driver", "iommu", "on"),
    ("<link state='sideways'/>", "link", "state", "sideways"),
    ("<address type='pci' domain='1'/>", "address", "domain", "1"),
    ("<address type='pci' slot='0x20'/>", "address", "slot", "0x20"),
    ("<address type='pci' slot='010'/>", "address", "slot", "010"),
    ("<address type='usb' port='1'/>", "address", None, None),
    ("<model type='usb-net'/><address type='usb' port='0'/>", "address", "port", "0"),
    ("<address type='isa'/>", "address", "type", "isa"),
    ("<address type='pci' slot='1'><zpci uid='1'/></address>", "zpci", None, None),
    ("<address type='pci' slot='1'><zpci uid='0' fid='0'/></address>", "zpci", "uid", "0"),
    ("<address type='pci'><zpci uid='1' fid='0'/></address>", "address", None, None),
    ("<boot order='1' loadparm='2'/>", "boot", "loadparm", "2"),
    ("<boot loadparm='2'/>", "boot", "order", None),
    ("<teaming type='transient' persistent='ua-x'/>", "teaming", "type", "transient"),
    ("<teaming type='persistent' persistent='ua-x'/>", "teaming", "persistent", "ua-x"),
    ("<teaming persistent='ua-x'/>", "teaming", "persistent", "ua-x"),
    ("<teaming type='other'/>", "teaming", "type", "other"),
    ("<address type='moon'/>", "address", "type", "moon"),
    ("<boot order='0'/>", "boot", "order", "0"),
    ("<rom enabled='no' bar='on'/>", "rom", "enabled", "no"),
    ("<acpi index='0'/>", "acpi", "index", "0"),
    ("<port isolated='true'/>", "port", "isolated", "true"),
    ("<coalesce><rx><frames max='4294967296'/></rx></coalesce>", "frames", "max", "4294967296"),
    ("<coalesce><rx><frames max='-1'/></rx></coalesce>", "frames", "max", "-1"),
    ("<vlan/>", "vlan", None, None),
    ("<vlan trunk='yes'/>", "vlan", None, None),
    ("<vlan><tag/></vlan>", "tag", "id", None),
    ("<vlan><tag id='-1'/></vlan>", "tag", "id", "-1"),
    ("<vlan><tag id='4096'/></vlan>", "tag", "id", "4096"),
    ("<vlan><tag id='x'/></vlan>", "tag", "id", "x"),
    ("<vlan><tag id='7'/><tag id='7'/></vlan>", "tag", "id", "7"),
    ("<vlan trunk='1'><tag id='7'/></vlan>", "vlan", "trunk", "1"),
    ("<vlan trunk='no'><tag id='7'/><tag id='8'/></vlan>", "vlan", "trunk", "no"),
    ("<vlan trunk='no'><tag id='7' nativeMode='tagged'/></vlan>", "vlan", "trunk", "no"),
    ("<vlan><tag id='7' nativeMode='dot1q-tunnel'/></vlan>", "tag", "nativeMode", "dot1q-tunnel"),
    *[
        (f"<bandwidth>{inside}</bandwidth>", direction, attribute, value)
        for direction in ("inbound", "outbound")
        for inside, attribute, value in [
            (f"<{direction}/>", "average", None),
            (f"<{direction} peak='5'/>", "average", None),
            (f"<{direction} burst='5'/>", "average", None),
            (f"<{direction} average=''/>", "average", ""),
            (f"<{direction} average='-1'/>", "average", "-1"),
            (f"<{direction} average='0x10'/>", "average", "0x10"),
            (f"<{direction} average='1.5'/>", "average", "1.5"),
            (f"<{direction} average='1' peak='x'/>", "peak", "x"),
            (f"<{direction} average='{2**54 + 1}'/>", "average", str(2**54 + 1)),
            (f"<{direction} average='{2**64}'/>", "average", str(2**64)),
            (f"<{direction} average='1' peak='{2**54 + 1}'/>", "peak", str(2**54 + 1)),
            (f"<{direction} average='{2**54}' burst='4194304'/>", "burst", "4194304"),
            (f"<{direction} average='1' burst='269'/>", "burst", "269"),
            (f"<{direction} average='1000' burst='268436'/>", "burst", "268436"),
            (f"<{direction} average='1' floor='0'/>", "floor", "0"),
            (f"<{direction} average='1' floor='5'/>", "floor", "5"),
            (f"<{direction} floor='5'/>", "floor", "5"),
            (f"<{direction} average='1'/><{direction} average='1'/>", None, None),
        ]
    ],
    ("<bandwidth><outbound average='0'/></bandwidth>", "outbound", "average", "0"),
    ("<bandwidth/><bandwidth/>", "bandwidth", None, None),
    ("<mac address='52:54:00:00:00:02'/>", "mac", None, None),
    ("<driver queues='2'/><driver queues='2'/>", "driver", None, None),
]


@pytest.mark.parametrize(("inside", "element", "attribute", "value"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused_with_element_attribute_line_and_value(inside, element, attribute, value):
    with pytest.raises(SpecError) as caught:
        vhostnet.parse_interface(interface("\n\n" + inside))
    error = caught.value
    assert (error.element, error.attribute, error.value, error.line) == (element, attribute, value, 3)
    assert f"line 3: <{element}" in str(error)
    assert error.expected or re.search("twice|leaves no ROM|is only for|is no place for", str(error))


UNSUPPORTED = [
    "<filterref filter='clean-traffic'/>",
    "<ip address='10.0.0.1'/>",
    "<route/>",
    "<portForward/>",
]


def test_the_line_of_a_source_that_lacks_something():
    with pytest.raises(SpecError, match="^line 3: <source bridge=> is missing"):
        vhostnet.parse_interface("<interface type='bridge'>\n<model type='virtio'/>\n<source/>\n</interface>")


@pytest.mark.parametrize("inside", UNSUPPORTED)
@pytest.mark.parametrize("strict", [True, False])
def test_what_libvirt_knows_and_we_do_not_is_refused_by_name(inside, strict):
    name = inside[1:].split(" ")[0].rstrip("/>").split(">")[0]
    with pytest.raises(SpecError, match=f"<{name}> is not supported"):
        vhostnet.parse_interface(interface(inside), strict=strict)


@pytest.mark.parametrize("dev", ["tap0", "vnet7", "macvtap0"])  # it is not generated anew, whatever it begins with
def test_a_tap_that_is_there(dev):
    text = f"<interface type='ethernet'><target dev='{dev}' managed='no'/><model type='virtio'/></interface>"
    spec = vhostnet.parse_interface(text, strict=True)
    assert (spec.managed, spec.ifname) == (False, dev)


def limited(kind, inside):
    source = {"bridge": "<source bridge='br0'/>", "network": "<source network='default'/>"}.get(kind, "")
    return interface(f"<bandwidth>{inside}</bandwidth>", f"type='{kind}'", source)


FLOORS = [
    ("<inbound floor='200'/>", Bandwidth(Rate(floor=200))),
    (f"<inbound floor='{2**54}'/>", Bandwidth(Rate(floor=2**54))),
    ("<inbound average='1000' floor='200'/>", Bandwidth(Rate(1000, floor=200))),
    ("<inbound average='0' floor='200'/>", Bandwidth(Rate(floor=200))),
    ("<inbound floor='0'/>", None),
    ("<inbound average='7' floor='0'/>", Bandwidth(Rate(7))),
]


@pytest.mark.parametrize(("inside", "bandwidth"), FLOORS)
def test_a_floor_is_a_networks(inside, bandwidth):
    assert vhostnet.parse_interface(limited("network", inside), strict=True).bandwidth == bandwidth
    for kind in ("bridge", "ethernet", "user"):
        with pytest.raises(SpecError, match="<inbound floor='[0-9]+'> is what a network guarantees"):
            vhostnet.parse_interface(limited(kind, inside))


@pytest.mark.parametrize(
    ("inside", "problem"),
    [
        (f"<inbound floor='{2**54 + 1}'/>", "<inbound floor='18014398509481985'> is not allowed"),
        ("<inbound floor='200' peak='5'/>", "<inbound peak='5'> says nothing without an average"),
        ("<inbound floor='200' burst='5'/>", "<inbound burst='5'> says nothing without an average"),
        ("<outbound average='1' floor='200'/>", "<outbound floor='200'> is what a network"),
    ],
)
def test_floors_that_cannot_be(inside, problem):
    with pytest.raises(SpecError, match=problem):
        vhostnet.parse_interface(limited("network", inside))


@pytest.mark.parametrize(
    ("inside", "what"),
    [
        ("<inbound average='0' peak='5'/>", "<inbound peak='5'> has no effect"),
        ("<inbound average='0' burst='5'/>", "<inbound burst='5'> has no effect"),
        ("<inbound average='0' mean='5'/>", "<inbound mean='5'> is no attribute"),
        ("<both average='5'/>", "<both> is no element"),
    ],
)
def test_what_says_nothing_of_a_bandwidth(inside, what):
    with pytest.warns(VhostnetWarning, match=f"^line 1: {what}"):
        assert vhostnet.parse_interface(limited("bridge", inside)).bandwidth is None
    with pytest.raises(SpecError, match=what):
        vhostnet.parse_interface(limited("bridge", inside), strict=True)


def test_a_bandwidth_of_a_tap_that_is_there():
    taken = "<target dev='tap0' managed='no'/><bandwidth><inbound average='5'/></bandwidth>"
    with pytest.raises(SpecError, match="<bandwidth> is not for a TAP that is there"):
        vhostnet.parse_interface(interface(taken, "type='ethernet'", ""))


def test_two_native_vlans():
    tags = "<vlan><tag id='7' nativeMode='tagged'/><tag id='8' nativeMode='untagged'/></vlan>"
    with pytest.raises(SpecError, match="<tag nativeMode='untagged'> is given for a second VLAN"):
        vhostnet.parse_interface(interface(tags))


@pytest.mark.parametrize(("manager", "asked"), [("kernel", None), ("libvirt", "libvirt")])
def test_who_keeps_the_forwarding_table(manager, asked):
    source = f"<source bridge='br0' macTableManager='{manager}'/><model type='virtio'/>"
    text = f"<interface type='bridge'>{source}</interface>"
    assert vhostnet.parse_interface(text, strict=True).mac_table_manager == asked


@pytest.mark.parametrize(
    "inside",
    ["<port isolated='yes'/>", "<vlan><tag id='7'/></vlan>", "<coalesce><rx><frames max='7'/></rx></coalesce>"],
)
def test_the_settings_of_a_port_are_for_ports(inside):
    with pytest.raises(SpecError, match="ethernet"):
        vhostnet.parse_interface(f"<interface type='ethernet'><model type='virtio'/>{inside}</interface>")


def test_whatever_is_not_supported_has_a_way_out():
    for table in (UNSUPPORTED_TYPES, elements.UNSUPPORTED_ELEMENTS, elements.UNSUPPORTED_ATTRIBUTES):
        assert all(len(way_out) > 20 for way_out in table.values())


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("<backend type='passt'/>", "<backend type='passt'> is not supported"),
    ],
)
def test_attributes_we_do_not_do_yet(inside, message):
    with pytest.raises(SpecError, match=message):
        vhostnet.parse_interface(interface(inside))


@pytest.mark.parametrize(
    "kind",
    sorted(UNSUPPORTED_TYPES),
)
def test_types_we_do_not_do_yet(kind):
    with pytest.raises(SpecError, match=f"<interface type='{kind}'> is not supported"):
        vhostnet.parse_interface(f"<interface type='{kind}'/>")


def test_no_type_is_libvirts_user():
    text = "<interface><mac address='52:54:00:00:00:01'/><model type='virtio'/></interface>"
    assert vhostnet.parse_interface(text, strict=True) == InterfaceSpec(type="user", mac="52:54:00:00:00:01")


@pytest.mark.parametrize(
    "inside",
    [
        "<link state='up'/>text",
        "<frobnicate/>",
        "<mac frob='1'/>",
        "<mtu size='1500'><x/></mtu>",
        "<vlan type='x'><tag id='7'/></vlan>",
        "<address type='pci' slot='1'><x/></address>",
        "<mtu size='1500'>text</mtu>",
        "<x:y xmlns:x='u'/>",
    ],
)
def test_what_libvirt_does_not_know(inside):
    text = interface(inside.replace("<mac", "<link state='up'")) if "<mac" in inside else interface(inside)
    with pytest.warns(VhostnetWarning, match="line 1"):
        vhostnet.parse_interface(text)
    with pytest.raises(SpecError):
        vhostnet.parse_interface(text, strict=True)


def test_driver_options_of_a_model_that_has_none_are_named():
    text = interface("<model type='e1000'/><driver name='vhost' queues='4'/>")
    with pytest.warns(VhostnetWarning, match="has no effect on model e1000") as caught:
        spec = vhostnet.parse_interface(text)
    assert len(caught) == 2
    assert (spec.queues, spec.vhost) == (1, "auto")
    with pytest.raises(SpecError, match="has no effect"):
        vhostnet.parse_interface(text, strict=True)


def test_a_reserved_prefix_that_a_user_chose_is_said():
    with pytest.warns(VhostnetWarning, match="vnet-web"):
        assert vhostnet.parse_interface(interface("<target dev='vnet-web'/>")).ifname is None


# --- networks --------------------------------------------------------------------------------------------

NETWORK = "<interface type='network'><model type='virtio'/><source network='default'/></interface>"


def test_a_network_is_what_the_caller_says():
    spec = vhostnet.parse_interface(NETWORK, networks={"default": "virbr0"})
    assert (spec.network, spec.bridge) == ("default", "virbr0")


def test_an_unknown_network_is_refused_with_those_that_are_known():
    with pytest.raises(SpecError, match="blue, red") as caught:
        vhostnet.parse_interface(NETWORK, networks={"red": "br0", "blue": "br1"})
    assert (caught.value.element, caught.value.attribute, caught.value.value) == ("source", "network", "default")


def test_a_running_domains_xml_says_the_bridge_itself():
    live = NETWORK.replace("'default'", "'default' portid='1-2' bridge='virbr0'")
    assert vhostnet.parse_interface(live, strict=True).bridge == "virbr0"


def test_without_a_mapping_it_parses_and_cannot_be_planned():
    spec = vhostnet.parse_interface(NETWORK)
    assert spec.bridge is None
    with pytest.raises(SpecError, match="--network"):
        vhostnet.plan_nics([spec])


# --- domains ---------------------------------------------------------------------------------------------

DOMAIN = """\
<domain type='kvm'>
  <name>x</name>
  <os><type arch='x86_64' machine='{machine}'>hvm</type>{boot}</os>
  <devices>
    <disk type='file'/>
    <interface type='bridge'><model type='virtio'/><source bridge='br0'/><address type='pci' slot='0x3'/></interface>
    <interface type='bridge'><model type='virtio'/><source bridge='br1'/></interface>
  </devices>
</domain>
"""


def test_a_domain_gives_its_interfaces_in_order():
    specs = vhostnet.parse_domain(DOMAIN.format(machine="pc-i440fx-7.2", boot=""), strict=True)
    assert [spec.bridge for spec in specs] == ["br0", "br1"]
    assert specs[0].address.bus_name == "pci.0"


def test_q35_calls_its_bus_otherwise():
    specs = vhostnet.parse_domain(DOMAIN.format(machine="pc-q35-7.2", boot=""))
    assert specs[0].address.bus_name == "pcie.0"


def test_os_boot_gives_the_first_nic_its_order():
    boot = "<boot dev='hd'/><boot dev='network'/>"
    specs = vhostnet.parse_domain(DOMAIN.format(machine="pc", boot=boot))
    assert [spec.boot_order for spec in specs] == [2, None]


def test_the_two_ways_to_boot_exclude_each_other():
    text = DOMAIN.format(machine="pc", boot="<boot dev='network'/>")
    with pytest.raises(SpecError, match="excludes"):
        vhostnet.parse_domain(text.replace("<source bridge='br1'/>", "<source bridge='br1'/><boot order='1'/>"))


@pytest.mark.parametrize("same", ["<alias name='ua-x'/>", "<boot order='1'/>", "<address type='pci' slot='0x3'/>"])
def test_what_only_one_nic_of_a_domain_can_have(same):
    with pytest.raises(SpecError, match="another NIC's already") as caught:
        vhostnet.parse_domain(f"<devices>{interface(same)}\n{interface(same)}</devices>")
    assert caught.value.line == 2


@pytest.mark.parametrize("same", ["<address type='virtio-mmio'/>", "<address type='ccw'/>", "<address type='pci'/>"])
def test_what_many_nics_of_a_domain_can_have(same):
    assert len(vhostnet.parse_domain(f"<devices>{interface(same)}{interface(same)}</devices>")) == 2


def test_a_missing_model_is_said():
    with pytest.warns(VhostnetWarning, match="rtl8139"):
        assert vhostnet.parse_interface("<interface type='ethernet'/>").model == "virtio"


def test_devices_alone_will_do_and_none_is_none():
    assert vhostnet.parse_domain("<devices/>") == vhostnet.parse_domain("<domain/>") == ()
    assert len(vhostnet.parse_domain(f"<devices>{interface()}{interface()}</devices>")) == 2


@pytest.mark.parametrize(
    ("controller", "bus"),
    [
        ("<controller type='pci' index='2' model='pcie-root-port'/>", "pci.2"),
        ("<controller type='pci' index='2' model='pcie-root-port'><alias name='ua-port'/></controller>", "ua-port"),
        ("<controller type='pci' index='2' model='pcie-root-port'><alias name='mine'/></controller>", "pci.2"),
        ("<controller type='pci' index='2' model='pcie-root-port'><alias name='ua-,x'/></controller>", "pci.2"),
        ("<controller type='pci' index='2' model='pci-root'/>", "pci.2.0"),
        ("<controller type='pci' index='2' model='pci-root'><alias name='ua-phb'/></controller>", "ua-phb.0"),
        ("<controller type='pci' index='02'><alias name='ua-x'/></controller>", "pci.2"),
        ("<controller type='usb' index='2'><alias name='ua-x'/></controller>", "pci.2"),
    ],
)
def test_a_bus_is_called_as_its_controller(controller, bus):
    nic = interface("<address type='pci' bus='0x02' slot='0x1'/>")
    (spec,) = vhostnet.parse_domain(f"<devices>{controller}{nic}</devices>", strict=True)
    assert spec.address.bus_name == bus


def test_an_error_in_a_domain_has_the_domains_line():
    text = DOMAIN.format(machine="pc", boot="").replace("slot='0x3'", "slot='x'")
    with pytest.raises(SpecError) as caught:
        vhostnet.parse_domain(text)
    assert caught.value.line == 6


def test_parse_any_takes_whichever_it_is():
    assert vhostnet.parse_any(SEED) == (vhostnet.parse_interface(SEED),)
    assert len(vhostnet.parse_any(DOMAIN.format(machine="pc", boot=""))) == 2


# --- documents that are none -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not well-formed"),
        ("<interface", "not well-formed"),
        ("<interface type='a' type='b'/>", "not well-formed"),
        ("<network/>", "<network> is not an interface"),
        ("<!DOCTYPE interface><interface/>", "DOCTYPE"),
        ("<!DOCTYPE i [<!ENTITY b 'br0'>]><interface type='bridge'><source bridge='&b;'/></interface>", "DOCTYPE"),
        ("<interface>" + " " * 70000 + "</interface>", "65536"),
        ("<interface>\0</interface>", "not well-formed"),
        ("\ud800<interface/>", "not well-formed"),
        (b"\xff\xfe\x00", "not well-formed"),
    ],
)
def test_documents_that_are_refused(text, message):
    with pytest.raises(SpecError, match=message):
        vhostnet.parse_interface(text)


def test_neither_text_nor_bytes():
    with pytest.raises(TypeError):
        vhostnet.parse_interface(None)
