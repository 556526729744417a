"""The third executor: Programs with slow acts, cut into runs of an engine's acts and slow ones, in their order.

An engine is given its acts a run at a time: first the rows as they are, and later the same rows as held. A slow act is
a small function, and each that leaves something behind has another that undoes it; which that is, and in which order
they are undone, is plan.py's. What is refused undoes all, or with ``keep`` all of that NIC, whoever did it.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Final

from vhostnet.engines import ActResult, Engine, Failure, NicResult, Result
from vhostnet.engines import _uapi as uapi
from vhostnet.engines._calls import ioctl
from vhostnet.engines._protocol import failures_of
from vhostnet.errors import HostError
from vhostnet.program.parts import NOTHING_SLOW, SLOW, Act, Fds, NicRow, Op, Slow
from vhostnet.program.plan import plan_delete, plan_end
from vhostnet.program.program import Program
from vhostnet.program.rows import DEFAULT_MTU
from vhostnet.slow import addresses, floors, ovsdb, scripts

_NOT_RUN: Final = ActResult(0, "", None, 0)
_LEFT_OUT: Final = ActResult(errno.ECANCELED, "", None, 0)

_Step = Sequence[tuple[int, Act]]  # acts that are next to one another, each with its number
_Refused = Mapping[str, OSError]  # by the NIC's name


def execute(engine: Engine, program: Program) -> Result:
    """As an engine's run()."""
    run = _Run(engine, program)
    try:
        run.go()
    except BaseException:
        run.undo(range(len(program.nics)))
        raise
    return run.result()


