"""Nic: the one value with a life. It owns the fds that keep a NIC there.

Every fd is O_CLOEXEC and belongs to its Nic until that is closed or its fds are given away. The TAP lives as long as
its last fd does, so closing is all there is to cleaning up.
"""

import _thread
import contextlib
import os
import time
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, cast

from vhostnet import slow
from vhostnet.engines import ActResult, Engine, NicResult, Result, Run, get_mac
from vhostnet.errors import NicClosed, vhost_problem
from vhostnet.events import told
from vhostnet.host.reasons import refusal
from vhostnet.others.holders import TUN
from vhostnet.others.settling import Settling, watch
from vhostnet.process.files import copy_fds
from vhostnet.process.forks import under_way
from vhostnet.process.netns import Home
from vhostnet.process.owners import disown, own
from vhostnet.program.parts import NOTHING_SLOW, Fds, Macvtap, NicRow, Op, Slow, held_row
from vhostnet.program.plan import check_update, plan_down, plan_reset, plan_up, plan_update
from vhostnet.program.program import Program
from vhostnet.program.rows import slow_of
from vhostnet.qemu.argv import Dialect, fitted, qemu_argv, set_link
from vhostnet.removal import Surrendered, close_here, close_one
from vhostnet.spec.interface import InterfaceSpec
from vhostnet.spec.mac import octets, tap_mac
from vhostnet.values import replace


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


