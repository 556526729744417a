"""(InterfaceSpec, fds) -> QEMU's arguments. Pure: nothing is opened, nothing is asked of the host.

``qemu_argv`` writes what libvirt writes, to the byte. A QEMU that is really started gets the arguments of
``fitted(spec)``: what no QEMU gives on a TAP is not asked of it, since some of them refuse to start then.

Three dialects of the same arguments. ``classic`` is libvirt's order and form up to its release 7,
``keyval`` that of libvirt 9 in front of a QEMU before 6.2, ``json`` that of libvirt 9 with QEMU 7.2 and
later. Both orders stand in ``tables.py``, once. Values are typed until the last step, which alone knows how a
dialect writes them: no value can become an option.
"""

import itertools
import warnings
from collections.abc import Container, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from vhostnet.checks import is_addr, is_generated, is_id, is_path
from vhostnet.errors import SpecError, VhostnetWarning
from vhostnet.qemu.tables import (
    ADD_FD,
    CHARDEV,
    DEVICE,
    ZPCI,
    Device,
    Properties,
    Value,
    netdev_table,
)
from vhostnet.spec.interface import InterfaceSpec
from vhostnet.spec.parts import CcwAddress, MmioAddress, PciAddress
from vhostnet.values import replace

Dialect = Literal["classic", "keyval", "json"]
DIALECTS: Final = ("classic", "keyval", "json")
Version = tuple[int, int, int]
STREAM: Final[Version] = (7, 2, 0)  # the first QEMU that has such a -netdev: a passt's
STREAM_RECONNECT: Final[Version] = (8, 0, 0)  # the first whose -netdev stream has reconnect
RECONNECT_MS: Final[Version] = (9, 2, 0)  # the first that has it, wherever

MAX_TX_QUEUE_SIZE: Final = 256
_LONG_TX_QUEUES: Final = ("vhostuser", "vdpa")  # get more
# What QEMU's devices off PCI have no property for; libvirt writes it there all the same.
_OF_PCI: Final = ("ats", "page_per_vq")
_LACKING: Final[Mapping[type, tuple[str, tuple[str, ...]]]] = {
    CcwAddress: ("a channel", _OF_PCI),
    MmioAddress: ("virtio-mmio", (*_OF_PCI, "ioeventfd")),
}


def qemu_properties(
    spec: InterfaceSpec,
    *,
    tap_fds: Sequence[int | str] = (),
    vhost_fds: Sequence[int | str] = (),
    vdpa_fd: int | None = None,
    passt_socket: str | None = None,
    alias: str | None = None,
    bus: str | None = None,
    addr: str | None = None,
    dialect: Dialect = "json",
) -> tuple[Properties, Properties]:
    """The properties of the two halves of a NIC, netdev and device, typed and in *dialect*'s order.

    In the ``json`` order they are what QMP's ``netdev_add`` and ``device_add`` take, with the names in the place of fds
    that ``getfd`` gave them. The character device of type vhostuser, ``char`` and the alias, is to be there before, and
    so is the fd set of type vdpa, *vdpa_fd* its number. Arguments and errors are otherwise qemu_argv()'s;
    ``vhostnet.qmp`` does all of it.
    """
    device = _device(spec, tap_fds, vhost_fds, vdpa_fd, passt_socket, alias, bus, addr, dialect)
    return netdev_table(spec).properties(device), DEVICE.properties(device)


