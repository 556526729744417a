"""Each example does what it says, with warnings as errors, and nothing of it is left."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from brokers import serving
from conftest import BRIDGE, ROOT, TESTS, link_names, need
from drop import dropped
from frames import BROADCAST, frame, heard
from kernel import ip, link, run_json

import vhostnet

pytestmark = pytest.mark.tap

EXAMPLES = ROOT / "examples"
# The very package that is tested, wherever an example is run.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(vhostnet.__file__).parent.parent)}


def run(example, *words, before=(), stdin="", seconds=100):
    command = [*before, sys.executable, "-W", "error", EXAMPLES / example, *words]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=seconds, cwd="/", env=ENVIRONMENT, check=False
    )


@pytest.fixture(autouse=True)
def _nothing_is_left(net):
    before = {os.getpid(), *neighbours()}
    yield
    assert set(neighbours()) <= before
    assert [name for name in link_names() if name not in ("lo", BRIDGE, "br0", "br1")] == []


def neighbours():
    """The processes of this network namespace."""
    here = os.stat("/proc/thread-self/ns/net").st_ino
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "ns" / "net").stat().st_ino == here:
                yield int(entry.name)
        except OSError:
            continue  # it has ended, or is a zombie


# --- QEMU ------------------------------------------------------------------------------------------------


INTERFACE = f"""<interface type='bridge'><mac address='52:54:00:00:00:09'/><source bridge='{BRIDGE}'/>
<model type='virtio'/><driver queues='2'/></interface>"""
# Emulated on every machine: with KVM, where there is one, it would be another test on each.
EMULATED = ["unshare", "--mount", "sh", "-c", '[ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm; exec "$@"', "sh"]
# What an emulated boot can do without, and the clock that only KVM gives it.
PARAMETERS = (
    "quiet mitigations=off no_timer_check tsc=reliable tsc_early_khz=2000000 cryptomgr.notests"
    " initcall_blacklist=jent_mod_init,load_system_certificate_list,init_kprobe_trace,trace_eval_init"
    " vhostnet.ip=10.9.0.2/24 vhostnet.ping=10.9.0.1"
)


@pytest.mark.e2e
@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_microvm_boots_and_pings(bridge, tmp_path):
    ip(f"address add 10.9.0.1/24 dev {BRIDGE}")
    (tmp_path / "nic.xml").write_text(INTERFACE)
    subprocess.run([TESTS / "guest" / "initramfs", "bookworm", tmp_path / "initramfs"], check=True)
    with (tmp_path / "initramfs").open("ab") as file:
        file.write(bytes(-1 - file.tell() & 4095))  # all but one byte of its last page, where ACPI's tables would be
    fetched = subprocess.run([TESTS / "guest" / "fetch", "bookworm"], check=True, capture_output=True, text=True)
    words = [fetched.stdout.strip(), tmp_path / "initramfs", tmp_path / "nic.xml", *PARAMETERS.split()]
    for _ in range(2):  # emulated twice over, a kernel now and then dies or hangs
        done = run("microvm.py", *words, before=[*EMULATED, "timeout", "400"], seconds=420)
        if "VHOSTNET-E2E" in done.stdout:
            break
    assert "VHOSTNET-E2E ok queues=2 mac=52:54:00:00:00:09" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


def test_a_microvm_is_sixty_lines():
    assert len((EXAMPLES / "microvm.py").read_text().splitlines()) <= 60


@pytest.mark.qemu
@pytest.mark.slow
def test_a_fleet_of_a_hundred(bridge):
    done = run("fleet.py", BRIDGE, "100")
    assert (done.returncode, done.stderr) == (0, "")
    started = re.findall(r"^ *\d+ (vnp\d+): NIC [\d.]+ ms, QEMU [\d.]+ ms$", done.stdout, re.MULTILINE)
    assert len(set(started)) == 100
    assert re.search(r"^100 QEMUs ended: \d+ ms; NICs gone: \d+ ms$", done.stdout, re.MULTILINE)


@pytest.mark.qemu
def test_a_fleet_whose_qemu_does_not_start(bridge, tmp_path):
    """What was started before it is taken down as well."""
    broken = tmp_path / "qemu-system-x86_64"
    broken.write_text(f"""#!/bin/sh
