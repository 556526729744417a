"""XML that must be refused, each file named by what it attacks: SpecError and nothing else, soon, in one clean line.

What is hostile only in that libvirt does not know it (``strict-*``) is an error where that is asked for; otherwise it
is a warning, and has no effect. Documents too large to be kept are made here.
"""

import dataclasses
import re
import subprocess
import sys
import time
import timeit
from pathlib import Path

import pytest
from conftest import TESTS

import vhostnet
from vhostnet import Bandwidth, InterfaceSpec, PasstSource, PciAddress, Rate, SpecError, VhostnetWarning

ATTACKS = sorted((TESTS / "attacks").glob("*.xml"))
FOR_ANYBODY = [path for path in ATTACKS if not path.stem.startswith("strict-")]
FOR_STRICT = [path for path in ATTACKS if path.stem.startswith("strict-")]
# Seconds in which this machine counts to 150 million: two where nothing is emulated.
SOON = 150 * timeit.timeit("for _ in range(1_000_000): pass", number=1, timer=time.process_time)
ROOM = 20 * 1024  # KiB

# What stands first in a file's name -> where the error points, so that no file is refused for something else.
PLACES = {
    "acpi": "<acpi index=",
    "alias": "<alias name=",
    "bandwidth": "<(inbound|outbound|bandwidth)[ >]",
    "boot": "<boot order=",
    "bridge": "<source bridge=",
    "ccw": "<address",
    "downscript": "<downscript path=",
    "direct": "<(source|mtu|port|frames|vlan|virtualport|filterref|script|target|backend|bandwidth|ip|interface)[ >]",
    "doctype": "DOCTYPE|not well-formed",
    "document": "not well-formed|is not an interface",
    "encoding": "not well-formed|encoding=",
    "entity": "not well-formed",
    "forward": "<(portForward|range)[ >]",
    "ifname": "<target dev=",
    "unsupported": "is not supported",
    "loadparm": "<boot loadparm=",
    "mac": "<mac",
    "managed": "<target (managed|dev)",
    "model": "<model type=",
    "mtu": "<mtu size=",
    "namespace": "not well-formed|is not an interface",
    "network": "<source network=",
    "path": "<backend (tap|vhost)=|not well-formed",
    "pci": "<address (type|domain|bus|slot|function|multifunction)=",
    "port": "<port isolated=",
    "queues": "<driver queues=",
    "reg": "<address reg=",
    "ring": "<driver [rt]x_queue_size=",
    "rom": "<rom (file|bar|enabled)=",
    "script": "<script[ >]",
    "sndbuf": "<sndbuf>",
    "socket": "<(source|local) (address|port)=",
    "strict": "that libvirt (does not know|knows)|has no effect",
    "switch": "<(source|reconnect) (type|path|mode|timeout)=",
    "tapip": "<ip (address|family|prefix|peer)=",
    "taproute": "<route (address|family|netmask|gateway|metric)=",
    "team": "<teaming type=",
    "twice": "is given twice",
    "type": "<interface type=",
    "usb": "<address (bus|port)=",
    "user": "<(ip|backend)[ >]",
    "vdpa": "<source dev=",
    "vlan": "<(vlan|tag)[ >]",
    "vport": "<(virtualport|parameters) (type|interfaceid|profileid|managerid)=",
    "word": "<(driver|host|link) ",
    "zpci": "<zpci (uid|fid)=",
}


def refusal(parse, document, **how):
    """What is said of a document that is refused, within the time it may take: most take milliseconds."""
    started = time.process_time()
    with pytest.raises(SpecError) as caught:
        parse(document, **how)
    assert time.process_time() - started < SOON
    message = str(caught.value)
    assert message
    assert message.isprintable()  # so it is one line, and nothing in it turns the text around
    return message


def check_refused(path, *, strict):
    message = refusal(vhostnet.parse_interface, path.read_bytes(), strict=strict)
    assert re.search(PLACES[path.stem.partition("-")[0]], message), message


