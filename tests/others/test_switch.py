"""examples/host/vms-switch: frames pass between its NICs and the host, and it takes back what it made."""

import json
import subprocess
import sys

import pytest
from apart import apart
from conftest import ROOT, need

pytestmark = [pytest.mark.tap, pytest.mark.slow]

SWITCH = str(ROOT / "examples" / "host" / "vms-switch")
LINKS = "ip -o link | cut -d: -f2"


def switch(script):
    """A shell script with the example in its PATH, where there is nothing yet."""
    return apart("sh", "-c", f"PATH={ROOT}/examples/host:$PATH\n{script}")


# A guest's end is a TAP's fd; the host's is a packet socket on the end of the pair, which is here.
FRAMES = """
import json, os, select, socket, sys, vhostnet
from vhostnet.process.netns import call_inside

def heard(fd, ours):
    while select.select([fd], [], [], 5)[0]:
        if ours in (frame := os.read(fd, 2048)):
            return frame[-60:] == ours

spec = vhostnet.InterfaceSpec(bridge="br0", mac="52:54:00:00:00:07", vhost="off")
with vhostnet.open_nic(spec, engine=sys.argv[1], netns="vms") as nic:
    (tap,) = nic.tap_fds
    out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
    out.bind(("vms0", 0x88B5))
    host, guest = out.getsockname()[4], bytes.fromhex(spec.mac.replace(":", ""))
    up = host + guest + b"\\x88\\xb5" + b"from the guest".ljust(46)
    down = guest + host + b"\\x88\\xb5" + b"from the host".ljust(46)
    os.write(tap, bytes(10) + up)
    said = {"up": heard(out.fileno(), up)}
    out.send(down)
    said["down"] = heard(tap, down)
    said["here"] = [name for _, name in socket.if_nameindex()]
print(json.dumps(said))
"""


def test_frames_pass_between_a_nic_and_the_host(engine):
    """It is opened by the namespace's name, and reached from the outer side."""
    done = apart(sys.executable, "-W", "error", "-c", FRAMES, engine, setup=f"{SWITCH} up")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"up": True, "down": True, "here": ["lo", "vms0"]}


# From one guest's fd to the other's.
BETWEEN = """
import os, select, sys, vhostnet
spec = [vhostnet.InterfaceSpec(bridge="br0", mac=f"52:54:00:00:00:0{n}", vhost="off") for n in (1, 2)]
one, other = vhostnet.open_nics(spec, netns=sys.argv[1] or None)
packet = "4500002e000000004011f6bbc0000201c000020200010002001a0000"
frame = bytes.fromhex("525400000002" "525400000001" "0800" + packet).ljust(60, b".")
os.write(one.tap_fds[0], bytes(10) + frame)
passed = False
while not passed and select.select([other.tap_fds[0]], [], [], 2)[0]:
    passed = os.read(other.tap_fds[0], 2048)[10:] == frame
vhostnet.close_nics([one, other])
sys.exit(not passed)
"""
DROPS = "sysctl -qw net.bridge.bridge-nf-call-iptables=1 && iptables -P FORWARD DROP"


@pytest.mark.parametrize(("netns", "code"), [("", 1), ("vms", 0)])
def test_the_hosts_firewall_is_not_in_the_way(netns, code):
    """What Docker leaves behind (FORWARD drops, bridges call netfilter) holds for the host's own bridges."""
    need("netfilter")
    setup = f"ip link add br0 up type bridge && {SWITCH} up && {DROPS}"
    done = apart(sys.executable, "-c", BETWEEN, netns, setup=setup)
    assert (done.returncode, done.stderr) == (code, "")


# What a udevd has to do, by the kernel's uevents, and that nobody waits for it.
HEARD = """
import subprocess, sys, vhostnet
from vhostnet.others import udev
from vhostnet.process.netns import call_inside

netns = sys.argv[1] or None
monitor = subprocess.Popen(["udevadm", "monitor", "--kernel"], stdout=subprocess.PIPE, text=True)
while monitor.stdout.readline().strip():
    pass  # its title
specs = [vhostnet.InterfaceSpec(bridge="br0", queues=8, vhost="off") for _ in range(4)]
nics = vhostnet.open_nics(specs, netns=netns)
settled = [nic.settle(30) for nic in nics]
subprocess.run(["udevadm", "settle"], check=True)
monitor.terminate()
heard = [line for line in monitor.stdout if line.startswith("KERNEL[")]
listens = call_inside(netns, udev.listens)
vhostnet.close_nics(nics)
print(len(heard), listens, all(settled))
"""


@pytest.mark.udev
@pytest.mark.parametrize(("netns", "said"), [("", "68 True True"), ("vms", "0 False True")])
def test_the_hosts_udevd_hears_nothing_of_nics_there(netns, said):
    """A NIC of 8 queues is 17 uevents where one listens, and none where none does."""
    setup = f"ip link add br0 up type bridge && {SWITCH} up && udevadm settle"
    command = ["sh", "-c", f'{setup} && exec "$@"', "sh", sys.executable, "-W", "error", "-c", HEARD, netns]
    done = subprocess.run(
        [ROOT / "tools" / "with-udevd", *command], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stdout.strip()) == (0, said), done.stderr


