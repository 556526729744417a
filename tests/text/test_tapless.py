"""<interface> of types without a TAP: what each takes, what libvirt refuses or ignores there, where errors point."""

import dataclasses

import pytest

import vhostnet
from vhostnet import (
    DirectSource,
    InterfaceSpec,
    PasstSource,
    SocketSource,
    SpecError,
    UserSource,
    VdpaSource,
    VhostnetWarning,
    VhostUserSource,
)

SWITCH = "<source type='unix' path='/run/v.sock' mode='client'/>"
ENDS = "<source address='10.0.0.1' port='5555'/>"
UDP = "<source address='10.0.0.1' port='5555'><local address='10.0.0.2' port='5556'/></source>"
SOURCES = {
    "user": ("", None),
    "vhostuser": (SWITCH, VhostUserSource("/run/v.sock")),
    "vdpa": ("<source dev='/dev/vhost-vdpa-0'/>", VdpaSource("/dev/vhost-vdpa-0")),
    "udp": (UDP, SocketSource("10.0.0.1", 5555, "10.0.0.2", 5556)),
    "mcast": (ENDS, SocketSource("10.0.0.1", 5555)),
    "server": (ENDS, SocketSource("10.0.0.1", 5555)),
    "client": (ENDS, SocketSource("10.0.0.1", 5555)),
}
SOCKETS = ("udp", "mcast", "server", "client")
QUEUED = ("vhostuser", "vdpa")


def interface(kind, inside="", source=None):
    model = "" if "<model" in inside else "<model type='virtio'/>"
    source = SOURCES[kind][0] if source is None else source
    return f"<interface type='{kind}'><mac address='52:54:00:00:00:01'/>{model}{source}{inside}</interface>"


def bare(kind, **fields):
    return InterfaceSpec(**{"type": kind, "mac": "52:54:00:00:00:01", "source": SOURCES[kind][1], **fields})


@pytest.mark.parametrize("kind", SOURCES)
def test_each_type(kind):
    spec = vhostnet.parse_interface(interface(kind), strict=True)
    assert spec == bare(kind)
    assert not spec.tap


PASST = "<backend type='passt'/>"
TAKEN = [
    ("user", PASST, None, {"source": PasstSource()}),
    (
        "user",
        f"{PASST}<model type='rtl8139'/><mtu size='9000'/>",
        None,
        {"source": PasstSource(), "model": "rtl8139", "mtu": 9000},
    ),
    ("vhostuser", PASST, "", {"source": PasstSource()}),
    ("vhostuser", f"{PASST}<driver queues='2'/>", "<source/>", {"source": PasstSource(), "queues": 2}),
    ("vhostuser", PASST, "<source type='unix' mode='client'/>", {"source": PasstSource()}),
    ("user", "<ip address='172.17.2.0' family='ipv4' prefix='24'/>", None, {"source": UserSource("172.17.2.0/24")}),
    ("user", "<ip address='10.0.0.0' prefix='4'/>", None, {"source": UserSource("10.0.0.0/4")}),
    ("user", "<ip address='10.0.0.0' prefix='27'/>", None, {"source": UserSource("10.0.0.0/27")}),
    ("user", "<ip address='10.0.0.0' prefix='0'/>", None, {"source": UserSource("10.0.0.0")}),
    ("user", "<ip address='fe80::' prefix='64'/>", None, {"source": UserSource(None, "fe80::/64")}),
    (
        "user",
        "<ip family='ipv6' address='fe80::'/><ip family='ipv4' address='10.0.0.0'/>",
        None,
        {"source": UserSource("10.0.0.0", "fe80::")},
    ),
    ("user", "<model type='e1000'/>", None, {"model": "e1000"}),
    ("user", "<driver queues='1' txmode='timer'/>", None, {"txmode": "timer"}),
    ("user", "<teaming type='persistent'/><link state='down'/>", None, {"teaming": "persistent", "link_state": "down"}),
    ("user", "<backend type='default'/>", None, {}),
    ("vhostuser", "", "<source path='/a'/>", {"source": VhostUserSource("/a")}),
    ("vhostuser", "", "<source type='unix' path='/a,b' mode='server'/>", {"source": VhostUserSource("/a,b", True)}),
    (
        "vhostuser",
        "",
        "<source path='/a'><reconnect enabled='yes' timeout='2147483'/></source>",
        {"source": VhostUserSource("/a", reconnect=2147483)},
    ),
    (
        "vhostuser",
        "",
        "<source path='/a'><reconnect enabled='no'/></source>",
        {"source": VhostUserSource("/a", reconnect=0)},
    ),
    ("vhostuser", "", "<source path='/a'><reconnect/></source>", {"source": VhostUserSource("/a")}),
    (
        "vhostuser",
        "<driver queues='256' rx_queue_size='1024' tx_queue_size='1024'/><mtu size='9000'/>",
        None,
        {"queues": 256, "rx_queue_size": 1024, "tx_queue_size": 1024, "mtu": 9000},
    ),
    ("vdpa", "<driver queues='256'/>", None, {"queues": 256}),
    ("server", "", "<source port='65535'/>", {"source": SocketSource(port=65535)}),
    ("client", "", "<source address='host.example' port='1'/>", {"source": SocketSource("host.example", 1)}),
]