class Nic:
    """A NIC that exists: its TAP is up, and on its bridge, for as long as this object owns the fds.

    One that was adopted (``spec.managed`` False) is what it was before, and stays when this object is closed; and so
    does one that is persistent. What would outlive its TAP (a downscript that is to be run, a port of Open vSwitch)
    ends before that does, unless the NIC is persistent, or its fds were given away. A macvtap (type direct) is a link
    of its own: close() deletes it, and one whose process was killed, or whose fds were given away, stays until somebody
    does (``delete_nics()``).

    Use it as a context manager, or call ``close()``. One that is dropped open is closed with a
    ResourceWarning, and so is one that is open at the process's end, if anything of it would stay. A child made by
    ``os.fork()`` does not own it: there it is closed, so only this process decides how long the NIC lives; subprocess
    children get what ``pass_fds=nic.fds`` gives them.
    """

    def __init__(self, spec: InterfaceSpec, engine: Engine, *runs: Run, home: Home | None = None) -> None:
        """*runs* is its history: the run that made it, and for one that was made ahead the run that took it.

        *home* is where a macvtap was made: no fd of it tells.
        """
        made = runs[-1].made
        assert made, "its row failed"
        self.spec = spec  #: What was asked for.
        nic = runs[-1].nic
        #: As the kernel has it.
        self.ifname: Final[str] = nic.wish if nic.wish and runs[-1].did(Op.RENAME) else nic.ifname  # ALTNAME leaves it
        self.ifindex: Final[int] = made.ifindex  #: In the network namespace where it was made.
        self.mtu = made.mtu  #: The TAP's own, in bytes.
        self._told: bool | None = None  # to come up, or to go down, since it was made
        self.resets = 0  # how often its vhost-net fds were replaced
        self._adopted = nic.adopted
        self._stays = nic.adopted or nic.persist is not None  # whoever closes it
        self._slow = nic.slow
        self._macvtap = nic.macvtap or (Macvtap() if nic.adopted and _is_macvtap(made.fds.tap[0]) else None)
        self._home = home.hold() if home else None
        self._engine = engine
        self._runs = runs
        # A signal handler may close what it interrupts: hence the R. threading's is a function around this one.
        self._lock = _thread.RLock()  # who uses the numbers of the fds, or takes them away
        # Whoever pops the fds owns them, so two closers never close twice.
        self._owned = [made.fds]
        self._settling: Settling | None = None  # where a udevd listens
        own(self)

    @property
    def mac(self) -> str:
        """The TAP's own MAC; the guest's is ``spec.mac``, and so is a macvtap's.

        Of one that was adopted the kernel is asked: NicClosed.
        """
        if self._adopted:
            return get_mac(self.tap_fds[0]).hex(":")
        return _own_mac(self.spec).hex(":")

    @property
    def vhost(self) -> Vhost:
        """Whether it has its vhost-net fds, or why not."""
        first = self._runs[0]
        if cast(NicResult, first.made).fds.vhost:
            return Vhost(True)
        if refused := self.vhost_refused:
            return Vhost(False, vhost_problem(refused.errno, refused.call, first.nic.vhost_path))
        return Vhost(False, "asked for without: driver name='qemu', vhost='off', or a model that is not virtio")

    @property
    def vhost_refused(self) -> ActResult | None:
        """What opening its vhost-net fds came to, where it was tried and it goes without."""
        first = self._runs[0]
        if cast(NicResult, first.made).fds.vhost or not first.did(Op.VHOST_OPEN):
            return None
        return next(result for act, result in first.acts if act.op == Op.VHOST_OPEN)

    @property
    def mark(self) -> str:
        """What its link has as its alias (IFLA_IFALIAS); "" of one that was adopted."""
        return self._runs[-1].nic.alias

    @property
    def persistent(self) -> bool:
        """It outlives its fds (``persist=True``)."""
        return self._runs[-1].nic.persist is not None

    @property
    def timings(self) -> tuple[Timing, ...]:
        """How long each act of this NIC took, in order."""
        return tuple(Timing(act.op.name, result.ns) for run in self._runs for act, result in run.acts)

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
        exact: bool = False,
    ) -> list[str]:
        """QEMU's arguments for this NIC, with the numbers its fds have here: such that every QEMU starts with them.

        Otherwise as ``qemu.qemu_argv``. With *exact*, libvirt's to the byte, whatever QEMU says to them.
        """
        tap, vhost = self._fds()
        spec = self.spec if exact else fitted(self.spec)
        return qemu_argv(spec, tap_fds=tap, vhost_fds=vhost, alias=alias, bus=bus, addr=addr, dialect=dialect)

    def up(self) -> None:
        """Bring it up, which was opened with ``up=False`` or went down(); its port is isolated and the like before it
        forwards.

        The first time its script runs then, and each time its addresses and routes are set. Of one that is up nothing
        changes. Raises HostError (act ``UP``, or ``FDB``; or ``SCRIPT`` or ``ADDRESS``, and then it is up); NicClosed.
        """
        self._turn(up=True)

    def down(self) -> None:
        """Take it down, until it is to come up(): nobody on the network reaches its guest by it, nor does its guest
        reach anybody.

        It stays the port that it is, and keeps its fds, its VLANs, its bandwidth and what its script has done (a
        downscript is for its end). What its bridge has learned of its guest goes, and so do a forwarding entry that was
        made (``macTableManager='libvirt'``) and its addresses and routes: at another port, or on another host, that
        guest can be reached at once. Frames that wait in its queues stay there, and its guest hears them when it is up
        again or not at all. libvirt does so of a macvtap whose guest is stopped, and of a TAP's forwarding entry
        (qemuInterfaceStopDevice), but leaves the TAP up; the link under a macvtap in mode passthrough, which libvirt
        takes down as well, is the host's here. Of one that is down nothing changes. Raises HostError (act ``DOWN``; or
        ``UNFDB`` or ``UNADDRESS``, and then it is down); NicClosed.
        """
        self._turn(up=False)

    def _turn(self, *, up: bool) -> None:
        with under_way, self._lock:
            was = self.is_up
            done = {Op.SCRIPT} if was or self._told is not None else set()
            done |= {Op.ADDRESS, Op.UNADDRESS} if was == up else set()
            plan = plan_up if up else plan_down
            program = plan(self.held()._replace(adopted=False), self.spec, done)
            result = self._run(program)
            if result.failures:
                raise refusal(program, result.failures[0])
            if was or up:
                self._told = up

    def update(self, spec: InterfaceSpec, *, alias: str | None = None) -> tuple[dict[str, Any], ...]:
        """Make it the port that *spec* asks for: bridge, VLANs, isolation, forwarding entry, coalescing, MTU, and
        what it may get and send.

        All of it or nothing; no frame passes in between, and for about a millisecond none at all. A port of Open
        vSwitch stays where it is, with other VLANs and ids; of it, of type ethernet and of a macvtap the bandwidth
        changes while frames pass. One whose guest gets as much as there is again has noqueue. The state of the link is
        QEMU's: what it is to be told of it is returned, QMP commands for the device of that id (*alias*; the spec's
        own, or ``net0``); else nothing is. What else a guest would have to know of cannot be changed. Raises SpecError
        naming that; HostError, and then it is the port it was (``undoing`` says what was refused while it was made so
        again); NicClosed.
        """
        check_update(self.spec, spec)
        with under_way, self._lock:
            held = self.held()
            asked = set_link(spec, alias)
            told = () if asked == set_link(self.spec, alias) else (asked,)
            if not told or replace(spec, link_state=self.spec.link_state) != self.spec:
                self._change(held, spec)
            self.spec = spec
            return told

    @property
    def is_up(self) -> bool:
        """By what was done to it."""
        last = self._runs[-1]
        return self._told if self._told is not None else last.nic.up or last.did(Op.UP)

    def _change(self, held: NicRow, spec: InterfaceSpec) -> None:
        """As update() does, and with its lock."""
        program = plan_update(held, self.spec, spec, up=self.is_up)
        result = self._run(program)
        if result.failures:
            error = refusal(program, result.failures[0])
            before = plan_update(held._replace(slow=program.nics[0].slow), spec, self.spec, up=self.is_up)
            undone = self._run(before)
            error.undoing = refusal(before, undone.failures[0]) if undone.failures else None
            raise error
        self._slow = slow_of(spec, self.ifname)
        self.mtu = cast(NicResult, result.nics[0]).mtu or self.mtu

    def _run(self, program: Program) -> Result:
        """Where it is: an engine finds a TAP anywhere, by its fd, and a macvtap where it was made."""
        return self._home.call(slow.run, self._engine, program) if self._home else slow.run(self._engine, program)

    def reset_queues(self) -> None:
        """Make it ready for the next QEMU: every queue attached, and every vhost-net fd fresh, all or none.

        A QEMU that ends leaves queues 1..n detached, and the next one aborts on them; and it stays the owner of the
        vhost-net fds it had for as long as a copy is open. So those are closed (20 to 30 ms) and others opened: their
        numbers change, ask qemu_argv() and ``fds`` again. Raises HostError (act ``VHOST_OPEN`` or ``ATTACH``), and
        then the NIC has the fds it had; NicClosed.
        """
        with under_way, self._lock:  # or the numbers could be somebody else's by then
            stale = self._fds().vhost
            program = plan_reset(self.held(), self._runs[0].nic.vhost_path if stale else "")
            result = told(self._engine, program, self._engine.run)
            if result.failures:
                raise refusal(program, result.failures[0])
            if stale:
                self._owned[0] = cast(NicResult, result.nics[0]).fds
                self.resets += 1
                self._engine.close([Fds((), stale)])

    def settle(self, timeout: float = 3.0) -> bool:
        """Wait until udev is done with it and its MAC is ours for good; False after *timeout* seconds.

        Where no udevd listens there is nothing to wait for, and where one does it takes 2 to 13 ms on a quiet host.
        Whoever does not wait need not: a thread looks at the MAC when udev is done. For who ends this process or gives
        the fds away before that.
        """
        until = time.monotonic() + timeout
        while self._settling and not self._settling.look_again():
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
        return True

    def copies(self) -> Fds:
        """Copies of its fds, which the caller closes: for who hands them on, whoever closes the NIC meanwhile.

        They keep a TAP there, as its own do. Raises NicClosed; OSError where no more files may be open.
        """
        with under_way, self._lock:
            tap, vhost = self._fds()
            copies = copy_fds((*tap, *vhost))
            return Fds(copies[: len(tap)], copies[len(tap) :])

    def detach(self) -> Fds:
        """Give the fds away: the caller closes them, and with the last TAP fd the NIC goes.

        Waits until udev is done with it, as settle() does. Raises NicClosed.
        """
        self.settle()
        _, row, home = self._surrender()
        if home:
            home.release()
        return row.fds

    def _give_away(self) -> Fds:
        with self._lock:
            fds = self._fds()
            self._owned.clear()
            disown(self)
            return fds

    def close(self) -> None:
        """Close every fd; the TAP goes with its last one. Idempotent, and safe from any thread.

        Takes 20 to 40 ms, which the kernel waits for its grace periods: close many with close_nics(). A macvtap is
        deleted, where it was made.
        """
        with contextlib.suppress(NicClosed), under_way:
            close_one(self._surrender())

    def become(self, spec: InterfaceSpec, run: Run) -> "Nic":
        """The same NIC after *run* made it *spec*'s; it owns the fds now, and this one is closed."""
        with under_way:
            self._give_away()
            nic = Nic(spec, self._engine, *self._runs, run)
            if self._settling:
                settle_later([nic], self._settling.born)
            return nic

    def held(self) -> NicRow:
        """Its row in a Program for a NIC that exists. Raises NicClosed."""
        return self._row(self._fds(), self._slow)

    def _row(self, fds: Fds, left: Slow) -> NicRow:
        mark = self.mark
        return held_row(self.ifname, self.ifindex, fds, mark, adopted=self._stays, macvtap=self._macvtap, slow=left)

    @property
    def needs_closing(self) -> bool:
        """Something of it would outlive its fds: a port of Open vSwitch, a downscript that nobody would run, a macvtap.

        Whoever gives its fds away, or becomes QEMU, leaves that behind; ``delete_nics()`` takes a port or macvtap away.
        """
        return self._ends() != NOTHING_SLOW or (self._home is not None and not self._stays)

    def _ends(self) -> Slow:
        """What of its slow acts would be left behind; addresses go with the link."""
        if self._slow is NOTHING_SLOW or (self._stays and not self._adopted):
            return NOTHING_SLOW
        left = self._slow._replace(script="")
        return left if self._adopted else left._replace(addresses=(), routes=())

    def surrender(self) -> Surrendered | None:
        """Give the NIC away to whoever deletes it, with the engine to do it; None when it is closed already.

        What is in the row of slow acts has to end before.
        """
        try:
            return self._surrender()
        except NicClosed:
            return None

    def _surrender(self) -> Surrendered:
        row, home = self._row(self._give_away(), self._ends()), self._home
        self._home = None
        return Surrendered(self._engine, row, home)

    @property
    def home_fds(self) -> tuple[int, ...]:
        """The network namespace that it was made in, of a macvtap; its, not the caller's."""
        return (self._home.fd,) if self._home else ()

    def leave_to_other(self) -> None:
        """Another process owns it now: its fds here go, and nothing of it is ended. Idempotent."""
        with contextlib.suppress(NicClosed), under_way:
            close_here(self._give_away())
            home, self._home = self._home, None
            if home:
                home.release()

    def leave_to_parent(self) -> None:
        """In a forked child: its copies of the fds go. A thread that is not there may have had the lock."""
        self._lock, self._settling = _thread.RLock(), None
        while self._owned:
            close_here(self._owned.pop())
        if self._home:
            self._home.release()
            self._home = None
        disown(self)

    def leave_nothing(self) -> None:
        """At the process's end: what would outlive the fds ends; they go with the process. Idempotent."""
        if not self.closed and self.needs_closing:
            self._drop()

    def _fds(self) -> Fds:
        try:
            return self._owned[0]
        except IndexError:
            raise NicClosed(f"{self.ifname} is closed") from None

    def __enter__(self) -> "Nic":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_owned", None):
            self._drop()

    def _drop(self) -> None:
        try:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=3, source=self)
        finally:  # warnings may be errors here
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.spec.queues} queues, vhost {'on' if self.vhost else 'off'}"
        return f"<Nic {self.ifname} ({self.ifindex}): {state}>"


def _own_mac(spec: InterfaceSpec) -> bytes:
    """Of a TAP, or of a macvtap."""
    return octets(spec.mac) if spec.type == "direct" else tap_mac(spec.mac)


def settle_later(nics: Sequence[Nic], born: float) -> None:
    """A udevd listens, and will look at these NICs, which were made after *born* (``time.time()``)."""
    ours = [nic for nic in nics if not nic._adopted]
    settling = [Settling(nic.ifindex, _own_mac(nic.spec), nic._lock, nic._owned, born) for nic in ours]
    for nic, its_own in zip(ours, settling, strict=True):
        nic._settling = its_own
    watch(settling)


def _is_macvtap(tap: int) -> bool:
    """One of our queues is a macvtap's: those of a TAP are of another device."""
    try:
        return os.fstat(tap).st_rdev != TUN
    except OSError:  # it is open, and nothing else can be wrong with it
        return False
