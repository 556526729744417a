"""Hotplug over QMP: a Nic into a QEMU that runs, and out again.

with vhostnet.open_nic(spec) as nic, Monitor("/run/vm.qmp") as monitor:
    monitor.plug(nic, bus="port1")

Monitor needs the extra ``vhostnet[qmp]`` (qemu.qmp). Who has a connection of his own gives ``plug()`` and ``unplug()``
that, as a Client. The NIC stays the caller's: QEMU has copies of its fds, so closing it here leaves it there.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from vhostnet.engines import is_detached, is_vhost_owned
from vhostnet.errors import HostError, QemuGone, QemuRefused
from vhostnet.host.nic import Nic
from vhostnet.process.files import close_fd
from vhostnet.qemu.hotplug import DELETED, Command, Departure, Given, Plugged, Step, plugging, unplugging
from vhostnet.qemu.vdpa import open_vdpa
from vhostnet.spec.interface import InterfaceSpec

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

__all__ = ["Client", "Monitor", "Plugged", "plug", "unplug"]

TIMEOUT: Final = 30.0  # seconds that a guest is given to let go of its NIC
_POLL: Final = 0.01  # seconds

Result = TypeVar("Result")
Steps = Generator[Step, Any, Result]


class Client(Protocol):
    """A connection to QEMU's monitor, as others have it."""

    def execute(self, command: str, arguments: Mapping[str, Any]) -> Any:
        """Run a QMP command; what it returned. Raises QemuRefused where QEMU says no."""

    def send_fd_scm(self, fd: int) -> None:
        """Send a copy of that fd (SCM_RIGHTS): the next command takes it."""


def plug(
    client: Client,
    nic: Nic | InterfaceSpec,
    *,
    alias: str | None = None,
    bus: str | None = None,
    addr: str | None = None,
    passt_socket: str | None = None,
    timeout: float = TIMEOUT,
) -> Plugged:
    """Plug *nic* into the QEMU behind *client*; one without a TAP is a spec. All of it or nothing.

    *alias* is the device's id (the spec's own, or the next ``netN`` that is free there), *bus* and *addr* its place on
    PCI, as qemu_argv() has them: on q35 that bus is a pcie-root-port which is free. What QEMU granted is read back:
    Plugged, whose ``notes`` say what is otherwise. Raises QemuRefused; SpecError; NicClosed; HostError (act
    ``ATTACH``) where a QEMU has the NIC, or had it and ``Nic.reset_queues()`` has not been called since.
    """
    with handed(nic, passt_socket) as (spec, given):
        steps = plugging(spec, given, alias=alias, bus=bus, addr=addr, seconds=timeout)
        return granted(_drive(steps, lambda step: _answer(client, step)), given)


def unplug(client: Client, alias: str, *, timeout: float = TIMEOUT) -> None:
    """Take the device of that id out, and what it had of QEMU: its guest has *timeout* seconds to let go of it.

    Where it takes longer, or refuses, the NIC stays there: ask again. Raises QemuRefused.
    """
    _drive(unplugging(alias, timeout), lambda step: _answer(client, step))


class Monitor:
    """A connection to QEMU's monitor, for who has none and does not run an event loop.

    *address* is the path of its socket (``-qmp unix:PATH,server=on,wait=off``). It is one at a time: a second one waits
    until the first is closed. Raises QemuGone where nobody answers.
    """

    def __init__(self, address: str, *, timeout: float = TIMEOUT) -> None:
        """*timeout* in seconds, of its greeting and of each command."""
        from qemu.qmp import QMPClient

        self.timeout = timeout
        self._loop = asyncio.new_event_loop()
        self._client: QMPClient = QMPClient()
        try:
            self._run(_connect(self._client, address))
        except BaseException:
            self._loop.close()
            raise

    def plug(
        self,
        nic: Nic | InterfaceSpec,
        *,
        alias: str | None = None,
        bus: str | None = None,
        addr: str | None = None,
        passt_socket: str | None = None,
    ) -> Plugged:
        """As plug() does."""
        with handed(nic, passt_socket) as (spec, given):
            return granted(self._drive(plugging(spec, given, alias=alias, bus=bus, addr=addr)), given)

    def unplug(self, alias: str, *, timeout: float = TIMEOUT) -> None:
        """As unplug() does."""
        self._drive(unplugging(alias, timeout))

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a QMP command; what it returned. Raises QemuRefused, QemuGone."""
        return self._run(_execute(self._client, command, arguments or {}))

    def close(self) -> None:
        """Idempotent."""
        if self._loop.is_closed():
            return
        try:
            with contextlib.suppress(QemuGone):
                self._run(self._client.disconnect())
        finally:
            self._loop.close()

    def _drive(self, steps: Steps[Result]) -> Result:
        def act(step: Step) -> Any:
            return self._run(answer(self._client, step), step.seconds if isinstance(step, Departure) else 0)

        return _drive(steps, act)

    def _run(self, doing: Awaitable[Result], more: float = 0) -> Result:
        """Not later than in its time: a QEMU that is stopped (SIGSTOP) never answers."""
        from qemu.qmp import QMPError

        try:
            return self._loop.run_until_complete(_in_time(doing, self.timeout + more))
        except asyncio.TimeoutError:
            raise QemuGone(f"QEMU has not answered in {self.timeout:g} s") from None
        except (QMPError, OSError, EOFError) as error:
            raise QemuGone(f"no QEMU answers: {error}") from error

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


# --- driving ---------------------------------------------------------------------------------------------


def _drive(steps: Steps[Result], act: Callable[[Step], Any]) -> Result:
    """Whatever *act* raises is the generator's to undo; KeyboardInterrupt, too."""
    step = next(steps)
    while True:
        try:
            try:
                answer = act(step)
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
        except StopIteration as done:
            result: Result = done.value
            return result


