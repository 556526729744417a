"""Text -> InterfaceSpec. The only user of lxml.

``elements.py`` has the map. What libvirt knows and we do not do yet is refused by name; what libvirt does not
know is refused (``strict``) or warned about; nothing is dropped in silence. Values are validated by
``spec.py``; here they are only read, and an error gets its place.
"""

from __future__ import annotations

import codecs
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

from vhostnet.elements import (
    ADDRESSES,
    KNOWN,
    LATER_ADDRESSES,
    LATER_ATTRIBUTES,
    LATER_ELEMENTS,
    LATER_TYPES,
    NEEDED,
    NEUTRAL,
    WITHOUT_EFFECT,
    Reader,
    whole,
)
from vhostnet.errors import SpecError, VhostnetWarning
from vhostnet.spec import MODELS, VIRTIO_MODELS, VIRTIO_ONLY, CcwAddress, InterfaceSpec, MmioAddress, PciAddress

if TYPE_CHECKING:
    from lxml.etree import _Element

MAX_INTERFACE: Final = 64 * 1024
MAX_DOMAIN: Final = 4 * 1024 * 1024
MAX_NODES: Final = 64 * 1024  # tags and attributes; each takes 200 bytes, and as few as four in the text

Networks = Mapping[str, str]


# --- one <interface> -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
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


def _at(element: _Element, attribute: str | None = None, text: str | None = None) -> _Place:
    if attribute and text is None:
        text = element.get(attribute)
    return _Place(str(element.tag), attribute, cast(int, element.sourceline or 0), text)


@dataclass
class _Reading:
    """What has been read of one <interface>, and where each value stood."""

    strict: bool
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, _Place] = field(default_factory=dict)

    def put(self, name: str, value: Any, place: _Place) -> None:
        self.values[name] = value
        self.places[name] = place

    def unknown(self, problem: str, place: _Place) -> None:
        error = place.error(problem)
        if self.strict:
            raise error
        warnings.warn(str(error), VhostnetWarning, stacklevel=2)


def _walk(element: _Element, path: str, reading: _Reading) -> None:
    """Take every attribute and child of *element*, whose place in the map is *path*."""
    for name, text in element.attrib.items():
        _take(path, _at(element, str(name), str(text)), reading)
    needed = NEEDED.get(path)
    if needed and needed not in element.attrib:
        raise _at(element, needed).error("is missing", f"<{element.tag} {needed}=...>")
    text = (element.text or "").strip()
    if path == "tune/sndbuf":
        place = _at(element, None, element.text)
        reading.put("sndbuf", _read(place, whole), place)
    elif text:
        reading.unknown("holds text that libvirt does not know", _at(element, None, text))
    seen: set[str] = set()
    for child in element:
        tag = str(child.tag)
        if child.tail and child.tail.strip():
            reading.unknown("holds text that libvirt does not know", _at(element, None, child.tail.strip()))
        if tag in seen:
            raise _at(child).error("is given twice")
        seen.add(tag)
        _child(child, tag if path == "interface" else f"{path}/{tag}", reading)


def _child(element: _Element, path: str, reading: _Reading) -> None:
    if path == "address":
        reading.put("address", _address(element, reading), _at(element))
    elif path in KNOWN:
        _walk(element, path, reading)
    elif path in LATER_ELEMENTS:
        raise _at(element).error("is not supported yet")
    else:
        reading.unknown("is no element that libvirt knows here", _at(element))


def _take(path: str, place: _Place, reading: _Reading) -> None:
    name, text = str(place.attribute), place.text
    known = KNOWN[path].get(name)
    if known:
        field_name, reader = known
        reading.put(field_name, _read(place, reader), place)
    elif NEUTRAL.get((path, name)) == text:
        pass
    elif (path, name) in WITHOUT_EFFECT:
        words = WITHOUT_EFFECT[path, name]
        if words and text not in words:
            raise place.error("is not allowed", " or ".join(words))
    elif (path, name) in LATER_ATTRIBUTES:
        raise place.error("is not supported yet")
    else:
        reading.unknown("is no attribute that libvirt knows here", place)


def _read(place: _Place, reader: Reader) -> Any:
    try:
        return reader(place.text or "")
    except ValueError as error:
        raise place.error("is not readable", str(error)) from None


