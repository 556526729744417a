"""What a Program is: one row a NIC, and the acts on them, in order, as data. What goes into one is plan.py's."""

import enum
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final, NamedTuple, cast

from vhostnet.spec.interface import MAX_QUEUES
from vhostnet.values import dataclass

MACVTAP_MODES: Final = {1: "private", 2: "vepa", 4: "bridge", 8: "passthrough"}  # enum macvlan_mode
IFNAMSIZ: Final = 16  # bytes of an interface name, its NUL with them
ALIASSIZ: Final = 128  # bytes of a mark, likewise; the kernel would take 256
MAX_VLANS: Final = 1024  # of one port, in one message: a range counts as two
MAX_PORTS: Final = 1023  # of a bridge: the kernel's BR_MAX_PORTS is 1024, and port number 0 is never given


class Op(enum.IntEnum):
    """What an act does; the numbers below SLOW are the C core's (VN_TAP_OPEN, ...), which knows no others."""

    TAP_OPEN = 0
    ADOPT = 1
    MACVTAP = 2
    VHOST_OPEN = 3
    SELFTEST = 4
    QDISC = 5
    LEAVE = 6
    LINK = 7
    VLAN_ADD = 8
    VLAN_DEL = 9
    FDB = 10
    COALESCE = 11
    TC = 12
    UP = 13
    PERSIST = 14
    ATTACH = 15
    ALTNAME = 16
    RENAME = 17
    DELETE = 18

    PLUG = 64
    SCRIPT = 65
    ADDRESS = 66
    DOWNSCRIPT = 67
    UNADDRESS = 68
    UNPLUG = 69
    REPLUG = 70
    FLOOR = 71
    UNFLOOR = 72
    REFLOOR = 73


SLOW: Final = 64  # acts from here on are no engine's: see vhostnet/slow/


class TunFlag(enum.IntFlag):
    """``ifr_flags`` of TUNSETIFF (linux/if_tun.h)."""

    TUN = 0x0001
    TAP = 0x0002
    MULTI_QUEUE = 0x0100
    DETACH_QUEUE = 0x0400
    PERSIST = 0x0800
    NO_PI = 0x1000
    VNET_HDR = 0x4000
    EXCL = 0x8000


@dataclass(frozen=True)
class Link:
    """What the kernel says of a link that exists.

    ``kind`` is its rtnetlink kind ("bridge", "tun", ""), ``ports`` how many a bridge has, ``vlan_filtering`` whether it
    heeds VLANs, ``tun_flags`` those of a TUN or TAP device, as TUNGETIFF has them.
    """

    name: str
    ifindex: int
    kind: str
    mtu: int
    mac: bytes
    ports: int = 0
    tun_flags: int = 0
    vlan_filtering: bool = False
    alias: str = ""


class Fds(NamedTuple):
    """Queue pair i is ``tap[i]`` and, with vhost-net, ``vhost[i]``."""

    tap: tuple[int, ...]
    vhost: tuple[int, ...]


class VlanFlag(enum.IntFlag):
    """``flags`` of struct bridge_vlan_info (linux/if_bridge.h)."""

    PVID = 0x02
    UNTAGGED = 0x04
    RANGE_BEGIN = 0x08
    RANGE_END = 0x10


class VlanEntry(NamedTuple):
    """One VLAN of a port, or one end of a range of them, as the kernel has it: (flags, VLAN id)."""

    flags: int
    vid: int


class Port(NamedTuple):
    """What a NIC is on its bridge, more than any port.

    ``isolated`` ones see none but those that are not. With ``guest_mac`` the bridge neither learns from the port nor
    floods to it: its forwarding table has that MAC instead. ``vlans`` are all it is in.
    """

    isolated: bool = False
    guest_mac: bytes = b""
    vlans: tuple[VlanEntry, ...] = ()


PORT: Final = Port()


class Shaping(NamedTuple):
    """What a NIC's bandwidth is to the kernel, by TC: rates in bytes a second, bursts in ticks (64 ns) at the rate.

    ``rate`` is of what it sends, ``ceil`` what that may be for as long as a burst lasts, ``quantum`` in bytes;
    ``police_rate`` is of what comes in by it. 0 has no limit. Of a TAP the guest gets the one and sends the other.
    """

    rate: int = 0
    ceil: int = 0
    burst: int = 0
    ceil_burst: int = 0
    quantum: int = 0
    police_burst: int = 0
    police_rate: int = 0


UNSHAPED: Final = Shaping()


class Persist(NamedTuple):
    """That a NIC outlives its fds; and the uid and gid that may open it without privileges, -1 for none."""

    owner: int = -1
    group: int = -1


