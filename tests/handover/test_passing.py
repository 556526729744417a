"""NICs to another process: it has them, or this one has, whatever dies when."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from conftest import BRIDGE, ROOT, lacks, link_names, open_fds

import vhostnet
from vhostnet.handover import wire
from vhostnet.handover.passing import recv_nics, send_nics
from vhostnet.handover.proof import proven, told_of
from vhostnet.process import netns
from vhostnet.values import replace

pytestmark = pytest.mark.tap

# The other end: NICs that it has are open for as long as it lives, and it says how many those are.
OTHER = """
import os, signal, socket, sys
import vhostnet
from vhostnet.handover import wire
from vhostnet.handover.passing import recv_nics, send_nics

role, how, step, engine = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
calls = 0

def failing(call):
    def called(*arguments):
        global calls
        calls += 1
        if calls == step and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if calls == step and how == "interrupted":
            raise KeyboardInterrupt
        done = call(*arguments)
        if calls == step and how == "killed after":
            os.kill(os.getpid(), signal.SIGKILL)
        if calls == step and how == "interrupted after":
            raise KeyboardInterrupt
        return done
    return called

wire.send_some, wire.receive_some = failing(wire.send_some), failing(wire.receive_some)
sock = socket.socket(fileno=int(sys.argv[5]))
nics = []
try:
    if role == "sender":
        specs = [vhostnet.InterfaceSpec(bridge="vbr2525476", queues=2, vhost="off") for _ in range(2)]
        nics = vhostnet.open_nics(specs, engine=engine)
        print("made", flush=True)
        send_nics(sock, nics)
    else:
        nics = recv_nics(sock)
except (vhostnet.HandoverError, KeyboardInterrupt) as error:
    print(type(error).__name__, end=" ")
print("has", sum(not nic.closed for nic in nics), "calls", calls, flush=True)
if how.startswith("interrupted"):
    sock.close()  # as who is interrupted ends
sys.stdin.read()
vhostnet.close_nics(nics)
"""


def wish(**fields):
    return vhostnet.InterfaceSpec(bridge=BRIDGE, **{"queues": 2, "vhost": "off", **fields})


@contextlib.contextmanager
def other(role, how="", step=0, engine="auto"):
    """The other process, and this one's end of the socket to it."""
    ours, its = socket.socketpair()
    with ours, its:
        command = [sys.executable, "-c", OTHER, role, how, str(step), engine, str(its.fileno())]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, pass_fds=[its.fileno()], cwd=ROOT, text=True, **pipes) as process:
            its.close()
            if role == "sender":
                assert process.stdout.readline() == "made\n"
            try:
                yield process, ours
            finally:
                process.stdin.close()
                process.wait()


def has(process):
    """How many NICs the other process has, and how many calls it has made; none when it was killed."""
    line = process.stdout.readline().split()
    return (int(line[line.index("has") + 1]), int(line[-1])) if line else (0, 0)


def there():
    return [name for name in link_names() if name.startswith("vnet")]


def both(nics, **how):
    """Through this process: what came."""
    one, another = socket.socketpair()
    got = []
    with one, another:
        receiver = threading.Thread(target=lambda: got.extend(recv_nics(another, **how)))
        receiver.start()
        try:
            send_nics(one, nics)
        finally:
            receiver.join()
    return got


def test_they_are_whole(engine, bridge, no_leaks):
    specs = [wish(), wish(queues=8, mac="52:54:00:00:00:08", link_state="down"), wish(queues=1, isolated=True)]
    nics = vhostnet.open_nics(specs, engine=engine)
    before = {nic.ifname: (nic.ifindex, nic.spec, nic.mac, nic.mtu, nic.vhost) for nic in nics}
    got = both(nics)
    assert all(nic.closed for nic in nics)
    assert {nic.ifname: (nic.ifindex, nic.spec, nic.mac, nic.mtu, nic.vhost) for nic in got} == before
    assert {nic.ifname: nic.attached for nic in vhostnet.list_nics()} == {nic.ifname: nic.spec.queues for nic in got}
    got[1].update(replace(got[1].spec, isolated=True))
    got[1].reset_queues()
    vhostnet.close_nics(got)