@pytest.mark.parametrize(("kind", "inside", "source", "fields"), TAKEN, ids=lambda value: str(value)[:40])
def test_taken(kind, inside, source, fields):
    assert vhostnet.parse_interface(interface(kind, inside, source), strict=True) == bare(kind, **fields)


REFUSED = [
    # type, inside, source, element, attribute, value
    *((kind, "<mtu size='1500'/>", None, "mtu", "size", "1500") for kind in SOURCES if kind != "vhostuser"),
    *((kind, "<driver queues='2'/>", None, "driver", "queues", "2") for kind in SOURCES if kind not in QUEUED),
    *((kind, "<driver queues='257'/>", None, "driver", "queues", "257") for kind in QUEUED),
    *((kind, "<model type='e1000'/>", None, "model", "type", "e1000") for kind in QUEUED),
    *((kind, "<backend tap='/dev/tun2'/>", None, "backend", "tap", "/dev/tun2") for kind in SOURCES),
    *((kind, "<port isolated='yes'/>", None, "port", None, None) for kind in SOURCES),
    *((kind, "<vlan><tag id='7'/></vlan>", None, "vlan", None, None) for kind in SOURCES),
    *((kind, "<filterref filter='x'/>", None, "filterref", None, None) for kind in SOURCES),
    *((kind, "<virtualport type='openvswitch'/>", None, "virtualport", None, None) for kind in SOURCES),
    *((kind, "<coalesce><rx><frames max='7'/></rx></coalesce>", None, "coalesce", None, None) for kind in SOURCES),
    *((kind, "<script path='/x'/>", None, "script", None, None) for kind in SOURCES),
    *((kind, "<target dev='x' managed='no'/>", None, "target", "managed", "no") for kind in SOURCES),
    *((kind, "<backend tap='/dev/net/tun'/>", None, "backend", "tap", "/dev/net/tun") for kind in SOURCES),
    *((kind, "<ip address='10.0.0.0'/>", None, "ip", None, None) for kind in SOURCES if kind != "user"),
    *((kind, "<route address='10.0.0.0'/>", None, "route", None, None) for kind in SOURCES),
    *((kind, "<portForward proto='tcp'/>", None, "portForward", None, None) for kind in SOURCES),
    *((kind, PASST, None, "backend", "type", "passt") for kind in SOURCES if kind not in ("user", "vhostuser")),
    *((kind, "<backend type='slirp'/>", None, "backend", "type", "slirp") for kind in SOURCES),
    *((kind, f"{PASST}<route address='10.0.0.0'/>", "", "route", None, None) for kind in ("user", "vhostuser")),
    *((kind, f"{PASST}<portForward/>", "", "portForward", "proto", None) for kind in ("user", "vhostuser")),
    ("user", f"{PASST}<ip address='10.0.0.0' prefix='28'/>", None, "ip", "prefix", "28"),
    ("user", f"{PASST}<ip address='10.0.0.0'/><ip address='10.1.0.0'/>", None, "ip", None, None),
    ("user", f"{PASST}<driver queues='2'/>", None, "driver", "queues", "2"),
    ("user", f"{PASST}<portForward proto='sctp'/>", None, "portForward", "proto", "sctp"),
    ("user", f"{PASST}<portForward proto='tcp' address='here'/>", None, "portForward", "address", "here"),
    ("user", f"{PASST}<portForward proto='tcp'><range start='0'/></portForward>", None, "range", "start", "0"),
    ("user", f"{PASST}<portForward proto='tcp'><range start='1' to='x'/></portForward>", None, "range", "to", "x"),
    ("user", f"{PASST}<portForward proto='tcp'><range end='7'/></portForward>", None, "range", "start", None),
    ("user", f"{PASST}<portForward proto='tcp'><range exclude='no'/></portForward>", None, "range", "start", None),
    ("vhostuser", f"{PASST}<model type='e1000'/>", "", "model", "type", "e1000"),
    ("vhostuser", PASST, "<source type='tcp'/>", "source", "type", "tcp"),
    ("vhostuser", PASST, "<source mode='both'/>", "source", "mode", "both"),
    ("vhostuser", PASST, "<source><reconnect enabled='yes'/></source>", "reconnect", "timeout", None),
    *((kind, "", "", "source", "port", None) for kind in SOCKETS),
    *((kind, "", "<source address='a' port='0'/>", "source", "port", "0") for kind in ("mcast", "server", "client")),
    *((kind, "", "<source address='a' port='65536'/>", "source", "port", "65536") for kind in ("mcast", "client")),
    *((kind, "", "<source address='a' port='x'/>", "source", "port", "x") for kind in SOCKETS),
    *((kind, "", "<source port='1'/>", "source", "address", None) for kind in ("mcast", "client")),
    ("client", "", "<source address='a b' port='1'/>", "source", "address", "a b"),
    ("udp", "", ENDS, "local", "port", None),
    ("udp", "", UDP.replace("5556", "0"), "local", "port", "0"),
    ("udp", "", UDP.replace("'10.0.0.2'", "''"), "local", "address", ""),
    ("vhostuser", "", "", "source", "path", None),
    ("vhostuser", "", "<source path='run'/>", "source", "path", "run"),
    ("vhostuser", "", "<source type='tcp' path='/a'/>", "source", "type", "tcp"),
    ("vhostuser", "", "<source path='/a' mode='both'/>", "source", "mode", "both"),
    ("vhostuser", "", "<source path='/a'><reconnect enabled='yes'/></source>", "reconnect", "timeout", None),
    ("vhostuser", "", "<source path='/a'><reconnect enabled='on'/></source>", "reconnect", "enabled", "on"),
    (
        "vhostuser",
        "",
        "<source path='/a'><reconnect enabled='yes' timeout='2147484'/></source>",
        *("reconnect", "timeout", "2147484"),
    ),
    (
        "vhostuser",
        "",
        "<source path='/a' mode='server'><reconnect enabled='yes' timeout='1'/></source>",
        *("reconnect", "timeout", "1"),
    ),
    (
        "vhostuser",
        "",
        "<source path='/a' mode='server'><reconnect enabled='no'/></source>",
        *("reconnect", "enabled", "no"),
    ),
    ("vdpa", "", "", "source", "dev", None),
    ("vdpa", "", "<source dev='vhost-vdpa-0'/>", "source", "dev", "vhost-vdpa-0"),
    ("vdpa", "", "<source dev='/proc/self/fd/3'/>", "source", "dev", "/proc/self/fd/3"),
    ("vdpa", "", "<source dev='/dev/../etc/shadow'/>", "source", "dev", "/dev/../etc/shadow"),
    ("user", "<ip/>", None, "ip", "address", None),
    ("user", "<ip address='10.0.0'/>", None, "ip", "address", "10.0.0"),
    ("user", "<ip address='10.0.0.0' family='ipv6'/>", None, "ip", "address", "10.0.0.0"),
    ("user", "<ip address='10.0.0.0' family='ipx'/>", None, "ip", "family", "ipx"),
    ("user", "<ip address='10.0.0.0' prefix='3'/>", None, "ip", "prefix", "3"),
    ("user", "<ip address='10.0.0.0' prefix='28'/>", None, "ip", "prefix", "28"),
    ("user", "<ip address='10.0.0.0' prefix='x'/>", None, "ip", "prefix", "x"),
    ("user", "<ip address='fe80::' prefix='63'/>", None, "ip", "prefix", "63"),
    ("user", "<ip address='fe80::' prefix='65'/>", None, "ip", "prefix", "65"),
    ("user", "<ip address='10.0.0.0' peer='10.0.0.1'/>", None, "ip", "peer", "10.0.0.1"),
    ("user", "<ip address='10.0.0.0'/><ip address='10.1.0.0'/>", None, "ip", None, None),
]


