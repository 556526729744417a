"""What a spec has besides plain values, each frozen and checked: addresses, VLANs, bandwidth; and the checks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar, Final

from vhostnet.errors import SpecError
from vhostnet.values import dataclass

MAX_VLAN: Final = 4094  # 4095 is reserved, and 0 is none
NATIVE_MODES: Final = ("untagged", "tagged")
MAX_RATE: Final = 2**54  # kB/s: 1000 times as much is what 64 bits hold; libvirt's limit
MAX_BURST: Final = 2**22 - 1  # KiB: in bytes what 32 bits hold; likewise
TICK: Final = 64  # ns; the kernel counts how long a burst takes at the rate, in 32 bits of these

# --- what one value may be -------------------------------------------------------------------------------

# Patterns are compiled by the first value that needs them: all of them at once would take as long as a NIC.

Check = Callable[[Any], bool]

_CONTROL = r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"  # bidi's with them
_ID = r"[A-Za-z][A-Za-z0-9_.-]{0,127}"
_GENERATED = r"net[0-9]+"
_USB_PORT = r"[1-9][0-9]{0,2}(\.[1-9][0-9]{0,2}){0,3}"
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


def is_link_name(value: object) -> bool:
    """A link that exists already: whatever the kernel's dev_valid_name() lets exist."""
    return (
        is_text(value)
        and isinstance(value, str)
        and 0 < len(value.encode()) <= 15
        and value not in (".", "..")
        and not re.search(r"[/:\s]", value)
    )


def matches(pattern: str) -> Check:
    """The whole of it is of this pattern."""
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def one_of(*words: str) -> Check:
    """One of these words."""
    return lambda value: isinstance(value, str) and value in words


def is_whole(value: object, low: int, high: int) -> bool:
    """A whole number within these limits; True and False are none."""
    return type(value) is int and low <= value <= high


def whole(low: int, high: int) -> Check:
    """is_whole() within these limits."""
    return lambda value: is_whole(value, low, high)


def is_bool(value: object) -> bool:
    """True or False, and no number that is as good."""
    return isinstance(value, bool)


def is_text(value: object) -> bool:
    """Any text without control characters: a newline could forge a line or an option, a bidi override its look."""
    return isinstance(value, str) and re.search(_CONTROL, value) is None


def is_path(value: object) -> bool:
    """An absolute path that is such text."""
    return is_text(value) and isinstance(value, str) and value.startswith("/") and len(value) < 4096


def _check_parts(address: object, **tops: int) -> None:
    for name, top in tops.items():
        value = getattr(address, name)
        if not is_whole(value, 0, top):
            raise SpecError("is not allowed", attribute=name, value=value, expected=f"a whole number, 0..{top}")


# --- where in the guest, which VLANs, and where to -------------------------------------------------------


@dataclass(frozen=True)
class ZpciAddress:
    """What s390 calls a PCI device besides: user-defined and function identifier."""

    uid: int
    fid: int

    def __post_init__(self) -> None:
        _check_parts(self, uid=0xFFFF, fid=0xFFFFFFFF)
        if self.uid == 0:
            raise SpecError("is not allowed", attribute="uid", value=0, expected="a whole number, 1..65535")


@dataclass(frozen=True)
class PciAddress:
    """Where on the guest's PCI topology: bus N is called ``pci.N``, unless ``name`` says otherwise (``pcie.0``)."""

    bus: int = 0
    slot: int = 0
    function: int = 0
    multifunction: bool | None = None
    name: str | None = None
    zpci: ZpciAddress | None = None

    def __post_init__(self) -> None:
        _check_parts(self, bus=255, slot=31, function=7)
        if not isinstance(self.zpci, (ZpciAddress, type(None))):
            raise SpecError("is not allowed", attribute="zpci", value=self.zpci, expected="a ZpciAddress")
        if self.name == f"pci.{self.bus}":
            object.__setattr__(self, "name", None)
        if not (self.name is None or is_id(self.name)):
            raise SpecError("is not allowed", attribute="name", value=self.name, expected="a bus name such as pcie.0")

    @property
    def bus_name(self) -> str:
        return self.name or f"pci.{self.bus}"

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
            if not is_whole(tag, 1, MAX_VLAN):
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


