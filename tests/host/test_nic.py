"""A NIC on the real kernel, on both engines: what it is, who owns it, and that it goes."""

import fcntl
import gc
import itertools
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import BRIDGE, link_names, need, open_fds, state
from kernel import addrgenmode, ip, link
from pyroute2 import IPRoute

import vhostnet
from vhostnet import InterfaceSpec, NicClosed
from vhostnet.engines import _uapi
from vhostnet.others import bridge as bridges
from vhostnet.program.parts import TunFlag

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("net")]


def flags_of(fd):
    """TUNGETIFF: the name and flags of the queue behind *fd*."""
    request = bytearray(_uapi.IFREQ_FLAGS.size)
    fcntl.ioctl(fd, _uapi.TUNGETIFF, request)
    name, flags = _uapi.IFREQ_FLAGS.unpack(request)
    return name.rstrip(b"\0").decode(), flags


def test_the_seed_is_what_libvirt_would_make(engine, bridge, seed):
    before = open_fds(), link_names()
    with vhostnet.open_nic(seed, engine=engine, vhost="auto") as nic:
        shown = ip("-d link show dev veni_vFsp6g8y")
        for fact in ("tun type tap", "multi_queue", "numqueues 8", "vnet_hdr on", f"master {BRIDGE}", "qdisc noqueue"):
            assert fact in shown
        assert link(nic.ifname) == {
            "ifindex": nic.ifindex,
            "up": True,
            "mac": "fe:90:6f:28:84:f2",
            "mtu": 1500,
            "qdisc": "noqueue",
            "kind": "tun",
            "master": BRIDGE,
        }
        assert (nic.ifname, nic.mac, nic.mtu) == ("veni_vFsp6g8y", "fe:90:6f:28:84:f2", 1500)
        assert len(nic.tap_fds) == len(set(nic.tap_fds)) == 8
        assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in nic.fds)
        assert {flags_of(fd) for fd in nic.tap_fds} == {("veni_vFsp6g8y", 0x5102)}
        assert addrgenmode(nic.ifname) == "none"
    assert (open_fds(), link_names()) == before


@pytest.mark.parametrize("queues", [1, 2, 16, 256])
def test_queues(engine, bridge, queues):
    with vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, queues=queues, vhost="off"), engine=engine) as nic:
        names = {flags_of(fd)[0] for fd in nic.tap_fds}
        multi_queue = flags_of(nic.tap_fds[0])[1] & 0x100
        assert (len(nic.tap_fds), names, bool(multi_queue)) == (queues, {nic.ifname}, queues > 1)
        assert link(nic.ifname)["qdisc"] == "noqueue"


@pytest.mark.parametrize("model", ["virtio", "e1000e", "vmxnet3", "igb", "e1000", "rtl8139"])
def test_vnet_hdr_is_there_only_for_models_that_use_it(engine, bridge, model):
    with vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, model=model, vhost="off"), engine=engine) as nic:
        assert bool(flags_of(nic.tap_fds[0])[1] & 0x4000) == (model not in ("e1000", "rtl8139"))


def test_the_bridges_mtu_is_taken_and_not_dragged_down(engine):
    bridges.make_bridge("br9", mtu=9000)
    with vhostnet.open_nic(InterfaceSpec(bridge="br9", vhost="off"), engine=engine) as nic:
        assert (nic.mtu, link(nic.ifname)["mtu"], link("br9")["mtu"]) == (9000, 9000, 9000)


@pytest.mark.parametrize("mtu", [68, 1279, 1280, 1400, 65521])
def test_an_mtu_that_is_asked_for(engine, bridge, mtu):
    with vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, mtu=mtu, vhost="off"), engine=engine) as nic:
        assert (nic.mtu, link(nic.ifname)["mtu"]) == (mtu, mtu)


def test_the_bridge_does_not_take_the_taps_mac(engine, bridge):
    ip("tuntap add low mode tap")
    ip(f"link set low address 02:00:00:00:00:01 master {BRIDGE} up")
    before = link(BRIDGE)["mac"]
    with vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, mac="02:00:00:00:00:00", vhost="off"), engine=engine):
        assert link(BRIDGE)["mac"] == before == "02:00:00:00:00:01"


