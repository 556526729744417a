"""One command line is one machine: exec, plan and doctor with the documents that people have, and a real QEMU."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import BRIDGE, TESTS, link_names
from kernel import ip
from machine import ARM, S390, X86
from test_cli import PLAIN, spawned, vhostnet

pytestmark = pytest.mark.tap

DOCUMENTS = TESTS / "documents"
QUIT = '{"execute": "qmp_capabilities"}\n{"execute": "query-status"}\n{"execute": "quit"}\n'
QEMU = [X86, "-S", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-qmp", "stdio"]
PORT = ["-device", "pcie-root-port,id=pci.1,chassis=1"]


@pytest.fixture
def bridges(bridge):
    """Those of the documents, too."""
    for name in ("br0", "virbr0", "lab0"):
        ip(f"link add {name} up type bridge")


def nic(inside="", mac="01"):
    mac = f"<mac address='52:54:00:00:00:{mac}'/>"
    source = f"<source bridge='{BRIDGE}'/>"
    return f"<interface type='bridge'>{mac}<model type='virtio'/>{source}<driver name='qemu'/>{inside}</interface>"


def files(tmp_path, *texts):
    found = []
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.xml").write_text(text)
        found.append(str(tmp_path / f"{number}.xml"))
    return found


def echoed(done):
    """QEMU's arguments as the command was given them."""
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# --- a real QEMU -----------------------------------------------------------------------------------------


@pytest.mark.qemu
@pytest.mark.parametrize("port", [[], PORT], ids=["without its port", "with its port"])
def test_the_dump_of_a_running_q35_domain_starts(bridges, port):
    file = str(DOCUMENTS / "virt-manager-running.xml")
    done = spawned("exec", file, "--", *QEMU, "-M", "q35", *port, stdin=QUIT)
    assert done.returncode == 0, done.stderr
    assert '"running": false' in done.stdout
    left_to_qemu = "address pci.1 0x0: the command line makes no such bus (it has pcie.0)" in done.stderr
    assert left_to_qemu is not bool(port)
    assert "<interface type='hostdev'> is left out" in done.stderr


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("emulator", "machine", "how"),
    [
        (X86, "pc", []),
        (X86, "q35", ["--bus", "pcie.0"]),
        (X86, "q35", ["--no-address"]),
        (X86, "microvm", []),
        (X86, "microvm", ["--no-address"]),
        (X86, "microvm,pcie=on", ["--bus", "pcie.0"]),
        pytest.param(ARM, "virt", [], marks=pytest.mark.machines),
        pytest.param(S390, "s390-ccw-virtio", [], marks=pytest.mark.machines),
        pytest.param(S390, "s390-ccw-virtio", ["--no-address"], marks=pytest.mark.machines),
    ],
)
def test_it_starts_on_other_machines(bridges, emulator, machine, how):
    file = str(DOCUMENTS / "virt-manager-running.xml")
    done = spawned("exec", *how, file, "--", emulator, *QEMU[1:], "-M", machine, stdin=QUIT)
    assert (done.returncode, '"running": false' in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("words", "driver"),
    [
        (["--", X86, "-M", "microvm,pcie=on"], "virtio-net-device"),
        (["--bus", "pcie.0", "--", X86, "-M", "microvm,pcie=on"], "virtio-net-pci"),
        (["--", S390], "virtio-net-ccw"),
        (["--bus", "pci.0", "--", S390], "virtio-net-pci"),
    ],
)
def test_who_names_a_bus_gets_it(bridge, tmp_path, words, driver):
    where = words.index("--") + 1
    said = echoed(spawned("exec", *files(tmp_path, nic()), *words[:where], "echo", *words[where:]))
    device = next(word for word in said if word.startswith("virtio-net"))
    assert device.partition(",")[0] == driver
    assert ("bus=" in device) == (words[0] == "--bus")


