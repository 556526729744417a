"""A macvtap (type direct): made whole by one send, known by its mark, and gone when it is closed."""

import contextlib
import errno
import fcntl
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import TESTS, link_names, need, open_fds
from kernel import addrgenmode, ip, link, run_json

import vhostnet
from vhostnet import DirectSource, HostError, InterfaceSpec, NameBusy, NoSuchLink, SpecError
from vhostnet.commands.demo import ask_qemu
from vhostnet.engines import _uapi
from vhostnet.process import netns
from vhostnet.values import replace

PARENT, PEER = "p0", "q0"
MAC = "52:54:00:00:00:01"
NETWORK = ("human-monitor-command", {"command-line": "info network"})
HEADER = bytes(10)  # struct virtio_net_hdr: nothing is left to the other side
MODES = {"vepa": "vepa", "bridge": "bridge", "private": "private", "passthrough": "passthru"}


def lacks_macvtap():
    """A user namespace's root makes no device nodes; and a kernel may have no macvtap."""
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", PROBE], capture_output=True, text=True, check=False, cwd=TESTS
    )
    return done.stderr.strip().rpartition("\n")[2]


PROBE = """
import vhostnet
from vhostnet.others.bridge import make_bridge
make_bridge("br0")
spec = vhostnet.InterfaceSpec(type="direct", source=vhostnet.DirectSource("br0"), vhost="off")
vhostnet.open_nic(spec, engine="pure").close()
"""


@pytest.fixture(scope="module", autouse=True)
def _needs_macvtap():
    need("tap")
    if why := lacks_macvtap():
        pytest.skip(f"macvtap: {why}")


pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("parent")]


@pytest.fixture
def parent(net):
    """A veth pair, both ends up."""
    make_pair(PARENT, PEER)


def make_pair(name, peer):
    ip(f"link add {name} type veth peer name {peer}")
    ip(f"link set {name} up")
    ip(f"link set {peer} up")


def wish(mode="vepa", dev=PARENT, **fields):
    return InterfaceSpec(**{"type": "direct", "source": DirectSource(dev, mode), "vhost": "off", **fields})


def facts(name):
    """All but its operational state, which the kernel makes up its mind about a moment later."""
    (found,) = run_json(f"ip -d link show dev {name}")
    return {key: value for key, value in found.items() if key != "operstate"}


def nodes():
    """That stay: others, who have the same /dev, have theirs for a moment, or were killed."""
    deadline = time.monotonic() + 2
    while True:
        found = [path for path in os.listdir("/dev") if path.startswith(".vhostnet") and path not in STALE]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.01)


STALE = [path for path in os.listdir("/dev") if path.startswith(".vhostnet")]


def address(name=PARENT):
    return facts(name)["address"]


# --- what there is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("queues", [1, 8])
@pytest.mark.parametrize("mode", MODES)
def test_each_mode(engine, no_leaks, mode, queues):
    ip(f"link set {PARENT} mtu 1400")
    with vhostnet.open_nic(wish(mode, queues=queues, mac=MAC, ifname="m0"), engine=engine) as nic:
        found = facts("m0")
        assert (nic.ifname, nic.ifindex, nic.mac, nic.mtu) == ("m0", found["ifindex"], MAC, 1400)
        assert (found["address"], found["mtu"], found["qdisc"], found["link"]) == (MAC, 1400, "noqueue", PARENT)
        info = found["linkinfo"]
        assert (info["info_kind"], info["info_data"]["mode"]) == ("macvtap", MODES[mode])
        assert "UP" in found["flags"]
        assert addrgenmode("m0") == "none"
        assert found["ifalias"].startswith("vhostnet:")
        assert len(nic.tap_fds) == queues
        assert {os.fstat(fd).st_rdev for fd in nic.tap_fds} == {os.fstat(nic.tap_fds[0]).st_rdev}
        assert not any(os.get_inheritable(fd) for fd in nic.fds)
    assert nodes() == []