def test_ethernet_has_no_bridge(engine):
    with vhostnet.open_nic(InterfaceSpec(type="ethernet", vhost="off"), engine=engine) as nic:
        facts = link(nic.ifname)
        assert (facts["master"], facts["up"], facts["mtu"]) == (None, True, 1500)


def test_the_default_qdisc_where_it_is_asked_for(engine, bridge):
    with vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, vhost="off"), engine=engine, qdisc="default") as nic:
        assert link(nic.ifname)["qdisc"] != "noqueue"


# --- names -----------------------------------------------------------------------------------------------


def test_generated_names_skip_what_exists(engine, bridge):
    with vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, vhost="off"), engine=engine) as nic:
        number = int(nic.ifname.removeprefix("vnet"))
    ip(f"link add vnet{number + 1} type bridge")
    ip("link add other type bridge")
    ip(f"link property add dev other altname vnet{number + 2}")
    with vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, vhost="off"), engine=engine) as nic:
        assert nic.ifname == f"vnet{number + 3}"


OPENED = """
import os, sys, vhostnet
def name():
    with vhostnet.open_nic(vhostnet.InterfaceSpec(bridge=sys.argv[2], vhost="off"), engine=sys.argv[1]) as nic:
        return nic.ifname
print(name(), flush=True)
if os.fork() == 0:
    print(name(), flush=True)
    os._exit(0)
os.wait()
"""


def test_no_process_goes_on_with_the_names_of_another(engine, bridge):
    """Nor does a forked child with its parent's: a rule for a dead VM's name would meet the next VM."""
    command = [sys.executable, "-c", OPENED, engine, BRIDGE]
    names = [name for _ in range(2) for name in subprocess.check_output(command, text=True, timeout=60).split()]
    numbers = sorted(int(name.removeprefix("vnet")) for name in names)
    assert len(numbers) == 4
    assert all(later - earlier > 1 for earlier, later in itertools.pairwise(numbers))


def test_four_times_the_nics_are_four_times_the_work(engine, bridge):
    """Counted, and not timed: no NIC looks at all of the others."""

    def work(count):
        steps = 0

        def note(*_):
            nonlocal steps
            steps += 1

        specs = [InterfaceSpec(bridge=BRIDGE, vhost="off") for _ in range(count)]
        sys.setprofile(note)
        try:
            nics = vhostnet.open_nics(specs, engine=engine)
            vhostnet.close_nics(nics)
        finally:
            sys.setprofile(None)
        return steps

    work(1)  # which imports what is imported late
    assert work(128) < 4.4 * work(32)


def test_a_routed_tap_keeps_the_kernels_ipv6_addresses(engine, net):
    """It is its guest's router: its link-local address is the guest's gateway."""
    with vhostnet.open_nic(InterfaceSpec(type="ethernet", vhost="off"), engine=engine) as nic:
        assert addrgenmode(nic.ifname) == "eui64"
        with IPRoute() as kernel:
            (address,) = kernel.get_addr(index=nic.ifindex, family=socket.AF_INET6)
    assert address.get("address").startswith("fe80::fc54:ff:fe")


def test_templates_count_for_themselves(engine, bridge):
    specs = [InterfaceSpec(bridge=BRIDGE, ifname=f"{engine}%d.x", vhost="off") for _ in range(2)]
    nics = vhostnet.open_nics(specs, engine=engine)
    first, second = (int(nic.ifname.removeprefix(engine).removesuffix(".x")) for nic in nics)
    assert second == first + 1
    vhostnet.close_nics(nics)


def test_two_processes_begin_at_different_numbers():
    """A rule for a dead VM's name is not to meet the next VM."""
    code = "from vhostnet.host.names import name_for; print(name_for(None), name_for('tiny_name_ab%d'))"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(6)]
    names = [done.stdout.split() for done in runs]
    assert len({name for name, _ in names}) == 6
    for name, tiny in names:
        assert re.fullmatch("vnet[0-9]{1,6}", name) and re.fullmatch("tiny_name_ab[0-9]{1,3}", tiny)


