"""libvirt's <network> -> Network.

Of the document is read what bears on a NIC. What is not supported is refused where a NIC would have it (``plug.py``),
and not where it is only written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from vhostnet.errors import SpecError
from vhostnet.spec.network import MODES, Network, PortGroup
from vhostnet.spec.parts import PORT_TYPES, PortProfile
from vhostnet.text.elements import KNOWN, TRUST, plain, unless_empty, word, yesno
from vhostnet.text.reading import (
    Place,
    Reading,
    asks_for_nothing,
    at,
    read,
    read_bandwidth,
    read_parts,
    read_port_profile,
    read_vlan,
)
from vhostnet.values import replace

if TYPE_CHECKING:
    from vhostnet.text.document import Element
else:
    Element = Any

MAX_NETWORK: Final = 4 * 1024 * 1024  # a network may have thousands of <host>s

# Element -> attribute -> (field, reader), or None for what is the business of whoever makes the bridge.
READ: Final[dict[str, dict[str, tuple[str, Any] | None]]] = {
    "network": {"ipv6": None, "connections": None, "trustGuestRxFilters": ("trust_guest_rx_filters", yesno)},
    "name": {},
    "forward": {
        "mode": ("forward", unless_empty(word(**{mode: mode for mode in MODES[1:]}))),
        "dev": ("_dev", plain),
        "managed": None,
    },
    "bridge": {
        "name": ("bridge", lambda text: None if "%d" in text else text or None),  # a template: libvirt names it
        "macTableManager": ("mac_table_manager", word(kernel=None, libvirt="libvirt")),
        **dict.fromkeys(("stp", "delay", "zone")),
    },
    "mtu": {"size": ("mtu", KNOWN["mtu"]["size"][1])},
    "port": {"isolated": ("isolated", yesno)},
}
_WITHIN: Final = [("forward", tag) for tag in ("interface", "pf", "address", "driver", "nat")]
MAKERS: Final = ("uuid", "title", "description", "metadata", "mac", "domain", "dns", "ip", "route", "bandwidth")
_DNSMASQ: Final = "{http://libvirt.org/schemas/network/dnsmasq/1.0}options"
_MANY: Final = ("ip", "route", "portgroup")


def parse_network(xml: str | bytes, *, strict: bool = False) -> Network:
    """One libvirt ``<network>`` (at most 4 MiB), as ``virsh net-dumpxml`` has it, as a Network.

    What libvirt does not know is a VhostnetWarning, or with *strict* a SpecError. Errors as for parse_interface.
    """
    from vhostnet.text.document import read_document  # a parser takes its time, and who has Networks needs none

    root = read_document(xml, MAX_NETWORK)
    if root.tag != "network":
        raise at(root).error("is not a network", "<network>")
    reading = Reading(strict)
    _attributes(root, "network", reading)
    groups: dict[str, PortGroup] = {}
    for child in _children(root, reading):
        if child.tag == "portgroup":
            _take_group(child, reading, groups)
        elif child.tag in ("vlan", "virtualport"):
            reading.put(str(child.tag), _SETTINGS[str(child.tag)](child, reading), at(child))
        elif child.tag in READ and child.tag != "network":
            _attributes(child, str(child.tag), reading)
        elif child.tag not in (*MAKERS, _DNSMASQ):
            reading.unknown("is no element that libvirt knows here", at(child))
        elif child.tag == "bandwidth" and not asks_for_nothing(child, "bandwidth"):
            reading.places["_bandwidth"] = at(child)
    if "name" not in reading.values:
        raise at(root).error("has no <name>", "<name>NETWORK</name>")
    network: Network = _made(Network, {**reading.values, "portgroups": tuple(groups.values())}, root, reading)
    trusted = network.trust_guest_rx_filters or any(group.trust_guest_rx_filters for group in network.portgroups)
    if trusted and network.kind != "direct":
        reading.unknown(f"has no effect: {TRUST}", reading.places["trust_guest_rx_filters"])
        plain_groups = tuple(replace(group, trust_guest_rx_filters=None) for group in network.portgroups)
        network = replace(network, trust_guest_rx_filters=None, portgroups=plain_groups)
    if "_bandwidth" in reading.places and network.kind != "network":
        raise reading.places["_bandwidth"].error(
            "is not for such a network", "none: libvirt shapes a bridge that it makes"
        )
    return network


def _attributes(element: Element, path: str, reading: Reading) -> None:
    """Those of one element, and what there is to it besides."""
    for name, text in element.attrib.items():
        place, known = at(element, str(name), str(text)), READ[path].get(str(name), ())
        if known == ():
            reading.unknown("is no attribute that libvirt knows here", place)
        elif known:
            reading.put(known[0], read(place, known[1], reading), place)
    for child in element if path not in ("network", "name") else ():
        if (path, child.tag) not in _WITHIN:
            reading.unknown("is no element that libvirt knows here", at(child))
    if path == "name":
        reading.put("name", element.text or "", at(element))
    elif path == "forward":
        _pool(element, reading)


def _pool(element: Element, reading: Reading) -> None:
    """Which devices of the host its NICs are on, one each; libvirt's default mode is nat."""
    reading.values.setdefault("forward", "nat")
    reading.places.setdefault("forward", at(element, "mode"))
    first = reading.values.pop("_dev", None)
    devices = [] if first is None else [first]
    place = reading.places.get("_dev", at(element))
    for number, child in enumerate(element.findall("interface")):
        place = at(child, "dev")
        if place.text is None:
            raise place.error("is missing", "<interface dev=...>")
        if first is not None and not number and place.text != first:
            raise place.error(f"is not the dev= of <forward>, and is the first of its devices: {first!r}")
        if first is None or number:
            devices.append(place.text)
    reading.put("devices", tuple(devices), place)
    if element.find("pf") is not None:
        reading.put("later", ("pf",), at(element))


