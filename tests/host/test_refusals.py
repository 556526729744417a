"""What the host refuses: the error says what, where and what to do, on both engines alike, and nothing is left."""

import dataclasses
import errno
import os
import resource
import socket
import stat
import subprocess
import sys
import threading

import pytest
from conftest import BRIDGE, state
from kernel import ip, link

import vhostnet
from vhostnet import InterfaceSpec
from vhostnet.engines import _uapi
from vhostnet.others import bridge as bridges
from vhostnet.program.parts import Act, NicRow, Op, TunFlag
from vhostnet.program.program import Program

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("net")]


def refused(kind, *specs, **how):
    """Open *specs*, see it refused with *kind* and nothing left, and return the error."""
    before = state()
    with pytest.raises(kind) as caught:
        vhostnet.open_nics(specs, **how)
    assert state() == before
    return caught.value


def spec(**fields):
    return InterfaceSpec(**{"bridge": BRIDGE, "queues": 2, "vhost": "off", **fields})


def test_no_such_bridge(engine):
    error = refused(vhostnet.NoSuchBridge, spec(bridge="nowhere", ifname="mine"), engine=engine)
    assert (error.errno, error.act, error.call, error.ifname) == (errno.ENODEV, "LINK", "SIOCGIFINDEX", "mine")
    assert "'nowhere'" in str(error)
    assert "ip link add nowhere up type bridge" in error.remedy


def test_the_bridge_of_a_network_is_libvirts_to_make(engine):
    """`ip link add virbr0` would make one without DHCP, DNS or NAT."""
    network = {"type": "network", "network": "my lab", "bridge": "virbr7"}
    for wish in (lambda: refused(vhostnet.NoSuchBridge, spec(**network), engine=engine), lambda: planned(network)):
        assert wish().remedy == "it is network 'my lab''s: virsh net-start 'my lab'"
    error = refused(vhostnet.NoSuchBridge, spec(bridge="virbr0"), engine=engine)
    assert error.remedy == "libvirt makes it with its network: virsh net-list --all, virsh net-start NETWORK"


def planned(fields):
    with pytest.raises(vhostnet.HostError) as caught:
        vhostnet.plan_nics([spec(**fields)])
    return caught.value


def test_a_persistent_tap_that_nobody_has_open(engine, bridge):
    ip("tuntap add mine mode tap multi_queue vnet_hdr")
    error = refused(vhostnet.NameBusy, spec(ifname="mine"), engine=engine)
    assert "nobody has it open and it is persistent: ip link del mine" in error.remedy
    ip("link del mine")
    with vhostnet.open_nic(spec(ifname="mine"), engine=engine):
        error = refused(vhostnet.NameBusy, spec(ifname="mine"), engine=engine)
        assert "ip link del" not in error.remedy


@pytest.mark.vhost  # the kernels of the guests have Open vSwitch, too
def test_a_bridge_of_open_vswitch_is_called_that(engine):
    make_datapath("br-int")
    error = refused(vhostnet.NotABridge, spec(bridge="br-int", ifname="mine"), engine=engine)
    assert error.strerror == "'br-int' is an Open vSwitch bridge, and not a Linux bridge"
    assert "<virtualport type='openvswitch'/>" in error.remedy
    assert planned({"bridge": "br-int"}).remedy == error.remedy


def make_datapath(name):
    """A datapath and its local port, without a daemon (linux/openvswitch.h: OVS_DP_CMD_NEW)."""
    from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, genlmsg
    from pyroute2.netlink.generic import GenericNetlinkSocket

    class Datapath(genlmsg):
        fields = (*genlmsg.fields, ("dp_ifindex", "I"))
        nla_map = (("OVS_DP_ATTR_UNSPEC", "none"), ("OVS_DP_ATTR_NAME", "asciiz"), ("OVS_DP_ATTR_UPCALL_PID", "uint32"))

    subprocess.run(["modprobe", "openvswitch"], check=True)
    with GenericNetlinkSocket() as generic:
        generic.bind("ovs_datapath", Datapath)
        message = Datapath()
        message["cmd"], message["version"] = 1, 2
        message["attrs"] = [("OVS_DP_ATTR_NAME", name), ("OVS_DP_ATTR_UPCALL_PID", 0)]
        generic.nlm_request(message, msg_type=generic.prid, msg_flags=NLM_F_REQUEST | NLM_F_ACK)