class Plug(NamedTuple):
    """A port of the Open vSwitch bridge *bridge*, as its database has it.

    ``ids`` are external_ids of the interface, beside the NIC's mark; ``tag``, ``trunks`` and ``vlan_mode`` are the
    port's columns, and "" and None are none.
    """

    bridge: str
    ids: tuple[tuple[str, str], ...] = ()
    tag: int | None = None
    trunks: tuple[int, ...] = ()
    vlan_mode: str = ""


class Address(NamedTuple):
    """One of the host's end: ``ip`` and ``peer`` of 4 or 16 bytes, as the kernel has them."""

    ip: bytes
    prefix: int
    peer: bytes = b""


class Route(NamedTuple):
    """To a network, by way of what is behind the NIC."""

    network: bytes
    prefix: int
    gateway: bytes
    metric: int


class Floor(NamedTuple):
    """What *bridge* guarantees that *guest_mac* gets, in bytes a second; ``burst`` in ticks, ``quantum`` in bytes.

    With a ``rate`` of 0 there is to be none; ``before`` is the bridge that has had one of it and is to have it no more.
    """

    bridge: str
    guest_mac: bytes
    rate: int
    burst: int = 0
    quantum: int = 0
    before: str = ""


class Slow(NamedTuple):
    """What a NIC's slow acts are about: a port of Open vSwitch, commands, addresses and routes of the host's end, and
    what its bridge guarantees it.
    """

    plug: Plug | None = None
    script: str = ""
    downscript: str = ""
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    floor: Floor | None = None


NOTHING_SLOW: Final = Slow()


class Macvtap(NamedTuple):
    """That a NIC is a macvtap: on which link, and how (IFLA_MACVLAN_MODE); whether it lets in all multicast.

    Of one that is held none of it is known.
    """

    parent: str = ""
    mode: int = 0
    all_multicast: bool = False


class NicRow(NamedTuple):
    """One NIC of a Program: everything an engine needs to know of it.

    ``master`` 0 leaves it to the run to look ``bridge`` up, before its first act: it must be there, be a
    bridge, and have a port left. ``mtu`` 0 is the bridge's. ``alias`` is the mark the link gets
    (IFLA_IFALIAS); ``wish`` the name that ALTNAME or RENAME gives it. With ``held`` the NIC exists: its fds
    and ``ifindex`` are the caller's, and no act but DELETE closes them; held without vhost-net fds it can be
    given some. With ``up`` the LINK act brings it up, too: for one that was parked. ``port`` is what UP, VLAN_ADD,
    VLAN_DEL and FDB set, ``frames`` what COALESCE does (rx-frames), ``shaping`` what TC does. One that is ``adopted``
    is there already, is somebody else's, and stays when its fds are closed: ADOPT in the place of TAP_OPEN, and nothing
    is set of it. With ``persist`` it stays, too, by PERSIST. A ``macvtap`` is made by MACVTAP: a link of its own, which
    stays when its fds are closed, until DELETE, to which its ``ifindex`` and ``alias`` are enough. ``slow`` is what no
    engine sees.
    """

    ifname: str
    queues: int
    tun_flags: int
    tap_path: str
    vhost_path: str
    bridge: str = ""
    master: int = 0
    mtu: int = 0
    mac: bytes = b""
    no_ipv6: bool = False
    alias: str = ""
    wish: str = ""
    ifindex: int = 0
    held: Fds | None = None
    up: bool = False
    port: Port = PORT
    frames: int = 0
    adopted: bool = False
    persist: Persist | None = None
    shaping: Shaping = UNSHAPED
    macvtap: Macvtap | None = None
    slow: Slow = NOTHING_SLOW

    @property
    def fds(self) -> Fds:
        return self.held or Fds((), ())

    @property
    def joins(self) -> str:
        """The bridge that it is to be on, Linux's or Open vSwitch's; "" for none."""
        return self.slow.plug.bridge if self.slow.plug else self.bridge


class Act(NamedTuple):
    """One step: *op* on the NIC of row *nic*.

    ``optional``: a refusal is noted and undone, and the run goes on (VHOST_OPEN, and what ends slow acts). ``barrier``:
    every answer to the acts before must have been read and good.
    """

    op: Op
    nic: int
    optional: bool = False
    barrier: bool = False


