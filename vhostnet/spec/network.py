"""libvirt's <network>: text -> Network, and what a NIC of type='network' takes over from it.

Of the document is read what bears on a NIC. Addresses, DHCP, names and the bridge's own shaping are the business of
whoever makes the bridge. What is not supported is refused where a NIC would have it, and not where it is only written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from vhostnet.checks import Check, is_bool, is_link_name, is_text, one_of, whole
from vhostnet.errors import SpecError
from vhostnet.spec.elements import KNOWN, TRUST, UNSUPPORTED_TYPES, plain, unless_empty, word, yesno
from vhostnet.spec.machines import attribute
from vhostnet.spec.parts import PORT_TYPES, Bandwidth, PortProfile, Vlan
from vhostnet.spec.reading import (
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
from vhostnet.spec.sources import DirectSource
from vhostnet.values import dataclass, replace

if TYPE_CHECKING:
    from vhostnet.spec.document import Element
else:
    Element = Any

MAX_NETWORK: Final = 4 * 1024 * 1024  # a network may have thousands of <host>s

ROUTED: Final = ("nat", "route", "open")  # and "": libvirt has made the bridge, and is its guests' router or none
DIRECT: Final = ("bridge", "private", "vepa", "passthrough")  # "bridge" where it has none: macvtap on a device
MODES: Final = ("", *ROUTED, *DIRECT, "hostdev")


# --- what there is ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PortGroup:
    """What those of a network's NICs have that name this group; the ``default`` one is of those that name none."""

    name: str
    default: bool = False
    vlan: Vlan | None = None
    virtualport: PortProfile | None = None
    bandwidth: Bandwidth | None = None
    trust_guest_rx_filters: bool | None = None

    def __post_init__(self) -> None:
        _check_values(self, _GROUP_RULES)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A libvirt network, as far as it bears on a NIC; made by ``parse_network`` or straight in Python.

    ``forward`` is its mode: "nat", "route", "open" or "" (isolated), which libvirt makes the ``bridge`` for; "bridge"
    for a ``bridge`` that is there; this one without a bridge, "private", "vepa" and "passthrough" for one of
    ``devices`` of the host; "hostdev". ``bridge`` None is one that libvirt has yet to name. ``mtu`` is the bridge's, in
    bytes. ``isolated``, ``vlan``, ``virtualport`` and, of macvtaps, ``trust_guest_rx_filters`` are those of NICs that
    say nothing of it, nor their group.

    Raises SpecError, naming the argument, its value and what would be right.
    """

    name: str
    forward: str = ""
    bridge: str | None = None
    devices: tuple[str, ...] = ()
    mac_table_manager: str | None = None
    mtu: int | None = None
    isolated: bool | None = None
    vlan: Vlan | None = None
    virtualport: PortProfile | None = None
    trust_guest_rx_filters: bool | None = None
    portgroups: tuple[PortGroup, ...] = ()
    later: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What its NICs are: "network" on libvirt's own bridge, "bridge" on another, "direct" or "hostdev"."""
        if self.forward in ("", *ROUTED):
            return "network"
        if self.forward == "hostdev":
            return "hostdev"
        return "bridge" if self.bridge else "direct"

    @property
    def takes_vlan(self) -> bool:
        """Its NICs may be in VLANs."""
        return self.kind in ("bridge", "hostdev") or self.forward == "passthrough"

    def __post_init__(self) -> None:
        for name in ("devices", "portgroups"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_values(self, _RULES)
        _check_groups(self.portgroups)
        _check_mode(self)


def _check(name: str, value: object, allowed: bool, expected: str) -> None:
    if not allowed:
        raise SpecError("is not allowed", attribute=name, value=value, expected=expected)


_YES_NO: Final = "yes or no (True or False)"
_LINK: Final = "the name of a link, 1 to 15 bytes"
_PORT_RULES: Final[tuple[tuple[str, Check, str], ...]] = (
    ("vlan", lambda value: isinstance(value, Vlan), "a Vlan"),
    ("virtualport", lambda value: isinstance(value, PortProfile), "a PortProfile"),
)
_GROUP_RULES: Final = (
    ("name", lambda value: is_text(value) and value != "", "the group's name"),
    ("default", is_bool, _YES_NO),
    ("bandwidth", lambda value: isinstance(value, Bandwidth), "a Bandwidth"),
    ("trust_guest_rx_filters", is_bool, _YES_NO),
    *_PORT_RULES,
)
_RULES: Final = (
    ("name", lambda value: is_text(value) and value != "" and "/" not in value, "a network's name, without /"),
    ("forward", one_of(*MODES), ", ".join(MODES[1:])),
    ("bridge", is_link_name, _LINK),
    ("devices", lambda value: all(map(is_link_name, value)) and len(set(value)) == len(value), f"{_LINK}, each once"),
    ("mac_table_manager", one_of("kernel", "libvirt"), "kernel or libvirt"),
    ("mtu", whole(68, 65521), "a whole number of bytes, 68..65521"),
    ("isolated", is_bool, _YES_NO),
    ("trust_guest_rx_filters", is_bool, _YES_NO),
    *_PORT_RULES,
    ("portgroups", lambda value: all(isinstance(group, PortGroup) for group in value), "PortGroups"),
)


_NEVER_NONE: Final = ("name", "forward", "default")


def _check_values(one: PortGroup | Network, rules: tuple[tuple[str, Check, str], ...]) -> None:
    for name, allowed, expected in rules:
        value = getattr(one, name)
        _check(name, value, allowed(value) if value is not None else name not in _NEVER_NONE, expected)


def _check_mode(network: Network) -> None:
    """libvirt refuses what a mode has no use for."""
    mode, bridge, manager = network.forward, network.bridge, network.mac_table_manager
    if mode in (*DIRECT[1:], "hostdev"):
        _check("bridge", bridge, bridge is None, f"none with forward mode {mode}")
        _check("mac_table_manager", manager, manager is None, f"none with forward mode {mode}")
    if mode in (*DIRECT, "hostdev"):
        _check("mtu", network.mtu, network.mtu is None, f"none with forward mode {mode}: the bridge has its own")
    if bridge is not None and mode == "bridge":
        _check("devices", network.devices, not network.devices, "a bridge, or devices, and not both")
    if not network.takes_vlan:
        _check("vlan", network.vlan, network.vlan is None, f"none: {_NO_VLAN}")
        group = next((group for group in network.portgroups if group.vlan), None)
        _check("portgroups", group and group.name, group is None, f"none with a <vlan>: {_NO_VLAN}")
    if network.kind in ("direct", "hostdev"):
        group = next((group for group in network.portgroups if group.bandwidth), None)
        _check("portgroups", group and group.name, group is None, f"none with a <bandwidth>: {_NO_BANDWIDTH}")


_NO_VLAN: Final = "libvirt has VLANs on a bridge that it has not made, with forward mode bridge"
_NO_BANDWIDTH: Final = "libvirt has it on a bridge, and each NIC may have its own"


def _check_groups(groups: tuple[PortGroup, ...]) -> None:
    names = Counter(group.name for group in groups)
    twice = next((name for name, count in names.items() if count > 1), None)
    _check("portgroups", twice, twice is None, "one group of a name")
    defaults = [group.name for group in groups if group.default]
    _check("portgroups", " and ".join(defaults), len(defaults) < 2, "one default group")


# --- text -> Network -------------------------------------------------------------------------------------

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
    from vhostnet.spec.document import read_document  # a parser takes its time, and who has Networks needs none

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
# And what they would, with what to do instead.
UNSUPPORTED: Final = {"pf": "name its virtual functions: <interface dev=...>"}


def _made(make: Any, values: dict[str, Any], element: Element, reading: Reading) -> Any:
    try:
        return make(**values)
    except SpecError as error:
        where = Place("name" if make is Network else str(element.tag), None, at(element).line, None)
        place = reading.places.get(error.attribute or "", where) if make is Network else where
        raise place.error(error.problem, error.expected) from None


# --- Network -> NIC --------------------------------------------------------------------------------------


def plug(element: Element, reading: Reading, network: Network, group_name: str | None, taken: Counter[str]) -> None:
    """Put into *reading*, of the <interface> *element*, what such a NIC takes over from its network.

    As libvirt's network driver does (networkAllocatePort): what it says itself counts before its group's, and that
    before the network's. *taken* says how many NICs of its document are on each device of the host's.
    """
    values, place = reading.values, reading.places["network"]
    group = _group(network, reading, group_name)
    _take_port(network, group, reading)
    _check_supported(network, place)
    if network.kind == "direct":
        _go_direct(network, reading, taken, trust=_trust(element, group, network))
    else:
        values["bridge"] = network.bridge
        values["mac_table_manager"] = network.mac_table_manager
    if network.isolated and not attribute(element, "port", "isolated"):
        values["isolated"] = True
    if "vlan" in values and not network.takes_vlan:
        raise reading.places["vlan"].error(f"is not for a NIC of network {network.name!r}: {_NO_VLAN}")
    if "vlan" not in values:
        values["vlan"] = (group and group.vlan) or network.vlan
    if "bandwidth" not in values and group:
        values["bandwidth"] = group.bandwidth


def _trust(element: Element, group: PortGroup | None, network: Network) -> bool:
    own = {"yes": True, "no": False}.get(element.get("trustGuestRxFilters", ""))
    told = (own, group.trust_guest_rx_filters if group else None, network.trust_guest_rx_filters)
    return next((one for one in told if one is not None), False)


def _go_direct(network: Network, reading: Reading, taken: Counter[str], *, trust: bool) -> None:
    """A macvtap on the device that fewest of this document are on; libvirt knows of its other domains, too.

    A device that is passed through is one NIC's.
    """
    device = min(network.devices, key=lambda name: taken[name])
    if network.forward == "passthrough" and taken[device]:
        expected = f"{len(network.devices)} NICs of it at the most"
        raise reading.places["network"].error("has a device for each of its NICs, and no more", expected)
    taken[device] += 1
    del reading.values["network"]
    reading.values |= {"type": "direct", "source": DirectSource(device, network.forward, trust)}


def _group(network: Network, reading: Reading, name: str | None) -> PortGroup | None:
    """The one that the NIC names, or the default one. libvirt says nothing of a name that is none's."""
    if name is None:
        return next((group for group in network.portgroups if group.default), None)
    found = next((group for group in network.portgroups if group.name == name), None)
    if found is None:
        there = ", ".join(repr(group.name) for group in network.portgroups)
        expected = f"one of its groups: {there}" if there else "none: it has none"
        raise reading.places["_portgroup"].error(f"is no port group of network {network.name!r}", expected)
    return found


def _check_supported(network: Network, place: Place) -> None:
    """What a NIC there would be, and have."""
    kind = network.kind
    if kind == "direct" and not (network.devices or network.later):
        raise place.error("has neither a bridge nor a device", "<bridge name=...>, or <forward dev=...>")
    if kind in UNSUPPORTED_TYPES:
        problem = f"would make a NIC of type {kind} of it (<forward mode={network.forward!r}>)"
        raise place.error(f"{problem}, which is not supported: {UNSUPPORTED_TYPES[kind]}")
    for name in network.later:
        raise place.error(f"would give it <{name}>, which is not supported: {UNSUPPORTED[name]}")
    if not network.bridge and kind != "direct":
        raise place.error("has no <bridge name=> yet", "a running network's document: virsh net-dumpxml NETWORK")


def _take_port(network: Network, group: PortGroup | None, reading: Reading) -> None:
    """The NIC's own virtualport, the network's and its group's in one; they may not differ, nor be of any type."""
    place = reading.places["network"]
    problem = "and its port group have virtualports that differ"
    port = _merged(network.virtualport, group.virtualport if group else None, place, problem)
    problem = f"is another than that of network {network.name!r}: they differ"
    port = _merged(reading.values.pop("_profile", None), port, reading.places.get("_profile", place), problem)
    if port and port.type not in _PORTS[network.kind] and (port.type or "_profile" not in reading.places):
        expected = " or ".join(_PORTS[network.kind]) or "none"
        what = f"type {port.type}" if port.type else "no type"
        raise place.error(f"would give a NIC of type {network.kind} a virtualport of {what}", expected)
    if port:
        reading.put("_profile", port, reading.places.get("_profile", place))


def _merged(one: PortProfile | None, other: PortProfile | None, place: Place, problem: str) -> PortProfile | None:
    try:
        return one.merged(other) if one and other else one or other
    except SpecError as error:
        raise place.error(f"{problem} in {error.attribute}", f"one of {error.value}") from None


# The types of <virtualport> that libvirt takes, by what the NIC is.
_PORTS: Final = {
    "network": (),
    "bridge": ("openvswitch",),
    **dict.fromkeys(("direct", "hostdev"), ("802.1Qbg", "802.1Qbh")),
}
