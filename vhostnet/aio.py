"""The same for asyncio: nothing here blocks the event loop, and what is cancelled leaves nothing::

    nics = await aio.open_nics(specs)
    plugged = await aio.plug(client, nics[0], bus="pci.1")      # client: a qemu.qmp.QMPClient that is connected
    await aio.close_nics(nics)

The work is done by the loop's executor (``loop.set_default_executor()``). A cancelled call returns when what it had
done is undone: an engine's call cannot be interrupted, and takes milliseconds. Meanwhile Python switches between its
threads every 0.5 ms and not every 5 (``sys.setswitchinterval()``), or the loop would wait that long for its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

from vhostnet.broker import client as brokers
from vhostnet.errors import HostError
from vhostnet.host import closing, opening
from vhostnet.host.nic import Nic
from vhostnet.qemu.hotplug import Departure, Plugged, Step, plugging, unplugging
from vhostnet.qmp import TIMEOUT, Steps, answer, granted, handed
from vhostnet.spec.interface import InterfaceSpec

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

    from vhostnet.host.pool import NicPool

__all__ = ["Broker", "aside", "close_nics", "connect", "open_nic", "open_nics", "plug", "take", "unplug"]

_SWITCH: Final = 0.0005  # seconds
_T = TypeVar("_T")


async def open_nic(spec: InterfaceSpec, **how: Any) -> Nic:
    """As ``vhostnet.open_nic()``."""
    return await _opened(partial(opening.open_nic, spec, **how))


@overload
async def open_nics(specs: Sequence[InterfaceSpec], *, on_error: Literal["undo"] = "undo", **how: Any) -> list[Nic]: ...


@overload
async def open_nics(
    specs: Sequence[InterfaceSpec], *, on_error: Literal["keep"], **how: Any
) -> list[Nic | HostError]: ...


async def open_nics(specs: Sequence[InterfaceSpec], **how: Any) -> Any:
    """As ``vhostnet.open_nics()``."""
    return await _opened(partial(opening.open_nics, specs, **how))


async def close_nics(nics: Iterable[Nic]) -> None:
    """As ``vhostnet.close_nics()``; they are gone when it returns, cancelled or not."""
    await _closed(partial(closing.close_nics, list(nics)))


async def take(pool: NicPool | brokers.Pool, spec: InterfaceSpec | None = None, *, rename: bool = False) -> Nic:
    """As ``NicPool.take()``."""
    return await _opened(partial(pool.take, spec, rename=rename))


async def aside(function: Callable[..., _T], *arguments: Any) -> _T:
    """What *function* returns or raises, run beside the loop: ``await aio.aside(nic.update, spec)``.

    As ``asyncio.to_thread()``, but for this: it is not left to itself when it is cancelled, but waited for.
    """
    return await _done(partial(function, *arguments), lambda result: None)


async def plug(
    client: QMPClient,
    nic: Nic | InterfaceSpec,
    *,
    alias: str | None = None,
    bus: str | None = None,
    addr: str | None = None,
    passt_socket: str | None = None,
    timeout: float = TIMEOUT,
) -> Plugged:
    """As ``vhostnet.qmp.plug()``, by qemu.qmp's client; what QEMU has of a plug that is cancelled is undone."""
    with handed(nic, passt_socket) as (spec, given):
        steps = plugging(spec, given, alias=alias, bus=bus, addr=addr, seconds=timeout)
        return granted(await _drive(client, steps), given)


async def unplug(client: QMPClient, alias: str, *, timeout: float = TIMEOUT) -> None:
    """As ``vhostnet.qmp.unplug()``. One that is cancelled may be asked again, and goes on from there."""
    await _drive(client, unplugging(alias, timeout))


# --- a broker --------------------------------------------------------------------------------------------


async def connect(path: str = brokers.DEFAULT_PATH, *, timeout: float = brokers.TIMEOUT) -> Broker:
    """As ``vhostnet.connect()``."""
    return Broker(await aside(partial(brokers.connect, path, timeout=timeout)))