@dataclass(frozen=True)
class Program:
    """Rows and acts. ``print(program)`` shows what would run, one act a line.

    One refused act undoes all that the run made; with ``keep`` only what it made of that NIC.

    Raises ValueError for what no kernel could be asked: an engine never sees a malformed Program.
    """

    nics: tuple[NicRow, ...]
    acts: tuple[Act, ...]
    keep: bool = False

    @property
    def slow(self) -> bool:
        """Some of its NICs have what is no engine's."""
        return any(nic.slow is not NOTHING_SLOW for nic in self.nics)

    def __post_init__(self) -> None:
        states = []
        for nic in self.nics:
            if not _sound(nic):
                raise ValueError(f"a malformed row: {nic}")
            state = 3 if nic.adopted else 0
            if nic.held is not None:
                state = 1 + bool(nic.held.vhost)
            if nic.macvtap:
                state += _MACVTAP + _NO_QUEUES * (nic.held is not None and not nic.held.tap)
            if nic.port is not PORT and nic.bridge:
                state += _HAS_VLANS * bool(nic.port.vlans) + _HAS_FDB * bool(nic.port.guest_mac)
            if nic.persist:
                state += _LASTS
            if nic.slow is not NOTHING_SLOW:
                state += _slow_state(nic.slow)
            if nic.held or (nic.shaping is not UNSHAPED and any(nic.shaping)):
                state += _HAS_SHAPING
            states.append(state)
        _check_acts(self.acts, tuple(states))

    def __str__(self) -> str:
        width = max((len(nic.ifname) for nic in self.nics), default=0)
        digits = len(str(max(len(self.acts) - 1, 0)))
        lines = []
        for number, act in enumerate(self.acts):
            nic = self.nics[act.nic]
            line = f"{number:>{digits}}  {act.op.name:<10}  {nic.ifname:<{width}}  {_describe(act, nic)}"
            lines.append(line.rstrip())
        return "\n".join(lines)


_STATES: Final = ("new", "held", "held with its vhost-net fds", "adopted")
_MAKING: Final = (Op.TAP_OPEN, Op.ADOPT, Op.MACVTAP, Op.SELFTEST)
# What is not for a NIC that is so.
_BARRED: Final = (
    (Op.ADOPT, Op.LEAVE, Op.ATTACH, Op.DELETE, Op.DOWNSCRIPT, Op.UNADDRESS, Op.REPLUG, Op.REFLOOR),
    _MAKING,
    (*_MAKING, Op.VHOST_OPEN),
    tuple(op for op in Op if op not in (Op.ADOPT, Op.VHOST_OPEN, Op.SELFTEST, Op.SCRIPT, Op.ADDRESS)),
)
# The first two where it is on a bridge, HAS_SHAPING also where it is held: it may have been shaped.
_HAS_VLANS, _HAS_FDB, _LASTS, _HAS_SHAPING, _MACVTAP, _NO_QUEUES = 4, 8, 16, 32, 64, 128
_HAS_PLUG, _HAS_SCRIPT, _HAS_DOWNSCRIPT, _HAS_ADDRESS, _HAS_FLOOR = 256, 512, 1024, 2048, 4096
_NOT_MACVTAPS: Final = (Op.TAP_OPEN, Op.ADOPT, Op.COALESCE, Op.PERSIST)
_NEEDED: Final = {
    **dict.fromkeys((Op.VLAN_ADD, Op.VLAN_DEL), _HAS_VLANS),
    Op.FDB: _HAS_FDB,
    Op.PERSIST: _LASTS,
    Op.TC: _HAS_SHAPING,
    Op.MACVTAP: _MACVTAP,
    **dict.fromkeys((Op.PLUG, Op.UNPLUG, Op.REPLUG), _HAS_PLUG),
    Op.SCRIPT: _HAS_SCRIPT,
    Op.DOWNSCRIPT: _HAS_DOWNSCRIPT,
    **dict.fromkeys((Op.ADDRESS, Op.UNADDRESS), _HAS_ADDRESS),
    **dict.fromkeys((Op.FLOOR, Op.UNFLOOR, Op.REFLOOR), _HAS_FLOOR),
}


def _slow_state(slow: Slow) -> int:
    state = _HAS_PLUG * (slow.plug is not None) + _HAS_SCRIPT * bool(slow.script)
    state += _HAS_FLOOR * (slow.floor is not None)
    return state + _HAS_DOWNSCRIPT * bool(slow.downscript) + _HAS_ADDRESS * bool(slow.addresses or slow.routes)