def test_the_flags_of_each_queue(engine):
    for model, queues, wanted in (("virtio", 2, 0x5102), ("virtio", 1, 0x5002), ("e1000", 1, 0x1002)):
        with vhostnet.open_nic(wish(model=model, queues=queues), engine=engine) as nic:
            for fd in nic.tap_fds:
                answer = fcntl.ioctl(fd, _uapi.TUNGETIFF, bytes(_uapi.IFREQ_FLAGS.size))
                name, flags = _uapi.IFREQ_FLAGS.unpack(answer)
                assert (name.rstrip(b"\0").decode(), flags) == (nic.ifname, wanted)


def test_udev_leaves_the_mac_alone(engine):
    """It counts as set (addr_assign_type 3) from the beginning, and not as the kernel's random one."""
    with vhostnet.open_nic(wish(mac=MAC), engine=engine) as nic:
        assert assign_type(nic.ifname) == 3


def assign_type(name):
    """By a sysfs of this network namespace."""
    command = ["unshare", "--mount", "sh", "-c", 'mount -t sysfs none /sys && cat "/sys/class/net/$0/addr_assign_type"']
    return int(subprocess.run([*command, name], capture_output=True, text=True, check=True).stdout)


def test_a_batch_over_several_parents(engine, no_leaks):
    for number in range(1, 4):
        make_pair(f"p{number}", f"q{number}")
    specs = [wish("bridge", dev=f"p{number % 4}", queues=2) for number in range(100)]
    nics = vhostnet.open_nics(specs, engine=engine)
    assert [facts(nic.ifname)["link"] for nic in nics] == [f"p{number % 4}" for number in range(100)]
    assert len({nic.ifindex for nic in nics}) == 100
    vhostnet.close_nics(nics)
    assert not [name for name in link_names() if name.startswith("vnet")]
    for number in range(1, 4):
        ip(f"link del p{number}")


def test_beside_taps_of_a_bridge(engine, no_leaks):
    ip("link add br0 up type bridge")
    specs = [wish(queues=2), InterfaceSpec(bridge="br0", queues=2, vhost="off"), wish("bridge")]
    nics = vhostnet.open_nics(specs, engine=engine)
    assert [link(nic.ifname)["kind"] for nic in nics] == ["macvtap", "tun", "macvtap"]
    vhostnet.close_nics(nics)
    ip("link del br0")


# --- traffic -----------------------------------------------------------------------------------------------


def frame(to, of, what=b"hello"):
    mac = bytes.fromhex((to + of).replace(":", ""))
    return mac + b"\x88\xb5" + what.ljust(46, b"\0")


def wait_for(read, wanted):
    """What is read until it is that, for a few seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            if read() == wanted:
                return True
        time.sleep(0.001)
    return False


def reader(nic):
    """From whichever queue it comes."""
    for fd in nic.tap_fds:
        os.set_blocking(fd, False)

    def read():
        for fd in nic.tap_fds:
            with contextlib.suppress(BlockingIOError):
                return os.read(fd, 4096)[len(HEADER) :]
        raise BlockingIOError

    return read


@pytest.mark.parametrize("queues", [1, 8])
@pytest.mark.parametrize("mode", MODES)
def test_frames_go_both_ways(engine, mode, queues):
    with (
        vhostnet.open_nic(wish(mode, mac=MAC, queues=queues), engine=engine) as nic,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as peer,
    ):
        peer.bind((PEER, 0x88B5))
        peer.setblocking(False)
        other = address(PEER)
        for number, fd in enumerate(nic.tap_fds):
            out = frame(other, MAC, b"out %d" % number)
            os.write(fd, HEADER + out)
            assert wait_for(lambda: peer.recv(4096), out)
        back = frame(MAC, other, b"in")
        peer.send(back)
        assert wait_for(reader(nic), back)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trusted", [False, True])
def test_a_guest_that_is_trusted_hears_all_multicast(engine, no_leaks, mode, trusted):
    """Its host's stack asks for what is for all nodes, and not for who looks for the guest (RFC 4861).

    Of several of the latter, because macvlan's filter is a hash of 256 values, in which one may look asked for.
    """
    spec = wish(mac=MAC, source=DirectSource(PARENT, mode, trust_guest_rx_filters=trusted))
    with (
        vhostnet.open_nic(spec, engine=engine) as nic,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as peer,
    ):
        assert ("ALLMULTI" in facts(nic.ifname)["flags"]) == trusted
        peer.bind((PEER, 0))
        its_own = [frame(f"33:33:ff:{number:02x}:00:01", address(PEER)) for number in range(4)]
        everybodys = frame("33:33:00:00:00:01", address(PEER))
        for one in (*its_own, everybodys):
            peer.send(one)
        heard, read = [], reader(nic)
        assert wait_for(lambda: heard.append(read()) or heard[-1], everybodys)
        assert (set(its_own) <= set(heard)) == trusted
    assert "ALLMULTI" not in facts(PARENT)["flags"]


@pytest.mark.parametrize(("mode", "heard"), [("bridge", True), ("private", False), ("vepa", False)])
def test_how_two_on_one_link_hear_each_other(engine, mode, heard):
    """The link's own stack may speak meanwhile (RFC 4861): whose frame it was tells, and not that one came."""
    with (
        vhostnet.open_nic(wish(mode, mac=MAC), engine=engine) as one,
        vhostnet.open_nic(wish(mode, mac="52:54:00:00:00:02"), engine=engine) as other,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as peer,
    ):
        peer.bind((PEER, 0))
        sent, later = (frame(other.mac, of) for of in (MAC, address(PEER)))
        os.write(one.tap_fds[0], HEADER + sent)
        time.sleep(0.05)
        peer.send(later)
        read, came = reader(other), []
        assert wait_for(lambda: came.append(read()) or came[-1], sent if heard else later)
        assert (sent in came) == heard


