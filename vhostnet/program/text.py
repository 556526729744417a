"""How a Program reads: an act a line, as ``ip``, ``bridge`` and ``tc`` would say it."""

from collections.abc import Iterable, Iterator
from typing import Final, cast

from vhostnet.program.parts import (
    MACVTAP_MODES,
    UNSHAPED,
    Act,
    Address,
    Floor,
    Macvtap,
    NicRow,
    Op,
    Persist,
    Plug,
    Port,
    Route,
    Slow,
    TunFlag,
    VlanEntry,
    VlanFlag,
)


def act_text(act: Act, nic: NicRow) -> str:
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
        Op.UNFDB: (nic.port.guest_mac.hex(":"),),
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
        yield _gets(leaving, shaping.rate, shaping.ceil)
    if shaping.police_rate:
        yield f"{coming} {_kilobytes(shaping.police_rate)}"
    if shaping == UNSHAPED:
        yield "no limit"


def _gets(leaving: str, rate: int, most: int) -> str:
    return f"{leaving} {_kilobytes(rate)}" + (f", at most {_kilobytes(most)}" if most != rate else "")


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
    if plug.queue:
        yield _gets("gets", plug.queue.min_rate // 8, plug.queue.max_rate // 8)
    if plug.police_rate:
        yield f"sends {_kilobytes(plug.police_rate * 125)}"


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