@pytest.mark.parametrize(
    ("kind", "inside", "source", "element", "attribute", "value"), REFUSED, ids=lambda value: str(value)[:40]
)
@pytest.mark.parametrize("strict", [True, False])
def test_refused_with_element_attribute_line_and_value(kind, inside, source, element, attribute, value, strict):
    source = SOURCES[kind][0] if source is None else source
    with pytest.raises(SpecError) as caught:
        vhostnet.parse_interface(interface(kind, inside, source), strict=strict)
    error = caught.value
    assert (error.element, error.attribute, error.value, error.line) == (element, attribute, value, 1)
    assert error.expected or "not supported: " in error.problem  # what would be right


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ("", "line 1: <source port=>"),
        ("<source/>", "line 2: <source port=>"),
        ("<source address='a' port='1'/>", "line 2: <local port=>"),
        ("<source address='a' port='1'>\n<local address='b'/></source>", "line 3: <local port=>"),
    ],
)
def test_the_line_of_what_is_missing(source, where):
    with pytest.raises(SpecError, match=f"^{where} is (missing|not allowed)"):
        vhostnet.parse_interface(interface("udp", source="\n" + source))


IGNORED = [
    "<bandwidth><outbound average='7'/><inbound average='7' peak='9' burst='1'/></bandwidth>",
    "<bandwidth><inbound average='1000'/></bandwidth>",
    "<target dev='tap7'/>",
    "<tune><sndbuf>1600</sndbuf></tune>",
    "<driver name='vhost'/>",
    "<backend vhost='/dev/vhost2'/>",
    "<backend logFile='/x'/>",
    "<guest dev='eth0'/>",
]


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("inside", IGNORED)
def test_what_libvirt_ignores_is_a_warning_and_with_strict_an_error(kind, inside):
    with pytest.warns(VhostnetWarning, match="^line 1: <\\w+.*has no effect") as caught:
        assert vhostnet.parse_interface(interface(kind, inside)) == bare(kind)
    assert len(caught) == 1
    with pytest.raises(SpecError, match="has no effect"):
        vhostnet.parse_interface(interface(kind, inside), strict=True)


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("user", "<source bridge='br0'/>"),
        ("user", "<source dev='eth0'/>"),
        ("vdpa", "<source dev='/dev/vhost-vdpa-0' mode='client'/>"),
        ("mcast", "<source address='10.0.0.1' port='5555' path='/x'/>"),
        ("mcast", UDP),
        ("vhostuser", SWITCH.replace("/>", "><reconnect timeout='1'/></source>")),
    ],
)
def test_a_source_of_another_type(kind, source):
    with pytest.warns(VhostnetWarning, match="has no effect"):
        assert vhostnet.parse_interface(interface(kind, source=source)) == bare(kind)
    with pytest.raises(SpecError, match="has no effect"):
        vhostnet.parse_interface(interface(kind, source=source), strict=True)


