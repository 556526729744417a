"""A guest that migrates between two QEMUs, and so from one of our NICs to another, while it is pinged all the time."""

import re
import socket
import struct
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest
from conftest import BRIDGE, ROOT, lacks, state
from frames import BROADCAST
from kernel import ip, link, run_json
from machine import is_there, running
from test_e2e import QEMU, guest, heard

import vhostnet
from vhostnet import engines
from vhostnet.qmp import Monitor

__all__ = ["guest"]  # the fixture
pytestmark = [pytest.mark.tap, pytest.mark.qemu, pytest.mark.e2e, pytest.mark.timeout(1300)]

HOST, GUEST = "10.9.0.1", "10.9.0.2"
SPEC = vhostnet.InterfaceSpec(bridge=BRIDGE, mac="52:54:00:00:00:07", queues=8)
MINE = 0x7667  # the identifier of our pings
LONG = 300  # seconds: a QEMU that is emulated itself takes ten times as long, and more


@pytest.fixture(scope="module")
def migrate():
    """The documentation's, as it stands."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "migration.md").read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    return names["migrate"]


class Pings:
    """Numbered ones: when each was sent, and every answer. No more than a guest that is emulated twice can take."""

    def __init__(self, vm):
        self._vm = vm
        self.sent, self.answers = {}, []
        self._pause = 0.02
        self._over, self._deaf = threading.Event(), threading.Event()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._threads = [threading.Thread(target=each) for each in (self._say, self._hear)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, failed, *_):
        """When the last one is answered."""
        self._over.set()
        self._threads[0].join()
        if not failed:
            self._vm.wait_for(lambda: max(self.sent) in self.answers)
        self._deaf.set()
        self._threads[1].join()
        self._socket.close()

    def _say(self):
        for number in range(1, 1 << 16):
            if self._over.wait(self._pause):
                return
            total = 0x0800 + MINE + number
            checksum = ~(total + (total >> 16)) & 0xFFFF
            self.sent[number] = time.monotonic()
            self._socket.sendto(struct.pack("!BBHHH", 8, 0, checksum, MINE, number), (GUEST, 0))

    def _hear(self):
        self._socket.settimeout(0.1)
        while not self._deaf.is_set():
            try:
                kind, _, _, identity, number = struct.unpack("!BBHHH", self._socket.recv(2048)[20:28])
            except TimeoutError:
                continue
            if (kind, identity) == (0, MINE):
                self.answers.append(number)
                self._pause = min(max(0.02, 3 * (time.monotonic() - self.sent[number])), 1)

    def more(self, count):
        """So many more are sent."""
        last = max(self.sent) + count
        self._vm.wait_for(lambda: last in self.sent)

    def one_more(self):
        """One that is sent from now on is answered."""
        since = time.monotonic()
        self._vm.wait_for(lambda: any(self.sent[number] >= since for number in self.answers[-1:]))


class Port:
    """Whatever passes a NIC, either way, for as long as it is there."""

    def __init__(self, nic):
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))  # ETH_P_ALL
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 1 << 25)  # SO_RCVBUFFORCE
        self._socket.bind((nic.ifname, 0))
        self._socket.setblocking(False)
        nic.port = self

    def passed(self):
        """What has passed since this was asked the last time."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(2048))
            except BlockingIOError:
                return found
            except OSError:  # it went down since, or came up
                continue

    def close(self):
        self._socket.close()


def announced(frames):
    """By QEMU, for its guest: RARP."""
    return any(frame[6:14].hex() == SPEC.mac.replace(":", "") + "8035" for frame in frames)


class Source(Monitor):
    """Knows when the migration began, and when the new NIC was up; what somebody does at that moment."""

    def __init__(self, path, meanwhile=None):
        super().__init__(path, timeout=LONG)
        self.meanwhile = meanwhile
        self.begun = self.up = 0.0

    def execute(self, command, arguments=None):
        if command == "migrate":
            self.begun = time.monotonic()
        if command == "migrate-continue":
            self.up = time.monotonic()
            if self.meanwhile:
                self.meanwhile(self)
        return super().execute(command, arguments)


