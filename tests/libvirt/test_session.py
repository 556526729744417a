"""libvirt's session mode, by a user without privilege, with our helper in the place of QEMU's: one line of a qemu.conf.

Its libvirtd takes every capability from what it runs, and so the helper has its own: its interpreter's.
"""

import os
import shutil
import struct
import subprocess
import sys
import sysconfig
import time
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import ROOT, link_names
from kernel import ip, link, run_json

import vhostnet
from bench.libvirtd import PATIENCE
from vhostnet.others.bridge_helper import find_helper

pytestmark = [pytest.mark.libvirtd, pytest.mark.tap, pytest.mark.timeout(300), pytest.mark.usefixtures("net")]

NOBODY = 65534
WHO = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"]
VIRSH = [*WHO, "virsh", "--connect", "qemu:///session", "--quiet"]
CONF = Path("/etc/qemu/bridge.conf")
NET_ADMIN = struct.pack("<5I", 0x02000001, 1 << 12, 0, 0, 0)  # as setcap cap_net_admin+ep writes it
MAC = "52:54:00:00:00:07"
DOMAIN = f"""<domain type='qemu'><name>judged</name><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<interface type='bridge'><mac address='{MAC}'/><source bridge='br0'/><model type='virtio'/></interface>
</devices></domain>"""


@pytest.fixture
def home(monkeypatch):
    """Where a user has what is his."""
    path = Path("/var/tmp/session")
    for name, variable in (("run", "RUNTIME_DIR"), ("config", "CONFIG_HOME"), ("cache", "CACHE_HOME")):
        (path / name / "libvirt").mkdir(parents=True)
        monkeypatch.setenv(f"XDG_{variable}", str(path / name))
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.setenv("LIBVIRT_AUTOSTART", "0")  # or virsh starts one that stays, with the helper of before
    (path / "judged.xml").write_text(DOMAIN)
    subprocess.run(["chown", "-R", str(NOBODY), path], check=True)
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def our_helper(home):
    """Installed with an interpreter of its own, which has the capability."""
    python = home / "bin" / "python3"
    python.parent.mkdir()
    shutil.copy(Path(sys.executable).resolve(), python)
    os.setxattr(python, "security.capability", NET_ADMIN)
    helper = home / "bin" / "vhostnet-helper"
    paths = [str(ROOT), sysconfig.get_path("platlib")]
    helper.write_text(
        f"#!{python} -I\nimport sys\nsys.path[:0] = {paths}\nfrom vhostnet.__main__ import helper\nsys.exit(helper())\n"
    )
    helper.chmod(0o755)
    return str(helper)


def their_helper(home):
    """As its users have it, setuid root."""
    helper = home / "qemu-bridge-helper"
    shutil.copy(find_helper(), helper)
    helper.chmod(0o4755)
    return str(helper)


@contextmanager
def session(home, helper):
    """A libvirtd of that user's, until it answers."""
    (home / "config" / "libvirt" / "qemu.conf").write_text(f'bridge_helper = "{helper}"\n')
    with subprocess.Popen([*WHO, "libvirtd"], stderr=subprocess.DEVNULL) as daemon:
        try:
            until = time.monotonic() + PATIENCE
            while subprocess.run([*VIRSH, "version"], capture_output=True).returncode:
                assert daemon.poll() is None and time.monotonic() < until
                time.sleep(0.1)
            yield
        finally:
            daemon.terminate()


def virsh(*words):
    done = subprocess.run([*VIRSH, *words], capture_output=True, text=True, timeout=PATIENCE)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(autouse=True)
def _bridge(net):
    CONF.parent.mkdir(exist_ok=True)
    CONF.write_text("allow br0\n")
    ip("link add br0 up type bridge")
    yield
    CONF.unlink()


def started(home, helper):
    """What libvirt and the kernel say of the NIC of a domain of his."""
    before = link_names()
    with session(home, helper):
        code, said = virsh("create", str(home / "judged.xml"), "--paused")
        assert code == 0, said
        interface = ElementTree.fromstring(virsh("dumpxml", "judged")[1]).find("devices/interface")
        name = interface.find("target").get("dev")
        (shown,) = run_json(f"ip -d link show dev {name}")
        found = link(name)
        seen = {
            "name": name.rstrip("0123456789"),
            "xml": sorted((child.tag, *child.attrib.items()) for child in interface if child.tag != "target"),
            "flags": shown["linkinfo"]["info_data"],
            **{key: found[key] for key in ("up", "mtu", "master", "kind")},
        }
        ours = [nic.ifname for nic in vhostnet.list_nics()]
        assert virsh("destroy", "judged")[0] == 0
        until = time.monotonic() + 5
        while link_names() != before and time.monotonic() < until:
            time.sleep(0.05)
    assert link_names() == before
    return seen, ours == [name], found["qdisc"]


def test_a_domain_has_the_nic_that_it_has_by_qemus_own(home):
    ours, marked, qdisc = started(home, our_helper(home))
    theirs, unmarked, _ = started(home, their_helper(home))
    assert ours == theirs
    assert (marked, unmarked, qdisc) == (True, False, "noqueue")


def test_why_not_is_in_its_error(home):
    CONF.write_text("deny br0\n")
    with session(home, our_helper(home)):
        code, said = virsh("create", str(home / "judged.xml"), "--paused")
    assert code == 1
    assert "stderr=vhostnet helper: access denied by acl file: line 1 of '/etc/qemu/bridge.conf' denies 'br0'" in said
