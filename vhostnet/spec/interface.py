"""InterfaceSpec: one NIC as it is asked for, frozen and validated.

The fields carry the XML's own names where those are unambiguous; ``parse.py`` holds the map. Every limit
of libvirt, the kernel and QEMU is written here once, whatever way a spec is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, Literal

from vhostnet.errors import SpecError
from vhostnet.spec import mac as _mac
from vhostnet.values import dataclass, field

MAX_VLAN: Final = 4094  # 4095 is reserved, and 0 is none
NATIVE_MODES: Final = ("untagged", "tagged")
MAX_QUEUES: Final = 256  # the kernel's MAX_TAP_QUEUES; one more is E2BIG
DEFAULT_TAP: Final = "/dev/net/tun"
DEFAULT_VHOST: Final = "/dev/vhost-net"
VIRTIO_MODELS: Final = ("virtio", "virtio-transitional", "virtio-non-transitional")
MODELS: Final = (*VIRTIO_MODELS, "e1000e", "vmxnet3", "igb", "e1000", "rtl8139")
# Models whose QEMU device can use the virtio-net header on the TAP, as libvirt has it (igb since 9.3).
VNET_HDR_MODELS: Final = (*VIRTIO_MODELS, "e1000e", "vmxnet3", "igb")

VhostPolicy = Literal["auto", "require", "off"]
VHOST_POLICIES: Final = ("auto", "require", "off")


@dataclass(frozen=True)
class PciAddress:
    """Where on the guest's PCI topology: ``bus`` 0 is called ``root``, bus N is ``pci.N``."""

    bus: int = 0
    slot: int = 0
    function: int = 0
    multifunction: bool | None = None
    root: str = "pci.0"

    def __post_init__(self) -> None:
        _check_parts(self, bus=255, slot=31, function=7)
        if not is_id(self.root):
            raise SpecError("is not allowed", attribute="root", value=self.root, expected="a bus name such as pcie.0")

    @property
    def bus_name(self) -> str:
        return f"pci.{self.bus}" if self.bus else self.root

    @property
    def addr(self) -> str:
        return f"0x{self.slot:x}.0x{self.function:x}" if self.function else f"0x{self.slot:x}"


@dataclass(frozen=True)
class CcwAddress:
    """s390's channel address: subchannel set image, subchannel set, device number (None: QEMU's choice)."""

    cssid: int = 0xFE
    ssid: int = 0
    devno: int | None = None

    def __post_init__(self) -> None:
        _check_parts(self, cssid=0xFE, ssid=3)
        if self.devno is not None:
            _check_parts(self, devno=0xFFFF)

    @property
    def text(self) -> str | None:
        return None if self.devno is None else f"{self.cssid:x}.{self.ssid:x}.{self.devno:04x}"


@dataclass(frozen=True)
class MmioAddress:
    """virtio-mmio: the machine places it, there is nothing to say."""


@dataclass(frozen=True)
class Vlan:
    """The VLANs (802.1Q) of a port: one that its frames are put into, or with ``trunk`` some that it tags itself.

    ``tags`` are VLAN ids, 1..4094. ``native`` is the one of a trunk that untagged frames of the guest go into; what the
    bridge sends it of that one is "untagged", too, or with ``native_mode`` "tagged" it is tagged.
    """

    tags: tuple[int, ...]
    trunk: bool = False
    native: int | None = None
    native_mode: str = "untagged"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", tuple(self.tags))
        for tag in self.tags:
            if not _whole(1, MAX_VLAN)(tag):
                raise SpecError("is not allowed", attribute="tags", value=tag, expected=f"VLAN ids, 1..{MAX_VLAN}")
        if not self.tags or len(set(self.tags)) < len(self.tags):
            raise SpecError("is not allowed", attribute="tags", value=self.tags, expected="VLAN ids, each of them once")
        if len(self.tags) > 1 and not self.trunk:
            raise SpecError("has more than one, and is no trunk", attribute="tags", value=self.tags)
        if self.native is not None and not (self.trunk and self.native in self.tags):
            raise SpecError("is not allowed", attribute="native", value=self.native, expected="one of a trunk's tags")
        if self.native_mode not in NATIVE_MODES:
            raise SpecError(
                "is not allowed", attribute="native_mode", value=self.native_mode, expected=" or ".join(NATIVE_MODES)
            )