# What each of them would be without its attack, which is in one place.
SOUND = InterfaceSpec(bridge="br0", mac="52:54:00:00:00:01")
PASST = {"type": "user", "bridge": None, "source": PasstSource()}
ALLOWED = {
    "strict-attribute-of-an-address": {"address": PciAddress(slot=3)},
    "strict-attribute-without-effect": {"model": "e1000"},
    "strict-bandwidth-with-an-element": {"bandwidth": Bandwidth(Rate(1000))},
    "strict-element-in-an-element": {"mtu": 1500},
    "strict-passt-log-file": PASST,
    "strict-port-forward-with-an-element": PASST,
    "strict-sndbuf-with-an-element": {"sndbuf": 1600},
    "strict-text-in-a-port-forward": PASST,
    "strict-text-in-an-element": {"mtu": 1500},
    "strict-type-missing": {"type": "user", "bridge": None},
}


def test_there_are_enough_and_what_they_spoil_is_sound():
    assert len(FOR_ANYBODY) > 300
    assert len(FOR_STRICT) > 20
    mended = (TESTS / "attacks" / "mtu-67.xml").read_text().replace("67", "1500")
    assert vhostnet.parse_interface(mended, strict=True) == dataclasses.replace(SOUND, mtu=1500)


@pytest.mark.parametrize("path", ATTACKS, ids=lambda path: path.stem)
def test_refused(path):
    check_refused(path, strict=True)


@pytest.mark.parametrize("path", FOR_ANYBODY, ids=lambda path: path.stem)
def test_refused_by_those_who_are_not_strict(path):
    check_refused(path, strict=False)


@pytest.mark.parametrize("path", FOR_STRICT, ids=lambda path: path.stem)
def test_what_libvirt_does_not_know_has_no_effect(path):
    with pytest.warns(VhostnetWarning) as caught:
        spec = vhostnet.parse_interface(path.read_bytes())
    assert spec == dataclasses.replace(SOUND, **ALLOWED.get(path.stem, {}))
    assert all(str(warning.message).isprintable() for warning in caught)


# --- networks --------------------------------------------------------------------------------------------

NETWORKS = sorted((TESTS / "attacks" / "networks").glob("*.xml"))
# As PLACES, of documents of networks.
PLACES_THERE = {
    "bridge": "<bridge[ >]",
    "document": "not well-formed|DOCTYPE|is not a network|has no <name>",
    "forward": "<forward[ >]",
    "group": "<(portgroup|tag|vlan|virtualport)[ >]",
    "mtu": "<mtu size=",
    "name": "<name>",
    "pool": "<interface dev=",
    "port": "<port[ >]",
    "strict": "that libvirt (does not know|knows)|has no effect",
    "trust": "<network trustGuestRxFilters=",
    "virtualport": "<(virtualport|parameters)[ >]",
    "vlan": "<(vlan|tag)[ >]",
}


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_a_network_that_is_refused(path):
    message = refusal(vhostnet.parse_network, path.read_bytes(), strict=True)
    assert re.search(PLACES_THERE[path.stem.partition("-")[0]], message), message
    if not path.stem.startswith("strict-"):
        assert refusal(vhostnet.parse_network, path.read_bytes()) == message
        return
    with pytest.warns(VhostnetWarning) as caught:
        network = vhostnet.parse_network(path.read_bytes())
    assert dataclasses.replace(network, portgroups=()) == vhostnet.Network(name="lab", bridge="br0")
    assert all(str(warning.message).isprintable() for warning in caught)


def test_no_network_is_attacked_in_vain():
    assert len(NETWORKS) > 75
    mended = (TESTS / "attacks" / "networks" / "mtu-67.xml").read_text().replace("67", "1500")
    assert vhostnet.parse_network(mended, strict=True) == vhostnet.Network(name="lab", bridge="br0", mtu=1500)


# --- too large to be kept --------------------------------------------------------------------------------

