"""InterfaceSpec: one NIC as it is asked for, frozen and validated.

The fields carry the XML's own names where those are unambiguous; ``parse.py`` holds the map. Every limit
of libvirt, the kernel and QEMU is written here once, whatever way a spec is made.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from vhostnet.checks import (
    Check,
    is_bool,
    is_id,
    is_link_name,
    is_path,
    is_program,
    is_text,
    matches,
    one_of,
    tuple_of,
    whole,
)
from vhostnet.errors import SpecError
from vhostnet.spec import mac as _mac
from vhostnet.spec.parts import (
    Address,
    Bandwidth,
    CcwAddress,
    HostIp,
    HostRoute,
    MmioAddress,
    PciAddress,
    Source,
    SpaprVioAddress,
    UsbAddress,
    VirtualPort,
    Vlan,
)
from vhostnet.values import dataclass, field

MAX_QUEUES: Final = 256  # the kernel's MAX_TAP_QUEUES; one more is E2BIG
DEFAULT_TAP: Final = "/dev/net/tun"
DEFAULT_VHOST: Final = "/dev/vhost-net"
VIRTIO_MODELS: Final = ("virtio", "virtio-transitional", "virtio-non-transitional")
# Models whose QEMU device can use the virtio-net header on the TAP, as libvirt has it (igb since 9.3).
VNET_HDR_MODELS: Final = (*VIRTIO_MODELS, "e1000e", "vmxnet3", "igb")

TAP_TYPES: Final = ("bridge", "ethernet", "network", "direct")  # a macvtap is one, too, to QEMU
_TUN_TYPES: Final = ("bridge", "ethernet", "network")  # those that /dev/net/tun makes
# NICs that QEMU is told of, and no TAP is made for.
TAPLESS_TYPES: Final = ("user", "vhostuser", "vdpa", "udp", "mcast", "server", "client")
SOURCE_TYPES: Final = ("direct", *TAPLESS_TYPES)  # what they lead to is a value of its own

VhostPolicy = Literal["auto", "require", "off"]
VHOST_POLICIES: Final = ("auto", "require", "off")


@dataclass(frozen=True, kw_only=True)
class InterfaceSpec:
    """One NIC as asked for, built by ``parse_interface`` or straight in Python.

    ``type`` is ``"bridge"`` (default; ``bridge`` names a Linux bridge that exists), ``"ethernet"`` (a TAP
    of its own, no bridge), ``"network"`` (``network`` is a name, ``bridge`` what it stands for here) or ``"direct"`` (a
    macvtap on the link that ``source`` names: it has that one's MTU and the guest's own MAC).
    The others have no TAP (``tap`` is False), and QEMU's arguments are all there is of them: ``"user"``,
    ``"vhostuser"``, ``"vdpa"``, ``"udp"``, ``"mcast"``, ``"server"``, ``"client"``; ``source`` says where they lead to.
    ``mac`` is the guest's; left out, a random one in 52:54:00. ``ifname`` is the TAP's name, up to 15
    characters, or a template with one ``%d``; None generates ``vnetN``. With ``managed`` False the TAP of that name is
    there already, and somebody else's (type ethernet): nothing of it is changed, and it stays. ``queues`` counts
    queue pairs, 1..256, without a TAP only vhostuser and vdpa have more than one. ``mtu`` is in bytes, 68..65521; None
    takes the bridge's, and without a TAP only vhostuser and passt can be told. ``sndbuf`` is in bytes. On its bridge an
    ``isolated`` port sees none but those that are not, ``vlan`` are the VLANs it is in (of a bridge that heeds them),
    and ``mac_table_manager`` "libvirt" has the guest's MAC put into the forwarding table, instead of learning and
    flooding. With ``virtualport`` the bridge is Open vSwitch's. ``script`` is a program that is run with the TAP's name
    when that is up, ``downscript`` one that is before it goes, and ``tap_ips`` and ``tap_routes`` are the host's, of
    the TAP itself (type ethernet). ``rx_frames`` is ethtool's: how many frames the TAP may gather (the kernel takes 64
    at the most). ``bandwidth`` is what its guest may get and send, of any NIC with a TAP of its own; a floor is for
    type network. ``teaming`` "persistent" is the half of a pair that stays when the other, a device of the host, is
    taken away. ``loadparm`` goes with ``boot_order`` on s390: 1 to 8 of ``A-Z 0-9 .`` and space. Fields that are None
    leave the choice to QEMU, as libvirt does.

    Raises SpecError, naming the argument, its value and what would be right.
    """

    type: str = "bridge"
    bridge: str | None = None
    network: str | None = None
    source: Source | None = None
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
    virtualport: VirtualPort | None = None
    script: str | None = None
    downscript: str | None = None
    tap_ips: tuple[HostIp, ...] = ()
    tap_routes: tuple[HostRoute, ...] = ()
    rx_frames: int | None = None
    bandwidth: Bandwidth | None = None
    link_state: str | None = None
    teaming: str | None = None
    alias: str | None = None
    address: Address | None = None
    boot_order: int | None = None
    loadparm: str | None = None
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
        _check_type(self)
        _check_managed(self)
        _check_virtualport(self)
        _check_model(self)
        _check_address(self)

    @property
    def tap(self) -> bool:
        """A TAP is made for it; for the others there are arguments alone."""
        return self.type in TAP_TYPES

    @property
    def passt(self) -> bool:
        """It leads to a passt, of type user or vhostuser."""
        return self.source is not None and self.source.passt

    @property
    def virtio(self) -> bool:
        """The model is one of virtio's, so queues, vhost and the driver's options mean something."""
        return self.model in VIRTIO_MODELS

    @property
    def pci(self) -> bool:
        """The device sits on PCI (where nothing else is said)."""
        if self.address is None:
            return self.model not in _HOMES
        return isinstance(self.address, PciAddress)


# --- what one value may be -------------------------------------------------------------------------------

_IFNAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_RESERVED = ("all", "default")  # net.ipv4.conf.all and .default: the kernel refuses them from 6.18 on
_MODEL = r"[A-Za-z0-9_-]{1,63}"
_LOADPARM = r"[A-Z0-9. ]{1,8}"
_HOMES = {"usb-net": UsbAddress, "spapr-vlan": SpaprVioAddress}  # of models that are not for PCI


def _ring(value: object) -> bool:
    return type(value) is int and value in (256, 512, 1024)


def is_model(value: object) -> bool:
    """What could be a device of QEMU's: whether it is one only QEMU knows."""
    return isinstance(value, str) and re.fullmatch(_MODEL, value) is not None


