"""A real libvirt runs the hook of examples/libvirt/: a domain's TAPs are there before it opens them, and go with it."""

import shutil
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from conftest import ROOT, link_names
from kernel import ip, run_json

import vhostnet
from bench.libvirtd import Refused, libvirtd, virsh

pytestmark = [pytest.mark.libvirtd, pytest.mark.tap, pytest.mark.timeout(300)]

HOOKS = Path("/etc/libvirt/hooks")
TAP = """<interface type='ethernet'><mac address='52:54:00:00:00:{number:02x}'/><model type='virtio'/>
<target dev='{name}' managed='no'/><driver name='qemu' queues='{queues}'/></interface>"""
DOMAIN = """<domain type='qemu'><name>hooked</name><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
{}</devices></domain>"""
TAPS = {"vm-a0": 1, "vm-a1": 4, "dmz-a": 2}  # their queues


@pytest.fixture
def hooked(net, tmp_path):
    """A libvirtd with the hook as it is shipped, and its bridges; it has nothing of this process' environment."""
    ip("link add br0 up type bridge")
    ip("link add br1 up type bridge")
    HOOKS.mkdir(exist_ok=True)
    paths = [str(Path(vhostnet.__file__).parent.parent), sysconfig.get_path("platlib")]
    shebang = f"#!{sys.executable} -IWerror\nimport sys\nsys.path[:0] = {paths}\n"
    text = (ROOT / "examples" / "libvirt" / "qemu").read_text()
    (HOOKS / "qemu").write_text(text.replace("#!/usr/bin/python3\n", shebang))
    (HOOKS / "qemu").chmod(0o755)
    shutil.copy(ROOT / "examples" / "libvirt" / "vhostnet.ini", HOOKS)
    taps = [TAP.format(name=name, queues=queues, number=number) for number, (name, queues) in enumerate(TAPS.items())]
    (tmp_path / "domain").write_text(DOMAIN.format("".join(taps)))
    try:
        with libvirtd():
            yield str(tmp_path / "domain")
    finally:
        shutil.rmtree(HOOKS)


def await_links(names):
    until = time.monotonic() + 10
    while sorted(link_names()) != sorted(names) and time.monotonic() < until:
        time.sleep(0.05)
    assert sorted(link_names()) == sorted(names)


def test_a_domain_has_its_taps_while_it_runs(hooked):
    before = link_names()
    for _ in range(2):
        virsh("create", hooked, "--paused")
        found = {nic.ifname: nic for nic in vhostnet.list_nics()}
        # QEMU detaches all but the first until its guest asks for them.
        assert {name: nic.attached + nic.detached for name, nic in found.items()} == TAPS
        assert {name: nic.bridge for name, nic in found.items()} == {"vm-a0": "br0", "vm-a1": "br0", "dmz-a": "br1"}
        for name, nic in found.items():
            assert any("qemu" in holder.command for holder in nic.holders)
            (shown,) = run_json(f"ip -d link show dev {name}")
            assert shown["linkinfo"]["info_data"]["user"] == "libvirt-qemu"
            assert shown["address"].startswith("fe:54:00")
        virsh("destroy", "hooked")
        await_links(before)


def test_a_domain_whose_taps_cannot_be_made_is_not_started(hooked):
    ip("link add dmz-a type bridge")
    before = link_names()
    with pytest.raises(Refused, match="vhostnet: .*dmz-a"):
        virsh("create", hooked, "--paused")
    await_links(before)
    ip("link del dmz-a")
    virsh("create", hooked, "--paused")
    virsh("destroy", "hooked")
    await_links([name for name in before if name != "dmz-a"])
