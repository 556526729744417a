"""Text -> InterfaceSpec.

``elements.py`` has the map. What libvirt knows and we do not do yet is refused by name, with what to do instead; what
libvirt ignores or does not know is refused (``strict``) or warned about; nothing is dropped in silence but what asks
for nothing. Values are validated by ``interface.py``; here they are only read, and an error gets its place.
"""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from vhostnet.checks import is_generated
from vhostnet.errors import SpecError
from vhostnet.spec.interface import SOURCE_TYPES, VIRTIO_MODELS, VIRTIO_ONLY, InterfaceSpec, is_model
from vhostnet.spec.mac import normalize
from vhostnet.spec.parts import CcwAddress, MmioAddress, PciAddress
from vhostnet.text.domain import Domain, attribute, read_domain
from vhostnet.text.elements import (
    ELSEWHERE,
    IGNORED_ATTRIBUTES,
    IGNORED_ELEMENTS,
    KNOWN,
    NEEDED,
    NEUTRAL,
    NEVER_EMPTY,
    SOURCES,
    SUPPORTED,
    TRUST,
    UNSUPPORTED_ATTRIBUTES,
    UNSUPPORTED_ELEMENTS,
    UNSUPPORTED_TYPES,
    WITHOUT_EFFECT,
    Known,
    read_sndbuf,
    yesno,
)
from vhostnet.text.reading import (
    Place,
    Reading,
    asks_for_nothing,
    at,
    missing_source,
    read,
    read_address,
    read_bandwidth,
    read_host_ip,
    read_host_route,
    read_port_profile,
    read_vlan,
    virtual_port,
    warn,
)
from vhostnet.values import replace

if TYPE_CHECKING:
    from vhostnet.spec.network import Network
    from vhostnet.text.document import Element as _Element
else:
    _Element = Any

MAX_INTERFACE: Final = 64 * 1024
MAX_DOMAIN: Final = 4 * 1024 * 1024

Networks = Mapping[str, "str | Network"]


# --- one <interface> -------------------------------------------------------------------------------------


def _walk(element: _Element, path: str, reading: Reading) -> None:
    """Take every attribute and child of *element*, whose place in the map is *path*."""
    noted = _NOTED if path == "source" and _is_running(element) and reading.values["type"] != "network" else ()
    for name, text in element.attrib.items():
        if name not in noted:
            _take(path, at(element, str(name), str(text)), reading)
    needed = NEEDED.get(path)
    if needed and needed not in element.attrib:
        raise at(element, needed).error("is missing", f"<{element.tag} {needed}=...>")
    text = (element.text or "").strip()
    if path == "tune/sndbuf":
        place = at(element, None, element.text)
        reading.put("sndbuf", read(place, read_sndbuf, reading), place)
    elif text:
        reading.unknown("holds text that libvirt does not know", at(element, None, text))
    seen: set[str] = set()
    for child in element:
        tag = str(child.tag)
        if child.tail and child.tail.strip():
            reading.unknown("holds text that libvirt does not know", at(element, None, child.tail.strip()))
        its_path = tag if path == "interface" else f"{path}/{tag}"
        if tag in seen and its_path not in reading.kept:
            raise at(child).error("is given twice")
        seen.add(tag)
        _child(child, its_path, reading)


# A NIC of a network is, while its domain runs, of the type that it has become there; libvirt notes what it was.
_NOTED: Final = ("network", "portgroup", "portid")


def _is_running(source: _Element) -> bool:
    return "network" in source.attrib and "portid" in source.attrib