def _ifname(value: object) -> bool:
    """A name for a TAP of ours: the kernel's rule less what surprises (``,`` ``=`` a leading dash)."""
    if not isinstance(value, str) or not 0 < len(value) <= 15 or value in _RESERVED:
        return False
    head, template, tail = value.partition("%d")
    plain = head + ("0" if template else "") + tail
    return len(plain) <= 15 and re.fullmatch(_IFNAME, plain) is not None


_BOOLS = (
    *("ioeventfd", "event_idx", "iommu", "ats", "packed", "page_per_vq", "rss", "rss_hash_report"),
    *("host_csum", "host_gso", "host_tso4", "host_tso6", "host_ecn", "host_ufo", "host_mrg_rxbuf"),
    *("guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo", "rom_bar"),
)
_PATH_WANTED = "an absolute path without control characters"
_PROGRAM_WANTED = "the absolute path of a program, or a name to look for in $PATH"

_RULES: Final[tuple[tuple[str, Check, str], ...]] = (
    ("type", one_of(*TAP_TYPES, *TAPLESS_TYPES), "one of " + ", ".join((*TAP_TYPES, *TAPLESS_TYPES))),
    ("bridge", is_link_name, "the name of a Linux bridge, 1 to 15 bytes"),
    ("network", lambda value: is_text(value) and value != "", "the name of a network"),
    ("mac", lambda value: _mac.normalize(value) is not None, _mac.EXPECTED),
    (
        "source",
        lambda value: isinstance(value, Source),
        "a DirectSource, UserSource, PasstSource, VhostUserSource, VdpaSource or SocketSource",
    ),
    ("model", is_model, "1 to 63 of A-Z a-z 0-9 _ -: virtio, or a device that QEMU has"),
    (
        "ifname",
        _ifname,
        "1 to 15 of A-Z a-z 0-9 _ . - (no . or - in front), not 'all' or 'default', at most one %d",
    ),
    ("vhost", one_of(*VHOST_POLICIES), "auto, require or off"),
    ("queues", whole(1, MAX_QUEUES), f"a whole number of queue pairs, 1..{MAX_QUEUES}"),
    ("rx_queue_size", _ring, "256, 512 or 1024"),
    ("tx_queue_size", _ring, "256, 512 or 1024"),
    ("txmode", one_of("iothread", "timer"), "iothread or timer"),
    *((name, is_bool, "on or off (True or False)") for name in _BOOLS),
    ("tap_path", is_path, _PATH_WANTED),
    ("vhost_path", is_path, _PATH_WANTED),
    ("sndbuf", whole(0, 2**64 - 1), "a whole number of bytes, 0..18446744073709551615"),
    ("mtu", whole(68, 65521), "a whole number of bytes, 68..65521"),
    ("managed", is_bool, "yes or no (True or False)"),
    ("isolated", is_bool, "yes or no (True or False)"),
    ("vlan", lambda value: isinstance(value, Vlan), "a Vlan"),
    ("mac_table_manager", one_of("kernel", "libvirt"), "kernel or libvirt"),
    ("virtualport", lambda value: isinstance(value, VirtualPort), "a VirtualPort"),
    ("script", is_program, _PROGRAM_WANTED),
    ("downscript", is_program, _PROGRAM_WANTED),
    ("tap_ips", tuple_of(HostIp), "a tuple of HostIp"),
    ("tap_routes", tuple_of(HostRoute), "a tuple of HostRoute"),
    ("rx_frames", whole(0, 2**32 - 1), "a whole number of frames, 0..4294967295"),
    ("bandwidth", lambda value: isinstance(value, Bandwidth), "a Bandwidth"),
    ("link_state", one_of("up", "down"), "up or down"),
    ("teaming", one_of("persistent"), "persistent"),
    ("alias", is_id, "a letter, then letters, digits and - . _"),
    (
        "address",
        lambda value: isinstance(value, Address),
        "a PciAddress, CcwAddress, MmioAddress, UsbAddress or SpaprVioAddress",
    ),
    ("boot_order", whole(1, 2**31 - 1), "a whole number from 1 on"),
    ("loadparm", matches(_LOADPARM), "1 to 8 of A-Z 0-9 . and space"),
    ("rom_file", is_text, "a path without control characters, or an empty one for no ROM"),
    ("acpi_index", whole(1, 16383), "a whole number, 1..16383"),
)

