"""Real libvirt and we on the same domains: what it tells QEMU of a NIC, and what the kernel says of its TAP, is what we
write and make; what it refuses we refuse, too, and say where. In a Debian of its own: tests/libvirt/all.

What is asked stands in ``matrix.py``; where we mean to do otherwise, here, each with its reason.
"""

import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from arguments import AnyNetwork, nics, without, written
from conftest import TESTS, lacks, need
from kernel import ip, run_json
from matrix import BRIDGE, DOMAINS, FILTERING, MACHINES, NETWORKS, REFUSED, ROM, TABLE, Nic, domain, machine_of
from switch import caller, switch

import vhostnet
from bench.libvirtd import Refused, libvirtd, virsh
from vhostnet import SpecError
from vhostnet.spec.interface import TAP_TYPES

pytestmark = [
    pytest.mark.libvirtd,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::vhostnet.VhostnetWarning"),
]

THEIRS, OURS = "theirs", "ours"  # network namespaces
NUMBERED = {nic.name: (place, number, nic) for place, every in DOMAINS.items() for number, nic in enumerate(every)}

# --- where we mean to do otherwise -----------------------------------------------------------------------

# What the kernel says of every TAP of ours, and of libvirt's; and why.
INTENDED = {
    ("ifalias", "a mark", None): "whose it is: vhostnet list reads it",
    ("inet6_addr_gen_mode", "none", "eui64"): "the bridge's end of a guest's cable needs no address",
    ("state", "static", ""): "the guest's MAC in the forwarding table: it stands before the port is up",
}
# The NICs of which other things differ, too.
VIRTIO = {"driver", "vnet_hdr"}  # the model where none is given; libvirt's is rtl8139 on x86
UNTOUCHED = {"qdisc", "kind", "root", "refcnt"}  # of a TAP that is somebody else's; libvirt gives it noqueue
FILLED = {
    "learning",
    "flood",
    "mac",
    "master",
    "state",
}  # the forwarding table that libvirt fills for a network's NICs alone
OTHERWISE = {
    "no-model": VIRTIO,
    "user-of-none": VIRTIO,
    "unmanaged": UNTOUCHED,
    "unmanaged-queues": UNTOUCHED,
    "table-of-a-bridge": FILLED,
}
PLACE = {"bus", "addr", "port", "devno", "reg"}  # libvirt gives every device its own, where none is given
# In front of a QEMU before 9.2 libvirt gives the loadparm to the machine, and says reconnect, as our other dialects do.
OLD_QEMU, OF_OLD_QEMU = (9, 2), {"ccw-boot": {"loadparm"}}
# What only these libvirts and later ones take, or refuse.
SINCE = {"usb-net": (10, 3), "portForward-0": (11, 3)}
# What libvirt refuses all the same, and we take: it looks for a TAP to set it on.
ONLY_OURS = {
    "vhostuser-mtu": Nic(
        "vhostuser-mtu",
        "shared",
        "vhostuser",
        "<model type='virtio'/> <source type='unix' path='/run/switch' mode='client'/> <mtu size='1400'/>",
    )
}
# What only one NIC of a domain can have.
ONCE = ("<alias name='ua-both'/>", "<boot order='1'/>", "<address type='pci' bus='0' slot='9' function='0'/>")

# libvirt takes more than its schema has: a % in a name, an empty path, what it writes itself of a running network.
NOT_IN_SCHEMA = {"template", "scripts-of-none", "table"}
# What is not done yet: a device of the host's, Open vSwitch, filters.
NOT_TAKEN = {"hostdev-only.xml", "nova-ovs.xml", "ovirt-filterref.xml"}

# What differs from one moment, place or link to the next.
NOISE = {
    *("ifindex", "ifname", "dev", "id", "no", "designated_port"),
    *("hold_timer", "message_age_timer", "forward_delay_timer"),
}


def cases(*types, alone=True):
    """The names of those NICs, each with what its kernel must be able to."""
    return [
        pytest.param(name, marks=[pytest.mark.vlan] if place.startswith(("vlan", "table")) else [])
        for name, (place, _, nic) in NUMBERED.items()
        if (not types or nic.type in types) and (alone or not place.startswith("alone"))
    ]


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
    equal: Counter

    def is_older(self, name):
        """Than the libvirts that the case is of."""
        return self.libvirt < SINCE.get(name, ())

    def create(self, name, text):
        (self.directory / name).write_text(text)
        virsh("create", str(self.directory / name), "--paused")


