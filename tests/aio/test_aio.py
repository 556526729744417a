"""asyncio: the same NICs, nothing left of what was cancelled, and a loop that goes on."""

import asyncio
import contextlib
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from brokers import serving
from conftest import BRIDGE, link_names
from machine import Q35, inventory, is_there, running

import vhostnet
from vhostnet import aio
from vhostnet.values import replace

pytestmark = pytest.mark.tap


def wish(**fields):
    return vhostnet.InterfaceSpec(**{"bridge": BRIDGE, "queues": 2, "vhost": "off", **fields})


def run(doing):
    """To its end, and the executor's threads to theirs."""

    async def all_of_it():
        try:
            return await doing
        finally:
            await asyncio.get_running_loop().shutdown_default_executor()

    return asyncio.run(all_of_it())


def there():
    return [name for name in link_names() if name.startswith("vn")]


def test_the_same_nics(engine, bridge, no_leaks):
    async def life():
        nic = await aio.open_nic(wish(ifname="one"), engine=engine)
        nics = await aio.open_nics([wish() for _ in range(8)], engine=engine)
        assert len(link_names()) == 11
        await aio.aside(nic.update, replace(nic.spec, isolated=True))
        assert nic.spec.isolated
        with pytest.raises(vhostnet.NameBusy):
            await aio.open_nics([wish(), wish(ifname="one")], engine=engine)
        kept = await aio.open_nics([wish(ifname="two"), wish(ifname="one")], on_error="keep", engine=engine)
        assert isinstance(kept[1], vhostnet.NameBusy)
        await aio.close_nics([nic, *nics, kept[0]])

    run(life())


def test_a_pool(bridge, no_leaks):
    async def life():
        with vhostnet.NicPool(wish(), size=2) as pool:
            nic = await aio.take(pool)
            assert nic.ifname in link_names()
            await aio.close_nics([nic])

    run(life())


@pytest.mark.slow
def test_what_is_cancelled_leaves_nothing(engine, bridge, no_leaks):
    """A thousand times, at any moment of it; and the interval of Python's threads is what it was."""
    before = sys.getswitchinterval()
    chance = random.Random(7)

    async def once():
        task = asyncio.create_task(aio.open_nics([wish(), wish()], engine=engine))
        await asyncio.sleep(chance.random() * 0.003)
        cancelled = task.cancel()
        try:
            await aio.close_nics(await task)
        except asyncio.CancelledError:
            assert there() == []
            return cancelled
        return False

    async def many():
        return sum([await once() for _ in range(1000)])

    assert run(many()) > 100
    assert sys.getswitchinterval() == before


def test_cancelled_twice(bridge, no_leaks):
    async def life():
        task = asyncio.create_task(aio.open_nics([wish() for _ in range(32)]))  # noqa: RUF006
        await asyncio.sleep(0.001)
        for _ in range(20):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert there() == []

    run(life())


def test_cancelled_before_it_was_begun(bridge, no_leaks):
    """The executor has no thread left: it is not done at all."""

    async def life():
        loop = asyncio.get_running_loop()
        over = threading.Event()
        busy = [loop.run_in_executor(None, over.wait) for _ in range(64)]
        task = asyncio.create_task(aio.open_nic(wish()))
        await asyncio.sleep(0.01)
        task.cancel()
        loop.call_later(0.05, over.set)
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.gather(*busy)
        assert there() == []

    run(life())


def test_closing_is_not_given_up(bridge, no_leaks):
    async def life():
        nics = await aio.open_nics([wish() for _ in range(16)])
        task = asyncio.create_task(aio.close_nics(nics))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert there() == []

    run(life())


def test_closing_that_has_to_wait_is_not_given_up(bridge, no_leaks):
    async def life():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        nics = await aio.open_nics([wish() for _ in range(4)])
        busy = loop.run_in_executor(None, time.sleep, 0.2)
        task = asyncio.create_task(aio.close_nics(nics))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert busy.done()
        assert there() == []

    run(life())