_NEVER_NONE: Final = frozenset(
    ("type", "mac", "model", "vhost", "queues", "tap_path", "vhost_path", "tap_ips", "tap_routes")
)


# --- what the values mean together -----------------------------------------------------------------------


def _check_source(spec: InterfaceSpec) -> None:
    """It leads to where its type does, and to nothing else."""
    needed, expected = _NEEDED.get(spec.type, ("", ""))
    if needed and getattr(spec, needed) is None:
        raise SpecError(f"is missing, and type {spec.type} needs it", attribute=needed, expected=expected)
    for name, types in _PLACES.items():
        value = getattr(spec, name)
        if value not in (None, ()) and spec.type not in types:
            expected = f"it with type {', '.join(types)}"
            raise SpecError(
                f"has no place in a NIC of type {spec.type}", attribute=name, value=value, expected=expected
            )
    if spec.source is not None:
        if spec.type not in spec.source.types:
            expected = f"a source of that type, and this one is of {', '.join(spec.source.types)}"
            raise SpecError(
                f"has no place in a NIC of type {spec.type}", attribute="source", value=spec.source, expected=expected
            )
        spec.source.check(spec.type)


_NEEDED: Final = {
    "bridge": ("bridge", "the bridge's name"),
    "network": ("network", "the network's name"),
    "direct": ("source", "a DirectSource"),
    "vhostuser": ("source", "a VhostUserSource or PasstSource"),
    "vdpa": ("source", "a VdpaSource"),
    **dict.fromkeys(("udp", "mcast", "server", "client"), ("source", "a SocketSource")),
}
_PLACES: Final = {
    "bridge": ("bridge", "network"),
    "network": ("network",),
    "source": SOURCE_TYPES,
    "virtualport": ("bridge", "network"),
    **dict.fromkeys(("script", "downscript", "tap_ips", "tap_routes"), ("ethernet",)),
}


