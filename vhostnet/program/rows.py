"""One spec + what the kernel can do -> one row: what the NIC is to be, in the kernel's own words and units.

What is done of it, and when, is plan.py's.
"""

from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Final, cast

from vhostnet.errors import SpecError
from vhostnet.program.parts import (
    MACVTAP_MODES,
    MAX_VLANS,
    NOTHING_SLOW,
    PORT,
    UNSHAPED,
    Address,
    Floor,
    Macvtap,
    NicRow,
    Plug,
    Port,
    Queue,
    Route,
    Shaping,
    Slow,
    TunFlag,
    VlanEntry,
    VlanFlag,
)
from vhostnet.spec.interface import TAP_TYPES, VNET_HDR_MODELS, InterfaceSpec, VhostPolicy
from vhostnet.spec.mac import octets, tap_mac
from vhostnet.spec.parts import MAX_BURST, MAX_PORT_BURST, TICK, Bandwidth, Rate, VirtualPort, Vlan, burst_ticks, packed
from vhostnet.values import dataclass

if TYPE_CHECKING:
    from vhostnet.spec.sources import DirectSource  # a source is for few

DEFAULT_MTU: Final = 1500  # what the kernel gives a new TAP


@dataclass(frozen=True)
class Features:
    """What this kernel can do, asked once a process: TUNGETFEATURES' word, and whether there is IPv6."""

    tun: int
    ipv6: bool


def vhost_policy(spec: InterfaceSpec, override: VhostPolicy | None) -> VhostPolicy:
    """The caller's word before the XML's; only virtio models can use vhost-net. Raises SpecError."""
    if spec.virtio:
        return override or spec.vhost
    if override == "require":
        raise SpecError(
            f"means nothing to model {spec.model}", attribute="vhost", value="require", expected="model virtio"
        )
    return "off"


def tun_flags(spec: InterfaceSpec, features: Features) -> int:
    """TUNSETIFF's flags: MULTI_QUEUE only for more than one queue (it costs 256 transmit queues)."""
    flags = _TAP
    if spec.model in VNET_HDR_MODELS and features.tun & _VNET_HDR:
        flags |= _VNET_HDR
    if spec.queues > 1:
        flags |= _MULTI_QUEUE
    return flags


# Plain numbers: IntFlag's operators take a microsecond each, and this runs for every NIC.
_TAP, _VNET_HDR, _MULTI_QUEUE = int(TunFlag.TAP | TunFlag.NO_PI), int(TunFlag.VNET_HDR), int(TunFlag.MULTI_QUEUE)


def row_of(spec: InterfaceSpec, name: str, mark: str, features: Features) -> NicRow:
    if spec.managed is False:
        paths = spec.tap_path, spec.vhost_path
        return NicRow(name, spec.queues, tun_flags(spec, features), *paths, adopted=True, slow=slow_of(spec, name))
    if spec.type == "direct":
        return _direct_row(spec, name, mark, features)
    bridge, mtu = _bridge_and_mtu(spec)
    return NicRow(
        name,
        spec.queues,
        tun_flags(spec, features),
        spec.tap_path,
        spec.vhost_path,
        bridge,
        0,
        mtu,
        tap_mac(spec.mac),
        features.ipv6 and spec.type != "ethernet",  # one that is on no bridge is its guest's router, by its address
        mark,
        port=port_of(spec),
        frames=spec.rx_frames or 0,
        shaping=shaping_of(spec),
        slow=slow_of(spec, name),
    )


def _direct_row(spec: InterfaceSpec, name: str, mark: str, features: Features) -> NicRow:
    """The guest's own MAC: on the way to the network there is no bridge. The MTU is the parent's."""
    source = cast("DirectSource", spec.source)
    return NicRow(
        name,
        spec.queues,
        tun_flags(spec, features),
        spec.tap_path,
        spec.vhost_path,
        mac=octets(spec.mac),
        no_ipv6=features.ipv6,
        alias=mark,
        shaping=shaping_of(spec),
        macvtap=Macvtap(source.dev, _MODES[source.mode], source.trust_guest_rx_filters),
    )


_MODES: Final = {word: number for number, word in MACVTAP_MODES.items()}