@pytest.mark.parametrize("inside", ["<port isolated='no'/>", "<virtualport/>", "<script path=''/>", "<filterref/>"])
@pytest.mark.parametrize("kind", SOURCES)
def test_what_asks_for_nothing_is_nothing(kind, inside):
    assert vhostnet.parse_interface(interface(kind, inside), strict=True) == bare(kind)


@pytest.mark.parametrize("kind", SOURCES)
def test_a_downscript_is_ignored_as_libvirt_ignores_it(kind):
    with pytest.warns(VhostnetWarning, match="<downscript> has no effect"):
        assert vhostnet.parse_interface(interface(kind, "<downscript path='/x'/>")) == bare(kind)


@pytest.mark.parametrize("ip", ["<ip address='10.0.0.0' x='1'/>", "<ip address='10.0.0.0'><y/></ip>"])
def test_what_libvirt_does_not_know_of_an_ip(ip):
    with pytest.warns(VhostnetWarning, match="libvirt knows here"):
        assert vhostnet.parse_interface(interface("user", ip)).source == UserSource("10.0.0.0")
    with pytest.raises(SpecError, match="libvirt knows here"):
        vhostnet.parse_interface(interface("user", ip), strict=True)


# --- what is for whoever starts passt --------------------------------------------------------------------

FORWARD = "<portForward proto='tcp' address='2001:db8::1' dev='eth0'>{}</portForward>"
RANGES = "<range start='22' to='2022'/><range start='1000' end='1050'/><range start='1020' exclude='yes'/><range/>"