@pytest.mark.qemu
def test_many_files_are_one_machine(bridge, tmp_path):
    """Dumps of several domains, each with a net0 at some bus 0 of its own, beside devices that have ids, too."""
    several = files(tmp_path, *(nic("<alias name='net0'/>", mac) for mac in ("01", "02")), nic("", "03"))
    taken = ["-netdev", "user,id=hostnet1", "-device", "e1000,netdev=hostnet1,id=net2"]
    done = spawned("exec", *several, "--", *QEMU, "-M", "pc", *taken, stdin=QUIT)
    assert (done.returncode, '"running": false' in done.stdout) == (0, True), done.stderr
    words = echoed(spawned("exec", *several, "--", "echo", *QEMU, *taken))
    assert [word.split(",id=")[1].split(",")[0] for word in words if word.startswith("virtio-net")] == [
        *("net0", "net3", "net4")
    ]


# --- what is refused before anything is made -------------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "what"),
    [
        ("<acpi index='7'/>", "acpi_index=7"),
        ("<boot order='1'/>", "boot_order=1"),
        ("<alias name='ua-x'/>", "alias='ua-x'"),
        ("<address type='pci' slot='0x3'/>", "address='pci.0 0x3'"),
    ],
)
@pytest.mark.parametrize("command", ["exec", "plan", "doctor"])
def test_what_a_machine_has_once(bridge, tmp_path, command, inside, what):
    before = link_names()
    several = files(tmp_path, nic(inside, "01"), nic(inside, "02"))
    done = vhostnet(command, *several, *(["--", "true"] if command == "exec" else []))
    assert done.returncode == 3
    assert f"{what} of NIC 52:54:00:00:00:02 is that of NIC 52:54:00:00:00:01" in done.stderr + done.stdout
    assert link_names() == before


def test_one_address_in_two_files_and_the_way_out(bridge, tmp_path):
    several = files(tmp_path, *(nic("<address type='pci' slot='0x3'/>", mac) for mac in ("01", "02")))
    assert "--no-address" in vhostnet("exec", *several, "--", "true").stderr
    assert vhostnet("plan", "--no-address", *several).returncode == 0
    words = echoed(spawned("exec", "--no-address", *several, "--", "echo"))
    assert not [word for word in words if "addr=" in word]


@pytest.mark.parametrize("text", ["<domain/>", "<devices><disk/></devices>", "<domain><devices/></domain>"])
@pytest.mark.parametrize("command", ["exec", "plan", "doctor"])
def test_a_domain_without_nics(net, tmp_path, command, text):
    (file,) = files(tmp_path, text)
    done = vhostnet(command, file, *(["--", "true"] if command == "exec" else []))
    assert (done.returncode, "has no NICs" in done.stdout + done.stderr) == (3, True)


# --- one of a domain -------------------------------------------------------------------------------------


def test_one_nic_is_picked(bridges):
    file = str(DOCUMENTS / "clone.xml")
    assert "needs --tap-fds" in vhostnet("argv", file, "--tap-fds", "3").stderr
    argv = vhostnet("argv", file, "--nic", "1", "--tap-fds", "3")
    assert "mac=52:54:00:c0:00:02,bus=pci.7,addr=0x0" in argv.stdout
    plan = json.loads(vhostnet("plan", "-j", file, "--nic", "52:54:00:c0:00:02").stdout)
    assert [row["mac"] for row in plan["nics"]] == ["fe:54:00:c0:00:02"]
    assert "2 NICs" in vhostnet("doctor", file).stdout
    assert "1 NICs" in vhostnet("doctor", file, "--nic", "0").stdout
    done = vhostnet("plan", file, "--nic", "net9")
    assert (done.returncode, "nic='net9' is none of the document's NICs" in done.stderr) == (3, True)
    words = echoed(spawned("exec", "--nic", "1", "--vhost", "off", file, "--", "echo"))
    assert sum(word.startswith("virtio-net") for word in words) == 1


def test_it_is_picked_from_one_file(bridge, tmp_path):
    done = vhostnet("plan", *files(tmp_path, PLAIN, PLAIN), "--nic", "0")
    assert (done.returncode, "--nic picks from one file" in done.stderr) == (2, True)


