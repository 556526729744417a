"""Whatever string stands in a field: it is refused, or it is the value of its own option and of no other."""

import re

import pytest
from conftest import BRIDGE
from qemuopts import parse, parse_argv

import vhostnet
from vhostnet import (
    CcwAddress,
    InterfaceSpec,
    PasstSource,
    PciAddress,
    SocketSource,
    SpecError,
    UsbAddress,
    UserSource,
    VdpaSource,
    VhostUserSource,
)
from vhostnet.commands.demo import ask_qemu

DIALECTS = ("classic", "keyval", "json")
UNSEEN = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")

SWITCH, VDPA, CLIENT, UDP, USER = (
    {"bridge": None, "type": kind} for kind in ("vhostuser", "vdpa", "client", "udp", "user")
)
NO_TAP = {"tap_fds": ()}

# Field -> a value that is allowed and is seen nowhere else, and the spec and arguments that have another in its place.
FIELDS = {
    "alias": ("benign", lambda text: ({"alias": text}, {})),
    "alias of the caller": ("benign", lambda text: ({}, {"alias": text})),
    "bus": ("benign", lambda text: ({}, {"bus": text})),
    "addr": ("0x1d", lambda text: ({}, {"addr": text})),
    "bus of the spec": ("benign", lambda text: ({"address": PciAddress(slot=3, name=text)}, {})),
    "rom_file": ("/benign", lambda text: ({"rom_file": text}, {})),
    "ifname": ("benign", lambda text: ({"ifname": text}, {})),
    "bridge": ("benign", lambda text: ({"bridge": text}, {})),
    "network": ("benign", lambda text: ({"type": "network", "network": text}, {})),
    "tap_path": ("/benign", lambda text: ({"tap_path": text}, {})),
    "vhost_path": ("/benign", lambda text: ({"vhost_path": text}, {})),
    "mac": ("52:54:00:be:19:00", lambda text: ({"mac": text}, {})),
    "model": ("e1000e", lambda text: ({"model": text}, {})),
    "txmode": ("timer", lambda text: ({"txmode": text}, {})),
    "vhost": ("off", lambda text: ({"vhost": text}, {})),
    "vhostuser path": ("/benign", lambda text: ({**SWITCH, "source": VhostUserSource(text)}, NO_TAP)),
    "vdpa dev": ("/benign", lambda text: ({**VDPA, "source": VdpaSource(text)}, {**NO_TAP, "vdpa_fd": 9})),
    "passt_socket": ("/benign", lambda text: ({**USER, "source": PasstSource()}, {**NO_TAP, "passt_socket": text})),
    "passt_socket of a vhostuser": (
        "/benign",
        lambda text: ({**SWITCH, "source": PasstSource()}, {**NO_TAP, "passt_socket": text}),
    ),
    "address": ("benign", lambda text: ({**CLIENT, "source": SocketSource(text, 1)}, NO_TAP)),
    "local_address": ("benign", lambda text: ({**UDP, "source": SocketSource("a", 1, text, 2)}, NO_TAP)),
    "ipv4": ("10.9.8.0", lambda text: ({**USER, "source": UserSource(ipv4=text)}, NO_TAP)),
    "ipv6": ("2001:db8::/64", lambda text: ({**USER, "source": UserSource(ipv6=text)}, NO_TAP)),
    "port": ("1.2", lambda text: ({**USER, "model": "usb-net", "address": UsbAddress(0, text)}, NO_TAP)),
    "loadparm": ("BENIGN", lambda text: ({"loadparm": text, "address": CcwAddress(devno=1)}, {})),
    "link_state": ("up", lambda text: ({"link_state": text}, {})),
}
HOSTILE = [
    *(",", ",,", ",,,", ",script=/tmp/evil", ",,script=/tmp/evil", ",,,script=/tmp/evil", ",script=/tmp/evil,", ",on"),
    *("=", "=,", "id=evil", ",id=evil", ",netdev=evil", "script=/tmp/evil", "help", ",help", "?", "on", ",nomq"),
    *("\n", "\r", "\r\n", "\0", "\t", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u2029", "\n-netdev\nuser", "\0,script=x"),
    *("-", "--", "-netdev", "-device e1000", " ", "  -S", "'", '"', '""', "\\", "\\,", "\\n", "\\u002c", "`id`"),
    *(
        "{",
        "}",
        '{"driver":"e1000"}',
        '","script":"/tmp/evil',
        '"}',
        "[",
        "$(id)",
        ";reboot",
        "|",
        "&",
        "%s%n",
        "*",
        "#",
    ),
    *("\uff0c", "\u201a", "\u060c", "\u3001", "\ufe50", "\u02cf", "\uff1d", "\ufe66", "\uff0d", "\u2212", "\uff02"),
    *("\ud800", "\udc2c", "\udfff", "\ud83d\ude00", "\U0001f600", "\u202e", "\u2066", "\u200b", "\ufeff", "e\u0301"),
    *("a" * 5_000, "," * 5_001, "=" * 5_000, "a," * 5_000, "\uff0c" * 5_000, ""),
]


def argv(field, text, dialect):
    fields, arguments = FIELDS[field][1](text)
    spec = InterfaceSpec(**{"bridge": "br0", "mac": "52:54:00:00:00:01", **fields})
    return vhostnet.qemu_argv(spec, **{"tap_fds": [3], "dialect": dialect, **arguments})


def in_its_place(value, benign, text):
    if isinstance(value, dict):
        return {option: in_its_place(one, benign, text) for option, one in value.items()}
    return value.replace(benign, text) if isinstance(value, str) else value


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("field", FIELDS)
def test_no_text_becomes_an_option(field, dialect):
    benign = FIELDS[field][0]
    plain = parse_argv(argv(field, benign, dialect))
    for hostile in HOSTILE:
        for text in (hostile, benign + hostile, hostile + benign):
            try:
                written = argv(field, text, dialect)
            except SpecError as error:
                assert str(error).isprintable()
                continue
            assert parse_argv(written) == tuple(in_its_place(half, benign, text) for half in plain), text
            assert not UNSEEN.search("".join(written))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_file_name_may_hold_what_a_file_name_can(dialect):
    """The one free text there is: all but control characters is taken, and the test above is not about nothing."""
    taken = [text for text in HOSTILE if _is_taken(text, dialect)]
    assert len(taken) > 50
    assert not [text for text in taken if set(text) & set("\n\r\0\x1b\u2028\u202e\ud800")]


def _is_taken(text, dialect):
    try:
        return bool(argv("rom_file", f"/{text}", dialect))
    except SpecError:
        return False


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("tap,id=a", {"type": "tap", "id": "a"}),
        ("tap,id=a,,b,fd=3", {"type": "tap", "id": "a,b", "fd": "3"}),
        ("tap,id=a,,,script=/x", {"type": "tap", "id": "a,", "script": "/x"}),
        ("tap,id=a=b", {"type": "tap", "id": "a=b"}),
        ("type=tap,id=", {"type": "tap", "id": ""}),
        ("tap,vhost", {"type": "tap", "vhost": "on"}),
        ("tap,id=a\nb", {"type": "tap", "id": "a\nb"}),
        ('{"type":"tap","id":"a,b"}', {"type": "tap", "id": "a,b"}),
    ],
)
def test_the_reading_that_is_trusted_here(argument, meant):
    assert parse(argument, "type") == meant