@pytest.mark.parametrize(
    ("inside", "source", "option"),
    [
        ("<backend type='passt' logFile='/x'/>", "", "--log-file"),
        ("<backend type='passt' hostname='a'/>", "", "--hostname"),
        ("<backend type='passt' fqdn='a.example'/>", "", "--fqdn"),
        (PASST, "<source dev='eth0'/>", "--interface"),
        (f"{PASST}<ip address='172.17.2.0' family='ipv4' prefix='24'/>", "", "--address"),
        (f"{PASST}<ip address='2001:db8::7'/>", "", "--address"),
        (f"{PASST}<portForward proto='udp'/>", "", "--udp-ports"),
        (PASST + FORWARD.format(RANGES), "", "--tcp-ports"),
    ],
)
@pytest.mark.parametrize("kind", ["user", "vhostuser"])
def test_what_passt_is_told_is_left_to_whoever_starts_it(kind, inside, source, option):
    with pytest.warns(
        VhostnetWarning, match=f"has no effect here: it is for whoever starts passt \\({option}\\)"
    ) as caught:
        assert vhostnet.parse_interface(interface(kind, inside, source)) == bare(kind, source=PasstSource())
    assert len(caught) == 1
    with pytest.raises(SpecError, match=f"starts passt \\({option}\\)"):
        vhostnet.parse_interface(interface(kind, inside, source), strict=True)


@pytest.mark.parametrize(
    "source",
    [
        "<source path='/x'/>",
        "<source mode='server'/>",
        "<source><reconnect enabled='yes' timeout='7'/></source>",
        "<source><reconnect enabled='no'/></source>",
    ],
)
def test_a_socket_beside_passt_is_not_its_own(source):
    with pytest.warns(VhostnetWarning, match="has no effect: QEMU calls passt") as caught:
        assert vhostnet.parse_interface(interface("vhostuser", PASST, source)).source == PasstSource()
    assert len(caught) == 1


def test_everything_is_checked_before_anything_is_said_to_have_no_effect():
    forward = "<portForward proto='tcp'>\n<range to='1'/></portForward>"
    with pytest.raises(SpecError, match="line 2: <range start=> is missing"):
        vhostnet.parse_interface(interface("user", f"<backend type='passt' logFile='/x'/>{forward}"))


def test_the_model_of_a_vhostuser_is_virtio_without_a_word():
    text = f"<interface type='vhostuser'><mac address='52:54:00:00:00:01'/>{PASST}</interface>"
    assert vhostnet.parse_interface(text, strict=True) == bare("vhostuser", source=PasstSource())


# --- in a domain -----------------------------------------------------------------------------------------

SHARED = "<memoryBacking><access mode='shared'/></memoryBacking>"
CELLS = "<cpu><numa><cell id='0' memAccess='shared'/><cell id='1' memAccess='{}'/></numa></cpu>"


@pytest.mark.parametrize("memory", [SHARED, CELLS.format("shared")])
def test_a_switch_reads_the_guests_memory(memory):
    (spec,) = vhostnet.parse_domain(f"<domain>{memory}<devices>{interface('vhostuser')}</devices></domain>")
    assert spec == bare("vhostuser", vhost="auto")


@pytest.mark.parametrize("memory", ["", SHARED.replace("shared", "private"), CELLS.format("private")])
@pytest.mark.parametrize("nic", [interface("vhostuser"), interface("vhostuser", PASST, "")])
def test_a_switch_cannot_read_memory_that_is_not_shared(nic, memory):
    with pytest.raises(SpecError, match="shared") as caught:
        vhostnet.parse_domain(f"<domain>{memory}<devices>\n{nic}</devices></domain>")
    assert (caught.value.line, caught.value.value) == (2, "vhostuser")
    assert "<access mode='shared'/>" in caught.value.expected


def test_devices_alone_say_nothing_of_memory():
    assert len(vhostnet.parse_domain(f"<devices>{interface('vhostuser')}</devices>")) == 1


def test_one_of_each_in_a_domain_with_another():
    tap = "<interface type='ethernet'><model type='virtio'/></interface>"
    every = "".join(interface(kind) for kind in SOURCES).replace("00:01'", "00:02'")
    specs = vhostnet.parse_domain(f"<domain>{SHARED}<devices>{tap}{every}</devices></domain>", strict=True)
    assert [spec.type for spec in specs] == ["ethernet", *SOURCES]
    assert [spec.tap for spec in specs] == [True] + [False] * len(SOURCES)
    assert [spec.alias for spec in vhostnet.assign_machine(specs)] == [f"net{number}" for number in range(8)]


