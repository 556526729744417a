"""Opening NICs on this host, one or a thousand: from specs to a Program, through an engine, to Nics."""

import contextlib
import os
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, overload

from vhostnet import engines, slow
from vhostnet.engines import Engine, Result, Run, runs_of
from vhostnet.errors import HostError, NameBusy, NotPermitted, SpecError
from vhostnet.host.closing import await_names
from vhostnet.host.marks import Maker, make_marks
from vhostnet.host.names import free_names, is_template, names_for
from vhostnet.host.nic import Nic, settle_later
from vhostnet.host.reasons import (
    describe,
    explained,
    free_memory,
    joined,
    refusals,
    unfit_bridge,
    unfit_floors,
    unfit_parents,
    unfit_plugs,
    unfit_taps,
)
from vhostnet.others import udev
from vhostnet.process.files import allowed_files, open_files
from vhostnet.process.forks import under_way
from vhostnet.process.netns import Home, NetNs, call_inside
from vhostnet.program.cost import Limits
from vhostnet.program.parts import MAX_PORTS, Op, Persist
from vhostnet.program.plan import QDISCS, Qdisc, plan, resolve
from vhostnet.program.program import Program
from vhostnet.program.rows import Features
from vhostnet.spec.interface import DEFAULT_TAP, VHOST_POLICIES, InterfaceSpec, VhostPolicy

NAME_TRIES: Final = 16  # how often a generated name may be snatched away before we give up


def open_nic(
    spec: InterfaceSpec,
    *,
    engine: str = "auto",
    vhost: VhostPolicy | None = None,
    netns: NetNs | None = None,
    qdisc: Qdisc = "noqueue",
    selftest: bool = False,
    up: bool = True,
    persist: bool = False,
    owner: int | str | None = None,
    group: int | str | None = None,
) -> Nic:
    """The NIC *spec* asks for: a TAP, up and on its bridge, and its vhost-net fds. As open_nics() for one."""
    return open_nics(
        [spec],
        engine=engine,
        vhost=vhost,
        netns=netns,
        qdisc=qdisc,
        selftest=selftest,
        up=up,
        persist=persist,
        owner=owner,
        group=group,
    )[0]


@overload
def open_nics(
    specs: Sequence[InterfaceSpec],
    *,
    on_error: Literal["undo"] = "undo",
    engine: str = "auto",
    vhost: VhostPolicy | None = None,
    netns: NetNs | None = None,
    qdisc: Qdisc = "noqueue",
    selftest: bool = False,
    up: bool = True,
    persist: bool = False,
    owner: int | str | None = None,
    group: int | str | None = None,
) -> list[Nic]: ...


@overload
def open_nics(
    specs: Sequence[InterfaceSpec],
    *,
    on_error: Literal["keep"],
    engine: str = "auto",
    vhost: VhostPolicy | None = None,
    netns: NetNs | None = None,
    qdisc: Qdisc = "noqueue",
    selftest: bool = False,
    up: bool = True,
    persist: bool = False,
    owner: int | str | None = None,
    group: int | str | None = None,
) -> list[Nic | HostError]: ...


def open_nics(
    specs: Sequence[InterfaceSpec],
    *,
    on_error: Literal["undo", "keep"] = "undo",
    engine: str = "auto",
    vhost: VhostPolicy | None = None,
    netns: NetNs | None = None,
    qdisc: Qdisc = "noqueue",
    selftest: bool = False,
    up: bool = True,
    persist: bool = False,
    owner: int | str | None = None,
    group: int | str | None = None,
) -> list[Nic] | list[Nic | HostError]:
    """All the NICs of *specs*, in their order, or none: one engine call for the whole batch.

    *engine* is ``auto``, ``native`` or ``pure``. *vhost* overrides every spec's own policy: ``auto`` tries and
    goes on without, ``require`` fails without, ``off`` does not try. *netns* (a name of ip-netns(8), a path
    or an fd) is where the NICs are made. *qdisc* ``noqueue`` is put on before UP; ``default`` leaves the kernel its
    own (slow and large on multi-queue). *selftest* proves once a process, on a private fd,
    that vhost-net really takes a TAP.

    Raises SpecError for what cannot be meant, two NICs of one name or one MAC among it; HostError for what the
    host refuses; then nothing is left. Open files (RLIMIT_NOFILE) and the bridges' free ports are counted
    first, before anything is made. Where this process may make no TAP (CAP_NET_ADMIN), NICs of one queue on a bridge
    come from QEMU's bridge helper. With *on_error* ``keep`` the HostError of a NIC that was refused stands in
    its place, and the others are there.

    Without *up* they are left down, until ``Nic.up()``: for who has to add filters of his own before the first frame.
    With *persist* they outlive this process (until ``delete_nics()``), and only whose uid is *owner* and who is in
    *group*, numbers or names, may open them without privileges. It is done last: a run that fails leaves nothing.
    """
    chosen = engines.select(engine)
    _check(vhost, qdisc)
    if on_error not in ("undo", "keep"):
        raise SpecError("is not allowed", attribute="on_error", value=on_error, expected="undo or keep")
    if not specs:
        return []
    how = How(vhost, qdisc, selftest, on_error == "keep", up=up, persist=_persist(persist, owner, group))
    return call_inside(netns, make_nics, chosen, specs, how)