@lru_cache(maxsize=8)  # most batches are like the one before
def _check_acts(acts: tuple[Act, ...], states: tuple[int, ...]) -> None:
    """Each is for a row that is there, is held or not as the act must have it, and has what the act is about."""
    for op, row, _, _ in acts:
        if not 0 <= row < len(states):
            raise ValueError(f"no row {row} for {op.name}")
        held = states[row] % _HAS_VLANS
        if op in _BARRED[held]:
            raise ValueError(f"{op.name} is not for a NIC that is {_STATES[held]}, as row {row} is")
        if op in _NEEDED and not states[row] & _NEEDED[op]:
            raise ValueError(f"{op.name} has nothing to set in row {row}")
        if states[row] & _MACVTAP and op in _NOT_MACVTAPS:
            raise ValueError(f"{op.name} is not for a macvtap, as row {row} is")
        if states[row] & _NO_QUEUES and op != Op.DELETE:
            raise ValueError(f"{op.name} is not for a NIC without queues, as row {row} is")


def _sound(nic: NicRow) -> bool:
    held, wish = nic.held, nic.wish
    return (
        1 <= nic.queues <= MAX_QUEUES
        and 0 < len(nic.ifname.encode()) < IFNAMSIZ
        and len(nic.alias) < ALIASSIZ
        and (not wish or len(wish.encode()) < IFNAMSIZ)
        and len(nic.port.vlans) <= MAX_VLANS
        and (nic.shaping is UNSHAPED or _sound_shaping(nic.shaping))
        and (nic.persist is None or all(-1 <= number < 2**32 - 1 for number in nic.persist))
        and (held is None or ((nic.macvtap is None) <= len(held.tap) <= nic.queues and len(held.vhost) <= nic.queues))
        and (nic.macvtap is None or len(nic.macvtap.parent.encode()) < IFNAMSIZ)
    )


def _sound_shaping(shaping: Shaping) -> bool:
    """Numbers that belong together, and are the kernel's."""
    rooted, policed = shaping[:5], shaping[5:]
    return (
        all(rooted) == any(rooted)
        and all(policed) == any(policed)
        and all(0 <= rate < 2**64 for rate in (shaping.rate, shaping.ceil, shaping.police_rate))
        and all(0 <= number < 2**32 for number in shaping[2:6])
    )


def _describe(act: Act, nic: NicRow) -> str:
    parts: dict[Op, tuple[str, ...]] = {
        Op.TAP_OPEN: (_count(nic.queues), " ".join(flag_names(nic.tun_flags)), "excl"),
        Op.ADOPT: (_count(nic.queues), "of a TAP that is there"),
        Op.MACVTAP: tuple(_macvtap_parts(nic)),
        Op.VHOST_OPEN: (f"{nic.queues} x {nic.vhost_path}", "optional" if act.optional else "required"),
        Op.SELFTEST: (f"a private {nic.vhost_path} on queue 0",),
        Op.QDISC: ("noqueue",),
        Op.LINK: tuple(_link_parts(nic)),
        Op.VLAN_ADD: (" ".join(_vlan_parts(nic.port.vlans)),),
        Op.VLAN_DEL: ("the bridge's default, unless it is one of those",),
        Op.FDB: (nic.port.guest_mac.hex(":"), "static"),
        Op.COALESCE: (f"rx-frames {nic.frames}",),
        Op.TC: tuple(_shaping_parts(nic)),
        Op.UP: tuple(_port_parts(nic.port)),
        Op.PERSIST: tuple(_persist_parts(nic.persist or Persist())),
        Op.ATTACH: (f"queues 1..{nic.queues - 1}",),
        Op.ALTNAME: (nic.wish,),
        Op.RENAME: (f"to {nic.wish}",),
        Op.DELETE: (f"ifindex {nic.ifindex}",),
        **dict.fromkeys((Op.PLUG, Op.REPLUG), tuple(_plug_parts(nic.slow.plug))),
        Op.SCRIPT: (nic.slow.script,),
        Op.ADDRESS: tuple(_address_parts(nic.slow)),
        Op.DOWNSCRIPT: (nic.slow.downscript,),
        Op.UNADDRESS: tuple(_address_parts(nic.slow)),
        Op.UNPLUG: (nic.slow.plug.bridge if nic.slow.plug else "",),
        **dict.fromkeys((Op.FLOOR, Op.REFLOOR), tuple(_floor_parts(nic.slow.floor))),
        Op.UNFLOOR: (nic.slow.floor.bridge if nic.slow.floor else "",),
    }
    return "  ".join(parts.get(act.op, ()))


def _count(queues: int) -> str:
    return f"{queues} queue" + "s" * (queues != 1)


_SHOWN: Final = (TunFlag.TUN, TunFlag.TAP, TunFlag.NO_PI, TunFlag.VNET_HDR, TunFlag.MULTI_QUEUE)


def flag_names(flags: int) -> tuple[str, ...]:
    """``("tap", "no_pi", "multi_queue")``: what ``ip`` calls them."""
    return tuple(cast(str, flag.name).lower() for flag in _SHOWN if flags & flag)