XML = "<interface type='bridge'><model type='virtio'/><driver name='qemu'/><source bridge='br0'/></interface>"
QMP = '{"execute": "qmp_capabilities"}{"execute": "query-rx-filter"}{"execute": "quit"}'


@pytest.mark.qemu
def test_qemu_runs_here_and_its_nic_is_there():
    qemu = ["qemu-system-x86_64", "-S", "-M", "pc", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none"]
    started = f"readlink /proc/self/ns/net >&2; exec \"$@\" -qmp stdio <<'END'\n{QMP}\nEND"
    command = ["exec", "-n", "vms", "-", "--", "sh", "-c", started, "sh", *qemu]
    shown = apart(
        "sh",
        "-c",
        f'readlink /proc/self/ns/net >&2; exec {sys.executable} -m vhostnet "$@"',
        "sh",
        *command,
        setup=f"{SWITCH} up",
        stdin=XML,
    )
    assert '"name": "net0"' in shown.stdout, shown.stderr
    here, there = (line for line in shown.stderr.splitlines() if line.startswith("net:["))
    assert here == there


def test_it_is_made_once_and_taken_away_once():
    done = switch(f"""
        {LINKS}; vms-switch up && vms-switch up && vms-switch show && vms-switch down && vms-switch down; echo $?
        {LINKS}; ls /run/netns; vms-switch show; echo $?""")
    assert done.stderr == "vms-switch: there is no vms\n"
    first, *shown, zero, last, one = done.stdout.split("\n")[:-1]
    assert [line.split()[0].partition("@")[0] for line in shown] == ["vms0", "br0", "host"]
    assert (zero, one, first) == ("0", "1", last)


@pytest.mark.parametrize(
    "wrong",
    ["UPLINK=nowhere", "LINK=sixteen-letters-", "BRIDGE=host", "ADDRESS=192.0.2.1/33"],
)
def test_what_it_made_is_taken_back_when_it_fails(wrong):
    done = switch(f"{LINKS}; {wrong} vms-switch up; echo $?; {LINKS}; ls /run/netns")
    lines = done.stdout.split()
    assert lines[0] == lines[-1] == "lo"
    assert len(lines) == 3
    assert lines[1] != "0"


def test_what_was_there_before_stays_when_it_fails():
    done = switch("vms-switch up; UPLINK=nowhere vms-switch up; echo $?; vms-switch show")
    assert done.stdout.startswith("1\n")
    assert done.stdout.split()[1].startswith("vms0@")


def test_the_bridge_keeps_its_mac():
    """No port that comes has it follow: 02:... is lower than any of the kernel's random ones but 2^-40 of them."""
    mac = "ip -n vms -br link show br0"
    done = switch(f"""
        vms-switch up; {mac}
        ip -n vms link add port address 02:00:00:00:00:01 type veth peer name wire
        ip -n vms link set port master br0; ip -n vms link set port up; {mac}""")
    assert done.stderr == ""
    before, after = done.stdout.splitlines()
    assert before == after


def test_an_uplink_moves_in_and_comes_back():
    """One end of a pair is the physical NIC, the other one is the wire."""
    done = switch(f"""
        ip link add eth9 type veth peer name wire && ip link set wire up
        export UPLINK=eth9
        vms-switch up && vms-switch show && {LINKS}; vms-switch down && {LINKS}""")
    assert done.stderr == ""
    names = [line.split()[0].partition("@")[0] for line in done.stdout.splitlines()]
    assert names[:4] == ["vms0", "br0", "host", "eth9"]
    assert (sorted(names[4:7]), sorted(names[7:])) == (["lo", "vms0", "wire"], ["eth9", "lo", "wire"])


DOWN = """
import subprocess, vhostnet
with vhostnet.open_nic(vhostnet.InterfaceSpec(bridge="br0", ifname="vm", vhost="off"), netns="vms"):
    print(subprocess.run(["vms-switch", "down"]).returncode, flush=True)
"""


def test_it_stays_while_a_vm_has_a_nic_there():
    done = switch(f"vms-switch up && {sys.executable} -c '{DOWN}'; ls /run/netns; vms-switch down; ls /run/netns")
    assert done.stderr == "vms-switch: vms has NICs of virtual machines: vm; end these first\n"
    assert done.stdout.split() == ["1", "vms"]


def test_what_the_hop_costs_is_measured():
    done = apart(sys.executable, "-W", "error", "-m", "bench.hop", "2")
    assert done.returncode == 0, done.stderr
    figures = [float(figure) for line in done.stdout.splitlines()[1:] for figure in line.split()[-2:]]
    assert len(figures) == 12
    assert min(figures) > 0


def test_its_unit_is_sound(tmp_path):
    need("systemd")
    text = (ROOT / "examples" / "host" / "vms-switch.service").read_text()
    unit = tmp_path / "vms-switch.service"
    unit.write_text(text.replace("/usr/local/sbin/vms-switch", SWITCH))
    done = apart("systemd-analyze", "--no-pager", "verify", "--man=no", str(unit))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("words", ["", "fly", "up up"])
def test_its_usage(words):
    done = switch(f"vms-switch {words}")
    assert done.returncode == 2
    assert "up|down|show" in done.stderr