[ -e {tmp_path}/2 ] && exit 7
[ ! -e {tmp_path}/1 ] || : >{tmp_path}/2
: >{tmp_path}/1
exec {shutil.which("qemu-system-x86_64")} "$@"
""")
    broken.chmod(0o755)
    done = run("fleet.py", BRIDGE, "5", before=["env", f"PATH={tmp_path}:{os.environ['PATH']}"])
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: QEMU ended: exit code 7\n")
    assert re.search(r"^3 QEMUs ended: ", done.stdout, re.MULTILINE)


@pytest.mark.qemu
def test_a_manager_survives_a_qemu_that_dies(bridge):
    done = run("manager.py", BRIDGE, "4")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(re.findall(r"^(vm\d): net0 is vnet\d+, 2 queues$", done.stdout, re.MULTILINE)) == [
        "vm0",
        "vm1",
        "vm2",
        "vm3",
    ]
    assert sorted(re.findall(r"^(vm\d): net0 is out$", done.stdout, re.MULTILINE)) == ["vm1", "vm2", "vm3"]
    assert re.search(r"^vm0: QemuGone: ", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("3 of 4 are left\n")


@pytest.mark.qemu
def test_a_user_without_privileges_has_a_nic_of_the_brokers(bridge):
    need("setpriv")
    with serving() as broker:
        done = run("broker/client.py", BRIDGE, broker.path, before=dropped(), stdin="info network\nquit\n")
        assert (done.returncode, done.stderr) == (0, "")
        assert re.search(r"^<Nic vnet\d+ .*> vhost-net: ", done.stdout, re.MULTILINE)
        assert done.stdout.count("type=tap") == 4
        refused = run("broker/client.py", "br0", broker.path, before=dropped())
        assert "PolicyRefused" in refused.stderr


# --- VMMs that take a name -------------------------------------------------------------------------------


# What both do, as src/vmm/src/devices/virtio/net/tap.rs and net_util/src/{open_tap,tap}.rs have it.
VMM = """
import errno, fcntl, os, struct, sys, time
TUNSETIFF, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
name, pairs, frame = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if pairs > 1 else 0)
fds = [os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(pairs)]
for fd in fds:
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        sys.exit(errno.errorcode[error.errno])
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", 12))
while True:  # until the bridge has noticed that its port is in use
    os.write(fds[-1], bytes(12) + frame)
    time.sleep(0.05)