def test_it_is_down_until_it_is_brought_up(engine):
    with vhostnet.open_nic(wish(mac=MAC), engine=engine, up=False) as nic:
        assert not link(nic.ifname)["up"]
        nic.up()
        assert link(nic.ifname)["up"]
        nic.up()


@pytest.mark.parametrize("mode", MODES)
def test_one_that_goes_down_makes_room_for_another(engine, mode):
    """As a guest that migrates has it; in mode passthrough a link carries one alone."""
    with vhostnet.open_nic(wish(mode, mac=MAC), engine=engine) as old:
        before = facts(old.ifname)
        if mode != "passthrough":
            with vhostnet.open_nic(wish(mode, mac=MAC), engine=engine, up=False) as new:
                with pytest.raises(HostError) as caught:
                    new.up()
                assert (caught.value.errno, caught.value.act) == (errno.EADDRINUSE, "UP")
                old.down()
                new.up()
                assert (link(old.ifname)["up"], link(new.ifname)["up"]) == (False, True)
                new.down()
                old.up()
        old.down()
        assert link(PARENT)["up"]
        old.up()
        assert facts(old.ifname) == before


# --- what the host refuses ---------------------------------------------------------------------------------


def refused(engine, spec, **how):
    before = link_names(), open_fds()
    with pytest.raises(HostError) as caught:
        vhostnet.open_nic(spec, engine=engine, **how)
    assert (link_names(), open_fds(), nodes()) == (*before, [])
    return caught.value


def test_a_parent_that_is_not_there(engine):
    error = refused(engine, wish(dev="nowhere"))
    assert isinstance(error, NoSuchLink)
    assert (error.errno, error.act) == (errno.ENODEV, "MACVTAP")
    assert "no link 'nowhere' here" in str(error)
    with pytest.raises(NoSuchLink):
        vhostnet.plan_nics([wish(dev="nowhere")], engine=engine)


def test_a_parent_that_is_a_port(engine):
    ip("link add br0 type bridge")
    ip(f"link set {PARENT} master br0")
    error = refused(engine, wish())
    assert (error.errno, error.act, error.call) == (errno.EBUSY, "MACVTAP", "RTM_NEWLINK")
    assert f"ip link set {PARENT} nomaster" in error.remedy


def test_a_parent_that_carries_none(engine):
    error = refused(engine, wish(dev="lo"))
    assert (error.errno, error.act, error.call) == (errno.EINVAL, "MACVTAP", "RTM_NEWLINK")
    assert "lo carries none" in error.remedy


