"""What QEMU must be told of a spec: written from what each option means, and not from the tables of qemu/argv.py."""

from vhostnet import CcwAddress, MmioAddress, PciAddress

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
}
_SAME_NAMES = (
    *("ats", "packed", "ioeventfd", "event_idx", "rx_queue_size", "tx_queue_size", "rss", "mac"),
    *("host_tso4", "host_tso6", "host_ecn", "host_ufo"),
    *("guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo"),
)


def netdev(spec, tap_fds, vhost_fds, alias):
    told = {"type": "tap", "id": "host" + alias}
    told["fd" if len(tap_fds) == 1 else "fds"] = ":".join(str(fd) for fd in tap_fds)
    if vhost_fds:
        told["vhost"] = True
        told["vhostfd" if len(vhost_fds) == 1 else "vhostfds"] = ":".join(str(fd) for fd in vhost_fds)
    if spec.sndbuf is not None:
        told["sndbuf"] = spec.sndbuf
    return told


def device(spec, tap_fds, alias):
    told = {"driver": _driver(spec), "id": alias, "netdev": "host" + alias}
    for field, option in {**_OTHER_NAMES, **{name: name for name in _SAME_NAMES}}.items():
        if getattr(spec, field) is not None:
            told[option] = getattr(spec, field)
    if spec.txmode is not None:
        told["tx"] = "timer" if spec.txmode == "timer" else "bh"
    if spec.rom_bar is not None:
        told["rombar"] = 1 if spec.rom_bar else 0
    if spec.mtu is not None and spec.model.startswith("virtio"):
        told["host_mtu"] = spec.mtu
    if len(tap_fds) > 1:
        told["mq"] = True
        if not isinstance(spec.address, (CcwAddress, MmioAddress)):
            told["vectors"] = 2 * (len(tap_fds) + 1)
    return {**told, **_place(spec.address)}


def _driver(spec):
    if not spec.model.startswith("virtio"):
        return spec.model
    kind = {CcwAddress: "ccw", MmioAddress: "device"}.get(type(spec.address), "pci")
    return f"virtio-net-{kind}{spec.model[len('virtio') :]}"


def _place(address):
    if isinstance(address, PciAddress):
        slot = f"0x{address.slot:x}" + (f".0x{address.function:x}" if address.function else "")
        told = {"bus": f"pci.{address.bus}" if address.bus else address.root, "addr": slot}
        return told if address.multifunction is None else {**told, "multifunction": address.multifunction}
    if isinstance(address, CcwAddress) and address.devno is not None:
        return {"devno": f"{address.cssid:x}.{address.ssid:x}.{address.devno:04x}"}
    return {}


def in_words(told):
    """As an option string has it: everything is text, and what is true is on."""
    words = {True: "on", False: "off"}
    return {option: words[value] if isinstance(value, bool) else str(value) for option, value in told.items()}


def both(spec, tap_fds, vhost_fds=(), alias="net0", *, dialect):
    """The two halves of a NIC as *dialect*'s arguments must be read."""
    told = netdev(spec, tap_fds, vhost_fds, alias), device(spec, tap_fds, alias)
    return told if dialect == "json" else tuple(map(in_words, told))
