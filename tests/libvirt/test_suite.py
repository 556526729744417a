"""The QEMU cases of libvirt's own test suite: each domain with NICs goes through us, and each argument of a NIC is
compared, key by key, with what libvirt writes there. The suite is of Debian's source package, in the cache (``fetch``);
what is not compared are the numbers of fds and the ids, which are each program's own.
"""

import itertools
import json
import shlex
import xml.etree.ElementTree as ET

import pytest
from conftest import LIBVIRT_SUITE as SUITE
from qemuopts import parse_argv

import vhostnet
from vhostnet import SpecError

pytestmark = [pytest.mark.libvirt, pytest.mark.filterwarnings("ignore::vhostnet.VhostnetWarning")]

# What stands for vhost-net in that suite does not ask for the domain's type, as libvirt itself does.
KVM = ("<domain type='qemu'", "<domain type='kvm'")
FDS = ("fd", "fds", "vhostfd", "vhostfds")
SUFFIX = ".x86_64-latest"


class AnyNetwork(dict):
    """Each network stands for a bridge."""

    def __contains__(self, name):
        return True

    def __missing__(self, name):
        return "br0"


def interfaces(path):
    return ET.parse(path).getroot().findall("devices/interface")


def ours(path):
    return [nic for nic in interfaces(path) if nic.get("type") not in ("hostdev", "direct")]


CASES = sorted(
    path.name.removesuffix(f"{SUFFIX}.xml")
    for path in SUITE.glob(f"*{SUFFIX}.xml")
    if path.with_suffix(".args").exists() and ours(path)
)

# Domains that are refused, by what is not done, and the way out is in the message.
SCRIPT, PASST, PORT = "<script", "<backend type='passt'", "<virtualport"
REFUSED = {
    **dict.fromkeys(("downscript", "graphics-spice-timeout", "net-eth", "net-eth-ifname", "net-eth-names"), SCRIPT),
    **dict.fromkeys(("net-user-passt", "net-vhostuser-passt", "schema-reorder-domain-subelements"), PASST),
    **dict.fromkeys(("net-midonet", "net-openvswitch"), PORT),
    **dict.fromkeys(("net-bandwidth", "net-bandwidth2"), "<bandwidth"),
    "net-eth-hostip": "<ip",
    "net-eth-unmanaged-tap": "<target managed='no'",
    "net-virtio-network-portgroup": "<source portgroup=",
    "net-virtio-teaming-network": "<teaming type='transient'",
}

# What libvirt writes besides, and why we do not.
INTENDED = {"net-usb": ("bus", "port")}  # it has looked for a free port, and does not say so in the domain


def test_the_suite_is_there_and_what_is_said_of_it_is_in_it():
    assert len(CASES) >= 70
    assert not {*REFUSED, *INTENDED} - set(CASES)
    assert len(CASES) - len(REFUSED) - len(INTENDED) >= 55  # which are equal


def libvirts(name):
    """[(what comes before, netdev, device)] of each NIC, in order."""
    words = shlex.split((SUITE / f"{name}{SUFFIX}.args").read_text().replace("\\\n", ""))
    options = list(itertools.pairwise(words))
    chardevs = {read["id"]: read for read in (parse_argv(pair)[0] for pair in options if pair[0] == "-chardev")}
    found, netdev = [], None
    for pair in options:
        if pair[0] == "-netdev":
            netdev = json.loads(pair[1])
        elif pair[0] == "-device" and pair[1].startswith("{") and "netdev" in (device := json.loads(pair[1])):
            found.append((chardevs.get(netdev.get("chardev")), netdev, device))
    return found


def written(spec, first_fd):
    """The same of one of ours."""
    fds = {}
    if spec.tap:
        fds["tap_fds"] = range(first_fd, first_fd + spec.queues)
        if spec.virtio and spec.vhost != "off":
            fds["vhost_fds"] = range(first_fd + 500, first_fd + 500 + spec.queues)
    elif spec.type == "vdpa":
        fds["vdpa_fd"] = first_fd
    *before, netdev, device = parse_argv(vhostnet.qemu_argv(spec, **fds, dialect="json"))
    return (before[0] if spec.type == "vhostuser" else None), netdev, device


def comparable(part):
    """Without ids; of fds how many there are."""
    if part is None:
        return None
    kept = {key: value for key, value in part.items() if key not in ("id", "netdev", "chardev", "vhostdev")}
    return {key: value.count(":") + 1 if key in FDS else value for key, value in kept.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_domain(name):
    text = (SUITE / f"{name}{SUFFIX}.xml").read_text().replace(*KVM)
    if name in REFUSED:
        with pytest.raises(SpecError, match=REFUSED[name]) as caught:
            vhostnet.parse_domain(text, networks=AnyNetwork())
        assert "is not supported yet" in str(caught.value) or caught.value.expected
        return
    specs = vhostnet.parse_domain(text, networks=AnyNetwork())
    theirs = libvirts(name)
    assert len(specs) == len(theirs) == len(ours(SUITE / f"{name}{SUFFIX}.xml"))
    for number, (spec, (chardev, netdev, device)) in enumerate(zip(specs, theirs, strict=True)):
        device = {key: value for key, value in device.items() if key not in INTENDED.get(name, ())}
        mine = [comparable(part) for part in written(spec, 1000 + 1000 * number)]
        assert mine == [comparable(part) for part in (chardev, netdev, device)]


FAILING = sorted(path.name.removesuffix(f"{SUFFIX}.err") for path in SUITE.glob(f"net-*{SUFFIX}.err"))


@pytest.mark.parametrize("name", FAILING)
def test_a_domain_that_libvirt_refuses(name):
    """For its NICs: each is refused here, too."""
    with pytest.raises(SpecError):
        vhostnet.parse_domain((SUITE / f"{name}.xml").read_bytes(), networks=AnyNetwork())
