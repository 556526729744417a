"""Text -> InterfaceSpec. The only user of lxml.

The map below says which attribute of which element fills which field. What libvirt knows and we do not
do yet is refused by name; what libvirt does not know is refused (``strict``) or warned about; nothing is
dropped in silence. Values are validated by ``spec.py``; here they are only read.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

from vhostnet.errors import SpecError, VhostnetWarning
from vhostnet.spec import VIRTIO_MODELS, VIRTIO_ONLY, CcwAddress, InterfaceSpec, MmioAddress, PciAddress

if TYPE_CHECKING:
    from lxml.etree import _Element

MAX_INTERFACE: Final = 64 * 1024
MAX_DOMAIN: Final = 4 * 1024 * 1024

Networks = Mapping[str, str]
Reader = Callable[[str], Any]  # raises ValueError with what would have been right


# --- reading one value -----------------------------------------------------------------------------------

_DIGITS = re.compile(r"[0-9]{1,20}", re.ASCII)
_NUMBER = re.compile(r"0[xX][0-9A-Fa-f]{1,8}|0|[1-9][0-9]{0,9}", re.ASCII)


def _str(text: str) -> str:
    return text


def _uint(text: str) -> int:
    if not _DIGITS.fullmatch(text):  # int() would take other scripts' digits, "1_000", " 4 " and "+4" as well
        raise ValueError("a whole number in decimal digits")
    return int(text)


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError("a whole number, decimal or 0x and hexadecimal")
    return int(text, 0)


def _word(**words: Any) -> Reader:
    def read(text: str) -> Any:
        if text not in words:
            raise ValueError(" or ".join(words))
        return words[text]

    return read


_onoff = _word(on=True, off=False)
_yesno = _word(yes=True, no=False)
_GENERATED = re.compile(r"(vnet|macvtap|macvlan)[0-9]+", re.ASCII)


def _ifname(text: str) -> str | None:
    """libvirt's own prefixes mark a generated name: it is generated anew."""
    if not text.startswith(("vnet", "macvtap", "macvlan")):
        return text
    if not _GENERATED.fullmatch(text) and text != "vnet%d":
        warnings.warn(
            f"<target dev={text!r}>: libvirt keeps this prefix for names it generates; another name will be generated",
            VhostnetWarning,
            stacklevel=2,
        )
    return None


def _alias(text: str) -> str:
    """A user's alias (``ua-``), or the one a running libvirt domain shows (``net0``)."""
    if not text.startswith("ua-") and not re.fullmatch(r"net[0-9]+", text, re.ASCII):
        raise ValueError("a user alias, which starts with ua-, or netN")
    return text


# --- the map ---------------------------------------------------------------------------------------------

# element -> attribute -> (field, reader). Names that start with "_" are not fields: _finish() uses them.
_KNOWN: Final[dict[str, dict[str, tuple[str, Reader]]]] = {
    "interface": {"type": ("type", _str)},
    "mac": {"address": ("mac", _str)},
    "model": {"type": ("model", _str)},
    "source": {"bridge": ("bridge", _str), "network": ("network", _str)},
    "target": {"dev": ("ifname", _ifname)},
    "driver": {
        "name": ("vhost", _word(vhost="require", qemu="off")),
        "queues": ("queues", _uint),
        "rx_queue_size": ("rx_queue_size", _uint),
        "tx_queue_size": ("tx_queue_size", _uint),
        "txmode": ("txmode", _word(iothread="iothread", timer="timer")),
        "ioeventfd": ("ioeventfd", _onoff),
        "event_idx": ("event_idx", _onoff),
        "iommu": ("iommu", _onoff),
        "ats": ("ats", _onoff),
        "packed": ("packed", _onoff),
        "page_per_vq": ("page_per_vq", _onoff),
        "rss": ("rss", _onoff),
        "rss_hash_report": ("rss_hash_report", _onoff),
    },
    "driver/host": {
        name: (f"host_{name}", _onoff) for name in ("csum", "gso", "tso4", "tso6", "ecn", "ufo", "mrg_rxbuf")
    },
    "driver/guest": {name: (f"guest_{name}", _onoff) for name in ("csum", "tso4", "tso6", "ecn", "ufo")},
    "backend": {"tap": ("tap_path", _str), "vhost": ("vhost_path", _str)},
    "tune": {},
    "tune/sndbuf": {},
    "mtu": {"size": ("mtu", _uint)},
    "link": {"state": ("link_state", _word(up="up", down="down"))},
    "alias": {"name": ("alias", _alias)},
    "boot": {"order": ("boot_order", _uint)},
    "rom": {"enabled": ("_rom_enabled", _yesno), "bar": ("rom_bar", _onoff), "file": ("rom_file", _str)},
    "acpi": {"index": ("acpi_index", _uint)},
}

