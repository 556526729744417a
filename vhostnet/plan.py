"""What is asked + what the host said -> Program: every kernel act, in order, as data.

The order of the acts and its reasons stand here and nowhere else. Before the first of them the run looks up the
bridges that are only named: nothing is made where one is missing. Then:

1. TAP_OPEN    the first queue creates the device (IFF_TUN_EXCL: a name somebody else holds is an error and
               never shared), the others attach.
2. VHOST_OPEN  what can fail for want of a driver fails before anything can be seen on the network.
3. SELFTEST    where asked for: a private vhost-net fd is wired to the first TAP and thrown away.
4. QDISC       noqueue before UP. IFF_MULTI_QUEUE gives the device 256 transmit queues, and UP would give
               each a qdisc of its own: 1.5 ms and 6.5 MiB against 40 us and 0.3 MiB. libvirt sets noqueue too,
               but after UP.
5. LINK        MAC before the bridge sees the port (a bridge takes the lowest MAC of its ports); MTU before the
               port joins (a bridge takes the lowest MTU of its ports).
6. UP          last, and only after every answer to the acts before it was read (``barrier``): a NIC that failed
               anywhere was never up, and never up outside its bridge.

A batch runs all acts of one kind before the next kind, so netlink messages go out many to a send.

A NIC that exists already (``held``) takes other acts: VHOST_OPEN and ATTACH for the next QEMU on it; ALTNAME or RENAME
and LINK, in one send, for one that was made ahead and is taken now; DELETE, which takes link and fds away.
"""

import enum
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal, NamedTuple, TypeVar, cast

from vhostnet.errors import SpecError
from vhostnet.mac import tap_mac
from vhostnet.spec import MAX_QUEUES, VNET_HDR_MODELS, InterfaceSpec, VhostPolicy
from vhostnet.values import dataclass

IFNAMSIZ: Final = 16  # bytes of an interface name, its NUL with them
ALIASSIZ: Final = 128  # bytes of a mark, likewise; the kernel would take 256
MAX_PORTS: Final = 1023  # of a bridge: the kernel's BR_MAX_PORTS is 1024, and port number 0 is never given
DEFAULT_MTU: Final = 1500  # what the kernel gives a new TAP

_T = TypeVar("_T")
Qdisc = Literal["noqueue", "default"]
QDISCS: Final = ("noqueue", "default")


class Op(enum.IntEnum):
    """What an act does; the numbers are the C core's (VN_TAP_OPEN, ...)."""

    TAP_OPEN = 0
    VHOST_OPEN = 1
    SELFTEST = 2
    QDISC = 3
    LINK = 4
    UP = 5
    ATTACH = 6
    ALTNAME = 7
    RENAME = 8
    DELETE = 9


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

    ``kind`` is its rtnetlink kind ("bridge", "tun", ""), ``ports`` how many a bridge has, ``tun_flags`` those
    of a TUN or TAP device, as TUNGETIFF has them.
    """

    name: str
    ifindex: int
    kind: str
    mtu: int
    mac: bytes
    ports: int = 0
    tun_flags: int = 0


@dataclass(frozen=True)
class Features:
    """What this kernel can do, asked once a process: TUNGETFEATURES' word, and whether there is IPv6."""

    tun: int
    ipv6: bool


class Fds(NamedTuple):
    """Queue pair i is ``tap[i]`` and, with vhost-net, ``vhost[i]``."""

    tap: tuple[int, ...]
    vhost: tuple[int, ...]