@dataclass(frozen=True, kw_only=True)
class InterfaceSpec:
    """One NIC as asked for, built by ``parse_interface`` or straight in Python.

    ``type`` is ``"bridge"`` (default; ``bridge`` names a Linux bridge that exists), ``"ethernet"`` (a TAP
    of its own, no bridge) or ``"network"`` (``network`` is a name, ``bridge`` what it stands for here).
    ``mac`` is the guest's; left out, a random one in 52:54:00. ``ifname`` is the TAP's name, up to 15
    characters, or a template with one ``%d``; None generates ``vnetN``. With ``managed`` False the TAP of that name is
    there already, and somebody else's (type ethernet): nothing of it is changed, and it stays. ``queues`` counts
    queue pairs, 1..256. ``mtu`` is in bytes, 68..65521; None takes the bridge's. ``sndbuf`` is in bytes. On its bridge
    an ``isolated`` port sees none but those that are not, ``vlan`` are the VLANs it is in (of a bridge that heeds
    them), and ``mac_table_manager`` "libvirt" has the guest's MAC put into the forwarding table, instead of learning
    and flooding. ``rx_frames`` is ethtool's: how many frames the TAP may gather (the kernel takes 64 at the most).
    Fields that are None leave the choice to QEMU, as libvirt does.

    Raises SpecError, naming the argument, its value and what would be right.
    """

    type: str = "bridge"
    bridge: str | None = None
    network: str | None = None
    mac: str = field(default_factory=_mac.random_mac)
    model: str = "virtio"
    ifname: str | None = None
    vhost: VhostPolicy = "auto"
    queues: int = 1
    rx_queue_size: int | None = None
    tx_queue_size: int | None = None
    txmode: str | None = None
    ioeventfd: bool | None = None
    event_idx: bool | None = None
    iommu: bool | None = None
    ats: bool | None = None
    packed: bool | None = None
    page_per_vq: bool | None = None
    rss: bool | None = None
    rss_hash_report: bool | None = None
    host_csum: bool | None = None
    host_gso: bool | None = None
    host_tso4: bool | None = None
    host_tso6: bool | None = None
    host_ecn: bool | None = None
    host_ufo: bool | None = None
    host_mrg_rxbuf: bool | None = None
    guest_csum: bool | None = None
    guest_tso4: bool | None = None
    guest_tso6: bool | None = None
    guest_ecn: bool | None = None
    guest_ufo: bool | None = None
    tap_path: str = DEFAULT_TAP
    vhost_path: str = DEFAULT_VHOST
    sndbuf: int | None = None
    mtu: int | None = None
    managed: bool | None = None
    isolated: bool | None = None
    vlan: Vlan | None = None
    mac_table_manager: str | None = None
    rx_frames: int | None = None
    link_state: str | None = None
    alias: str | None = None
    address: PciAddress | CcwAddress | MmioAddress | None = None
    boot_order: int | None = None
    rom_bar: bool | None = None
    rom_file: str | None = None
    acpi_index: int | None = None

    def __post_init__(self) -> None:
        for name, allowed, expected in _RULES:
            value = getattr(self, name)
            if not (allowed(value) if value is not None else name not in _NEVER_NONE):
                raise SpecError("is not allowed", attribute=name, value=value, expected=expected)
        object.__setattr__(self, "mac", _mac.normalize(self.mac))
        _check_source(self)
        _check_managed(self)
        _check_port(self)
        _check_model(self)
        _check_address(self)

    @property
    def virtio(self) -> bool:
        """The model is one of virtio's, so queues, vhost and the driver's options mean something."""
        return self.model in VIRTIO_MODELS

    @property
    def pci(self) -> bool:
        """The device sits on PCI (where nothing else is said)."""
        return self.address is None or isinstance(self.address, PciAddress)


# --- what one value may be -------------------------------------------------------------------------------

# Patterns are compiled by the first value that needs them: all of them at once would take as long as a NIC.

Check = Callable[[Any], bool]

