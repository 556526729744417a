"""Into a real QEMU that runs, and out again: nothing of it is left, whatever is refused, and whenever."""

import array
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from conftest import BRIDGE, state
from machine import Q35, inventory, is_there, running
from switch import switch

import vhostnet
from vhostnet import (
    HostError,
    InterfaceSpec,
    PasstSource,
    PciAddress,
    QemuGone,
    QemuRefused,
    SpecError,
    UserSource,
    VdpaSource,
    VhostUserSource,
    ZpciAddress,
)
from vhostnet.qemu.hotplug import Given, plugging
from vhostnet.qmp import Monitor, plug, unplug

pytestmark = [pytest.mark.tap, pytest.mark.qemu, pytest.mark.usefixtures("bridge")]


def wish(queues=8, **fields):
    return InterfaceSpec(bridge=BRIDGE, vhost="off", queues=queues, mac="52:54:00:00:00:07", **fields)


@pytest.fixture
def machine():
    with running("-S", *Q35) as found:
        yield found


def test_fifty_times(machine, engine):
    """No fd is left on either side."""
    before = state()
    with vhostnet.open_nic(wish(), engine=engine) as nic, Monitor(machine.socket) as monitor:
        ours, theirs = len(os.listdir("/proc/self/fd")), machine.fds()
        for _ in range(50):
            assert monitor.plug(nic, bus="pci.1").queues == 8
            assert machine.fds() == theirs + 8
            monitor.unplug("net0")
            nic.reset_queues()
        assert (len(os.listdir("/proc/self/fd")), machine.fds()) == (ours, theirs)
    assert state() == before


def test_what_qemu_granted_is_read_back(machine):
    with vhostnet.open_nic(wish(rx_queue_size=512, alias="ua-web")) as nic, Monitor(machine.socket) as monitor:
        plugged = monitor.plug(nic, bus="pci.2")
        assert plugged == ("ua-web", "hostua-web", "52:54:00:00:00:07", 8, 512, 256, False, ())
        assert "52:54:00:00:00:07" in inventory_of(monitor)


def inventory_of(monitor):
    return str(monitor.execute("human-monitor-command", {"command-line": "info network"}))


def test_what_it_did_not_grant_is_said():
    """Pure: a QEMU before 8.0.4 makes a ring smaller, and our own arguments never ask for such a one."""
    steps = plugging(wish(queues=1, rx_queue_size=1024), Given(tap_fds=(3,)))
    answers = {"query-version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "qom-list": [], "qom-get": 256}
    step = next(steps)
    with pytest.raises(StopIteration) as ended:
        while True:
            step = steps.send(answers.get(step.name, "hostnet0: index=0"))
    assert ended.value.value.notes == ("rx_queue_size: 1024 was asked for, QEMU has 256",)


def test_ids_are_the_next_that_are_free(machine):
    with Monitor(machine.socket) as monitor, vhostnet.open_nic(wish()) as one, vhostnet.open_nic(wish()) as two:
        assert [monitor.plug(one, bus="pci.1").alias, monitor.plug(two, bus="pci.2").alias] == ["net0", "net1"]


def test_the_nic_is_qemus_when_ours_is_closed(machine):
    nic = vhostnet.open_nic(wish())
    with Monitor(machine.socket) as monitor:
        monitor.plug(nic, bus="pci.1")
        nic.close()
        assert is_there(nic.ifname)
        monitor.unplug("net0")
    assert not is_there(nic.ifname)


def test_a_link_that_is_down(machine):
    told = []

    class Listening(Raw):
        def execute(self, command, arguments):
            told.append((command, arguments))
            return super().execute(command, arguments)

    with closing(Listening(machine.socket)) as client, vhostnet.open_nic(wish(link_state="down")) as nic:
        plug(client, nic, bus="pci.1")
    assert ("set_link", {"name": "net0", "up": False}) in told


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "says", "remedy"),
    [
        ({"bus": "pcie.0"}, "does not support hotplugging", "pcie-root-port"),
        ({"bus": "nowhere"}, "not found", "info qtree"),
        ({"bus": "pci.1", "alias": "pci.2"}, "has a device of that id", "--alias"),
    ],
)
def test_what_qemu_refuses(machine, place, says, remedy):
    before = inventory(machine)
    with vhostnet.open_nic(wish()) as nic:
        ours = state()
        with Monitor(machine.socket) as monitor, pytest.raises(QemuRefused, match=says) as caught:
            monitor.plug(nic, **place)
        assert state() == ours
    assert remedy in caught.value.remedy
    assert caught.value.undoing is None
    assert inventory(machine) == before