def test_the_loop_goes_on(bridge, no_leaks):
    """It has turns while 64 NICs are made: of ten batches in one at least, for the machine may be busy."""

    async def turns():
        found = 0

        async def beat():
            nonlocal found
            while True:
                await asyncio.sleep(0.0005)
                found += 1

        heart = asyncio.create_task(beat())
        nics = await aio.open_nics([wish() for _ in range(64)])
        heart.cancel()
        while_they_were_made = found
        await aio.close_nics(nics)
        return while_they_were_made

    assert any(run(turns()) > 3 for _ in range(10))


# --- a broker --------------------------------------------------------------------------------------------


def test_a_broker(bridge, no_leaks):
    async def life(path):
        async with await aio.connect(path) as net:
            nics = await asyncio.gather(*(net.open_nic(wish()) for _ in range(16)))
            assert len(there()) == 16
            await net.close_nics(nics)
            assert there() == []
            for delay in (0, 0.0005, 0.001, 0.002, 0.005, 0.01):
                task = asyncio.create_task(net.open_nics([wish() for _ in range(8)]))  # noqa: RUF006
                await asyncio.sleep(delay)
                if task.cancel():
                    with pytest.raises(asyncio.CancelledError):
                        await task
                else:
                    await net.close_nics(await task)
                assert there() == []
            pool = await net.NicPool(wish(), size=2)
            nic = await aio.take(pool)
            await net.close_nics([nic])
            await aio.aside(pool.close)
            assert (await net.status())["made"] >= 17

    with serving() as broker:
        run(life(broker.path))


# --- hotplug ---------------------------------------------------------------------------------------------


@pytest.fixture
def machine(bridge):
    with running("-S", *Q35) as found:
        yield found


async def connected(machine):
    from qemu.qmp import QMPClient

    client = QMPClient()
    await client.connect(machine.socket)
    return client


@pytest.mark.qemu
def test_plugs(machine, no_leaks):
    async def life():
        client = await connected(machine)
        nic = await aio.open_nic(wish(queues=4))
        plugged = await aio.plug(client, nic, bus="pci.1")
        assert (plugged.alias, plugged.queues) == ("net0", 4)
        with pytest.raises(vhostnet.QemuRefused, match="has a device of that id"):
            await aio.plug(client, wish(type="user", bridge=None, queues=1, vhost="auto"), alias="net0", bus="pci.2")
        await aio.unplug(client, "net0")
        await aio.close_nics([nic])
        await client.disconnect()

    before = inventory(machine)
    run(life())
    assert inventory(machine) == before


@pytest.mark.qemu
def test_a_qemu_that_has_ended(machine, no_leaks):
    async def life():
        client = await connected(machine)
        nic = await aio.open_nic(wish())
        machine.process.kill()
        machine.process.wait()
        for _ in range(2):  # it ends under the first, and is known to have by the second
            with pytest.raises(vhostnet.QemuGone):
                await aio.plug(client, nic, bus="pci.1")
        await aio.close_nics([nic])
        with contextlib.suppress(Exception):
            await client.disconnect()

    run(life())


@pytest.mark.qemu
def test_a_plug_that_is_cancelled_leaves_nothing(machine, no_leaks):
    """After each number of turns of the loop, and again while it is undone."""

    async def life():
        client = await connected(machine)
        nic = await aio.open_nic(wish(queues=2))
        cancelled = 0
        for turns in range(0, 120, 3):
            task = asyncio.create_task(aio.plug(client, nic, bus="pci.1"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            try:
                await aio.unplug(client, (await task).alias)
            except asyncio.CancelledError:
                cancelled += 1
            found = await client.execute("qom-list", {"path": "/machine/peripheral"})
            assert not any(one["name"].startswith("net") for one in found), turns
            await aio.aside(nic.reset_queues)
        assert cancelled > 10
        await aio.close_nics([nic])
        await client.disconnect()

    before = inventory(machine)
    run(life())
    assert inventory(machine) == before
    assert not is_there("vnet0")