LARGE = {
    "depth": lambda: "<interface>" + "<a>" * 9_000 + "</a>" * 9_000 + "</interface>",
    "depth that never ends": lambda: "<interface>" + "<a>" * 20_000,
    "elements": lambda: "<interface type='bridge'>" + "<a/>" * 15_000 + "</interface>",
    "a million elements": lambda: "<domain>" + "<a/>" * 1_000_000 + "</domain>",
    "a million attributes": lambda: "<domain " + " ".join(f"a{n}=''" for n in range(350_000)) + "/>",
    "one attribute, many times": lambda: "<interface " + "type='bridge' " * 4_000 + "/>",
    "prefixes": lambda: "<domain " + " ".join(f"xmlns:a{n}='u:'" for n in range(200_000)) + "/>",
    "half a megabyte of a name": lambda: f"<interface type='bridge'><source bridge='{'b' * 500_000}'/></interface>",
    "half a megabyte of spaces": lambda: "<interface>" + " " * 500_000 + "</interface>",
    "a long element": lambda: f"<{'a' * 60_000}/>",
    "a long comment": lambda: f"<!--{'x' * 4_200_000}--><domain/>",
    "references": lambda: f"<interface type='bridge'><source bridge='{'&#98;' * 12_000}'/></interface>",
    "a number": lambda: f"<interface type='bridge'><driver queues='{'9' * 60_000}'/></interface>",
    "a mac": lambda: f"<interface type='bridge'><mac address='{'52:' * 20_000}'/></interface>",
    "a template": lambda: f"<interface type='bridge'><source bridge='b'/><target dev='{'%d' * 30_000}'/></interface>",
    "a path": lambda: f"<interface type='bridge'><source bridge='b'/><backend tap='{'/..' * 20_000}'/></interface>",
    "a declaration": lambda: "<?xml" + " encoding" * 6_000 + " " * 6_000 + "?><interface/>",
    "an encoding": lambda: f"<?xml version='1.0' encoding='{'A' * 60_000}'?><interface/>",
    "utf-16": lambda: ("<interface>" + "x" * 70_000 + "</interface>").encode("utf-16"),
    "zeros": lambda: bytes(4_000_000),
}


@pytest.mark.filterwarnings("ignore::vhostnet.VhostnetWarning")
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("what", LARGE)
def test_refused_however_large(what, strict):
    document = LARGE[what]()
    data = document if isinstance(document, bytes) else document.encode()
    assert refusal(vhostnet.parse_any, data, strict=strict)
    network = re.sub(rb"<(/?)(domain|interface)\b", rb"<\1network", data)
    assert refusal(vhostnet.parse_network, network, strict=strict)


@pytest.mark.filterwarnings("ignore::vhostnet.VhostnetWarning")
def test_ten_times_the_groups_take_ten_times_as_long():
    """What looks for one of the same name among the others does not look at each: that would take a hundred times."""
    assert taken_for_groups(20_000) < 40 * taken_for_groups(2_000)


def taken_for_groups(count):
    groups = "".join(f"<portgroup name='{number}'/>" for number in range(count))
    started = time.process_time()
    network = vhostnet.parse_network(f"<network><name>lab</name>{groups}</network>")
    assert len(network.portgroups) == count
    return time.process_time() - started


MEASURED = """
import re, sys, warnings
sys.path[:0] = sys.argv[1:]
import test_attacks, vhostnet

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])

def parse(document, parser=vhostnet.parse_any):
    try:
        parser(document)
    except vhostnet.SpecError:
        pass

warnings.simplefilter("ignore")
documents = [path.read_bytes() for path in test_attacks.ATTACKS] + [make() for make in test_attacks.LARGE.values()]
networks = [path.read_bytes() for path in test_attacks.NETWORKS]
parse("<interface/>")
before = peak()
for document in documents:
    parse(document)
for document in networks:
    parse(document, vhostnet.parse_network)
after = peak()
kept = b"x" * (64 << 20)
print(after - before, peak() - before)
"""


def test_all_of_them_together_take_little_memory():
    """The peak of a process of its own; it does see what is taken."""
    command = [sys.executable, "-c", MEASURED, str(Path(__file__).parent), str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, taken_on_purpose = map(int, done.stdout.split())
    assert taken <= ROOM < taken_on_purpose, f"{taken} KiB"