def test_one_that_is_down_comes_up_there(bridge, no_leaks):
    (got,) = both([vhostnet.open_nic(wish(), up=False)])
    assert not vhostnet.list_nics()[0].up
    got.up()
    assert vhostnet.list_nics()[0].up
    got.close()


def test_one_of_256_queues(bridge, no_leaks):
    """More fds than go with one message."""
    (got,) = both([vhostnet.open_nic(wish(queues=256))])
    assert len(got.fds) == 256
    got.close()


def test_a_message_of_fds_is_one_that_musl_sends():
    """Its sendmsg() has room for 1024 bytes of control messages, and ENOMEM for more."""
    assert socket.CMSG_SPACE(4 * wire.MAX_FDS) == 1024


def test_why_there_is_no_vhost_goes_along(bridge, no_leaks):
    if not lacks("vhost"):
        pytest.skip("it has vhost-net")
    nic = vhostnet.open_nic(wish(vhost="auto"))
    before = nic.vhost
    (got,) = both([nic])
    assert got.vhost == before
    assert "/dev/vhost-net" in before.why
    got.close()


def test_a_macvtap_is_deleted_by_who_has_it(net, no_leaks):
    subprocess.run(["ip", "link", "add", "parent0", "up", "type", "veth", "peer", "parent1"], check=True)
    spec = vhostnet.InterfaceSpec(type="direct", source=vhostnet.DirectSource("parent0", "bridge"), vhost="off")
    (got,) = both([vhostnet.open_nic(spec)])
    assert got.ifname in link_names()
    assert got.needs_closing
    got.close()
    assert got.ifname not in link_names()
    subprocess.run(["ip", "link", "del", "parent0"], check=True)


