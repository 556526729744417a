"""Opening NICs on this host, and owning them: the one place where a value gets a life.

Every fd a Nic returns is O_CLOEXEC and belongs to that Nic until it is closed or detached. The TAP lives as
long as its last fd does, so closing is all there is to cleaning up.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
import warnings
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import TracebackType
from typing import Final, NamedTuple, cast

from vhostnet import engines, qemu
from vhostnet.engines import ActResult, Engine, Failure, Result
from vhostnet.errors import NameBusy, NicClosed, SpecError, host_error, vhost_problem
from vhostnet.netns import NetNs, call_inside
from vhostnet.plan import QDISCS, Act, Features, Link, Op, Program, Qdisc, plan, plan_attach, resolve
from vhostnet.qemu import Dialect
from vhostnet.spec import DEFAULT_TAP, VHOST_POLICIES, InterfaceSpec, VhostPolicy

NAME_TRIES: Final = 16  # how often a generated name may be snatched away before we give up


class Vhost(NamedTuple):
    """Whether the NIC has its vhost-net fds, and why not. True where it has."""

    on: bool
    why: str = ""

    def __bool__(self) -> bool:
        return self.on


class Timing(NamedTuple):
    """One act of this NIC and the nanoseconds it took; netlink acts of one send share its time evenly."""

    act: str
    ns: int


class Fds(NamedTuple):
    """Queue pair i is ``tap[i]`` and, with vhost-net, ``vhost[i]``."""

    tap: tuple[int, ...]
    vhost: tuple[int, ...]


class Nic:
    """A NIC that exists: its TAP is up, and on its bridge, for as long as this object owns the fds.

    Use it as a context manager, or call ``close()``. One that is dropped open is closed with a
    ResourceWarning. A child made by ``os.fork()`` does not own it: there it is closed, so only this process
    decides how long the NIC lives; subprocess children get what ``pass_fds=nic.fds`` gives them.
    """

    def __init__(self, spec: InterfaceSpec, program: Program, result: Result, row: int, engine: Engine) -> None:
        nic, made = program.nics[row], result.nics[row]
        self.spec: Final = spec
        self.ifname: Final = nic.ifname
        self.ifindex: Final = made.ifindex
        self.mtu: Final = made.mtu
        self._program, self._result, self._row = program, result, row
        self._engine = engine
        # The one thing here that changes: whoever pops the fds owns them, so two closers never close twice.
        self._owned = [Fds(made.tap_fds, made.vhost_fds)]
        _living.add(self)

    @property
    def mac(self) -> str:
        """The TAP's own MAC; the guest's is ``spec.mac``."""
        return self._program.nics[self._row].mac.hex(":")

    @property
    def vhost(self) -> Vhost:
        """Whether it has its vhost-net fds, or why not."""
        if self._result.nics[self._row].vhost_fds:
            return Vhost(True)
        for act, result in self._acts():
            if act.op == Op.VHOST_OPEN:
                path = self._program.nics[self._row].vhost_path
                return Vhost(False, vhost_problem(result.errno, result.call, path))
        return Vhost(False, "asked for without: driver name='qemu', vhost='off', or a model that is not virtio")

    @property
    def timings(self) -> tuple[Timing, ...]:
        """How long each act of this NIC took, in order."""
        return tuple(Timing(act.op.name, result.ns) for act, result in self._acts())

    def _acts(self) -> Iterator[tuple[Act, ActResult]]:
        """This NIC's acts, and what became of each."""
        every = zip(self._program.acts, self._result.acts, strict=True)
        return ((act, result) for act, result in every if act.nic == self._row)

    @property
    def tap_fds(self) -> tuple[int, ...]:
        """One fd a queue pair. Raises NicClosed."""
        return self._fds().tap

    @property
    def vhost_fds(self) -> tuple[int, ...]:
        """One vhost-net fd a queue pair, without an owner, or none. Raises NicClosed."""
        return self._fds().vhost

    @property
    def fds(self) -> tuple[int, ...]:
        """All of them, for ``subprocess``'s ``pass_fds``. Raises NicClosed."""
        fds = self._fds()
        return fds.tap + fds.vhost

    @property
    def closed(self) -> bool:
        """The fds were closed or given away."""
        return not self._owned

    def qemu_argv(
        self,
        *,
        alias: str | None = None,
        bus: str | None = None,
        addr: str | None = None,
        dialect: Dialect = "classic",
    ) -> list[str]:
        """QEMU's arguments for this NIC, with the numbers its fds have here. As ``qemu.qemu_argv``."""
        tap, vhost = self._fds()
        return qemu.qemu_argv(self.spec, tap_fds=tap, vhost_fds=vhost, alias=alias, bus=bus, addr=addr, dialect=dialect)

    def reset_queues(self) -> None:
        """Attach every queue again, for the next QEMU on the same fds.

        A QEMU that ends leaves queues 1..n detached, and the next one aborts on them. Raises HostError
        (act ``ATTACH``), NicClosed.
        """
        program = plan_attach(self.ifname, self._fds().tap)
        result = self._engine.run(program)
        if result.failure:
            raise _refusal(program, result.failure)

    def detach(self) -> Fds:
        """Give the fds away: the caller closes them, and with the last TAP fd the NIC goes. Raises NicClosed."""
        try:
            return self._owned.pop()
        except IndexError:
            raise NicClosed(f"{self.ifname} is closed") from None

    def close(self) -> None:
        """Close every fd; the TAP goes with its last one. Idempotent, and safe from any thread."""
        with contextlib.suppress(NicClosed):
            _close(self.detach())

    def _fds(self) -> Fds:
        try:
            return self._owned[0]
        except IndexError:
            raise NicClosed(f"{self.ifname} is closed") from None

    def __enter__(self) -> Nic:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_owned", None):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.spec.queues} queues, vhost {'on' if self.vhost else 'off'}"
        return f"<Nic {self.ifname} ({self.ifindex}): {state}>"