@dataclass(frozen=True)
class Rate:
    """What may pass in one direction: ``average`` in kB (of 1000 bytes) a second, ``burst`` in KiB (of 1024).

    ``peak``, in kB/s, is what it may be for as long as a burst lasts; None is the average. ``burst`` None is libvirt's
    choice, 1.6 kB. That is of what a guest gets, and of a macvtap of what it sends; the other direction has a burst of
    a second, and no peak, as in libvirt. ``floor``, in kB/s, is what a network of libvirt's guarantees its guest.
    """

    average: int | None = None
    peak: int | None = None
    burst: int | None = None
    floor: int | None = None

    def __post_init__(self) -> None:
        for name, top in {"average": MAX_RATE, "peak": MAX_RATE, "burst": MAX_BURST, "floor": MAX_RATE}.items():
            value = getattr(self, name)
            if value is not None and not is_whole(value, 1, top):
                unit = "KiB" if name == "burst" else "kB a second"
                raise SpecError("is not allowed", attribute=name, value=value, expected=f"{unit}, 1..{top}")
        if self.average is None and self.floor is None:
            raise SpecError("is missing", attribute="average", expected="kB a second")
        for name in ("peak", "burst"):
            if self.average is None and getattr(self, name) is not None:
                raise SpecError("says nothing without an average", attribute=name, value=getattr(self, name))
        if self.average is not None and self.burst is not None and burst_ticks(self.burst, self.average) >= 2**32:
            most = self.average * (2**32 - 1) * TICK // 1024 // 10**6
            raise SpecError(
                "takes longer than the kernel can count at this average: 274 s",
                attribute="burst",
                value=self.burst,
                expected=f"KiB, 1..{most}",
            )


def burst_ticks(burst: int, average: int) -> int:
    """How long a burst of so many KiB takes at so many kB a second."""
    return -(-burst * 1024 * 10**6 // (average * TICK))


@dataclass(frozen=True)
class Bandwidth:
    """What a NIC may get (``inbound``, as its guest sees it) and send (``outbound``); None has no limit."""

    inbound: Rate | None = None
    outbound: Rate | None = None

    def __post_init__(self) -> None:
        for name in ("inbound", "outbound"):
            value = getattr(self, name)
            if not isinstance(value, (Rate, type(None))):
                raise SpecError("is not allowed", attribute=name, value=value, expected="a Rate")
        if self.inbound is None and self.outbound is None:
            raise SpecError("is missing", attribute="inbound", expected="a Rate of one direction or of both")
        if self.outbound is not None and self.outbound.floor is not None:
            expected = "no floor: it is of what a guest gets"
            raise SpecError("is not allowed", attribute="outbound", value=self.outbound, expected=expected)


@dataclass(frozen=True)
class UsbAddress:
    """On a USB controller: its number, and the port, behind hubs a path of them (``1.2``)."""

    bus: int = 0
    port: str = "1"

    def __post_init__(self) -> None:
        _check_parts(self, bus=255)
        if not isinstance(self.port, str) or not re.fullmatch(_USB_PORT, self.port):
            raise SpecError("is not allowed", attribute="port", value=self.port, expected="a port such as 1 or 1.2")

    @property
    def bus_name(self) -> str:
        return f"usb{self.bus or ''}.0"


@dataclass(frozen=True)
class SpaprVioAddress:
    """On pseries' own bus: the register."""

    reg: int

    def __post_init__(self) -> None:
        _check_parts(self, reg=0xFFFFFFFF)


Address = PciAddress | CcwAddress | MmioAddress | UsbAddress | SpaprVioAddress


class Source:
    """Where a NIC without a TAP leads to; ``sources.py`` has them. ``types`` are those of the NICs that can have it."""

    types: ClassVar[tuple[str, ...]] = ()

    def check(self, kind: str) -> None:
        """Raises SpecError where it lacks what a NIC of this type needs."""