def test_in_another_namespace(bridge, no_leaks):
    """The receiver finds it where it is."""
    with open(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net") as there:
        nic = vhostnet.open_nic(wish())
        got = []

        def elsewhere():
            netns.unshare_net()
            got.extend(both([nic]))
            got[0].reset_queues()
            assert link_names() == ["lo"]

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert os.path.samestat(os.fstat(there.fileno()), os.stat("/proc/thread-self/ns/net"))
    assert got[0].ifname in link_names()
    got[0].close()


# --- whatever dies when ----------------------------------------------------------------------------------

HOWS = ("killed", "killed after", "interrupted", "interrupted after")


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("role", ["sender", "receiver"])
def test_there_is_one_owner(bridge, no_leaks, role, how):
    """At each call of the other end: who says that it has them has them, and nobody else."""
    completed = 0
    for step in range(1, 12):
        with other(role, how, step) as (process, ours):
            nics = vhostnet.open_nics([wish(), wish()]) if role == "receiver" else []
            with contextlib.suppress(vhostnet.HandoverError):
                if role == "receiver":
                    send_nics(ours, nics)
                else:
                    nics = recv_nics(ours)
            its, calls = has(process)
            mine = sum(not nic.closed for nic in nics)
            if calls == 0:
                process.wait()
            assert (mine, its) in ((2, 0), (0, 2), (0, 0)), (step, mine, its)
            assert (mine, its) != (0, 0) or how.startswith("killed") or role == "receiver", step
            assert len(there()) == mine + its, step
            completed += calls != 0 and calls < step
        vhostnet.close_nics(nics)
        assert there() == []
        if completed:
            break
    assert completed, "there are more steps than were tried"


def test_a_receiver_that_does_not_answer(bridge, no_leaks):
    """It is stopped: the sender keeps them, and the receiver, when it goes on, is told."""
    nics = vhostnet.open_nics([wish(), wish()])
    with other("receiver") as (process, ours):
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(vhostnet.HandoverError, match="longer than 0.2 s"):
            send_nics(ours, nics, timeout=0.2)
        os.kill(process.pid, signal.SIGCONT)
        assert has(process)[0] == 0
    assert len(there()) == 2
    vhostnet.close_nics(nics)


def test_a_sender_that_says_nothing(no_leaks):
    ours, its = socket.socketpair()
    with ours, its, pytest.raises(vhostnet.HandoverError, match="longer than 0.1 s"):
        recv_nics(ours, timeout=0.1)


def test_a_sender_that_goes(no_leaks):
    ours, its = socket.socketpair()
    its.close()
    with ours, pytest.raises(vhostnet.HandoverError, match="has gone"):
        recv_nics(ours)


def test_over_another_socket(bridge, no_leaks):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, vhostnet.open_nic(wish()) as nic:
        with pytest.raises(vhostnet.HandoverError, match="SOCK_DGRAM"):
            send_nics(sock, [nic])
        assert not nic.closed


def test_one_that_is_closed(bridge, no_leaks):
    nics = vhostnet.open_nics([wish(), wish()])
    nics[1].close()
    ours, its = socket.socketpair()
    with ours, its, pytest.raises(vhostnet.NicClosed):
        send_nics(ours, nics)
    assert not nics[0].closed
    nics[0].close()


# --- nothing is believed ---------------------------------------------------------------------------------


def lies(nic, another):
    """What is said, and what is given, each with one thing wrong; and a word of the answer."""
    told, fds = told_of(nic), list(nic.fds)
    yield {**told, "ifname": another.ifname}, fds, "is one of"
    yield {**told, "ifname": 7}, fds, "ifname is 7"
    yield {**told, "ifindex": told["ifindex"] + 1}, fds, "ifindex"
    yield {**told, "mark": another.mark}, fds, "mark"
    yield {**told, "tap": 1}, fds, "2 fds came of 1 queues"
    yield told, fds[:1], "1 fds came"
    yield told, [fds[0], another.tap_fds[0]], f"is one of {another.ifname}"
    yield {**told, "spec": {**told["spec"], "queues": 1}, "tap": 1}, fds, "2 fds came of 1"
    yield {**told, "vhost": 2}, [*fds, *fds], "as vhost-net"
    yield {key: value for key, value in told.items() if key != "up"}, fds, "up is None"
    yield {**told, "spec": {**told["spec"], "bridge": "a b"}}, fds, "bridge"
    yield {**told, "spec": None}, fds, "spec is None"


def test_lies_are_seen(bridge, no_leaks):
    nic, another = vhostnet.open_nics([wish(), wish(queues=1)])
    with nic, another, open("/dev/null") as null:
        for told, fds, word in lies(nic, another):
            with pytest.raises(vhostnet.VhostnetError, match=word):
                proven(told, fds)
        for wrong in (null.fileno(), os.open("/dev/net/tun", os.O_RDWR)):
            with pytest.raises(vhostnet.HandoverError, match="is no TAP"):
                proven(told_of(nic), [nic.fds[0], wrong])
        os.close(wrong)


def test_what_came_of_a_lie_is_closed(bridge, no_leaks):
    """In a message, with fds, that is refused: the sender is told why, and both ends have what they had."""
    nic = vhostnet.open_nic(wish())
    ours, its = socket.socketpair()
    with ours, its, nic:
        channel = wire.Channel(ours, 1)
        channel.send({"nics": 1})
        channel.send({**told_of(nic), "ifindex": 1}, nic.fds)
        before = open_fds()
        with pytest.raises(vhostnet.HandoverError, match="ifindex"):
            recv_nics(its)
        assert open_fds() == before
        assert "ifindex" in channel.receive().said["refused"]


@pytest.mark.parametrize(
    "sent",
    [
        b"7\0",
        b"nonsense\0",
        b"{\0",
        b"[" * 100_000 + b"\0",
        b"{}\0",
        b'{"nics": "2"}\0',
        b'{"nics": 1}\0{}\0',
        b"\xff\0",
    ],
    ids=lambda sent: repr(sent[:12]),
)
def test_nonsense(no_leaks, sent):
    ours, its = socket.socketpair()
    with ours, its, open("/dev/null") as null:
        socket.send_fds(ours, [sent], [null.fileno()] * 3)
        with pytest.raises(vhostnet.VhostnetError):
            recv_nics(its, timeout=0.2)


def test_too_much(no_leaks):
    ours, its = socket.socketpair()
    with ours, its:
        writer = threading.Thread(target=_flood, args=[ours])
        writer.start()
        with pytest.raises(vhostnet.HandoverError, match="4194304 bytes"):
            recv_nics(its)
        its.close()
        writer.join()


def _flood(sock):
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(b"x" * 65536)