def port_row(held: NicRow, spec: InterfaceSpec, mark: str) -> NicRow:
    """One that is held, as the port that *spec* asks for."""
    bridge, mtu = _bridge_and_mtu(spec)
    return NicRow(
        held.ifname,
        held.queues,
        0,
        "",
        "",
        bridge,
        0,
        mtu,
        tap_mac(spec.mac),
        alias=mark,
        ifindex=held.ifindex,
        held=held.held,
        port=port_of(spec),
        frames=spec.rx_frames or 0,
        shaping=shaping_of(spec),
    )


def _bridge_and_mtu(spec: InterfaceSpec) -> tuple[str, int]:
    """As NicRow has them: "" for none, and 0 for the bridge's."""
    if spec.bridge and spec.virtualport:  # which is no link to join, and whose MTU is looked up with it
        return "", spec.mtu or 0
    if spec.bridge:
        return spec.bridge, spec.mtu or 0
    if not spec.tap:
        raise SpecError(
            "has no TAP, so there is nothing to open: its arguments (qemu_argv()) are all there is of it",
            attribute="type",
            value=spec.type,
            expected=" or ".join(TAP_TYPES),
        )
    if spec.type != "ethernet":
        raise SpecError(
            "stands for no bridge here",
            attribute="network",
            value=spec.network,
            expected="a bridge for it: parse_interface(..., networks={NAME: BRIDGE}), --network NAME=BRIDGE",
        )
    return "", spec.mtu or DEFAULT_MTU


def port_of(spec: InterfaceSpec) -> Port:
    if not (spec.isolated or spec.vlan or spec.mac_table_manager == "libvirt") or spec.virtualport:
        return PORT
    guest_mac = octets(spec.mac) if spec.mac_table_manager == "libvirt" else b""
    return Port(spec.isolated or False, guest_mac, _vlan_entries(spec.vlan) if spec.vlan else ())


@lru_cache(maxsize=64)  # few VLANs have many ports
def _vlan_entries(vlan: Vlan) -> tuple[VlanEntry, ...]:
    """As the kernel has them, in as few as can be: what is tagged and stands side by side is one range."""
    for tag in vlan.tags:
        if not 1 <= tag <= _BRIDGE_VLANS:
            expected = f"1..{_BRIDGE_VLANS}: 0 is for frames without a VLAN, and 4095 reserved"
            raise SpecError("is none that a Linux bridge has", attribute="vlan", value=tag, expected=expected)
    if not vlan.trunk:
        return (VlanEntry(_PVID | _UNTAGGED, vlan.tags[0]),)
    entries: list[VlanEntry] = []
    tagged = sorted(set(vlan.tags) - {vlan.native})
    for _, group in groupby(enumerate(tagged), lambda pair: pair[1] - pair[0]):
        vids = [vid for _, vid in group]
        if len(vids) == 1:
            entries.append(VlanEntry(0, vids[0]))
        else:
            entries += [VlanEntry(_BEGIN, vids[0]), VlanEntry(_END, vids[-1])]
    if vlan.native is not None:
        entries.append(VlanEntry(_PVID | (_UNTAGGED if vlan.native_mode == "untagged" else 0), vlan.native))
    if len(entries) > MAX_VLANS:
        raise SpecError(
            f"would take {len(entries)} entries of one port, where a range of VLANs takes two",
            attribute="vlan",
            value=f"{len(vlan.tags)} tags",
            expected=f"at most {MAX_VLANS} entries: more of them side by side",
        )
    return tuple(entries)


_BRIDGE_VLANS: Final = 4094  # net/bridge/br_vlan.c: a VLAN id is above 0, and below VLAN_VID_MASK
_PVID, _UNTAGGED = int(VlanFlag.PVID), int(VlanFlag.UNTAGGED)
_BEGIN, _END = int(VlanFlag.RANGE_BEGIN), int(VlanFlag.RANGE_END)


def slow_of(spec: InterfaceSpec, name: str) -> Slow:
    """What is there of it for other than the engines to do."""
    floor = floor_of(spec) if spec.bandwidth else None
    if spec.virtualport:
        return Slow(_plug(spec, spec.virtualport, name))
    if not (spec.script or spec.downscript or spec.tap_ips or spec.tap_routes or floor):
        return NOTHING_SLOW
    addresses = tuple([Address(packed(ip.address), ip.length, packed(ip.peer)) for ip in spec.tap_ips])
    routes = tuple([Route(packed(to.address), to.length, packed(to.gateway), to.metric) for to in spec.tap_routes])
    return Slow(None, spec.script or "", spec.downscript or "", addresses, routes, floor)