# --- what happens to others ------------------------------------------------------------------------------


def jumbo(mtu=9000):
    """A bridge whose MTU is that of its one port."""
    ip("tuntap add dev port mode tap")
    ip(f"link set port mtu {mtu} master {BRIDGE}")


def test_a_bridge_whose_mtu_would_fall(bridge, tmp_path):
    jumbo()
    (file,) = files(tmp_path, nic("<mtu size='1450'/>"))
    says = f"{BRIDGE}'s falls from 9000 to 1450, for all its ports"
    done = vhostnet("plan", file)
    (note,) = [line for line in done.stdout.splitlines() if line.startswith("note: ")]
    assert says in note
    assert says in json.loads(vhostnet("plan", "-j", file).stdout)["notes"][0]
    assert says in vhostnet("doctor", file).stdout
    spawned("exec", file, "--", "sh", "-c", f"ip -o link show {BRIDGE} > {tmp_path}/during")
    assert "mtu 1450" in (tmp_path / "during").read_text()


def test_the_mtu_that_is_pinned_as_the_note_says_stays(bridge, tmp_path):
    jumbo()
    (file,) = files(tmp_path, nic("<mtu size='1450'/>"))
    ip(f"link set dev {BRIDGE} mtu 8999")
    ip(f"link set dev {BRIDGE} mtu 9000")
    spawned("exec", file, "--", "sh", "-c", f"ip -o link show {BRIDGE} > {tmp_path}/during")
    assert "mtu 9000" in (tmp_path / "during").read_text()


@pytest.mark.parametrize("mtu", [9000, 1400])
def test_a_guest_that_would_not_know(bridge, tmp_path, mtu):
    jumbo(mtu)
    told, untold = nic(f"<mtu size='{mtu}'/>", "01"), nic("", "02")
    other = untold.replace("'virtio'", "'e1000'").replace(":02", ":03").replace("<driver name='qemu'/>", "")
    (file,) = files(tmp_path, f"<devices>{told}{untold}{other}</devices>")
    notes = json.loads(vhostnet("plan", "-j", file).stdout)["notes"]
    assert len(notes) == 2
    assert all(f"will take 1500 for its MTU, and {BRIDGE} has {mtu}" in note for note in notes)
    assert f"<mtu size='{mtu}'/> tells it" in notes[0]
    assert "set it in the guest" in notes[1]


def test_nothing_to_say(bridge, tmp_path):
    (file,) = files(tmp_path, nic())
    assert "note: " not in vhostnet("plan", file).stdout


@pytest.mark.slow  # and tc leaks
def test_a_tap_can_be_shaped(bridge, tmp_path):
    """In place of noqueue, on all its 256 transmit queues at once; docs/order.md says it."""
    if shutil.which("tc") is None:
        pytest.fail("no tc: iproute2 has it")
    (file,) = files(tmp_path, nic("<target dev='shaped'/>").replace("name='qemu'", "name='qemu' queues='8'"))
    script = "tc qdisc replace dev shaped root tbf rate 1mbit burst 32kbit latency 50ms && tc qdisc show dev shaped"
    done = spawned("exec", file, "--", "sh", "-c", script)
    assert done.stdout.startswith("qdisc tbf"), done.stderr
    assert done.stdout.count("qdisc") == 1


# --- who stands between ----------------------------------------------------------------------------------


def test_a_wrapper_that_closes_the_fds_is_named(bridge, tmp_path):
    """Each as it is known to be; this one does close them."""
    sudo = tmp_path / "sudo"
    sudo.write_text(
        f"#!{sys.executable}\nimport os, sys\nos.closerange(3, 1000)\nos.execvp(sys.argv[1], sys.argv[1:])\n"
    )
    sudo.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "vhostnet", "exec", "-", "--", "sudo", *QEMU, "-M", "pc"]
    done = subprocess.run(command, input=PLAIN, capture_output=True, text=True, check=False, env=environment)
    assert "warning: sudo closes the fds it is given: QEMU would not have those of its NICs" in done.stderr
