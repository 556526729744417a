"""What is asked of libvirt is all that we take, and every two settings together."""

import sys
from itertools import combinations
from xml.etree import ElementTree

import pytest
from conftest import ROOT
from matrix import NETWORKS, NICS, PAIRS, REFUSED, REFUSED_NETWORKS, SETTINGS, made, together

from vhostnet.spec import interface
from vhostnet.text import elements

sys.path.append(str(ROOT / "tools"))
import support


def test_every_two_values_of_every_two_settings_are_in_one_nic():
    found = {frozenset(pair) for settings in made() for pair in combinations(settings.items(), 2)}
    for (one, ones), (other, others) in combinations(SETTINGS.items(), 2):
        for pair in (((one, value), (other, of_other)) for value in ones for of_other in others):
            assert (frozenset(pair) in found) == together(*pair)


def test_there_are_many():
    assert len(PAIRS) >= 40 and len(NICS) >= 180 and len(REFUSED) >= 160
    assert len(NETWORKS) >= 10 and len(REFUSED_NETWORKS) >= 25
    assert len({nic.name for nic in NICS}) == len(NICS)


def paths(element, path=""):
    """Each element in it, and each attribute."""
    for name in element.attrib:
        yield path or "interface", name
    for child in element:
        below = f"{path}/{child.tag}".strip("/")
        yield below, ""
        yield from paths(child, below)


# What is read, and refused: of a pair's other half, of other switches. Floors have tests of their own, beside libvirt.
NEVER_OURS = {
    ("teaming", "persistent"),
    ("bandwidth/inbound", "floor"),
    *(("virtualport/parameters", name) for name in elements.OTHER_PARAMETERS),
}
# What is for passt, which libvirt starts and we do not: QEMU's arguments are compared in libvirt's own suite.
OF_PASST = {
    *(("backend", name) for name in ("type", "hostname", "fqdn", "logFile")),
    *((path, name) for path, names in elements.PORT_FORWARD.items() for name in names),
}


def test_all_that_we_read_is_in_one():
    found = {of for nic in NICS for of in paths(ElementTree.fromstring(nic.xml(0)))}
    for path, names in support.every_read().items():
        for name in names or {""}:
            told = "" if name.startswith("(") else name.partition("=")[0]
            assert ((path, told) in found) != ((path, told) in NEVER_OURS | OF_PASST)


@pytest.mark.parametrize("kind", ["types", "addresses"])
def test_every_type_is_in_one(kind):
    every = ElementTree.fromstring(f"<all>{''.join(nic.xml(0) for nic in NICS)}</all>")
    if kind == "types":
        assert {nic.get("type") for nic in every} == {*interface.TAP_TYPES, *interface.TAPLESS_TYPES}
    else:
        assert {address.get("type") for address in every.iter("address")} == set(elements.ADDRESSES)
