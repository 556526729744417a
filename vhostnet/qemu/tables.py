"""What each property of a NIC comes of, and where it stands: the tables of both orders, classic and keyval's.

A row looks at a Device and gives a typed value, or None where there is nothing to say.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from vhostnet.spec.interface import InterfaceSpec
from vhostnet.spec.parts import CcwAddress, MmioAddress, PciAddress, SpaprVioAddress, UsbAddress

Value = str | int | bool | Mapping[str, str]  # the last is QMP's object; in words each of it is key.name=
Properties = dict[str, Value]


class Device(NamedTuple):
    """What a row may look at."""

    spec: InterfaceSpec
    tap_fds: Sequence[int | str]  # numbers, or names that a monitor has for them
    vhost_fds: Sequence[int | str]
    vdpa_fd: int | None
    passt_socket: str | None
    alias: str
    bus: str | None
    addr: str | None
    dialect: str


class Row(NamedTuple):
    """One property, and its place in the classic order; a table itself stands in the order of keyval and json."""

    key: str
    classic: int
    value: Callable[[Device], Value | None]


class Table:
    """Rows, and both their orders."""

    def __init__(self, *rows: Row) -> None:
        self.rows = rows
        self.classic = tuple(sorted(rows, key=lambda row: row.classic))

    def properties(self, device: Device) -> Properties:
        """Those that have a value, in the order of the device's dialect."""
        rows = self.classic if device.dialect == "classic" else self.rows
        return {row.key: value for row in rows if (value := row.value(device)) is not None}


def _field(name: str) -> Callable[[Device], Value | None]:
    return lambda device: getattr(device.spec, name)


def _source(name: str) -> Callable[[Device], Value | None]:
    return lambda device: getattr(device.spec.source, name, None)


def _always(value: Value) -> Callable[[Device], Value | None]:
    return lambda device: value


def _queues(device: Device) -> int | None:
    """libvirt's rule: one is not said."""
    return device.spec.queues if device.spec.queues > 1 else None


# --- -netdev, by type ------------------------------------------------------------------------------------


def _id(device: Device) -> Value:
    return f"host{device.alias}"


def _fds(fds: Sequence[int | str], plural: bool) -> Value | None:
    """libvirt's rule: the singular key for exactly one fd, the plural for more; QEMU refuses a mix."""
    return ":".join(map(str, fds)) if fds and (len(fds) > 1) is plural else None


_TAP: Final = Table(
    Row("type", 0, _always("tap")),
    Row("fd", 1, lambda device: _fds(device.tap_fds, False)),
    Row("fds", 2, lambda device: _fds(device.tap_fds, True)),
    Row("vhost", 4, lambda device: True if device.vhost_fds else None),
    Row("vhostfd", 5, lambda device: _fds(device.vhost_fds, False)),
    Row("vhostfds", 6, lambda device: _fds(device.vhost_fds, True)),
    Row("sndbuf", 7, _field("sndbuf")),
    Row("id", 3, _id),
)


def _in_order(kind: str, *rows: tuple[str, Callable[[Device], Value | None]]) -> Table:
    """The table of a type without a TAP: it has one order in all dialects."""
    every = (("type", _always(kind)), *rows, ("id", _id))
    return Table(*(Row(key, place, value) for place, (key, value) in enumerate(every)))


def _in_json(json: bool, name: str) -> Callable[[Device], Value | None]:
    """Said in that dialect alone, or in the others."""
    return lambda device: getattr(device.spec.source, name) if (device.dialect == "json") is json else None


_PASST: Final = _in_order(
    "stream",
    ("addr", lambda device: {"type": "unix", "path": str(device.passt_socket)}),
    ("server", _always(False)),
    ("reconnect", _in_json(False, "reconnect")),
    ("reconnect-ms", _in_json(True, "reconnect_ms")),
)
_NETDEVS: Final = {
    "user": _in_order(
        "user",
        ("net", _source("ipv4")),
        ("ipv6-prefix", _source("ipv6_prefix")),
        ("ipv6-prefixlen", _source("ipv6_length")),
    ),
    "vhostuser": _in_order("vhost-user", ("chardev", lambda device: f"char{device.alias}"), ("queues", _queues)),
    "vdpa": _in_order("vhost-vdpa", ("vhostdev", lambda device: f"/dev/fdset/{device.vdpa_fd}"), ("queues", _queues)),
    "udp": _in_order("socket", ("udp", _source("text")), ("localaddr", _source("local_text"))),
    "mcast": _in_order("socket", ("mcast", _source("text"))),
    "server": _in_order("socket", ("listen", _source("text"))),
    "client": _in_order("socket", ("connect", _source("text"))),
}


def netdev_table(spec: InterfaceSpec) -> Table:
    if spec.passt and spec.type == "user":
        return _PASST
    return _TAP if spec.tap else _NETDEVS[spec.type]


# --- what a -netdev needs before it ----------------------------------------------------------------------