@pytest.fixture(scope="module")
def judge(tmp_path_factory, request):
    """libvirtd in one of two network namespaces that are alike."""
    need("libvirtd")  # fixtures of a module come before those that look at a test's marks
    directory = tmp_path_factory.mktemp("libvirt")
    for netns in (THEIRS, OURS):
        make_namespace(netns)
    Path(ROM).write_bytes(bytes(512))
    with libvirtd(THEIRS):
        make_networks(directory)
        said = virsh("version", "--daemon")
        libvirt, qemu = (
            tuple(map(int, re.search(rf"{what} ([0-9.]+)$", said, re.MULTILINE)[1].split(".")))
            for what in ("Running against daemon:", "Running hypervisor: QEMU")
        )
        equal = Counter()
        yield Judge(directory, libvirt, qemu, equal)
    versions = (".".join(map(str, version)) for version in (libvirt, qemu))
    told = ", ".join(f"{what} {number}" for what, number in equal.items())
    line = "judged: libvirt {}, QEMU {}, {} NICs in {} domains; equal: {}"
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + line.format(*versions, len(NUMBERED), len(DOMAINS), told))


def make_namespace(netns):
    """With bridges, and the TAPs that are somebody else's."""
    ip(f"netns add {netns}")
    ip(f"-n {netns} link set lo up")
    ip(f"-n {netns} route add 224.0.0.0/4 dev lo")
    for bridge, heeding in ((BRIDGE, ""), (FILTERING, "" if lacks("vlan") else "vlan_filtering 1")):
        ip(f"-n {netns} link add {bridge} type bridge {heeding}")
        ip(f"-n {netns} link set {bridge} address 52:54:00:ff:ff:ff mtu 1600 up")
    for _, number, nic in NUMBERED.values():
        if found := re.search("dev='([^']*)' managed='no'", nic.xml(number)):
            ip(f"-n {netns} tuntap add {found[1]} mode tap {'multi_queue' if 'queues' in nic.inside else ''}")
            ip(f"-n {netns} link set {found[1]} address 52:54:00:ff:00:{number:02x}")


def make_networks(directory):
    every = [(name, bridge, "kernel") for name, bridge in NETWORKS.items()]
    if not lacks("vlan"):
        every += [(name, bridge, "libvirt") for name, bridge in TABLE.items()]
    for name, bridge, manager in every:
        of = f"<bridge name='{bridge}' macTableManager='{manager}'/>"
        (directory / name).write_text(f"<network><name>{name}</name><forward mode='bridge'/>{of}</network>")
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
    with ExitStack() as others:
        for number, nic in numbered:
            if nic.type == "vhostuser":
                Path(f"/run/switch-{number}").unlink(missing_ok=True)
                others.enter_context((caller if "'server'" in nic.inside else switch)(f"/run/switch-{number}"))
        try:
            judge.create(name, domain(name, machine_of(name), [nic.xml(number) for number, nic in numbered]))
        except Refused as error:
            refusal = str(error)
        else:
            return running(name, numbered)
    if len(numbered) == 1:
        told = told_qemu(name)
        return {numbered[0][1].name: Answer(refusal, told[0] if told else None)}
    half = len(numbered) // 2
    return started(judge, f"{name}a", numbered[:half]) | started(judge, f"{name}b", numbered[half:])


def running(name, numbered):
    """The answers for a domain that was started, and ends."""
    try:
        if name.startswith("table"):  # libvirt fills it when the guest begins to run
            virsh("resume", name)
        live = virsh("dumpxml", name)
        targets = [nic.find("target") for nic in ElementTree.fromstring(live).iter("interface")]
        kernel = seen(THEIRS, ["" if target is None else target.get("dev") for target in targets])
    finally:
        virsh("destroy", name)
    every = enumerate(zip(numbered, told_qemu(name), kernel, strict=True))
    return {nic.name: Answer("", arguments, said, live, place) for place, ((_, nic), arguments, said) in every}


def told_qemu(name):
    """Of each NIC, by the domain's log: it has what a QEMU was told that did not start, too."""
    log = Path(f"/var/log/libvirt/qemu/{name}.log")
    command = re.search(r"(?:.*\\\n)+.*", log.read_text()) if log.exists() else None
    return nics(shlex.split(command[0].replace("\\\n", ""))) if command else []


# --- what the kernel says --------------------------------------------------------------------------------


def seen(netns, taps):
    """Of each of these TAPs; {} of none."""
    asked = {
        "port": f"bridge -n {netns} -d link show",
        "forwarding": f"bridge -n {netns} -d fdb show",
        "vlans": f"bridge -n {netns} vlan show",
        "queueing": f"tc -n {netns} qdisc show",
        "link": f"ip -n {netns} -d link show",
    }
    every = {what: run_json(command) for what, command in asked.items()}
    return [of_one(netns, tap, every) if tap else {} for tap in taps]


