"""Clients that mean no good, or know no better: what the broker does with them, and that the others do not notice."""

import contextlib
import json
import os
import random
import socket
import struct
import threading
import time

import pytest
from brokers import POLICY, until
from conftest import BRIDGE

import vhostnet
from vhostnet.broker import connection, server

pytestmark = pytest.mark.tap

INTERFACE = "io.vhostnet.Broker"
SPEC = {"bridge": BRIDGE, "vhost": "off"}


def wish(**fields):
    return vhostnet.InterfaceSpec(**{"bridge": BRIDGE, "vhost": "off", **fields})


def links():
    return [name for _, name in socket.if_nameindex() if name.startswith(("vnet", "vnp"))]


@contextlib.contextmanager
def raw(broker):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(broker.path)
        sock.settimeout(30)
        yield sock


def said(method, parameters=None, **more):
    return json.dumps({"method": method, "parameters": parameters or {}, **more}).encode() + b"\0"


def answer(sock):
    """The next reply, and its fds closed."""
    text = b""
    while not text.endswith(b"\0"):
        data, fds, _, _ = socket.recv_fds(sock, 65536, 253)
        for fd in fds:
            os.close(fd)
        if not data:
            return None
        text += data
    return json.loads(text.split(b"\0")[0])


# --- what is not as it should be -------------------------------------------------------------------------

WRONG = [
    (said("io.vhostnet.Nobody.Open"), "org.varlink.service.InterfaceNotFound"),
    (said("Open"), "org.varlink.service.InterfaceNotFound"),
    (said(f"{INTERFACE}.Nothing"), "org.varlink.service.MethodNotFound"),
    (b'{"method": 7}\0', "org.varlink.service.InterfaceNotFound"),
    (b"{}\0", "org.varlink.service.InterfaceNotFound"),
    (said("org.varlink.service.GetInterfaceDescription", {"interface": "x"}), "org.varlink.service.InterfaceNotFound"),
    (said(f"{INTERFACE}.Open"), f"{INTERFACE}.Unmeant"),
    (b'{"method": "io.vhostnet.Broker.Open", "parameters": [1]}\0', f"{INTERFACE}.Unmeant"),
    (said(f"{INTERFACE}.Open", {"specs": []}), f"{INTERFACE}.Unmeant"),
    (said(f"{INTERFACE}.Open", {"specs": [7]}), f"{INTERFACE}.Unmeant"),
    (said(f"{INTERFACE}.Open", {"specs": [SPEC], "xml": "<interface/>"}), f"{INTERFACE}.Unmeant"),
    (said(f"{INTERFACE}.Open", {"specs": [SPEC], "vhost": "maybe"}), f"{INTERFACE}.Unmeant"),
    (said(f"{INTERFACE}.Open", {"specs": [SPEC], "qdisc": ["noqueue"]}), f"{INTERFACE}.Unmeant"),
    (said(f"{INTERFACE}.Open", {"specs": [SPEC], "up": 1}), f"{INTERFACE}.Unmeant"),
    (said(f"{INTERFACE}.Open", {"specs": [SPEC, SPEC]}), "org.varlink.service.ExpectedMore"),
    (said(f"{INTERFACE}.Open", {"xml": "<interface"}), f"{INTERFACE}.Unmeant"),
    (said(f"{INTERFACE}.Open", {"xml": "<!DOCTYPE x><interface/>"}), f"{INTERFACE}.Unmeant"),
    (said(f"{INTERFACE}.Close", {"specs": [None]}), f"{INTERFACE}.Unmeant"),
    (said(f"{INTERFACE}.Update", {"was": SPEC, "spec": SPEC}), f"{INTERFACE}.Unmeant"),
    (said(f"{INTERFACE}.SetUp", {"spec": SPEC}), f"{INTERFACE}.Unmeant"),
    (said(f"{INTERFACE}.OpenVhost", {"path": "/dev/mem", "count": 1}), f"{INTERFACE}.Forbidden"),
    (said(f"{INTERFACE}.OpenVhost", {"path": "/dev/vhost-net", "count": 10**9}), f"{INTERFACE}.Forbidden"),
    (said(f"{INTERFACE}.OpenVhost", {"path": "/dev/vhost-net", "count": True}), f"{INTERFACE}.Unmeant"),
    (said(f"{INTERFACE}.MakePool", {"spec": SPEC, "size": 0}), f"{INTERFACE}.Unmeant"),
    (said(f"{INTERFACE}.MakePool", {"spec": SPEC, "size": 10**9}), f"{INTERFACE}.Forbidden"),
    (said(f"{INTERFACE}.MakePool", {"spec": SPEC, "size": 2, "low": "x"}), f"{INTERFACE}.Unmeant"),
    (said(f"{INTERFACE}.Take"), f"{INTERFACE}.Unmeant"),
]


