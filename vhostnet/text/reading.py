"""What has been read of one <interface>, where each value stood, and what is said of one that cannot be meant."""

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from vhostnet.errors import SpecError, VhostnetWarning
from vhostnet.spec.parts import (
    MAX_VLAN,
    PORT_TYPES,
    Address,
    Bandwidth,
    CcwAddress,
    HostIp,
    HostRoute,
    PciAddress,
    PortProfile,
    Rate,
    SpaprVioAddress,
    UsbAddress,
    VirtualPort,
    Vlan,
    ZpciAddress,
    packed,
)
from vhostnet.text.elements import (
    ADDRESSES,
    BANDWIDTH,
    HOST_IPS,
    NEUTRAL,
    OTHER_PARAMETERS,
    UNSUPPORTED_ADDRESSES,
    UNSUPPORTED_PORTS,
    VIRTUALPORT,
    VLAN,
    ZPCI,
    Ignored,
    Known,
    Reader,
    plain,
)

if TYPE_CHECKING:
    from vhostnet.text.document import Element
else:
    Element = Any


class Place(NamedTuple):
    """Where a value stood, and its text there."""

    element: str
    attribute: str | None
    line: int
    text: str | None

    def error(self, problem: str, expected: str = "") -> SpecError:
        return SpecError(
            problem,
            element=self.element,
            attribute=self.attribute,
            line=self.line,
            value=self.text,
            expected=expected,
        )


def at(element: Element, attribute: str | None = None, text: str | None = None) -> Place:
    if attribute and text is None:
        text = element.get(attribute)
    return Place(str(element.tag), attribute, getattr(element, "sourceline", 0), text)


def missing_source(element: Element, attribute: str | None) -> Place:
    """Where an attribute of <source> would stand."""
    source = element.find("source")
    return Place("source", attribute, at(element if source is None else source).line, None)


Elsewhere = Mapping[str, tuple[str, str] | None]
_NOTHING: Mapping[str, Any] = {}


class Reading:
    """What has been read of one <interface>, and where each value stood."""

    def __init__(
        self, strict: bool, own: Known = _NOTHING, elsewhere: Elsewhere = _NOTHING, many: Iterable[str] = ()
    ) -> None:
        """*own* is what only NICs of this type have, *many* of it may come more than once and is kept for the end.

        *elsewhere* is what only others have: why it is refused, and what would be right; or None where it is ignored.
        """
        self.strict = strict
        self.own = own
        self.elsewhere = elsewhere
        self.kept: dict[str, list[Element]] = {name: [] for name in many}
        self.values: dict[str, Any] = {}
        self.places: dict[str, Place] = {}

    def put(self, name: str, value: Any, place: Place) -> None:
        """None asks for nothing."""
        if value is not None:
            self.values[name] = value
            self.places[name] = place

    def drop(self, name: str, why: str) -> None:
        """libvirt reads it, and does nothing with it here."""
        if name in self.values:
            self.unknown(f"has no effect {why}", self.places[name])
            del self.values[name]

    def unknown(self, problem: str, place: Place) -> None:
        error = place.error(problem)
        if self.strict:
            raise error
        warn(error)


def read(place: Place, reader: Reader, reading: Reading) -> Any:
    try:
        return reader(place.text or "")
    except Ignored as why:
        return reading.unknown(str(why), place)
    except ValueError as error:
        raise place.error("is not readable", str(error)) from None


def asks_for_nothing(element: Element, path: str) -> bool:
    """Neither it nor what is in it says anything but what is libvirt's default."""
    return (
        all(text in NEUTRAL.get((path, str(name)), ()) for name, text in element.attrib.items())
        and not (element.text or "").strip()
        and all(asks_for_nothing(child, f"{path}/{child.tag}") for child in element)
    )


def warn(error: SpecError) -> None:
    warnings.warn(str(error), VhostnetWarning, stacklevel=3)


# --- elements that are one value -------------------------------------------------------------------------


def read_address(element: Element, reading: Reading) -> Address | None:
    """What an <address> says; None where it leaves the place open."""
    kind = element.get("type", "")
    if kind not in ADDRESSES:
        refused = "is not supported: leave the address out"
        problem = refused if kind in UNSUPPORTED_ADDRESSES else "is no address type"
        raise at(element, "type").error(problem, ", ".join(ADDRESSES))
    make, readers = ADDRESSES[kind]
    parts = read_parts(element, {**readers, "type": plain}, reading)
    del parts["type"]
    for child in element:
        if child.tag == "zpci" and make is PciAddress:
            parts["zpci"] = _zpci(child, reading)
        else:
            reading.unknown("is no element that libvirt knows here", at(child))
    if parts.pop("domain", 0):
        raise at(element, "domain").error("is no PCI domain of QEMU's", "0")
    if make is CcwAddress and parts and len(parts) < len(readers):
        raise at(element).error("is a partial address", "cssid, ssid and devno, or none of them")
    if _is_open(make, parts):
        if parts.get("zpci"):
            raise at(element).error("leaves open whose zpci it is", "bus or slot, beside zpci")
        return None
    address: Address = _made(make, parts, element)
    return address