def _child(element: _Element, path: str, reading: Reading) -> None:
    if path == "address":
        reading.put("address", read_address(element, reading), at(element))
        reading.places["address"] = at(element)  # there is one, even where it leaves the place open
    elif path == "bandwidth":
        reading.put("bandwidth", read_bandwidth(element, reading), at(element))
    elif path in reading.kept:
        reading.kept[path].append(element)
    elif path in reading.elsewhere and (path in NEVER_EMPTY or not asks_for_nothing(element, path)):
        if why := reading.elsewhere[path]:
            raise at(element).error(*why)
        reading.unknown(f"has no effect: libvirt does nothing with it for type {reading.values['type']}", at(element))
    elif path == "vlan":
        reading.put("vlan", read_vlan(element, reading), at(element))
    elif path == "virtualport":
        if not asks_for_nothing(element, path):  # though libvirt would have a type in it
            reading.put("_profile", read_port_profile(element, reading), at(element))
    elif path == "target" and element.get("managed") == "no":
        _unmanaged(element, reading)
    elif (path in KNOWN or path in reading.own) and path != "interface":  # which is the whole, and no part of itself
        _walk(element, path, reading)
    elif path in IGNORED_ELEMENTS:
        reading.unknown(f"has no effect: {IGNORED_ELEMENTS[path]}", at(element))
    elif path not in UNSUPPORTED_ELEMENTS:
        reading.unknown("is no element that libvirt knows here", at(element))
    elif path in NEVER_EMPTY or not asks_for_nothing(element, path):
        raise at(element).error(f"is not supported: {UNSUPPORTED_ELEMENTS[path]}")


def _take(path: str, place: Place, reading: Reading) -> None:
    name, text = str(place.attribute), place.text
    if text in NEUTRAL.get((path, name), ()):
        return
    own = reading.own.get(path, {}).get(name)
    ignored = IGNORED_ATTRIBUTES.get((path, name)) or (path == "source" and _other_source(name, reading))
    if ignored and not own:
        reading.unknown(f"has no effect: {ignored}", place)
    elif known := own or KNOWN.get(path, {}).get(name):
        field_name, reader = known
        reading.put(field_name, read(place, reader, reading), place)
    elif (path, name) in WITHOUT_EFFECT:
        words = WITHOUT_EFFECT[path, name]
        if words and text not in words:
            raise place.error("is not allowed", " or ".join(words))
    elif (path, name) in UNSUPPORTED_ATTRIBUTES:
        raise place.error(f"is not supported: {UNSUPPORTED_ATTRIBUTES[path, name]}")
    else:
        reading.unknown("is no attribute that libvirt knows here", place)


def _other_source(name: str, reading: Reading) -> str:
    """Why an attribute of <source> means nothing to this type; "" if it does, or to none."""
    kind = reading.values.get("type")
    if kind not in SOURCES or name in SOURCES[kind] or not any(name in names for names in SOURCES.values()):
        return ""
    return f"libvirt does not read it for type {kind}"


def _unmanaged(element: _Element, reading: Reading) -> None:
    """A TAP that is there: its name is its own, whatever it begins with."""
    if reading.values.get("type") != "ethernet":
        raise at(element, "managed").error("is for a TAP that is not of our making", "type ethernet, of a macvtap, too")
    for name, text in element.attrib.items():
        if name not in ("dev", "managed"):
            reading.unknown("is no attribute that libvirt knows here", at(element, str(name), str(text)))
    if not element.get("dev"):
        raise at(element, "dev").error("is missing", "the name of the TAP that is there, where managed is no")
    reading.put("managed", False, at(element, "managed"))
    reading.put("ifname", str(element.get("dev")), at(element, "dev"))