def _answer(client: Client, step: Step) -> Any:
    """By a Client, which need not know of events: the device is looked for until it is gone."""
    if isinstance(step, Command):
        if step.fd is not None:
            client.send_fd_scm(step.fd)
        return client.execute(step.name, step.arguments)
    if step.command:
        client.execute(step.command.name, step.command.arguments)
    until = time.monotonic() + step.seconds
    while any(one["name"] == step.device for one in client.execute("qom-list", {"path": "/machine/peripheral"})):
        if time.monotonic() > until:
            return None
        time.sleep(_POLL)
    return DELETED


async def answer(client: QMPClient, step: Step) -> Any:
    """By qemu.qmp's client."""
    if isinstance(step, Command):
        if step.fd is not None:
            client.send_fd_scm(step.fd)
        return await _execute(client, step.name, step.arguments)
    with client.listener(step.events, lambda event: _is_of(event, step.device)) as events:
        if step.command:
            await _execute(client, step.command.name, step.command.arguments)
        try:
            return (await asyncio.wait_for(events.get(), step.seconds))["event"]
        except asyncio.TimeoutError:
            return None


def _is_of(event: Mapping[str, Any], device: str) -> bool:
    data: Any = event.get("data", {})
    return bool(data.get("device") == device)


async def _connect(client: QMPClient, address: str) -> None:
    """Twice, if need be: who comes just after one that went amid a command may be given the answer to that."""
    from qemu.qmp.qmp_client import NegotiationError

    try:
        await client.connect(address)
    except NegotiationError:
        await client.connect(address)


async def _execute(client: QMPClient, command: str, arguments: Mapping[str, Any]) -> Any:
    from qemu.qmp import ExecInterruptedError, ExecuteError, StateError

    try:
        return await client.execute(command, dict(arguments))
    except ExecuteError as error:
        raise QemuRefused(str(error), command=command, error_class=error.error_class) from None
    except (ExecInterruptedError, StateError) as error:  # just now, or before
        raise QemuGone(f"QEMU ended, or closed its monitor, at {command}") from error


async def _in_time(doing: Awaitable[Result], seconds: float) -> Result:
    return await asyncio.wait_for(doing, seconds)


# --- what is handed over ---------------------------------------------------------------------------------


@contextlib.contextmanager
def handed(nic: Nic | InterfaceSpec, passt_socket: str | None) -> Iterator[tuple[InterfaceSpec, Given]]:
    """Copies of its fds, for as long as it takes: somebody else may close it meanwhile."""
    if isinstance(nic, Nic):
        spec, copies = nic.spec, nic.copies()
        given = Given(copies.tap, copies.vhost)
    else:
        spec = nic
        given = Given(vdpa_fd=open_vdpa(nic) if nic.type == "vdpa" else None, passt_socket=passt_socket)
    try:
        if isinstance(nic, Nic) and spec.queues > 1:
            _check_attached(nic, given)
        yield spec, given
    finally:
        for fd in (*given.tap_fds, *given.vhost_fds, *(() if given.vdpa_fd is None else (given.vdpa_fd,))):
            close_fd(fd)


def _check_attached(nic: Nic, given: Given) -> None:
    """A QEMU that finds a queue detached which it means to detach itself ends there and then, with its guest."""
    detached = (queue for queue, fd in enumerate(given.tap_fds) if is_detached(fd))
    queue = next(detached, None)
    if queue is None:
        return
    problem = "the queue is detached: a QEMU has this NIC, or had it"
    remedy = "another NIC; or Nic.reset_queues(), once that QEMU has ended or it is unplugged there"
    raise HostError(errno.EBUSY, problem, act="ATTACH", call="TUNGETIFF", ifname=nic.ifname, queue=queue, remedy=remedy)


def granted(plugged: Plugged, given: Given) -> Plugged:
    """Whether QEMU runs its queues by vhost-net: it says nothing where it tried that, and goes on without."""
    owned = [is_vhost_owned(fd) for fd in given.vhost_fds]
    vhost = bool(owned) and all(owned)
    without = ("vhost: QEMU does without: see what its log says",) if owned and not vhost else ()
    return plugged._replace(vhost=vhost, notes=(*plugged.notes, *without))
