"""A broker's client: the same NICs by the same calls, from a process that may not make any.

net = vhostnet.connect()
with net.open_nic(spec) as nic:
    subprocess.Popen(["qemu-system-x86_64", *nic.qemu_argv()], pass_fds=nic.fds)
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, overload

from vhostnet.broker.errors import INTERFACE, read_error, read_refusal
from vhostnet.errors import HandoverError, HostError, NicClosed, NotPermitted, PoolClosed
from vhostnet.handover.fields import fields_of, fields_of_each
from vhostnet.handover.proof import proven
from vhostnet.handover.wire import MAX_FDS, Channel, Message
from vhostnet.host.nic import Nic, settle_later
from vhostnet.host.pool import PoolStats
from vhostnet.host.reasons import refusal
from vhostnet.others import udev
from vhostnet.process.files import close_fd
from vhostnet.process.forks import under_way
from vhostnet.program.parts import Fds, NicRow, Op
from vhostnet.program.plan import Qdisc, plan_reset
from vhostnet.spec.interface import InterfaceSpec, VhostPolicy
from vhostnet.spec.mac import random_mac
from vhostnet.values import replace

DEFAULT_PATH: Final = "/run/vhostnet/broker"  # where the shipped units have it
_SERVICE: Final = "org.varlink.service"
_GONE: Final = "the broker has gone, or does not want this client: its log has why"
_YOUNG: Final = 1.0  # seconds in which the broker may not have let go yet of a NIC that it has sent
TIMEOUT: Final = 30.0  # seconds that one reply may take


def connect(path: str = DEFAULT_PATH, *, timeout: float = TIMEOUT) -> Broker:
    """The broker (``vhostnet serve``) that serves at the socket *path*, with *timeout* seconds for each of its replies.

    Raises HandoverError, a ConnectionError, where there is none.
    """
    return Broker(path, timeout=timeout)


class Broker:
    """Its methods are this package's functions, made by the broker: what its policy does not allow is PolicyRefused.

    The NICs are this process's: they are there for as long as it, or whoever it gives their fds to, has them, whatever
    becomes of the broker. Any thread may use it; each has a connection of its own meanwhile, which are kept. A forked
    child makes connections of its own.
    """

    def __init__(self, path: str = DEFAULT_PATH, *, timeout: float = TIMEOUT) -> None:
        self.path: Final = path
        self.timeout: Final = timeout
        self._pid = os.getpid()
        self._idle: list[Line] = []
        self.await_turn()

    def open_nic(
        self, spec: InterfaceSpec, *, vhost: VhostPolicy | None = None, qdisc: Qdisc = "noqueue", up: bool = True
    ) -> Nic:
        """As ``vhostnet.open_nic()``."""
        return self.open_nics([spec], vhost=vhost, qdisc=qdisc, up=up)[0]

    @overload
    def open_nics(
        self,
        specs: Sequence[InterfaceSpec],
        *,
        on_error: Literal["undo"] = "undo",
        vhost: VhostPolicy | None = None,
        qdisc: Qdisc = "noqueue",
        up: bool = True,
    ) -> list[Nic]: ...

    @overload
    def open_nics(
        self,
        specs: Sequence[InterfaceSpec],
        *,
        on_error: Literal["keep"],
        vhost: VhostPolicy | None = None,
        qdisc: Qdisc = "noqueue",
        up: bool = True,
    ) -> list[Nic | HostError]: ...

    def open_nics(
        self,
        specs: Sequence[InterfaceSpec],
        *,
        on_error: Literal["undo", "keep"] = "undo",
        vhost: VhostPolicy | None = None,
        qdisc: Qdisc = "noqueue",
        up: bool = True,
    ) -> list[Nic] | list[Nic | HostError]:
        """As ``vhostnet.open_nics()``: all of them or none, made by one Program, perhaps with those of other clients.

        Raises PolicyRefused, SpecError, HostError; HandoverError where the broker has gone.
        """
        if not specs:
            return []
        asked: dict[str, Any] = {"specs": list(fields_of_each(specs))}
        asked |= {"vhost": vhost} if vhost is not None else {}
        asked |= {"qdisc": qdisc} if qdisc != "noqueue" else {}
        asked |= {} if up else {"up": False}
        asked |= {"keep": True} if on_error == "keep" else {}
        born = time.time()
        with self._line() as line, contextlib.ExitStack() as made:
            opened = [
                _received(self, spec, message, made)
                for spec, message in zip(specs, line.replies("Open", asked, more=len(specs) > 1), strict=True)
            ]
            made.pop_all()
        nics = [one for one in opened if isinstance(one, Nic)]
        if udev.listens():
            settle_later(nics, born)
        return opened

    def close_nics(self, nics: Iterable[Nic]) -> None:
        """As ``vhostnet.close_nics()``: deleted in one round, by the broker, whoever else has them open."""
        nics = [nic for nic in nics if not nic.closed]
        with self._line() as line:
            for start in range(0, len(nics), MAX_FDS):
                some = nics[start : start + MAX_FDS]
                lasting = any(nic.needs_closing for nic in some)
                specs = {"specs": [fields_of(nic.spec) if nic.needs_closing else {} for nic in some]} if lasting else {}
                line.call("Close", specs, [nic.tap_fds[0] for nic in some])
        for nic in nics:
            nic.leave_to_other()

    def list_nics(self) -> list[dict[str, Any]]:
        """This user's NICs that a broker has made, with their queues and marks. Root's are all."""
        with self._line() as line:
            found: list[dict[str, Any]] = line.call("List", {})["nics"]
        return found

    def status(self) -> dict[str, Any]:
        """What the broker does and has done, and each user's NICs."""
        with self._line() as line:
            return dict(line.call("GetStatus", {}))

    def metrics(self) -> str:
        """The same as Prometheus reads it, in its text format."""
        with self._line() as line:
            return str(line.call("GetMetrics", {})["text"])

    def NicPool(  # noqa: N802
        self, shape: InterfaceSpec, *, size: int = 64, low: int | None = None, max_age: float | None = None
    ) -> Pool:
        """As ``vhostnet.NicPool``: the broker makes them ahead, until the pool is closed or this process ends."""
        return Pool(self, shape, size=size, low=low, max_age=max_age)

    def await_turn(self) -> None:
        """When this returns the broker has done all that it was doing before, and let go of every NIC that it sent."""
        with self._line() as line:
            line.call("GetInfo", {}, interface=_SERVICE)

    def close(self) -> None:
        """The connections; NICs stay. Idempotent."""
        while self._idle:
            self._idle.pop().close()

    def __enter__(self) -> Broker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_idle", None):
            self.close()

    def __repr__(self) -> str:
        return f"<Broker at {self.path}>"

    @contextlib.contextmanager
    def _line(self) -> Iterator[Line]:
        """A connection that is this thread's meanwhile; one on which anything but a refusal happened is no more."""
        if self._pid != os.getpid():
            self._pid, self._idle = os.getpid(), []
        line = self._kept_line() or Line(self.path, self.timeout)
        try:
            yield line
        finally:
            if line.sound:
                self._idle.append(line)
            else:
                line.close()

    def _kept_line(self) -> Line | None:
        """One that is still there: the broker may have been restarted since."""
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread has it
                line = self._idle.pop()
                if line.alive:
                    return line
                line.close()
        return None


