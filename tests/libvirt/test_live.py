"""Real libvirt and we on the same domains: what it tells QEMU of a NIC, and what the kernel and Open vSwitch say of
its TAP, is what we write and make; what it refuses we refuse, too, and say where. In a Debian of its own:
tests/libvirt/all.

What is asked stands in ``matrix.py``; where we mean to do otherwise, here, each with its reason.
"""

import re
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from arguments import AnyNetwork, nics, without, written
from conftest import TESTS, lacks, need
from kernel import ip, run_json
from matrix import (
    BRIDGE,
    DOMAINS,
    FILTERING,
    MACHINES,
    NETWORKS,
    REFUSED,
    REFUSED_NETWORKS,
    ROM,
    SCRIPTS,
    SWITCHED,
    Nic,
    domain,
    machine_of,
    network,
)
from switch import caller, switch

import vhostnet
from bench import openvswitch
from bench.libvirtd import Refused, libvirtd, virsh
from vhostnet import HostError, SpecError
from vhostnet.spec.interface import TAP_TYPES
from vhostnet.values import replace

pytestmark = [
    pytest.mark.libvirtd,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::vhostnet.VhostnetWarning"),
]

RUNDIR = "/var/run/openvswitch"  # where libvirt's ovs-vsctl looks for it
NETNS = "judged"  # in which first libvirt's domain is, and then our NIC
NUMBERED = {nic.name: (place, number, nic) for place, every in DOMAINS.items() for number, nic in enumerate(every)}
PARSED = {name: vhostnet.parse_network(text) for name, text in NETWORKS.items()}

# --- where we mean to do otherwise -----------------------------------------------------------------------