_CONTROL = r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"  # bidi's with them
_IFNAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_RESERVED = ("all", "default")  # net.ipv4.conf.all and .default: the kernel refuses them from 6.18 on
_ID = r"[A-Za-z][A-Za-z0-9_.-]{0,127}"
_GENERATED = r"net[0-9]+"
_ADDR = r"(0x)?[01]?[0-9A-Fa-f](\.(0x)?[0-7])?"


def is_id(value: object) -> bool:
    """What QEMU takes as an id, of a device or a bus: a letter, then letters, digits and ``-._``."""
    return isinstance(value, str) and re.fullmatch(_ID, value) is not None


def is_generated(alias: object) -> bool:
    """An alias as libvirt generates them: it stands for nothing, and another is as good."""
    return isinstance(alias, str) and re.fullmatch(_GENERATED, alias) is not None


def is_addr(value: object) -> bool:
    """A PCI slot, with or without function, as QEMU's ``addr=`` takes it: ``0x7``, ``0x7.0x1``."""
    return isinstance(value, str) and re.fullmatch(_ADDR, value) is not None


def _one_of(*words: str) -> Check:
    return lambda value: isinstance(value, str) and value in words


def _whole(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _ring(value: object) -> bool:
    return type(value) is int and value in (256, 512, 1024)


def _text(value: object) -> bool:
    """Any text without control characters: a newline could forge a line or an option, a bidi override its look."""
    return isinstance(value, str) and re.search(_CONTROL, value) is None


def _path(value: object) -> bool:
    return _text(value) and isinstance(value, str) and value.startswith("/") and len(value) < 4096


def _ifname(value: object) -> bool:
    """A name for a TAP of ours: the kernel's rule less what surprises (``,`` ``=`` a leading dash)."""
    if not isinstance(value, str) or not 0 < len(value) <= 15 or value in _RESERVED:
        return False
    head, template, tail = value.partition("%d")
    plain = head + ("0" if template else "") + tail
    return len(plain) <= 15 and re.fullmatch(_IFNAME, plain) is not None


def _bridge_name(value: object) -> bool:
    """A link that exists already: whatever the kernel's dev_valid_name() lets exist."""
    return (
        _text(value)
        and isinstance(value, str)
        and 0 < len(value.encode()) <= 15
        and value not in (".", "..")
        and not re.search(r"[/:\s]", value)
    )


def _check_parts(address: object, **tops: int) -> None:
    for name, top in tops.items():
        value = getattr(address, name)
        if not _whole(0, top)(value):
            raise SpecError("is not allowed", attribute=name, value=value, expected=f"a whole number, 0..{top}")


_BOOLS = (
    *("ioeventfd", "event_idx", "iommu", "ats", "packed", "page_per_vq", "rss", "rss_hash_report"),
    *("host_csum", "host_gso", "host_tso4", "host_tso6", "host_ecn", "host_ufo", "host_mrg_rxbuf"),
    *("guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo", "rom_bar"),
)
_PATH_WANTED = "an absolute path without control characters"

_RULES: Final[tuple[tuple[str, Check, str], ...]] = (
    ("type", _one_of("bridge", "ethernet", "network"), "bridge, ethernet or network"),
    ("bridge", _bridge_name, "the name of a Linux bridge, 1 to 15 bytes"),
    ("network", lambda value: _text(value) and value != "", "the name of a network"),
    ("mac", lambda value: _mac.normalize(value) is not None, _mac.EXPECTED),
    ("model", _one_of(*MODELS), "one of " + ", ".join(MODELS)),
    (
        "ifname",
        _ifname,
        "1 to 15 of A-Z a-z 0-9 _ . - (no . or - in front), not 'all' or 'default', at most one %d",
    ),
    ("vhost", _one_of(*VHOST_POLICIES), "auto, require or off"),
    ("queues", _whole(1, MAX_QUEUES), f"a whole number of queue pairs, 1..{MAX_QUEUES}"),
    ("rx_queue_size", _ring, "256, 512 or 1024"),
    ("tx_queue_size", _ring, "256, 512 or 1024"),
    ("txmode", _one_of("iothread", "timer"), "iothread or timer"),
    *((name, _is_bool, "on or off (True or False)") for name in _BOOLS),
    ("tap_path", _path, _PATH_WANTED),
    ("vhost_path", _path, _PATH_WANTED),
    ("sndbuf", _whole(0, 2**64 - 1), "a whole number of bytes, 0..18446744073709551615"),
    ("mtu", _whole(68, 65521), "a whole number of bytes, 68..65521"),
    ("managed", _is_bool, "yes or no (True or False)"),
    ("isolated", _is_bool, "yes or no (True or False)"),
    ("vlan", lambda value: isinstance(value, Vlan), "a Vlan"),
    ("mac_table_manager", _one_of("kernel", "libvirt"), "kernel or libvirt"),
    ("rx_frames", _whole(0, 2**32 - 1), "a whole number of frames, 0..4294967295"),
    ("link_state", _one_of("up", "down"), "up or down"),
    ("alias", is_id, "a letter, then letters, digits and - . _"),
    (
        "address",
        lambda value: isinstance(value, (PciAddress, CcwAddress, MmioAddress)),
        "a PciAddress, CcwAddress or MmioAddress",
    ),
    ("boot_order", _whole(1, 2**31 - 1), "a whole number from 1 on"),
    ("rom_file", _text, "a path without control characters, or an empty one for no ROM"),
    ("acpi_index", _whole(1, 16383), "a whole number, 1..16383"),
)

_NEVER_NONE: Final = frozenset(("type", "mac", "model", "vhost", "queues", "tap_path", "vhost_path"))


# --- what the values mean together -----------------------------------------------------------------------


def _check_source(spec: InterfaceSpec) -> None:
    needed = {"bridge": "bridge", "network": "network"}.get(spec.type)
    if needed and getattr(spec, needed) is None:
        raise SpecError(f"is missing, and type {spec.type} needs it", attribute=needed, expected=f"the {needed}'s name")
    if spec.type == "ethernet" and spec.bridge is not None:
        raise SpecError("has no place in a NIC of type ethernet", attribute="bridge", value=spec.bridge)
    if spec.type != "network" and spec.network is not None:
        raise SpecError(f"has no place in a NIC of type {spec.type}", attribute="network", value=spec.network)


def _check_managed(spec: InterfaceSpec) -> None:
    if spec.managed is not False:
        return
    if spec.type != "ethernet":
        raise SpecError(f"is not for type {spec.type}", attribute="managed", value="no", expected="type ethernet")
    if spec.ifname is None or "%d" in spec.ifname:
        raise SpecError(
            "names no TAP that is there", attribute="ifname", value=spec.ifname, expected="a name, where managed is no"
        )


_PORT_ONLY: Final = ("isolated", "vlan", "mac_table_manager", "rx_frames")


def _check_port(spec: InterfaceSpec) -> None:
    """libvirt refuses the settings of a bridge's port for a NIC that is none, and so is rx-frames."""
    wrong = next((name for name in _PORT_ONLY if getattr(spec, name) is not None), None)
    if wrong and spec.type == "ethernet":
        value = getattr(spec, wrong)
        raise SpecError(f"is not for type {spec.type}", attribute=wrong, value=value, expected="type bridge or network")


# The fields that QEMU's virtio-net alone understands.
VIRTIO_ONLY: Final = (
    *("rx_queue_size", "tx_queue_size", "txmode"),
    *(name for name in _BOOLS if name != "rom_bar"),
)


def _check_model(spec: InterfaceSpec) -> None:
    if spec.virtio:
        return
    wrong = next((name for name in VIRTIO_ONLY if getattr(spec, name) is not None), None)
    if spec.queues > 1:
        wrong = "queues"
    if spec.vhost == "require":
        wrong = "vhost"
    if wrong:
        value = getattr(spec, wrong)
        raise SpecError(f"means nothing to model {spec.model}", attribute=wrong, value=value, expected="model virtio")


def _check_address(spec: InterfaceSpec) -> None:
    if spec.pci:
        return
    if spec.model != "virtio":
        raise SpecError(f"is no place for model {spec.model}, which exists on PCI only", attribute="address")
    wrong = next((name for name in ("rom_bar", "rom_file", "acpi_index") if getattr(spec, name) is not None), None)
    if wrong:
        raise SpecError("is for a device on PCI only", attribute=wrong, value=getattr(spec, wrong))
