"""NICs where a stock udevd listens, as on every host: what there is when udev is done."""

import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = [pytest.mark.udev, pytest.mark.slow]

HEAD = """
import os, signal, subprocess, sys, threading, time
import vhostnet
from vhostnet.others import udev

def sh(command):
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout

def settle():
    sh("udevadm settle")

def address(name):
    return open(f"/sys/class/net/{name}/address").read().strip()

def specs(count, queues=1, **fields):
    return [vhostnet.InterfaceSpec(bridge="br0", queues=queues, vhost="off", **fields) for _ in range(count)]

def thread_ended():
    for thread in threading.enumerate():
        if thread.name == "vhostnet-udev":
            thread.join(30)

udevd = int(os.environ["UDEVD_PID"])
sh("ip link add br0 up type bridge")
settle()
"""


def beside_udevd(code, *arguments):
    """What *code* prints, run beside a udevd of its own."""
    command = [ROOT / "tools/with-udevd", sys.executable, "-W", "error", "-c", HEAD + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_udev_is_really_there_and_sets_other_macs():
    """What all the rest is about: a TAP that keeps the kernel's MAC loses it."""
    code = """
sh("ip tuntap add bare0 mode tap")
settle()
print(open("/sys/class/net/bare0/addr_assign_type").read().strip())
alone = "ip tuntap add bare0 mode tap; mount -t sysfs none /sys; cat /sys/class/net/bare0/addr_assign_type"
print(sh(f"unshare -n -m sh -c '{alone}'"))
"""
    assert beside_udevd(code) == ["3", "1"]  # NET_ADDR_SET, and where there is none NET_ADDR_RANDOM


def test_the_macs_are_ours_when_udev_is_done(engine):
    """And the bridge keeps its own."""
    code = """
bridge = address("br0")
wrong = made = 0
for count, queues in [(1, 1), (1, 8), (16, 8), (64, 1)] * 4:
    nics = vhostnet.open_nics(specs(count, queues), engine=sys.argv[1])
    settle()
    thread_ended()
    wrong += sum(address(nic.ifname) != nic.mac for nic in nics)
    made += len(nics)
    vhostnet.close_nics(nics)
print(wrong, made, address("br0") == bridge)
"""
    assert beside_udevd(code, engine) == ["0", "328", "True"]


def test_the_macs_of_macvtaps_are_ours_when_udev_is_done(engine):
    """udev leaves them alone: they count as set from the beginning. In mode passthrough the MAC is the parent's."""
    code = """
sh("ip link add p0 up type bridge")
settle()
source = vhostnet.DirectSource("p0", sys.argv[2])
asked = [vhostnet.InterfaceSpec(type="direct", source=source, queues=2, vhost="off") for _ in range(int(sys.argv[3]))]
wrong = 0
for _ in range(4):
    nics = vhostnet.open_nics(asked, engine=sys.argv[1])
    settle()
    thread_ended()
    wrong += sum(address(nic.ifname) != nic.mac for nic in nics) + sum(not nic.settle(1) for nic in nics)
    vhostnet.close_nics(nics)
print(wrong)
"""
    assert beside_udevd(code, engine, "bridge", "16") == ["0"]
    assert beside_udevd(code, engine, "passthrough", "1") == ["0"]


def test_a_mac_that_is_set_before_udev_is_done_is_put_right(engine):
    """As by a worker of udev's that was held up: here udevd is, and another sets the MAC meanwhile."""
    code = """
os.kill(udevd, signal.SIGSTOP)
nics = vhostnet.open_nics(specs(3, 2), engine=sys.argv[1])
for nic in nics:
    sh(f"ip link set {nic.ifname} address 02:00:00:00:00:01")
print(*(nic.settle(0.1) for nic in nics))
os.kill(udevd, signal.SIGCONT)
thread_ended()
print(*(address(nic.ifname) == nic.mac for nic in nics), *(nic.settle(0) for nic in nics))
vhostnet.close_nics(nics)
"""
    assert beside_udevd(code, engine) == ["False"] * 3 + ["True"] * 6


def test_whoever_gives_the_fds_away_has_waited():
    code = """
os.kill(udevd, signal.SIGSTOP)
nic, = vhostnet.open_nics(specs(1))
threading.Timer(0.3, os.kill, (udevd, signal.SIGCONT)).start()
sh(f"ip link set {nic.ifname} address 02:00:00:00:00:01")
fds = nic.detach()
print(udev.is_done(nic.ifindex, 0), address(nic.ifname) == nic.mac)
"""
    assert beside_udevd(code) == ["True", "True"]


EXEC = """
open("/run/nic.xml", "w").write('<interface type="bridge"><source bridge="br0"/><target dev="mine"/>'
    '<mac address="52:54:00:00:00:01"/><model type="virtio"/><driver name="qemu"/></interface>')
command = [sys.executable, "-m", "vhostnet", "exec", "/run/nic.xml", "--"]
command += ["sh", "-c", "cat /sys/class/net/mine/address"]
"""


def test_exec_becomes_the_command_when_udev_is_done():
    """Else nobody would look at the MAC any more."""
    code = (
        EXEC
        + """
os.kill(udevd, signal.SIGSTOP)
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
    while not os.path.exists("/sys/class/net/mine"):
        time.sleep(0.01)
    time.sleep(0.2)
    sh("ip link set mine address 02:00:00:00:00:01")
    os.kill(udevd, signal.SIGCONT)
    print(started.stdout.read())
"""
    )
    assert beside_udevd(code) == ["fe:54:00:00:00:01"]


HELPED = """
import socket
sh("mkdir /run/etc; cp -a /etc/. /run/etc; mkdir -p /run/etc/qemu; mount --bind /run/etc /etc")
open("/etc/qemu/bridge.conf", "w").write("allow br0")
ours, its = socket.socketpair()
command = [sys.executable, "-m", "vhostnet", "helper", "--br=br0", f"--fd={its.fileno()}"]
os.kill(udevd, signal.SIGSTOP)
with subprocess.Popen(command, pass_fds=[its.fileno()]) as started:
    while not (names := [name for name in os.listdir("/sys/class/net") if name.startswith("tap")]):
        time.sleep(0.01)
    time.sleep(0.2)
    sh(f"ip link set {names[0]} address 02:00:00:00:00:01")
    os.kill(udevd, signal.SIGCONT)
_, (tap,), _, _ = socket.recv_fds(ours, 1, 1)
print(started.returncode, vhostnet.engines.get_mac(tap).hex(":")[:2])
"""


def test_a_helpers_nic_is_given_when_udev_is_done(engine, monkeypatch):
    """Likewise."""
    monkeypatch.setenv("VHOSTNET_ENGINE", engine)
    assert beside_udevd(HELPED) == ["0", "fe"]


def test_exec_does_not_wait_for_a_udev_that_is_never_done():
    code = (
        EXEC
        + """
os.kill(udevd, signal.SIGSTOP)
done = subprocess.run(command, capture_output=True, text=True)
os.kill(udevd, signal.SIGCONT)
print(done.stdout, "mine: udev is not done with it after 3 s" in done.stderr)
"""
    )
    assert beside_udevd(code) == ["fe:54:00:00:00:01", "True"]


def test_a_nic_of_a_pool_that_is_taken_before_udev_is_done():
    code = """
os.kill(udevd, signal.SIGSTOP)
with vhostnet.NicPool(specs(1)[0], size=2, low=0) as pool:
    pool.fill()
    nic = pool.take()
    sh(f"ip link set {nic.ifname} address 02:00:00:00:00:01")
    print(nic.settle(0.1))
    os.kill(udevd, signal.SIGCONT)
    print(nic.settle(20), address(nic.ifname) == nic.mac)
    nic.close()
"""
    assert beside_udevd(code) == ["False", "True", "True"]


def test_a_nic_that_is_dropped_is_closed_there_and_then():
    """Not in the thread that happens to look at it."""
    code = """
import warnings
udev.is_done = lambda *_: time.sleep(0.2)  # so it is looked at all the time
nic, = vhostnet.open_nics(specs(1))
time.sleep(0.1)
with warnings.catch_warnings():
    warnings.showwarning = lambda *_: print(threading.current_thread().name)
    warnings.simplefilter("always")
    ifname = nic.ifname
    del nic
    print(os.path.exists(f"/sys/class/net/{ifname}"))
thread_ended()
print("ended")
"""
    assert beside_udevd(code) == ["MainThread", "False", "ended"]


def test_a_nic_that_is_closed_or_deleted_is_not_waited_for():
    code = """
os.kill(udevd, signal.SIGSTOP)
closed, kept, deleted = vhostnet.open_nics(specs(3))
closed.close()
sh(f"ip link del {deleted.ifname}")
print(closed.settle(), kept.settle(0.05))
os.kill(udevd, signal.SIGCONT)
print(deleted.settle(20), kept.settle(20))
vhostnet.close_nics([kept, deleted])
"""
    assert beside_udevd(code) == ["True", "False", "True", "True"]


def test_a_forked_child_has_nothing_to_wait_for():
    code = """
os.kill(udevd, signal.SIGSTOP)
nics = vhostnet.open_nics(specs(2))
child = os.fork()
if not child:
    os._exit(0 if nics[0].settle(0.1) and threading.active_count() == 1 else 1)
print(os.waitpid(child, 0)[1])
os.kill(udevd, signal.SIGCONT)
print(*(nic.settle(20) for nic in nics))
vhostnet.close_nics(nics)
"""
    assert beside_udevd(code) == ["0", "True", "True"]


LISTENS = "from vhostnet.others import udev; print(udev.listens())"


def test_who_listens():
    code = f"""
print(udev.listens())
print(sh(f"unshare -n {{sys.executable}} -c '{LISTENS}'"))
"""
    assert beside_udevd(code) == ["True", "False"]


def test_nobody_listens_where_there_is_no_udevd(tmp_path):
    """Whatever else there is: /run is empty in this mount namespace."""
    inside = f"mount -t tmpfs none /run && exec {sys.executable} -c '{LISTENS}'"
    done = subprocess.run(["unshare", "-n", "-m", "sh", "-c", inside], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_another_who_listens_is_taken_for_one():
    """Rather than the other way round: the NIC is then looked at in vain."""
    code = """
os.kill(udevd, signal.SIGTERM)
while udev._is_heard():
    time.sleep(0.01)
with subprocess.Popen(["udevadm", "monitor", "-k"], stdout=subprocess.PIPE) as other:
    until = time.monotonic() + 20
    while not udev._is_heard() and time.monotonic() < until:
        time.sleep(0.01)
    print(udev._is_heard())
    other.terminate()
print(udev._is_heard())
"""
    assert beside_udevd(code) == ["True", "False"]