@pytest.mark.parametrize("argument", ["tap,id=a,id=b", '{"id":"a","id":"b"}', "tap,type=user"])
def test_the_reading_refuses_what_comes_twice(argument):
    with pytest.raises(ValueError, match="twice"):
        parse(argument, "type")


NAMES = [
    *(",script=evil", ",,script=evil", ",,,", "=", "-netdev", "a b", "'", '"', "\\", "\\,", '","romfile":"x', "{}"),
    *("\uff0c", "%s", "$(id)", "\U0001f600", "e\u0301"),
]


@pytest.mark.tap
@pytest.mark.qemu
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_real_qemu_reads_the_same(bridge, tmp_path, dialect):
    """A NIC for each file name, in one machine: it starts only if no name became an option, and says each name."""
    files = [tmp_path / f"x{name}" for name in NAMES]
    for file in files:
        file.write_bytes(b"\x55\xaa\x01" + bytes(509))
    nics = vhostnet.open_nics([InterfaceSpec(bridge=BRIDGE, vhost="off", rom_file=str(file)) for file in files])
    command = ["qemu-system-x86_64", "-S", "-M", "pc", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none"]
    for number, nic in enumerate(nics):
        command += nic.qemu_argv(alias=f"net{number}", dialect=dialect)
    questions = [
        ("qom-get", {"path": f"/machine/peripheral/net{number}", "property": "romfile"}) for number in range(len(nics))
    ]
    answers = ask_qemu([*command, "-qmp", "stdio"], [fd for nic in nics for fd in nic.fds], questions)
    vhostnet.close_nics(nics)
    assert answers == [str(file) for file in files]