def test_parent_and_child_do_not_count_through_the_same_names():
    code = """
import os
from vhostnet.host.names import name_for
name_for(None)
read, write = os.pipe()
if not os.fork():
    os.write(write, name_for(None).encode())
    os._exit(0)
print(os.read(read, 99).decode() != name_for(None))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


def test_a_name_that_is_freed_is_not_given_again(engine, bridge):
    names = set()
    for _ in range(3):
        with vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, vhost="off"), engine=engine) as nic:
            names.add(nic.ifname)
    assert len(names) == 3


def test_threads_share_the_counter(engine, bridge):
    made = []

    def work():
        specs = [InterfaceSpec(bridge=BRIDGE, vhost="off") for _ in range(5)]
        made.extend(vhostnet.open_nics(specs, engine=engine))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {nic.ifname for nic in made}
    vhostnet.close_nics(made)
    assert len(names) == 20


# --- batches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 65, 130])
def test_a_batch_is_as_good_as_one(engine, bridge, count):
    specs = [InterfaceSpec(bridge=BRIDGE, queues=1 + number % 3, vhost="off") for number in range(count)]
    nics = vhostnet.open_nics(specs, engine=engine)
    shown = ip(f"-br link show master {BRIDGE} up")
    queues = [len(nic.tap_fds) for nic in nics]
    macs = {line.split()[0]: line.split()[2] for line in shown.splitlines()}
    wanted = {nic.ifname: nic.mac for nic in nics}
    vhostnet.close_nics(nics)
    assert queues == [spec.queues for spec in specs]
    assert macs == wanted


def test_a_batch_over_several_bridges(engine):
    """Each NIC joins its own, and has that one's MTU unless it says otherwise."""
    mtus = {"br1": 1500, "br2": 9000, "br3": 1279}
    for name, mtu in mtus.items():
        bridges.make_bridge(name, mtu=mtu)
    specs = [InterfaceSpec(bridge=name, vhost="off", mtu=mtu) for name in mtus for mtu in (1400, None, None)]
    nics = vhostnet.open_nics(specs, engine=engine)
    seen = [(link(nic.ifname)["master"], link(nic.ifname)["mtu"], nic.mtu) for nic in nics]
    vhostnet.close_nics(nics)
    assert seen == [(spec.bridge, spec.mtu or mtus[spec.bridge], spec.mtu or mtus[spec.bridge]) for spec in specs]


def test_no_specs_are_no_nics(engine):
    assert vhostnet.open_nics([], engine=engine) == []


def test_every_act_has_its_time(engine, bridge):
    with vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, vhost="off"), engine=engine) as nic:
        assert [timing.act for timing in nic.timings] == ["TAP_OPEN", "QDISC", "LINK", "UP"]
        assert all(0 < timing.ns < 10**9 for timing in nic.timings)


# --- namespaces ------------------------------------------------------------------------------------------


@pytest.fixture
def other():
    """An fd of a second namespace, in which the bridge is; the thread is in another."""
    fds = []

    def make():
        vhostnet.process.netns.unshare_net()
        bridges.make_bridge(BRIDGE)
        fds.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    yield fds[0]
    os.close(fds[0])


@pytest.mark.parametrize("way", ["fd", "path"])
def test_a_nic_in_another_namespace(engine, other, way):
    here = os.readlink("/proc/thread-self/ns/net")
    where = other if way == "fd" else f"/proc/self/fd/{other}"
    with vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, vhost="off"), engine=engine, netns=where) as nic:
        assert nic.ifname not in link_names()
        inside = vhostnet.process.netns.call_inside(other, lambda: link(nic.ifname))
        assert (inside["ifindex"], inside["master"], inside["up"]) == (nic.ifindex, BRIDGE, True)
    assert os.readlink("/proc/thread-self/ns/net") == here


def test_a_namespace_that_is_none(engine):
    with pytest.raises(vhostnet.HostError, match="NETNS .open.: /nowhere") as caught:
        vhostnet.open_nic(InterfaceSpec(type="ethernet"), engine=engine, netns="/nowhere")
    assert (caught.value.act, caught.value.call) == ("NETNS", "open")
    with pytest.raises(vhostnet.HostError, match="setns"):
        vhostnet.open_nic(InterfaceSpec(type="ethernet"), engine=engine, netns="/dev/null")


# --- ownership -------------------------------------------------------------------------------------------


@pytest.fixture
def nic(engine, bridge, no_leaks):
    with vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, queues=2, vhost="off"), engine=engine) as nic:
        yield nic


def test_an_interrupt_that_waited_for_the_call_leaves_nothing(bridge):
    """SIGALRM is pending when the C core returns; its handler raises before any fd has an owner."""
    need("native")
    before = state()

    def interrupt(*_):
        raise KeyboardInterrupt

    program = vhostnet.plan_nics([InterfaceSpec(bridge=BRIDGE, queues=200, vhost="off")])
    engine = vhostnet.select_engine("native")
    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.0005)
            engine.run(program)
            time.sleep(1)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert state() == before