def _close(fds: Fds) -> None:
    for fd in (*reversed(fds.vhost), *reversed(fds.tap)):
        with contextlib.suppress(OSError):
            os.close(fd)


_living: weakref.WeakSet[Nic] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """A child must not keep the parent's NICs alive, unless it is on its way to exec with the fds it was given."""
    if _in_popen():
        return
    for nic in list(_living):
        nic.close()


def _in_popen() -> bool:
    """subprocess runs the fork handlers in the child of a Popen that has a preexec_fn."""
    popen = sys.modules.get("subprocess")
    code = popen.Popen._execute_child.__code__ if popen else None
    frame = sys._getframe()
    while frame.f_back and frame.f_code is not code:
        frame = frame.f_back
    return frame.f_code is code


os.register_at_fork(after_in_child=_after_fork_in_child)


# --- opening ---------------------------------------------------------------------------------------------


def open_nic(
    spec: InterfaceSpec,
    *,
    engine: str = "auto",
    vhost: VhostPolicy | None = None,
    netns: NetNs | None = None,
    qdisc: Qdisc = "noqueue",
    selftest: bool = False,
) -> Nic:
    """The NIC *spec* asks for: a TAP, up and on its bridge, and its vhost-net fds. As open_nics() for one."""
    return open_nics([spec], engine=engine, vhost=vhost, netns=netns, qdisc=qdisc, selftest=selftest)[0]


def open_nics(
    specs: Sequence[InterfaceSpec],
    *,
    engine: str = "auto",
    vhost: VhostPolicy | None = None,
    netns: NetNs | None = None,
    qdisc: Qdisc = "noqueue",
    selftest: bool = False,
) -> list[Nic]:
    """All the NICs of *specs*, in their order, or none: one engine call for the whole batch.

    *engine* is ``auto``, ``native`` or ``pure``. *vhost* overrides every spec's own policy: ``auto`` tries and
    goes on without, ``require`` fails without, ``off`` does not try. *netns* (a path or an fd) is where the
    NICs are made. *qdisc* ``noqueue`` is put on before UP; ``default`` leaves the kernel its own (slow and
    large on multi-queue, but open to shaping). *selftest* proves once a process, on a private fd, that
    vhost-net really takes a TAP.

    Raises SpecError for what cannot be meant, HostError for what the host refuses; then nothing is left.
    """
    chosen = engines.select(engine)
    _check(vhost, qdisc)
    if not specs:
        return []
    return call_inside(netns, lambda: _open(chosen, specs, vhost, qdisc, selftest))


def plan_nics(
    specs: Sequence[InterfaceSpec],
    *,
    engine: str = "auto",
    vhost: VhostPolicy | None = None,
    netns: NetNs | None = None,
    qdisc: Qdisc = "noqueue",
) -> Program:
    """The Program open_nics() would run now. Nothing is touched, and it takes no privileges.

    Raises as open_nics() does where the host already says no (no such bridge).
    """
    chosen = engines.select(engine)
    _check(vhost, qdisc)
    return call_inside(netns, lambda: _plan(chosen, specs, vhost, qdisc))


def _check(vhost: object, qdisc: object) -> None:
    if vhost is not None and vhost not in VHOST_POLICIES:
        raise SpecError("is not allowed", attribute="vhost", value=vhost, expected="auto, require, off or None")
    if qdisc not in QDISCS:
        raise SpecError("is not allowed", attribute="qdisc", value=qdisc, expected="noqueue or default")