# What the kernel says of every TAP of ours, and of libvirt's; and why.
INTENDED = {
    ("ifalias", "a mark", None): "whose it is: vhostnet list reads it",
    ("vhostnet", "a mark", None): "the same, of a port of Open vSwitch",
    ("inet6_addr_gen_mode", "none", "eui64"): "the bridge's end of a guest's cable needs no address",
    ("quantum", 1414, 1614): "SFQ takes the MTU as it finds it, and libvirt sets that afterwards",
    ("state", "static", ""): "the guest's MAC in the forwarding table: it stands before the port is up",
}
# The NICs of which other things differ, too.
VIRTIO = {"driver", "vnet_hdr"}  # the model where none is given; libvirt's is rtl8139 on x86
UNTOUCHED = {"qdisc", "kind", "root", "refcnt"}  # of a TAP that is somebody else's; libvirt gives it noqueue
# The qdisc that a link has by itself: libvirt deletes noqueue before it shapes, and then there is nothing to shape.
OF_FQ_CODEL = {"drop_batch", "ecn", "flows", "interval", "limit", "memory_limit", "quantum", "target"}
ITS_OWN = {"qdisc", "kind", "handle", *OF_FQ_CODEL}
FILLED = {
    "learning",
    "flood",
    "mac",
    "master",
    "state",
}  # the forwarding table that it fills for a network's NICs alone
# The host's link that libvirt brings up, and a macvtap that is up heeds no MAC but its own.
LEFT_DOWN = {"UP", "LOWER_UP", "NO-CARRIER", "M-DOWN", "qdisc", "operstate", "promiscuity"}
# By which libvirt finds a port's queues again, on the port, too; ours have the mark.
ITS_FINDING = {"vm-id"}
# Where there is no peak libvirt writes none, and a guest gets as much as its TAP's nominal speed is; where there is no
# burst it is the switch's own, 8000 kbit, and ours a second's.
UNSAID = {"max-rate", "rate", "ceil", "burst", "cburst", "ingress_policing_burst"}
# libvirt follows QEMU, whose NIC wants every frame until a guest's driver says what it wants.
LETS_IN_ALL = {"ALLMULTI", "allmulti", "PROMISC", "promiscuity"}
OTHERWISE = {
    "no-model": VIRTIO,
    "user-of-none": VIRTIO,
    "unmanaged": UNTOUCHED,
    "unmanaged-queues": UNTOUCHED,
    "scripts-unmanaged": UNTOUCHED,
    "address-unmanaged": UNTOUCHED,
    "bandwidth-none": ITS_OWN,
    "table-of-a-bridge": FILLED,
    "unmanaged-macvtap": UNTOUCHED,
    "direct-trusted": LETS_IN_ALL,
    "direct-down": LEFT_DOWN,
    "direct-down-through": LEFT_DOWN,
    "ovs-native-alone": {"trunks"},  # ours has this one VLAN alone, libvirt's every other, too
    "ovs-bandwidth": ITS_FINDING,
    "ovs-bandwidth-in": ITS_FINDING,
    "ovs-bandwidth-plain": ITS_FINDING | UNSAID,
}
# A script of ours has CAP_NET_ADMIN alone. libvirt means the same, and the execve() of a root's gives all of them back.
CAPABILITIES = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}
LEFT_OUT = " fw "  # of libvirt's filters: it leads what is marked 1 to a class that is not there
PLACE = {"bus", "addr", "port", "devno", "reg"}  # libvirt gives every device its own, where none is given
# In front of a QEMU before 9.2 libvirt gives the loadparm to the machine, and says reconnect, as our other dialects do.
OLD_QEMU, OF_OLD_QEMU = (9, 2), {"ccw-boot": {"loadparm"}}
VLANS = (11, 0)  # the first with VLANs on the kernel's bridges
OF_A_CLASS = re.compile(r"\b(root|parent|leaf|prio|rate|ceil|burst|cburst) (\S+)")
# tc 6.1 counts some bursts shorter: 837 us and not 838, 1599 bytes and not 1600.
ROUNDED = ("bandwidth-in-most", "bandwidth-direct", "bandwidth-direct-out", "bandwidth-through")
OF_OLD_TC = {name: {"burst", "cburst"} for name in ROUNDED}
TRANSIENT = (10, 3)  # since when a port of libvirt's is, as ours: gone when the switch starts anew
# What only these libvirts and later ones take, or refuse.
SINCE = {"usb-net": (10, 3), "portForward-0": (11, 3), "route-of-no-address": (12, 8), "theirs": VLANS}
PORT = "<virtualport type='{}'><parameters {}/></virtualport>"
QBG = "managerid='11' typeid='1193047' typeidversion='2'"
MASK = "address='10.0.0.0' netmask='255.0.255.0'"
# What libvirt refuses all the same, and we take: it looks for a TAP to set the MTU on, and for a virtualport's type.
SWITCH = "<source type='unix' path='/run/switch' mode='client'/>"
ONLY_OURS = {
    nic.name: nic
    for nic in (
        Nic("vhostuser-mtu", "shared", "vhostuser", f"<model type='virtio'/> {SWITCH} <mtu size='1400'/>"),
        Nic("no-virtualport", "shared", "bridge", "<virtualport/>"),
        Nic("no-virtualport-direct", "shared", "direct", "<source dev='lo'/> <virtualport/>"),
    )
}
# And the other way round. It passes over a group that is not there, and over a family that is none; it leaves a NIC
# with another virtualport on no bridge; and of a mask with a hole it says so when the guest's CPUs are to start.
ONLY_THEIRS = {
    nic.name: (element, nic)
    for element, nic in (
        ("source", Nic("no-group", "shared", "network", "<source network='apart' portgroup='nobody'/>")),
        ("virtualport", Nic("802.1Qbh", "shared", "bridge", PORT.format("802.1Qbh", "profileid='test'"))),
        ("virtualport", Nic("802.1Qbg", "shared", "bridge", PORT.format("802.1Qbg", QBG))),
        ("ip", Nic("family", "shared", "ethernet", "<source><ip address='10.0.0.1' family='ipx'/></source>")),
        ("route", Nic("mask", "shared", "ethernet", f"<source><route {MASK} gateway='10.0.0.1'/></source>")),
    )
}
# And a network whose NICs it then does not start.
ONLY_THEIR_NETWORK = network("theirs", "<forward mode='bridge' dev='lo'/> <vlan><tag id='1'/></vlan>")
OF_THEIRS = Nic("of-theirs", "shared", "network", "<source network='theirs'/>")
# What it shapes, though it has not made it, and so does not leave as it was.
SHAPED_UNMANAGED = "<target dev='there-0' managed='no'/> <bandwidth><inbound average='1000'/></bandwidth>"
NO_RATE = Nic("rate", "shared", "bridge", "<bandwidth> <outbound average='0'/> </bandwidth>")
# What libvirt refuses no sooner than it starts the domain, and we no sooner than we plan the NIC.
NO_VLANS = ("<tag id='0'/>", "<tag id='4095'/>")
# What only one NIC of a domain can have.
ONCE = ("<alias name='ua-both'/>", "<boot order='1'/>", "<address type='pci' bus='0' slot='9' function='0'/>")

# libvirt takes more than its schema has: a % in a name, an empty path, a rate of 0.
NOT_IN_SCHEMA = {"template", "scripts-of-none", "downscript-of-none", "bandwidth-in-none", "bandwidth-none"}
# What is not supported: a device of the host's, filters.
NOT_TAKEN = {"hostdev-only.xml", "ovirt-filterref.xml"}

# What differs from one moment, place or link to the next.
NOISE = {
    *("ifindex", "ifname", "dev", "id", "no", "designated_port", "label", "tentative"),
    *("_uuid", "name", "interfaces", "ofport", "qos", "statistics", "admin_state", "link_state", "link_resets"),
    *("hold_timer", "message_age_timer", "forward_delay_timer"),
    "direct_packets_stat",  # what passed before HTB had its class, since libvirt's TAP is up by then
}