def _check_managed(spec: InterfaceSpec) -> None:
    if spec.managed is not False:
        return
    if spec.type != "ethernet":
        raise SpecError(f"is not for type {spec.type}", attribute="managed", value="no", expected="type ethernet")
    if spec.ifname is None or "%d" in spec.ifname:
        raise SpecError(
            "names no TAP that is there", attribute="ifname", value=spec.ifname, expected="a name, where managed is no"
        )
    if spec.bandwidth is not None:
        raise SpecError(
            "is not for a TAP that is there: nothing of it is changed",
            attribute="bandwidth",
            expected="it left out, and whoever made the TAP to shape it (tc)",
        )


def _check_virtualport(spec: InterfaceSpec) -> None:
    """A port of Open vSwitch has no settings of a Linux bridge's."""
    if spec.virtualport is None:
        return
    for name, value in (("isolated", True), ("mac_table_manager", "libvirt")):
        if getattr(spec, name) == value:
            expected = "none beside a virtualport"
            raise SpecError("is for a port of a Linux bridge", attribute=name, value=value, expected=expected)
    if spec.bandwidth:
        spec.bandwidth.check_port()


# The settings that only some types have, and what the others have instead.
_ONLY_FOR: Final[dict[str, tuple[tuple[str, ...], object]]] = {
    **dict.fromkeys(("isolated", "vlan", "mac_table_manager", "rx_frames"), (("bridge", "network"), None)),
    "ifname": (TAP_TYPES, None),
    "bandwidth": (TAP_TYPES, None),
    "tap_path": (_TUN_TYPES, DEFAULT_TAP),
    "vhost_path": (TAP_TYPES, DEFAULT_VHOST),
    "sndbuf": (TAP_TYPES, None),
    "mtu": ((*_TUN_TYPES, "vhostuser"), None),
    "queues": ((*TAP_TYPES, "vhostuser", "vdpa"), 1),
}


def _check_type(spec: InterfaceSpec) -> None:
    """libvirt refuses what a type has no use for: the settings of a port or of a TAP, more queues than one."""
    if spec.type != "network" and spec.bandwidth and spec.bandwidth.inbound and spec.bandwidth.inbound.floor:
        problem = "has a floor, which is what a network guarantees"
        raise SpecError(problem, attribute="bandwidth", value=spec.bandwidth, expected="type network, or no floor")
    if spec.type in ("bridge", "network"):  # which have all of it
        return
    for name, (types, nothing) in _ONLY_FOR.items():
        value = getattr(spec, name)
        if spec.type not in types and value != nothing and not (name == "mtu" and spec.passt):
            expected = f"type {', '.join(types)}" + (", or user with passt" if name == "mtu" else "")
            raise SpecError(f"is not for type {spec.type}", attribute=name, value=value, expected=expected)
    if spec.type in ("vhostuser", "vdpa") and not spec.virtio:
        raise SpecError(f"is not for type {spec.type}", attribute="model", value=spec.model, expected="model virtio")
    if spec.vhost == "require" and not spec.tap:
        expected = "auto or off: vhost-net is for a TAP"
        raise SpecError(f"means nothing to type {spec.type}", attribute="vhost", value=spec.vhost, expected=expected)


# The fields that QEMU's virtio-net alone understands.
VIRTIO_ONLY: Final = (
    *("rx_queue_size", "tx_queue_size", "txmode", "teaming"),
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
    if spec.loadparm is not None and not isinstance(spec.address, CcwAddress):
        expected = "an address of type ccw beside it, or none"
        raise SpecError("is for s390's channels only", attribute="loadparm", value=spec.loadparm, expected=expected)
    if not _fits(spec):
        raise SpecError(f"is no place for model {spec.model}", attribute="address", value=spec.address)
    if spec.pci:
        return
    wrong = next((name for name in ("rom_bar", "rom_file", "acpi_index") if getattr(spec, name) is not None), None)
    if wrong:
        raise SpecError("is for a device on PCI only", attribute=wrong, value=getattr(spec, wrong))


def _fits(spec: InterfaceSpec) -> bool:
    if spec.address is None:
        return True
    if isinstance(spec.address, (CcwAddress, MmioAddress)):
        return spec.model == "virtio"
    return isinstance(spec.address, _HOMES.get(spec.model, PciAddress))
