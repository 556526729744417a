"""A real QEMU and the least that a vhost-user switch can be: it starts on our arguments, and asks as it was told."""

import sys

import pytest
from switch import SET_VRING_CALL, switch

import vhostnet
from vhostnet import InterfaceSpec, VhostUserSource
from vhostnet.commands.demo import ask_qemu
from vhostnet.commands.doctor import qemu_version

pytestmark = pytest.mark.qemu

QEMU = ["qemu-system-x86_64", "-S", "-M", "pc", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none"]
NETWORK = ("human-monitor-command", {"command-line": "info network"})


@pytest.mark.parametrize("dialect", ["classic", "keyval", "json"])
@pytest.mark.parametrize("queues", [1, 4])
def test_it_starts_on_a_switch(tmp_path, dialect, queues):
    path = str(tmp_path / "a,server=on.sock")
    spec = InterfaceSpec(type="vhostuser", source=VhostUserSource(path), queues=queues, tx_queue_size=1024)
    with switch(path) as asked:
        argv = vhostnet.qemu_argv(spec, dialect=dialect)
        questions = [NETWORK, ("qom-get", {"path": "/machine/peripheral/net0", "property": "tx_queue_size"})]
        network, ring = ask_qemu([*QEMU, "-qmp", "stdio", *argv], (), questions)
    assert f"macaddr={spec.mac}" in network
    assert network.count("type=vhost-user") == queues
    assert ring == 1024  # which a TAP does not get
    calls = {payload[0] for request, payload in asked if request == SET_VRING_CALL}
    assert len(calls) == 2 * queues  # a ring each way


@pytest.mark.parametrize("dialect", ["classic", "keyval"])
def test_what_an_older_qemu_calls_reconnect(tmp_path, dialect):
    path = str(tmp_path / "b.sock")
    spec = InterfaceSpec(type="vhostuser", source=VhostUserSource(path, reconnect=1))
    command = [*QEMU, "-qmp", "stdio", *vhostnet.qemu_argv(spec, dialect=dialect)]
    with switch(path):
        if (qemu_version(QEMU[0]) or (0,)) < (11,):
            assert "type=vhost-user" in ask_qemu(command, (), [NETWORK])[0]
        else:  # it has reconnect-ms alone, which json says
            with pytest.raises(RuntimeError):
                ask_qemu(command, (), [NETWORK])


def test_exec_says_reconnect_as_this_qemu_knows_it(tmp_path):
    path, file = str(tmp_path / "b.sock"), tmp_path / "vm.xml"
    source = f"<source type='unix' path='{path}' mode='client'><reconnect enabled='yes' timeout='1'/></source>"
    file.write_text(f"<interface type='vhostuser'>{source}<model type='virtio'/></interface>")
    command = [sys.executable, "-m", "vhostnet", "exec", str(file), "--", *QEMU, "-qmp", "stdio"]
    with switch(path):
        assert "type=vhost-user" in ask_qemu(command, (), [NETWORK])[0]