def qemu_argv(
    spec: InterfaceSpec,
    *,
    tap_fds: Sequence[int] = (),
    vhost_fds: Sequence[int] = (),
    vdpa_fd: int | None = None,
    passt_socket: str | None = None,
    alias: str | None = None,
    bus: str | None = None,
    addr: str | None = None,
    dialect: Dialect = "classic",
) -> list[str]:
    """``["-netdev", ..., "-device", ...]`` for *spec* on these fds, byte for byte as libvirt writes it.

    *tap_fds* has one fd a queue pair, *vhost_fds* as many or none; a spec without a TAP takes neither, one of type vdpa
    *vdpa_fd* (``open_vdpa()``), and one with a PasstSource *passt_socket*, the path of that passt's. Type vdpa has
    ``-add-fd`` in front, type vhostuser ``-chardev``, and a PCI device with a zpci address its ``-device zpci``.
    *alias* is the device's id (the spec's own, or ``net0``); *bus* and *addr* place it on PCI where the spec does not,
    or otherwise than it does. A source's ``reconnect`` is QEMU 9.2's in the ``json`` dialect (``reconnect-ms``), and
    that of older ones in the others.

    Raises SpecError, naming the argument. Warns (VhostnetWarning) where QEMU will not give what was asked.
    """
    for name, fds in (("tap_fds", tap_fds), ("vhost_fds", vhost_fds)):
        _check_choice(name, list(fds), not any(isinstance(fd, str) for fd in fds), "fd numbers: QMP alone has names")
    device = _device(spec, tap_fds, vhost_fds, vdpa_fd, passt_socket, alias, bus, addr, dialect)
    for caveat in caveats(spec, device.alias):
        warnings.warn(caveat, VhostnetWarning, stacklevel=2)
    write = _json if dialect == "json" else _keyval
    words = []
    if spec.type == "vdpa":
        words += ["-add-fd", _pairs(ADD_FD.properties(device))]
    if spec.type == "vhostuser":
        words += ["-chardev", _keyval(CHARDEV.properties(device))]  # libvirt writes no other
    words += ["-netdev", write(netdev_table(spec).properties(device))]
    if isinstance(spec.address, PciAddress) and spec.address.zpci:
        words += ["-device", write(ZPCI.properties(device))]
    return [*words, "-device", write(DEVICE.properties(device))]


# --- the NICs of one machine -----------------------------------------------------------------------------


def assign_machine(specs: Sequence[InterfaceSpec], *, taken: Container[str] = ()) -> list[InterfaceSpec]:
    """The NICs of one VM, each with an id of its own (``alias``), wherever they were read.

    One that has none, or one that libvirt generated (``netN``) and another has already, gets the next ``netN`` that is
    free, as libvirt counts. *taken* are the ids that the machine's other devices have. Raises SpecError for what only
    one device can have, and two ask for: an alias of the user's, a boot order, an ACPI index, an address.
    """
    for name, remedy in _ONLY_ONE.items():
        _check_only_one(specs, name, remedy)
    aliases = assign_aliases(specs, taken=taken)
    return [replace(spec, alias=alias) for spec, alias in zip(specs, aliases, strict=True)]


def assign_aliases(specs: Sequence[InterfaceSpec], *, taken: Container[str] = ()) -> list[str]:
    """The ids alone, as assign_machine() gives them."""
    own: dict[str, int] = {}  # who has it
    for number, spec in enumerate(specs):
        if spec.alias and not (is_generated(spec.alias) and spec.alias in taken):
            own.setdefault(spec.alias, number)
    numbers = itertools.count()
    free = (alias for number in numbers if (alias := f"net{number}") not in own and alias not in taken)
    return [
        spec.alias if spec.alias and own.get(spec.alias) == number else next(free) for number, spec in enumerate(specs)
    ]


_ONLY_ONE: Final = {
    "alias": "another",
    "boot_order": "another",
    "acpi_index": "another",
    "address": "another, or none (exec --no-address): QEMU finds one",
}


def _check_only_one(specs: Sequence[InterfaceSpec], name: str, expected: str) -> None:
    first: dict[object, InterfaceSpec] = {}
    for spec in specs:
        value = _shown(getattr(spec, name))
        if value is None or is_generated(value):
            continue
        if value in first:
            problem = f"of NIC {spec.mac} is that of NIC {first[value].mac}, and a machine has it once"
            raise SpecError(problem, attribute=name, value=value, expected=expected)
        first[value] = spec


def _shown(value: object) -> object:
    """An address as a machine has it once, None where QEMU finds one; anything else as it is."""
    if isinstance(value, PciAddress):
        return f"{value.bus_name} {value.addr}"
    if isinstance(value, (CcwAddress, MmioAddress)):
        return getattr(value, "text", None)
    return value


# --- the QEMU that is started ----------------------------------------------------------------------------


class _Misfit(NamedTuple):
    """What no QEMU gives, the fact that is behind it, and the fields that ask for what it does give."""

    fact: str
    fields: dict[str, Any]


def fitted(spec: InterfaceSpec) -> InterfaceSpec:
    """*spec* less what no QEMU gives it, for a QEMU that is really started.

    Warns (VhostnetWarning) of each thing that is not asked for. Raises SpecError for what excludes itself.
    """
    check_qemu(spec)
    misfits = _misfits(spec, None)
    for misfit in misfits:
        warnings.warn(misfit.fact, VhostnetWarning, stacklevel=2)
    changed = {name: value for misfit in misfits for name, value in misfit.fields.items()}
    return replace(spec, **changed) if changed else spec