def read_parts(element: Element, readers: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """The attributes of an element that is one value."""
    parts: dict[str, Any] = {}
    for name, text in element.attrib.items():
        place = at(element, str(name), str(text))
        if name in readers:
            parts[str(name)] = read(place, readers[str(name)], reading)
        else:
            reading.unknown("is no attribute that libvirt knows here", place)
    return parts


def _is_open(make: type[Any], parts: Mapping[str, Any]) -> bool:
    """The place is still to be assigned, as libvirt has it: on PCI bus 0 and slot 0, whatever else stands there."""
    if make is PciAddress:
        return not (parts.get("bus") or parts.get("slot"))
    needed = {UsbAddress: "port", SpaprVioAddress: "reg"}.get(make)
    return needed is not None and needed not in parts


def _zpci(element: Element, reading: Reading) -> ZpciAddress | None:
    make, readers = ZPCI
    parts = read_parts(element, readers, reading)
    if parts and len(parts) < len(readers):
        raise at(element).error("is a partial address", "uid and fid, or none of them")
    return _made(make, parts, element) if parts else None


def _made(make: type[Any], parts: Mapping[str, Any], element: Element) -> Any:
    try:
        return make(**parts)
    except SpecError as error:
        raise at(element, error.attribute).error(error.problem, error.expected) from None


def read_vlan(element: Element, reading: Reading) -> Vlan:
    """What a <vlan> says."""
    trunk: bool | None = read_parts(element, VLAN["vlan"], reading).get("trunk")
    tags: list[int] = []
    native: list[tuple[int, str]] = []
    for child in element:
        if child.tag != "tag":
            reading.unknown("is no element that libvirt knows here", at(child))
            continue
        told = read_parts(child, VLAN["vlan/tag"], reading)
        if "id" not in told:
            raise at(child, "id").error("is missing", f"a VLAN id, 0..{MAX_VLAN}")
        if told["id"] > MAX_VLAN or told["id"] in tags:
            raise at(child, "id").error("is not allowed", f"a VLAN id, 0..{MAX_VLAN}, and each of them once")
        if "nativeMode" in told and native:
            raise at(child, "nativeMode").error("is given for a second VLAN of this trunk", "one native VLAN")
        tags.append(told["id"])
        native += [(told["id"], told["nativeMode"])] if "nativeMode" in told else []
    if not tags:
        raise at(element).error("has no <tag>", "<tag id=.../>, one or more")
    if trunk is False and (native or len(tags) > 1):
        raise at(element, "trunk").error("is not allowed for more than one VLAN, or a native one", "yes")
    if native:
        return Vlan(tuple(tags), True, *native[0])
    return Vlan(tuple(tags), trunk if trunk is not None else len(tags) > 1)


def read_port_profile(element: Element, reading: Reading) -> PortProfile:
    """What a <virtualport> says, whoever has it; to libvirt an empty profileid is none."""
    kind = read_parts(element, VIRTUALPORT["virtualport"], reading).get("type")
    if kind is not None and kind not in PORT_TYPES:
        raise at(element, "type").error("is not allowed", " or ".join(PORT_TYPES))
    told: dict[str, str] = {}
    for number, child in enumerate(element):
        if child.tag != "parameters":
            reading.unknown("is no element that libvirt knows here", at(child))
            continue
        if number:
            raise at(child).error("is given twice")
        told = read_parts(child, VIRTUALPORT[_PARAMETERS], reading)
        if told.get("profileid") == "":
            del told["profileid"]
        for name in OTHER_PARAMETERS:
            if kind == "openvswitch" and name in told:
                raise at(child, name).error("is not for type openvswitch, and libvirt refuses it, too", "none")
        if kind == "openvswitch":
            _made(VirtualPort, told, child)
    profile: PortProfile = _made(PortProfile, {"type": kind, "parameters": tuple(told.items())}, element)
    return profile


_PARAMETERS = "virtualport/parameters"


def virtual_port(profile: PortProfile, place: Place, vmid: str | None) -> VirtualPort:
    """What a NIC, its network and its port group ask for together; of others than Open vSwitch none is done."""
    if profile.type is None:
        problem = "is missing, and no network says it"
        raise place._replace(attribute="type", text=None).error(problem, "openvswitch")
    if profile.type != "openvswitch":
        place = place._replace(attribute="type", text=profile.type)
        raise place.error(f"is not supported: {UNSUPPORTED_PORTS[profile.type]}", "openvswitch")
    try:
        return VirtualPort(**dict(profile.parameters), vmid=vmid)
    except (SpecError, TypeError) as error:
        raise place.error(f"has parameters that are not for type openvswitch: {error}") from None


def read_host_ip(element: Element, reading: Reading) -> HostIp:
    """What an <ip> of an ethernet's <source> says; to libvirt a prefix of 0 is none."""
    told = _read_host(element, "source/ip", reading)
    told.pop("family", None)
    told["prefix"] = told.get("prefix") or None
    ip: HostIp = _made(HostIp, told, element)
    return ip


def read_host_route(element: Element, reading: Reading) -> HostRoute:
    """What a <route> of an ethernet's <source> says; one without an address leads everywhere, as libvirt 12.8's."""
    everywhere = "::" if element.get("family") == "ipv6" else "0.0.0.0"
    told = _read_host(element, "source/route", reading, everywhere)
    if told.pop("family", None) is None and len(packed(told["address"])) == 16:
        raise at(element, "family").error("is missing, and none is ipv4", "family='ipv6'")
    if "gateway" not in told:
        raise at(element, "gateway").error("is missing", "the address of who knows the way")
    if "netmask" in told:
        if "prefix" in told:
            raise at(element, "netmask").error("says what prefix= does", "one of the two")
        told["prefix"] = _bits(element, told.pop("netmask"))
    route: HostRoute = _made(HostRoute, told, element)
    return route


def _read_host(element: Element, path: str, reading: Reading, address: str | None = None) -> dict[str, Any]:
    """The attributes, with this *address* where it says none; it must be of the family that it says."""
    told = {"address": address} if address else {}
    told |= read_parts(element, HOST_IPS[path], reading)
    for child in element:
        reading.unknown("is no element that libvirt knows here", at(child))
    if (element.text or "").strip():
        reading.unknown("holds text that libvirt does not know", at(element, None, element.text))
    if "address" not in told:
        raise at(element, "address").error("is missing", "an address such as 192.168.125.1 or fd00::1")
    family = told.get("family")
    if family not in (None, "ipv4", "ipv6"):
        raise at(element, "family").error("is not allowed", "ipv4 or ipv6")
    if family and packed(told["address"]) and len(packed(told["address"])) != _BYTES[family]:
        raise at(element, "address").error(f"is no {family} address", f"one of that family, or {_OTHER[family]}")
    return told


_BYTES = {"ipv4": 4, "ipv6": 16}
_OTHER = {"ipv4": "family='ipv6'", "ipv6": "family='ipv4'"}


def _bits(element: Element, netmask: str) -> int:
    """How many bits of a network a mask such as 255.255.0.0 has."""
    mask = packed(netmask)
    hosts = ~int.from_bytes(mask, "big") & 0xFFFFFFFF
    if len(mask) != 4 or hosts & (hosts + 1):
        raise at(element, "netmask").error("is no mask of a network", "such as 255.255.0.0, for ipv4; or prefix=")
    return 32 - hosts.bit_length()


def read_bandwidth(element: Element, reading: Reading) -> Bandwidth | None:
    """What a <bandwidth> says; None where it asks for nothing."""
    read_parts(element, BANDWIDTH["bandwidth"], reading)
    rates: dict[str, Rate | None] = {}
    for child in element:
        tag = str(child.tag)
        if tag not in ("inbound", "outbound"):
            reading.unknown("is no element that libvirt knows here", at(child))
            continue
        if tag in rates:
            raise at(child).error("is given twice")
        rates[tag] = _rate(child, reading)
    return Bandwidth(**rates) if any(rates.values()) else None


def _rate(element: Element, reading: Reading) -> Rate | None:
    """One direction. Of what a guest gets an average of 0 is none, and what stands beside it says nothing."""
    inbound = element.tag == "inbound"
    if "floor" in element.attrib and not (inbound and reading.values.get("type") == "network"):
        expected = "<inbound> of type network, or no floor="
        raise at(element, "floor").error("is what a network guarantees its guest that it gets", expected)
    told = read_parts(element, BANDWIDTH[f"bandwidth/{element.tag}"], reading)
    if not told.keys() & {"average", "floor"}:
        raise at(element, "average").error("is missing", "average='KILOBYTES A SECOND'")
    if told.get("average") == 0 and not inbound:
        raise at(element, "average").error("is not allowed", "kB a second, 1 or more; without a limit no <outbound>")
    asked = {name: number for name, number in told.items() if number}
    if told.get("average") == 0:
        for name in sorted(asked.keys() - {"floor"}):
            reading.unknown("has no effect beside an average of 0", at(element, name))
            del asked[name]
    return _made(Rate, asked, element) if asked else None