def test_a_place_that_is_taken(machine):
    with Monitor(machine.socket) as monitor, vhostnet.open_nic(wish()) as nic, vhostnet.open_nic(wish()) as other:
        monitor.plug(nic, bus="pci.1")
        before = machine.fds()
        with pytest.raises(QemuRefused, match="slot") as caught:
            monitor.plug(other, bus="pci.1", addr="0x0")
        assert "--addr" in caught.value.remedy
        assert machine.fds() == before


def test_a_nic_that_a_qemu_has(machine):
    """It would end there and then, and take its guest along."""
    with Monitor(machine.socket) as monitor, vhostnet.open_nic(wish()) as nic:
        monitor.plug(nic, bus="pci.1")
        with pytest.raises(HostError, match="reset_queues") as caught:
            monitor.plug(nic, bus="pci.2")
        assert (caught.value.act, caught.value.queue) == ("ATTACH", 1)
        monitor.unplug("net0")
        nic.reset_queues()
        monitor.plug(nic, bus="pci.2")
    assert machine.process.poll() is None


def test_what_cannot_be_meant_is_not_begun(machine):
    before = inventory(machine)
    with vhostnet.open_nic(wish()) as nic, Monitor(machine.socket) as monitor:
        for wrong in ({"alias": "0net"}, {"bus": "a,b=c"}, {"addr": "here"}):
            with pytest.raises(SpecError):
                monitor.plug(nic, **wrong)
        with pytest.raises(SpecError, match="zpci"):
            spec = InterfaceSpec(type="user", source=UserSource(), address=PciAddress(zpci=ZpciAddress(uid=1, fid=0)))
            monitor.plug(spec)
        with pytest.raises(vhostnet.NicClosed):
            nic.close()
            monitor.plug(nic)
    assert inventory(machine) == before


def test_a_guest_that_does_not_let_go():
    """Without a guest nobody answers ACPI; the NIC stays, and it can be asked again."""
    with running("-S", "-M", "pc") as machine, Monitor(machine.socket) as monitor, vhostnet.open_nic(wish()) as nic:
        monitor.plug(nic, alias="net7")
        for _ in range(2):
            with pytest.raises(QemuRefused, match=r"not let go of it in 0.2 s") as caught:
                monitor.unplug("net7", timeout=0.2)
            assert (caught.value.command, caught.value.alias) == ("device_del", "net7")
        assert "net7" in inventory_of(monitor)
        with pytest.raises(QemuRefused, match="net9"):
            monitor.unplug("net9")


# --- whatever fails, and whenever ------------------------------------------------------------------------


class Raw:
    """A Client of somebody else's: forty lines, and no library. Step *fatal* is answered by *error*."""

    def __init__(self, path, fatal=None, error=None, late=False):
        self.fatal, self.error, self.late, self.step = fatal, error, late, 0
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.lines = self.socket.makefile("r")
        self.lines.readline()
        self._execute("qmp_capabilities", {})

    def _execute(self, command, arguments):
        self.socket.sendall(json.dumps({"execute": command, "arguments": dict(arguments)}).encode())
        for line in self.lines:
            answer = json.loads(line)
            if "error" in answer:
                told = answer["error"]
                raise QemuRefused(told["desc"], command=command, error_class=told["class"])
            if "return" in answer:
                return answer["return"]
        raise QemuGone("nobody there")

    def execute(self, command, arguments):
        self.step += 1
        if self.step == self.fatal:
            if self.late:
                self._execute(command, arguments)
            raise self.error
        return self._execute(command, arguments)

    def send_fd_scm(self, fd):
        self.socket.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])

    def close(self):
        self.lines.close()
        self.socket.close()


@pytest.mark.parametrize(
    ("error", "late"),
    [
        pytest.param(lambda: QemuRefused("no", command="any"), False, id="refused"),
        pytest.param(KeyboardInterrupt, False, id="interrupted before QEMU has it"),
        pytest.param(KeyboardInterrupt, True, id="interrupted when QEMU has done it"),
    ],
)
def test_whatever_step_fails_nothing_is_left(machine, error, late):
    before, failed = inventory(machine), 0
    with vhostnet.open_nic(wish(queues=2, link_state="down")) as nic:
        ours = state()
        for step in range(1, 100):
            client = Raw(machine.socket, step, error(), late)
            try:
                plug(client, nic, bus="pci.1", timeout=5)
            except (QemuRefused, KeyboardInterrupt):
                failed += 1
            else:
                client.fatal = None
                unplug(client, "net0", timeout=5)
                break
            finally:
                client.close()
            nic.reset_queues()
            assert inventory(machine) == before, step
            assert state() == ours, step
    # version, ids, two fds, netdev, device, link, two rings, the queues
    assert failed == 10
    assert inventory(machine) == before


