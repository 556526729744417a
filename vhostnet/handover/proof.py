"""A Nic from what another process says of it and the fds it gave: nothing is believed that the kernel does not say."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from vhostnet import engines
from vhostnet.engines import (
    ActResult,
    NicResult,
    Result,
    Run,
    get_mac,
    get_name_and_flags,
    netns_of_tap,
    prove_vhost,
)
from vhostnet.errors import HandoverError, HostError
from vhostnet.handover.fields import fields_of, spec_of
from vhostnet.host.nic import Nic
from vhostnet.host.reasons import describe
from vhostnet.others.holders import TUN
from vhostnet.process.files import close_fd
from vhostnet.process.netns import Home, call_inside
from vhostnet.program.parts import Act, Fds, Link, Macvtap, NicRow, Op, Persist, TunFlag
from vhostnet.program.program import Program
from vhostnet.program.rows import slow_of
from vhostnet.spec.interface import InterfaceSpec

_MUST: Final = int(TunFlag.TAP | TunFlag.NO_PI)
_MANY: Final = int(_MUST | TunFlag.MULTI_QUEUE)


def told_of(nic: Nic, *, spec: bool = True) -> dict[str, Any]:
    """What whoever receives *nic* has to know: JSON's values. Its fds go along: the TAP's, then vhost-net's, then of a
    macvtap its network namespace.
    """
    refused = nic.vhost_refused
    return {
        **({"spec": fields_of(nic.spec)} if spec else {}),
        "ifname": nic.ifname,
        "ifindex": nic.ifindex,
        "mtu": nic.mtu,
        "mark": nic.mark,
        "up": nic.is_up,
        "persistent": nic.persistent,
        "resets": nic.resets,
        "tap": len(nic.tap_fds),
        "vhost": len(nic.vhost_fds),
        **({"refused": {"errno": refused.errno, "call": refused.call}} if refused else {}),
    }


def proven(
    told: Mapping[str, Any],
    fds: Sequence[int],
    *,
    spec: InterfaceSpec | None = None,
    kind: type[Nic] = Nic,
    here: bool = True,
) -> Nic:
    """The Nic that *told* speaks of, which owns *fds* from then on; with a *spec* it is not asked what that is.

    Where it need not be *here*, in a network namespace that this process may look into, its link is not looked for, and
    of its queues the first speaks for all: so it is with a broker, which is trusted with more.

    Raises HandoverError, or SpecError, and then they are the caller's: each queue is one of that TAP, by name and
    flags, in one network namespace, where the link of that name has the ifindex, the MAC and the mark that were said;
    and what is to be vhost-net is that, with the features QEMU needs.
    """
    spec = spec or spec_of(_said(told, "spec", dict))
    taps, vhosts = _said(told, "tap", int), _said(told, "vhost", int)
    macvtap = spec.type == "direct"
    if taps != spec.queues or vhosts not in (0, taps) or len(fds) != taps + vhosts + macvtap:
        raise HandoverError(f"{len(fds)} fds came of {taps} queues and {vhosts} of vhost-net, and {spec.queues} asked")
    held = Fds(tuple(fds[:taps]), tuple(fds[taps : taps + vhosts]))
    name = _said(told, "ifname", str)
    _said(told, "resets", int)
    for queue, fd in enumerate(held.tap if here else held.tap[:1]):
        _check_tap(fd, queue, name, spec)
    for queue, fd in enumerate(held.vhost if here else held.vhost[:1]):
        _check_vhost(fd, queue, name)
    row = _row(told, name, spec, held)
    run = _run(told, row)
    if macvtap:
        nic = _macvtap(spec, run, fds[-1], kind)
    else:
        if here:
            _check_link(row, _link_of(held.tap, name))
        nic = kind(spec, engines.select(), run)
    nic.resets = told["resets"]
    return nic


def _macvtap(spec: InterfaceSpec, run: Run, netns: int, kind: type[Nic]) -> Nic:
    """It is to be deleted where it was made."""
    row = run.program.nics[0]
    home = _home(netns)
    try:
        _check_link(row, home.call(_find, row.ifname))
        nic = kind(spec, engines.select(), run, home=home)
    finally:
        home.release()
    close_fd(netns)
    return nic


def _said(told: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    value = told.get(name)
    if type(value) is not kind:
        raise HandoverError(f"{name} is {value!r}, where a {kind.__name__} was to be said")
    return value


def _row(told: Mapping[str, Any], name: str, spec: InterfaceSpec, held: Fds) -> NicRow:
    persistent = _said(told, "persistent", bool)
    return NicRow(
        name,
        spec.queues,
        0,
        "",
        spec.vhost_path,
        mtu=_said(told, "mtu", int),
        alias=_said(told, "mark", str),
        ifindex=_said(told, "ifindex", int),
        held=held,
        up=_said(told, "up", bool),
        adopted=spec.managed is False,
        persist=Persist() if persistent else None,
        macvtap=Macvtap() if spec.type == "direct" else None,
        slow=slow_of(spec, name),
    )


def _run(told: Mapping[str, Any], row: NicRow) -> Run:
    """Its history: all that is known of it is whether vhost-net was refused, and why.

    Row and history are made here in one step each: by a broker's client one after the other, the whole batch waiting.
    """
    acts: tuple[Act, ...] = ()
    results: tuple[ActResult, ...] = ()
    if "refused" in told:
        refused = _said(told, "refused", dict)
        outcome = ActResult(_said(refused, "errno", int), _said(refused, "call", str), 0, 0)
        acts, results = (Act(Op.VHOST_OPEN, 0, optional=True),), (outcome,)
    result = Result((NicResult(row.ifindex, row.mtu, row.fds),), results)
    return Run(Program((row,), acts), result, 0, range(len(acts)))


# --- what the kernel says --------------------------------------------------------------------------------


def _check_tap(fd: int, queue: int, name: str, spec: InterfaceSpec) -> None:
    """The device first: an ioctl means what its device makes of it."""
    try:
        status = os.fstat(fd)
        if (status.st_rdev == TUN) == (spec.type == "direct"):
            raise HandoverError(f"queue {queue} of {name} is no {'macvtap' if spec.type == 'direct' else 'TAP'}")
        found, flags = get_name_and_flags(fd)
    except OSError as error:
        raise HandoverError(f"queue {queue} of {name} is no TAP: {error.strerror or error}") from None
    if found != name:
        raise HandoverError(f"queue {queue} of {name} is one of {found}")
    must = _MANY if spec.queues > 1 else _MUST
    if flags & must != must:
        raise HandoverError(f"queue {queue} of {name} has the flags {flags:#x}, and {must:#x} are needed")


def _check_vhost(fd: int, queue: int, name: str) -> None:
    try:
        prove_vhost(fd)
    except OSError as error:
        raise HandoverError(f"what came as vhost-net of {name}, queue {queue}, is none: {error.strerror}") from None


def _link_of(taps: Sequence[int], name: str) -> Link | None:
    """The link of that name where the queues are; where the kernel does not tell us (CAP_NET_ADMIN), here."""
    try:
        netns = netns_of_tap(taps[0])
    except OSError:
        return _find(name)
    try:
        if any(not _is_in(fd, netns) for fd in taps[1:]):
            raise HandoverError(f"the queues of {name} are in more than one network namespace")
        if os.path.samestat(os.fstat(netns), os.stat("/proc/thread-self/ns/net")):
            return _find(name)
        return call_inside(netns, _find, name)
    finally:
        close_fd(netns)


def _is_in(tap: int, netns: int) -> bool:
    its = netns_of_tap(tap)
    try:
        return os.path.samestat(os.fstat(its), os.fstat(netns))
    finally:
        close_fd(its)


def _find(name: str) -> Link | None:
    return describe(engines.select(), [name]).get(name)


def _check_link(row: NicRow, link: Link | None) -> None:
    if link is None:
        raise HandoverError(f"{row.ifname} is not here: it is in a network namespace that this process may not enter")
    mac = link.mac if row.macvtap else get_mac(row.fds.tap[0])
    found = {"ifindex": link.ifindex, "mark": "" if row.adopted else link.alias, "its MAC": link.mac}
    said = {"ifindex": row.ifindex, "mark": "" if row.adopted else row.alias, "its MAC": mac}
    wrong = next((what for what in found if found[what] != said[what]), "")
    if wrong:
        raise HandoverError(f"{row.ifname} is another link: {wrong} is {found[wrong]!r}, not {said[wrong]!r}")


def _home(fd: int) -> Home:
    """A macvtap's network namespace, by an fd of it."""
    try:
        return call_inside(fd, Home)
    except HostError as error:
        raise HandoverError(f"what came as a network namespace is none: {error}") from None
