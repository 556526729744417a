"""vhostnet helper, run by a real QEMU in the place of its own; what becomes of its NICs, and of what cannot be."""

import socket
import subprocess
import sys
import time
from contextlib import closing
from importlib import import_module

import pytest
from conftest import ROOT, link_names, need
from drop import housed, run
from kernel import addrgenmode, ip, link, run_json
from machine import running

import vhostnet
from vhostnet.others import bridge as bridges
from vhostnet.others.bridge_helper import find_helper
from vhostnet.qmp import Monitor

pytestmark = [pytest.mark.tap, pytest.mark.slow, pytest.mark.usefixtures("net", "no_leaks")]

PYTHON = [sys.executable, "-W", "error"]
HELPER = [*PYTHON, "-m", "vhostnet", "helper"]
ALLOWED = "allow br0\n"


@pytest.fixture(autouse=True)
def _bridge(net, monkeypatch):
    """With a port whose MAC it has: a NIC's is not to come before it."""
    need("setpriv")
    need("helper")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    bridges.make_bridge("br0", mtu=1400)
    ip("link add port type veth peer name its")
    ip("link set port address ee:00:00:00:00:01 master br0 mtu 1400")


@pytest.fixture
def script(tmp_path):
    """As an installation has it: a program of one word."""
    path = tmp_path / "vhostnet-helper"
    module, _, name = entry_points()["vhostnet-helper"].partition(":")
    path.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {name}\nsys.exit({name}())\n")
    path.chmod(0o755)
    return str(path)


def entry_points():
    lines = (ROOT / "pyproject.toml").read_text().partition("[project.scripts]\n")[2].partition("\n\n")[0]
    return {name: value.strip('"') for name, value in (line.split(" = ") for line in lines.splitlines())}


def test_the_entry_points_are_there():
    for value in entry_points().values():
        module, _, name = value.partition(":")
        assert callable(getattr(import_module(module), name))


# --- QEMU ------------------------------------------------------------------------------------------------


def netdev(kind, helper):
    """What makes a NIC of that helper."""
    asked = f"br=br0,helper={helper}"
    if kind == "nic":
        return ["-nic", f"bridge,model=virtio-net-pci,{asked}"]
    return ["-netdev", f"{kind},id=nic,{asked}", "-device", "virtio-net-pci,netdev=nic"]


@pytest.mark.qemu
@pytest.mark.parametrize("kind", ["bridge", "tap", "nic"])
@pytest.mark.parametrize("spelling", ["a command", "a path"])
def test_qemu_has_its_nic_and_when_it_ends_there_is_none(engine, kind, spelling, script, monkeypatch):
    monkeypatch.setenv("VHOSTNET_ENGINE", engine)
    before, mac = link_names(), link("br0")["mac"]
    words = netdev(kind, script if spelling == "a path" else " ".join(HELPER))
    with running("-S", *words, before=housed(find_helper(), ALLOWED)) as machine:
        with Monitor(machine.socket) as monitor:
            network = monitor.execute("human-monitor-command", {"command-line": "info network"})
        (nic,) = vhostnet.list_nics()
        assert "index=0,type=tap,helper=" in network
        assert [holder.pid for holder in nic.holders] == [machine.process.pid]
        assert (nic.bridge, nic.up, nic.persistent, nic.mark.maker_lives) == ("br0", True, False, False)
        assert nic.ifname.startswith("tap")
        found = link(nic.ifname)
        assert (found["qdisc"], found["mtu"], found["mac"][:2]) == ("noqueue", 1400, "fe")
        assert addrgenmode(nic.ifname) == "none"
        (shown,) = run_json(f"ip -d link show dev {nic.ifname}")
        assert shown["linkinfo"]["info_data"]["vnet_hdr"] is True
        assert link("br0")["mac"] == mac == "ee:00:00:00:00:01"
    assert gone(before)


def gone(before):
    """A killed process's TAPs go a moment after it."""
    until = time.monotonic() + 5
    while link_names() != before and time.monotonic() < until:
        time.sleep(0.01)
    return link_names() == before