def _open(
    engine: Engine, specs: Sequence[InterfaceSpec], vhost: VhostPolicy | None, qdisc: Qdisc, selftest: bool
) -> list[Nic]:
    """One engine call; another only where a generated name turns out to be somebody's."""
    global _selftested
    features = _features(engine, specs[0].tap_path)
    prove = selftest and not _selftested
    names = _names(specs)
    for attempt in itertools.count(1):
        program = plan(specs, names, features, vhost=vhost, qdisc=qdisc, selftest=prove)
        result = engine.run(program)
        if result.failure is None:
            break
        error = _refusal(program, result.failure)
        spec = specs[program.acts[result.failure.act].nic]
        if not isinstance(error, NameBusy) or not _is_template(spec.ifname) or attempt == NAME_TRIES:
            raise error
        names = _free_names(engine, specs, names)
    _selftested = _selftested or (prove and any(act.op == Op.SELFTEST for act in program.acts))
    return [Nic(spec, program, result, row, engine) for row, spec in enumerate(specs)]


_selftested = False  # vhost-net was seen to take a TAP in this process


def _plan(engine: Engine, specs: Sequence[InterfaceSpec], vhost: VhostPolicy | None, qdisc: Qdisc) -> Program:
    features = _features(engine, specs[0].tap_path if specs else DEFAULT_TAP)
    program = plan(specs, _free_names(engine, specs, _names(specs)), features, vhost=vhost, qdisc=qdisc)
    wanted = list(dict.fromkeys(nic.bridge for nic in program.nics if nic.bridge))
    links = _describe(engine, wanted)
    for name in wanted:
        if name not in links or links[name].kind != "bridge":
            code = errno.EOPNOTSUPP if name in links else errno.ENODEV
            raise host_error(code, act="LINK", call="RTM_GETLINK", ifname=None, queue=None, subject=name)
    return resolve(program, links)


def _describe(engine: Engine, names: Sequence[str]) -> dict[str, Link]:
    try:
        return engine.describe(names) if names else {}
    except OSError as error:
        call = str(error.filename or "")
        raise host_error(error.errno or 0, act="DESCRIBE", call=call, ifname=None, queue=None) from None


@lru_cache(maxsize=8)
def _asked(engine: str, tap_path: str) -> Features:
    # The kernel keeps this file only where it has IPv6; without IPv6 it refuses to be told about it.
    return Features(engines.select(engine).features(tap_path), os.path.exists("/proc/net/if_inet6"))


def _features(engine: Engine, tap_path: str) -> Features:
    """Asked once a process. Where the device does not open, all is assumed: TAP_OPEN will say what is wrong."""
    try:
        return _asked(engine.name, tap_path)
    except OSError:
        return Features(0xFFFF, True)


# --- generated names -------------------------------------------------------------------------------------

_counters: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)


def _is_template(ifname: str | None) -> bool:
    return ifname is None or "%d" in ifname


def _generated(template: str | None) -> str:
    """The next name of a template, from a counter of this process; never the kernel's own %d.

    The kernel's costs a walk over every link, and gives a name again as soon as it is free.
    """
    head, _, tail = (template or "vnet%d").partition("%d")
    room = 10 ** (15 - len(head) - len(tail))
    return f"{head}{next(_counters[head + '%d' + tail]) % room}{tail}"


def _names(specs: Sequence[InterfaceSpec]) -> list[str]:
    return [_generated(spec.ifname) if _is_template(spec.ifname) else cast(str, spec.ifname) for spec in specs]


def _free_names(engine: Engine, specs: Sequence[InterfaceSpec], names: Sequence[str]) -> list[str]:
    """*names*, but those that were generated and exist already; one that was asked for is the kernel's to judge."""
    free = list(names)
    unsure = [number for number, spec in enumerate(specs) if _is_template(spec.ifname)]
    while unsure:
        links = _describe(engine, [free[number] for number in unsure])
        unsure = [number for number in unsure if free[number] in links]
        for number in unsure:
            free[number] = _generated(specs[number].ifname)
    return free


# --- results ---------------------------------------------------------------------------------------------


def _refusal(program: Program, failure: Failure) -> Exception:
    act = program.acts[failure.act]
    nic = program.nics[act.nic]
    result = failure.result
    subject = {Op.TAP_OPEN: nic.tap_path, Op.LINK: nic.bridge}.get(act.op, nic.vhost_path)
    return host_error(
        result.errno, act=act.op.name, call=result.call, ifname=nic.ifname, queue=result.queue, subject=subject
    )
