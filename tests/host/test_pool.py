"""NicPool: NICs made ahead, taken by one exchange, and never used twice."""

import functools
import gc
import os
import select
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import BRIDGE, link_names, open_fds, state
from kernel import ip, link
from test_closing import finish

import vhostnet
from vhostnet import InterfaceSpec, NicPool, PoolClosed, SpecError
from vhostnet.host.opening import make_nics
from vhostnet.others import bridge as bridges

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("net")]


def wish(**fields):
    return InterfaceSpec(**{"bridge": BRIDGE, "queues": 2, "vhost": "off", **fields})


@pytest.fixture
def pool(engine, bridge):
    before = state()
    with NicPool(wish(), size=6, low=2, engine=engine) as pool:
        pool.fill()
        yield pool
    finish()
    assert state() == before


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


# --- parked and taken ------------------------------------------------------------------------------------


def test_parked_is_down_and_in_its_bridge(pool):
    shown = ip(f"-d link show master {BRIDGE}")
    assert pool.stats[:3] == (6, 6, 0)
    assert shown.count("vnp") >= 6
    assert shown.count("qdisc noqueue") == shown.count("numqueues 2") == shown.count(":parked") == 6
    assert ip(f"link show master {BRIDGE} up") == ""


def test_taken_it_is_what_open_nic_makes(pool, engine):
    spec = wish(mac="52:54:00:01:02:03")
    with pool.take(spec) as nic:
        taken = link(nic.ifname)
        alias = ip(f"link show {nic.ifname}").split()[-1]
        assert (nic.spec, nic.mac, nic.mtu) == (spec, "fe:54:00:01:02:03", 1500)
        assert alias.startswith("vhostnet:")
        assert alias.endswith(nic._runs[-1].program.nics[0].alias)
        assert not alias.endswith(":parked")
        assert [timing.act for timing in nic.timings] == ["TAP_OPEN", "QDISC", "LINK", "LINK"]
        assert not nic.vhost
        assert nic.qemu_argv()[1].startswith("tap,fds=")
    with vhostnet.open_nic(spec, engine=engine) as nic:
        made = link(nic.ifname)
    assert {**taken, "ifindex": 0} == {**made, "ifindex": 0}


def test_without_a_wish_it_has_a_mac_of_its_own(pool):
    with pool.take() as one, pool.take() as two:
        assert one.spec.mac != two.spec.mac
        assert link(one.ifname)["up"]


def test_a_name_is_an_altname(pool):
    with pool.take(wish(ifname="web7")) as nic:
        assert nic.ifname.startswith("vnp")
        assert link("web7")["ifindex"] == link(nic.ifname)["ifindex"] == nic.ifindex
    with pool.take(wish(ifname="web%d")) as nic:
        assert "altname web" in ip(f"link show {nic.ifname}")


def test_a_rename_for_who_insists(pool):
    with pool.take(wish(ifname="web7"), rename=True) as nic:
        assert (nic.ifname, link("web7")["up"]) == ("web7", True)


@pytest.mark.parametrize("rename", [False, True])
def test_a_name_that_is_taken(pool, rename):
    with pytest.raises(vhostnet.NameBusy) as caught:
        pool.take(wish(ifname=BRIDGE), rename=rename)
    assert caught.value.act == ("RENAME" if rename else "ALTNAME")
    with pool.take(wish()) as nic:
        assert link(nic.ifname)["up"]


def test_the_mtu_of_the_bridge_is_that_of_the_moment(engine):
    bridges.make_bridge("br9")
    with NicPool(wish(bridge="br9"), size=2, engine=engine) as pool:
        pool.fill()
        ip("link set br9 mtu 1400")
        with pool.take(wish(bridge="br9")) as nic:
            assert (nic.mtu, link(nic.ifname)["mtu"]) == (1400, 1400)