def _plug(spec: InterfaceSpec, port: VirtualPort, name: str) -> Plug:
    """As libvirt has ovs-vsctl write it."""
    ids = [("attached-mac", spec.mac), ("iface-id", port.interfaceid), ("iface-status", "active")]
    if port.vmid:
        ids.append(("vm-id", port.vmid))
    if port.profileid:
        ids += [("port-profile", port.profileid), ("ifname", name)]
    tag: int | None = None
    trunks: tuple[int, ...] = ()
    mode = ""
    if spec.vlan and not spec.vlan.trunk:
        tag = spec.vlan.tags[0]
    elif spec.vlan:
        tag, trunks = spec.vlan.native, spec.vlan.tags
        mode = "" if tag is None else f"native-{spec.vlan.native_mode}"
    inbound, outbound = (spec.bandwidth.inbound, spec.bandwidth.outbound) if spec.bandwidth else (None, None)
    return Plug(spec.bridge or "", tuple(ids), tag, trunks, mode, _queue(inbound), *_policing(outbound))


def _queue(rate: Rate | None) -> Queue | None:
    """libvirt's numbers. Where there is no peak it names none, and the switch takes the speed that the TAP claims."""
    if rate is None or not rate.average:
        return None
    return Queue(rate.average * 8000, max(rate.peak or 0, rate.average) * 8000, (rate.burst or 0) * 8192)


def _policing(rate: Rate | None) -> tuple[int, int]:
    """Likewise, but for a burst that is not given: it is a second's, as on a Linux bridge, and not 8000 kbit."""
    average = (rate.average if rate else 0) or 0
    burst = rate.burst if rate and rate.burst else min(average, MAX_PORT_BURST)
    return average * 8, burst * 8


def shaping_of(spec: InterfaceSpec) -> Shaping:
    """What the kernel is to be told of its bandwidth; a floor is its bridge's, and Open vSwitch shapes by itself."""
    return _shaped(spec.bandwidth, spec.type == "direct") if spec.bandwidth and not spec.virtualport else UNSHAPED


@lru_cache(maxsize=64)  # few bandwidths have many NICs
def _shaped(bandwidth: Bandwidth, macvtap: bool) -> Shaping:
    """libvirt's numbers, and where it has none those of tc, which it runs: rounded up to a tick.

    What a TAP sends its guest gets; a macvtap sends what its guest sends.
    """
    leaving, coming = bandwidth.inbound, bandwidth.outbound
    if macvtap:
        leaving, coming = coming, leaving
    rooted = _class(leaving) if leaving and leaving.average else None
    policed = _police(coming) if coming else None
    return Shaping(*(rooted or (0, 0, 0, 0, 0)), *(policed or (0, 0))) if rooted or policed else UNSHAPED


def _class(rate: Rate) -> tuple[int, int, int, int, int]:
    average = rate.average or 0
    peak = rate.peak or average
    burst = burst_ticks(rate.burst, average) if rate.burst else least_ticks(average * 1000)
    return average * 1000, peak * 1000, burst, least_ticks(peak * 1000), _quantum(average)


def _police(rate: Rate) -> tuple[int, int]:
    average = rate.average or 0
    return burst_ticks(rate.burst or min(average, MAX_BURST), average), average * 1000


def _quantum(average: int) -> int:
    return min(max(average * 1024 // 8 // 1500, 1), 2**31 - 1)  # the kernel's is signed


def least_ticks(rate: int) -> int:
    """Of tc's least burst, at so many bytes a second: what comes in a nanosecond, and a frame of 1600 bytes."""
    size = rate // 10**9 + 1600
    return -(-size * 10**9 // (rate * TICK))


def floor_of(spec: InterfaceSpec) -> Floor | None:
    """What its bridge guarantees it, in libvirt's numbers. Raises SpecError where there is no bridge that could."""
    rate = spec.bandwidth.inbound if spec.bandwidth else None
    if rate is None or not rate.floor:
        return None
    if not spec.bridge or spec.virtualport:
        raise SpecError(
            "is what a Linux bridge guarantees, and this NIC is on none",
            attribute="floor",
            value=rate.floor,
            expected="no floor, or a network that stands for such a bridge",
        )
    kept = rate.floor * 1000
    return Floor(spec.bridge, octets(spec.mac), kept, least_ticks(kept), _quantum(rate.average or 0))