def cases(*types, alone=True):
    """The names of those NICs, each with what its kernel must be able to."""
    return [
        pytest.param(name, marks=marks(place))
        for name, (place, _, nic) in NUMBERED.items()
        if (not types or nic.type in types) and (alone or not place.startswith("alone"))
    ]


def marks(place):
    machine = machine_of(place)
    told = (pytest.mark.vlan, machine.filtering), (pytest.mark.shaping, machine.shaped)
    return [mark for mark, needed in told if needed]


# --- what libvirt makes of them --------------------------------------------------------------------------


class Answer(NamedTuple):
    """Of one NIC."""

    refusal: str  # why there is none
    arguments: Sequence = ()  # QEMU's
    kernel: Mapping = MappingProxyType({})  # what it says of the TAP
    live: str = ""  # the XML of the running domain
    place: int = 0  # in that


class Judge(NamedTuple):
    """A libvirtd, and where it is told of domains."""

    directory: Path
    libvirt: tuple
    qemu: tuple
    switch: openvswitch.Switch
    equal: Counter

    def is_older(self, name):
        """Than the libvirts that the case is of."""
        return self.libvirt < SINCE.get(name, ())

    def create(self, name, text):
        (self.directory / name).write_text(text)
        virsh("create", str(self.directory / name), "--paused")


@pytest.fixture(scope="module")
def judge(tmp_path_factory, request):
    """libvirtd and Open vSwitch, where libvirt looks for it, in a network namespace with bridges."""
    for what in ("libvirtd", "ovs"):  # fixtures of a module come before those that look at a test's marks
        need(what)
    directory = tmp_path_factory.mktemp("libvirt")
    make_namespace()
    make_scripts()
    Path(ROM).write_bytes(bytes(512))
    Path(RUNDIR).mkdir()
    with openvswitch.switch(SWITCHED, netns=NETNS, place=RUNDIR) as ovs, libvirtd(NETNS):
        ovs.vsctl("set", "Interface", SWITCHED, "mtu_request=1600")  # or its least port's would be its own
        said = virsh("version", "--daemon")
        libvirt, qemu = (
            tuple(map(int, re.search(rf"{what} ([0-9.]+)$", said, re.MULTILINE)[1].split(".")))
            for what in ("Running against daemon:", "Running hypervisor: QEMU")
        )
        make_networks(directory, heeding=libvirt >= VLANS and not lacks("vlan"))
        equal = Counter()
        yield Judge(directory, libvirt, qemu, ovs, equal)
    versions = (".".join(map(str, version)) for version in (libvirt, qemu))
    told = ", ".join(f"{what} {number}" for what, number in equal.items())
    line = "judged: libvirt {}, QEMU {}, {} NICs in {} domains; equal: {}"
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + line.format(*versions, len(NUMBERED), len(DOMAINS), told))


def make_namespace():
    ip(f"netns add {NETNS}")
    ip(f"-n {NETNS} link set lo up")
    ip(f"-n {NETNS} route add 224.0.0.0/4 dev lo")
    for bridge, heeding in ((BRIDGE, ""), (FILTERING, "" if lacks("vlan") else "vlan_filtering 1")):
        ip(f"-n {NETNS} link add {bridge} type bridge {heeding}")
        ip(f"-n {NETNS} link set {bridge} address 52:54:00:ff:ff:ff mtu 1600 up")


def make_scripts():
    """Each leaves what it was given, and the first how the link was."""
    Path(SCRIPTS).mkdir()
    given = "env; echo arguments=$# $*; cd /proc/$$/fd; echo fds= *; cd /;"  # by the shell: no pipe is among them
    given += 'sed -n "s/^\\(Cap.*\\):./\\1=/p" /proc/self/status;'
    link = "echo link=$(ip -o link show $1 | grep -oE 'UP|mtu [0-9]+|ether [0-9a-f:]+');"
    for name, trace in (("up", given + link), ("down", given)):
        script = Path(SCRIPTS, name)
        script.write_text(f"#!/bin/sh\n{{ {trace} }} >{SCRIPTS}/$1.{name}\n")
        script.chmod(0o755)
        Path("/usr/local/bin", f"judged-{name}").symlink_to(script)


def make_networks(directory, heeding):
    """Those whose bridge heeds VLANs where the kernel has such, and this libvirt."""
    Path("/var/lib/libvirt/dnsmasq").mkdir(exist_ok=True)  # which comes with a package of its own
    for name, text in NETWORKS.items():
        if FILTERING not in text or heeding:
            (directory / name).write_text(text)
            virsh("net-create", str(directory / name))