def test_an_mtu_of_its_own(engine, bridge):
    with NicPool(wish(mtu=1300), size=1, engine=engine) as pool, pool.take(wish(mtu=1300)) as nic:
        assert link(nic.ifname)["mtu"] == 1300


def test_a_bridge_that_was_made_again_is_joined_again(engine):
    bridges.make_bridge("br9")
    with NicPool(wish(bridge="br9"), size=2, low=0, engine=engine) as pool:
        pool.fill()
        ip("link del br9")
        with pytest.raises(vhostnet.NoSuchBridge):
            pool.take(wish(bridge="br9"))
        bridges.make_bridge("br9")
        with pool.take(wish(bridge="br9")) as nic:
            assert link(nic.ifname)["master"] == "br9"
    finish()


def test_a_pool_without_a_bridge(engine):
    with NicPool(InterfaceSpec(type="ethernet", vhost="off"), size=2, engine=engine) as pool:
        pool.fill()
        with pool.take() as nic:
            assert (link(nic.ifname)["master"], link(nic.ifname)["up"]) == (None, True)


def test_a_pool_in_another_namespace(engine, bridge, tmp_path):
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    vhostnet.process.netns.unshare_net()
    with NicPool(wish(), size=2, engine=engine, netns=fd) as pool:
        pool.fill()
        nic = pool.take()
        assert vhostnet.process.netns.call_inside(fd, lambda: link(nic.ifname))["master"] == BRIDGE
        pool.give_back(nic)
        finish()
    assert vhostnet.process.netns.call_inside(fd, link_names) == sorted(["lo", BRIDGE])
    os.close(fd)


