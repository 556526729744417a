"""What holds for any spec and any text: arguments read back as they were meant, and no error but our own."""

import re
import xml.etree.ElementTree as ET
from xml.sax.saxutils import escape, quoteattr

import expected
import pytest
from conftest import SEED, TESTS
from hypothesis import given, settings
from hypothesis import strategies as st
from qemuopts import parse_argv

import vhostnet
from vhostnet import (
    Bandwidth,
    CcwAddress,
    DirectSource,
    InterfaceSpec,
    MmioAddress,
    Network,
    PasstSource,
    PciAddress,
    PortGroup,
    Rate,
    SocketSource,
    SpaprVioAddress,
    SpecError,
    UsbAddress,
    UserSource,
    VdpaSource,
    VhostUserSource,
    Vlan,
    ZpciAddress,
)

pytestmark = pytest.mark.filterwarnings("ignore::vhostnet.VhostnetWarning")

DIALECTS = ("classic", "keyval", "json")
MAYBE = st.none() | st.booleans()
RINGS = st.sampled_from([None, 256, 512, 1024])
TEXT = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Zl", "Zp")), max_size=40).filter(
    lambda text: not re.search("[\u202a-\u202e\u2066-\u2069]", text)
)
MACS = st.binary(min_size=6, max_size=6).map(lambda octets: bytes([octets[0] & 0xFE | 2, *octets[1:]]).hex(":"))
PCI = st.builds(
    PciAddress,
    st.integers(0, 255),
    st.integers(0, 31),
    st.integers(0, 7),
    MAYBE,
    st.sampled_from(["pci.0", "pcie.0"]),
    st.none() | st.builds(ZpciAddress, st.integers(1, 0xFFFF), st.integers(0, 0xFFFFFFFF)),
)
CCW = st.builds(CcwAddress, st.integers(0, 0xFE), st.integers(0, 3), st.none() | st.integers(0, 0xFFFF))