@pytest.fixture(scope="module")
def answers(judge):
    """Asked for a NIC by name: its domain is started when the first of it is asked for."""

    @cache
    def of(place):
        return started(judge, place, list(enumerate(DOMAINS[place])))

    return lambda name: of(NUMBERED[name][0])[name]


def started(judge, name, numbered):
    """The answers for these NICs: of one domain, or where that is refused, of each half of it."""
    with there(numbered):
        try:
            judge.create(name, domain(name, machine_of(name), [nic.xml(number) for number, nic in numbered]))
        except Refused as error:
            refusal = str(error)
        else:
            return running(judge, name, numbered)
    if len(numbered) == 1:
        told = told_qemu(name)
        return {numbered[0][1].name: Answer(refusal, told[0] if told else None)}
    half = len(numbered) // 2
    return started(judge, f"{name}a", numbered[:half]) | started(judge, f"{name}b", numbered[half:])


@contextmanager
def there(numbered):
    """With what these NICs find there that is neither's: their switches, their TAPs, the links that macvtaps are on."""
    with ExitStack() as others:
        for number, nic in numbered:
            for parent in parents(number, nic):
                others.enter_context(link_of_the_host(parent, f"52:54:00:fe:{len(parent):02x}:{number:02x}"))
            if nic.type == "vhostuser":
                Path(f"/run/switch-{number}").unlink(missing_ok=True)
                others.enter_context((caller if "'server'" in nic.inside else switch)(f"/run/switch-{number}"))
            if found := re.search("dev='([^']*)' managed='no'", nic.xml(number)):
                if found[1].startswith("macvtap"):
                    ip(f"-n {NETNS} link add {found[1]} link {parents(number, nic)[0]} type macvtap mode bridge")
                else:
                    ip(f"-n {NETNS} tuntap add {found[1]} mode tap {'multi_queue' if 'queues' in nic.inside else ''}")
                others.callback(ip, f"-n {NETNS} link delete {found[1]}")
                ip(f"-n {NETNS} link set {found[1]} address 52:54:00:ff:00:{number:02x}")
        yield


def parents(number, nic):
    """The host's links that this NIC may be on, by name."""
    text = nic.xml(number)
    if found := re.search("<source network='([^']*)'", text):
        return PARSED[found[1]].devices
    if "macvtap" in text and nic.type == "ethernet":
        return (f"under-{number}",)
    return tuple(re.findall("<source dev='([^']*)'", text)) if nic.type == "direct" else ()


@contextmanager
def link_of_the_host(name, mac):
    """One end of a cable; its name says how it is."""
    small = "mtu 1400" if name.startswith("small") else ""
    ip(f"-n {NETNS} link add {name} address {mac} {small} type veth peer name {name}-peer")
    try:
        ip(f"-n {NETNS} link set {name}-peer up")
        if not name.startswith("down"):
            ip(f"-n {NETNS} link set {name} up")
            while "state UP" not in ip(f"-n {NETNS} link show {name}"):
                time.sleep(0.01)
        yield
    finally:
        ip(f"-n {NETNS} link delete {name}")


def running(judge, name, numbered):
    """The answers for a domain that was started, and ends."""
    try:
        if machine_of(name).runs:
            virsh("resume", name)
        live = virsh("dumpxml", name)
        targets = [nic.find("target") for nic in ElementTree.fromstring(live).iter("interface")]
        taps = ["" if target is None else target.get("dev") for target in targets]
        kernel = seen(judge.switch, taps)
    finally:
        virsh("destroy", name)
    kernel = [said | left(judge.switch, tap, said) for said, tap in zip(kernel, taps, strict=True)]
    every = enumerate(zip(numbered, told_qemu(name), kernel, strict=True))
    return {nic.name: Answer("", arguments, said, live, place) for place, ((_, nic), arguments, said) in every}


def told_qemu(name):
    """Of each NIC, by the domain's log: it has what a QEMU was told that did not start, too."""
    log = Path(f"/var/log/libvirt/qemu/{name}.log")
    command = re.search(r"(?:.*\\\n)+.*", log.read_text()) if log.exists() else None
    return nics(shlex.split(command[0].replace("\\\n", ""))) if command else []


# --- what the kernel says --------------------------------------------------------------------------------


def seen(ovs, taps):
    """Of each of these TAPs; {} of none."""
    asked = {
        "port": f"bridge -n {NETNS} -d link show",
        "forwarding": f"bridge -n {NETNS} -d fdb show",
        "vlans": f"bridge -n {NETNS} vlan show",
        "queueing": f"tc -n {NETNS} qdisc show",
        "link": f"ip -n {NETNS} -d link show",
        "addresses": f"ip -n {NETNS} address show scope global",
        "routes": f"ip -n {NETNS} -4 route show",
        "IPv6 routes": f"ip -n {NETNS} -6 route show",
    }
    plugged = ovs.ports(SWITCHED)
    switched = {tap: (ovs.seen(tap), ovs.row("Port", tap)) for tap in taps if tap in plugged}  # and done with
    queueing = {tap: ovs.queueing_of(tap) for tap in switched}
    every = {what: run_json(command) for what, command in asked.items()}
    return [of_one(tap, every, switched.get(tap, ()), queueing.get(tap, ())) if tap else {} for tap in taps]


