"""What is asked + what the host said -> Program: every kernel act, in order, as data.

The order of the acts and its reasons stand here and nowhere else. Before the first of them the run looks up the
bridges that are only named: nothing is made where one is missing. Then:

1. ADOPT       a TAP that is there is opened first, if any: what it is decides. Nothing of it is changed.
   TAP_OPEN    the first queue creates the device (IFF_TUN_EXCL: a name somebody else holds is an error and
               never shared), the others attach.
   MACVTAP     in its place for one of type direct: the link, whole and marked by one send, and then its queues. There
               is nothing left for LINK.
2. VHOST_OPEN  what can fail for want of a driver fails before anything can be seen on the network.
3. SELFTEST    where asked for: a private vhost-net fd is wired to the first TAP and thrown away.
4. QDISC       noqueue before UP. IFF_MULTI_QUEUE gives the device 256 transmit queues, and UP would give
               each a qdisc of its own: 1.5 ms and 6.5 MiB against 40 us and 0.3 MiB. libvirt sets noqueue too,
               but after UP. A NIC that sends no more than a bandwidth has another root, by TC.
5. LINK        MAC before the bridge sees the port (a bridge takes the lowest MAC of its ports); MTU before the
               port joins (a bridge takes the lowest MTU of its ports).
6. VLAN_ADD    the VLANs of its port, and then out of the one that every new port is in (VLAN_DEL): while it is down,
   VLAN_DEL    or a guest would have written some hundred frames into that one. Messages of the bridge's own, which
               cannot ride in LINK.
7. FDB         the guest's MAC in the bridge's forwarding table, in every VLAN of the port.
8. COALESCE    rx-frames, by ethtool's ioctl.
9. PLUG        where its bridge is Open vSwitch's: a port there, with its VLANs, in one transaction for all NICs; with
               MAC and MTU, which the switch reads, and before UP. Then comes the QDISC of these: the switch takes away
               what it finds at the root when it gets the device, and leaves alone what is put there afterwards.
10. TC         its bandwidth: HTB at the root for what it sends, in the place of noqueue, and UP is as cheap; a policer
               at the ingress for what comes in by it. What a TAP sends its guest gets; a macvtap has its guest's
               directions. Before UP, so that no frame passes without.
11. UP         last of what the kernel does, and only after every answer to the acts before it was read (``barrier``): a
               NIC that failed anywhere was never up, and never up outside its bridge. What else there is to set of a
               port (isolated, learning, flood) rides in the same message, and stands before the port forwards: the
               kernel refuses it in the one that joins.
12. SCRIPT     a user's, when it is up, as libvirt runs it.
13. ADDRESS    addresses and routes of the host's end: the kernel has no route by way of a link that is down.
14. PERSIST    where NICs are to outlive their fds: after all the rest, so that a run that fails or dies leaves none. A
               kill among these few microseconds leaves those it was done with, marked as every NIC.

A batch runs all acts of one kind before the next kind, so netlink messages go out many to a send.

A NIC that exists already (``held``) takes other acts: VHOST_OPEN and ATTACH for the next QEMU on it; ALTNAME or RENAME
and LINK, in one send, for one that was made ahead and is taken now, and 6 to 11 where it has settings; DELETE, which
takes link and fds away; LEAVE, and then as a new one from LINK on, for one that becomes another port. One that was or
is to be limited in what it sends has QDISC in between: noqueue puts away whatever root there is, and all below it. One
that is on no Linux bridge stays where it is, and has REPLUG for its port of Open vSwitch, QDISC and TC for bandwidth.

9, 12 and 13 are slow acts (vhostnet/slow/). What of them a NIC would leave behind goes before it does: DOWNSCRIPT while
it is there as it was, then UNADDRESS (of a link that stays), then UNPLUG, in one transaction for all. Each is tried,
whatever becomes of the others.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Final, Literal, TypeVar, cast

from vhostnet.errors import SpecError
from vhostnet.program.program import (
    MACVTAP_MODES,
    MAX_VLANS,
    NOTHING_SLOW,
    PORT,
    UNSHAPED,
    Act,
    Address,
    Fds,
    Link,
    Macvtap,
    NicRow,
    Op,
    Persist,
    Plug,
    Port,
    Program,
    Route,
    Shaping,
    Slow,
    TunFlag,
    VlanEntry,
    VlanFlag,
)
from vhostnet.spec.interface import TAP_TYPES, VNET_HDR_MODELS, InterfaceSpec, VhostPolicy
from vhostnet.spec.mac import octets, tap_mac
from vhostnet.spec.parts import MAX_BURST, TICK, Bandwidth, Rate, VirtualPort, Vlan, burst_ticks, packed
from vhostnet.values import dataclass

if TYPE_CHECKING:
    from vhostnet.spec.sources import DirectSource  # a source is for few

DEFAULT_MTU: Final = 1500  # what the kernel gives a new TAP

_T = TypeVar("_T")
Qdisc = Literal["noqueue", "default"]
QDISCS: Final = ("noqueue", "default")


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


def plan(
    specs: Sequence[InterfaceSpec],
    names: Sequence[str],
    features: Features,
    *,
    marks: Sequence[str] = (),
    vhost: VhostPolicy | None = None,
    qdisc: Qdisc = "noqueue",
    selftest: bool = False,
    keep: bool = False,
    park: bool = False,
    up: bool = True,
    persist: Persist | None = None,
) -> Program:
    """The Program that makes one NIC of each spec, under the name and with the mark that stand beside it.

    Bridges are left to the run to look up. *vhost* overrides the specs' own policy. Without *up* the NICs are left
    down; with *park*, too, and their ports as any; with *persist* they outlive their fds. Raises SpecError for two NICs
    of one name, for two of one MAC on one bridge, for a network that stands for no bridge, for a spec without a TAP;
    and for slow acts that cannot be done ahead, or would be left for nobody to do.
    """
    if len(specs) > 1:
        _check_unique("ifname", names)
        _check_macs(specs)
    rows, policies = [], []
    for spec, name, mark in zip(specs, names, marks or [""] * len(names), strict=True):
        rows.append(_row(spec, name, mark, features))
        policies.append(vhost_policy(spec, vhost))
    if park:  # its port is whoever takes it to set
        for spec in specs:
            _check_plain(spec)
        rows = [row._replace(port=PORT, frames=0, shaping=UNSHAPED) for row in rows]
    adopted = tuple([number for number, row in enumerate(rows) if row.adopted])
    macvtaps = tuple([number for number, row in enumerate(rows) if row.macvtap])
    rooted = tuple([number for number, row in enumerate(rows) if row.shaping.rate])
    acts = _acts(tuple(policies), adopted, macvtaps, rooted, _settings(rows), qdisc, selftest, up and not park)
    if persist:
        _check_lasting(specs)
        rows, acts = _lasting(rows, acts, persist)
    return Program(tuple(rows), acts, keep)


def _lasting(rows: list[NicRow], acts: tuple[Act, ...], persist: Persist) -> tuple[list[NicRow], tuple[Act, ...]]:
    """What is there already lasts anyway, and so does a macvtap, whose node is root's."""
    for name, value in persist._asdict().items():
        if value >= 0 and any(row.macvtap for row in rows):
            raise SpecError("means nothing to type direct", attribute=name, value=value, expected="none")
    every = [number for number, row in enumerate(rows) if not (row.adopted or row.macvtap)]
    lasting = [row if row.adopted else row._replace(persist=persist) for row in rows]
    return lasting, acts + tuple(Act(Op.PERSIST, nic, barrier=nic == every[0]) for nic in every)