def _children(element: Element, reading: Reading) -> Iterator[Element]:
    """Each but those of _MANY once, and no text between them."""
    seen: set[str] = set()
    if (element.text or "").strip():
        reading.unknown("holds text that libvirt does not know", at(element, None, element.text))
    for child in element:
        if child.tag in seen and child.tag not in _MANY:
            raise at(child).error("is given twice")
        seen.add(str(child.tag))
        if (child.tail or "").strip():
            reading.unknown("holds text that libvirt does not know", at(element, None, child.tail))
        yield child


def _take_group(element: Element, reading: Reading, groups: dict[str, PortGroup]) -> None:
    group = _port_group(element, reading)
    if group.name in groups:
        raise at(element, "name").error("is another group's already")
    if group.default and "_default" in reading.places:
        raise at(element, "default").error("is another group already", "one default group")
    groups[group.name] = group
    if group.default:
        reading.places["_default"] = at(element)
    if group.vlan or group.bandwidth:
        reading.places.setdefault("portgroups", at(element, "name"))


def _port_group(element: Element, reading: Reading) -> PortGroup:
    told = read_parts(element, {"name": plain, "default": yesno, "trustGuestRxFilters": yesno}, reading)
    if "trustGuestRxFilters" in told:
        told["trust_guest_rx_filters"] = told.pop("trustGuestRxFilters")
        reading.places.setdefault("trust_guest_rx_filters", at(element, "trustGuestRxFilters"))
    if not told.get("name"):
        raise at(element, "name").error("is missing", "<portgroup name=...>")
    for child in _children(element, reading):
        if child.tag in _OF_A_GROUP:
            told[str(child.tag)] = _OF_A_GROUP[str(child.tag)](child, reading)
        else:
            reading.unknown("is no element that libvirt knows here", at(child))
    group: PortGroup = _made(PortGroup, told, element, reading)
    return group


def _port_profile(element: Element, reading: Reading) -> PortProfile:
    profile = read_port_profile(element, reading)
    if profile.type is None:
        raise at(element, "type").error("is missing", " or ".join(PORT_TYPES))
    return profile


def _part_of_a_profile(element: Element, reading: Reading) -> PortProfile | None:
    """Its network may say the type."""
    return None if asks_for_nothing(element, "virtualport") else read_port_profile(element, reading)


# What a network gives a NIC, and what a group of it does: the network's own bandwidth is its bridge's.
_SETTINGS: Final = {"vlan": read_vlan, "virtualport": _port_profile}
_OF_A_GROUP: Final = {"vlan": read_vlan, "virtualport": _part_of_a_profile, "bandwidth": read_bandwidth}


def _made(make: Any, values: dict[str, Any], element: Element, reading: Reading) -> Any:
    try:
        return make(**values)
    except SpecError as error:
        where = Place("name" if make is Network else str(element.tag), None, at(element).line, None)
        place = reading.places.get(error.attribute or "", where) if make is Network else where
        raise place.error(error.problem, error.expected) from None
