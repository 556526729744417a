"""A guest boots on our fds and pings the bridge: with vhost-net where the kernel has it, else without."""

import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from brokers import serving
from conftest import BRIDGE, ROOT, SEED, TESTS, lacks, state
from drop import NOBODY, dropped
from kernel import ip
from machine import ARM, S390, X86, running

import vhostnet
from vhostnet.commands.demo import ask_qemu
from vhostnet.qmp import Monitor

pytestmark = [pytest.mark.tap, pytest.mark.qemu, pytest.mark.e2e, pytest.mark.timeout(1300)]

SWITCH = ROOT / "examples" / "host" / "vms-switch"
GUEST = TESTS / "guest"
SUITE = "bookworm"  # the kernel that pings; the one under test is the one this runs on
# What an emulated boot can do without.
SHORTER = (
    "mitigations=off no_timer_check tsc=reliable cryptomgr.notests"
    " initcall_blacklist=jent_mod_init,load_system_certificate_list,init_kprobe_trace,trace_eval_init"
)
PLAIN = ["-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]
QEMU = [X86, "-M", "pc", "-m", "128", *PLAIN]


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    return booting(tmp_path_factory.mktemp("guest"), SUITE)


def booting(directory, suite, arch="amd64", console="ttyS0"):
    """The arguments that boot a kernel and an initramfs that pings."""
    subprocess.run([GUEST / "initramfs", suite, directory / "initramfs", arch], check=True)
    fetched = subprocess.run([GUEST / "fetch", suite, arch], check=True, capture_output=True, text=True)
    append = f"console={console} quiet oops=panic panic=-1 {SHORTER} vhostnet.ip=10.9.0.2/24 vhostnet.ping=10.9.0.1"
    return ["-kernel", fetched.stdout.strip(), "-initrd", str(directory / "initramfs"), "-append", append]


SEVENTH = {"bus": "pci.0", "addr": "0x7"}


def boot(guest, nic, qemu=QEMU, place=SEVENTH):
    """The guest's verdict. Emulated twice over, a kernel now and then dies or hangs before it sees its NIC: again."""
    for _ in range(2):
        with pytest.warns(vhostnet.VhostnetWarning):
            argv = nic.qemu_argv(alias="net2", **place)
        assert ("vhost=on" in argv[1]) == bool(nic.vhost)
        command = [*qemu, *guest, *argv]
        with subprocess.Popen(command, pass_fds=nic.fds, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            watchdog = threading.Timer(500, process.kill)  # a guest beside others, emulated twice, needs three minutes
            watchdog.start()
            said = process.stdout.read().decode(errors="replace")
            watchdog.cancel()
        verdict = re.search(r"VHOSTNET-E2E .*", said)
        if verdict:
            break
        nic.reset_queues()
    return verdict, said


def test_the_seeds_nic_pings(bridge, guest):
    """Without vhost-net this is the seed with vhost='auto'; with it, the seed as it stands."""
    ip(f"address add 10.9.0.1/24 dev {BRIDGE}")
    before = state()
    spec = vhostnet.parse_interface(SEED)
    here = lacks("vhost") is None
    with vhostnet.open_nic(spec, vhost=None if here else "auto") as nic:
        assert bool(nic.vhost) == here
        verdict, said = boot(guest, nic)
        assert verdict, said
        assert verdict[0].strip() == "VHOSTNET-E2E ok queues=8 mac=20:90:6f:28:84:f2"
    assert state() == before


def test_twenty_qemus_in_a_row(bridge):
    """On the seed's NIC: each owns its vhost-net fds, where there are such, and leaves queues detached."""
    before = state()
    with vhostnet.open_nic(vhostnet.parse_interface(SEED), vhost="auto") as nic:
        assert bool(nic.vhost) == (lacks("vhost") is None)
        for _ in range(20):
            with pytest.warns(vhostnet.VhostnetWarning):
                argv = nic.qemu_argv(alias="net2")
            assert ("vhost=on" in argv[1]) == bool(nic.vhost)
            ask = [("human-monitor-command", {"command-line": "info network"})]
            stopped = [*QEMU[:-3], "-S", "-qmp", "stdio"]
            assert ask_qemu([*stopped, *argv], nic.fds, ask)[0].count("hostnet2: index=") == 8
            nic.reset_queues()
    assert state() == before


UNPRIVILEGED = """
import os, subprocess, sys, warnings
import vhostnet
warnings.simplefilter("ignore")
path, vhost, *command = sys.argv[1:]
with vhostnet.connect(path) as net, net.open_nic(vhostnet.parse_interface(sys.stdin.read()), vhost=vhost) as nic:
    print("by uid", os.getuid(), "vhost", bool(nic.vhost), len(nic.fds), flush=True)
    for _ in range(2):  # as boot() does
        argv = nic.qemu_argv(alias="net2", bus="pci.0", addr="0x7")
        done = subprocess.run([*command, *argv], pass_fds=nic.fds, stdin=subprocess.DEVNULL, capture_output=True)
        if b"VHOSTNET-E2E" in done.stdout:
            break
        nic.reset_queues()
    sys.stdout.buffer.write(done.stdout + done.stderr)
"""


def test_who_has_no_capability_pings_by_a_broker(bridge, guest):
    """A user without any, whose QEMU has none either: eight queues, and vhost-net where the kernel has it."""
    ip(f"address add 10.9.0.1/24 dev {BRIDGE}")
    before = state()
    here = lacks("vhost") is None
    with serving() as broker:
        files = [shutil.copy(file, broker.policy.parent) for file in (guest[1], guest[3])]
        for file in files:
            os.chmod(file, 0o644)
        command = [*QEMU, "-kernel", files[0], "-initrd", files[1], *guest[4:]]
        how = [broker.path, "require" if here else "auto", *command]
        who = [*dropped(), sys.executable, "-c", UNPRIVILEGED, *how]
        done = subprocess.run(
            who, input=SEED, capture_output=True, text=True, errors="replace", timeout=1000, cwd="/", check=False
        )
    assert f"by uid {NOBODY} vhost {here} {16 if here else 8}" in done.stdout, done.stdout + done.stderr
    assert "VHOSTNET-E2E ok queues=8 mac=20:90:6f:28:84:f2" in done.stdout, done.stdout + done.stderr
    assert state() == before


def test_a_nic_that_comes_and_goes_while_its_guest_runs(bridge, guest):
    """Each time it answers, on all of its queues, and nothing is left of it on either side."""
    ip(f"address add 10.9.0.1/24 dev {BRIDGE}")
    before = state()
    rounds = 10 if lacks("vhost") else 2  # emulated twice, each takes a minute
    words = [*QEMU[1:], *guest[:-1], f"{guest[-1]} vhostnet.rounds={rounds + 1}"]
    for last in (False, True):
        with running(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as machine:
            watchdog = threading.Timer(400, machine.process.kill)
            watchdog.start()
            try:
                with vhostnet.open_nic(vhostnet.parse_interface(SEED), vhost="auto") as nic:
                    come_and_go(machine, nic, rounds)
                break
            except (Silent, vhostnet.QemuGone):  # as in boot()
                if last:
                    raise
            finally:
                watchdog.cancel()
    assert state() == before


class Silent(AssertionError):
    """The guest has ended, or was ended, without a word of what it was to say."""


def come_and_go(machine, nic, rounds):
    heard(machine, "VHOSTNET-READY")
    with Monitor(machine.socket) as monitor:
        ours, theirs = len(os.listdir("/proc/self/fd")), machine.fds()
        for _ in range(rounds):
            with pytest.warns(vhostnet.VhostnetWarning, match="256"):
                plugged = monitor.plug(nic, alias="net2")
            assert (plugged.queues, plugged.rx_queue_size, plugged.vhost, plugged.notes) == (
                8,
                1024,
                bool(nic.vhost),
                (),
            )
            assert heard(machine, "VHOSTNET-ROUND") == "VHOSTNET-ROUND queues=8 mac=20:90:6f:28:84:f2"
            monitor.unplug("net2", timeout=60)
            nic.reset_queues()
            heard(machine, "VHOSTNET-READY")
        assert (len(os.listdir("/proc/self/fd")), machine.fds()) == (ours, theirs)


def heard(machine, word):
    """The next line of the guest's that begins so."""
    said = []
    for line in machine.process.stdout:
        said.append(line.decode(errors="replace").strip())
        if said[-1].startswith((word, "VHOSTNET-E2E fail")):
            return said[-1]
    raise Silent("\n".join(said))


@pytest.mark.slow  # for the guests, which are emulated
def test_a_guest_reaches_the_host_from_a_switch_of_its_own(net, guest):
    """QEMU runs here, its NIC is in another network namespace, and the host's end of a veth pair answers."""
    env = {**os.environ, "NETNS": f"vhostnet-{secrets.token_hex(4)}", "ADDRESS": "10.9.0.1/24"}
    subprocess.run([SWITCH, "up"], env=env, check=True)
    try:
        spec = replace(vhostnet.parse_interface(SEED), bridge="br0")
        with vhostnet.open_nic(spec, vhost="auto", netns=env["NETNS"]) as nic:
            verdict, said = boot(guest, nic)
    finally:
        subprocess.run([SWITCH, "down"], env=env, check=True)
    assert verdict, said
    assert verdict[0].startswith("VHOSTNET-E2E ok queues=8")


# --- other machines --------------------------------------------------------------------------------------

# s390x's kernel is that of Debian 12: of a newer one a mirror may have the index alone, as deb.debian.org has had for
# days. Without KVM a microvm has no clock to measure its TSC by; its PIC and PIT are off, as in examples/microvm.py.
GUESTS = {
    "virt, pcie": (("trixie", "arm64", "ttyAMA0"), [ARM, "-M", "virt", "-cpu", "cortex-a57"]),
    "virt, mmio": (("trixie", "arm64", "ttyAMA0"), [ARM, "-M", "virt", "-cpu", "cortex-a57"]),
    "s390x, ccw": (("bookworm", "s390x", "ttysclp0"), [S390, "-M", "s390-ccw-virtio"]),
    "microvm, mmio": (
        (SUITE, "amd64", "ttyS0 tsc=reliable tsc_early_khz=2000000"),
        [X86, "-M", "microvm,pic=off,pit=off"],
    ),
}
ON = {"pcie": "<address type='pci' slot='0x5'/>", "mmio": "<address type='virtio-mmio'/>", "ccw": ""}
DOMAIN = f"""<domain><os><type arch='{{}}' machine='{{}}'>hvm</type></os><devices><interface type='bridge'>
<mac address='20:90:6f:28:84:f2'/><source bridge='{BRIDGE}'/><model type='virtio'/>
<driver queues='4' rx_queue_size='1024' tx_queue_size='1024'/>{{}}</interface></devices></domain>"""


@pytest.mark.slow
@pytest.mark.machines
@pytest.mark.parametrize("name", GUESTS)
def test_a_guest_of_another_machine_pings(name, bridge, tmp_path):
    """As a domain places it there: four queues, for each of which a guest that has four CPUs has one."""
    ip(f"address add 10.9.0.1/24 dev {BRIDGE}")
    before = state()
    kernel, qemu = GUESTS[name]
    text = DOMAIN.format(qemu[0].removeprefix("qemu-system-"), qemu[2].partition(",")[0], ON[name.partition(", ")[2]])
    with vhostnet.open_nics(vhostnet.parse_domain(text), vhost="auto")[0] as nic:
        verdict, said = boot(booting(tmp_path, *kernel), nic, [*qemu, "-smp", "4", "-m", "256", *PLAIN], place={})
    assert verdict, said
    assert verdict[0].strip() == "VHOSTNET-E2E ok queues=4 mac=20:90:6f:28:84:f2"
    assert state() == before