def _settings(rows: Sequence[NicRow]) -> tuple[tuple[Op, ...], ...]:
    """What is done of each NIC after LINK, but for UP; nothing at all where that is so of every one."""
    for row in rows:
        if _has_settings(row):
            return tuple(map(_settings_of, rows))
    return ()


def _has_settings(row: NicRow) -> bool:
    return row.port is not PORT or row.frames > 0 or row.shaping is not UNSHAPED or row.slow is not NOTHING_SLOW


def _settings_of(row: NicRow) -> tuple[Op, ...]:
    ops = [Op.VLAN_ADD, Op.VLAN_DEL] if row.port.vlans else []
    if row.port.guest_mac:
        ops.append(Op.FDB)
    if row.frames:
        ops.append(Op.COALESCE)
    if row.shaping is not UNSHAPED:
        ops.append(Op.TC)
    return (*ops, *_slow_ops(row.slow))


def _slow_ops(slow: Slow) -> Iterator[Op]:
    if slow.plug:
        yield Op.PLUG
    if slow.script:
        yield Op.SCRIPT
    if slow.addresses or slow.routes:
        yield Op.ADDRESS


@lru_cache(maxsize=8)  # most batches are like the one before
def _acts(
    policies: tuple[VhostPolicy, ...],
    adopted: tuple[int, ...],
    macvtaps: tuple[int, ...],
    rooted: tuple[int, ...],
    settings: tuple[tuple[Op, ...], ...],
    qdisc: Qdisc,
    selftest: bool,
    up: bool,
) -> tuple[Act, ...]:
    every = [nic for nic in range(len(policies)) if nic not in adopted]
    taps = [nic for nic in every if nic not in macvtaps]
    wanted = [nic for nic, policy in enumerate(policies) if policy != "off"]
    acts = [Act(Op.ADOPT, nic) for nic in adopted]
    acts += [Act(Op.TAP_OPEN, nic) for nic in taps]
    acts += [Act(Op.MACVTAP, nic) for nic in macvtaps]
    acts += [Act(Op.VHOST_OPEN, nic, optional=policies[nic] == "auto") for nic in wanted]
    if selftest:
        acts += [Act(Op.SELFTEST, nic) for nic in wanted[:1]]
    plugged = [nic for nic, ops in enumerate(settings) if Op.PLUG in ops]
    if qdisc == "noqueue":
        acts += [Act(Op.QDISC, nic) for nic in every if nic not in plugged and nic not in rooted]
    acts += [Act(Op.LINK, nic) for nic in taps]
    for op in _SETTINGS:
        acts += [Act(op, nic) for nic, ops in enumerate(settings) if op in ops]
    if qdisc == "noqueue":
        acts += [Act(Op.QDISC, nic) for nic in plugged if nic not in rooted]
    if up:
        acts += [Act(Op.UP, nic, barrier=nic == every[0]) for nic in every]
        for op in _WHEN_UP:
            acts += [Act(op, nic) for nic, ops in enumerate(settings) if op in ops]
    return tuple(acts)