RATES = st.one_of(
    st.builds(Rate, st.integers(1, 2**54), st.none() | st.integers(1, 2**54)),
    st.builds(Rate, st.integers(2**14, 2**54), st.none() | st.integers(1, 2**54), st.integers(1, 2**22 - 1)),
)
# What any NIC may have, what virtio's may have besides, and what only one on PCI may have.
ANY = {
    "mac": MACS,
    "sndbuf": st.none() | st.integers(0, 2**64 - 1),
    "mtu": st.none() | st.integers(68, 65521),
    "bandwidth": st.none() | st.builds(Bandwidth, RATES, st.none() | RATES) | st.builds(Bandwidth, outbound=RATES),
    "alias": st.none() | st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    "boot_order": st.none() | st.integers(1, 2**31 - 1),
}
VIRTIO = {
    "queues": st.integers(1, 256),
    "rx_queue_size": RINGS,
    "tx_queue_size": RINGS,
    "txmode": st.sampled_from([None, "iothread", "timer"]),
    **{name: MAYBE for name in InterfaceSpec.__dataclass_fields__ if name.startswith(("host_", "guest_"))},
    **dict.fromkeys(
        ("ioeventfd", "event_idx", "iommu", "ats", "packed", "page_per_vq", "rss", "rss_hash_report"), MAYBE
    ),
}
WHERE = {
    "user": st.none()
    | st.builds(
        UserSource,
        st.none() | st.tuples(st.ip_addresses(v=4), st.integers(4, 27)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
        st.none()
        | st.tuples(st.ip_addresses(v=6), st.sampled_from(["", "/64"])).map(lambda pair: f"{pair[0]}{pair[1]}"),
    ),
    "vhostuser": st.builds(
        VhostUserSource, TEXT.map(lambda text: f"/{text}"), st.just(False), st.none() | st.integers(0, 2147483)
    )
    | st.builds(VhostUserSource, TEXT.map(lambda text: f"/{text}"), st.just(True)),
    "vdpa": st.builds(VdpaSource, TEXT.map(lambda text: f"/{text}")),
}
HOSTS = st.from_regex(r"[a-z0-9.,:=-]{1,20}", fullmatch=True)
PORTS = st.integers(1, 65535)
LINKS = st.from_regex(r"[a-z0-9.,=-]{3,15}", fullmatch=True)
ON_PCI = {"rom_bar": MAYBE, "rom_file": st.none() | TEXT, "acpi_index": st.none() | st.integers(1, 16383)}
SPECS = st.one_of(
    st.builds(
        InterfaceSpec,
        type=st.just("ethernet"),
        model=st.sampled_from(["virtio", "virtio-transitional", "virtio-non-transitional"]),
        address=st.none() | PCI,
        **ANY,
        **VIRTIO,
        **ON_PCI,
    ),
    st.builds(InterfaceSpec, bridge=st.just("br0"), address=CCW | st.just(MmioAddress()), **ANY, **VIRTIO),
    st.builds(
        InterfaceSpec,
        type=st.just("network"),
        network=st.just("default"),
        model=st.sampled_from(["e1000e", "vmxnet3", "igb", "e1000", "rtl8139"]),
        address=st.none() | PCI,
        **ANY,
        **ON_PCI,
    ),
    st.builds(
        InterfaceSpec,
        type=st.just("direct"),
        source=st.builds(DirectSource, LINKS, st.sampled_from(["vepa", "bridge", "private", "passthrough"])),
        address=st.none() | PCI,
        **{name: strategy for name, strategy in ANY.items() if name != "mtu"},
        **VIRTIO,
    ),
)
REST = {name: ANY[name] for name in ("mac", "alias", "boot_order")}  # of what has no TAP
TEAM = st.sampled_from([None, "persistent"])
PASST = st.builds(PasstSource, st.none() | st.integers(0, 2147483))
TAPLESS = st.one_of(
    st.builds(InterfaceSpec, type=st.just("user"), source=WHERE["user"], address=st.none() | PCI, teaming=TEAM, **REST),
    st.builds(
        InterfaceSpec,
        type=st.just("user"),
        model=st.just("usb-net"),
        address=st.builds(UsbAddress, st.integers(0, 255), st.sampled_from(["1", "1.2", "255.1.2.3"])),
        **REST,
    ),
    st.builds(
        InterfaceSpec,
        type=st.just("user"),
        model=st.just("spapr-vlan"),
        address=st.builds(SpaprVioAddress, st.integers(0, 0xFFFFFFFF)),
        **REST,
    ),
    st.builds(InterfaceSpec, type=st.just("user"), address=CCW, loadparm=st.sampled_from([None, "A.1 Z"]), **REST),
    st.builds(InterfaceSpec, type=st.just("vhostuser"), source=WHERE["vhostuser"], mtu=ANY["mtu"], **REST, **VIRTIO),
    st.builds(InterfaceSpec, type=st.just("user"), source=PASST, mtu=ANY["mtu"], **REST),
    st.builds(InterfaceSpec, type=st.just("vhostuser"), source=PASST, mtu=ANY["mtu"], **REST, **VIRTIO),
    st.builds(InterfaceSpec, type=st.just("vdpa"), source=WHERE["vdpa"], **REST, **VIRTIO),
    st.builds(
        InterfaceSpec,
        type=st.sampled_from(["mcast", "client", "server"]),
        source=st.builds(SocketSource, HOSTS, PORTS),
        model=st.sampled_from(["virtio", "e1000", "ne2k_pci"]),
        **REST,
    ),
    st.builds(InterfaceSpec, type=st.just("udp"), source=st.builds(SocketSource, HOSTS, PORTS, HOSTS, PORTS), **REST),
)


@given(SPECS, st.booleans(), st.sampled_from(DIALECTS))
@settings(deadline=None, max_examples=300)
def test_the_arguments_say_what_the_spec_says(spec, vhost, dialect):
    tap = list(range(10, 10 + spec.queues))
    fds = {"tap_fds": tap, "vhost_fds": list(range(1000, 1000 + spec.queues)) if vhost and spec.virtio else []}
    argv = vhostnet.qemu_argv(spec, **fds, dialect=dialect)
    alias = spec.alias or "net0"
    assert parse_argv(argv) == expected.all_of(spec, **fds, alias=alias, dialect=dialect)
    assert vhostnet.qemu_properties(spec, **fds) == expected.both(spec, **fds, alias=alias, dialect="json")
    assert not re.search(r"[\x00-\x1f\x7f]", "".join(argv))


@given(TAPLESS, st.sampled_from(DIALECTS))
@settings(deadline=None, max_examples=300)
def test_the_arguments_of_what_has_no_tap(spec, dialect):
    fds = {"vdpa_fd": 7} if spec.type == "vdpa" else {"passt_socket": "/run/a,b=c"} if spec.passt else {}
    argv = vhostnet.qemu_argv(spec, **fds, dialect=dialect)
    alias = spec.alias or "net0"
    assert parse_argv(argv) == expected.all_of(spec, **fds, alias=alias, dialect=dialect)
    assert vhostnet.qemu_properties(spec, **fds) == expected.both(spec, **fds, alias=alias, dialect="json")
    assert not re.search(r"[\x00-\x1f\x7f]", "".join(argv))


@given(st.text(max_size=300))
@settings(deadline=None, max_examples=300)
def test_any_text_is_a_spec_or_a_spec_error(text):
    with pytest.raises(SpecError):
        vhostnet.parse_interface(text)


@given(st.data())
@settings(deadline=None, max_examples=500)
def test_a_damaged_seed_is_a_spec_or_a_spec_error(data):
    at = data.draw(st.integers(0, len(SEED)))
    upto = data.draw(st.integers(at, min(len(SEED), at + 8)))
    text = SEED[:at] + data.draw(st.text(max_size=8)) + SEED[upto:]
    try:
        spec = vhostnet.parse_interface(text)
    except SpecError as error:
        assert str(error)
    else:
        vhostnet.qemu_argv(spec, tap_fds=range(3, 3 + spec.queues) if spec.tap else ())


@given(st.sampled_from(list(InterfaceSpec.__dataclass_fields__)), st.none() | st.integers() | st.text() | st.binary())
@settings(deadline=None, max_examples=500)
def test_any_value_in_any_field_is_a_spec_or_a_spec_error(name, value):
    fields = {"bridge": "br0", name: value}
    try:
        spec = InterfaceSpec(**fields)
    except SpecError as error:
        assert name in str(error) or error.attribute != name
    else:
        assert spec == InterfaceSpec(**{**fields, "mac": spec.mac})


# --- networks --------------------------------------------------------------------------------------------

VLANS = st.none() | st.integers(0, 4095).map(lambda tag: Vlan((tag,)))
NAMES = st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True)
GROUPS = st.lists(st.builds(PortGroup, name=NAMES, vlan=VLANS), max_size=3, unique_by=lambda group: group.name)