def of_one(tap, every, plugged, queueing):
    """And of the link that a macvtap is on."""
    said = {what: [one for one in told if tap in (one.get("ifname"), one.get("dev"))] for what, told in every.items()}
    if queueing or not plugged:  # libvirt leaves these their qdisc mq, of whose classes iproute2 6.1 knows nothing
        said["class"] = {line.split()[2]: dict(OF_A_CLASS.findall(line)) for line in by_tc("class", tap)}
    said["filter"] = [line for line in by_tc("filter", tap) if LEFT_OUT not in line]
    said["switch"] = plugged
    said["shaped"] = [{"type": row.get("type"), "other_config": row["other_config"]} for row in queueing]
    said["parent"] = [one for one in every["link"] for link in said["link"] if one["ifname"] == link.get("link")]
    said["addresses"] = [one["addr_info"] for one in said["addresses"]]
    if not said["parent"]:  # a macvtap has none
        said["coalescing"] = ip(f"netns exec {NETNS} ethtool -c {tap}").splitlines()[1:]
    return said


def by_tc(what, tap):
    """Lines, less what the kernel counts: iproute2 6.1 has no JSON of classes, and a broken one of policers."""
    return re.sub("police 0x[0-9a-f]+", "police", ip(f"netns exec {NETNS} tc {what} show dev {tap}")).splitlines()


def left(ovs, tap, said):
    """What there is of a TAP when it has gone: its scripts' traces, and no port; and a macvtap's link as it was."""
    traces = list(Path(SCRIPTS).glob(f"{tap}.*"))
    found = {path.suffix: dict(line.split("=", 1) for line in path.read_text().splitlines()) for path in traces}
    for path in traces:
        path.unlink()
    parents = [run_json(f"ip -n {NETNS} -d link show {link['ifname']}") for link in said.get("parent", ())]
    return {"scripts": found, "port left": tap in ovs.ports(SWITCHED), "parent left": parents}


def facts(said):
    """What can be compared of that: each fact by its path."""
    (link,) = said["link"]
    queues = link["linkinfo"]["info_data"]
    if queues.get("multi_queue"):  # QEMU attaches those after the first when the guest asks for them
        queues["numqueues"] += queues.pop("numdisabled")
    marked = [(link, "ifalias"), *((row["external_ids"], "vhostnet") for row in said["switch"])]
    for row, name in marked:
        if name in row:
            row[name] = re.sub("^vhostnet:.*", "a mark", row[name])
    if said["switch"]:  # libvirt leaves them the qdiscs that a link has by itself; ours have noqueue
        del said["queueing"], link["qdisc"]
    kinds = {one["kind"] for one in said.get("queueing", ())}
    if "ingress" in kinds and "htb" not in kinds:  # and so those of which only that is limited
        said["queueing"] = [one for one in said["queueing"] if one["kind"] == "ingress"]
        del said["class"], link["qdisc"]
    for one in said.get("queueing", ()):
        if one["kind"] == "noqueue":  # whose handle is the next that was free
            del one["handle"]
    for port in (*said["port"], link["linkinfo"].get("info_slave_data", {})):
        if port.get("state") == "learning":  # by the bridge's STP, a moment after listening
            port["state"] = "listening"
    if said["parent"]:  # the kernel makes up its mind about that a moment later
        del link["operstate"]
    for one in (link, *said["parent"], *(left for (left,) in said["parent left"])):
        one["flags"] = dict.fromkeys(one["flags"], True)
    said["forwarding"] = {  # less what the link itself listens to
        f"{one['mac']} {one.get('vlan', '')}": one for one in said["forwarding"] if "self" not in one["flags"]
    }
    said["IPv6 routes"] = [route for route in said["IPv6 routes"] if route["dst"] != "fe80::/64"]  # inet6_addr_gen_mode
    return dict(flat(said))


def flat(said, path=""):
    if isinstance(said, dict):
        for key in said.keys() - NOISE:
            yield from flat(said[key], f"{path}/{key}")
    elif isinstance(said, (list, tuple)):
        for number, one in enumerate(said):
            yield from flat(one, f"{path}/{number}")
    else:
        yield path, said


# --- and we ----------------------------------------------------------------------------------------------


def parsed(name):
    place, number, nic = NUMBERED[name]
    (spec,) = vhostnet.parse_domain(domain(name, machine_of(place), [nic.xml(number)]), networks=PARSED)
    return spec


