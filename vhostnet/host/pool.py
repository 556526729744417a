"""NicPool: NICs of one shape, made ahead and parked, so that a VM gets its own by one exchange with the kernel.

A parked NIC is whole but down: TAP, queues, vhost-net fds, no qdisc, a port of its bridge, under a name of the pool's
own. Taking it sets MAC and mark and brings it up. Joining the bridge and being renamed is what would take longest, so
the one is done ahead and the other left out: a name that is wished for becomes an alternative name.
"""

from __future__ import annotations

import errno
import os
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from types import TracebackType
from typing import Final, NamedTuple

from vhostnet import engines
from vhostnet.engines import Result, runs_of
from vhostnet.errors import DeviceGone, PoolClosed, SpecError, VhostnetError
from vhostnet.events import told
from vhostnet.host.closing import await_names, close_nics
from vhostnet.host.marks import Maker, taken
from vhostnet.host.names import is_template, name_for
from vhostnet.host.nic import Nic
from vhostnet.host.opening import How, make_nics
from vhostnet.host.reasons import refusal
from vhostnet.process.files import close_fd
from vhostnet.process.forks import under_way
from vhostnet.process.netns import NetNs, call_inside, no_thread
from vhostnet.program.parts import NicRow
from vhostnet.program.plan import Qdisc, plan_take
from vhostnet.program.program import Program
from vhostnet.spec.interface import VNET_HDR_MODELS, InterfaceSpec
from vhostnet.spec.mac import random_mac, tap_mac
from vhostnet.values import replace

BATCH: Final = 64  # NICs the refill makes in one engine call
PAUSE: Final = 1.0  # seconds until the refill tries again what the host has refused
NAMES: Final = "vnp%d"

# What is decided when a NIC is made, and cannot be another VM's wish any more.
_SHAPE: Final = ("type", "bridge", "network", "queues", "mtu", "tap_path", "vhost", "vhost_path")
_shape = attrgetter(*_SHAPE)
_port = attrgetter("isolated", "vlan", "mac_table_manager", "rx_frames", "bandwidth")


class PoolStats(NamedTuple):
    """``parked`` is now; the rest counts since the pool was made.

    ``made`` ahead; ``taken`` by take(), of which ``missed`` found nothing parked and were made on the spot;
    ``returned`` by give_back(); ``discarded`` were parked for longer than ``max_age``, or their TAP was gone.
    ``error`` is what the host last refused the refill, None since that has worked again.
    """

    parked: int
    made: int
    taken: int
    missed: int
    returned: int
    discarded: int
    error: VhostnetError | None


class _Parked(NamedTuple):
    """A NIC that waits, since ``made`` (the monotonic clock).

    The Program that takes it stands with it, but for MAC and name, and ``ready`` runs that for who has no wish for a
    name.
    """

    made: float
    nic: Nic
    program: Program
    ready: Callable[[bytes], Result]