def _link_parts(nic: NicRow) -> Iterator[str]:
    yield f"mac {nic.mac.hex(':')}"
    yield f"mtu {nic.mtu}" if nic.mtu else "mtu of the bridge"
    if nic.bridge:
        yield f"master {nic.bridge}" + (f" ({nic.master})" if nic.master else "")
    if nic.up:
        yield "up"


def _macvtap_parts(nic: NicRow) -> Iterator[str]:
    parent, mode, all_multicast = nic.macvtap or Macvtap()
    yield _count(nic.queues)
    yield f"{MACVTAP_MODES.get(mode, mode)} on {parent}" + " allmulti" * all_multicast
    yield " ".join(flag_names(nic.tun_flags))
    yield f"mac {nic.mac.hex(':')}"


def _vlan_parts(vlans: Iterable[VlanEntry]) -> Iterator[str]:
    """``"10 pvid untagged"``, ``"20-29"``: as ``bridge vlan`` says it."""
    first = ""
    for flags, vid in vlans:
        if flags & VlanFlag.RANGE_BEGIN:
            first = f"{vid}-"
            continue
        yield f"{first}{vid}" + " pvid" * bool(flags & VlanFlag.PVID) + " untagged" * bool(flags & VlanFlag.UNTAGGED)
        first = ""


def _port_parts(port: Port) -> Iterator[str]:
    if port.isolated:
        yield "isolated"
    if port.guest_mac:
        yield "no learning, no flood"


def _shaping_parts(nic: NicRow) -> Iterator[str]:
    """As its guest sees it."""
    shaping = nic.shaping
    leaving, coming = ("sends", "gets") if nic.macvtap else ("gets", "sends")
    if shaping.rate:
        most = f", at most {_kilobytes(shaping.ceil)}" if shaping.ceil != shaping.rate else ""
        yield f"{leaving} {_kilobytes(shaping.rate)}{most}"
    if shaping.police_rate:
        yield f"{coming} {_kilobytes(shaping.police_rate)}"
    if shaping == UNSHAPED:
        yield "no limit"


def _kilobytes(rate: int) -> str:
    return f"{rate // 1000} kB/s"


def _persist_parts(persist: Persist) -> Iterator[str]:
    if persist.owner >= 0:
        yield f"user {persist.owner}"
    if persist.group >= 0:
        yield f"group {persist.group}"


def _plug_parts(plug: Plug | None) -> Iterator[str]:
    if plug is None:
        return
    yield f"openvswitch {plug.bridge}"
    if plug.tag is not None:
        yield f"tag {plug.tag}"
    if plug.trunks:
        yield f"trunks {','.join(map(str, plug.trunks))}"
    if plug.vlan_mode:
        yield plug.vlan_mode


def _floor_parts(floor: Floor | None) -> Iterator[str]:
    if floor and floor.before:
        yield f"no more of {floor.before}'s"
    if floor and floor.rate:
        yield f"gets {_kilobytes(floor.rate)} of {floor.bridge}'s at the least"


def _address_parts(slow: Slow) -> Iterator[str]:
    yield from map(address_text, slow.addresses)
    yield from (f"route {route_text(route)}" for route in slow.routes)


def address_text(address: Address) -> str:
    """As ``ip address`` says it."""
    return _ip(address.ip) + (f" peer {_ip(address.peer)}" if address.peer else "") + f"/{address.prefix}"


def route_text(route: Route) -> str:
    """As ``ip route`` says it."""
    return f"{_ip(route.network)}/{route.prefix} via {_ip(route.gateway)} metric {route.metric}"


def _ip(packed: bytes) -> str:
    import socket  # an address is for few

    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def held_row(
    ifname: str,
    ifindex: int,
    fds: Fds,
    alias: str = "",
    *,
    adopted: bool = False,
    macvtap: Macvtap | None = None,
    slow: Slow = NOTHING_SLOW,
) -> NicRow:
    """The row of a NIC that exists."""
    return NicRow(
        ifname,
        max(1, len(fds.tap)),
        0,
        "",
        "",
        alias=alias,
        ifindex=ifindex,
        held=fds,
        adopted=adopted,
        macvtap=macvtap,
        slow=slow,
    )


def fds_needed(program: Program) -> int:
    """How many fds must be opened; vhost-net's where it is required."""
    opening = (Op.TAP_OPEN, Op.ADOPT, Op.MACVTAP, Op.VHOST_OPEN)
    return sum(program.nics[nic].queues for op, nic, optional, _ in program.acts if op in opening and not optional)