def _address(element: _Element, reading: _Reading) -> PciAddress | CcwAddress | MmioAddress | None:
    kind = element.get("type", "")
    if kind not in ADDRESSES:
        problem = "is not supported yet" if kind in LATER_ADDRESSES else "is no address type"
        raise _at(element, "type").error(problem, "pci, ccw or virtio-mmio")
    make, readers = ADDRESSES[kind]
    parts: dict[str, Any] = {}
    for name, text in element.attrib.items():
        place = _at(element, str(name), str(text))
        if name in readers:
            parts[str(name)] = _read(place, readers[str(name)])
        elif name != "type":
            reading.unknown("is no attribute that libvirt knows here", place)
    for child in element:
        _child(child, f"address/{child.tag}", reading)
    if parts.pop("domain", 0):
        raise _at(element, "domain").error("is no PCI domain of QEMU's", "0")
    if make is PciAddress and not (parts.get("bus") or parts.get("slot")):
        return None  # as libvirt: bus 0, slot 0 is still to be assigned, whatever else stands there
    if make is CcwAddress and parts and len(parts) < len(readers):
        raise _at(element).error("is a partial address", "cssid, ssid and devno, or none of them")
    try:
        address: PciAddress | CcwAddress | MmioAddress = make(**parts)
    except SpecError as error:
        raise _at(element, error.attribute).error(error.problem, error.expected) from None
    return address


def _finish(element: _Element, reading: _Reading, networks: Networks | None, root_bus: str) -> InterfaceSpec:
    """Apply what depends on more than one value, then let the spec validate them all."""
    values = reading.values
    _resolve(reading, networks)
    _drop_driver(reading)
    if values.pop("_rom_enabled", True) is False:
        if "rom_bar" in values or "rom_file" in values:
            raise reading.places["_rom_enabled"].error("leaves no ROM that bar= or file= could mean")
        values["rom_file"] = ""
    if isinstance(values.get("address"), PciAddress):
        values["address"] = replace(values["address"], root=root_bus)
    try:
        return InterfaceSpec(**values)
    except SpecError as error:
        name = error.attribute or ""
        missing = _Place("source", name, _at(element).line, None)  # the one thing a default cannot give
        raise reading.places.get(name, missing).error(error.problem, error.expected) from None


def _resolve(reading: _Reading, networks: Networks | None) -> None:
    """type='network': the caller's mapping says the bridge; so does the XML of a running domain."""
    values = reading.values
    name = values.get("network")
    if values.get("type") != "network" or networks is None or name is None:
        return
    if name in networks:
        values["bridge"] = networks[name]
    elif "bridge" not in values:
        known = ", ".join(sorted(networks)) or "none"
        raise reading.places["network"].error(
            "stands for no bridge that is known", f"one of those given (networks=, --network NAME=BRIDGE): {known}"
        )


_REFUSED_OFF_VIRTIO: Final = ("iommu", "ats", "packed", "page_per_vq")  # libvirt drops the others


def _drop_driver(reading: _Reading) -> None:
    """libvirt's parser drops the driver's options for a model that is none of virtio's; we say so."""
    model = reading.values.get("model", "virtio")
    if model in VIRTIO_MODELS or model not in MODELS:  # one that is none is refused for itself
        return
    for name in (*VIRTIO_ONLY, "queues", "vhost"):
        if name in _REFUSED_OFF_VIRTIO and name in reading.values:
            raise reading.places[name].error(f"is only for virtio models, and this is {model}")
        if name in reading.values:
            reading.unknown(f"has no effect on model {model}", reading.places[name])
            del reading.values[name]


def _interface(element: _Element, networks: Networks | None, strict: bool, root_bus: str = "pci.0") -> InterfaceSpec:
    kind = element.get("type", "user")  # libvirt's default
    if kind in LATER_TYPES:
        place = _Place("interface", "type", _at(element).line, kind)
        raise place.error("is not supported yet", "bridge, ethernet or network")
    reading = _Reading(strict)
    _walk(element, "interface", reading)
    if "model" not in reading.values:
        problem = "is missing: virtio is taken, where libvirt on x86 would take rtl8139"
        warnings.warn(
            str(_Place("model", "type", _at(element).line, None).error(problem)), VhostnetWarning, stacklevel=2
        )
    return _finish(element, reading, networks, root_bus)


# --- documents -------------------------------------------------------------------------------------------


# What a document's bytes are, by their byte order mark, and what it may call that.
_UTF_8: Final = ("utf-8", ("utf-8",))
_UTF_16: Final = {
    codecs.BOM_UTF16_LE: ("utf-16-le", ("utf-16", "utf-16le")),
    codecs.BOM_UTF16_BE: ("utf-16-be", ("utf-16", "utf-16be")),
}
_DECLARED = re.compile(r"""\ufeff?<\?xml[^>]*?\sencoding\s*=\s*["']([^"']*)""")