def written(value):
    """Its XML."""
    if isinstance(value, Vlan):
        return f"<vlan><tag id='{value.tags[0]}'/></vlan>"
    if isinstance(value, PortGroup):
        default = " default='yes'" if value.default else ""
        return f"<portgroup name='{value.name}'{default}>{written(value.vlan)}</portgroup>"
    return ""


@given(VLANS, VLANS, GROUPS, st.booleans(), st.sampled_from(["", "yes", "no"]), st.data())
@settings(deadline=None, max_examples=300)
def test_a_nic_of_a_network_is_the_one_in_which_all_is_written(own, of_all, groups, isolated, its, data):
    """Its own VLAN, or its group's, or the network's; and isolated as it says, or the network."""
    if groups and data.draw(st.booleans()):
        groups[0] = PortGroup(name=groups[0].name, default=True, vlan=groups[0].vlan)
    there = Network(name="n", forward="bridge", bridge="br0", isolated=isolated, vlan=of_all, portgroups=tuple(groups))
    port = f"<port isolated='{'yes' if isolated else 'no'}'/>"
    text = "<network><name>n</name><forward mode='bridge'/><bridge name='br0'/>"
    text += f"{port}{written(of_all)}{''.join(map(written, groups))}</network>"
    assert vhostnet.parse_network(text, strict=True) == there

    group = data.draw(st.sampled_from([None, *groups]))
    named = f" portgroup='{group.name}'" if group else ""
    inside = written(own) + (f"<port isolated='{its}'/>" if its else "")
    nic = "<interface type='network'><mac address='52:54:00:00:00:01'/><model type='virtio'/>{}</interface>"
    spec = vhostnet.parse_interface(
        nic.format(f"<source network='n'{named}/>{inside}"), networks={"n": there}, strict=True
    )
    group = group or next((group for group in groups if group.default), None)
    whole = written(own or (group and group.vlan) or of_all)
    whole += f"<port isolated='{its or ('yes' if isolated else 'no')}'/>"
    bare = nic.format(f"<source network='n'/>{whole}")
    assert spec == vhostnet.parse_interface(bare, networks={"n": "br0"}, strict=True)