def test_closing_twice_and_from_many_threads(nic):
    threads = [threading.Thread(target=nic.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    nic.close()
    assert nic.closed


@pytest.mark.parametrize("use", ["fds", "tap_fds", "vhost_fds", "qemu_argv", "reset_queues", "detach"])
def test_a_closed_nic_says_so(nic, use):
    nic.close()
    with pytest.raises(NicClosed, match=nic.ifname):
        member = getattr(nic, use)
        member()


def test_detached_fds_are_the_callers(nic):
    tap, vhost = nic.detach()
    nic.close()
    assert flags_of(tap[1])[0] == nic.ifname in link_names()
    assert vhost == ()
    for fd in tap:
        os.close(fd)
    assert nic.ifname not in link_names()


def test_dropped_open_it_closes_and_warns(engine, bridge, no_leaks):
    with pytest.warns(ResourceWarning, match="unclosed <Nic vnet"):
        vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, vhost="off"), engine=engine)
        gc.collect()
    assert not [name for name in link_names() if name.startswith("vnet")]


def test_a_fork_without_exec_does_not_keep_it(nic):
    ours, its = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        its.send(b"x")  # forked, and the handlers have run
        its.recv(1)  # lives until the parent is done
        os._exit(0)
    its.close()
    ours.recv(1)
    nic.close()
    left = link_names()
    ours.close()
    os.waitpid(child, 0)
    assert nic.ifname not in left


def test_multiprocessing_does_not_keep_it(nic):
    context = multiprocessing.get_context("fork")
    started, stop = context.Event(), context.Event()
    worker = context.Process(target=lambda: (started.set(), stop.wait(60)))
    worker.start()
    started.wait(30)
    nic.close()
    left = link_names()
    stop.set()
    worker.join()
    worker.close()
    assert nic.ifname not in left


LOOK = "for fd; do [ ! -e /proc/self/fd/$fd ] || echo $fd; done"


@pytest.mark.parametrize("preexec", [None, os.getpid], ids=["spawned", "preexec_fn"])
def test_a_subprocess_has_the_fds_it_is_given_and_no_other(nic, preexec):
    numbers = [str(fd) for fd in nic.fds]
    for passed in ((), nic.fds, nic.fds[:1]):
        command = ["sh", "-c", LOOK, "sh", *numbers]
        done = subprocess.run(command, pass_fds=passed, preexec_fn=preexec, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(fd) for fd in passed]
    assert not nic.closed


def test_killed_it_leaves_nothing(engine, bridge):
    code = (
        "import vhostnet, time\n"
        f"specs = [vhostnet.InterfaceSpec(bridge='{BRIDGE}', queues=2, vhost='off') for _ in range(10)]\n"
        f"nics = vhostnet.open_nics(specs, engine='{engine}')\n"
        "print('open', flush=True)\n"
        "time.sleep(60)\n"
    )
    before = link_names()
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"open\n"
    assert len(link_names()) == len(before) + 10
    child.kill()
    child.wait()
    child.stdout.close()
    deadline = time.monotonic() + 10
    while link_names() != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert link_names() == before


def detach_queue(fd):
    """As QEMU leaves it when it ends."""
    fcntl.ioctl(fd, _uapi.TUNSETQUEUE, _uapi.IFREQ_FLAGS.pack(b"", TunFlag.DETACH_QUEUE))


def test_queues_are_attached_again(engine, bridge):
    with vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, queues=4, vhost="off"), engine=engine) as nic:
        for fd in nic.tap_fds[1:3]:
            detach_queue(fd)
        assert [bool(flags_of(fd)[1] & 0x400) for fd in nic.tap_fds] == [False, True, True, False]
        nic.reset_queues()
        assert [bool(flags_of(fd)[1] & 0x400) for fd in nic.tap_fds] == [False] * 4
        nic.reset_queues()
        ip(f"link del {nic.ifname}")
        with pytest.raises(vhostnet.DeviceGone) as caught:
            nic.reset_queues()
        assert (caught.value.act, caught.value.queue, caught.value.ifname) == ("ATTACH", 1, nic.ifname)