def test_not_a_bridge(engine):
    bridges.make_bridge("br0")
    error = refused(vhostnet.NotABridge, spec(bridge="br0"), spec(bridge="lo", ifname="mine"), engine=engine)
    assert (error.errno, error.ifname) == (errno.EOPNOTSUPP, "mine")
    assert "'lo'" in str(error)


def test_a_name_that_is_taken(engine, bridge):
    with vhostnet.open_nic(spec(ifname="mine"), engine=engine):
        error = refused(vhostnet.NameBusy, spec(ifname="mine"), engine=engine)
    assert (error.errno, error.act, error.call, error.ifname, error.queue) == (
        errno.EBUSY,
        "TAP_OPEN",
        "TUNSETIFF",
        "mine",
        0,
    )


def test_a_name_that_is_somebodys_altname(engine, bridge):
    ip(f"link property add dev {BRIDGE} altname mine")
    assert refused(vhostnet.NameBusy, spec(ifname="mine"), engine=engine).ifname == "mine"


def test_who_holds_it_is_named(engine, bridge):
    with vhostnet.open_nic(spec(ifname="mine"), engine=engine) as nic:
        holder = subprocess.Popen(["sleep", "60"], pass_fds=nic.fds)
        error = refused(vhostnet.NameBusy, spec(ifname="mine"), engine=engine)
        assert {held.pid for held in error.holders} == {os.getpid(), holder.pid}
        assert f"'sleep' (pid {holder.pid})" in str(error)
        holder.kill()
        holder.wait()


def test_a_holder_of_that_name_in_another_namespace_is_none(engine, bridge):
    ip("tuntap add dev mine mode tap vnet_hdr multi_queue")
    thread = threading.Thread(target=hold_elsewhere, args=("mine", held := []))
    thread.start()
    thread.join()
    error = refused(vhostnet.NameBusy, spec(ifname="mine"), engine=engine)
    assert (type(error), error.holders) == (vhostnet.NameBusy, ())
    held[0].close()


def hold_elsewhere(ifname, held):
    vhostnet.process.netns.unshare_net()
    held.append(vhostnet.open_nic(InterfaceSpec(type="ethernet", ifname=ifname, queues=2, vhost="off")))


@pytest.mark.parametrize(
    ("made", "found"),
    [
        ("mode tap", ("tap", "no_pi")),
        ("mode tun pi", ("tun",)),
        ("mode tap vnet_hdr", ("tap", "no_pi", "vnet_hdr")),
        ("mode tap multi_queue", ("tap", "no_pi", "multi_queue")),
    ],
)
def test_a_tap_of_other_flags(engine, bridge, made, found):
    ip(f"tuntap add dev mine {made}")
    error = refused(vhostnet.FlagMismatch, spec(ifname="mine"), engine=engine)
    assert (error.errno, error.act, error.call, error.queue) == (errno.EBUSY, "TAP_OPEN", "TUNSETIFF", 0)
    assert error.asked == ("tap", "no_pi", "vnet_hdr", "multi_queue")
    assert error.found == found
    assert f"a {' '.join(found)} device" in str(error)


def test_a_name_of_something_else(engine, bridge):
    error = refused(vhostnet.NameBusy, spec(ifname=BRIDGE), engine=engine)
    assert (type(error), error.ifname, error.holders) == (vhostnet.NameBusy, BRIDGE, ())
    assert "a link of kind 'bridge'" in str(error)
    assert "kind 'hardware'" in str(refused(vhostnet.NameBusy, spec(ifname="lo"), engine=engine))


def test_one_bad_nic_leaves_none_of_the_batch(engine, bridge):
    ip("link add mine type bridge")
    error = refused(vhostnet.NameBusy, spec(), spec(queues=1), spec(ifname="mine"), spec(), engine=engine)
    assert error.ifname == "mine"
    assert ip(f"link show master {BRIDGE}") == ""