def ours(spec, judge):
    """Our arguments in the dialect that this libvirt has for its QEMU."""
    if judge.qemu >= OLD_QEMU:
        return written(spec, 1000, "json")
    in_json, in_words = (written(spec, 1000, dialect) for dialect in ("json", "keyval"))
    return [words if json[0] == "-chardev" else json for json, words in zip(in_json, in_words, strict=True)]


def others(name, judge):
    """What of it is not compared."""
    found = CAPABILITIES | OTHERWISE.get(name, set())
    if judge.qemu < OLD_QEMU:
        found |= OF_OLD_QEMU.get(name, set()) | OF_OLD_TC.get(name, set())
    if judge.libvirt < TRANSIENT:
        found |= {"transient"}
    return found if "interfaceid=" in NUMBERED[name][2].inside else found | {"iface-id"}  # which is anybody's guess


@pytest.mark.parametrize("name", cases())
def test_arguments(name, judge, answers):
    answer = answers(name)
    if judge.is_older(name):
        assert answer.refusal
        return
    assert answer.arguments, answer.refusal
    hidden = others(name, judge) | (set() if "<address" in NUMBERED[name][2].inside else PLACE)
    assert without(ours(parsed(name), judge), hidden) == without(answer.arguments, hidden)
    judge.equal["arguments"] += 1


# What libvirt says there of a NIC's own end, after its network has said what it has to say.
HOSTS = ("bridge", "isolated", "vlan", "mtu", "managed", "script", "downscript", "tap_ips", "tap_routes")


@pytest.mark.parametrize("name", cases(alone=False))
def test_arguments_of_the_running_domain(name, judge, answers):
    """Its XML has every model and every place."""
    answer = answers(name)
    if judge.is_older(name):
        return
    (spec,) = vhostnet.parse_domain(answer.live, networks=PARSED, nic=answer.place)
    hidden = others(name, judge) - {"driver"}
    assert without(ours(spec, judge), hidden) == without(answer.arguments, hidden)
    judge.equal["running domains' arguments"] += 1
    asked = parsed(name)
    assert {field: getattr(spec, field) for field in HOSTS} == {field: getattr(asked, field) for field in HOSTS}


@pytest.mark.parametrize("name", cases(*TAP_TYPES, alone=False))
def test_what_the_kernel_says(name, judge, answers):
    answer = answers(name)
    if judge.is_older(name):
        return
    assert not answer.refusal
    with there([NUMBERED[name][1:]]):
        with vhostnet.open_nic(parsed(name), netns=NETNS) as nic:
            (said,) = seen(judge.switch, [nic.ifname])
        said |= left(judge.switch, nic.ifname, said)
    ours, theirs = facts(said), facts(answer.kernel)
    differing = {key: (ours.get(key), theirs.get(key)) for key in ours.keys() | theirs.keys()}
    assert {
        key: both
        for key, both in differing.items()
        if both[0] != both[1]
        and (key.rpartition("/")[2], *both) not in INTENDED
        and key.rpartition("/")[2] not in others(name, judge)
    } == {}
    judge.equal["kernel states"] += 1


# --- what is refused -------------------------------------------------------------------------------------


def refuse(judge, name, interfaces):
    """Neither takes a domain with these; what we say of it, and the lines it was."""
    text = domain(name, MACHINES["shared"], interfaces)
    try:
        judge.create(name, text)
    except Refused as refusal:
        assert not judge.is_older(name)
        assert not re.search("monitor|Child process", str(refusal))  # it was libvirt itself, and not its QEMU, nor tc
    else:
        virsh("destroy", name)
        assert judge.is_older(name), "libvirt takes it"
    with pytest.raises(SpecError) as caught:
        vhostnet.parse_domain(text, networks=PARSED)
    judge.equal["refusals"] += 1
    return caught.value, text.splitlines()


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.nic.name)
def test_what_libvirt_refuses(refused, judge):
    error, lines = refuse(judge, refused.nic.name, [refused.nic.xml(0)])
    assert error.element == refused.element
    if f"<{refused.element}" in refused.nic.xml(0):
        assert f"<{refused.element}" in lines[error.line - 1]
    else:  # it is where it is missing
        assert re.search("<interface|<source", lines[error.line - 1])


@pytest.mark.parametrize("element", ONCE)
def test_what_only_one_can_have(element, judge):
    error, lines = refuse(judge, "both", [Nic("both", "pc", "bridge", element).xml(number) for number in (1, 2)])
    assert lines[error.line - 1] == element
    assert element in lines[: error.line - 1]  # it is of the second of them


@pytest.mark.parametrize("name", ONLY_OURS)
def test_what_libvirt_refuses_and_we_take(name, judge):
    text = domain(name, MACHINES["shared"], [ONLY_OURS[name].xml(0)])
    with pytest.raises(Refused):
        judge.create(name, text)
    assert vhostnet.parse_domain(text, networks=PARSED)