def check_qemu(spec: InterfaceSpec) -> None:
    """Raises SpecError for what no QEMU starts with, and nothing else can be asked for in its place."""
    if spec.iommu and spec.pci and spec.model == "virtio-transitional":
        raise SpecError(
            "excludes model virtio-transitional: no QEMU starts with both",
            attribute="iommu",
            value=True,
            expected="model virtio or virtio-non-transitional, or no iommu",
        )


def caveats(spec: InterfaceSpec, alias: str = "net0", *, qemu: Version | None = None) -> tuple[str, ...]:
    """What QEMU will not give of what *spec* asks, each with the fact that is behind it.

    With *qemu*, a version such as ``(7, 2, 22)``: what that one would do.
    """
    found = [misfit.fact for misfit in _misfits(spec, qemu)]
    if qemu and spec.model == "igb" and qemu < (8, 0, 0):
        found.append(f"model igb: QEMU {dotted(qemu)} has none (8.0 was the first); e1000e is its elder")
    if qemu and spec.loadparm and qemu < (9, 2, 0):
        found.append(
            f"loadparm: QEMU {dotted(qemu)} has it on the machine alone (-machine loadparm=...), devices from 9.2"
        )
    if qemu and spec.passt and spec.type == "user":
        found += _of_a_stream(spec, qemu)
    if spec.link_state == "down":
        found.append(
            "link state='down': QEMU has no argument for it; after the start send it "
            f'{{"execute": "set_link", "arguments": {{"name": "{alias}", "up": false}}}}'
        )
    return tuple(found)


def set_link(spec: InterfaceSpec, alias: str | None = None) -> dict[str, Any]:
    """The QMP command for the state of its link, of which no argument tells QEMU: for the device of that id (the
    spec's own, or ``net0``), as libvirt sends it (``qemuMonitorSetLink``).
    """
    return {"execute": "set_link", "arguments": {"name": alias or _alias(spec), "up": spec.link_state != "down"}}


def _alias(spec: InterfaceSpec) -> str:
    return spec.alias or "net0"


def _of_a_stream(spec: InterfaceSpec, qemu: Version) -> list[str]:
    if qemu < STREAM:
        return [f"backend passt: QEMU {dotted(qemu)} has no -netdev stream (7.2 was the first)"]
    if qemu < STREAM_RECONNECT and getattr(spec.source, "reconnect", None) is not None:
        fact = "calls passt once, and not again when that has ended (8.0 was the first that does)"
        return [f"backend passt: QEMU {dotted(qemu)} {fact}"]
    return []


def _misfits(spec: InterfaceSpec, qemu: Version | None) -> list[_Misfit]:
    found = []
    if (spec.tx_queue_size or 0) > MAX_TX_QUEUE_SIZE and spec.type not in _LONG_TX_QUEUES:
        what = "a TAP" if spec.tap else f"type {spec.type}"
        fact = (
            f"tx_queue_size={spec.tx_queue_size}: QEMU gives {what} at most 256 ({_to_long_tx_queues(qemu)}; only "
            "vhost-user and vDPA get more), so a QEMU that is started is asked for 256; rx_queue_size is honoured"
        )
        found.append(_Misfit(fact, {"tx_queue_size": MAX_TX_QUEUE_SIZE}))
    if spec.iommu and spec.pci and spec.model == "virtio":
        fact = (
            "iommu='on': every QEMU refuses it for a virtio device that can be legacy, as 'virtio' can on "
            "conventional PCI and on a root bus, so a QEMU that is started is asked for virtio-non-transitional"
        )
        found.append(_Misfit(fact, {"model": "virtio-non-transitional"}))
    where, lacking = _LACKING.get(type(spec.address), ("", ()))
    for name in lacking:
        if getattr(spec, name) is not None:
            fact = f"{name}: no QEMU has it for a NIC on {where}, or starts with it, so it is not asked of one"
            found.append(_Misfit(fact, {name: None}))
    return found


def _to_long_tx_queues(qemu: Version | None) -> str:
    if qemu is None:
        return "7.2 makes it 256 in silence, 8.0.4 and those from 8.1 on refuse to start"
    does = "refuses to start" if qemu >= (8, 0, 4) else "makes it 256 in silence"
    return f"{dotted(qemu)} {does}"


def dotted(version: Version) -> str:
    """``7.2.22``."""
    return ".".join(map(str, version))


# --- checking, writing -----------------------------------------------------------------------------------