class _Run:
    """One execution of a Program."""

    def __init__(self, engine: Engine, program: Program) -> None:
        self.engine = engine
        self.program = program
        self.rows = list(program.nics)  # as they stand: with their fds, once they have some
        self.results = [_NOT_RUN] * len(program.acts)
        self.failed: set[int] = set()
        self.begun: list[set[Op]] = [set() for _ in program.nics]  # slow acts that may have left something
        self.undoing: ActResult | None = None  # what was refused first while something was undone

    def go(self) -> None:
        """Every act until one is refused, or of each NIC."""
        if not self._look():
            return
        for op, group in groupby(enumerate(self.program.acts), _kind):
            step = [(number, act) for number, act in group if not self._is_left_out(number, act)]
            if step and not (self._hot(step) if op is None else self._slow(op, step)):
                return

    def result(self) -> Result:
        failures = failures_of(self.program, self.results)
        if failures and not self.program.keep:
            return Result((), self.results, failures[:1], self.undoing)
        nics = tuple([None if at in self.failed else _nic_result(row) for at, row in enumerate(self.rows)])
        return Result(nics, self.results, failures, self.undoing)

    def _is_left_out(self, number: int, act: Act) -> bool:
        """An act of a NIC that has failed."""
        if act.nic not in self.failed:
            return False
        if not self.results[number].errno:
            self.results[number] = _LEFT_OUT
        return True

    # --- before anything is made ---

    def _look(self) -> bool:
        """What Open vSwitch has: the bridges, and no ports by these names. Each TAP will have its bridge's MTU."""
        step = [(number, act) for number, act in enumerate(self.program.acts) if act.op == Op.PLUG]
        if not step:
            return True
        rows = [self.rows[act.nic] for _, act in step]
        try:
            refused: _Refused = ovsdb.look(rows)
            links = self.engine.describe(list({row.joins for row in rows}))
        except OSError as error:
            refused, links = {row.ifname: error for row in rows}, {}
        for _, act in step:
            row = self.rows[act.nic]
            bridge = links.get(row.joins)
            self.rows[act.nic] = row._replace(mtu=row.mtu or (bridge.mtu if bridge else DEFAULT_MTU))
        return self._take(step, 0, refused)

    # --- one after the other ---

    def _hot(self, step: _Step) -> bool:
        """The engine's: in a Program of their own, for the NICs that have not failed."""
        alive = [at for at in range(len(self.rows)) if at not in self.failed]
        place = {at: number for number, at in enumerate(alive)}
        acts = tuple([act._replace(nic=place[act.nic]) for _, act in step])
        result = self.engine.run(Program(tuple([self.rows[at] for at in alive]), acts, self.program.keep))
        for (number, _), outcome in zip(step, result.acts, strict=True):
            self.results[number] = outcome
        self.undoing = self.undoing or result.undo
        for at, made in zip(alive, result.nics, strict=False):
            if made is None:
                self._fail(at)
            else:
                self.rows[at] = self.rows[at]._replace(held=made.fds, ifindex=made.ifindex, mtu=made.mtu)
        return self._goes_on(failed=bool(result.failures))

    def _slow(self, op: Op, step: _Step) -> bool:
        """Of one kind: one by one, or all of them by one function."""
        if op in _ALL:
            return self._do(step, lambda rows: _ALL[op](rows))
        return all(self._do([one], lambda rows: _EACH[op](rows[0])) for one in step)

    def _do(self, step: _Step, function: Callable[[Sequence[NicRow]], _Refused | None]) -> bool:
        rows = [self.rows[act.nic] for _, act in step]
        for _, act in step:
            self.begun[act.nic].add(act.op)
        started = time.monotonic_ns()
        try:
            refused = function(rows) or {}
        except OSError as error:
            refused = {row.ifname: error for row in rows}
        return self._take(step, (time.monotonic_ns() - started) // len(step), refused)

    def _take(self, step: _Step, ns: int, refused: _Refused) -> bool:
        """What became of slow acts; True when the run goes on."""
        fatal = False
        for number, act in step:
            error = refused.get(self.rows[act.nic].ifname)
            self.results[number] = _outcome(error, ns)
            if error and act.op in _ALL_OR_NONE:
                self.begun[act.nic].discard(act.op)
            if error and not act.optional:
                fatal = True
                if self.program.keep:
                    self._fail(act.nic)
        return self._goes_on(failed=fatal)

    def _goes_on(self, *, failed: bool) -> bool:
        if failed and not self.program.keep:
            self.undo(range(len(self.rows)))
        return self.program.keep or not failed

    # --- undoing ---

    def _fail(self, at: int) -> None:
        self.failed.add(at)
        self.undo([at])

    def undo(self, numbers: Sequence[int]) -> None:
        """What this run made of these NICs, the last first: what is not the kernel's, and then the NICs."""
        there = [at for at in reversed(numbers) if self.rows[at].held is not None]
        self._end([self.rows[at]._replace(slow=self._left_behind(at)) for at in there])
        made = [self.rows[at] for at in there if self.program.nics[at].held is None]
        deleted = plan_delete([row for row in made if not row.adopted])
        refused = [deleted.nics[deleted.acts[failure.act].nic] for failure in self._note(self.engine.run(deleted))]
        for row in refused:
            if row.persist:  # or its link would stay
                with contextlib.suppress(OSError):
                    ioctl(row.fds.tap[0], uapi.TUNSETPERSIST, 0, "TUNSETPERSIST")
        self.engine.close([row.fds for row in (*refused, *(row for row in made if row.adopted))])
        for at in there:
            self.rows[at] = self.rows[at]._replace(held=self.program.nics[at].held)

    def _left_behind(self, at: int) -> Slow:
        """What of the slow acts of a NIC must be undone."""
        row, begun = self.rows[at], self.begun[at]
        left = NOTHING_SLOW
        if Op.PLUG in begun:
            left = left._replace(plug=row.slow.plug)
        if begun & {Op.FLOOR, Op.REFLOOR}:
            left = left._replace(floor=row.slow.floor)
        if Op.SCRIPT in begun:
            left = left._replace(downscript=row.slow.downscript)
        if Op.ADDRESS in begun and (row.adopted or self.program.nics[at].held):  # others go with the link
            left = left._replace(addresses=row.slow.addresses, routes=row.slow.routes)
        return left

    def _end(self, rows: Sequence[NicRow]) -> None:
        program = plan_end(rows)
        if program.acts:
            self._note(execute(self.engine, program))

    def _note(self, result: Result) -> Sequence[Failure]:
        """What was refused while undoing."""
        refused = [outcome for outcome in result.acts if outcome.errno]
        self.undoing = self.undoing or next(iter(refused), None)
        return result.failures


def _kind(numbered: tuple[int, Act]) -> Op | None:
    """Neighbours of one slow kind belong together, and all of the engine's."""
    op = numbered[1].op
    return op if op >= SLOW else None


def _outcome(error: OSError | None, ns: int) -> ActResult:
    if error is None:
        return ActResult(0, "", None, ns)
    call = error.call if isinstance(error, HostError) else error.filename  # no thread, or namespace, to do it in
    return ActResult(error.errno or errno.EIO, str(call or ""), None, ns, error.strerror or str(error))


def _nic_result(row: NicRow) -> NicResult:
    return NicResult(row.ifindex, row.mtu, row.held or Fds((), ()))


def _script(row: NicRow) -> None:
    scripts.run_script(row.slow.script, row.ifname)


def _downscript(row: NicRow) -> None:
    scripts.run_script(row.slow.downscript, row.ifname)


_EACH: Final[dict[Op, Callable[[NicRow], None]]] = {
    Op.SCRIPT: _script,
    Op.ADDRESS: addresses.add_addresses,
    Op.DOWNSCRIPT: _downscript,
    Op.UNADDRESS: addresses.remove_addresses,
    Op.REFLOOR: floors.change_floor,
}
_ALL_OR_NONE: Final = (Op.ADDRESS,)  # of which nothing is left where it is refused
_ALL: Final[dict[Op, Callable[[Sequence[NicRow]], _Refused | None]]] = {
    Op.PLUG: ovsdb.plug,
    Op.UNPLUG: ovsdb.unplug,
    Op.REPLUG: ovsdb.replug,
    Op.FLOOR: floors.put_floors,
    Op.UNFLOOR: floors.remove_floors,
}