def _persist(persist: bool, owner: int | str | None, group: int | str | None) -> Persist | None:
    for name, value in (("owner", owner), ("group", group)):
        if value is not None and not persist:
            raise SpecError("means nothing without persist", attribute=name, value=value)
    if not persist:
        return None
    return Persist(_number("owner", owner), _number("group", group))


def _number(what: str, who: int | str | None) -> int:
    """A uid or gid, and -1 for nobody's. Raises SpecError."""
    if who is None:
        return -1
    if type(who) is int and 0 <= who < 2**32 - 1:
        return who
    if isinstance(who, str):
        import grp  # who has names for them is not in a hurry
        import pwd

        with contextlib.suppress(KeyError):
            return grp.getgrnam(who).gr_gid if what == "group" else pwd.getpwnam(who).pw_uid
    raise SpecError("is nobody here", attribute=what, value=who, expected="a name or a number that this host knows")


def plan_nics(
    specs: Sequence[InterfaceSpec],
    *,
    engine: str = "auto",
    vhost: VhostPolicy | None = None,
    netns: NetNs | None = None,
    qdisc: Qdisc = "noqueue",
) -> Program:
    """The Program open_nics() would run now. Nothing is touched, and it takes no privileges.

    Raises as open_nics() does where the host already says no: a bridge that is not there, is none, or is full.
    """
    chosen = engines.select(engine)
    _check(vhost, qdisc)
    return call_inside(netns, _plan, chosen, specs, vhost, qdisc)


def limits(program: Program, *, engine: str = "auto", netns: NetNs | None = None) -> Limits:
    """What this host has left of what *program* takes (``cost()``)."""
    names = list(dict.fromkeys(nic.bridge for nic in program.nics if nic.bridge))
    links = call_inside(netns, describe, engines.select(engine), names)
    ports = {name: MAX_PORTS - links[name].ports for name in names if name in links}
    allowed = allowed_files()
    return Limits(allowed - open_files(allowed), free_memory() or 0, ports)


def _check(vhost: object, qdisc: object) -> None:
    if vhost is not None and vhost not in VHOST_POLICIES:
        raise SpecError("is not allowed", attribute="vhost", value=vhost, expected="auto, require, off or None")
    if qdisc not in QDISCS:
        raise SpecError("is not allowed", attribute="qdisc", value=qdisc, expected="noqueue or default")


class How(NamedTuple):
    """What holds for a whole batch, as open_nics() has it; ``park`` leaves the NICs down, for a pool.

    ``makers`` are those that a broker makes them for, one a NIC; without ``helped`` QEMU's bridge helper is no way out.
    """

    vhost: VhostPolicy | None
    qdisc: Qdisc
    selftest: bool = False
    keep: bool = False
    park: bool = False
    up: bool = True
    persist: Persist | None = None
    makers: tuple[Maker, ...] = ()
    helped: bool = True


def make_nics(engine: Engine, specs: Sequence[InterfaceSpec], how: How) -> list[Nic]:
    """One engine call; another only for generated names that turn out to be somebody's.

    Where *how* says keep there is a HostError in the place of each Nic that was refused. Where a udevd listens each is
    looked at once more when that is done with it.
    """
    names = names_for(specs)
    await_names(names)
    born = time.time()
    made = _make(engine, specs, how, names, NAME_TRIES)
    if udev.listens():
        settle_later([nic for nic in made if isinstance(nic, Nic)], born)
    return made


def _make(engine: Engine, specs: Sequence[InterfaceSpec], how: How, names: Sequence[str], tries: int) -> list[Nic]:
    program = plan(
        specs,
        names,
        _features(engine, specs[0].tap_path),
        marks=make_marks(len(specs), parked=how.park, makers=how.makers),
        vhost=how.vhost,
        qdisc=how.qdisc,
        selftest=how.selftest and not _selftested,
        keep=how.keep,
        park=how.park,
        up=how.up,
        persist=how.persist,
    )
    home = Home() if any(row.macvtap for row in program.nics) else None
    try:
        with under_way:
            result = slow.run(engine, program)
            if how.selftest:
                _note_selftest(program, result)
            if result.failures:
                return _go_on(engine, specs, how, program, result, tries, home)
            return [_nic(spec, engine, run, home) for spec, run in zip(specs, runs_of(program, result), strict=True)]
    finally:
        if home:
            home.release()


def _nic(spec: InterfaceSpec, engine: Engine, run: Run, home: Home | None) -> Nic:
    return Nic(spec, engine, run, home=home if spec.type == "direct" else None)