@given(st.text(max_size=300))
@settings(deadline=None, max_examples=300)
def test_any_text_is_a_network_or_a_spec_error(text):
    with pytest.raises(SpecError):
        vhostnet.parse_network(text)


# --- the same XML, written otherwise ---------------------------------------------------------------------

WHOLE = [SEED, *(path.read_text() for path in sorted((TESTS / "golden").glob("*.xml")))]
WHOLE = [text for text in WHOLE if "<mac " in text]  # without one each reading has a MAC of its own
SPACES = st.text("\n\t ", max_size=3)
GAPS = SPACES | st.just("\n<!-- <mtu size='9'/> & -->") | st.just("<?xml-stylesheet href='x'?> ")


def some_case(draw, text):
    return "".join(draw(st.sampled_from([letter.lower(), letter.upper()])) for letter in text)


def write_attribute(draw, name, value):
    value = some_case(draw, value) if name == "address" and value.count(":") == 5 else value
    quoted = quoteattr(value) if draw(st.booleans()) else "'" + escape(value, {"'": "&#x27;"}) + "'"
    return " " + draw(SPACES) + name + draw(SPACES) + "=" + draw(SPACES) + quoted


def write_element(draw, element):
    """The same element: its attributes and children in any order, with whatever means nothing in between."""
    attributes = draw(st.permutations(sorted(element.items())))
    head = element.tag + "".join(write_attribute(draw, *attribute) for attribute in attributes) + draw(SPACES)
    text = "" if element.tag != "sndbuf" else element.text
    children = "".join(draw(GAPS) + write_element(draw, child) for child in draw(st.permutations(list(element))))
    content = text or children + draw(GAPS)
    return f"<{head}/>" if not content else f"<{head}>{content}</{element.tag}{draw(SPACES)}>"


@st.composite
def documents(draw):
    """(a document, another that means the same)"""
    whole = draw(st.sampled_from(WHOLE))
    head, encoding = draw(
        st.sampled_from(
            [
                ("", "utf-8"),
                ("", "utf-8-sig"),
                ("<?xml version='1.0'?>\n", "utf-8"),
                ('<?xml version="1.0" encoding="utf-8" standalone="yes"?>', "utf-8"),
                ("<?xml version='1.0' encoding='UTF-16'?>", "utf-16"),
                ("", "utf-16"),
            ]
        )
    )
    return whole, (head + draw(GAPS) + write_element(draw, ET.fromstring(whole)) + draw(GAPS)).encode(encoding)


@given(documents())
@settings(deadline=None, max_examples=200)
def test_how_it_is_written_changes_nothing(pair):
    one, other = (vhostnet.parse_interface(text, strict=True) for text in pair)
    assert one == other
    for dialect in DIALECTS:
        fds = {"tap_fds": range(3, 3 + one.queues)} if one.tap else {"vdpa_fd": 3} if one.type == "vdpa" else {}
        fds |= {"passt_socket": "/run/p"} if one.passt else {}
        fds["dialect"] = dialect
        assert vhostnet.qemu_argv(one, **fds) == vhostnet.qemu_argv(other, **fds)