@pytest.mark.parametrize("name", ONLY_THEIRS)
def test_what_libvirt_takes_and_we_refuse(name, judge):
    element, nic = ONLY_THEIRS[name]
    text = domain(name, MACHINES["shared"], [nic.xml(0)])
    judge.create(name, text)
    virsh("destroy", name)
    with pytest.raises(SpecError) as caught:
        vhostnet.parse_domain(text, networks=PARSED)
    assert caught.value.element == element


@pytest.mark.vlan
@pytest.mark.parametrize("tag", NO_VLANS)
def test_a_vlan_that_no_linux_bridge_has(tag, judge):
    text = domain(
        "no-vlan", MACHINES["vlan"], [Nic("", "", "bridge", f"<source bridge='br1'/> <vlan>{tag}</vlan>").xml(0)]
    )
    with pytest.raises(Refused):
        judge.create("no-vlan", text)
    (spec,) = vhostnet.parse_domain(text)
    with pytest.raises(SpecError, match="is none that a Linux bridge has"):
        vhostnet.open_nic(spec, netns=NETNS)


@pytest.mark.shaping
def test_a_tap_that_is_there_is_not_shaped(judge):
    nic = Nic("there", "shared", "ethernet", SHAPED_UNMANAGED)
    text = domain("there", MACHINES["shared"], [nic.xml(0)])
    with there([(0, nic)]):
        judge.create("there", text)
        virsh("destroy", "there")
    with pytest.raises(SpecError, match="is not for a TAP that is there"):
        vhostnet.parse_domain(text)


@pytest.mark.shaping
def test_a_rate_of_nothing_to_send(judge):
    """libvirt makes a policer of it, by which everything goes; we say that it is no rate."""
    text = domain("rate", MACHINES["shared"], [NO_RATE.xml(0)])
    judge.create("rate", text)
    virsh("destroy", "rate")
    with pytest.raises(SpecError, match="average='0'> is not allowed"):
        vhostnet.parse_domain(text)


# --- floors ----------------------------------------------------------------------------------------------

KEPT = "<bridge name='virbr6' stp='off'/> <bandwidth><inbound average='1000'{}/></bandwidth>"


@contextmanager
def kept(judge, more=""):
    """A network that has something to guarantee."""
    (judge.directory / "kept").write_text(network("kept", KEPT.format(more)))
    virsh("net-create", str(judge.directory / "kept"))
    try:
        yield
    finally:
        virsh("net-destroy", "kept")


def with_floor(floor, of="kept", average=""):
    inside = f"<source network='{of}'/> <bandwidth><inbound{average} floor='{floor}'/></bandwidth>"
    nic = Nic("floor", "shared", "network", inside)
    return domain("floor", MACHINES["shared"], [nic.xml(0)])


def guaranteed():
    """The numbers of each class of virbr6's, those of guests by what they are guaranteed; and how its filters match."""
    classes = {}
    for line in ip(f"netns exec {NETNS} tc -d class show dev virbr6").splitlines():
        _, _, number, *words = line.split()
        told = dict(pairwise(words))
        name = number if number in ("1:1", "1:2") else told["rate"]
        classes[name] = {key: told.get(key) for key in ("parent", "rate", "ceil", "burst", "cburst", "quantum")}
    filters = ip(f"netns exec {NETNS} tc -d filter show dev virbr6").splitlines()
    queues = ip(f"netns exec {NETNS} tc qdisc show dev virbr6")
    return classes, [line.strip() for line in filters if "match" in line], queues.count("qdisc sfq")


@pytest.mark.shaping
@pytest.mark.parametrize("average", ["", " average='300'"])
def test_what_a_bridge_guarantees(judge, average):
    """libvirt's filter is for IPv4 alone; ours has no match for that."""
    with kept(judge):
        before = guaranteed()
        judge.create("floor", with_floor(200, average=average))
        theirs, matching, queues = guaranteed()
        virsh("destroy", "floor")
        (spec,) = vhostnet.parse_domain(with_floor(200, average=average), networks={"kept": "virbr6"})
        with vhostnet.open_nic(spec, netns=NETNS):
            ours = guaranteed()
        assert ours == (theirs, [line for line in matching if line != IPV4], queues)
        assert IPV4 in matching
        assert theirs["1:2"]["rate"] == "6400Kbit"
        assert guaranteed() == before


IPV4 = "match 00000800/0000ffff at -4"