def test_a_qemu_that_ends_meanwhile(machine):
    with vhostnet.open_nic(wish()) as nic:
        ours = len(os.listdir("/proc/self/fd"))
        with Monitor(machine.socket) as monitor:
            machine.process.kill()
            with pytest.raises(QemuGone):
                monitor.plug(nic, bus="pci.1")
        assert len(os.listdir("/proc/self/fd")) == ours
    with pytest.raises(QemuGone, match="no QEMU answers"):
        Monitor(machine.socket)


def test_a_qemu_that_is_stopped(machine):
    """It never answers."""
    with vhostnet.open_nic(wish()) as nic, Monitor(machine.socket, timeout=3) as monitor:
        machine.process.send_signal(signal.SIGSTOP)
        with pytest.raises(QemuGone, match=r"not answered in 3 s"):
            monitor.plug(nic, bus="pci.1")


# --- NICs without a TAP ----------------------------------------------------------------------------------


def test_a_switch_of_vhost_user(machine, tmp_path):
    path = str(tmp_path / "switch")
    spec = InterfaceSpec(type="vhostuser", source=VhostUserSource(path, reconnect=1), queues=2)
    before = inventory(machine)
    with switch(path), Monitor(machine.socket) as monitor:
        plugged = monitor.plug(spec, bus="pci.1")
        assert plugged.queues == 2
        assert "charnet0" in str(monitor.execute("query-chardev"))
        monitor.unplug("net0")
    assert inventory(machine) == before


def test_one_that_is_qemus_own(machine):
    before = inventory(machine)
    with Monitor(machine.socket) as monitor:
        monitor.plug(InterfaceSpec(type="user", source=UserSource()), bus="pci.1")
        monitor.unplug("net0")
    assert inventory(machine) == before


def test_a_node_that_is_no_vdpa_device():
    """QEMU has its fd in a set by then, which goes again: of a machine that runs, a QEMU before 9.0 says."""
    spec = InterfaceSpec(type="vdpa", source=VdpaSource("/dev/null"))
    with running(*Q35) as machine:
        before = inventory(machine)
        with Monitor(machine.socket) as monitor, pytest.raises(QemuRefused) as caught:
            monitor.plug(spec, bus="pci.1")
        assert caught.value.command == "netdev_add"
        assert inventory(machine) == before


def test_a_passt_that_is_not_there(machine):
    before = inventory(machine)
    with Monitor(machine.socket) as monitor, pytest.raises(SpecError, match="passt --socket"):
        monitor.plug(InterfaceSpec(type="user", source=PasstSource()), bus="pci.1")
    assert inventory(machine) == before


# --- the commands ----------------------------------------------------------------------------------------


def run(*words, code=0):
    done = subprocess.run([sys.executable, "-m", "vhostnet", *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "nic.xml"
    inside = f"<source bridge='{BRIDGE}'/><model type='virtio'/><driver name='qemu' queues='4'/><mac address='{{}}'/>"
    path.write_text(f"<interface type='bridge'>{inside.format('52:54:00:00:00:09')}</interface>")
    return str(path)


def test_plug_and_unplug(machine, file):
    before = inventory(machine)
    said, _ = run("plug", machine.socket, file, "--bus", "pci.1")
    assert said == "net0  52:54:00:00:00:09  queues 4  rx 256  tx 256  vhost off\n"
    (nic,) = vhostnet.list_nics()
    assert [holder.pid for holder in nic.holders] == [machine.process.pid]
    (told,) = json.loads(run("plug", "-j", machine.socket, file, "--bus", "pci.2")[0])
    assert (told["alias"], told["queues"]) == ("net1", 4)
    assert run("unplug", machine.socket, "net0", "net1") == ("", "")
    assert inventory(machine) == before
    assert vhostnet.list_nics() == ()


def test_plug_is_all_or_nothing(machine, file, tmp_path):
    """The second has no place, and the first comes out again."""
    text, both = Path(file).read_text(), tmp_path / "both.xml"
    place = "<alias name='{}'/><address type='pci' bus='{}' slot='0'/></interface>"
    both.write_text(
        "<devices>"
        + text.replace("</interface>", place.format("ua-a", 1))
        + text.replace("00:09", "00:0a").replace("</interface>", place.format("ua-b", 9))
        + "</devices>"
    )
    before = inventory(machine)
    _, error = run("plug", machine.socket, str(both), code=1)
    assert "QEMU, device_add of ua-b" in error
    assert inventory(machine) == before
    assert vhostnet.list_nics() == ()


def test_what_is_wrong_with_the_command(machine, file, tmp_path):
    assert "no QEMU answers" in run("plug", str(tmp_path / "nobody"), file, code=1)[1]
    _, error = run("plug", "-j", machine.socket, file, "--bus", "pcie.0", code=1)
    assert json.loads(error)["error"] == "QemuRefused"
    assert json.loads(error)["remedy"]
    assert run("unplug", machine.socket, "net5", code=1)[1].startswith("vhostnet: QEMU, device_del of net5")
    assert vhostnet.list_nics() == ()
