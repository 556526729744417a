"""A real QEMU and the least that a passt can be, a socket that listens: it is called, and gets the guest's frames."""

import json
import socket
import struct
import subprocess
import sys
from contextlib import contextmanager

import pytest
from switch import SET_VRING_CALL, switch

import vhostnet
from vhostnet import InterfaceSpec, PasstSource
from vhostnet.commands.demo import ask_qemu
from vhostnet.commands.doctor import qemu_version

pytestmark = pytest.mark.qemu

QEMU = ["qemu-system-x86_64", "-M", "pc", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none"]
STOPPED = [*QEMU, "-S", "-qmp", "stdio"]
NETWORK = ("human-monitor-command", {"command-line": "info network"})
MAC = "52:54:00:00:00:07"


@contextmanager
def listening(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(30)
        yield listener


@contextmanager
def running(command):
    """Until we have seen enough of it, or it did not come."""
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.terminate()


def answers(command, listener, questions):
    """Of a QEMU that has called: from 8.0 on it does so beside all else, and may have quit before."""
    lines = [("qmp_capabilities", {}), *questions, ("quit", {})]
    script = "".join(json.dumps({"execute": name, "arguments": told}) + "\n" for name, told in lines)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            with listener.accept()[0]:
                said, _ = process.communicate(script, timeout=60)
        finally:
            process.kill()
    replies = [json.loads(line) for line in said.splitlines()]
    return [reply["return"] for reply in replies if "return" in reply][1:-1]


def first_frame(connection):
    """Each has its length in front, in 32 bits of the network's order: QEMU's docs, of -netdev stream."""
    connection.settimeout(60)
    (length,) = struct.unpack("!I", connection.recv(4, socket.MSG_WAITALL))
    return connection.recv(length, socket.MSG_WAITALL)


def from_the_file(tmp_path, kind, inside, path, command):
    file = tmp_path / "vm.xml"
    file.write_text(f"<interface type='{kind}'><mac address='{MAC}'/><backend type='passt'/>{inside}</interface>")
    return [sys.executable, "-m", "vhostnet", "exec", str(file), "--passt", path, "--", *command]


@pytest.mark.parametrize("dialect", ["classic", "keyval", "json"])
def test_it_starts_on_a_socket(tmp_path, dialect):
    path = str(tmp_path / "a,server=on.sock")
    spec = InterfaceSpec(type="user", source=PasstSource(reconnect=None), mtu=9000)
    with listening(path) as listener:
        argv = vhostnet.qemu_argv(spec, passt_socket=path, dialect=dialect)
        questions = [NETWORK, ("qom-get", {"path": "/machine/peripheral/net0", "property": "host_mtu"})]
        network, mtu = answers([*STOPPED, *argv], listener, questions)
    assert f"macaddr={spec.mac}" in network
    assert "type=stream" in network
    assert mtu == 9000


@pytest.mark.parametrize("model", ["virtio", "rtl8139"])
def test_the_guests_frames_come_out_at_the_socket_that_exec_is_given(tmp_path, model):
    """The guest is the card's boot ROM, which asks for an address."""
    path = str(tmp_path / "passt.sock")
    command = from_the_file(tmp_path, "user", f"<model type='{model}'/><boot order='1'/>", path, QEMU)
    with listening(path) as listener, running(command):
        connection, _ = listener.accept()
        with connection:
            frame = first_frame(connection)
    assert frame[6:12].hex(":") == MAC


@pytest.mark.parametrize("kind", ["user", "vhostuser"])
def test_exec_says_reconnect_as_this_qemu_knows_it(tmp_path, kind):
    path = str(tmp_path / "passt.sock")
    command = from_the_file(tmp_path, kind, "<model type='virtio'/>", path, STOPPED)
    if kind == "user":
        with listening(path) as listener:
            assert "type=stream" in answers(command, listener, [NETWORK])[0]
    else:
        with switch(path) as asked:
            assert "type=vhost-user" in ask_qemu(command, (), [NETWORK])[0]
        assert len({payload[0] for request, payload in asked if request == SET_VRING_CALL}) == 2


def test_a_passt_that_has_ended_is_called_again_by_a_qemu_that_can(tmp_path):
    path = str(tmp_path / "passt.sock")
    version = qemu_version(QEMU[0])
    dialect = "json" if version >= (9, 2, 0) else "classic"
    spec = InterfaceSpec(type="user", source=PasstSource(reconnect=1))
    argv = vhostnet.qemu_argv(spec, passt_socket=path, dialect=dialect)
    with listening(path) as listener:
        if version < (8, 0, 0):
            with pytest.raises(RuntimeError, match="reconnect"):
                ask_qemu([*STOPPED, *argv], (), [NETWORK])
            return
        with running([*QEMU, "-S", *argv]):
            for _ in range(2):
                listener.accept()[0].close()