class Line:
    """One connection, for one call at a time. ``sound``: nothing of an earlier call is left on it."""

    def __init__(self, path: str, timeout: float) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._sock.connect(path)
        except OSError as error:
            self._sock.close()
            raise HandoverError(f"no broker serves at {path}: {error.strerror}; start it: vhostnet serve") from None
        self._channel = Channel(self._sock, timeout, counted=True)
        self.sound = True

    def call(
        self, method: str, parameters: Mapping[str, Any], fds: Sequence[int] = (), *, interface: str = INTERFACE
    ) -> Mapping[str, Any]:
        """What it answers. Raises what the broker refuses."""
        (message,) = self.replies(method, parameters, fds, interface=interface)
        for fd in message.fds:
            close_fd(fd)
        return message.said

    def replies(
        self,
        method: str,
        parameters: Mapping[str, Any],
        fds: Sequence[int] = (),
        *,
        more: bool = False,
        interface: str = INTERFACE,
    ) -> Iterator[Message]:
        """What it answers, each with its fds, which are the caller's. Raises what the broker refuses; HandoverError."""
        self.sound = False
        try:
            asked = {"method": f"{interface}.{method}", "parameters": parameters, "together": True}
            asked |= {"more": True} if more else {}
            self._channel.send(asked, fds)
            while True:
                message = self._channel.receive()
                if message is None:
                    raise HandoverError(_GONE)
                self.sound = not message.said.get("continues")
                if "error" in message.said:
                    raise read_error(str(message.said["error"]), message.said.get("parameters") or {})
                yield Message(message.said.get("parameters") or {}, message.fds)
                if self.sound:
                    return
        except HandoverError:
            raise
        except OSError as error:
            if isinstance(error, HostError):
                raise
            raise HandoverError(_GONE if isinstance(error, ConnectionError) else f"the broker: {error}") from None

    @property
    def alive(self) -> bool:
        """Nobody has ended it: there is nothing to be read between calls."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        self._channel.close()
        self._sock.close()


class BrokerNic(Nic):
    """A NIC of this process's, which the broker changes for it."""

    broker: Broker
    born = 0.0  # by the monotonic clock

    def _turn(self, *, up: bool) -> None:
        with self._lock:
            self._ask("SetUp", {"spec": fields_of(self.spec), "up": up})
            self._told = up

    def reset_queues(self) -> None:
        """As ``Nic.reset_queues()``; vhost-net fds that this process may not open come from the broker."""
        try:
            super().reset_queues()
        except NotPermitted as error:
            if error.act != Op.VHOST_OPEN.name:
                raise
            with under_way, self._lock:
                self._renew()

    def close(self) -> None:
        """As ``Nic.close()``."""
        if not self.closed:
            with contextlib.suppress(HandoverError, NicClosed):
                if self.needs_closing:
                    self.broker.close_nics([self])
                elif time.monotonic() - self.born < _YOUNG:
                    self.broker.await_turn()
        super().close()

    def _change(self, _held: NicRow, spec: InterfaceSpec) -> None:
        told = self._ask("Update", {"was": fields_of(self.spec), "spec": fields_of(spec), "up": self.is_up})
        self.mtu = told["mtu"] or self.mtu

    def _ask(self, method: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        with self.broker._line() as line:
            return line.call(method, parameters, self.tap_fds[:1])

    def _renew(self) -> None:
        """All or none, as the engine does it."""
        tap, stale = self._fds()
        with self.broker._line() as line:
            (message,) = line.replies("OpenVhost", {"path": self.spec.vhost_path, "count": len(stale)})
        program = plan_reset(self.held(), "")
        result = self._engine.run(program)
        if result.failures:
            stale, message = message.fds, message._replace(fds=stale)
        self._owned[0] = Fds(tap, message.fds)
        self.resets += not result.failures
        for fd in stale:
            close_fd(fd)
        if result.failures:
            raise refusal(program, result.failures[0])


def _received(broker: Broker, spec: InterfaceSpec, message: Message, made: contextlib.ExitStack) -> Nic | HostError:
    """What *made* closes again where the rest of the batch does not come."""
    refused = message.said.get("refused")
    if refused:
        return read_refusal(refused)
    try:
        nic = proven(message.said.get("nic") or {}, message.fds, spec=spec, kind=BrokerNic, here=False)
    except BaseException:
        for fd in message.fds:
            close_fd(fd)
        raise
    made.callback(nic.close)
    assert isinstance(nic, BrokerNic)
    nic.broker, nic.born = broker, time.monotonic()
    return nic


class Pool:
    """A broker's pool for this process: the methods of ``vhostnet.NicPool``. It has a connection of its own."""

    def __init__(
        self, broker: Broker, shape: InterfaceSpec, *, size: int, low: int | None, max_age: float | None
    ) -> None:
        self.shape: Final = shape
        self.size: Final = size
        self._broker: Final = broker
        self._line: Line | None = Line(broker.path, broker.timeout)
        asked = {"spec": fields_of(shape), "size": size, "low": low, "max_age": max_age}
        try:
            self._line.call("MakePool", {name: value for name, value in asked.items() if value is not None})
        except BaseException:
            self.close()
            raise

    def take(self, spec: InterfaceSpec | None = None, *, rename: bool = False) -> Nic:
        """As ``NicPool.take()``."""
        spec = spec or replace(self.shape, mac=random_mac(), ifname=None)
        born = time.time()
        with contextlib.ExitStack() as made:
            (message,) = self._open_line().replies("Take", {"spec": fields_of(spec), "rename": rename, "release": True})
            nic = _received(self._broker, spec, message, made)
            made.pop_all()
        assert isinstance(nic, Nic)
        if udev.listens():
            settle_later([nic], born)
        return nic

    def give_back(self, nic: Nic) -> None:
        """As ``NicPool.give_back()``; it is gone when this returns."""
        self._broker.close_nics([nic])

    @property
    def stats(self) -> PoolStats:
        """As ``NicPool.stats``; the error, if there is one, is a HostError without a number."""
        found = dict(self._open_line().call("GetPool", {})["pool"])
        error = found.pop("error", None)
        return PoolStats(**found, error=HostError(0, error) if error else None)

    def close(self) -> None:
        """What is parked goes. Idempotent."""
        line, self._line = self._line, None
        if line:
            line.close()

    def _open_line(self) -> Line:
        if self._line is None:
            raise PoolClosed(f"{self!r} cannot be taken from")
        return self._line

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Pool of {self._broker!r} on {self.shape.bridge}>"