_SETTINGS: Final = (Op.VLAN_ADD, Op.VLAN_DEL, Op.FDB, Op.COALESCE, Op.PLUG, Op.TC)
_WHEN_UP: Final = (Op.SCRIPT, Op.ADDRESS)


def plan_take(parked: NicRow, spec: InterfaceSpec, mark: str, *, wish: str = "", rename: bool = False) -> Program:
    """The Program that makes *spec*'s NIC of one that is parked (``held``): one send.

    *wish* becomes its alternative name, or with *rename* its name. It comes up in the LINK act, without waiting:
    nobody has the fds yet, so one that fails is thrown away before anybody could use it. Where its port has settings
    they come between the two.
    """
    _check_plain(spec)
    row = _port_row(parked, spec, mark)._replace(wish=wish, up=True)
    acts: tuple[Act, ...] = _LINK if not wish else _RENAME if rename else _ALTNAME
    if _has_settings(row):
        row = row._replace(up=False)
        acts += _these(_settings_of(row)) + _UP
    return Program((row,), acts)


def _port_row(held: NicRow, spec: InterfaceSpec, mark: str) -> NicRow:
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
        port=_port(spec),
        frames=spec.rx_frames or 0,
        shaping=shaping_of(spec),
    )


def _these(ops: Iterable[Op]) -> tuple[Act, ...]:
    return tuple([Act(op, 0) for op in _SETTINGS if op in ops])


_LINK: Final = (Act(Op.LINK, 0),)
_ALTNAME: Final = (Act(Op.ALTNAME, 0), *_LINK)
_RENAME: Final = (Act(Op.RENAME, 0), *_LINK)
_UP: Final = (Act(Op.UP, 0, barrier=True),)


def plan_up(held: NicRow, spec: InterfaceSpec) -> Program:
    """The Program that brings up a NIC that was left down, as the port it is to be."""
    after = tuple([Act(op, 0) for op in _slow_ops(held.slow) if op in _WHEN_UP])
    return Program((held._replace(port=_port(spec)),), _UP + after)


def plan_update(held: NicRow, was: InterfaceSpec, spec: InterfaceSpec, *, up: bool = True) -> Program:
    """The Program that makes a NIC, which *was* another port or is on its way from that, the port that *spec* asks for.

    It leaves its bridge, and with that all that was set of the port, and joins as a new one does: at no time does a
    frame pass between what it was and what it is to be. One that is on no Linux bridge stays where it is.
    """
    if spec.virtualport or spec.type not in ("bridge", "network"):
        return _plan_in_place(held, was, spec)
    row = _port_row(held, spec, held.alias)
    before = shaping_of(was)
    ops = {*_settings_of(row), Op.COALESCE}  # no frames, where there were some
    if before is not UNSHAPED:
        ops.add(Op.TC)
    root = _QDISC if before.rate or row.shaping.rate else ()
    return Program((row,), _LEAVE + root + _LINK + _these(ops) + (_UP if up else ()))


