"""The QEMU cases of libvirt's own test suite: each domain with NICs goes through us, and each argument of a NIC is
compared, key by key, with what libvirt writes there. The suite is of Debian's source package, in the cache (``fetch``);
what is not compared are the numbers of fds and the ids, which are each program's own.
"""

import shlex
import xml.etree.ElementTree as ET

import pytest
from arguments import AnyNetwork, nics, socket_of, without, written
from conftest import LIBVIRT_SUITE as SUITE

import vhostnet
from vhostnet import PasstSource, SpecError

pytestmark = [pytest.mark.libvirt, pytest.mark.filterwarnings("ignore::vhostnet.VhostnetWarning")]

# What stands for vhost-net in that suite does not ask for the domain's type, as libvirt itself does.
KVM = ("<domain type='qemu'", "<domain type='kvm'")


def ours(path):
    """Its NICs, but for those that are left out."""
    every = ET.parse(path).getroot().findall("devices/interface")
    return [nic for nic in every if nic.get("type") != "hostdev"]


# The NICs of boards, which libvirt tells QEMU of by -net nic, are not among them.
CASES = sorted(
    path.stem
    for path in SUITE.glob("*.xml")
    if path.with_suffix(".args").exists() and ours(path) and "vexpress" not in path.stem
)
X86 = [name for name in CASES if name.endswith(".x86_64-latest")]

# Domains that are refused, by what is not done, and the way out is in the message.
REFUSED = {
    "net-midonet": "<virtualport type='midonet'",
    # Whose bridge is the suite's alone: libvirt's network driver would refuse it, too.
    "net-virtio-network-portgroup": "would give a NIC of type bridge a virtualport of type 802.1Qbg",
    "net-virtio-teaming-network": "<teaming type='transient'",
}

# What one of the two writes and the other does not.
INTENDED = {
    "net-usb.x86_64-latest": ("bus", "port"),  # libvirt has looked for a free port, and the domain does not say it
    # In front of a QEMU before 9.2, whose devices have none, libvirt gives the loadparm to the machine.
    "machine-loadparm-net-s390.s390x-9.1.0": ("loadparm",),
    "machine-loadparm-multiple-disks-nets-s390.s390x-9.1.0": ("loadparm",),
}

# A QEMU before 8.0 is not told to call passt again, which it cannot: exec says as much (tests/commands).
BEFORE_RECONNECT = ("net-user-passt.x86_64-7.2.0",)


def test_the_suite_is_there_and_what_is_said_of_it_is_in_it():
    assert (len(X86) >= 72, len(CASES) >= 110) == (True, True)
    assert not REFUSED.keys() - {base(name) for name in X86}
    assert not INTENDED.keys() - set(CASES)
    assert not set(BEFORE_RECONNECT) - set(CASES)
    assert len(X86) - len(REFUSED) - 1 >= 68  # which are equal


def base(name):
    return name.partition(".")[0]


@pytest.mark.parametrize("name", CASES)
def test_a_domain(name):
    text = (SUITE / f"{name}.xml").read_text().replace(*KVM)
    if base(name) in REFUSED:
        with pytest.raises(SpecError, match=REFUSED[base(name)]) as caught:
            vhostnet.parse_domain(text, networks=AnyNetwork())
        assert "is not supported" in str(caught.value) or caught.value.expected
        return
    specs = vhostnet.parse_domain(text, networks=AnyNetwork())
    theirs = nics(shlex.split((SUITE / f"{name}.args").read_text().replace("\\\n", "")))
    assert len(specs) == len(theirs) == len(ours(SUITE / f"{name}.xml"))
    for number, (spec, parts) in enumerate(zip(specs, theirs, strict=True)):
        if spec.passt and name in BEFORE_RECONNECT:
            spec = vhostnet.values.replace(spec, source=PasstSource(reconnect=None))
        how = {"passt_socket": socket_of(parts)} if spec.passt else {}
        in_json, in_words = (written(spec, 1000 * (number + 1), dialect, **how) for dialect in ("json", "keyval"))
        # an older QEMU takes JSON for some of them
        mine = [first if form else second for first, second, (_, form, _) in zip(in_json, in_words, parts, strict=True)]
        assert without(mine, INTENDED.get(name, ())) == without(parts, INTENDED.get(name, ()))


FAILING = sorted(base(path.name) for path in SUITE.glob("net-*.x86_64-latest.err"))


@pytest.mark.parametrize("name", FAILING)
def test_a_domain_that_libvirt_refuses(name):
    """For its NICs: each is refused here, too."""
    with pytest.raises(SpecError):
        vhostnet.parse_domain((SUITE / f"{name}.xml").read_bytes(), networks=AnyNetwork())
