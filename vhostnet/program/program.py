"""What a Program is: one row a NIC, and the acts on them, in order, as data. What goes into one is plan.py's."""

from functools import lru_cache
from typing import Final

from vhostnet.program.parts import (
    ALIASSIZ,
    IFNAMSIZ,
    MAX_VLANS,
    NOTHING_SLOW,
    PORT,
    UNSHAPED,
    Act,
    NicRow,
    Op,
    Shaping,
    Slow,
)
from vhostnet.program.text import act_text
from vhostnet.spec.interface import MAX_QUEUES
from vhostnet.values import dataclass


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
            if nic.port is not PORT and (nic.bridge or nic.held):
                state += _HAS_VLANS * bool(nic.port.vlans and nic.bridge) + _HAS_FDB * bool(nic.port.guest_mac)
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
            line = f"{number:>{digits}}  {act.op.name:<10}  {nic.ifname:<{width}}  {act_text(act, nic)}"
            lines.append(line.rstrip())
        return "\n".join(lines)


_STATES: Final = ("new", "held", "held with its vhost-net fds", "adopted")
_MAKING: Final = (Op.TAP_OPEN, Op.ADOPT, Op.MACVTAP, Op.SELFTEST)
# What is not for a NIC that is so.
_BARRED: Final = (
    (Op.ADOPT, Op.LEAVE, Op.DOWN, Op.UNFDB, Op.ATTACH, Op.DELETE, Op.DOWNSCRIPT, Op.UNADDRESS, Op.REPLUG, Op.REFLOOR),
    _MAKING,
    (*_MAKING, Op.VHOST_OPEN),
    tuple(op for op in Op if op not in (Op.ADOPT, Op.VHOST_OPEN, Op.SELFTEST, Op.SCRIPT, Op.ADDRESS)),
)
# HAS_VLANS where it is on a bridge, HAS_FDB also where it is held, as HAS_SHAPING: it may have been shaped.
_HAS_VLANS, _HAS_FDB, _LASTS, _HAS_SHAPING, _MACVTAP, _NO_QUEUES = 4, 8, 16, 32, 64, 128
_HAS_PLUG, _HAS_SCRIPT, _HAS_DOWNSCRIPT, _HAS_ADDRESS, _HAS_FLOOR = 256, 512, 1024, 2048, 4096
_NOT_MACVTAPS: Final = (Op.TAP_OPEN, Op.ADOPT, Op.COALESCE, Op.PERSIST)
_NEEDED: Final = {
    **dict.fromkeys((Op.VLAN_ADD, Op.VLAN_DEL), _HAS_VLANS),
    **dict.fromkeys((Op.FDB, Op.UNFDB), _HAS_FDB),
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


def fds_needed(program: Program) -> int:
    """How many fds must be opened; vhost-net's where it is required."""
    opening = (Op.TAP_OPEN, Op.ADOPT, Op.MACVTAP, Op.VHOST_OPEN)
    return sum(program.nics[nic].queues for op, nic, optional, _ in program.acts if op in opening and not optional)