class NicRow(NamedTuple):
    """One NIC of a Program: everything an engine needs to know of it.

    ``master`` 0 leaves it to the run to look ``bridge`` up, before its first act: it must be there, be a
    bridge, and have a port left. ``mtu`` 0 is the bridge's. ``alias`` is the mark the link gets
    (IFLA_IFALIAS); ``wish`` the name that ALTNAME or RENAME gives it. With ``held`` the NIC exists: its fds
    and ``ifindex`` are the caller's, and no act but DELETE closes them; held without vhost-net fds it can be
    given some. With ``up`` the LINK act brings it up, too: for one that was parked.
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

    @property
    def fds(self) -> Fds:
        return self.held or Fds((), ())


class Act(NamedTuple):
    """One step: *op* on the NIC of row *nic*.

    ``optional``: a refusal is noted and undone, and the run goes on (VHOST_OPEN alone). ``barrier``: every
    answer to the acts before must have been read and good.
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

    def __post_init__(self) -> None:
        held = []
        for nic in self.nics:
            if not _sound(nic):
                raise ValueError(f"a malformed row: {nic}")
            held.append(0 if nic.held is None else 1 + bool(nic.held.vhost))
        _check_acts(self.acts, tuple(held))

    def __str__(self) -> str:
        width = max((len(nic.ifname) for nic in self.nics), default=0)
        digits = len(str(max(len(self.acts) - 1, 0)))
        lines = []
        for number, act in enumerate(self.acts):
            nic = self.nics[act.nic]
            line = f"{number:>{digits}}  {act.op.name:<10}  {nic.ifname:<{width}}  {_describe(act, nic)}"
            lines.append(line.rstrip())
        return "\n".join(lines)


# What is not for a NIC that is new, that is held, and that is held with vhost-net fds.
_BARRED: Final = ((Op.ATTACH, Op.DELETE), (Op.TAP_OPEN, Op.SELFTEST), (Op.TAP_OPEN, Op.SELFTEST, Op.VHOST_OPEN))
_STATES: Final = ("new", "held", "held with its vhost-net fds")


@lru_cache(maxsize=8)  # most batches are like the one before
def _check_acts(acts: tuple[Act, ...], held: tuple[int, ...]) -> None:
    """Each is for a row that is there, and is held or not as the act must have it."""
    for op, row, _, _ in acts:
        if not 0 <= row < len(held):
            raise ValueError(f"no row {row} for {op.name}")
        if op in _BARRED[held[row]]:
            raise ValueError(f"{op.name} is not for a NIC that is {_STATES[held[row]]}, as row {row} is")


def _sound(nic: NicRow) -> bool:
    held, wish = nic.held, nic.wish
    return (
        1 <= nic.queues <= MAX_QUEUES
        and 0 < len(nic.ifname.encode()) < IFNAMSIZ
        and len(nic.alias) < ALIASSIZ
        and (not wish or len(wish.encode()) < IFNAMSIZ)
        and (held is None or (1 <= len(held.tap) <= nic.queues and len(held.vhost) <= nic.queues))
    )


def _describe(act: Act, nic: NicRow) -> str:
    parts: dict[Op, tuple[str, ...]] = {
        Op.TAP_OPEN: (_count(nic.queues), " ".join(flag_names(nic.tun_flags)), "excl"),
        Op.VHOST_OPEN: (f"{nic.queues} x {nic.vhost_path}", "optional" if act.optional else "required"),
        Op.SELFTEST: (f"a private {nic.vhost_path} on queue 0",),
        Op.QDISC: ("noqueue",),
        Op.LINK: tuple(_link_parts(nic)),
        Op.ATTACH: (f"queues 1..{nic.queues - 1}",),
        Op.ALTNAME: (nic.wish,),
        Op.RENAME: (f"to {nic.wish}",),
        Op.DELETE: (f"ifindex {nic.ifindex}",),
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


# --- policy ----------------------------------------------------------------------------------------------


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
) -> Program:
    """The Program that makes one NIC of each spec, under the name and with the mark that stand beside it.

    Bridges are left to the run to look up. *vhost* overrides the specs' own policy. With *park* the NICs are
    left down. Raises SpecError for two NICs of one name, for two of one MAC on one bridge, and for a network that
    stands for no bridge.
    """
    if len(specs) > 1:
        _check_unique("ifname", names)
        _check_macs(specs)
    rows, policies = [], []
    for spec, name, mark in zip(specs, names, marks or [""] * len(names), strict=True):
        rows.append(_row(spec, name, mark, features))
        policies.append(vhost_policy(spec, vhost))
    return Program(tuple(rows), _acts(tuple(policies), qdisc, selftest, park), keep)


