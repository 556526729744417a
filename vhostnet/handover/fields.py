"""An InterfaceSpec as what JSON has, and back: its fields by their names, those left out that say nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, cast

from vhostnet.errors import SpecError
from vhostnet.spec.interface import InterfaceSpec
from vhostnet.spec.mac import EXPECTED, normalize
from vhostnet.spec.parts import (
    Bandwidth,
    CcwAddress,
    HostIp,
    HostRoute,
    MmioAddress,
    PciAddress,
    Rate,
    SpaprVioAddress,
    UsbAddress,
    VirtualPort,
    Vlan,
    ZpciAddress,
)
from vhostnet.spec.sources import DirectSource

ADDRESSES: Final[dict[str, type[Any]]] = {
    "pci": PciAddress,
    "ccw": CcwAddress,
    "virtio-mmio": MmioAddress,
    "usb": UsbAddress,
    "spapr-vio": SpaprVioAddress,
}
# The fields that are values of their own. A NIC without a TAP is handed to nobody, so of the sources there is one.
_VALUES: Final[dict[str, type[Any]]] = {
    "vlan": Vlan,
    "virtualport": VirtualPort,
    "bandwidth": Bandwidth,
    "inbound": Rate,
    "outbound": Rate,
    "zpci": ZpciAddress,
    "source": DirectSource,
    "tap_ips": HostIp,
    "tap_routes": HostRoute,
}


def fields_of(spec: InterfaceSpec) -> dict[str, Any]:
    """Of a NIC with a TAP: strings, numbers, bools, lists and objects. An address has its ``type`` as in XML."""
    return _fields(spec)


def fields_of_each(specs: Iterable[InterfaceSpec]) -> Iterator[dict[str, Any]]:
    """As fields_of(): of one that is like the one before, but for its MAC, those are not looked for again."""
    last: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for spec in specs:
        others = {**spec.__dict__, "mac": ""}
        if others != last:
            last, fields = others, _fields(spec)
        yield {**fields, "mac": spec.mac}


def spec_of(fields: Mapping[str, Any]) -> InterfaceSpec:
    """The spec that has these fields. Raises SpecError, naming the field (``vlan.tags``) and what would be right."""
    return cast(InterfaceSpec, _value(InterfaceSpec, fields, ""))


def another(spec: InterfaceSpec, mac: str) -> InterfaceSpec:
    """The same NIC but for its MAC, the only field that is checked: no other rule is about that. Raises SpecError."""
    normal = normalize(mac)
    if normal is None:
        raise SpecError("is not allowed", attribute="mac", value=mac, expected=EXPECTED)
    made = object.__new__(InterfaceSpec)
    made.__dict__.update(spec.__dict__, mac=normal)
    return made


def _fields(value: Any) -> dict[str, Any]:
    defaults = type(value)._defaults
    return {
        name: _plain(name, given)
        for name, given in value.__dict__.items()
        if name not in defaults or given != defaults[name]
    }


def _plain(name: str, value: Any) -> Any:
    kind = next((kind for kind, cls in ADDRESSES.items() if type(value) is cls), "")
    if kind:
        return {"type": kind, **_fields(value)}
    if isinstance(value, tuple):
        return [_plain(name, one) for one in value]
    return _fields(value) if name in _VALUES and value is not None else value


def _value(cls: type[Any], fields: object, place: str) -> Any:
    if not isinstance(fields, Mapping):
        raise SpecError("is not allowed", attribute=place or "spec", value=fields, expected="an object of its fields")
    known = cls.__annotations__
    given = {}
    for name, value in fields.items():
        inside = f"{place}.{name}" if place else name
        if name not in known:
            raise SpecError("is no field", attribute=inside, value=value, expected=", ".join(known) or "none")
        given[name] = (
            _address(value, inside) if cls is InterfaceSpec and name == "address" else _given(name, value, inside)
        )
    missing = cls._names - given.keys() - cls._defaults.keys() - cls._makers.keys()
    if missing:
        raise SpecError("is missing", attribute=f"{place}.{min(missing)}" if place else min(missing))
    try:
        return cls(**given)
    except SpecError as error:
        if place and error.attribute:
            error.attribute = f"{place}.{error.attribute}"
        raise


def _given(name: str, value: Any, place: str) -> Any:
    if value is None:
        return None
    if name == "tags" and not isinstance(value, list):
        raise SpecError("is not allowed", attribute=place, value=value, expected="a list of VLAN ids")
    if isinstance(value, list):
        return tuple(_value(_VALUES[name], one, place) for one in value) if name in _VALUES else tuple(value)
    return _value(_VALUES[name], value, place) if name in _VALUES else value


def _address(value: object, place: str) -> Any:
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, Mapping) else None
    cls = ADDRESSES.get(kind) if isinstance(kind, str) else None
    if cls is None or not isinstance(value, Mapping):
        raise SpecError("is not allowed", attribute=f"{place}.type", value=kind, expected=", ".join(ADDRESSES))
    return _value(cls, {name: one for name, one in value.items() if name != "type"}, place)
