"""The rows of a batch -> Program: every kernel act, in order, as data.

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
7. FDB         the guest's MAC in the bridge's forwarding table, in every VLAN of the port. Not of one that is left
               down: a bridge has a MAC at one port, and its guest may still be at another.
8. COALESCE    rx-frames, by ethtool's ioctl.
9. PLUG        where its bridge is Open vSwitch's: a port there, with its VLANs and its bandwidth, in one transaction
               for all NICs; with MAC and MTU, which the switch reads, and before UP. It shapes its ports by itself, and
               has done so by the end of this: an ingress of anybody else's it takes away, sooner or later.
               Then comes the QDISC of those whose root it leaves alone; what it finds there when it gets the device
               goes.
10. TC         its bandwidth, where no switch has seen to it: HTB at the root for what it sends, in the place of
               noqueue, and UP is as cheap; a policer at the ingress for what comes in by it. What a TAP sends its
               guest gets; a macvtap has its guest's directions. Before UP, so that no frame passes without.
    FLOOR      what its bridge guarantees it: a class there, of the tree that the bridge has.
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
takes link and fds away; DOWN for one that goes down and stays a port, with UNFDB and UNADDRESS for what of it must not
stay then, and 7, 11 to 13 when it comes up; LEAVE, and then as a new one from LINK on, for one that becomes another
port. One that was or is to be limited in what it sends has QDISC in between: noqueue puts away whatever root there is,
and all below it; one that is guaranteed something, or is to be, has REFLOOR. One that is on no Linux bridge stays where
it is, and has REPLUG for its port of Open vSwitch and its bandwidth, with QDISC where the switch has taken its own root
away; else QDISC and TC for bandwidth.

9, 12, 13 and FLOOR are slow acts (vhostnet/slow/). What of them a NIC would leave behind goes before it does:
DOWNSCRIPT while it is there as it was, then UNADDRESS (of a link that stays), then UNPLUG, in one transaction for all,
and UNFLOOR. Each is tried, whatever becomes of the others.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal

from vhostnet.errors import SpecError
from vhostnet.program.batch import check_lasting, check_macs, check_plain, check_unique
from vhostnet.program.parts import NOTHING_SLOW, PORT, UNSHAPED, Act, Fds, Floor, Link, NicRow, Op, Persist, Slow
from vhostnet.program.program import Program
from vhostnet.program.rows import Features, floor_of, port_of, port_row, row_of, shaping_of, slow_of, vhost_policy
from vhostnet.spec.interface import InterfaceSpec, VhostPolicy

Qdisc = Literal["noqueue", "default"]
QDISCS: Final = ("noqueue", "default")


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
        check_unique("ifname", names)
        check_macs(specs)
    rows, policies = [], []
    for spec, name, mark in zip(specs, names, marks or [""] * len(names), strict=True):
        rows.append(row_of(spec, name, mark, features))
        policies.append(vhost_policy(spec, vhost))
    if park:  # its port is whoever takes it to set
        for spec in specs:
            check_plain(spec)
        rows = [row._replace(port=PORT, frames=0, shaping=UNSHAPED) for row in rows]
    adopted = tuple([number for number, row in enumerate(rows) if row.adopted])
    macvtaps = tuple([number for number, row in enumerate(rows) if row.macvtap])
    rooted = tuple([number for number, row in enumerate(rows) if row.rooted])
    acts = _acts(tuple(policies), adopted, macvtaps, rooted, _settings(rows), qdisc, selftest, up and not park)
    if persist:
        check_lasting(specs)
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
    if slow.floor:
        yield Op.FLOOR
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
        if up or op != Op.FDB:
            acts += [Act(op, nic) for nic, ops in enumerate(settings) if op in ops]
    if qdisc == "noqueue":
        acts += [Act(Op.QDISC, nic) for nic in plugged if nic not in rooted]
    if up:
        acts += [Act(Op.UP, nic, barrier=nic == every[0]) for nic in every]
        for op in _WHEN_UP:
            acts += [Act(op, nic) for nic, ops in enumerate(settings) if op in ops]
    return tuple(acts)


_SETTINGS: Final = (Op.VLAN_ADD, Op.VLAN_DEL, Op.FDB, Op.COALESCE, Op.PLUG, Op.TC, Op.FLOOR, Op.REFLOOR)
_WHEN_UP: Final = (Op.SCRIPT, Op.ADDRESS)


def plan_take(parked: NicRow, spec: InterfaceSpec, mark: str, *, wish: str = "", rename: bool = False) -> Program:
    """The Program that makes *spec*'s NIC of one that is parked (``held``): one send.

    *wish* becomes its alternative name, or with *rename* its name. It comes up in the LINK act, without waiting:
    nobody has the fds yet, so one that fails is thrown away before anybody could use it. Where its port has settings
    they come between the two.
    """
    check_plain(spec)
    row = port_row(parked, spec, mark)._replace(wish=wish, up=True)
    acts: tuple[Act, ...] = _LINK if not wish else _RENAME if rename else _ALTNAME
    if _has_settings(row):
        row = row._replace(up=False)
        acts += _these(_settings_of(row)) + _UP
    return Program((row,), acts)


def _these(ops: Iterable[Op]) -> tuple[Act, ...]:
    return tuple([Act(op, 0) for op in _SETTINGS if op in ops])


_LINK: Final = (Act(Op.LINK, 0),)
_ALTNAME: Final = (Act(Op.ALTNAME, 0), *_LINK)
_RENAME: Final = (Act(Op.RENAME, 0), *_LINK)
_UP: Final = (Act(Op.UP, 0, barrier=True),)


def plan_up(held: NicRow, spec: InterfaceSpec, done: Collection[Op] = ()) -> Program:
    """The Program that brings up a NIC that is down, as the port it is to be; *done* are slow acts it has behind it."""
    row = held._replace(port=port_of(spec))
    before = _FDB if row.port.guest_mac else ()
    after = tuple([Act(op, 0) for op in _slow_ops(held.slow) if op in _WHEN_UP and op not in done])
    return Program((row,), before + _UP + after)


def plan_down(held: NicRow, spec: InterfaceSpec, done: Collection[Op] = ()) -> Program:
    """The Program that takes down a NIC that is up, and away with it what may be somewhere else next."""
    row = held._replace(port=port_of(spec))
    after = tuple([Act(op, 0) for op in _end_ops(held.slow) if op == Op.UNADDRESS and op not in done])
    return Program((row,), _DOWN + (_UNFDB if row.port.guest_mac else ()) + after)


_FDB: Final = (Act(Op.FDB, 0),)
_DOWN: Final = (Act(Op.DOWN, 0),)
_UNFDB: Final = (Act(Op.UNFDB, 0),)


_ON_LINUX, _ON_OVS, _ON_NONE = "on a Linux bridge", "on a bridge of Open vSwitch", "on no bridge"
# What can change, by where a NIC is.
_CHANGES: Final = {
    _ON_LINUX: (
        "type",
        "bridge",
        "network",
        "mtu",
        "isolated",
        "vlan",
        "mac_table_manager",
        "rx_frames",
        "bandwidth",
        "link_state",
    ),
    _ON_OVS: ("type", "network", "vlan", "virtualport", "bandwidth", "link_state"),
    _ON_NONE: ("bandwidth", "link_state"),
}


def _place(spec: InterfaceSpec) -> str:
    if spec.virtualport:
        return _ON_OVS
    return _ON_LINUX if spec.type in ("bridge", "network") else _ON_NONE


def check_update(old: InterfaceSpec, new: InterfaceSpec) -> None:
    """What a guest would have to know of cannot change under it. Raises SpecError, naming what that is."""
    place = _place(old)
    if _place(new) != place:
        attribute = "virtualport" if old.virtualport or new.virtualport else "type"
        raise SpecError(f"is not for a NIC that is {place}", attribute=attribute, value=new.type, expected="a NIC anew")
    for name, value in vars(old).items():
        if name not in _CHANGES[place] and getattr(new, name) != value:
            raise SpecError(
                f"cannot change while the NIC is there, {place}",
                attribute=name,
                value=getattr(new, name),
                expected=f"{value!r}, as it is",
            )


def plan_update(held: NicRow, was: InterfaceSpec, spec: InterfaceSpec, *, up: bool = True) -> Program:
    """The Program that makes a NIC, which *was* another port or is on its way from that, the port that *spec* asks for.

    It leaves its bridge, and with that all that was set of the port, and joins as a new one does: at no time does a
    frame pass between what it was and what it is to be. One that is on no Linux bridge stays where it is.
    """
    if _place(spec) != _ON_LINUX:
        return _plan_in_place(held, was, spec)
    row = port_row(held, spec, held.alias)._replace(slow=held.slow)
    before = shaping_of(was)
    ops = {*_settings_of(row), Op.COALESCE} - {Op.FLOOR}  # no frames, where there were some
    kept, floor = floor_of(was), floor_of(spec)
    if kept != floor:
        there = kept.bridge if kept else ""
        floor = (floor or Floor("", kept.guest_mac if kept else b"", 0))._replace(before=there)
        row = row._replace(slow=Slow(floor=floor))
        ops.add(Op.REFLOOR)
    if before is not UNSHAPED:
        ops.add(Op.TC)
    if not up:
        ops.discard(Op.FDB)
    root = _QDISC if before.rate or row.shaping.rate else ()
    return Program((row,), _LEAVE + root + _LINK + _these(ops) + (_UP if up else ()))


def _plan_in_place(held: NicRow, was: InterfaceSpec, spec: InterfaceSpec) -> Program:
    """What the switch is told of it, its bandwidth as well; of others the bandwidth: up as it is, it has none for some
    microseconds.
    """
    before, after = shaping_of(was), shaping_of(spec)
    slow = slow_of(spec, held.ifname) if spec.virtualport else held.slow
    row = held._replace(adopted=False, shaping=after, slow=slow)
    acts: tuple[Act, ...] = _REPLUG if slow.plug != held.slow.plug else ()
    if slow.plug and held.slow.plug and held.slow.plug.limited:
        row = row._replace(slow=slow._replace(plug=slow.plug._replace(was_limited=True)))
    if spec.virtualport and held.rooted and not row.rooted:
        acts += _QDISC  # the switch has taken its root away, and the kernel has put its own there
    if before != after:
        acts += (_QDISC if before.rate or after.rate else ()) + _TC
    return Program((row,), acts)


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
    if slow.floor:
        yield Op.UNFLOOR


_ENDS: Final = (Op.DOWNSCRIPT, Op.UNADDRESS, Op.UNPLUG, Op.UNFLOOR)


def resolve(program: Program, bridges: Mapping[str, Link]) -> Program:
    """The same Program with what is known of its bridges put in: what a dry run shows."""
    rows = []
    for nic in program.nics:
        bridge = bridges.get(nic.joins)
        if bridge:
            nic = nic._replace(master=bridge.ifindex if nic.bridge else 0, mtu=nic.mtu or bridge.mtu)
        rows.append(nic)
    return Program(tuple(rows), program.acts, program.keep)