# Attributes with one value that asks for nothing: (value, what the other values would need).
_NEUTRAL: Final[dict[tuple[str, str], str]] = {
    ("interface", "trustGuestRxFilters"): "no",
    ("target", "managed"): "yes",
    ("source", "macTableManager"): "kernel",
}
# Read by libvirt's QEMU driver and of no effect there, or written by it about a running domain.
_WITHOUT_EFFECT: Final = frozenset(
    (("mac", "type"), ("mac", "check"), ("mac", "currentAddress"), ("source", "portid"), ("address", "uuid"))
)
_LATER_TYPES: Final = frozenset(
    ("user", "vhostuser", "server", "client", "mcast", "internal", "direct", "hostdev", "udp", "vdpa", "null", "vds")
)
_LATER_ELEMENTS: Final = frozenset(
    ("actual", "backenddomain", "bandwidth", "coalesce", "downscript", "filterref", "guest", "ip", "port")
    + ("portForward", "route", "script", "source/address", "source/ip", "source/local", "source/reconnect")
    + ("source/route", "source/slirp", "teaming", "virtualport", "vlan", "address/zpci")
)
_LATER_ATTRIBUTES: Final = frozenset(
    (("acpi", "nodeset"), ("backend", "fqdn"), ("backend", "hostname"), ("backend", "logFile"), ("backend", "type"))
    + (("boot", "loadparm"), ("interface", "trustGuestRxFilters"), ("source", "dev"), ("source", "macTableManager"))
    + (("source", "mode"), ("source", "portgroup"), ("source", "path"), ("source", "type"), ("target", "managed"))
)
_LATER_ADDRESSES: Final = (
    "ccid",
    "dimm",
    "drive",
    "isa",
    "spapr-vio",
    "unassigned",
    "usb",
    "virtio-s390",
    "virtio-serial",
)
_ADDRESSES: Final[dict[str, tuple[type[Any], dict[str, Reader]]]] = {
    "pci": (
        PciAddress,
        {"domain": _number, "bus": _number, "slot": _number, "function": _number, "multifunction": _onoff},
    ),
    "ccw": (CcwAddress, {"cssid": _number, "ssid": _number, "devno": _number}),
    "virtio-mmio": (MmioAddress, {}),
}


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
    text = (element.text or "").strip()
    if path == "tune/sndbuf":
        place = _at(element, None, text)
        reading.put("sndbuf", _read(place, _uint), place)
    elif text:
        reading.unknown("holds text that libvirt does not know", _at(element, None, text))
    seen: set[str] = set()
    for child in element:
        tag = str(child.tag)
        if tag in seen:
            raise _at(child).error("is given twice")
        seen.add(tag)
        _child(child, tag if path == "interface" else f"{path}/{tag}", reading)


def _child(element: _Element, path: str, reading: _Reading) -> None:
    if path == "address":
        reading.put("address", _address(element, reading), _at(element))
    elif path in _KNOWN:
        _walk(element, path, reading)
    elif path in _LATER_ELEMENTS:
        raise _at(element).error("is not supported yet")
    else:
        reading.unknown("is no element that libvirt knows here", _at(element))


def _take(path: str, place: _Place, reading: _Reading) -> None:
    name, text = str(place.attribute), place.text
    known = _KNOWN[path].get(name)
    if known:
        field_name, reader = known
        reading.put(field_name, _read(place, reader), place)
    elif (path, name) in _WITHOUT_EFFECT or _NEUTRAL.get((path, name)) == text:
        pass
    elif (path, name) in _LATER_ATTRIBUTES:
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
    if kind not in _ADDRESSES:
        problem = "is not supported yet" if kind in _LATER_ADDRESSES else "is no address type"
        raise _at(element, "type").error(problem, "pci, ccw or virtio-mmio")
    make, readers = _ADDRESSES[kind]
    parts: dict[str, Any] = {}
    for name, text in element.attrib.items():
        place = _at(element, str(name), str(text))
        if name in readers:
            parts[str(name)] = _read(place, readers[str(name)])
        elif name != "type" and ("address", name) not in _WITHOUT_EFFECT:
            reading.unknown("is no attribute that libvirt knows here", place)
    for child in element:
        _child(child, f"address/{child.tag}", reading)
    if parts.pop("domain", 0):
        raise _at(element, "domain").error("is no PCI domain of QEMU's", "0")
    if make is PciAddress and not any(parts.values()):
        return None  # as libvirt: an address of nothing but zeros is still to be assigned
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


def _drop_driver(reading: _Reading) -> None:
    """libvirt's parser drops the driver's options for a model that is none of virtio's; we say so."""
    model = reading.values.get("model", "virtio")
    if model in VIRTIO_MODELS:
        return
    for name in (*VIRTIO_ONLY, "queues", "vhost"):
        if name in reading.values:
            reading.unknown(f"has no effect on model {model}", reading.places[name])
            del reading.values[name]


def _interface(element: _Element, networks: Networks | None, strict: bool, root_bus: str = "pci.0") -> InterfaceSpec:
    kind = element.get("type", "user")  # libvirt's default
    if kind in _LATER_TYPES:
        place = _Place("interface", "type", _at(element).line, kind)
        raise place.error("is not supported yet", "bridge, ethernet or network")
    reading = _Reading(strict)
    _walk(element, "interface", reading)
    return _finish(element, reading, networks, root_bus)


# --- documents -------------------------------------------------------------------------------------------


def _root(text: str | bytes, limit: int) -> _Element:
    from lxml import etree

    if not isinstance(text, (str, bytes)):
        raise TypeError(f"XML is str or bytes, not {type(text).__name__}")
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(raw) > limit:
        raise SpecError(f"the document has {len(raw)} bytes", expected=f"at most {limit}")
    parser = etree.XMLParser(
        encoding="utf-8" if isinstance(text, str) else None,
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
    boot = root.findall("os/boot")
    order = [device.get("dev") for device in boot]
    if specs and "network" in order:
        if any(spec.boot_order for spec in specs):
            place = _at(boot[order.index("network")], "dev")
            raise place.error("excludes <boot order=> of a NIC, and one has it", "one of the two ways")
        specs[0] = replace(specs[0], boot_order=order.index("network") + 1)
    return tuple(specs)


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