def test_passthrough_is_alone(engine):
    with vhostnet.open_nic(wish(), engine=engine):
        error = refused(engine, wish("passthrough"))
        assert error.errno == errno.EINVAL
        assert "which must be the first" in error.remedy


def test_a_name_that_is_taken(engine):
    with vhostnet.open_nic(wish(ifname="m0"), engine=engine):
        error = refused(engine, wish(ifname="m0"))
        assert isinstance(error, NameBusy)
        assert [holder.pid for holder in error.holders] == [os.getpid()]
        assert "the name is that of a link of kind 'macvtap'" in str(error)


def test_one_mac_twice_on_one_link(engine):
    with pytest.raises(SpecError, match="asked for twice on link 'p0'"):
        vhostnet.open_nics([wish(mac=MAC), wish(mac=MAC)], engine=engine)
    with vhostnet.open_nic(wish(mac=MAC), engine=engine):
        error = refused(engine, wish(mac=MAC))
        assert (error.errno, error.act) == (errno.EADDRINUSE, "UP")
        assert MAC in error.remedy
    make_pair("p1", "q1")
    with vhostnet.open_nic(wish(mac=MAC), engine=engine), vhostnet.open_nic(wish(mac=MAC, dev="p1"), engine=engine):
        pass


def test_with_others_it_is_all_or_none(engine, no_leaks):
    specs = [wish(queues=2), wish(dev="lo"), InterfaceSpec(type="ethernet", vhost="off")]
    with pytest.raises(HostError):
        vhostnet.open_nics(specs, engine=engine)
    kept = vhostnet.open_nics(specs, engine=engine, on_error="keep")
    assert isinstance(kept[1], HostError)
    vhostnet.close_nics([kept[0], kept[2]])


# --- passthrough -------------------------------------------------------------------------------------------


def test_the_parent_has_the_guests_mac_for_as_long(engine):
    own = address()
    with vhostnet.open_nic(wish("passthrough", mac=MAC), engine=engine):
        assert address() == MAC
    assert address() == own


def test_a_refusal_puts_the_parents_mac_back(engine):
    own = address()
    with pytest.raises(HostError):
        vhostnet.open_nics([wish("passthrough", mac=MAC), wish(dev="lo")], engine=engine)
    assert address() == own


# --- the end -----------------------------------------------------------------------------------------------


def test_what_cannot_change_is_named(engine):
    spec = wish()
    with vhostnet.open_nic(spec, engine=engine) as nic:
        with pytest.raises(SpecError, match="type='bridge' is not for a NIC that is on no bridge"):
            nic.update(InterfaceSpec(bridge="br0"))
        other = replace(spec, source=DirectSource(spec.source.dev, "private"))
        with pytest.raises(SpecError, match="source=.* cannot change while the NIC is there, on no bridge"):
            nic.update(other)


def test_it_is_for_no_pool(engine):
    with pytest.raises(SpecError, match="type='direct' is for no pool"):
        vhostnet.NicPool(wish(), engine=engine)


def test_the_next_qemu(engine):
    with vhostnet.open_nic(wish(queues=4), engine=engine) as nic:
        for fd in nic.tap_fds[1:]:
            fcntl.ioctl(fd, _uapi.TUNSETQUEUE, _uapi.IFREQ_FLAGS.pack(b"", 0x0400))
        nic.reset_queues()
        for fd in nic.tap_fds[1:]:
            with pytest.raises(OSError, match="Invalid argument"):  # it is attached
                fcntl.ioctl(fd, _uapi.TUNSETQUEUE, _uapi.IFREQ_FLAGS.pack(b"", _uapi.IFF_ATTACH_QUEUE))
        nic.reset_queues()


@pytest.mark.parametrize("way", ["close", "close_nics", "in the background"])
def test_it_goes_when_it_is_closed(engine, no_leaks, way):
    nic = vhostnet.open_nic(wish(queues=8), engine=engine)
    if way == "close":
        nic.close()
    else:
        vhostnet.close_nics([nic], wait=way == "close_nics")
    for thread in threading.enumerate():
        if thread.name == "vhostnet-close":
            thread.join()
    assert nic.closed
    assert nic.ifname not in link_names()