def of_one(netns, tap, every):
    said = {what: [one for one in told if tap in (one.get("ifname"), one.get("dev"))] for what, told in every.items()}
    said |= {what: run_json(f"tc -n {netns} {what} show dev {tap}") for what in ("class", "filter")}
    said["coalescing"] = ip(f"netns exec {netns} ethtool -c {tap}").splitlines()[1:]
    return said


def facts(said):
    """What can be compared of that: each fact by its path."""
    (link,) = said["link"]
    queues = link["linkinfo"]["info_data"]
    if queues["multi_queue"]:  # QEMU attaches those after the first when the guest asks for them
        queues["numqueues"] += queues.pop("numdisabled")
    if "ifalias" in link:
        link["ifalias"] = re.sub("^vhostnet:.*", "a mark", link["ifalias"])
    for one in said["queueing"]:
        if one["kind"] == "noqueue":  # whose handle is the next that was free
            del one["handle"]
    said["forwarding"] = {  # less what the link itself listens to
        f"{one['mac']} {one.get('vlan', '')}": one for one in said["forwarding"] if "self" not in one["flags"]
    }
    return dict(flat(said))


def flat(said, path=""):
    if isinstance(said, dict):
        for key in said.keys() - NOISE:
            yield from flat(said[key], f"{path}/{key}")
    elif isinstance(said, list):
        for number, one in enumerate(said):
            yield from flat(one, f"{path}/{number}")
    else:
        yield path, said


# --- and we ----------------------------------------------------------------------------------------------


def parsed(name):
    place, number, nic = NUMBERED[name]
    (spec,) = vhostnet.parse_domain(domain(name, machine_of(place), [nic.xml(number)]), networks=NETWORKS | TABLE)
    return spec


def ours(spec, judge):
    """Our arguments in the dialect that this libvirt has for its QEMU."""
    if judge.qemu >= OLD_QEMU:
        return written(spec, 1000, "json")
    in_json, in_words = (written(spec, 1000, dialect) for dialect in ("json", "keyval"))
    return [words if json[0] == "-chardev" else json for json, words in zip(in_json, in_words, strict=True)]


def others(name, judge):
    """What of it is not compared."""
    return OTHERWISE.get(name, set()) | (OF_OLD_QEMU.get(name, set()) if judge.qemu < OLD_QEMU else set())


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


@pytest.mark.parametrize("name", cases(alone=False))
def test_arguments_of_the_running_domain(name, judge, answers):
    """Its XML has every model and every place."""
    answer = answers(name)
    if judge.is_older(name):
        return
    (spec,) = vhostnet.parse_domain(answer.live, networks=NETWORKS | TABLE, nic=answer.place)
    hidden = others(name, judge) - {"driver"}
    assert without(ours(spec, judge), hidden) == without(answer.arguments, hidden)
    judge.equal["running domains' arguments"] += 1


@pytest.mark.parametrize("name", cases(*TAP_TYPES, alone=False))
def test_what_the_kernel_says(name, judge, answers):
    answer = answers(name)
    if judge.is_older(name):
        return
    assert not answer.refusal
    with vhostnet.open_nic(parsed(name), netns=OURS) as nic:
        (said,) = seen(OURS, [nic.ifname])
    ours, theirs = facts(said), facts(answer.kernel)
    differing = {key: (ours.get(key), theirs.get(key)) for key in ours.keys() | theirs.keys()}
    assert not {
        key: both
        for key, both in differing.items()
        if both[0] != both[1]
        and (key.rpartition("/")[2], *both) not in INTENDED
        and key.rpartition("/")[2] not in others(name, judge)
    }
    judge.equal["kernel states"] += 1


# --- what is refused -------------------------------------------------------------------------------------


def refuse(judge, name, interfaces):
    """Neither takes a domain with these; what we say of it, and the lines it was."""
    text = domain(name, MACHINES["shared"], interfaces)
    try:
        judge.create(name, text)
    except Refused as refusal:
        assert not judge.is_older(name)
        assert "monitor" not in str(refusal)  # it was libvirt itself, and not its QEMU
    else:
        virsh("destroy", name)
        assert judge.is_older(name), "libvirt takes it"
    with pytest.raises(SpecError) as caught:
        vhostnet.parse_domain(text, networks=NETWORKS)
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
    assert vhostnet.parse_domain(text, networks=NETWORKS)


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
