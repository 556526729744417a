"""The map of <interface> for NICs on no bridge: what only they have, what they cannot have, and where they lead to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from vhostnet.errors import SpecError
from vhostnet.spec.interface import TAP_TYPES
from vhostnet.spec.parts import Source, packed
from vhostnet.spec.sources import (
    LENGTHS,
    MODES,
    DirectSource,
    PasstSource,
    SocketSource,
    UserSource,
    VdpaSource,
    VhostUserSource,
    canonical,
)
from vhostnet.text.elements import (
    ELSEWHERE,
    PORT_FORWARD,
    REFUSED,
    Known,
    device_path,
    plain,
    whole,
    word,
    yesno,
)
from vhostnet.text.reading import Elsewhere, Place, Reading, at, missing_source, read, read_parts

if TYPE_CHECKING:
    from vhostnet.text.document import Element

# As elements.KNOWN, by type; every name begins with "_", since none is a field: finish() uses them.
_SOCKET: Final[Known] = {"source": {"address": ("_address", plain), "port": ("_port", whole)}}
OWN: Final[dict[str, Known]] = {
    "direct": {
        "interface": {"trustGuestRxFilters": ("_trust", yesno)},
        "source": {"dev": ("_dev", plain), "mode": ("_mode", word(**{mode: mode for mode in MODES}))},
    },
    "user": {},
    "vhostuser": {
        "source": {
            "type": ("_type", word(unix="unix")),
            "path": ("_path", plain),
            "mode": ("_server", word(client=False, server=True)),
        },
        "source/reconnect": {"enabled": ("_enabled", yesno), "timeout": ("_reconnect", whole)},
    },
    "vdpa": {"source": {"dev": ("_dev", device_path)}},
    "udp": {**_SOCKET, "source/local": {"address": ("_local_address", plain), "port": ("_local_port", whole)}},
    "mcast": _SOCKET,
    "server": _SOCKET,
    "client": _SOCKET,
}

# With <backend type='passt'>, by type. The options are passt's own.
_FOR_PASST: Final = {
    "_log": "--log-file",
    "_hostname": "--hostname",
    "_fqdn": "--fqdn",
    "_dev": "--interface",
}
_BACKEND: Final = {
    "type": ("_passt", word(passt=True)),
    "logFile": ("_log", plain),
    "hostname": ("_hostname", plain),
    "fqdn": ("_fqdn", plain),
}
PASST: Final[dict[str, Known]] = {
    "user": {"backend": _BACKEND, "source": {"dev": ("_dev", plain)}},
    "vhostuser": {
        "backend": _BACKEND,
        "source": {
            "dev": ("_dev", plain),
            "type": ("_type", word(unix=None)),
            "path": ("_path", plain),
            "mode": ("_server", word(client=None, server=True)),
        },
        "source/reconnect": OWN["vhostuser"]["source/reconnect"],
    },
}

# As elements.ELSEWHERE, and what else only those with a TAP have.
_BRIDGED: Final = (REFUSED, "type bridge or network")
_TAP: Final = (REFUSED, "type bridge, network or ethernet")
_ELSEWHERE: Final = {
    **ELSEWHERE["user"],
    "coalesce": _BRIDGED,
    "filterref": _BRIDGED,
    "port": _BRIDGED,
    "vlan": _BRIDGED,
    "virtualport": _BRIDGED,
}
_DIRECT: Final[Elsewhere] = {
    **ELSEWHERE["direct"],
    "filterref": _TAP,
    "vlan": (
        "is not supported: libvirt has it for passthrough on a VF alone",
        "no <vlan>: ip link set PF vf NUMBER vlan ID, or a VLAN device of its own as the parent",
    ),
    "virtualport": (
        "is not supported: it would be lldpad's (802.1Qbg) or the card's (802.1Qbh)",
        "no <virtualport>; where the switch needs one, lldptool gives it to the parent",
    ),
}
_MANY: Final = {"user": ("ip",)}  # elements that may come more than once


def begin(element: Element, kind: str, strict: bool) -> Reading:
    """What a NIC of type *kind* is read into; with passt what is in it has another meaning."""
    elsewhere = _DIRECT if kind == "direct" else _ELSEWHERE
    backend = element.find("backend")
    if backend is not None and backend.get("type") == "passt" and kind in PASST:
        reading = Reading(strict, PASST[kind], elsewhere, ("ip", "portForward"))
    else:
        reading = Reading(strict, OWN[kind], elsewhere, _MANY.get(kind, ()))
    reading.values["type"] = kind
    return reading


def finish(element: Element, reading: Reading) -> None:
    """Make the source of what was read, and leave in ``reading.values`` the fields of the spec alone."""
    kind = reading.values["type"]
    if "tap_path" in reading.places:
        raise reading.places["tap_path"].error(*_TAP)
    if kind not in TAP_TYPES:
        _drop_of_taps(reading, kind)
    own = {name: reading.values.pop(name) for name in list(reading.values) if name.startswith("_")}
    try:
        maker = _passt if "_passt" in own else _MAKERS.get(kind, _socket)
        source = maker(element, reading, own)
        if source:
            source.check(kind)
            reading.values["source"] = source
    except SpecError as error:
        if error.element:
            raise
        missing = missing_source(element, error.attribute)
        if error.attribute in _LOCAL:
            local = element.find("source/local")
            line = missing.line if local is None else at(local).line
            missing = Place("local", _LOCAL[error.attribute], line, None)
        raise reading.places.get(f"_{error.attribute}", missing).error(error.problem, error.expected) from None


def _drop_of_taps(reading: Reading, kind: str) -> None:
    for name in ("vhost_path", "sndbuf", "ifname", "bandwidth"):
        reading.drop(name, f"on type {kind}, which has no TAP")
    if reading.values.get("vhost") == "require":
        reading.drop("vhost", f"on type {kind}, which has no TAP")


# Where what is missing would stand, if not in <source>.
_LOCAL: Final = {"local_address": "address", "local_port": "port"}


def _socket(_: Element, __: Reading, own: dict[str, Any]) -> Source:
    if "_port" not in own:
        raise SpecError("is missing", attribute="port", expected="a port, 1..65535")
    return SocketSource(**{name[1:]: value for name, value in own.items()})


def _direct(_: Element, __: Reading, own: dict[str, Any]) -> Source:
    if "_dev" not in own:
        raise SpecError("is missing, and type direct needs it", attribute="dev", expected="the name of a link")
    return DirectSource(own["_dev"], own.get("_mode", MODES[0]), own.get("_trust", False))


def _vdpa(_: Element, __: Reading, own: dict[str, Any]) -> Source:
    if "_dev" not in own:
        raise SpecError("is missing, and type vdpa needs it", attribute="dev", expected="/dev/vhost-vdpa-N")
    return VdpaSource(own["_dev"])


def _vhost_user(element: Element, reading: Reading, own: dict[str, Any]) -> Source:
    if "_path" not in own:
        raise SpecError("is missing, and type vhostuser needs it", attribute="path", expected="the path of a socket")
    return VhostUserSource(own["_path"], own.get("_server", False), _reconnect(element, reading, own))


def _reconnect(element: Element, reading: Reading, own: dict[str, Any]) -> int | None:
    """In seconds; 0 where it is switched off."""
    if own.get("_enabled") and "_reconnect" not in own:
        found = element.find("source/reconnect")
        raise at(element if found is None else found, "timeout").error("is missing", "timeout='SECONDS'")
    if own.get("_enabled"):
        return int(own["_reconnect"])
    if "_reconnect" in own:
        reading.unknown("has no effect without enabled='yes'", reading.places["_reconnect"])
    if "_enabled" not in own:
        return None
    reading.places["_reconnect"] = reading.places["_enabled"]  # it stands for the number, too
    return 0


def _user(_: Element, reading: Reading, __: dict[str, Any]) -> Source | None:
    found = _networks(reading)
    return UserSource(**found) if found else None


def _networks(reading: Reading) -> dict[str, str]:
    """One <ip> of each family at most, with its length where one is given."""
    found: dict[str, str] = {}
    for element in reading.kept["ip"]:
        family, network = _network(element, reading)
        if family in found:
            raise at(element).error(f"is a second {family} network", f"one <ip> of {family}")
        found[family] = network
    return found


def _network(element: Element, reading: Reading) -> tuple[str, str]:
    """The family of an <ip>, and its address with its length."""
    _check_ip(element, reading)
    place, prefix = at(element, "address"), at(element, "prefix")
    family = element.get("family") or ("ipv6" if ":" in (place.text or "") else "ipv4")
    if family not in LENGTHS:
        raise at(element, "family").error("is not allowed", " or ".join(LENGTHS))
    if not canonical(family, place.text or ""):
        raise place.error(f"is no {family} address", "an address such as 172.17.2.0 or 2001:db8::")
    length = read(prefix, whole, reading) if prefix.text else 0
    low, high = LENGTHS[family]
    if length and not low <= length <= high:
        raise prefix.error("is not allowed", f"{low}..{high}" if low < high else str(low))
    return family, f"{place.text}/{length}" if length else str(place.text)


def _check_ip(element: Element, reading: Reading) -> None:
    """It has three attributes and nothing in it."""
    if "peer" in element.attrib:
        raise at(element, "peer").error("is nothing that QEMU has", "no peer=")
    for name in sorted(set(element.keys()) - {"address", "family", "prefix"}):
        reading.unknown("is no attribute that libvirt knows here", at(element, name))
    for child in element:
        reading.unknown("is no element that libvirt knows here", at(child))
    _check_text(element, reading)


def _check_text(element: Element, reading: Reading) -> None:
    if (element.text or "").strip():
        reading.unknown("holds text that libvirt does not know", at(element, None, element.text))


def _passt(element: Element, reading: Reading, own: dict[str, Any]) -> Source:
    """What passt is to be told is checked, and left to whoever starts it; its socket is his, too."""
    _networks(reading)
    for forward in reading.kept["portForward"]:
        _check_forward(forward, reading)
    _reconnect(element, reading, own)
    for name in ("_path", "_server", "_enabled"):
        if name in own:
            reading.unknown("has no effect: QEMU calls passt, at the socket that comes with it", reading.places[name])
    told = [(reading.places[name], option) for name, option in _FOR_PASST.items() if name in own]
    told += [(at(ip), "--address") for ip in reading.kept["ip"]]
    told += [(at(forward), f"--{forward.get('proto')}-ports") for forward in reading.kept["portForward"]]
    for place, option in told:
        reading.unknown(f"has no effect here: it is for whoever starts passt ({option})", place)
    return PasstSource()


def _check_forward(element: Element, reading: Reading) -> None:
    """A <portForward>: whose ports, and which of them; none that is named is all."""
    told = read_parts(element, PORT_FORWARD["portForward"], reading)
    _check_text(element, reading)
    if "proto" not in told:
        raise at(element, "proto").error("is missing", "tcp or udp")
    if "address" in told and not packed(told["address"]):
        raise at(element, "address").error("is no IP address", "an address such as 192.0.2.1 or 2001:db8::1")
    for child in element:
        if child.tag != "range":
            reading.unknown("is no element that libvirt knows here", at(child))
            continue
        ports = read_parts(child, PORT_FORWARD["portForward/range"], reading)
        _check_text(child, reading)
        if ports and "start" not in ports:
            raise at(child, "start").error("is missing", "the first port, where end, to or exclude is given")


_MAKERS: Final[dict[str, Callable[[Element, Reading, dict[str, Any]], Source | None]]] = {
    "direct": _direct,
    "user": _user,
    "vdpa": _vdpa,
    "vhostuser": _vhost_user,
}