def _plan_in_place(held: NicRow, was: InterfaceSpec, spec: InterfaceSpec) -> Program:
    """What the switch is told of it, and its bandwidth: up as it is, it has none for some microseconds."""
    before, after = shaping_of(was), shaping_of(spec)
    slow = _slow(spec, held.ifname) if spec.virtualport else held.slow
    acts: tuple[Act, ...] = _REPLUG if slow.plug != held.slow.plug else ()
    if before != after:
        acts += (_QDISC if before.rate or after.rate else ()) + _TC
    return Program((held._replace(adopted=False, shaping=after, slow=slow),), acts)


_LEAVE: Final = (Act(Op.LEAVE, 0),)
_REPLUG: Final = (Act(Op.REPLUG, 0),)
_TC: Final = (Act(Op.TC, 0),)
_QDISC: Final = (Act(Op.QDISC, 0),)


def plan_reset(held: NicRow, vhost_path: str) -> Program:
    """The Program that makes a NIC ready for the next QEMU: fresh vhost-net fds, where there is a path, and every queue
    attached.

    A vhost-net fd has its first QEMU for an owner until the last copy of it is closed, ours among them.
    """
    if not vhost_path:
        return Program((held,), _ATTACH)
    row = held._replace(vhost_path=vhost_path, held=Fds(held.fds.tap, ()))
    return Program((row,), (Act(Op.VHOST_OPEN, 0), *_ATTACH))


_ATTACH: Final = (Act(Op.ATTACH, 0),)


def plan_helped(held: NicRow, spec: InterfaceSpec, vhost: VhostPolicy | None) -> Program:
    """The Program that gives a NIC, whose TAP somebody else has made, its vhost-net fds, if it is to have such."""
    policy = vhost_policy(spec, vhost)
    acts = () if policy == "off" else (Act(Op.VHOST_OPEN, 0, optional=policy == "auto"),)
    return Program((held._replace(vhost_path=spec.vhost_path),), acts)


def plan_delete(held: Sequence[NicRow]) -> Program:
    """The Program that takes these NICs away, each one for itself: what cannot be deleted is left as it is."""
    return Program(tuple(held), tuple([Act(Op.DELETE, nic) for nic in range(len(held))]), keep=True)


def plan_end(held: Sequence[NicRow]) -> Program:
    """The Program that ends what of these NICs' slow acts would be left behind."""
    acts = [Act(op, nic, optional=True) for op in _ENDS for nic, row in enumerate(held) if op in _end_ops(row.slow)]
    return Program(tuple(held), tuple(acts), keep=True)


def _end_ops(slow: Slow) -> Iterator[Op]:
    if slow.downscript:
        yield Op.DOWNSCRIPT
    if slow.addresses or slow.routes:
        yield Op.UNADDRESS
    if slow.plug:
        yield Op.UNPLUG


_ENDS: Final = (Op.DOWNSCRIPT, Op.UNADDRESS, Op.UNPLUG)


def resolve(program: Program, bridges: Mapping[str, Link]) -> Program:
    """The same Program with what is known of its bridges put in: what a dry run shows."""
    rows = []
    for nic in program.nics:
        bridge = bridges.get(nic.joins)
        if bridge:
            nic = nic._replace(master=bridge.ifindex if nic.bridge else 0, mtu=nic.mtu or bridge.mtu)
        rows.append(nic)
    return Program(tuple(rows), program.acts, program.keep)


def _row(spec: InterfaceSpec, name: str, mark: str, features: Features) -> NicRow:
    if spec.managed is False:
        paths = spec.tap_path, spec.vhost_path
        return NicRow(name, spec.queues, tun_flags(spec, features), *paths, adopted=True, slow=_slow(spec, name))
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
        port=_port(spec),
        frames=spec.rx_frames or 0,
        shaping=shaping_of(spec),
        slow=_slow(spec, name),
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