def _device(
    spec: InterfaceSpec,
    tap_fds: Sequence[int | str],
    vhost_fds: Sequence[int | str],
    vdpa_fd: int | None,
    passt_socket: str | None,
    alias: str | None,
    bus: str | None,
    addr: str | None,
    dialect: Dialect,
) -> Device:
    """All that is told of a NIC, checked."""
    _check_fds(spec, tap_fds, vhost_fds)
    _check_vdpa(spec, vdpa_fd)
    _check_passt(spec, passt_socket)
    _check_choice("dialect", dialect, dialect in DIALECTS, "classic, keyval or json")
    address = spec.address
    if isinstance(address, PciAddress):
        bus = address.bus_name if bus is None else bus
        addr = address.addr if addr is None else addr
    alias = _alias(spec) if alias is None else alias
    _check_choice("alias", alias, is_id(alias), "a letter, then letters, digits and - . _")
    _check_choice("bus", bus, bus is None or (spec.pci and is_id(bus)), "the name of a PCI bus, such as pci.0")
    _check_choice("addr", addr, addr is None or (spec.pci and is_addr(addr)), "a PCI slot, such as 0x7 or 0x7.0x1")
    return Device(spec, tap_fds, vhost_fds, vdpa_fd, passt_socket, alias, bus, addr, dialect)


def _check_fds(spec: InterfaceSpec, tap_fds: Sequence[int | str], vhost_fds: Sequence[int | str]) -> None:
    for name, fds in (("tap_fds", tap_fds), ("vhost_fds", vhost_fds)):
        if not all(is_id(fd) or (type(fd) is int and fd >= 0) for fd in fds) or len(set(fds)) != len(fds):
            expected = "distinct fd numbers, or the names that QMP's getfd gave them"
            raise SpecError("is not allowed", attribute=name, value=list(fds), expected=expected)
    if not spec.tap:
        for name, fds in (("tap_fds", tap_fds), ("vhost_fds", vhost_fds)):
            _check_choice(name, list(fds), not fds, f"none: type {spec.type} has no TAP")
        return
    _check_choice("tap_fds", list(tap_fds), len(tap_fds) == spec.queues, f"{spec.queues}, one a queue pair")
    vhost_ok = not vhost_fds or (spec.virtio and len(vhost_fds) == spec.queues)
    wanted = f"none, or {spec.queues}: one a queue pair" if spec.virtio else f"none: model {spec.model} is not virtio"
    _check_choice("vhost_fds", list(vhost_fds), vhost_ok, wanted)
    shared = set(tap_fds) & set(vhost_fds)
    _check_choice("vhost_fds", list(vhost_fds), not shared, "other fds than tap_fds has")


def _check_vdpa(spec: InterfaceSpec, vdpa_fd: object) -> None:
    if spec.type == "vdpa":
        _check_choice("vdpa_fd", vdpa_fd, type(vdpa_fd) is int and vdpa_fd >= 0, "the fd of its node")
    else:
        _check_choice("vdpa_fd", vdpa_fd, vdpa_fd is None, f"none: type {spec.type} has no vDPA device")


def _check_passt(spec: InterfaceSpec, path: object) -> None:
    if spec.passt:
        expected = f"the absolute path of the socket of a passt that runs: {START_PASST[spec.type]}"
        _check_choice("passt_socket", path, is_path(path), expected)
    else:
        _check_choice("passt_socket", path, path is None, "none: it leads to no passt")


# How whoever runs the VM starts one, by the NIC's type.
START_PASST: Final = {"user": "passt --socket PATH", "vhostuser": "passt --vhost-user --socket PATH"}


def _check_choice(name: str, value: object, allowed: bool, expected: str) -> None:
    if not allowed:
        raise SpecError("is not allowed", attribute=name, value=value, expected=expected)


def _json(properties: Mapping[str, Value]) -> str:
    import json  # three milliseconds that only this dialect needs

    return json.dumps(properties, separators=(",", ":"), ensure_ascii=False)


def _keyval(properties: Mapping[str, Value]) -> str:
    """``tap,fds=3:4,...``: the first value stands alone; a comma inside a value is doubled."""
    (_, head), *rest = properties.items()
    return ",".join([_plain(head), *([_pairs(dict(rest))] if rest else [])])


def _pairs(properties: Mapping[str, Value]) -> str:
    """``key=value,...``: what is an object in JSON is ``key.name=value`` for each of its own."""
    flat: dict[str, Value] = {}
    for key, value in properties.items():
        flat |= {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, Mapping) else {key: value}
    return ",".join(f"{key}={_plain(value)}" for key, value in flat.items())


def _plain(value: Value) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).replace(",", ",,")
