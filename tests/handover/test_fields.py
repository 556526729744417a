"""A spec as plain values, and back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vhostnet
from vhostnet.handover.fields import another, fields_of, spec_of
from vhostnet.values import replace

WHOLE = {
    "bridge": "br0",
    "network": "default",
    "type": "network",
    "mac": "52:54:00:00:00:07",
    "queues": 8,
    "vlan": vhostnet.Vlan((1, 2), trunk=True, native=2),
    "bandwidth": vhostnet.Bandwidth(vhostnet.Rate(1000, burst=3, floor=2), vhostnet.Rate(5)),
    "sndbuf": 2**64 - 1,
    "guest_csum": False,
}
SPECS = (
    {"bridge": "br0"},
    WHOLE,
    {"bridge": "br0", "address": vhostnet.PciAddress(1, 2, 3, True, "pcie.0", vhostnet.ZpciAddress(1, 2))},
    {"bridge": "br0", "address": vhostnet.CcwAddress(devno=7), "boot_order": 1, "loadparm": "A 1"},
    {"bridge": "br0", "address": vhostnet.MmioAddress()},
    {"bridge": "br0", "model": "usb-net", "address": vhostnet.UsbAddress(0, "1.2")},
    {"bridge": "br0", "model": "spapr-vlan", "address": vhostnet.SpaprVioAddress(4096)},
    {"bridge": "br0", "virtualport": vhostnet.VirtualPort(profileid="p")},
    {"type": "direct", "source": vhostnet.DirectSource("eth0", "bridge")},
    {
        "type": "ethernet",
        "script": "/bin/true",
        "tap_ips": (vhostnet.HostIp("10.0.0.1", 24), vhostnet.HostIp("fd00::1")),
        "tap_routes": (vhostnet.HostRoute("10.1.0.0", "10.0.0.2", 16, 5),),
    },
    {"type": "ethernet", "managed": False, "ifname": "tap7"},
)


@pytest.mark.parametrize("fields", SPECS, ids=lambda fields: "-".join(fields))
def test_there_and_back(fields):
    spec = vhostnet.InterfaceSpec(**fields)
    assert spec_of(json.loads(json.dumps(fields_of(spec)))) == spec


def test_the_same_but_for_its_mac():
    spec = vhostnet.InterfaceSpec(**WHOLE)
    other = another(spec, "52:54:00:AA:00:08")
    assert other == replace(spec, mac="52:54:00:aa:00:08")
    assert hash(other) == hash(replace(spec, mac="52:54:00:aa:00:08"))
    for wrong in ("", "52:54", "53:54:00:00:00:01"):
        with pytest.raises(vhostnet.SpecError) as caught:
            another(spec, wrong)
        with pytest.raises(vhostnet.SpecError, match=str(caught.value.expected)):
            replace(spec, mac=wrong)


def test_what_says_nothing_is_left_out():
    assert fields_of(vhostnet.InterfaceSpec(bridge="br0", mac="52:54:00:00:00:07")) == {
        "bridge": "br0",
        "mac": "52:54:00:00:00:07",
    }


@pytest.mark.parametrize(
    ("fields", "attribute", "expected"),
    [
        ({"bridgee": "br0"}, "bridgee", "bridge"),
        ({"bridge": 7}, "bridge", "name of a Linux bridge"),
        ({"bridge": "br0", "queues": True}, "queues", "1..256"),
        ({"bridge": "br0", "queues": None}, "queues", "1..256"),
        ({"bridge": "br0", "vlan": 7}, "vlan", "an object"),
        ({"bridge": "br0", "vlan": {}}, "vlan.tags", ""),
        ({"bridge": "br0", "vlan": {"tags": 7}}, "vlan.tags", "a list"),
        ({"bridge": "br0", "vlan": {"tags": [4096]}}, "vlan.tags", "0..4095"),
        ({"bridge": "br0", "vlan": [{"tags": [1]}]}, "vlan", "a Vlan"),
        ({"bridge": "br0", "bandwidth": {"inbound": {"average": 0}}}, "bandwidth.inbound.average", "kB a second"),
        ({"bridge": "br0", "address": {"slot": 1}}, "address.type", "pci"),
        ({"bridge": "br0", "address": {"type": ["pci"]}}, "address.type", "pci"),
        ({"bridge": "br0", "address": {"type": "virtio-mmio", "slot": 1}}, "address.slot", "none"),
        ({"type": "ethernet", "tap_ips": {"address": "10.0.0.1"}}, "tap_ips", "a tuple of HostIp"),
        ({"type": "ethernet", "tap_ips": [7]}, "tap_ips", "an object"),
    ],
)
def test_what_is_wrong_is_named(fields, attribute, expected):
    with pytest.raises(vhostnet.SpecError) as caught:
        spec_of(fields)
    assert caught.value.attribute == attribute
    assert expected in caught.value.expected


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*WHOLE, "tags", "average", "slot"]), inner),
)
FIELDS = st.dictionaries(st.sampled_from([*vhostnet.InterfaceSpec.__annotations__, "other"]), ANYTHING)


@given(FIELDS)
def test_whatever_comes_is_a_spec_or_refused(fields):
    try:
        spec = spec_of({"bridge": "br0", **fields})
    except vhostnet.SpecError as refused:
        assert str(refused)
    else:
        assert isinstance(spec, vhostnet.InterfaceSpec)
