"""What has been read of one <interface>, where each value stood, and what is said of one that cannot be meant."""

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from vhostnet.errors import SpecError, VhostnetWarning
from vhostnet.spec.elements import ADDRESSES, BANDWIDTH, LATER_ADDRESSES, VLAN, ZPCI, Ignored, Known, Reader, plain
from vhostnet.spec.parts import (
    MAX_VLAN,
    Address,
    Bandwidth,
    CcwAddress,
    PciAddress,
    Rate,
    SpaprVioAddress,
    UsbAddress,
    Vlan,
    ZpciAddress,
)

if TYPE_CHECKING:
    from vhostnet.spec.document import Element
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


def warn(error: SpecError) -> None:
    warnings.warn(str(error), VhostnetWarning, stacklevel=3)


# --- elements that are one value -------------------------------------------------------------------------


def read_address(element: Element, reading: Reading) -> Address | None:
    """What an <address> says; None where it leaves the place open."""
    kind = element.get("type", "")
    if kind not in ADDRESSES:
        later = "is not supported yet: leave the address out"
        problem = later if kind in LATER_ADDRESSES else "is no address type"
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
            raise at(child, "id").error("is missing", f"a VLAN id, 1..{MAX_VLAN}")
        if not 1 <= told["id"] <= MAX_VLAN or told["id"] in tags:
            raise at(child, "id").error("is not allowed", f"a VLAN id, 1..{MAX_VLAN}, and each of them once")
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