def _go_on(
    engine: Engine,
    specs: Sequence[InterfaceSpec],
    how: How,
    program: Program,
    result: Result,
    tries: int,
    home: Home | None,
) -> list[Nic]:
    """After a refusal: once more where it was only for a name, and otherwise as *how* says."""
    refused = refusals(program, result)
    snatched = [row for row, error in refused.items() if tries > 1 and _is_snatched(error, specs[row])]
    if not how.keep and snatched:
        return _make(engine, specs, how, free_names(engine, specs), tries - 1)
    if not how.keep:
        error = explained(engine, program, next(iter(refused.values())), _networks(specs))
        return _helped(engine, specs, how, error)
    made: list[Any] = [
        _kept(engine, spec, how, explained(engine, program, refused[row], _networks(specs)))
        if row in refused
        else _nic(spec, engine, run, home)
        for row, (spec, run) in enumerate(zip(specs, runs_of(program, result), strict=True))
        if row not in snatched
    ]
    if snatched:
        their = how._replace(makers=tuple([how.makers[row] for row in snatched]) if how.makers else ())
        again = _once_more(engine, [specs[row] for row in snatched], their, tries - 1)
        for row, nic in zip(snatched, again, strict=True):
            made.insert(row, nic)
    return made


def _once_more(engine: Engine, specs: Sequence[InterfaceSpec], how: How, tries: int) -> Sequence[Any]:
    """For those that are to be kept, under other names; or why there is no looking for such names."""
    try:
        return _make(engine, specs, how, free_names(engine, specs), tries)
    except HostError as error:
        return [error] * len(specs)


def _helped(engine: Engine, specs: Sequence[InterfaceSpec], how: How, error: HostError) -> list[Nic]:
    """All of them by QEMU's bridge helper, where *error* is that this process may make no TAP; else it is raised."""
    powerless = isinstance(error, NotPermitted) and (error.act, error.call) == (Op.TAP_OPEN.name, "TUNSETIFF")
    if not powerless or not how.helped or not how.up or how.park or how.persist:
        raise error
    from vhostnet.host.helped import open_helped  # who may make TAPs needs none of it

    return open_helped(engine, specs, how.vhost, error)


def _kept(engine: Engine, spec: InterfaceSpec, how: How, error: HostError) -> Nic | HostError:
    try:
        return _helped(engine, [spec], how, error)[0]
    except HostError as refused:
        return refused


_selftested = False  # vhost-net was seen to take a TAP in this process


def _note_selftest(program: Program, result: Result) -> None:
    global _selftested
    _selftested |= not result.failures and any(act.op == Op.SELFTEST for act in program.acts)


def _is_snatched(error: HostError, spec: InterfaceSpec) -> bool:
    return isinstance(error, NameBusy) and is_template(spec.ifname)


def _plan(engine: Engine, specs: Sequence[InterfaceSpec], vhost: VhostPolicy | None, qdisc: Qdisc) -> Program:
    program = draft(engine, specs, vhost=vhost, qdisc=qdisc)
    joining = joined(program)
    links = describe(engine, list(joining))
    for name, nics in joining.items():
        unfit = unfit_bridge(name, links.get(name), nics, _networks(specs).get(name))
        if unfit:
            raise unfit
    slow_ones = (*unfit_plugs(program), *unfit_floors(program))
    for unfit in (*unfit_taps(engine, program), *unfit_parents(engine, program), *slow_ones):
        raise unfit
    links |= describe(engine, [nic.joins for nic in program.nics if nic.slow.plug])
    return resolve(program, links)


def _networks(specs: Sequence[InterfaceSpec]) -> dict[str, str]:
    """Bridge -> the libvirt network that it stands for."""
    return {spec.bridge: spec.network for spec in specs if spec.bridge and spec.network}


def draft(
    engine: Engine, specs: Sequence[InterfaceSpec], *, vhost: VhostPolicy | None = None, qdisc: Qdisc = "noqueue"
) -> Program:
    """The Program with generated names that are free now; its bridges have not been looked up."""
    features = _features(engine, specs[0].tap_path if specs else DEFAULT_TAP)
    return plan(specs, free_names(engine, specs), features, vhost=vhost, qdisc=qdisc)


@lru_cache(maxsize=8)
def _asked(engine: str, tap_path: str) -> Features:
    # The kernel keeps this file only where it has IPv6; without IPv6 it refuses to be told about it. Not /proc/net,
    # which systemd's ProcSubset=pid hides.
    return Features(engines.select(engine).features(tap_path), os.path.exists("/proc/self/net/if_inet6"))


def _features(engine: Engine, tap_path: str) -> Features:
    """Asked once a process. Where the device does not open, all is assumed: TAP_OPEN will say what is wrong."""
    try:
        return _asked(engine.name, tap_path)
    except OSError:
        return Features(0xFFFF, True)
