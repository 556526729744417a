"""What QEMU must be told of a spec: written from what each option means, and not from qemu/tables.py."""

from vhostnet import CcwAddress, MmioAddress, PasstSource, PciAddress, SpaprVioAddress, UsbAddress

# Options that carry a field's value as it is, under their own name or the field's.
_OTHER_NAMES = {
    "iommu": "iommu_platform",
    "page_per_vq": "page-per-vq",
    "rss_hash_report": "hash",
    "host_csum": "csum",
    "host_gso": "gso",
    "host_mrg_rxbuf": "mrg_rxbuf",
    "boot_order": "bootindex",
    "acpi_index": "acpi-index",
    "rom_file": "romfile",
    "loadparm": "loadparm",
}
_SAME_NAMES = (
    *("ats", "packed", "ioeventfd", "event_idx", "rx_queue_size", "tx_queue_size", "rss", "mac"),
    *("host_tso4", "host_tso6", "host_ecn", "host_ufo"),
    *("guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo"),
)


_VIRTIO = ("virtio", "virtio-transitional", "virtio-non-transitional")


def netdev(spec, tap_fds, vhost_fds, alias):
    told = {"type": "tap", "id": "host" + alias}
    told["fd" if len(tap_fds) == 1 else "fds"] = ":".join(str(fd) for fd in tap_fds)
    if vhost_fds:
        told["vhost"] = True
        told["vhostfd" if len(vhost_fds) == 1 else "vhostfds"] = ":".join(str(fd) for fd in vhost_fds)
    if spec.sndbuf is not None:
        told["sndbuf"] = spec.sndbuf
    return told


def reconnect(source, dialect):
    """QEMU 9.2's in milliseconds, which json has; that of the elder ones in seconds."""
    if source.reconnect is None:
        return {}
    return {"reconnect-ms": source.reconnect * 1000} if dialect == "json" else {"reconnect": source.reconnect}


def other_netdev(spec, vdpa_fd, passt_socket, alias, dialect):
    """Of a NIC without a TAP."""
    told, source = {"id": "host" + alias}, spec.source
    if spec.type == "user" and isinstance(source, PasstSource):
        told |= {"type": "stream", "server": False, **reconnect(source, dialect)}
        if dialect == "json":
            return {**told, "addr": {"type": "unix", "path": passt_socket}}
        return {**told, "addr.type": "unix", "addr.path": passt_socket}
    if spec.type in ("vhostuser", "vdpa") and spec.queues > 1:
        told["queues"] = spec.queues
    if spec.type == "vhostuser":
        return {**told, "type": "vhost-user", "chardev": "char" + alias}
    if spec.type == "vdpa":
        return {**told, "type": "vhost-vdpa", "vhostdev": f"/dev/fdset/{vdpa_fd}"}
    if spec.type == "user":
        network, _, length = (source.ipv6 if source and source.ipv6 else "").partition("/")
        told |= {"net": source.ipv4} if source and source.ipv4 else {}
        told |= {"ipv6-prefix": network} if network else {}
        told |= {"ipv6-prefixlen": int(length)} if length else {}
        return {**told, "type": "user"}
    option = {"udp": "udp", "mcast": "mcast", "server": "listen", "client": "connect"}[spec.type]
    told |= {option: f"{source.address}:{source.port}", "type": "socket"}
    return {**told, "localaddr": f"{source.local_address}:{source.local_port}"} if spec.type == "udp" else told


def before(spec, vdpa_fd, passt_socket, alias, dialect):
    """What a netdev needs to be there; it is never JSON."""
    if spec.type == "vdpa":
        return [{"set": str(vdpa_fd), "fd": str(vdpa_fd), "opaque": f"{alias}-vdpa"}]
    if spec.type != "vhostuser":
        return []
    told = {"backend": "socket", "id": "char" + alias, **in_words(reconnect(spec.source, dialect))}
    if isinstance(spec.source, PasstSource):
        return [{**told, "path": passt_socket}]
    if spec.source.server:
        told["server"] = "on"
    return [{**told, "path": spec.source.path}]


def device(spec, alias, dialect):
    told = {"driver": _driver(spec), "id": alias, "netdev": "host" + alias}
    for field, option in {**_OTHER_NAMES, **{name: name for name in _SAME_NAMES}}.items():
        if getattr(spec, field) is not None:
            told[option] = getattr(spec, field)
    if spec.txmode is not None:
        told["tx"] = "timer" if spec.txmode == "timer" else "bh"
    if spec.rom_bar is not None:
        told["rombar"] = 1 if spec.rom_bar else 0
    if spec.mtu is not None and spec.model in _VIRTIO:
        told["host_mtu"] = spec.mtu
    if spec.teaming is not None:
        told["failover"] = True
    if spec.queues > 1:
        told["mq"] = True
        if not isinstance(spec.address, (CcwAddress, MmioAddress)):
            told["vectors"] = 2 * (spec.queues + 1)
    if isinstance(spec.address, SpaprVioAddress):
        told["reg"] = f"0x{spec.address.reg:08x}" if dialect == "classic" else spec.address.reg
    return {**told, **_place(spec.address)}


def _driver(spec):
    if spec.model not in _VIRTIO:
        return spec.model
    kind = {CcwAddress: "ccw", MmioAddress: "device"}.get(type(spec.address), "pci")
    return f"virtio-net-{kind}{spec.model[len('virtio') :]}"


def _place(address):
    if isinstance(address, PciAddress):
        slot = f"0x{address.slot:x}" + (f".0x{address.function:x}" if address.function else "")
        told = {"bus": address.name or f"pci.{address.bus}", "addr": slot}
        return told if address.multifunction is None else {**told, "multifunction": address.multifunction}
    if isinstance(address, CcwAddress) and address.devno is not None:
        return {"devno": f"{address.cssid:x}.{address.ssid:x}.{address.devno:04x}"}
    if isinstance(address, UsbAddress):
        return {"bus": f"usb{address.bus}.0" if address.bus else "usb.0", "port": address.port}
    return {}


def in_words(told):
    """As an option string has it: everything is text, and what is true is on."""
    words = {True: "on", False: "off"}
    return {option: words[value] if isinstance(value, bool) else str(value) for option, value in told.items()}


def both(spec, tap_fds=(), vhost_fds=(), alias="net0", *, vdpa_fd=None, passt_socket=None, dialect):
    """The two halves of a NIC as *dialect*'s arguments must be read."""
    if tap_fds:
        half = netdev(spec, tap_fds, vhost_fds, alias)
    else:
        half = other_netdev(spec, vdpa_fd, passt_socket, alias, dialect)
    told = half, device(spec, alias, dialect)
    return told if dialect == "json" else tuple(map(in_words, told))


def all_of(spec, *, alias="net0", vdpa_fd=None, passt_socket=None, dialect, **fds):
    """Every argument of a NIC, as they must be read."""
    first, last = both(spec, alias=alias, vdpa_fd=vdpa_fd, passt_socket=passt_socket, dialect=dialect, **fds)
    zpci = getattr(spec.address, "zpci", None)
    if not zpci:
        return (*before(spec, vdpa_fd, passt_socket, alias, dialect), first, last)
    told = {"driver": "zpci", "uid": zpci.uid, "fid": zpci.fid, "target": alias, "id": f"zpci{zpci.uid}"}
    return (first, told if dialect == "json" else in_words(told), last)
