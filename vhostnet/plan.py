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
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, cast

from vhostnet.errors import SpecError
from vhostnet.mac import tap_mac
from vhostnet.spec import MAX_QUEUES, VNET_HDR_MODELS, InterfaceSpec, VhostPolicy

IFNAMSIZ: Final = 16  # bytes of an interface name, its NUL with them
DEFAULT_MTU: Final = 1500  # what the kernel gives a new TAP

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


class TunFlag(enum.IntFlag):
    """``ifr_flags`` of TUNSETIFF (linux/if_tun.h)."""

    TAP = 0x0002
    MULTI_QUEUE = 0x0100
    DETACH_QUEUE = 0x0400
    NO_PI = 0x1000
    VNET_HDR = 0x4000
    EXCL = 0x8000


@dataclass(frozen=True, slots=True)
class Link:
    """What the kernel says of a link that exists; ``kind`` is its rtnetlink kind ("bridge", "tun", "")."""

    name: str
    ifindex: int
    kind: str
    mtu: int
    mac: bytes


@dataclass(frozen=True, slots=True)
class Features:
    """What this kernel can do, asked once a process: TUNGETFEATURES' word, and whether there is IPv6."""

    tun: int
    ipv6: bool


class NicRow(NamedTuple):
    """One NIC of a Program: everything an engine needs to know of it.

    ``master`` 0 leaves it to the run to look ``bridge`` up, before its first act: it must be there, and be a
    bridge. ``mtu`` 0 is the bridge's. ``tap_fds`` is for ATTACH alone, which works on fds the caller owns.
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
    tap_fds: tuple[int, ...] = ()


class Act(NamedTuple):
    """One step: *op* on the NIC of row *nic*.

    ``optional``: a refusal is noted and undone, and the run goes on (VHOST_OPEN alone). ``barrier``: every
    answer to the acts before must have been read and good.
    """

    op: Op
    nic: int
    optional: bool = False
    barrier: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """Rows and acts. ``print(program)`` shows what would run, one act a line.

    Raises ValueError for what no kernel could be asked: an engine never sees a malformed Program.
    """

    nics: tuple[NicRow, ...]
    acts: tuple[Act, ...]

    def __post_init__(self) -> None:
        for nic in self.nics:
            if not (1 <= nic.queues <= MAX_QUEUES and 0 < len(nic.ifname.encode()) < IFNAMSIZ):
                raise ValueError(f"a malformed row: {nic}")
        rows = range(len(self.nics))
        for act in self.acts:
            if act.nic not in rows:
                raise ValueError(f"no row for {act}")

    def __str__(self) -> str:
        width = max((len(nic.ifname) for nic in self.nics), default=0)
        digits = len(str(max(len(self.acts) - 1, 0)))
        lines = []
        for number, act in enumerate(self.acts):
            nic = self.nics[act.nic]
            line = f"{number:>{digits}}  {act.op.name:<10}  {nic.ifname:<{width}}  {_describe(act, nic)}"
            lines.append(line.rstrip())
        return "\n".join(lines)


def _describe(act: Act, nic: NicRow) -> str:
    parts: dict[Op, tuple[str, ...]] = {
        Op.TAP_OPEN: (_count(nic.queues), " ".join(_flag_names(nic.tun_flags)), "excl"),
        Op.VHOST_OPEN: (f"{nic.queues} x {nic.vhost_path}", "optional" if act.optional else "required"),
        Op.SELFTEST: (f"a private {nic.vhost_path} on queue 0",),
        Op.QDISC: ("noqueue",),
        Op.LINK: tuple(_link_parts(nic)),
        Op.ATTACH: (f"queues 1..{nic.queues - 1}",),
    }
    return "  ".join(parts.get(act.op, ()))


def _count(queues: int) -> str:
    return f"{queues} queue" + "s" * (queues != 1)


_SHOWN: Final = (TunFlag.TAP, TunFlag.NO_PI, TunFlag.VNET_HDR, TunFlag.MULTI_QUEUE)


def _flag_names(flags: int) -> Iterator[str]:
    return (cast(str, flag.name).lower() for flag in _SHOWN if flags & flag)


def _link_parts(nic: NicRow) -> Iterator[str]:
    yield f"mac {nic.mac.hex(':')}"
    yield f"mtu {nic.mtu}" if nic.mtu else "mtu of the bridge"
    if nic.bridge:
        yield f"master {nic.bridge}" + (f" ({nic.master})" if nic.master else "")


# --- policy ----------------------------------------------------------------------------------------------


def vhost_policy(spec: InterfaceSpec, override: VhostPolicy | None) -> VhostPolicy:
    """The caller's word before the XML's; only virtio models can use vhost-net. Raises SpecError."""
    if not spec.virtio and override == "require":
        raise SpecError(
            f"means nothing to model {spec.model}", attribute="vhost", value="require", expected="model virtio"
        )
    if not spec.virtio:
        return "off"
    return override or cast(VhostPolicy, spec.vhost)


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
    vhost: VhostPolicy | None = None,
    qdisc: Qdisc = "noqueue",
    selftest: bool = False,
) -> Program:
    """The Program that makes one NIC of each spec, under the name that stands beside it.

    Bridges are left to the run to look up. *vhost* overrides the specs' own policy. Raises SpecError for two
    NICs of one name, and for a network that stands for no bridge.
    """
    _check_names(names)
    rows = tuple(_row(spec, name, features) for spec, name in zip(specs, names, strict=True))
    every = range(len(rows))
    policies = [vhost_policy(spec, vhost) for spec in specs]
    wanted = [nic for nic in every if policies[nic] != "off"]
    acts = [Act(Op.TAP_OPEN, nic) for nic in every]
    acts += [Act(Op.VHOST_OPEN, nic, optional=policies[nic] == "auto") for nic in wanted]
    if selftest:
        acts += [Act(Op.SELFTEST, nic) for nic in wanted[:1]]
    if qdisc == "noqueue":
        acts += [Act(Op.QDISC, nic) for nic in every]
    acts += [Act(Op.LINK, nic) for nic in every]
    acts += [Act(Op.UP, nic, barrier=nic == 0) for nic in every]
    return Program(rows, tuple(acts))


def plan_attach(ifname: str, tap_fds: tuple[int, ...]) -> Program:
    """The Program that attaches queues 1..n again, so that a second QEMU can take the same fds."""
    row = NicRow(ifname, len(tap_fds), 0, "", "", tap_fds=tap_fds)
    return Program((row,), (Act(Op.ATTACH, 0),))


def resolve(program: Program, bridges: Mapping[str, Link]) -> Program:
    """The same Program with what is known of its bridges put in: what a dry run shows."""
    rows = []
    for nic in program.nics:
        bridge = bridges.get(nic.bridge)
        rows.append(nic._replace(master=bridge.ifindex, mtu=nic.mtu or bridge.mtu) if bridge else nic)
    return Program(tuple(rows), program.acts)


def _row(spec: InterfaceSpec, name: str, features: Features) -> NicRow:
    bridge = _bridge_of(spec)
    return NicRow(
        name,
        spec.queues,
        tun_flags(spec, features),
        spec.tap_path,
        spec.vhost_path,
        bridge,
        0,
        spec.mtu or (0 if bridge else DEFAULT_MTU),
        tap_mac(spec.mac),
        features.ipv6,
    )


def _bridge_of(spec: InterfaceSpec) -> str:
    if spec.bridge is None and spec.type != "ethernet":
        raise SpecError(
            "stands for no bridge here",
            attribute="network",
            value=spec.network,
            expected="a bridge for it: parse_interface(..., networks={NAME: BRIDGE}), --network NAME=BRIDGE",
        )
    return spec.bridge or ""


def _check_names(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SpecError("is asked for twice in one batch", attribute="ifname", value=name)
        seen.add(name)