CHARDEV: Final = Table(
    Row("backend", 0, _always("socket")),
    Row("id", 1, lambda device: f"char{device.alias}"),
    Row("path", 2, lambda device: device.passt_socket or _source("path")(device)),
    Row("server", 3, lambda device: getattr(device.spec.source, "server", None) or None),
    Row("reconnect", 4, _in_json(False, "reconnect")),
    Row("reconnect-ms", 5, _in_json(True, "reconnect_ms")),  # QEMU 9.2's, and libvirt's in front of that one
)

# The set is called by the number of its fd: no other of this QEMU's has that.
ADD_FD: Final = Table(
    Row("set", 0, lambda device: device.vdpa_fd),
    Row("fd", 1, lambda device: device.vdpa_fd),
    Row("opaque", 2, lambda device: f"{device.alias}-vdpa"),
)

# --- -device ---------------------------------------------------------------------------------------------


def _zpci(name: str) -> Callable[[Device], Value | None]:
    return lambda device: getattr(getattr(device.spec.address, "zpci", None), name, None)


ZPCI: Final = Table(
    Row("driver", 0, _always("zpci")),
    Row("uid", 1, _zpci("uid")),
    Row("fid", 2, _zpci("fid")),
    Row("target", 3, lambda device: device.alias),
    Row("id", 4, lambda device: f"zpci{_zpci('uid')(device)}"),
)


def _driver(device: Device) -> str:
    spec = device.spec
    if not spec.virtio:
        return spec.model
    if isinstance(spec.address, CcwAddress):
        return "virtio-net-ccw"
    if isinstance(spec.address, MmioAddress):
        return "virtio-net-device"
    return "virtio-net-pci" + spec.model.removeprefix("virtio")


def _multifunction(device: Device) -> Value | None:
    return device.spec.address.multifunction if isinstance(device.spec.address, PciAddress) else None


def _devno(device: Device) -> Value | None:
    return device.spec.address.text if isinstance(device.spec.address, CcwAddress) else None


def _bus(device: Device) -> Value | None:
    return device.spec.address.bus_name if isinstance(device.spec.address, UsbAddress) else device.bus


def _port(device: Device) -> Value | None:
    return device.spec.address.port if isinstance(device.spec.address, UsbAddress) else None


def _reg(device: Device) -> Value | None:
    if not isinstance(device.spec.address, SpaprVioAddress):
        return None
    reg = device.spec.address.reg
    return f"0x{reg:08x}" if device.dialect == "classic" else reg


def _vectors(device: Device) -> Value | None:
    """One a queue and direction, one for configuration, one for the control queue; on PCI only."""
    return 2 * device.spec.queues + 2 if device.spec.queues > 1 and device.spec.pci else None


def _tx(device: Device) -> Value | None:
    return {None: None, "iothread": "bh", "timer": "timer"}[device.spec.txmode]


DEVICE: Final = Table(
    Row("driver", 0, _driver),
    Row("iommu_platform", 33, _field("iommu")),
    Row("ats", 34, _field("ats")),
    Row("packed", 35, _field("packed")),
    Row("page-per-vq", 36, _field("page_per_vq")),
    Row("tx", 1, _tx),
    Row("ioeventfd", 2, _field("ioeventfd")),
    Row("event_idx", 3, _field("event_idx")),
    Row("csum", 4, _field("host_csum")),
    Row("gso", 5, _field("host_gso")),
    Row("host_tso4", 6, _field("host_tso4")),
    Row("host_tso6", 7, _field("host_tso6")),
    Row("host_ecn", 8, _field("host_ecn")),
    Row("host_ufo", 9, _field("host_ufo")),
    Row("mrg_rxbuf", 10, _field("host_mrg_rxbuf")),
    Row("guest_csum", 11, _field("guest_csum")),
    Row("guest_tso4", 12, _field("guest_tso4")),
    Row("guest_tso6", 13, _field("guest_tso6")),
    Row("guest_ecn", 14, _field("guest_ecn")),
    Row("guest_ufo", 15, _field("guest_ufo")),
    Row("mq", 16, lambda device: True if device.spec.queues > 1 else None),
    Row("vectors", 17, _vectors),
    Row("rx_queue_size", 18, _field("rx_queue_size")),
    Row("tx_queue_size", 19, _field("tx_queue_size")),
    Row("rss", 20, _field("rss")),
    Row("hash", 21, _field("rss_hash_report")),
    Row("host_mtu", 22, lambda device: device.spec.mtu if device.spec.virtio else None),
    Row("failover", 22, lambda device: True if device.spec.teaming else None),
    Row("netdev", 23, lambda device: f"host{device.alias}"),
    Row("id", 24, lambda device: device.alias),
    Row("mac", 25, _field("mac")),
    Row("bootindex", 32, _field("boot_order")),
    Row("loadparm", 32, _field("loadparm")),
    Row("bus", 26, _bus),
    Row("multifunction", 27, _multifunction),
    Row("addr", 28, lambda device: device.addr),
    Row("devno", 28, _devno),
    Row("port", 28, _port),
    Row("reg", 28, _reg),
    Row("acpi-index", 29, _field("acpi_index")),
    Row("rombar", 30, lambda device: None if device.spec.rom_bar is None else int(device.spec.rom_bar)),
    Row("romfile", 31, _field("rom_file")),
)