def test_many_that_were_opened_one_by_one_go_together(engine, no_leaks, monkeypatch):
    nics = [vhostnet.open_nic(wish(queues=4), engine=engine) for _ in range(28)]
    for nic in nics[:8]:
        nic.close()
    runs = []
    chosen = vhostnet.select_engine(engine)
    monkeypatch.setattr(chosen, "run", lambda program, run=chosen.run: runs.append(len(program.acts)) or run(program))
    vhostnet.close_nics(nics)
    assert runs == [20]


def test_from_another_network_namespace(engine):
    """It is closed where it was made, whatever namespace its closer is in."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    nics = [vhostnet.open_nic(wish(), engine=engine, up=False) for _ in range(3)]
    fds = open_fds()
    names = []

    def elsewhere():
        netns.unshare_net()
        nics[0].up()
        names.append(netns.call_inside(here, link, nics[0].ifname)["up"])
        nics[0].close()
        vhostnet.close_nics(nics[1:])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert names == [True]
    assert not [name for name in link_names() if name.startswith("vnet")]
    assert len(open_fds()) == len(fds) - 2 * 3  # each had a queue, and they share where they were made
    os.close(here)


def test_made_in_another_network_namespace(engine):
    netns.unshare_net()
    make_pair("p7", "q7")
    there = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    netns.unshare_net()
    before = open_fds()
    with vhostnet.open_nic(wish(dev="p7"), engine=engine, netns=there) as nic:
        assert nic.ifname in netns.call_inside(there, link_names)
        assert nic.ifname not in link_names()
    assert netns.call_inside(there, link_names) == ["lo", "p7", "q7"]
    assert open_fds() == before
    os.close(there)


def test_whose_mark_is_another_is_left_alone(engine):
    """Who takes our mark off takes it over."""
    nic = vhostnet.open_nic(wish(ifname="m0"), engine=engine)
    ip("link set m0 alias theirs")
    fds = open_fds()
    nic.close()
    assert "m0" in link_names()
    assert len(open_fds()) == len(fds) - 2


def test_one_that_is_gone_already(engine, no_leaks):
    fds = open_fds()
    nic = vhostnet.open_nic(wish(ifname="m0", queues=3), engine=engine)
    ip("link del m0")
    nic.close()
    assert (nic.closed, open_fds()) == (True, fds)


def test_its_parent_goes(engine):
    nics = [vhostnet.open_nic(wish(queues=3), engine=engine) for _ in range(2)]
    fds = open_fds()
    ip(f"link del {PARENT}")
    nics[0].close()
    vhostnet.close_nics(nics)
    assert len(open_fds()) == len(fds) - 2 * 4  # their queues, and where each was made


def test_a_forked_child_does_not_own_it(engine):
    with vhostnet.open_nic(wish(ifname="m0"), engine=engine) as nic:
        child = os.fork()
        if child == 0:
            os._exit(0 if nic.closed and not [fd for fd in open_fds().values() if "net:[" in fd] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert "m0" in link_names()


KILLED = """
import os, signal, sys, vhostnet
spec = vhostnet.InterfaceSpec(type="direct", source=vhostnet.DirectSource("p0", "passthrough"), ifname="m0",
                              mac="52:54:00:00:00:01", queues=2, vhost="off")
nic = vhostnet.open_nic(spec, engine=sys.argv[1])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_one_whose_process_was_killed_is_found_and_deleted(engine):
    own = address()
    done = subprocess.run([sys.executable, "-c", KILLED, engine], check=False)
    assert done.returncode == -signal.SIGKILL
    (found,) = vhostnet.list_nics()
    assert (found.ifname, found.kind, found.parent, found.holders, found.mark.maker_lives) == (
        *("m0", "macvtap", PARENT, ()),
        False,
    )
    assert address() == MAC
    make_pair("p1", "q1")
    error = refused(engine, wish(dev="p1", ifname="m0"))
    assert "vhostnet delete m0" in error.remedy
    vhostnet.delete_nics(["m0"], engine=engine)
    assert "m0" not in link_names()
    assert address() == own