class Guest:
    """It boots, stays, and is in one QEMU after the other, each with a NIC of its own."""

    def __init__(self, words, directory):
        self.words, self.directory = [*QEMU[1:], *words[:-1], f"{words[-1]} vhostnet.stay"], directory
        self.stack = ExitStack()
        self.nic, self.machine, self.lost = self.new_nic(), None, []

    def __enter__(self):
        """Emulated twice over, a kernel now and then hangs at boot: again."""
        try:
            for last in (False, True):
                self.machine = self.start(self.nic)
                try:
                    with self.in_time():
                        assert heard(self.machine, "VHOSTNET-SEEN") == "VHOSTNET-SEEN 0"
                    return self
                except AssertionError:
                    if last:
                        raise
                    self.nic.reset_queues()
        except BaseException:
            self.stack.close()
            raise

    def __exit__(self, *_):
        self.stack.close()

    @contextmanager
    def in_time(self):
        """It says something in time, or no more."""
        watchdog = threading.Timer(LONG, self.machine.process.kill)
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()

    def new_nic(self, **how):
        nic = self.stack.enter_context(vhostnet.open_nic(SPEC, vhost="auto", **how))
        assert bool(nic.vhost) == (lacks("vhost") is None)
        self.stack.callback(Port(nic).close)
        return nic

    def start(self, nic, *more):
        argv = nic.qemu_argv(alias="net2", bus="pci.0", addr="0x7")
        how = {"fds": nic.fds, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return self.stack.enter_context(running(*self.words, *argv, *more, **how))

    def wait_for(self, what):
        """Not of a guest whose kernel has died: it reboots then, and so its QEMU ends."""
        until = time.monotonic() + LONG
        while not what():
            assert self.machine.process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)

    def crashed(self, error):
        """Its kernel, which is emulated twice over, and not what is tried of it."""
        self.ends(self.machine)
        said = str(error) + self.machine.process.stdout.read().decode(errors="replace")
        return re.search("BUG: |Oops: |Kernel panic", said) is not None

    def goes(self, migrate, meanwhile=None):
        """It migrates; the old NIC, and the new one. *meanwhile* is told the source and the new QEMU."""
        old, new = self.nic, self.new_nic(up=False)
        address = f"unix:{self.directory}/{new.ifname}"
        machine = self.start(new, "-S", "-incoming", address)
        between = (lambda source: meanwhile(source, machine)) if meanwhile else None
        with Source(self.machine.socket, between) as source, Monitor(machine.socket, timeout=LONG) as destination:
            try:
                migrate(source, destination, address, [(old, new)])
                self.lost.append((source.begun, source.up, False))
            except BaseException:
                self.lost.append((source.begun, time.monotonic(), True))
                raise
        assert all(map(engines.is_vhost_owned, new.vhost_fds))
        self.ends(self.machine)
        self.nic, self.machine = new, machine
        return old, new

    def ends(self, machine):
        machine.process.kill()
        machine.process.wait()

    def hears_each_once(self, pings):
        """Nothing twice; and all is answered but what was sent while it migrated, until the first with the new NIC up.

        Where a migration came to nothing it ran again some moments before its NIC was up: there an answer may be lost.
        """
        answered, unheard = set(pings.answers), 0
        assert len(answered) == len(pings.answers)
        for number in pings.sent.keys() - answered:
            times = pings.sent[number - 1], pings.sent[number]
            (failed,) = [failed for begin, end, failed in self.lost if begin <= times[1] and times[0] <= end]
            unheard += failed
        with self.in_time():
            while (seen := int(heard(self.machine, "VHOSTNET-SEEN").split()[1])) < len(answered):
                pass
        assert seen <= len(answered) + unheard


def place_of(mac):
    """The ports at which the bridge has learned that MAC."""
    return {row["ifname"] for row in run_json(f"bridge fdb show br {BRIDGE}") if row["mac"] == mac}


@pytest.mark.parametrize("to", ["the guest", pytest.param("all", marks=pytest.mark.slow)])
def test_there_and_back(bridge, guest, migrate, tmp_path, to):
    """What is sent to all is for every port that is up."""
    ip(f"address add {HOST}/24 dev {BRIDGE}")
    before = state()
    for last in (False, True):
        with Guest(guest, tmp_path) as vm:  # and the bridge has the MAC that it keeps
            mac = BROADCAST if to == "all" else SPEC.mac
            ip(f"neighbor replace {GUEST} lladdr {mac} nud permanent dev {BRIDGE}")
            try:
                there_and_back(vm, migrate)
                break
            except Exception as error:
                if last or not vm.crashed(error):
                    raise
    assert state() == before


def there_and_back(vm, migrate):
    """From port to port: on the old one all is silent then, and the bridge has learned where the guest is."""
    with Pings(vm) as pings:
        pings.one_more()
        for _ in range(3):
            old, new = vm.goes(migrate, lambda *_: pings.more(10))
            old.port.passed()
            pings.one_more()
            vm.wait_for(lambda port=new.port: announced(port.passed()))
            assert place_of(SPEC.mac) == {new.ifname}
            assert (link(old.ifname)["up"], link(new.ifname)["up"]) == (False, True)
            assert old.port.passed() == []
            old.close()
            assert (is_there(old.ifname), is_there(new.ifname)) == (False, True)
        pings.one_more()
    vm.hears_each_once(pings)


@pytest.mark.slow  # for the guests, which are emulated
@pytest.mark.parametrize("ended", ["cancelled", "failed"])
def test_one_that_comes_to_nothing(bridge, guest, migrate, tmp_path, ended):
    """Somebody cancels it, or the new QEMU dies, when the guest has the new port already: it gets the old one."""
    ip(f"address add {HOST}/24 dev {BRIDGE}")
    before = state()

    def meanwhile(source, destination):
        if ended == "cancelled":
            source.execute("migrate_cancel")
        else:
            vm.ends(destination)

    with Guest(guest, tmp_path) as vm:
        with Pings(vm) as pings:
            pings.one_more()
            for _ in range(2):
                nic = vm.nic
                with pytest.raises((RuntimeError, vhostnet.QemuRefused)):
                    vm.goes(migrate, meanwhile)
                pings.one_more()
                assert (vm.nic, link(nic.ifname)["up"], place_of(SPEC.mac)) == (nic, True, {nic.ifname})
            vm.goes(migrate)
            pings.one_more()
        vm.hears_each_once(pings)
    assert state() == before