def test_a_thread_elsewhere_gets_its_nic_where_the_pool_is(engine, bridge):
    """No link of the thread's own namespace is touched: one there has the ifindex and the name of the parked NIC."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    with NicPool(wish(), size=1, low=0, engine=engine) as pool:
        pool.fill()
        parked = pool._parked[0].nic
        vhostnet.process.netns.unshare_net()
        bridges.make_bridge(BRIDGE)
        ip(f"link add {parked.ifname} index {parked.ifindex} type bridge")
        before = link(parked.ifname)
        with pool._making:  # so its thread makes none meanwhile
            nics = [pool.take(), pool.take()]  # the second is made on the spot
        assert link(parked.ifname) == before
        assert pool.stats[2:4] == (2, 1)
        for nic in nics:
            there = vhostnet.process.netns.call_inside(home, functools.partial(link, nic.ifname))
            assert (there["ifindex"], there["up"], there["master"]) == (nic.ifindex, True, BRIDGE)
        vhostnet.close_nics(nics)
    assert link_names() == sorted(["lo", BRIDGE, parked.ifname])
    os.close(home)


# --- another shape ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"queues": 4},
        {"bridge": "br0"},
        {"mtu": 9000},
        {"vhost": "require"},
        {"vhost_path": "/dev/other"},
        {"tap_path": "/dev/tun"},
        {"type": "ethernet", "bridge": None},
        {"model": "e1000", "queues": 1},
    ],
)
def test_another_shape_is_refused(pool, fields):
    with pytest.raises(SpecError) as caught:
        pool.take(wish(**fields))
    assert caught.value.attribute in fields
    assert pool.stats.taken == 0


def test_a_model_that_needs_another_tap_is_refused(engine, bridge):
    shape = wish(queues=1)
    with NicPool(shape, size=1, engine=engine) as pool:
        with pytest.raises(SpecError, match="model='e1000'"):
            pool.take(wish(queues=1, model="e1000"))
        pool.take(wish(queues=1, model="virtio-transitional")).close()


@pytest.mark.parametrize(
    ("arguments", "attribute"),
    [
        ({"shape": wish(ifname="one")}, "ifname"),
        ({"size": 0}, "size"),
        ({"size": "8"}, "size"),
        ({"size": 4, "low": 5}, "low"),
        ({"max_age": 0}, "max_age"),
    ],
)
def test_arguments_that_are_none(arguments, attribute):
    with pytest.raises(SpecError) as caught:
        NicPool(**{"shape": wish(), **arguments})
    assert caught.value.attribute == attribute


def test_a_pool_has_a_template_of_its_own(engine, bridge):
    with NicPool(wish(ifname="mine%d"), size=1, engine=engine) as pool:
        pool.fill()
        with pool.take() as nic:
            assert nic.ifname.startswith("mine")


# --- filling ---------------------------------------------------------------------------------------------


def test_an_empty_pool_makes_one_on_the_spot_and_counts_it(engine):
    """Nothing can be made ahead while there is no bridge; and then there is one."""
    with NicPool(wish(bridge="late"), size=1, low=0, engine=engine) as pool:
        until(lambda: pool.stats.error is not None)
        assert isinstance(pool.stats.error, vhostnet.NoSuchBridge)
        with pool._making:  # so its thread makes none meanwhile
            with pytest.raises(vhostnet.NoSuchBridge):
                pool.take()
            bridges.make_bridge("late")
            with pool.take(wish(bridge="late", ifname="spot")) as nic:
                assert nic.ifname == "spot"
                assert link("spot")["up"]
            assert pool.stats.missed == 2
        until(lambda: pool.stats.parked == 1)  # the refill has tried again
        assert pool.stats.error is None


@pytest.mark.slow
def test_it_is_filled_again_below_the_low_water_mark(engine, bridge):
    with NicPool(wish(), size=6, low=2, engine=engine) as pool:
        until(lambda: pool.stats.parked == 6)
        time.sleep(0.5)  # until the refill has nothing to do
        taken = [pool.take() for _ in range(4)]
        time.sleep(0.5)
        assert pool.stats[:2] == (2, 6)
        taken.append(pool.take())
        until(lambda: pool.stats.parked == 6)
        assert pool.stats.made == 11
        vhostnet.close_nics(taken)


def test_what_is_too_old_is_replaced(engine, bridge):
    with NicPool(wish(), size=2, max_age=0.2, engine=engine) as pool:
        pool.fill()
        old = set(link_names())
        until(lambda: not old & set(link_names()) - {BRIDGE, "lo"})
        until(lambda: pool.stats.parked == 2)
        assert pool.stats.discarded >= 2
        assert pool.stats.missed == 0
    finish()


def test_one_that_was_deleted_by_somebody_is_passed_over(pool):
    first = pool._parked[0].nic.ifname
    ip(f"link del {first}")
    with pool.take() as nic:
        assert nic.ifname != first
    assert (pool.stats.discarded, pool.stats.taken) == (1, 1)


@pytest.mark.slow
def test_many_threads_take(engine, bridge):
    taken, errors = [], []

    def work():
        try:
            taken.extend(pool.take() for _ in range(10))
        except Exception as error:
            errors.append(error)

    with NicPool(wish(), size=16, engine=engine) as pool:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len({nic.ifindex for nic in taken}) == len({fd for nic in taken for fd in nic.fds}) / 2 == 80
        assert pool.stats.taken == 80
        vhostnet.close_nics(taken)


# --- given back ------------------------------------------------------------------------------------------


def frames(nic, count):
    """Broadcast frames from this NIC's VM: what it writes into its queue."""
    frame = bytes(10) + b"\xff" * 6 + bytes.fromhex(nic.spec.mac.replace(":", "")) + b"\x88\xb5" + b"secret" * 10
    return [os.write(nic.tap_fds[0], frame) for _ in range(count)]


def read_all(nic):
    """Every frame that waits in the NIC's queues."""
    found = []
    for fd in nic.tap_fds:
        os.set_blocking(fd, False)
        while True:
            try:
                found.append(os.read(fd, 2048))
            except BlockingIOError:
                break
    return found


