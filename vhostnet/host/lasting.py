"""NICs that outlived their makers: taken away by name, as the survey finds them."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from vhostnet import engines, slow
from vhostnet.engines import Engine
from vhostnet.errors import HostError, NameBusy, NoSuchTap
from vhostnet.events import close, told
from vhostnet.host.opening import How, make_nics
from vhostnet.host.reasons import refusal
from vhostnet.host.survey import FoundNic, survey
from vhostnet.process.forks import under_way
from vhostnet.process.netns import NetNs, call_inside
from vhostnet.program.parts import NOTHING_SLOW, Fds, Floor, Macvtap, NicRow, Plug, Slow, held_row
from vhostnet.program.plan import plan_delete
from vhostnet.spec.interface import InterfaceSpec
from vhostnet.spec.mac import octets


def delete_nics(names: Sequence[str], *, engine: str = "auto", netns: NetNs | None = None) -> None:
    """Delete these NICs, which are marked as ours and which nobody has open, in one round; all of them or none.

    Each is opened first: by its fd it is proven that it is the one that was found. Their ports of Open vSwitch go with
    them, and so does one that a crash has left without a NIC, and a floor, by its guest's MAC. A macvtap is known by
    its mark. Raises NoSuchTap for one that is not there, or that carries no mark; NameBusy for one that somebody has
    open; and what opening it raises.
    """
    if names:
        call_inside(netns, _delete, engines.select(engine), list(dict.fromkeys(names)))


def _delete(engine: Engine, names: Sequence[str]) -> None:
    there = {nic.ifname: nic for nic in survey()}
    for name in names:
        _check(name, there.get(name))
    found = [there[name] for name in names]
    with under_way:
        held = [_row(nic) for nic in found if nic.kind == "macvtap"]
        held += _open([nic for nic in found if nic.kind == "tun" and nic.ifindex], engine)
        slow.end(engine, [*held, *(_row(nic) for nic in found if not nic.ifindex)])
        program = plan_delete(held)
        result = told(engine, program, engine.run)
        left = [held[program.acts[failure.act].nic] for failure in result.failures]
        close(engine, left, [row.fds for row in left])
    if result.failures:
        raise refusal(program, result.failures[0])


def _open(nics: Sequence[FoundNic], engine: Engine) -> list[NicRow]:
    """They are whoever's they are: by ifindex and fd, and not by names that may be others' by now."""
    specs = [InterfaceSpec(type="ethernet", managed=False, ifname=nic.ifname, vhost="off") for nic in nics]
    rows = []
    for found, nic in zip(nics, make_nics(engine, specs, How("off", "noqueue")) if specs else [], strict=True):
        rows.append(_row(found)._replace(held=nic.detach()))
    return rows


def _row(nic: FoundNic) -> NicRow:
    """A macvtap is known by its mark, and held without an fd."""
    left = Slow(Plug(nic.bridge or "")) if nic.plugged else NOTHING_SLOW
    name = nic.ifname
    if nic.kind == "floor":
        left, name = Slow(floor=Floor(nic.bridge or "", octets(name), 0)), _GONE
    row = held_row(name, nic.ifindex, _NO_FDS, nic.mark.text, slow=left)
    return row._replace(macvtap=Macvtap()) if nic.kind == "macvtap" else row._replace(held=None)


_NO_FDS: Final = Fds((), ())
_GONE: Final = "gone"  # what the NIC was called nobody knows


def _check(name: str, found: FoundNic | None) -> None:
    error: HostError
    if found is None:
        problem = f"no NIC {name!r} of vhostnet's here"
        error = NoSuchTap(errno.ENODEV, problem, act="DELETE", call=None, ifname=name, queue=None)
        error.remedy = "vhostnet list shows those that there are; for others: ip link del"
        raise error
    if found.holders:
        held = ", ".join(f"{holder.command!r} (pid {holder.pid})" for holder in found.holders)
        error = NameBusy(errno.EBUSY, f"held by {held}", act="DELETE", call=None, ifname=name, queue=None)
        error.holders, error.remedy = found.holders, "end who has it open, and it can be deleted"
        raise error