def test_what_is_not_kvm_has_no_vhost_net_either():
    (spec,) = vhostnet.parse_domain(f"<domain type='qemu'><devices>{interface('user')}</devices></domain>", strict=True)
    assert spec == dataclasses.replace(bare("user"), vhost="off")


# --- direct: a macvtap, with a TAP's fds and a source of its own ------------------------------------------


def direct(inside="", source="<source dev='eth0'/>", **attributes):
    told = "".join(f" {name}='{value}'" for name, value in attributes.items())
    mac = "<mac address='52:54:00:00:00:01'/>"
    return f"<interface type='direct'{told}>{mac}<model type='virtio'/>{source}{inside}</interface>"


def as_direct(mode="vepa", **fields):
    return InterfaceSpec(type="direct", mac="52:54:00:00:00:01", source=DirectSource("eth0", mode), **fields)


@pytest.mark.parametrize("mode", ["vepa", "bridge", "private", "passthrough"])
def test_a_macvtap_in_each_mode(mode):
    spec = vhostnet.parse_interface(direct(source=f"<source dev='eth0' mode='{mode}'/>"), strict=True)
    assert spec == as_direct(mode)
    assert spec.tap


@pytest.mark.parametrize(
    ("inside", "fields"),
    [
        ("<target dev='m0'/><driver name='vhost' queues='8'/>", {"ifname": "m0", "vhost": "require", "queues": 8}),
        ("<target dev='macvtap7'/>", {}),  # as libvirt generates them
        ("<backend vhost='/dev/vhost-other'/>", {"vhost_path": "/dev/vhost-other"}),
        ("<tune><sndbuf>1600</sndbuf></tune>", {"sndbuf": 1600}),
        ("<port isolated='no'/><mtu size='0'/><bandwidth/><script path=''/>", {}),
        ("<coalesce><rx><frames max='0'/></rx></coalesce><target managed='yes'/>", {}),
        ("<link state='down'/><teaming type='persistent'/>", {"link_state": "down", "teaming": "persistent"}),
    ],
)
def test_what_a_macvtap_takes(inside, fields):
    assert vhostnet.parse_interface(direct(inside, trustGuestRxFilters="no"), strict=True) == as_direct(**fields)


def test_a_macvtap_whose_guest_is_trusted_lets_in_all_multicast():
    for word, trusted in (("yes", True), ("no", False)):
        spec = vhostnet.parse_interface(direct(trustGuestRxFilters=word), strict=True)
        assert spec.source == DirectSource("eth0", trust_guest_rx_filters=trusted)
    with pytest.raises(SpecError, match="^line 1: <interface trustGuestRxFilters='maybe'> .*expected yes or no"):
        vhostnet.parse_interface(direct(trustGuestRxFilters="maybe"))


def test_a_macvtap_has_a_source():
    with pytest.raises(SpecError, match="line 1: <source dev=> is missing, and type direct needs it"):
        vhostnet.parse_interface(direct(source=""))
    with pytest.raises(SpecError, match="source is missing, and type direct needs it; expected a DirectSource"):
        InterfaceSpec(type="direct")
    with pytest.raises(SpecError, match="expected a source of that type, and this one is of direct"):
        InterfaceSpec(type="user", source=DirectSource("eth0"))
    with pytest.raises(SpecError, match="has no place in a NIC of type bridge"):
        InterfaceSpec(bridge="br0", source=DirectSource("eth0"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("dev", "a/b"), ("dev", ""), ("dev", 7), ("mode", "passthru"), ("mode", None), ("trust_guest_rx_filters", 1)],
)
def test_a_source_that_is_none(field, value):
    with pytest.raises(SpecError) as caught:
        DirectSource(**{"dev": "eth0", field: value})
    assert (caught.value.attribute, caught.value.value) == (field, value)


@pytest.mark.parametrize(
    "fields",
    [
        {"mtu": 1400},
        {"isolated": True},
        {"rx_frames": 7},
        {"tap_path": "/dev/other"},
        {"managed": False, "ifname": "m0"},
    ],
)
def test_what_a_macvtap_has_no_use_for(fields):
    with pytest.raises(SpecError, match="is not for type direct"):
        as_direct(**fields)