def test_one_that_somebody_has_open_is_not_deleted(engine):
    with vhostnet.open_nic(wish(ifname="m0"), engine=engine):
        (found,) = vhostnet.list_nics()
        assert [holder.pid for holder in found.holders] == [os.getpid()]
        with pytest.raises(NameBusy, match="end who has it open"):
            vhostnet.delete_nics(["m0"], engine=engine)


def test_one_that_is_to_last(engine, no_leaks):
    """It does anyway; it is left where it is."""
    with vhostnet.open_nic(wish(ifname="m0", queues=2), engine=engine, persist=True):
        pass
    assert "m0" in link_names()
    vhostnet.delete_nics(["m0"], engine=engine)
    with pytest.raises(SpecError, match="owner=0 means nothing to type direct"):
        vhostnet.open_nic(wish(), engine=engine, persist=True, owner=0)


# --- one that is there already: managed='no' ----------------------------------------------------------------


INDEXES = itertools.count(5 * 10**6, 5 * 10**6)  # apart by more than there are pids


@pytest.fixture
def theirs(parent):
    """As a device plugin has it: the link, and its node in /dev, which is the kernel's own where that is a devtmpfs."""
    # Nobody's in another network namespace, nor in the one before, whose end takes the node of that name with it.
    index = next(INDEXES) + os.getpid()
    ip(f"link add link {PARENT} name mine index {index} address 02:00:00:00:00:07 up type macvtap mode bridge")
    node = Path(f"/dev/tap{index}")
    made = not node.exists()
    if made:
        os.mknod(node, 0o20600, device("mine"))
    yield node
    if made:
        node.unlink()


def device(name):
    """By a sysfs of this network namespace."""
    show = f"mount -t sysfs none /sys && cat /sys/class/net/{name}/tap*/dev"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", show], capture_output=True, text=True, check=True)
    return os.makedev(*map(int, done.stdout.split(":")))


def adopting(**fields):
    return InterfaceSpec(**{"type": "ethernet", "managed": False, "ifname": "mine", "vhost": "off", **fields})


@pytest.mark.parametrize("queues", [1, 4])
def test_one_that_is_there_is_taken_as_it_is_and_stays(engine, theirs, no_leaks, queues):
    before = facts("mine")
    with vhostnet.open_nic(adopting(queues=queues), engine=engine) as nic:
        assert (nic.ifindex, nic.mac, nic.mtu) == (before["ifindex"], "02:00:00:00:00:07", 1500)
        assert len(nic.tap_fds) == queues
        fcntl.ioctl(nic.tap_fds[-1], _uapi.TUNSETQUEUE, _uapi.IFREQ_FLAGS.pack(b"", 0x0400))
        nic.reset_queues()
    assert facts("mine") == before


def test_one_that_has_no_node(engine, theirs):
    hidden = theirs.with_name(".hidden")
    theirs.rename(hidden)
    try:
        error = refused_adopting(engine)
        assert (error.errno, error.call) == (errno.ENOENT, "open")
        assert f"mknod {theirs} c" in error.remedy
        ip("tuntap add other mode tap")
        os.mknod(theirs, 0o20600, os.makedev(10, 200))  # of something else
        assert refused_adopting(engine).errno in (errno.EINVAL, errno.ESTALE)
    finally:
        hidden.rename(theirs)


def refused_adopting(engine):
    before = link_names()
    with pytest.raises(HostError) as caught:
        vhostnet.open_nic(adopting(), engine=engine)
    assert link_names() == before
    return caught.value


# --- the command -------------------------------------------------------------------------------------------


