"""What a spec has besides plain values, each frozen and checked: addresses, VLANs, bandwidth."""

from __future__ import annotations

import os
import re
from typing import ClassVar, Final

from vhostnet.checks import is_id, is_text, is_whole
from vhostnet.errors import SpecError
from vhostnet.values import dataclass, field

MAX_VLAN: Final = 4095  # all that 802.1Q's 12 bits have
NATIVE_MODES: Final = ("untagged", "tagged")
MAX_RATE: Final = 2**54  # kB/s: 1000 times as much is what 64 bits hold; libvirt's limit
MAX_BURST: Final = 2**22 - 1  # KiB: in bytes what 32 bits hold; likewise
# Of a port of Open vSwitch, which counts bytes a second in 32 bits (up to 3.1), and so bits of a burst that is policed.
MAX_PORT_RATE: Final = (2**32 - 1) // 1000
MAX_PORT_BURST: Final = (2**32 - 1) // 1024 // 8
TICK: Final = 64  # ns; the kernel counts how long a burst takes at the rate, in 32 bits of these

_USB_PORT = r"[1-9][0-9]{0,2}(\.[1-9][0-9]{0,2}){0,3}"


def packed(text: object) -> bytes:
    """An IP address as the kernel has it, of 4 bytes or 16; none for what is no address."""
    import socket  # an address is for few

    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_pton(family, text if isinstance(text, str) else "")
        except (OSError, ValueError):
            continue
    return b""


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

    ``tags`` are VLAN ids, 0..4095; a Linux bridge has neither the first nor the last. ``native`` is the one of a trunk
    that untagged frames of the guest go into; what the bridge sends it of that one is "untagged", too, or with
    ``native_mode`` "tagged" it is tagged.
    """

    tags: tuple[int, ...]
    trunk: bool = False
    native: int | None = None
    native_mode: str = "untagged"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", tuple(self.tags))
        for tag in self.tags:
            if not is_whole(tag, 0, MAX_VLAN):
                raise SpecError("is not allowed", attribute="tags", value=tag, expected=f"VLAN ids, 0..{MAX_VLAN}")
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


def random_uuid() -> str:
    """RFC 9562, version 4."""
    digits = bytearray(os.urandom(16))
    digits[6], digits[8] = digits[6] & 0x0F | 0x40, digits[8] & 0x3F | 0x80
    return _hyphened(digits.hex())


def _hyphened(digits: str) -> str:
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def is_uuid(value: object) -> bool:
    """32 hexadecimal digits, with hyphens in their places or none."""
    return isinstance(value, str) and re.fullmatch(_UUID, value) is not None


_UUID = r"[0-9A-Fa-f]{8}(-?)[0-9A-Fa-f]{4}\1[0-9A-Fa-f]{4}\1[0-9A-Fa-f]{4}\1[0-9A-Fa-f]{12}"
MAX_PROFILE: Final = 39


@dataclass(frozen=True)
class VirtualPort:
    """A port of an Open vSwitch bridge, and what others (OVN, ...) know it by.

    ``interfaceid`` is its UUID there, a random one where none is given; ``profileid`` a name of theirs, up to 39
    characters; ``vmid`` the UUID of the domain that it is of, where that is known.
    """

    interfaceid: str = field(default_factory=random_uuid)
    profileid: str | None = None
    vmid: str | None = None

    def __post_init__(self) -> None:
        for name in ("interfaceid", "vmid"):
            value = getattr(self, name)
            if value is not None or name == "interfaceid":
                if not is_uuid(value):
                    raise SpecError("is not allowed", attribute=name, value=value, expected="a UUID")
                object.__setattr__(self, name, _hyphened(value.replace("-", "").lower()))
        if self.profileid is not None and not (is_text(self.profileid) and len(self.profileid) <= MAX_PROFILE):
            expected = f"up to {MAX_PROFILE} characters, and none that control"
            raise SpecError("is not allowed", attribute="profileid", value=self.profileid, expected=expected)


PORT_TYPES: Final = ("openvswitch", "midonet", "802.1Qbg", "802.1Qbh")
_PARAMETERS: Final = ("interfaceid", "profileid", "managerid", "typeid", "typeidversion", "instanceid")


@dataclass(frozen=True)
class PortProfile:
    """What a <virtualport> says of whose switch a NIC is on, and by what name and number it is known there.

    Each (name, text) once; ``type`` None where another says it: a NIC's network, or its port group.
    """

    type: str | None
    parameters: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.type is not None and self.type not in PORT_TYPES:
            raise SpecError("is not allowed", attribute="type", value=self.type, expected=" or ".join(PORT_TYPES))
        object.__setattr__(self, "parameters", tuple(sorted(self.parameters)))
        for name, text in self.parameters:
            if name not in _PARAMETERS:
                expected = ", ".join(_PARAMETERS)
                raise SpecError("is not allowed", attribute="parameters", value=name, expected=expected)
            if not is_text(text) or text == "":
                expected = "a text without control characters"
                raise SpecError("is not allowed", attribute=name, value=text, expected=expected)

    def merged(self, other: PortProfile) -> PortProfile:
        """Both in one. Raises SpecError where they differ in what both say."""
        mine, others = dict(self.parameters), dict(other.parameters)
        wrong = next((name for name in mine if others.get(name, mine[name]) != mine[name]), "")
        if self.type and other.type and self.type != other.type:
            raise SpecError("differ", attribute="type", value=f"{self.type!r} and {other.type!r}")
        if wrong:
            raise SpecError("differ", attribute=wrong, value=f"{mine[wrong]!r} and {others[wrong]!r}")
        return PortProfile(self.type or other.type, tuple({**mine, **others}.items()))


_IP: Final = "an IP address, such as 192.168.125.1 or fd00::1"


@dataclass(frozen=True)
class HostIp:
    """An address of the host's end of a NIC: ``prefix`` is how long the network's part is, None that of its class.

    With ``peer`` it is one end of a pair, and ``prefix`` that of the other.
    """

    address: str
    prefix: int | None = None
    peer: str | None = None

    def __post_init__(self) -> None:
        _check_ip(self, "address")
        if self.peer is not None:
            _check_ip(self, "peer", like="address")
        _check_length(self)

    @property
    def length(self) -> int:
        """``prefix``, or what stands for it."""
        return _length(self.address) if self.prefix is None else self.prefix


@dataclass(frozen=True)
class HostRoute:
    """A route of the host's: to the network ``address`` of ``prefix`` bits, by way of ``gateway``, behind the NIC.

    Without ``prefix`` it is the one to everywhere, 0.0.0.0 or ``::``; libvirt, too, has networks by their class for
    addresses alone.
    """

    address: str
    gateway: str
    prefix: int | None = None
    metric: int = 1

    def __post_init__(self) -> None:
        _check_ip(self, "address")
        _check_ip(self, "gateway", like="address")
        _check_length(self)
        if self.prefix is None and any(packed(self.address)):
            problem, expected = "is a network, and no prefix says which", "a prefix beside it, or 0.0.0.0 or ::"
            raise SpecError(problem, attribute="address", value=self.address, expected=expected)
        if not is_whole(self.metric, 1, 2**32 - 1):
            raise SpecError(
                "is not allowed", attribute="metric", value=self.metric, expected="a whole number, 1..4294967295"
            )
        network = packed(self.address)
        hosts = 8 * len(network) - self.length
        if int.from_bytes(network, "big") & ((1 << hosts) - 1):
            expected = f"the address of a network of {self.length} bits"
            raise SpecError("is of a host", attribute="address", value=self.address, expected=expected)

    @property
    def length(self) -> int:
        """``prefix``, or what stands for it."""
        return self.prefix or 0


def _check_ip(value: object, name: str, like: str = "") -> None:
    text = getattr(value, name)
    there = packed(text)
    if not there:
        raise SpecError("is not allowed", attribute=name, value=text, expected=_IP)
    if like and len(there) != len(packed(getattr(value, like))):
        raise SpecError("is of another family", attribute=name, value=text, expected=f"one as {like} is")


def _check_length(value: HostIp | HostRoute) -> None:
    most = 8 * len(packed(value.address))
    if value.prefix is None and _length(value.address) < 0:
        raise SpecError(
            "is in no network that a host could be in",
            attribute="address",
            value=value.address,
            expected="a prefix beside it, or another address",
        )
    if value.prefix is not None and not is_whole(value.prefix, 0, most):
        raise SpecError("is not allowed", attribute="prefix", value=value.prefix, expected=f"bits, 0..{most}")


def _length(address: str) -> int:
    """As libvirt has it where nothing is said: by the class (RFC 791), and 64 for IPv6; -1 for what is of none."""
    there = packed(address)
    if not any(there):
        return 0
    if len(there) == 16:
        return 64
    return next((length for below, length in ((128, 8), (192, 16), (224, 24)) if there[0] < below), -1)


@dataclass(frozen=True)
class Rate:
    """What may pass in one direction: ``average`` in kB (of 1000 bytes) a second, ``burst`` in KiB (of 1024).

    ``peak``, in kB/s, is what it may be for as long as a burst lasts, on Open vSwitch for good; None is the average.
    ``burst`` None is libvirt's choice, 1.6 kB. That is of what a guest gets, and of a macvtap of what it sends; the
    other direction has a burst of a second, and no peak. ``floor``, in kB/s, is what a network of libvirt's guarantees
    its guest.
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

    def check_port(self) -> None:
        """Raises SpecError for what a port of Open vSwitch would make another number of."""
        for direction, name, unit, top in _PORT_TOPS:
            value = getattr(getattr(self, direction), name, None) or 0
            if value > top:
                problem = f"has an {direction} {name} of {value}, and no port of Open vSwitch counts so far"
                raise SpecError(problem, attribute="bandwidth", expected=f"{unit}, 1..{top}")


_PORT_TOPS: Final = (
    ("inbound", "average", "kB a second", MAX_PORT_RATE),
    ("inbound", "peak", "kB a second", MAX_PORT_RATE),
    ("outbound", "average", "kB a second", MAX_PORT_RATE),
    ("outbound", "burst", "KiB", MAX_PORT_BURST),
)


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
    passt: ClassVar[bool] = False  # a passt that somebody else starts

    def check(self, kind: str) -> None:
        """Raises SpecError where it lacks what a NIC of this type needs."""