@pytest.mark.shaping
def test_beside_a_peak_the_others_have_what_is_left_of_the_average(judge):
    """libvirt leaves them the rest of the peak, and the network's average holds for nobody any more."""
    with kept(judge, " peak='5000'"):
        judge.create("floor", with_floor(200))
        theirs = guaranteed()[0]
        virsh("destroy", "floor")
        (spec,) = vhostnet.parse_domain(with_floor(200), networks={"kept": "virbr6"})
        with vhostnet.open_nic(spec, netns=NETNS):
            ours = guaranteed()[0]
    assert (theirs.pop("1:2")["rate"], ours.pop("1:2")["rate"]) == ("38400Kbit", "6400Kbit")
    assert ours == theirs


@pytest.mark.shaping
def test_beside_a_guest_of_libvirts(judge):
    """Each has its own, whoever comes and goes first."""
    with kept(judge):
        before = guaranteed()
        (spec,) = vhostnet.parse_domain(with_floor(300), networks={"kept": "virbr6"})
        judge.create("floor", with_floor(200))
        theirs = guaranteed()
        with vhostnet.open_nic(replace(spec, mac="52:54:00:00:0a:0a"), netns=NETNS):
            assert guaranteed()[0].keys() == {"1:1", "1:2", "1600Kbit", "2400Kbit"}
            assert guaranteed()[0]["1:2"]["rate"] == "4Mbit"
        assert guaranteed() == theirs
        virsh("destroy", "floor")
        assert guaranteed() == before


@pytest.mark.shaping
@pytest.mark.parametrize(("floor", "of"), [(1001, "kept"), (10, "inside")])
def test_floors_that_libvirt_refuses(judge, floor, of):
    """More than there is, and of a network that has none."""
    with kept(judge):
        with pytest.raises(Refused):
            judge.create("floor", with_floor(floor, of))
        (spec,) = vhostnet.parse_domain(with_floor(floor, of), networks={"kept": "virbr6", "inside": "virbr7"})
        with pytest.raises(HostError) as caught:
            vhostnet.open_nic(spec, netns=NETNS)
    assert (caught.value.act, bool(caught.value.remedy)) == ("FLOOR", True)


@pytest.mark.parametrize(("element", "text"), REFUSED_NETWORKS)
def test_networks_that_libvirt_refuses(element, text, judge):
    (judge.directory / "network").write_text(text)
    with pytest.raises(Refused):
        virsh("net-create", str(judge.directory / "network"))
    with pytest.raises(SpecError) as caught:
        vhostnet.parse_network(text)
    assert caught.value.element == element
    assert f"<{element}" in text.splitlines()[caught.value.line - 1]
    judge.equal["refused networks"] += 1


def test_a_network_that_libvirt_takes_and_we_refuse(judge):
    (judge.directory / "network").write_text(ONLY_THEIR_NETWORK)
    if judge.is_older("theirs"):  # which refuse it, too
        with pytest.raises(Refused):
            virsh("net-create", str(judge.directory / "network"))
        return
    virsh("net-create", str(judge.directory / "network"))
    try:
        with pytest.raises(Refused):
            judge.create("of-theirs", domain("of-theirs", MACHINES["shared"], [OF_THEIRS.xml(0)]))
    finally:
        virsh("net-destroy", "theirs")
    with pytest.raises(SpecError, match="<vlan> is not allowed"):
        vhostnet.parse_network(ONLY_THEIR_NETWORK)


# --- libvirt's schema ------------------------------------------------------------------------------------


def valid(directory, documents):
    """Those of these texts that libvirt's schema has."""
    for name, text in documents.items():
        (directory / name).write_text(text)
    command = ["xmllint", "--noout", "--relaxng", "/usr/share/libvirt/schemas/domain.rng", *documents]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    said = dict(re.findall(r"^(\S+) (validates|fails to validate)$", done.stderr, re.MULTILINE))
    assert said.keys() == documents.keys(), done.stderr
    return {name for name, verdict in said.items() if verdict == "validates"}


def test_the_matrix_is_of_the_schema(judge, tmp_path):
    texts = {
        name: domain(name, machine_of(place), [nic.xml(number)])
        for name, (place, number, nic) in NUMBERED.items()
        if not judge.is_older(name)
    }
    assert texts.keys() - valid(tmp_path, texts) == NOT_IN_SCHEMA


def test_what_the_schema_has_is_taken(judge, tmp_path):
    """Of our own documents, whose domains say little besides their NICs."""
    texts = {path.name: path.read_text() for path in [*TESTS.glob("documents/*.xml"), *TESTS.glob("golden/*.xml")]}
    whole = {
        name: domain(
            name,
            MACHINES["pc"],
            [ElementTree.tostring(nic, "unicode") for nic in ElementTree.fromstring(text).iter("interface")],
        )
        for name, text in texts.items()
    }
    refused = set()
    for name in valid(tmp_path, whole):
        try:
            vhostnet.parse_any(texts[name], networks=AnyNetwork())
        except SpecError:
            refused.add(name)
    assert refused == NOT_TAKEN