def command(*words, stdin=""):
    done = subprocess.run(
        [sys.executable, "-m", "vhostnet", *words], input=stdin, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


XML = f"""<interface type='direct'><source dev='{PARENT}' mode='bridge'/><target dev='m0'/><mac address='{MAC}'/>
<model type='virtio'/><driver name='qemu' queues='2'/></interface>"""
ADDRESS = """
import fcntl, re, sys
fd = int(re.search("fds=([0-9]+)", " ".join(sys.argv))[1])
print(fcntl.ioctl(fd, 0x8927, bytes(40))[18:24].hex(":"))  # SIOCGIFHWADDR
"""


@pytest.mark.slow
def test_the_command():
    code, shown, _ = command("plan", "-", stdin=XML)
    assert code == 0
    assert shown.splitlines()[0].split() == [
        *("0", "MACVTAP", "m0", "2", "queues", "bridge", "on", PARENT, "tap", "no_pi", "vnet_hdr", "multi_queue"),
        *("mac", MAC),
    ]
    assert "note: m0: a macvtap stays when nobody has it open any more: vhostnet delete m0" in shown
    code, shown, _ = command("argv", "-", "--tap-fds", "8:9", stdin=XML)
    assert shown.startswith("-netdev tap,fds=8:9,id=hostnet0 ")
    _, shown, _ = command("doctor", "-", stdin=XML.replace(PARENT, "nowhere"))
    assert "no link 'nowhere' here" in shown
    code, shown, said = command("exec", "-", "--", sys.executable, "-c", ADDRESS, stdin=XML)
    assert (code, said, MAC in shown) == (0, "", True)
    assert "m0" not in link_names()
    assert command("create", "-", stdin=XML)[0] == 0
    code, shown, _ = command("list")
    assert shown.split()[:4] == ["m0", PARENT, "UP", "queues"]
    assert shown.split()[-1] == "macvtap"
    code, _, said = command("exec", "-", "--", "true", stdin=XML)
    assert (code, "vhostnet delete m0" in said) == (5, True)
    assert command("delete", "m0") == (0, "", "")
    assert "m0" not in link_names()


@pytest.mark.slow
@pytest.mark.qemu
@pytest.mark.parametrize("queues", [1, 8])
def test_qemu_has_it_and_is_gone_again(engine, queues):
    """Two after another on the same fds."""
    spec = wish("bridge", queues=queues, mac=MAC)
    qemu = ["qemu-system-x86_64", "-S", "-M", "pc", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none"]
    with vhostnet.open_nic(spec, engine=engine) as nic:
        for _ in range(2):
            network = ask_qemu([*qemu, "-qmp", "stdio", *nic.qemu_argv()], nic.fds, [NETWORK])[0]
            assert f"macaddr={MAC}" in network
            assert network.count("type=tap") == queues
            nic.reset_queues()


@pytest.mark.vhost
def test_vhost_net_takes_it(engine, no_leaks, monkeypatch):
    monkeypatch.setattr(vhostnet.host.opening, "_selftested", False)
    with vhostnet.open_nic(wish(queues=4, vhost="require"), engine=engine, selftest=True) as nic:
        assert [timing.act for timing in nic.timings] == ["MACVTAP", "VHOST_OPEN", "SELFTEST", "QDISC", "UP"]
        assert len(nic.vhost_fds) == 4
        stale = nic.vhost_fds
        for fd in stale:
            fcntl.ioctl(fd, _uapi.VHOST_SET_OWNER)
        nic.reset_queues()
        for fd in nic.vhost_fds:
            fcntl.ioctl(fd, _uapi.VHOST_SET_OWNER)


# --- who may -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("left_out", "call"), [("net_admin", "RTM_NEWLINK"), ("mknod", "mknod")])
def test_a_capability_that_is_missing(engine, left_out, call):
    done = subprocess.run(
        ["setpriv", f"--bounding-set=-{left_out}", "--inh-caps=-all", sys.executable, "-c", WITHOUT, engine],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["NotPermitted", "MACVTAP", call, f"CAP_{left_out.upper()}"], done.stderr
    assert not [name for name in link_names() if name.startswith("vnet")]


WITHOUT = """
import re, sys, vhostnet
spec = vhostnet.InterfaceSpec(type="direct", source=vhostnet.DirectSource("p0"), vhost="off")
try:
    vhostnet.open_nic(spec, engine=sys.argv[1])
except vhostnet.HostError as error:
    print(type(error).__name__, error.act, error.call, re.search("CAP_[A-Z_]+", error.remedy)[0])
"""