def _finish(element: _Element, reading: Reading, networks: Networks | None, domain: Domain) -> InterfaceSpec:
    """Apply what depends on more than one value, then let the spec validate them all."""
    values = reading.values
    _resolve(element, reading, networks, domain)
    if values.pop("_trusted", False) and values["type"] != "direct":
        reading.unknown(f"has no effect: {TRUST}", reading.places["_trusted"])
    _team(reading)
    _drop_driver(reading)
    _drop_vhost(reading, domain)
    _read_tap_ips(reading)
    if "_profile" in values:
        place = reading.places["_profile"]
        reading.put("virtualport", virtual_port(values.pop("_profile"), place, domain.uuid or None), place)
    if values.pop("_rom_enabled", True) is False:
        if "rom_bar" in values or "rom_file" in values:
            raise reading.places["_rom_enabled"].error("leaves no ROM that bar= or file= could mean")
        values["rom_file"] = ""
    if values["type"] in SOURCE_TYPES and "source" not in values:
        from vhostnet.text.tapless import finish  # NICs on a bridge need none of it

        if values["type"] == "vhostuser" and domain.shared is False:
            raise Place("interface", "type", at(element).line, "vhostuser").error(*_UNSHARED)
        finish(element, reading)
    if isinstance(values.get("address"), PciAddress):
        values["address"] = replace(values["address"], name=domain.buses.get(values["address"].bus))
    elif isinstance(values.get("address"), CcwAddress) and not domain.channels:
        raise reading.places["address"].error("of type ccw is for s390x, which alone has channels", "type='pci'")
    elif "address" not in reading.places and values.get("model", "virtio") == "virtio":
        values["address"] = domain.machine.virtio
    try:
        return InterfaceSpec(**values)
    except SpecError as error:
        name = error.attribute or ""
        missing = missing_source(element, name)  # the one thing a default cannot give
        place = reading.places.get(name) or reading.places.get(f"_{name}") or missing
        raise place.error(error.problem, error.expected) from None


_UNSHARED: Final = (
    "needs guest memory that is shared: the switch reads it",
    "<memoryBacking><access mode='shared'/></memoryBacking> in the domain",
)


def _read_tap_ips(reading: Reading) -> None:
    """<source><ip/><route/>: of the host's end, where the type has such."""
    for name, path, reader in (
        ("tap_ips", "source/ip", read_host_ip),
        ("tap_routes", "source/route", read_host_route),
    ):
        if found := reading.kept.get(path):
            reading.put(name, tuple([reader(element, reading) for element in found]), at(found[0]))


def _team(reading: Reading) -> None:
    """<teaming>: what is said of a pair must be said of the right half of it, and ours is the one that stays."""
    kind, pair = reading.values.pop("_teaming", None), reading.values.pop("_pair", None)
    if kind == "transient":
        problem = "is for the half that is a device of the host (type hostdev)"
        raise reading.places["_teaming"].error(problem, "persistent")
    if kind is None:
        if pair is not None:
            raise reading.places["_pair"].error("says nothing without type=", "type='persistent', and no persistent=")
        return
    if pair is not None:
        raise reading.places["_pair"].error("is for the transient half of the pair", "no persistent=")
    reading.put("teaming", kind, reading.places["_teaming"])


def _resolve(element: _Element, reading: Reading, networks: Networks | None, domain: Domain) -> None:
    """type='network': the caller says what the network is; of a running domain's the XML says the bridge."""
    values, name = reading.values, reading.values.get("network")
    group, running = values.pop("_portgroup", None), "bridge" in values
    if values.get("type") != "network" or name is None:
        return
    found = networks[name] if networks is not None and name in networks else None
    if found is None and networks is not None and not running:
        known = ", ".join(sorted(networks)) or "none"
        expected = f"one of those given (networks=, --network NAME=BRIDGE or FILE): {known}"
        raise reading.places["network"].error("stands for no bridge that is known", expected)
    if found is not None and not isinstance(found, str):
        from vhostnet.text.plug import plug  # who has bridges' names needs none of it

        plug(element, reading, found, group, Counter() if domain.devices is None else domain.devices)
    elif group is not None and not running:  # or what the group says stands in the XML
        problem = "is a group of a network whose own document is not given"
        raise reading.places["_portgroup"].error(problem, "networks={NAME: parse_network(...)}, or --network FILE")
    elif found is not None:
        values["bridge"] = found


_REFUSED_OFF_VIRTIO: Final = ("iommu", "ats", "packed", "page_per_vq", "teaming")  # libvirt drops the others