class NicPool:
    """NICs like *shape*, up to *size* of them ready at any time.

    *shape* gives what all have in common: bridge, queues, model, MTU and vhost-net; its MAC means nothing, its
    ``ifname`` is None or the template of the pool's own names. A thread makes more, in batches, when fewer than
    *low* are left (default: half of *size*). Those parked for more than *max_age* seconds are replaced. *engine*,
    *netns* and *qdisc* are as for open_nics().

    Any thread may use it. Close it, or use it as a context manager: what is parked goes in one round, what was
    taken is its taker's. A forked child has no pool: there it is closed, and the parent's is untouched.
    """

    def __init__(
        self,
        shape: InterfaceSpec,
        *,
        size: int = 64,
        low: int | None = None,
        max_age: float | None = None,
        engine: str = "auto",
        netns: NetNs | None = None,
        qdisc: Qdisc = "noqueue",
        maker: Maker | None = None,
    ) -> None:
        """*maker* is whom a broker has it for."""
        _check(shape, size, low, max_age)
        self.shape: Final = replace(shape, ifname=shape.ifname or NAMES)
        self.size: Final = size
        self.low: Final = size // 2 if low is None else low
        self.max_age: Final = max_age
        self._engine = engines.select(engine)
        # A path of its own namespace's would mean another one in every thread.
        self._home = None if netns is not None else os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._netns = netns
        self._how = How(None, qdisc, park=True)
        self._makers = (maker,) if maker else ()
        self._key = _shape(self.shape)
        self._reset()
        self._refill = threading.Thread(
            target=_refill, args=(weakref.ref(self), self._wanted), name="vhostnet-pool", daemon=True
        )
        try:
            self._refill.start()
        except RuntimeError as error:
            self._closed = True
            self._leave_home()
            raise no_thread(error) from None
        _pools.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()  # for what follows; never held during a kernel call
        self._making = threading.Lock()  # one at a time makes ahead
        self._wanted = threading.Event()  # the refill has something to do
        self._wanted.set()
        self._closed = False
        self._parked: deque[_Parked] = deque()
        self._made = self._taken = self._missed = self._returned = self._discarded = 0
        self._error: VhostnetError | None = None

    def take(self, spec: InterfaceSpec | None = None, *, rename: bool = False) -> Nic:
        """A NIC for *spec*, up and the caller's to close; without *spec* one like the shape with a MAC of its own.

        Its name is the pool's (``nic.ifname``). One that *spec* asks for becomes an alternative name, which
        ``ip link`` and all of rtnetlink take as well as the other; with *rename* it becomes the name, which
        takes four times as long. When nothing is parked one is made on the spot.

        Raises SpecError for a spec of another shape, PoolClosed, and what open_nic() raises.
        """
        if spec is None:
            spec = replace(self.shape, mac=random_mac(), ifname=None)
        elif _shape(spec) != self._key or spec.model != self.shape.model:
            self._check_shape(spec)
        while True:
            parked = self._pop()
            if parked is None:
                return self._make_now(spec)
            try:
                return self._make_ready(parked, spec, rename)
            except DeviceGone:
                with self._lock:
                    self._discarded += 1
                    self._taken -= 1

    def give_back(self, nic: Nic) -> None:
        """The VM is gone, and so is its NIC: it is deleted in the background and a new one made ahead instead.

        Nothing of it is used again. What a VM leaves in a TAP (frames on their way to it, offloads, the size of its
        vnet_hdr, steering programs) grows with every kernel, a vhost-net fd can have no second owner, and
        deleted in rounds it takes less time than being cleaned.
        """
        with self._lock:
            self._returned += 1
        close_nics([nic], wait=False)

    def fill(self) -> None:
        """Make what is missing, now. Raises what open_nics() raises."""
        while self._make_ahead():
            pass

    @property
    def stats(self) -> PoolStats:
        """How it is, and how it was used."""
        with self._lock:
            counts = self._made, self._taken, self._missed, self._returned, self._discarded
            return PoolStats(len(self._parked), *counts, self._error)

    def close(self) -> None:
        """Delete what is parked, in one round. Idempotent."""
        with self._lock:
            parked, self._parked = self._parked, deque()
            self._closed = True
        self._wanted.set()
        with self._making:  # what the refill is making now it closes by itself
            pass
        close_nics([one.nic for one in parked])
        if threading.current_thread() is not self._refill:
            self._refill.join()
        self._leave_home()

    def _leave_home(self) -> None:
        with self._lock:
            home, self._home = self._home, None
        if home is not None:
            close_fd(home)

    def __enter__(self) -> NicPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            finally:  # warnings may be errors here
                self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._parked)} of {self.size} parked"
        return f"<NicPool on {self.shape.bridge}: {state}>"

    # --- taking ---

    def _check_shape(self, spec: InterfaceSpec) -> None:
        for name in _SHAPE:
            theirs, ours = getattr(spec, name), getattr(self.shape, name)
            if theirs != ours:
                raise SpecError("is not this pool's", attribute=name, value=theirs, expected=repr(ours))
        if _kind(spec) != _kind(self.shape):
            raise SpecError(
                "needs another TAP than this pool's", attribute="model", value=spec.model, expected=self.shape.model
            )

    def _pop(self) -> _Parked | None:
        """The one that was parked longest; None where there is none."""
        aged: list[Nic] = []
        found = None
        with self._lock:
            if self._closed:
                raise PoolClosed(f"{self!r} cannot be taken from")
            while self._parked and found is None:
                found = self._parked.popleft()
                if self.max_age is not None and time.monotonic() - found.made > self.max_age:
                    aged.append(found.nic)
                    found = None
            self._taken += 1
            self._missed += found is None
            self._discarded += len(aged)
            low = len(self._parked) < self.low
        if low:
            self._wanted.set()
        if aged:
            close_nics(aged, wait=False)
        return found

    def _make_ready(self, parked: _Parked, spec: InterfaceSpec, rename: bool) -> Nic:
        nic, program = parked.nic, parked.program
        mac = tap_mac(spec.mac)
        run: Callable[[], Result] = partial(told, self._engine, program, lambda _: parked.ready(mac), mac)
        wish = spec.ifname or ""
        if wish:
            wish = name_for(wish)
            await_names([wish])
        if wish or self._takes_more(spec):
            program, run = self._plan(program.nics[0], spec, wish, rename)
        result = call_inside(self._netns, run)
        if self._home is not None and result.failures and result.failures[0].result.errno == errno.EXDEV:
            program, run = self._plan(program.nics[0], spec, wish, rename)  # the caller's thread is elsewhere
            result = call_inside(self._home, run)
        if result.failures:
            close_nics([nic], wait=bool(wish))  # it may have the name by now, and that must be free again
            raise refusal(program, result.failures[0])
        return nic.become(spec, *runs_of(program, result))

    def _takes_more(self, spec: InterfaceSpec) -> bool:
        """What was made ready for the shape, but for the MAC, is not all of it."""
        return spec.mac_table_manager == "libvirt" or _port(spec) != _port(self.shape)

    def _plan(self, row: NicRow, spec: InterfaceSpec, wish: str, rename: bool) -> tuple[Program, Callable[[], Result]]:
        program = plan_take(row, spec, row.alias, wish=wish, rename=rename)
        return program, partial(told, self._engine, program, self._engine.run)

    def _make_now(self, spec: InterfaceSpec) -> Nic:
        how = self._how._replace(park=False, makers=self._makers)
        return call_inside(self._away(), make_nics, self._engine, [spec], how)[0]

    def _away(self) -> NetNs | None:
        """The pool's network namespace where this thread is in another; None where it is there."""
        if self._home is None:
            return self._netns
        here, home = os.stat("/proc/thread-self/ns/net"), os.stat(self._home)
        return None if os.path.samestat(here, home) else self._home

    # --- making ahead ---

    def _make_ahead(self) -> bool:
        """Make a batch of what is missing; False when nothing is."""
        with under_way, self._making:  # and who listens is told when the lock is free
            with self._lock:
                missing = 0 if self._closed else self.size - len(self._parked)
            if missing <= 0:
                return False
            specs = [replace(self.shape, mac=random_mac()) for _ in range(min(missing, BATCH))]
            how = self._how._replace(makers=self._makers * len(specs))
            made = call_inside(self._away(), make_nics, self._engine, specs, how)
            with self._lock:
                self._error = None
                self._made += len(made)
                if not self._closed:
                    now = time.monotonic()
                    self._parked.extend(self._park(nic, now) for nic in made)
                    return True
            close_nics(made)
            return False

    def _park(self, nic: Nic, now: float) -> _Parked:
        """With the mark it gets when it is taken."""
        held = nic.held()
        program = plan_take(held, self.shape, taken(held.alias))
        return _Parked(now, nic, program, self._engine.ready(program))

    def _tend(self) -> float | None:
        """What the refill does when it is woken: seconds until it wants to be woken anyway."""
        self._wanted.clear()
        self._discard_aged()
        try:
            self.fill()
        except VhostnetError as error:
            self._error = error
            return PAUSE
        return self.max_age

    def _discard_aged(self) -> None:
        if self.max_age is None:
            return
        with self._lock:
            oldest = time.monotonic() - self.max_age
            aged = [one.nic for one in self._parked if one.made < oldest]
            self._parked = deque(one for one in self._parked if one.made >= oldest)
            self._discarded += len(aged)
        close_nics(aged)