"""


def vmm(name, pairs, mac):
    return [*dropped(), sys.executable, "-c", VMM, name, str(pairs), frame(BROADCAST, mac).hex()]


@pytest.mark.parametrize(
    ("kind", "pairs", "told"),
    [
        ("firecracker", 1, r'"guest_mac": "(?P<mac>.*)",\s+"host_dev_name": "(?P<name>\w+)"'),
        ("cloud-hypervisor", 1, r"^--net tap=(?P<name>\w+),mac=(?P<mac>.*),num_queues=2$"),
        ("cloud-hypervisor", 4, r"^--net tap=(?P<name>\w+),mac=(?P<mac>.*),num_queues=8$"),
    ],
)
def test_its_owner_opens_it_by_name_as_its_vmm_does(bridge, kind, pairs, told):
    need("setpriv")
    done = run("by_name.py", "make", kind, BRIDGE, "nobody", str(pairs))
    assert (done.returncode, done.stderr) == (0, "")
    found = re.search(told, done.stdout)
    name, mac = found["name"], found["mac"]
    (shown,) = run_json(f"ip -d link show dev {name}")
    data = shown["linkinfo"]["info_data"]
    assert (data["persist"], data["user"], data["multi_queue"]) == (True, "nobody", pairs > 1)
    assert link(name)["up"] and link(name)["master"] == BRIDGE  # neither is left to the VMM
    with vhostnet.open_nic(vhostnet.InterfaceSpec(bridge=BRIDGE, vhost="off")) as other:
        with subprocess.Popen(vmm(name, pairs, mac)) as running:
            try:
                assert heard(other, 1)
                assert run("by_name.py", "delete", name).returncode == 1  # somebody has it
            finally:
                running.kill()
    assert run("by_name.py", "delete", name).returncode == 0


def test_another_user_may_not_open_it(bridge):
    need("setpriv")
    made = run("by_name.py", "make", "cloud-hypervisor", BRIDGE, "daemon", "2")
    name = re.search(r"tap=(\w+)", made.stdout)[1]
    done = subprocess.run(vmm(name, 2, "52:54:00:00:00:01"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "EPERM\n")
    assert run("by_name.py", "delete", name).returncode == 0


def test_a_firecracker_of_two_queues_is_refused_before_anything_is_made(bridge):
    done = run("by_name.py", "make", "firecracker", BRIDGE, "nobody", "2")
    assert (done.returncode, done.stderr) == (1, "Firecracker has NICs of one queue only\n")


# --- libvirt's hook --------------------------------------------------------------------------------------


@pytest.fixture
def hook(net, tmp_path):
    """Installed as its docstring says, but for the interpreter and the user; with both bridges of its .ini there."""
    ip("link add br0 up type bridge")
    ip("link add br1 up type bridge")
    text = (EXAMPLES / "libvirt" / "qemu").read_text()
    text = text.replace("#!/usr/bin/python3\n", f"#!{sys.executable} -Werror\n")
    (tmp_path / "qemu").write_text(text.replace('"/run/vhostnet-hook"', f'"{tmp_path}/made"'))
    (tmp_path / "qemu").chmod(0o755)
    settings = (EXAMPLES / "libvirt" / "vhostnet.ini").read_text()
    (tmp_path / "vhostnet.ini").write_text(settings.replace("libvirt-qemu", "nobody"))

    def called(operation, taps=(), suboperation="begin", extra="-", name="vm"):
        """As libvirt calls it, on a domain with these TAPs and other NICs."""
        command = [tmp_path / "qemu", name, operation, suboperation, extra]
        text = DOMAIN.format("".join(TAP.format(*tap) for tap in taps))
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=60, cwd="/", env=ENVIRONMENT, check=False
        )

    return called


TAP = """<interface type='ethernet'><mac address='52:54:00:00:00:{2:02x}'/><target dev='{0}' managed='no'/>
<model type='virtio'/><driver name='vhost' queues='{1}'/></interface>"""
DOMAIN = """<domain type='qemu'><name>vm</name><memory unit='MiB'>64</memory><os><type arch='x86_64'>hvm</type></os>
<devices><interface type='network'><source network='default'/><filterref filter='clean-traffic'/></interface>
<interface type='ethernet'><target dev='vm-libvirts'/></interface>
<interface type='ethernet'><target dev='eth-else' managed='no'/></interface>{}</devices></domain>"""
TAPS = [("vm-a0", 1, 1), ("vm-a1", 4, 2), ("dmz-a", 2, 3)]
NAMES = [name for name, *_ in TAPS]


def test_a_domain_has_its_taps_from_prepare_to_release(hook):
    done = hook("prepare", TAPS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(link_names()) == sorted(["lo", "br0", "br1", *NAMES])
    for name, queues, number in TAPS:
        (shown,) = run_json(f"ip -d link show dev {name}")
        data = shown["linkinfo"]["info_data"]
        assert (data["persist"], data["user"], data["multi_queue"]) == (True, "nobody", queues > 1)
        assert (shown["master"], shown["address"]) == (f"br{name.startswith('dmz'):d}", f"fe:54:00:00:00:{number:02x}")
    for operation in ("start", "started", "reconnect", "migrate", "restore", "attach"):
        assert (hook(operation, TAPS).returncode, hook(operation, TAPS).stdout) == (0, "")
    assert hook("stopped", TAPS, "end").returncode == 0
    assert set(NAMES) <= set(link_names())
    done = hook("release", TAPS, "end", "shutdown")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("way", ["taken", "nowhere"])
def test_a_prepare_that_is_refused_leaves_nothing(hook, way):
    before = link_names()
    if way == "taken":
        ip("link add dmz-a type bridge")
    else:
        ip("link del br1")
    done = hook("prepare", TAPS)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vhostnet: ") and ("dmz-a" if way == "taken" else "br1") in done.stderr
    ip("link del dmz-a" if way == "taken" else "link add br1 up type bridge")
    assert sorted(link_names()) == sorted(before)
    assert hook("release", TAPS, "end", "failed").returncode == 0


def test_another_domains_tap_stays(hook):
    """Who asks for it is refused, and is released all the same: not even one that nobody has open yet is taken away."""
    assert hook("prepare", TAPS).returncode == 0
    second = [("vm-b", 1, 7), ("vm-a0", 1, 8)]
    assert "vm-a0" in hook("prepare", second, name="second").stderr
    assert hook("release", second, "end", "failed", name="second").returncode == 0
    assert sorted(link_names()) == sorted(["lo", "br0", "br1", *NAMES])
    assert hook("release", TAPS, "end").returncode == 0


def test_a_release_does_not_need_all_of_them(hook):
    """Somebody has deleted one by hand."""
    assert hook("prepare", TAPS).returncode == 0
    vhostnet.delete_nics(["vm-a1"])
    done = hook("release", TAPS, "end", "crashed")
    assert (done.returncode, done.stderr) == (0, "")
    assert hook("release", TAPS, "end").returncode == 0


def test_what_cannot_be_written_down_is_not_kept(hook, tmp_path):
    (tmp_path / "made").write_text("")  # no directory
    done = hook("prepare", TAPS)
    assert done.returncode == 1
    assert done.stderr.startswith("vhostnet: ") and "made" in done.stderr


def test_a_hook_without_its_ini_refuses_the_start(hook, tmp_path):
    (tmp_path / "vhostnet.ini").unlink()
    done = hook("prepare", TAPS)
    assert done.returncode == 1
    assert "vhostnet.ini" in done.stderr