def _drop_driver(reading: Reading) -> None:
    """libvirt's parser drops the driver's options for a model that is none of virtio's; we say so."""
    model = reading.values.get("model", "virtio")
    if model in VIRTIO_MODELS or not is_model(model):  # what is no model at all is refused for that
        return
    for name in (*VIRTIO_ONLY, "queues", "vhost", "vhost_path"):
        if name in _REFUSED_OFF_VIRTIO and name in reading.values:
            raise reading.places[name].error(f"is only for virtio models, and this is {model}")
        reading.drop(name, f"on model {model}")


def _drop_vhost(reading: Reading, domain: Domain) -> None:
    """libvirt opens vhost-net for domains of type kvm alone."""
    if domain.type == "kvm":
        return
    if reading.values.get("vhost") == "require":
        reading.drop("vhost", f"in a domain of type {domain.type!r}: libvirt uses vhost-net for type kvm alone")
    if reading.values.get("model", "virtio") in VIRTIO_MODELS:
        reading.values["vhost"] = "off"


def _interface(element: _Element, networks: Networks | None, strict: bool, domain: Domain) -> InterfaceSpec:
    kind = _type(element)
    if kind in UNSUPPORTED_TYPES:
        place = Place("interface", "type", at(element).line, kind)
        raise place.error(f"is not supported: {UNSUPPORTED_TYPES[kind]}", SUPPORTED)
    if kind in SOURCE_TYPES:
        from vhostnet.text.tapless import begin

        reading = begin(element, kind, strict)
    else:
        many = _HOST_IPS if kind == "ethernet" else ()
        reading = Reading(strict, _OF_A_NETWORK if kind == "network" else {}, ELSEWHERE.get(kind, {}), many)
    _walk(element, "interface", reading)
    if "model" not in reading.values and not domain.machine.takes_virtio and kind != "vhostuser":
        problem = "is missing: virtio is taken, where libvirt on x86 would take rtl8139"
        warn(Place("model", "type", at(element).line, None).error(problem))
    return _finish(element, reading, networks, domain)


_HOST_IPS: Final = ("source/ip", "source/route")
_OF_A_NETWORK: Final[Known] = {"interface": {"trustGuestRxFilters": ("_trusted", yesno)}}  # it may lead to a macvtap


def _type(element: _Element) -> str:
    return element.get("type", "user")  # libvirt's default


# --- documents -------------------------------------------------------------------------------------------


def _root(text: str | bytes, limit: int) -> _Element:
    from vhostnet.text.document import read_document  # a parser takes its time, and who has specs needs none

    return read_document(text, limit)


def parse_interface(xml: str | bytes, *, networks: Networks | None = None, strict: bool = False) -> InterfaceSpec:
    """One libvirt ``<interface>`` (at most 64 KiB) as an InterfaceSpec.

    *networks* maps the names of ``type='network'`` to bridges, or to Networks (``parse_network``), which say more;
    without it such a NIC parses but cannot be opened. What libvirt knows and this package does not do yet raises
    SpecError; what libvirt ignores or does not know is a VhostnetWarning, or with *strict* a SpecError. Errors name
    element, attribute, line and value.
    """
    root = _root(xml, MAX_INTERFACE)
    if root.tag != "interface":
        raise at(root).error("is not an interface", "<interface>")
    return _interface(root, networks, strict, Domain())


def parse_domain(
    xml: str | bytes, *, networks: Networks | None = None, strict: bool = False, nic: int | str | None = None
) -> tuple[InterfaceSpec, ...]:
    """Every ``<interface>`` of a ``<domain>`` or ``<devices>`` document (at most 4 MiB), in its order.

    Of the rest of the domain is read what bears on the NICs: its type (only kvm has vhost-net), architecture and
    machine (they say where a NIC goes and what PCI bus 0 is called), and ``<os><boot dev='network'/>`` (it gives the
    first NIC its boot order). NICs of types that are not supported are left out with a VhostnetWarning, as long as
    there are others. *nic* picks one, by its number from 0 on, its MAC or its alias, and the others are not read.
    Errors as for parse_interface.
    """
    return _all_of(_root(xml, MAX_DOMAIN), networks, strict, nic)