class Broker:
    """A broker's client, by a ``vhostnet.Broker`` (``sync``), each call on a connection of its own."""

    def __init__(self, sync: brokers.Broker) -> None:
        self.sync: Final = sync

    async def open_nic(self, spec: InterfaceSpec, **how: Any) -> Nic:
        """As ``vhostnet.Broker.open_nic()``."""
        return await _opened(partial(self.sync.open_nic, spec, **how), self.sync.close_nics)

    async def open_nics(self, specs: Sequence[InterfaceSpec], **how: Any) -> list[Nic]:
        """As ``vhostnet.Broker.open_nics()``."""
        return await _opened(partial(self.sync.open_nics, specs, **how), self.sync.close_nics)

    async def close_nics(self, nics: Iterable[Nic]) -> None:
        """As ``vhostnet.Broker.close_nics()``."""
        await _closed(partial(self.sync.close_nics, list(nics)))

    async def NicPool(self, shape: InterfaceSpec, **how: Any) -> brokers.Pool:  # noqa: N802
        """As ``vhostnet.Broker.NicPool()``; take from it by ``take()``."""
        return await _done(partial(self.sync.NicPool, shape, **how), lambda pool: pool.close())

    async def status(self) -> dict[str, Any]:
        """As ``vhostnet.Broker.status()``."""
        return await aside(self.sync.status)

    async def close(self) -> None:
        """The connections; NICs stay."""
        await aside(self.sync.close)

    async def __aenter__(self) -> Broker:
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.close()


# --- beside the loop -------------------------------------------------------------------------------------


async def _opened(work: Callable[[], _T], close: Callable[[list[Nic]], None] = closing.close_nics) -> _T:
    """A Nic, or a list with some."""

    def undo(made: object) -> None:
        close([one for one in (made if isinstance(made, list) else [made]) if isinstance(one, Nic)])

    return await _done(work, undo)


async def _closed(work: Callable[[], None]) -> None:
    """It is done, cancelled or not: whoever closes wants them gone."""
    await _done(work, lambda result: None, always=True)


async def _done(work: Callable[[], _T], undo: Callable[[_T], None], *, always: bool = False) -> _T:
    """By the executor. Cancelled before it was begun it is not done, but for *always*; after that undone."""
    cancelled = threading.Event()

    def begun() -> tuple[_T, ...]:
        if cancelled.is_set() and not always:
            return ()
        with _lively():
            return (work(),)

    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, copy_context().run, begun)  # as asyncio.to_thread(): who listens may look there
    try:
        return (await asyncio.shield(future))[0]
    except asyncio.CancelledError:
        cancelled.set()
        await _over(future)
        if not future.exception():
            for result in future.result():
                await _over(loop.run_in_executor(None, undo, result))
        raise


async def _over(future: asyncio.Future[Any]) -> None:
    """Until it is, however often somebody cancels."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])


_busy: list[float] = []  # the interval before, once for each that is under way
_switching: Final = threading.Lock()


@contextlib.contextmanager
def _lively() -> Iterator[None]:
    """The loop's thread gets its turn soon, while another is at work."""
    with _switching:
        _busy.append(_busy[0] if _busy else sys.getswitchinterval())
        sys.setswitchinterval(min(_SWITCH, _busy[0]))
    try:
        yield
    finally:
        with _switching:
            before = _busy.pop()
            if not _busy:
                sys.setswitchinterval(before)


# --- hotplug ---------------------------------------------------------------------------------------------


async def _drive(client: QMPClient, steps: Steps[_T]) -> _T:
    """Once it is cancelled, what the steps undo is done to its end, however often somebody cancels."""
    undoing = False
    try:
        step = next(steps)
        while True:
            task = asyncio.ensure_future(answer(client, step))
            try:
                found = await (_whole(task) if undoing else asyncio.shield(task))
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) and not undoing:
                    undoing = True
                    await _end(task, step)
                step = steps.throw(error)
            else:
                step = steps.send(found)
    except StopIteration as done:
        result: _T = done.value
        return result


async def _whole(task: asyncio.Task[Any]) -> Any:
    await _over(task)
    return task.result()


async def _end(task: asyncio.Task[Any], step: Step) -> None:
    """Of a command QEMU's answer is waited for, or the next one would be given that; for a guest nobody waits."""
    if isinstance(step, Departure):
        task.cancel()
    await _over(task)
    if not task.cancelled():
        task.exception()  # seen