def _slow(spec: InterfaceSpec, name: str) -> Slow:
    """What is there of it for other than the engines to do."""
    if spec.virtualport:
        return Slow(_plug(spec, spec.virtualport, name))
    if not (spec.script or spec.downscript or spec.tap_ips or spec.tap_routes):
        return NOTHING_SLOW
    addresses = tuple([Address(packed(ip.address), ip.length, packed(ip.peer)) for ip in spec.tap_ips])
    routes = tuple([Route(packed(to.address), to.length, packed(to.gateway), to.metric) for to in spec.tap_routes])
    return Slow(None, spec.script or "", spec.downscript or "", addresses, routes)


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
    return Plug(spec.bridge or "", tuple(ids), tag, trunks, mode)


def _check_plain(spec: InterfaceSpec) -> None:
    """A NIC that is made ahead has no slow acts: they are about whom it is for, and take longer than to make one."""
    for name in ("virtualport", "script", "downscript", "tap_ips", "tap_routes"):
        value = getattr(spec, name)
        if value:
            raise SpecError(
                "is nothing that a pool can have ready", attribute=name, value=value, expected="open_nics() for such"
            )


def _check_lasting(specs: Sequence[InterfaceSpec]) -> None:
    for spec in specs:
        if spec.downscript:
            raise SpecError(
                "would be left for nobody to run, when the NIC outlives its maker",
                attribute="downscript",
                value=spec.downscript,
                expected="none, and to run it after delete_nics()",
            )


def _port(spec: InterfaceSpec) -> Port:
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


def shaping_of(spec: InterfaceSpec) -> Shaping:
    """What the kernel is to be told of its bandwidth. Raises SpecError for a floor."""
    return _shaped(spec.bandwidth, spec.type == "direct") if spec.bandwidth else UNSHAPED


@lru_cache(maxsize=64)  # few bandwidths have many NICs
def _shaped(bandwidth: Bandwidth, macvtap: bool) -> Shaping:
    """libvirt's numbers, and where it has none those of tc, which it runs: rounded up to a tick.

    What a TAP sends its guest gets; a macvtap sends what its guest sends.
    """
    leaving, coming = bandwidth.inbound, bandwidth.outbound
    if macvtap:
        leaving, coming = coming, leaving
    rooted = _class(leaving) if leaving else (0, 0, 0, 0, 0)
    policed = _police(coming) if coming else (0, 0)
    return Shaping(*rooted, *policed)


def _class(rate: Rate) -> tuple[int, int, int, int, int]:
    if rate.floor:
        raise SpecError(
            "is a guarantee out of what a network of libvirt's has for all its guests, and that nobody here knows",
            attribute="floor",
            value=rate.floor,
            expected="no floor: an average, or a class of your own on the bridge (tc class add)",
        )
    average = rate.average or 0
    peak = rate.peak or average
    burst = burst_ticks(rate.burst, average) if rate.burst else _least_ticks(average)
    quantum = min(max(average * 1024 // 8 // 1500, 1), 2**31 - 1)  # the kernel's is signed
    return average * 1000, peak * 1000, burst, _least_ticks(peak), quantum


def _police(rate: Rate) -> tuple[int, int]:
    average = rate.average or 0
    return burst_ticks(rate.burst or min(average, MAX_BURST), average), average * 1000


def _least_ticks(average: int) -> int:
    """Of tc's least burst: what comes in a nanosecond, and a frame of 1600 bytes."""
    size = average * 1000 // 10**9 + 1600
    return -(-size * 10**6 // (average * TICK))


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


def _check_unique(what: str, values: Sequence[str]) -> None:
    twice = _first_twice(values)
    if twice is not None:
        raise SpecError("is asked for twice in one batch", attribute=what, value=twice)


def _check_macs(specs: Sequence[InterfaceSpec]) -> None:
    """A bridge forwards by MAC, so one MAC is one port of it. Clones of a VM on a bridge each are no harm.

    So does a link that macvtaps are on.
    """
    bridges = [(spec.bridge, spec.mac) for spec in specs if spec.bridge]
    parents = [(cast("DirectSource", spec.source).dev, spec.mac) for spec in specs if spec.type == "direct"]
    for what, places in (("bridge", bridges), ("link", parents)):
        twice = _first_twice(places)
        if twice is not None:
            place, mac = twice
            raise SpecError(f"is asked for twice on {what} {place!r} in one batch", attribute="mac", value=mac)


def _first_twice(values: Sequence[_T]) -> _T | None:
    if len(set(values)) == len(values):
        return None
    return next(value for value, times in Counter(values).items() if times > 1)