def parse_any(
    xml: str | bytes, *, networks: Networks | None = None, strict: bool = False, nic: int | str | None = None
) -> tuple[InterfaceSpec, ...]:
    """Whichever of the two the document is: its root element says."""
    root = _root(xml, MAX_DOMAIN)
    if root.tag != "interface":
        return _all_of(root, networks, strict, nic)
    if nic is not None:
        _pick([root], nic)
    return (parse_interface(xml, networks=networks, strict=strict),)


def _all_of(
    root: _Element, networks: Networks | None, strict: bool, nic: int | str | None
) -> tuple[InterfaceSpec, ...]:
    if root.tag not in ("domain", "devices"):
        raise at(root).error("is not a domain", "<domain> or <devices>")
    devices = root if root.tag == "devices" else root.find("devices")
    every = [] if devices is None else devices.findall("interface")
    elements = _ours(every) if nic is None else [_pick(every, nic)]
    domain = read_domain(root, devices)
    specs = [_interface(element, networks, strict, domain) for element in elements]
    _check_unique(elements, specs)
    boot = root.findall("os/boot")
    if boot and any(spec.boot_order for spec in specs):
        raise at(boot[0], "dev").error("excludes <boot order=> of a NIC, and one has it", "one of the two ways")
    order = [device.get("dev") for device in boot]
    if specs and elements[0] is every[0] and "network" in order:
        specs[0] = replace(specs[0], boot_order=order.index("network") + 1)
    return tuple(specs)


# --- which of a domain's NICs, and what the domain decides for them --------------------------------------


def _ours(elements: list[_Element]) -> list[_Element]:
    """Those whose type is supported; what is left out is said."""
    others = [element for element in elements if _type(element) in UNSUPPORTED_TYPES]
    ours = [element for element in elements if _type(element) not in UNSUPPORTED_TYPES]
    for element in others if ours else []:
        kind = _type(element)
        problem = f"is left out: this type is not supported: {UNSUPPORTED_TYPES[kind]}"
        warn(Place("interface", "type", at(element).line, kind).error(problem))
    return ours or others  # where there is no other, it is an error


def _pick(elements: list[_Element], nic: int | str) -> _Element:
    """The one that is meant: by its number, its MAC or its alias."""
    if isinstance(nic, int):
        found = [element for number, element in enumerate(elements) if number == nic]
    elif mac := normalize(nic):
        found = [element for element in elements if _mac(element) == mac]
    else:
        found = [element for element in elements if _alias(element) == nic]
    if len(found) != 1:
        there = ", ".join(f"{number} ({_mac(element)})" for number, element in enumerate(elements))
        problem = "is more than one of the document's NICs" if found else "is none of the document's NICs"
        expected = f"a number, MAC or alias of one: {there}" if there else "a document with NICs"
        raise SpecError(problem, attribute="nic", value=nic, expected=expected)
    return found[0]


def _mac(element: _Element) -> str | None:
    return normalize(attribute(element, "mac", "address"))


def _alias(element: _Element) -> str:
    return attribute(element, "alias", "name")


def _check_unique(elements: list[_Element], specs: list[InterfaceSpec]) -> None:
    """What only one device of a domain can have: QEMU would refuse the second."""
    for name, tag in (("alias", "alias"), ("boot_order", "boot"), ("acpi_index", "acpi"), ("address", "address")):
        seen: set[object] = set()
        for element, spec in zip(elements, specs, strict=True):
            value = getattr(spec, name)
            if value in seen and not (value in (MmioAddress(), CcwAddress()) or is_generated(value)):
                found = element.find(tag)
                raise at(element if found is None else found).error("is another NIC's already")
            if value is not None:
                seen.add(value)
