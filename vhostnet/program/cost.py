"""What a Program takes of a host: fds, kernel memory, bridge ports, and turns at the kernel's one lock.

Memory is estimated, from what NICs were measured to take (Linux 6.18, x86-64, slab, settled, a port of a bridge with
them): ``make bench`` measures it again.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

from vhostnet.program.parts import NicRow, Op, Shaping
from vhostnet.program.program import Program

_KIB: Final = 1024
_SINGLE_QUEUE: Final = 62 * _KIB
_MULTI_QUEUE: Final = 257 * _KIB  # IFF_MULTI_QUEUE: 256 transmit queues, however many are opened
_EACH_QUEUE: Final = 11_700  # its ring, its socket
_MACVTAP: Final = 47 * _KIB  # one transmit queue, however many it has
_MACVTAP_QUEUE: Final = 5_300
_VHOST_FD: Final = 66 * _KIB
_QDISC: Final = 10 * _KIB  # the kernel's default: three rings of 1000 slots,
_QDISCS: Final = 6384 * _KIB  # for each of the 256

_HTB: Final = 5 * _KIB
_POLICE: Final = 5 * _KIB  # with its ingress

# Turns at RTNL, the lock that all of the host's network configuration takes, one at a time.
# TAP_OPEN: two MACs, the ifindex, and the look at the MAC when all is done.
_ONCE: Final = (
    *("QDISC", "LEAVE", "LINK", "VLAN_ADD", "VLAN_DEL", "FDB", "COALESCE", "UP", "DOWN", "UNFDB"),
    *("ALTNAME", "RENAME"),
)
# MACVTAP: it is made, and told its mark. FLOOR: class, qdisc, filter, and once for all the class of the others.
_MANY: Final = {Op.TAP_OPEN: 4, Op.ADOPT: 2, Op.MACVTAP: 2, Op.FLOOR: 3, Op.DELETE: 4}
_TURNS_EACH_NIC: Final = {**_MANY, **{Op[name]: 1 for name in _ONCE}}
_TURNS_EACH_QUEUE: Final = 2  # to attach it, and to ask whose it is
_TURNS_EACH_BRIDGE: Final = 2


class Cost(NamedTuple):
    """``fds`` opened and kept; ``memory`` in bytes, of the kernel; ``ports`` by bridge; turns at RTNL."""

    fds: int
    memory: int
    ports: Mapping[str, int]
    acts: int
    rtnl_turns: int


class Limits(NamedTuple):
    """What the host has left: fds under RLIMIT_NOFILE, memory in bytes (MemAvailable; 0: unknown), ports by bridge."""

    fds: int
    memory: int
    ports: Mapping[str, int]


def cost(program: Program) -> Cost:
    """What running *program* takes; vhost-net counts where it is tried."""
    rows = [program.nics[act.nic] for act in program.acts if act.op in (Op.TAP_OPEN, Op.MACVTAP)]
    vhost = sum(program.nics[act.nic].queues for act in program.acts if act.op == Op.VHOST_OPEN)
    noqueue = {act.nic for act in program.acts if act.op == Op.QDISC}
    noqueue |= {number for number, row in enumerate(program.nics) if row.rooted}  # the root is HTB
    memory = sum(_memory(row, number in noqueue) for number, row in enumerate(program.nics) if row.held is None)
    ports = Counter(row.bridge for row in rows if row.bridge)
    queues = sum(row.queues for row in rows)
    turns = sum(_TURNS_EACH_NIC.get(act.op, 0) for act in program.acts)
    turns += sum(_turns(program.nics[act.nic].shaping) for act in program.acts if act.op == Op.TC)
    turns += _TURNS_EACH_QUEUE * queues + _TURNS_EACH_BRIDGE * len(ports)
    return Cost(queues + vhost, memory + vhost * _VHOST_FD, ports, len(program.acts), turns)


def _turns(shaping: Shaping) -> int:
    """Root, class and leaf; ingress and filter."""
    return 3 * bool(shaping.rate) + 2 * bool(shaping.police_rate)


def _memory(row: NicRow, noqueue: bool) -> int:
    shaping = _HTB * row.rooted + _POLICE * row.policed
    if row.macvtap:
        return _MACVTAP + _MACVTAP_QUEUE * row.queues + shaping + (0 if noqueue else _QDISC)
    if row.queues == 1:
        return _SINGLE_QUEUE + shaping + (0 if noqueue else _QDISC)
    return _MULTI_QUEUE + _EACH_QUEUE * row.queues + shaping + (0 if noqueue else _QDISCS)