def seen_links(listener):
    """(ifindex, flags) of every link message since the listener was bound."""
    seen = []
    while True:
        try:
            data = listener.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return seen
        _, _, index, flags, _ = _uapi.IFINFOMSG.unpack_from(data, _uapi.NLMSGHDR.size)
        seen.append((index, flags))


def test_a_failed_nic_was_never_up(engine, bridge):
    """The bridge goes between the look-up and the join: MAC, MTU and qdisc are set by then, and UP never is."""
    program = vhostnet.plan_nics([spec(ifname="doomed")], engine=engine)
    ip(f"link del {BRIDGE}")
    before = state()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as listener:
        listener.bind((0, 1))  # RTMGRP_LINK
        result = vhostnet.select_engine(engine).run(program)
        seen = seen_links(listener)
    (failure,) = result.failures
    assert (failure.act, failure.result.errno, failure.result.call) == (2, errno.EINVAL, "RTM_NEWLINK")
    assert seen
    assert not [index for index, flags in seen if flags & 1]
    assert state() == before


# --- resources -------------------------------------------------------------------------------------------


def limited(allowed, function):
    """Call *function* while exactly *allowed* more fds can be opened, whatever numbers are free."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = [os.dup(0)]
    while fillers[-1] < 64:  # the limit is on the number: leave no holes below it
        fillers.append(os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + allowed, hard))
    try:
        return function()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)


@pytest.mark.parametrize("allowed", range(6))
def test_too_few_fds_are_noticed_before_anything_is_made(engine, bridge, allowed):
    """The socket comes first, then two queues of two NICs; the sixth fd is enough."""
    program = vhostnet.plan_nics([spec(ifname="a"), spec(ifname="b")], engine=engine)
    chosen = vhostnet.select_engine(engine)
    before = state()
    result = limited(allowed, lambda: chosen.run(program))
    if allowed == 5:
        assert result.failures == ()
        chosen.close([nic.fds for nic in result.nics])
    else:
        ((act, outcome),) = result.failures
        call = "RLIMIT_NOFILE" if allowed else "socket"
        assert (outcome.errno, act, outcome.call, outcome.queue) == (errno.EMFILE, 0, call, None)
        assert result.nics == ()
    assert state() == before


@pytest.mark.parametrize("allowed", range(1, 5))
def test_out_of_fds_at_every_open(engine, bridge, allowed):
    """Who keeps what succeeds is not stopped before: the first NIC has its fds, or its error says where they ended."""
    program = vhostnet.plan_nics([spec(ifname="a"), spec(ifname="b", queues=3)], engine=engine)
    program = dataclasses.replace(program, keep=True)
    chosen = vhostnet.select_engine(engine)
    before = state()
    result = limited(allowed, lambda: chosen.run(program))
    opened = allowed - 1  # the socket
    refused = {0: opened, 1: 0} if opened < 2 else {1: opened - 2}
    assert {program.acts[act].nic: outcome.queue for act, outcome in result.failures} == refused
    assert {(outcome.errno, outcome.call) for _, outcome in result.failures} == {(errno.EMFILE, "open")}
    assert [nic is None for nic in result.nics] == [row in refused for row in range(2)]
    chosen.close([nic.fds for nic in result.nics if nic])
    assert state() == before


def test_out_of_fds_names_the_limit(engine, bridge):
    vhostnet.plan_nics([spec()], engine=engine)  # the features are asked for
    before = state()

    def work():
        with pytest.raises(vhostnet.ResourceExhausted) as caught:
            vhostnet.open_nic(spec(queues=8), engine=engine)
        return caught.value

    error = limited(4, work)
    assert (error.errno, error.act, error.queue) == (errno.EMFILE, "TAP_OPEN", None)
    assert "8 fds are needed, and " in str(error)
    assert (error.needed, error.allowed) == (8, 4)
    assert "ulimit -n" in error.remedy
    assert state() == before


def test_out_of_fds_at_the_look_up(engine, bridge):
    before = state()

    def work():
        with pytest.raises(vhostnet.ResourceExhausted) as caught:
            vhostnet.plan_nics([spec()], engine=engine)
        return caught.value

    assert limited(0, work).act == "DESCRIBE"
    assert state() == before


# --- devices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind", "code"),
    [
        ("/nowhere/tun", vhostnet.Unsupported, errno.ENOENT),
        ("/dev/null", vhostnet.Unsupported, errno.ENOTTY),
        ("/dev", vhostnet.HostError, errno.EISDIR),
    ],
)
def test_a_tap_path_that_is_none(engine, bridge, path, kind, code):
    error = refused(kind, spec(tap_path=path), engine=engine)
    assert (error.errno, error.act, error.queue) == (code, "TAP_OPEN", 0)


@pytest.mark.slow  # a guest's TMPDIR has no devices
def test_a_node_without_a_driver(engine, bridge, tmp_path):
    os.mknod(tmp_path / "tun", 0o600 | stat.S_IFCHR, os.makedev(240, 77))  # a major for local use
    error = refused(vhostnet.Unsupported, spec(tap_path=str(tmp_path / "tun")), engine=engine)
    assert (error.errno, error.call, error.queue) == (errno.ENXIO, "open", 0)
    assert "modprobe tun" in error.remedy


@pytest.fixture
def duds(tmp_path):
    """Paths that are no vhost-net, each in its own way."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("")
    controller, terminal = os.openpty()
    yield {
        "absent": (str(tmp_path / "absent"), errno.ENOENT),
        "null": ("/dev/null", errno.ENOTTY),
        "fifo": (str(tmp_path / "fifo"), errno.ENOTTY),
        "file": (str(tmp_path / "file"), errno.ENOTTY),
        "directory": (str(tmp_path), errno.EISDIR),
        "tty": (os.ttyname(terminal), errno.ENOTTY),
        "tun": ("/dev/net/tun", errno.EBADFD),
    }
    os.close(controller)
    os.close(terminal)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("which", ["absent", "null", "fifo", "file", "directory", "tty", "tun"])