def test_what_is_wrong_is_said(broker, net_):
    """And the connection goes on."""
    with raw(broker) as sock:
        for request, error in WRONG:
            sock.sendall(request)
            found = answer(sock)
            assert found["error"] == error, (request, found)
        sock.sendall(said("org.varlink.service.GetInfo"))
        assert answer(sock)["parameters"]["interfaces"] == ["org.varlink.service", INTERFACE]
    assert links() == []


@pytest.mark.parametrize("nonsense", [b"x\0", b"7\0", b"[]\0", b"\0", b"\xff\xfe\0", b"[" * 200_000 + b"\0"])
def test_what_is_no_call_ends_the_connection(broker, net_, nonsense):
    with raw(broker) as sock, open("/dev/null") as null:
        with contextlib.suppress(OSError):
            socket.send_fds(sock, [nonsense], [null.fileno()] * 7)
        with contextlib.suppress(ConnectionResetError):
            assert answer(sock) is None


def test_a_call_that_has_no_end(broker, net_):
    with raw(broker) as sock, pytest.raises(OSError):
        for _ in range(2 * connection.MAX_REQUEST // 65536):
            sock.sendall(b"x" * 65536)
            time.sleep(0.001)


def test_more_fds_than_a_call_may_have(broker, net_):
    before = broker.fds()
    with raw(broker) as sock, open("/dev/null") as null, contextlib.suppress(OSError):
        for _ in range(8):
            socket.send_fds(sock, [b" "], [null.fileno()] * 253)
        assert answer(sock) is None
    until(lambda: broker.fds() == before)


def test_many_calls_at_once(broker, net_):
    """They are answered in their order, and others in between."""
    with raw(broker) as sock:
        sock.sendall(b"".join(said(f"{INTERFACE}.Nothing{number}") for number in range(1000)))
        net_.open_nic(wish()).close()
        text = b""
        while text.count(b"\0") < 1000:
            text += sock.recv(65536)
        found = [json.loads(one)["parameters"]["method"] for one in text.split(b"\0")[:-1]]
        assert found == [f"{INTERFACE}.Nothing{number}" for number in range(1000)]


def test_oneway_is_not_answered(broker, net_):
    """Nor is there a NIC that nobody has."""
    with raw(broker) as sock:
        sock.sendall(said(f"{INTERFACE}.Open", {"specs": [SPEC]}, oneway=True) + said(f"{INTERFACE}.Nothing"))
        assert answer(sock)["error"] == "org.varlink.service.MethodNotFound"
    until(lambda: links() == [])


# --- who holds others up ---------------------------------------------------------------------------------


def takes(net, rounds=50):
    """The middle of how long a NIC takes, in seconds."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        nic = net.open_nic(wish())
        found.append(time.perf_counter() - start)
        net.close_nics([nic])
    return sorted(found)[rounds // 2]


@contextlib.contextmanager
def half_calls(broker):
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(raw(broker)).sendall(b'{"method": "')
        yield


@contextlib.contextmanager
def half_closed(broker):
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            sock = stack.enter_context(raw(broker))
            sock.sendall(said(f"{INTERFACE}.GetStatus"))
            sock.shutdown(socket.SHUT_WR)
        yield


@contextlib.contextmanager
def never_reading(broker):
    """Replies that nobody takes: the broker stops listening to who does that."""
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(raw(broker))
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.send(said("org.varlink.service.GetInterfaceDescription", {"interface": INTERFACE}))
        yield


@contextlib.contextmanager
def flooding(broker):
    """As much as the socket takes, all the time."""
    over = threading.Event()

    def flood():
        with raw(broker) as sock:
            sock.settimeout(0.1)
            while not over.is_set():
                with contextlib.suppress(OSError):
                    sock.sendall(said(f"{INTERFACE}.Open", {"specs": [{**SPEC, "bridge": "br7"}]}))
                    sock.recv(65536, socket.MSG_DONTWAIT)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("hostile", [half_calls, half_closed, never_reading, flooding], ids=lambda one: one.__name__)
def test_others_do_not_notice(broker, net_, hostile):
    """They are served, all of them; how fast the benchmark says, and here no more than that nobody waits for it."""
    quiet = takes(net_)
    with hostile(broker):
        assert takes(net_) < quiet + 0.1
    assert net_.status()["made"] == 100


@pytest.mark.slow
def test_who_is_late_is_dropped(broker, net_):
    with raw(broker) as sock:
        sock.sendall(b'{"method": "')
        start = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        assert connection.PATIENCE - 1 < time.monotonic() - start < connection.PATIENCE + 5


def test_all_halves_together(bridge, monkeypatch, tmp_path):
    """Where they are too much, whoever says the longest goes."""
    monkeypatch.setattr(server, "MAX_HALF", 100_000)
    path, policy = str(tmp_path / "broker"), tmp_path / "policy.toml"
    policy.write_text(POLICY)
    serving_ = server.Server([server.listening(path)], str(policy))
    thread = threading.Thread(target=serving_.run)
    thread.start()
    try:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]
            for number, sock in enumerate(socks, 1):
                sock.connect(path)
                sock.sendall(b"x" * (number * 30_000))
            socks[2].settimeout(20)
            with contextlib.suppress(ConnectionResetError):
                assert socks[2].recv(1) == b""
            with pytest.raises(BlockingIOError):
                socks[0].recv(1, socket.MSG_DONTWAIT)
    finally:
        serving_.stop()
        thread.join()


# --- many ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_thousand_clients(broker, net_):
    """Who wait at the same time: all are served, by few Programs, and one that is hostile does not harm them."""
    with contextlib.ExitStack() as stack:
        for hostile in (half_calls, never_reading):
            stack.enter_context(hostile(broker))
        socks = [stack.enter_context(raw(broker)) for _ in range(1000)]
        before = net_.status()["programs"]
        for sock in socks:
            sock.sendall(said(f"{INTERFACE}.Open", {"specs": [SPEC]}))
        replies = []
        held = []
        for sock in socks:
            data, fds, _, _ = socket.recv_fds(sock, 65536, 253)
            while not data.endswith(b"\0"):
                data += sock.recv(65536)
            replies.append(json.loads(data[:-1]))
            held += fds
        assert all("nic" in reply["parameters"] for reply in replies)
        assert len(held) == len(links()) == 1000
        assert net_.status()["programs"] - before < 500
        nics = net_.list_nics()
        assert len({nic["mark"] for nic in nics}) == 1000
        for start in range(0, 1000, 250):
            socket.send_fds(socks[0], [said(f"{INTERFACE}.Close")], held[start : start + 250])
            assert answer(socks[0]) == {"parameters": {}}
        assert links() == []
        for fd in held:
            os.close(fd)


REQUESTS = 100_000
PARAMETERS = ("specs", "spec", "was", "xml", "path", "count", "size", "up", "keep")
METHODS = ("Open", "Close", "Update", "SetUp", "OpenVhost", "MakePool", "Take", "GetPool", "GetStatus", "Nothing")


def fuzzed(chance):
    """A call with something wrong, now and then with nothing wrong; and how many fds go along."""
    kind = chance.random()
    method = f"{INTERFACE}.{chance.choice(METHODS)}"
    parameters = {
        name: value(chance) for name in ("specs", "spec", "was", "xml", "path", "count", "size", "up", "keep")
    }
    request = {"method": method, "parameters": {name: parameters[name] for name in chance.sample(list(parameters), 4)}}
    if kind < 0.1:
        request[chance.choice(("method", "parameters", "more", "oneway", "other"))] = value(chance)
    text = json.dumps(request).encode()
    if 0.1 <= kind < 0.2:
        at = chance.randrange(len(text))
        text = text[:at] + struct.pack("B", chance.randrange(1, 256)) + text[at + chance.randrange(3) :]
    return text + b"\0", chance.choice((0, 0, 0, 1, 2))


def value(chance):
    choices = (
        None,
        True,
        0,
        -1,
        2**63,
        1.5,
        "",
        "x",
        "/dev/vhost-net",
        BRIDGE,
        [],
        {},
        [{}],
        SPEC,
        [SPEC],
        [{"bridge": 7}],
    )
    return chance.choice(choices)


def send_fuzzed(broker, count, seed):
    """*count* calls, one after another; a new connection after each that was hung up on, and now and then anyway."""
    chance = random.Random(seed)
    sock = None
    with open("/dev/null") as null:
        for _ in range(count):
            if sock is None:
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(broker.path)
                sock.settimeout(30)
            text, fds = fuzzed(chance)
            try:
                socket.send_fds(sock, [text], [null.fileno()] * fds)
                gone = b'"oneway": true' not in text and answer(sock) is None
            except OSError:
                gone = True
            if gone or chance.random() < 0.01:
                sock.close()
                sock = None
    if sock:
        sock.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_fuzzed_calls_leave_it_as_it_was(broker, net_):
    """A hundred thousand of them: it has no fd and no NIC more than before, and goes on making them."""
    for _ in range(2):
        net_.status()  # once it has said so again, it has seen that whoever waited for its socket has gone
    before = broker.fds()
    send_fuzzed(broker, REQUESTS, seed=7)
    until(lambda: broker.fds() == before)
    assert links() == []
    nic = net_.open_nic(wish())
    assert links() == [nic.ifname]
    net_.close_nics([nic])
    assert links() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_fuzzed_calls_leave_no_memory_behind(broker):
    """Half as many, of which a fifth is for it to grow to its size; then 50 bytes each are seen."""
    send_fuzzed(broker, REQUESTS // 10, seed=8)
    early = broker.memory()
    send_fuzzed(broker, REQUESTS * 4 // 10, seed=9)
    assert broker.memory() < early + 2048