def test_no_frame_of_the_old_vm_reaches_the_new_one(engine, bridge):
    """Frames wait in the old VM's TAP and are on their way to it; its NIC is given back, and another one taken."""
    with NicPool(wish(), size=1, low=1, engine=engine) as pool:
        pool.fill()
        with vhostnet.open_nic(wish(), engine=engine) as peer:
            old = pool.take()
            frames(peer, 50)
            assert select.select(old.tap_fds, [], [], 20)[0]  # they wait in its queues
            pool.give_back(old)
            frames(peer, 50)
            finish()
            until(lambda: pool.stats.parked == 1)
            new = pool.take()
            assert new.ifindex != old.ifindex
            assert not [frame for frame in read_all(new) if b"secret" in frame]
            frames(peer, 1)  # it does hear what comes from now on
            until(lambda: any(b"secret" in frame for frame in read_all(new)))
            new.close()


@pytest.mark.slow
def test_a_thousand_takes_and_give_backs_leak_nothing(engine, bridge):
    before = state()
    with NicPool(wish(queues=1), size=32, engine=engine) as pool:
        for _ in range(1000):
            pool.give_back(pool.take())
        stats = pool.stats
    finish()
    assert (stats.taken, stats.returned) == (1000, 1000)
    assert state() == before
    assert [thread.name for thread in threading.enumerate() if "vhostnet" in thread.name] == []


# --- the end ---------------------------------------------------------------------------------------------


def test_closed_it_says_so(pool):
    pool.close()
    pool.close()
    with pytest.raises(PoolClosed):
        pool.take()
    assert "closed" in repr(pool)


def test_what_was_taken_outlives_it(engine, bridge):
    with NicPool(wish(), size=2, engine=engine) as pool:
        nic = pool.take()
    assert link(nic.ifname)["up"]
    nic.close()


def test_what_is_made_while_it_closes_is_counted_and_goes(engine, bridge, monkeypatch):
    before, made, pools = state(), threading.Event(), []

    def make(*arguments):
        nics = make_nics(*arguments)
        made.set()
        until(lambda: pools and pools[0]._closed)
        return nics

    monkeypatch.setattr("vhostnet.host.pool.make_nics", make)
    pools.append(NicPool(wish(), size=2, engine=engine))
    assert made.wait(10)
    pools[0].close()
    assert pools[0].stats[:2] == (0, 2)
    assert state() == before


def test_dropped_open_it_closes_and_warns(engine, bridge):
    before = state()
    with pytest.warns(ResourceWarning, match="unclosed <NicPool"):
        pool = NicPool(wish(), size=2, engine=engine)
        pool.fill()
        del pool
        gc.collect()
        until(lambda: state() == before)
    assert state() == before


def test_a_forked_child_has_no_pool(pool):
    ours, its = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        left = [fd for fd in open_fds().values() if "tun" in fd]
        try:
            pool.take()
        except PoolClosed:
            its.send(b"closed %d" % len(left))
        its.recv(1)  # lives until the parent is done
        os._exit(0)
    its.close()
    assert ours.recv(100) == b"closed 0"
    with pool.take() as nic:
        assert link(nic.ifname)["up"]
    pool.close()
    left = link_names()
    ours.close()
    os.waitpid(child, 0)
    assert left == sorted(["lo", BRIDGE])


@pytest.mark.slow
def test_killed_it_leaves_nothing(engine, bridge):
    code = (
        "import sys, time, vhostnet\n"
        f"shape = vhostnet.InterfaceSpec(bridge='{BRIDGE}', queues=2, vhost='off')\n"
        "pool = vhostnet.NicPool(shape, size=20, engine=sys.argv[1])\n"
        "pool.fill()\n"
        "print('full', flush=True)\n"
        "time.sleep(60)\n"
    )
    before = link_names()
    child = subprocess.Popen([sys.executable, "-c", code, engine], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"full\n"
    assert len(link_names()) == len(before) + 20
    child.kill()
    child.wait()
    child.stdout.close()
    until(lambda: link_names() == before)