def test_a_vhost_path_that_is_none_is_refused_without_blocking(engine, bridge, duds, which):
    path, code = duds[which]
    error = refused(vhostnet.VhostUnavailable, spec(vhost="require", vhost_path=path), engine=engine)
    assert (error.errno, error.act, error.queue) == (code, "VHOST_OPEN", 0)
    assert path in str(error)
    assert "modprobe vhost_net" in error.remedy


def run_acts(engine, row, *acts):
    """Run acts on one row by themselves: (errno, act, call) of what was refused, and nothing is left."""
    program = Program((row,), tuple(Act(op, 0) for op in acts))
    before = state()
    result = vhostnet.select_engine(engine).run(program)
    assert state() == before
    ((number, outcome),) = result.failures
    return outcome.errno, acts[number], outcome.call


@pytest.mark.timeout(20)
@pytest.mark.parametrize("which", ["absent", "null", "fifo", "file", "directory", "tty", "tun"])
def test_a_selftest_of_a_path_that_is_none(engine, duds, which):
    path, code = duds[which]
    row = NicRow("mine", 2, TunFlag.TAP | TunFlag.MULTI_QUEUE, "/dev/net/tun", path)
    call = "open" if which in ("absent", "directory") else "VHOST_GET_FEATURES"
    assert run_acts(engine, row, Op.TAP_OPEN, Op.SELFTEST) == (code, Op.SELFTEST, call)


def test_a_name_the_kernel_makes_another_of(engine):
    """It would give the device a number: then the name that was asked for is nobody's, and the device goes."""
    row = NicRow("mine%d", 1, TunFlag.TAP, "/dev/net/tun", "")
    assert run_acts(engine, row, Op.TAP_OPEN) == (errno.ESTALE, Op.TAP_OPEN, "RTM_GETLINK")