@lru_cache(maxsize=8)  # most batches are like the one before
def _acts(policies: tuple[VhostPolicy, ...], qdisc: Qdisc, selftest: bool, park: bool) -> tuple[Act, ...]:
    every = range(len(policies))
    wanted = [nic for nic in every if policies[nic] != "off"]
    acts = [Act(Op.TAP_OPEN, nic) for nic in every]
    acts += [Act(Op.VHOST_OPEN, nic, optional=policies[nic] == "auto") for nic in wanted]
    if selftest:
        acts += [Act(Op.SELFTEST, nic) for nic in wanted[:1]]
    if qdisc == "noqueue":
        acts += [Act(Op.QDISC, nic) for nic in every]
    acts += [Act(Op.LINK, nic) for nic in every]
    if not park:
        acts += [Act(Op.UP, nic, barrier=nic == 0) for nic in every]
    return tuple(acts)


def plan_take(parked: NicRow, spec: InterfaceSpec, mark: str, *, wish: str = "", rename: bool = False) -> Program:
    """The Program that makes *spec*'s NIC of one that is parked (``held``): one send.

    *wish* becomes its alternative name, or with *rename* its name. It comes up in the LINK act, without waiting:
    nobody has the fds yet, so one that fails is thrown away before anybody could use it.
    """
    bridge, mtu = _bridge_and_mtu(spec)
    row = NicRow(
        parked.ifname,
        parked.queues,
        0,
        "",
        "",
        bridge,
        0,
        mtu,
        tap_mac(spec.mac),
        alias=mark,
        wish=wish,
        ifindex=parked.ifindex,
        held=parked.held,
        up=True,
    )
    if not wish:
        return Program((row,), _LINK)
    return Program((row,), _RENAME if rename else _ALTNAME)


_LINK: Final = (Act(Op.LINK, 0),)
_ALTNAME: Final = (Act(Op.ALTNAME, 0), *_LINK)
_RENAME: Final = (Act(Op.RENAME, 0), *_LINK)


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


def plan_delete(held: Sequence[NicRow]) -> Program:
    """The Program that takes these NICs away, each one for itself: what cannot be deleted is left as it is."""
    return Program(tuple(held), tuple([Act(Op.DELETE, nic) for nic in range(len(held))]), keep=True)


def held_row(ifname: str, ifindex: int, fds: Fds, alias: str = "") -> NicRow:
    """The row of a NIC that exists."""
    return NicRow(ifname, len(fds.tap), 0, "", "", alias=alias, ifindex=ifindex, held=fds)


def fds_needed(program: Program) -> int:
    """How many fds must be opened; vhost-net's where it is required."""
    must = (act for act in program.acts if act.op == Op.TAP_OPEN or (act.op == Op.VHOST_OPEN and not act.optional))
    return sum(program.nics[act.nic].queues for act in must)


def resolve(program: Program, bridges: Mapping[str, Link]) -> Program:
    """The same Program with what is known of its bridges put in: what a dry run shows."""
    rows = []
    for nic in program.nics:
        bridge = bridges.get(nic.bridge)
        rows.append(nic._replace(master=bridge.ifindex, mtu=nic.mtu or bridge.mtu) if bridge else nic)
    return Program(tuple(rows), program.acts, program.keep)


def _row(spec: InterfaceSpec, name: str, mark: str, features: Features) -> NicRow:
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
        features.ipv6 and bridge != "",  # one that is on no bridge is its guest's router, by its address
        mark,
    )


def _bridge_and_mtu(spec: InterfaceSpec) -> tuple[str, int]:
    """As NicRow has them: "" for none, and 0 for the bridge's."""
    if spec.bridge:
        return spec.bridge, spec.mtu or 0
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
    """A bridge forwards by MAC, so one MAC is one port of it. Clones of a VM on a bridge each are no harm."""
    twice = _first_twice([(spec.bridge, spec.mac) for spec in specs if spec.bridge])
    if twice is not None:
        bridge, mac = twice
        raise SpecError(f"is asked for twice on bridge {bridge!r} in one batch", attribute="mac", value=mac)


def _first_twice(values: Sequence[_T]) -> _T | None:
    if len(set(values)) == len(values):
        return None
    return next(value for value, times in Counter(values).items() if times > 1)