def _kind(spec: InterfaceSpec) -> tuple[bool, bool]:
    """What the model decides of the TAP: whether it has vnet_hdr, and whether vhost-net means anything."""
    return spec.model in VNET_HDR_MODELS, spec.virtio


def _check(shape: InterfaceSpec, size: int, low: int | None, max_age: float | None) -> None:
    if shape.type == "direct":
        raise SpecError(
            "is for no pool", attribute="type", value=shape.type, expected="type bridge, ethernet or network"
        )
    if shape.ifname is not None and not is_template(shape.ifname):
        raise SpecError("is one name for many", attribute="ifname", value=shape.ifname, expected="a template with %d")
    if not (type(size) is int and size > 0):
        raise SpecError("is not allowed", attribute="size", value=size, expected="a whole number of NICs, 1 or more")
    if low is not None and not (type(low) is int and 0 <= low <= size):
        raise SpecError("is not allowed", attribute="low", value=low, expected=f"a whole number of NICs, 0..{size}")
    if max_age is not None and not max_age > 0:
        raise SpecError("is not allowed", attribute="max_age", value=max_age, expected="seconds, more than 0")


def _refill(pool: weakref.ref[NicPool], wanted: threading.Event) -> None:
    """The thread. It holds the pool only while it works, so that one that was dropped can go."""
    timeout: float | None = None
    while True:
        wanted.wait(timeout)
        living = pool()
        if living is None or living._closed:
            return
        timeout = living._tend()
        del living


_pools: weakref.WeakSet[NicPool] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """The parked Nics are closed in the child as all others are; its thread is not there at all."""
    for pool in list(_pools):
        pool._reset()
        pool._closed = True
        pool._leave_home()


os.register_at_fork(after_in_child=_after_fork_in_child)
