"""What opening NICs does to others, and what their guests will not know: said before it is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from vhostnet import engines
from vhostnet.host.reasons import describe
from vhostnet.process.netns import NetNs, call_inside
from vhostnet.program.parts import MACVTAP_MODES, Link, NicRow
from vhostnet.program.program import Program
from vhostnet.program.rows import DEFAULT_MTU
from vhostnet.qemu.argv import START_PASST
from vhostnet.spec.interface import InterfaceSpec


def effects(
    specs: Sequence[InterfaceSpec], program: Program, *, engine: str = "auto", netns: NetNs | None = None
) -> tuple[str, ...]:
    """What *program* (of *specs*) would do to the bridges' MTUs, and what its guests will take theirs for.

    Specs without a TAP have no row in it; of them is said who makes what they lead to.
    """
    names = list(dict.fromkeys(nic.joins for nic in program.nics if nic.joins))
    bridges = call_inside(netns, describe, engines.select(engine), names)
    made = [spec for spec in specs if spec.tap]
    falling, unknown = _falling(program.nics, bridges), _unknown(made, program.nics, bridges)
    return (*without_tap(specs), *falling, *unknown, *_staying(program.nics))


def without_tap(specs: Sequence[InterfaceSpec]) -> tuple[str, ...]:
    """Of each NIC for which nothing is made here, who makes what it leads to."""
    return tuple(f"NIC {spec.mac}: type {spec.type} has no TAP: {_whose(spec)}" for spec in specs if not spec.tap)


def _whose(spec: InterfaceSpec) -> str:
    if not spec.passt:
        return _WHOSE[spec.type]
    shared = ", and passt reads the guest's memory, which must be shared (share=on)" if spec.type == "vhostuser" else ""
    return f"passt is its network: start it ({START_PASST[spec.type]}), and give its socket (--passt){shared}"


_WHOSE: Final = {
    "user": "QEMU is its network",
    "vhostuser": "QEMU opens the socket, and the switch reads the guest's memory, which must be shared (share=on)",
    "vdpa": "exec opens the device's node for QEMU, which locks the guest's memory (ulimit -l, LimitMEMLOCK=)",
    **dict.fromkeys(("udp", "mcast", "server", "client"), "QEMU opens the socket"),
}


def _staying(rows: Sequence[NicRow]) -> Iterator[str]:
    for row in rows:
        if row.macvtap:
            yield f"{row.ifname}: a macvtap stays when nobody has it open any more: vhostnet delete {row.ifname}"
        if row.macvtap and MACVTAP_MODES[row.macvtap.mode] == "passthrough":
            yield f"{row.ifname}: {row.macvtap.parent} has the guest's MAC for as long, and no other macvtap"


def _falling(rows: Sequence[NicRow], bridges: Mapping[str, Link]) -> Iterator[str]:
    for name, bridge in bridges.items():
        joining = [row for row in rows if row.joins == name]
        least = min(joining, key=lambda row: row.mtu or bridge.mtu)
        if 0 < least.mtu < bridge.mtu:
            pins = (
                f"to what it is does not count: ip link set dev {name} mtu {bridge.mtu - 1}, then {bridge.mtu}, pins it"
            )
            if least.slow.plug:
                pins = f"ovs-vsctl set Interface {name} mtu_request={bridge.mtu}"
            yield (
                f"{least.ifname} joins {name} with an MTU of {least.mtu}: {name}'s falls from {bridge.mtu} to "
                f"{least.mtu}, for all its ports, unless somebody has set it ({pins})"
            )


def _unknown(specs: Sequence[InterfaceSpec], rows: Sequence[NicRow], bridges: Mapping[str, Link]) -> Iterator[str]:
    for spec, row in zip(specs, rows, strict=True):
        bridge = bridges.get(row.joins)
        if bridge is None or spec.mtu or bridge.mtu == DEFAULT_MTU:
            continue
        tell = f"<mtu size='{bridge.mtu}'/> tells it" if spec.virtio else "set it in the guest: this model is not told"
        yield f"{row.ifname}: the guest will take {DEFAULT_MTU} for its MTU, and {row.joins} has {bridge.mtu}; {tell}"