TIGHT = """
import pathlib, resource, sys, vhostnet
from vhostnet.program.parts import Act, NicRow, Op
from vhostnet.program.program import Program
row = NicRow("mine", 1, 2, "/dev/net/tun", "/dev/null")
program = Program((row,), (Act(Op.TAP_OPEN, 0), Act(Op.SELFTEST, 0)))
engine = vhostnet.select_engine(sys.argv[1])
engine.run(program)
spare = bytearray(100_000)  # of the heap, for the engine; a ring would have to be mapped
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), resource.RLIM_INFINITY))
del spare
result = engine.run(program)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(*(failure.result.call for failure in result.failures))
"""


def test_a_selftest_says_what_was_wrong_first(engine):
    """Not that there is no memory for a ring, when there is no vhost-net to give it to."""
    command = [sys.executable, "-c", TIGHT, engine]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["VHOST_GET_FEATURES"]


@pytest.mark.parametrize("which", ["absent", "null", "fifo", "tty"])
def test_under_auto_the_nic_comes_without_and_says_why(engine, bridge, duds, which):
    path, _ = duds[which]
    before = state()
    with vhostnet.open_nic(spec(vhost="auto", vhost_path=path), engine=engine) as nic:
        assert not nic.vhost
        assert path in nic.vhost.why
        assert nic.vhost_fds == ()
        assert link(nic.ifname)["up"]
    assert state() == before


def test_in_a_batch_each_nic_has_its_own_reason(engine, bridge, duds):
    specs = [
        spec(vhost="auto", vhost_path=duds["null"][0]),
        spec(vhost="off"),
        spec(vhost="auto", vhost_path=duds["fifo"][0]),
    ]
    nics = vhostnet.open_nics(specs, engine=engine)
    reasons = [nic.vhost.why for nic in nics]
    for nic in nics:
        nic.close()
    assert "/dev/null is not a vhost-net device" in reasons[0]
    assert "asked for without" in reasons[1]
    assert "fifo is not a vhost-net device" in reasons[2]


def test_the_callers_word_comes_before_the_xmls(engine, bridge, duds, seed):
    path, _ = duds["absent"]
    fields = {"queues": 2, "vhost_path": path, "vhost": "require"}
    with vhostnet.open_nic(spec(**fields), engine=engine, vhost="off") as nic:
        assert not nic.vhost
    refused(vhostnet.VhostUnavailable, spec(**{**fields, "vhost": "off"}), engine=engine, vhost="require")


# --- privileges ------------------------------------------------------------------------------------------

UNPRIVILEGED = """
import sys, vhostnet
spec = vhostnet.InterfaceSpec(type="ethernet", vhost="off")
try:
    vhostnet.open_nic(spec, engine=sys.argv[1])
except PermissionError as error:
    print(type(error).__name__, error.act, error.call, "CAP_NET_ADMIN" in str(error))
"""


def test_without_the_capability_it_is_named(engine):
    """Root without CAP_NET_ADMIN: the device opens, TUNSETIFF is refused."""
    command = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-all", sys.executable, "-c", UNPRIVILEGED, engine]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["NotPermitted", "TAP_OPEN", "TUNSETIFF", "True"], done.stderr


# --- arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"vhost": "maybe"}, {"qdisc": "fq"}, {"on_error": "ignore"}])
def test_arguments_that_are_none(how):
    error = refused(vhostnet.SpecError, spec(), **how)
    assert error.attribute in how


def test_an_engine_that_is_none():
    with pytest.raises(ValueError, match="rust"):
        vhostnet.open_nics([], engine="rust")


# --- the room off the hot path ---------------------------------------------------------------------------


def test_bridges_are_made_listed_and_refused(engine):
    index = bridges.make_bridge("br7", mtu=4000)
    with vhostnet.open_nic(spec(bridge="br7"), engine=engine):
        (found,) = bridges.list_bridges()
    assert (found.name, found.ifindex, found.mtu, found.ports, found.up) == ("br7", index, 4000, 1, True)
    with pytest.raises(vhostnet.HostError) as caught:
        bridges.make_bridge("br7")
    assert (caught.value.errno, caught.value.ifname) == (errno.EEXIST, "br7")