def _decode(raw: bytes) -> str:
    """UTF-8, as libvirt writes it, or UTF-16: in others (UTF-7, ...) tags hide from whoever looks at the bytes."""
    encoding, names = _UTF_16.get(raw[:2], _UTF_8)
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise SpecError(f"not well-formed XML: no {encoding} at byte {error.start}") from None
    declared = _DECLARED.match(text)
    allowed = (*names, "us-ascii", "ascii") if text.isascii() else names
    if declared and declared[1].lower() not in allowed:
        raise SpecError("is not this document's", attribute="encoding", value=declared[1], expected=" or ".join(names))
    return text


def _root(text: str | bytes, limit: int) -> _Element:
    from lxml import etree

    if not isinstance(text, (str, bytes)):
        raise TypeError(f"XML is str or bytes, not {type(text).__name__}")
    raw = (text if isinstance(text, str) else _decode(text)).encode("utf-8", "surrogatepass")
    nodes = raw.count(b"<") + raw.count(b"=")
    for count, most, what in ((len(raw), limit, "bytes"), (nodes, MAX_NODES, "tags and attributes")):
        if count > most:
            raise SpecError(f"the document has {count} {what}", expected=f"at most {most}")
    parser = etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(raw, parser)
    except etree.XMLSyntaxError as error:
        raise SpecError(f"not well-formed XML: {error.msg!r}", line=error.lineno) from None
    # Internal entities expand in attribute values whatever the parser is told: no DOCTYPE at all.
    docinfo: Any = root.getroottree().docinfo
    if docinfo.doctype:
        raise SpecError("a DOCTYPE is not allowed", line=1, expected="plain XML without a DTD")
    return root


def parse_interface(xml: str | bytes, *, networks: Networks | None = None, strict: bool = False) -> InterfaceSpec:
    """One libvirt ``<interface>`` (at most 64 KiB) as an InterfaceSpec.

    *networks* maps the names of ``type='network'`` to bridges; without it such a NIC parses but cannot be
    opened. What libvirt knows and this package does not do yet raises SpecError; what libvirt does not
    know either is a VhostnetWarning, or with *strict* a SpecError. Errors name element, attribute, line
    and value.
    """
    root = _root(xml, MAX_INTERFACE)
    if root.tag != "interface":
        raise _at(root).error("is not an interface", "<interface>")
    return _interface(root, networks, strict)


def parse_domain(
    xml: str | bytes, *, networks: Networks | None = None, strict: bool = False
) -> tuple[InterfaceSpec, ...]:
    """Every ``<interface>`` of a ``<domain>`` or ``<devices>`` document (at most 4 MiB), in its order.

    The rest of the domain is not looked at, but for what bears on the NICs: the machine type (it names PCI
    bus 0) and ``<os><boot dev='network'/>`` (it gives the first NIC its boot order). Errors as for
    parse_interface.
    """
    root = _root(xml, MAX_DOMAIN)
    if root.tag not in ("domain", "devices"):
        raise _at(root).error("is not a domain", "<domain> or <devices>")
    devices = root if root.tag == "devices" else root.find("devices")
    elements = [] if devices is None else devices.findall("interface")
    specs = [_interface(element, networks, strict, _root_bus(root)) for element in elements]
    _check_unique(elements, specs)
    boot = root.findall("os/boot")
    if boot and any(spec.boot_order for spec in specs):
        raise _at(boot[0], "dev").error("excludes <boot order=> of a NIC, and one has it", "one of the two ways")
    order = [device.get("dev") for device in boot]
    if specs and "network" in order:
        specs[0] = replace(specs[0], boot_order=order.index("network") + 1)
    return tuple(specs)


def _check_unique(elements: list[_Element], specs: list[InterfaceSpec]) -> None:
    """What only one device of a domain can have: QEMU would refuse the second."""
    for name, tag in (("alias", "alias"), ("boot_order", "boot"), ("address", "address")):
        seen: set[object] = set()
        for element, spec in zip(elements, specs, strict=True):
            value = getattr(spec, name)
            if value in seen and value not in (MmioAddress(), CcwAddress()):
                found = element.find(tag)
                raise _at(element if found is None else found).error("is another NIC's already")
            if value is not None:
                seen.add(value)


def parse_any(xml: str | bytes, *, networks: Networks | None = None, strict: bool = False) -> tuple[InterfaceSpec, ...]:
    """Whichever of the two the document is: its root element says."""
    root = _root(xml, MAX_DOMAIN)
    if root.tag == "interface":
        return (parse_interface(xml, networks=networks, strict=strict),)
    return parse_domain(xml, networks=networks, strict=strict)


def _root_bus(root: _Element) -> str:
    """The name of PCI bus 0: i440fx calls it pci.0, q35 and Arm's virt pcie.0."""
    kind = root.find("os/type")
    machine = "" if kind is None else kind.get("machine", "")
    return "pcie.0" if "q35" in machine or machine.startswith("virt") else "pci.0"