@pytest.mark.qemu
def test_what_is_refused_is_in_qemus_own_error(script):
    words = ["qemu-system-x86_64", "-nodefaults", "-display", "none", *netdev("bridge", script)]
    done = run(*housed(find_helper(), "deny br0\n"), *words)
    assert done.returncode == 1
    assert "vhostnet helper: access denied by acl file: line 1 of '/etc/qemu/bridge.conf' denies 'br0'" in done.stderr
    assert "bridge helper failed" in done.stderr


# --- alone -----------------------------------------------------------------------------------------------


def refused(*words, command=HELPER, before=(), rules=ALLOWED, privilege="chmod 4755", reader=True):
    """What it says, and that it gave nothing and left nothing; without a reader nobody has the socket's other end."""
    links = link_names()
    ours, its = socket.socketpair()
    with closing(ours), closing(its):
        if not reader:
            ours.close()
        run = [*housed(find_helper(), rules, privilege=privilege), *before, *command, *words, f"--fd={its.fileno()}"]
        done = subprocess.run(run, pass_fds=[its.fileno()], capture_output=True, text=True, timeout=60)
        its.close()
        assert not reader or ours.recvmsg(16, 1024)[:2] == (b"", [])
    assert (done.returncode, done.stdout, link_names()) == (1, "", links), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("words", "rules", "says"),
    [
        (["--br=br7"], "allow all", "no link 'br7' here (ENODEV); make it: ip link add br7 up type bridge"),
        (["--br=port"], "allow all", "'port' is not a Linux bridge (ENOTSUP); name a Linux bridge"),
        (["--br=a b"], "allow all", "bridge='a b' is not allowed; expected the name of a Linux bridge, 1 to 15 bytes"),
        (["--br=br1"], ALLOWED, "nothing there allows 'br1': echo 'allow br1' >>/etc/qemu/bridge.conf"),
        (["--br=br0"], "include /none", "left out: '/none': No such file or directory\nvhostnet helper: access denied"),
        (["--br=br0"], "allow", "line 1 of '/etc/qemu/bridge.conf' is no rule; expected allow NAME, deny NAME, "),
        (["--br=br0"], "allow 0123456789abcdef", "has a name of 16 bytes; expected at most 15\n"),
    ],
)
def test_what_is_wrong_and_what_to_do(words, rules, says):
    assert says in refused(*words, rules=rules)


def test_without_the_file():
    before = ["sh", "-c", 'rm -r /etc/qemu; exec "$@"', "sh"]
    says = (
        "failed to parse default acl file: '/etc/qemu/bridge.conf': No such file or directory: mkdir -p /etc/qemu && "
    )
    assert f"{says}echo 'allow br0' >>/etc/qemu/bridge.conf\n" in refused("--br=br0", before=before)


def test_who_took_nothing(engine, monkeypatch):
    monkeypatch.setenv("VHOSTNET_ENGINE", engine)
    assert "failed to write fd to unix socket" in refused("--br=br0", reader=False)
    assert "Broken pipe" in refused("--br=br0", reader=False)


def test_a_socket_of_another_family():
    with socket.socket() as other:
        words = [*HELPER, "--br=br0", f"--fd={other.fileno()}"]
        command = [*housed(find_helper(), ALLOWED), *words]
        done = subprocess.run(command, pass_fds=[other.fileno()], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "a socket of another family; expected a Unix socket" in done.stderr


WHO = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def test_without_the_capability_qemus_own_is_no_way_out(engine, monkeypatch):
    """It would have been there, setuid root."""
    monkeypatch.setenv("VHOSTNET_ENGINE", engine)
    said = refused("--br=br0", before=[*WHO, "--inh-caps=-all"])
    assert "TAP_OPEN (TUNSETIFF) of tap" in said
    assert said.endswith("(run as root, or grant it); setuid does nothing for a script\n")


def test_in_the_place_of_qemus_own_it_does_not_run_itself(script):
    said = refused("--br=br0", command=[find_helper()], before=[*WHO, "--inh-caps=-all"], privilege=f"cp {script}")
    assert said.startswith("vhostnet helper: TAP_OPEN (TUNSETIFF) of tap")
    assert said.count("TAP_OPEN") == 1


def test_setuid_is_refused():
    ids = "import os, sys; os.setresgid(65534, 0, 0); os.setresuid(65534, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
    said = refused("--br=br0", before=[sys.executable, "-c", ids])
    assert said.startswith("vhostnet helper: setuid root is no way for a Python program")
