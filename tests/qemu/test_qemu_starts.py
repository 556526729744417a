"""Every golden pair starts every kind of QEMU that is found here, stopped and without KVM: what some QEMU would refuse
is not asked for. The place is the pair's own, on the buses of a machine that has it.
"""

import dataclasses
import json
import os

import pytest
from conftest import BRIDGE
from machine import S390, X86
from test_qemu import GOLDEN
from test_qemu_real import devices

import vhostnet
from vhostnet import CcwAddress, InterfaceSpec, MmioAddress, SpecError, VdpaSource, VhostnetWarning
from vhostnet.commands.demo import ask_qemu
from vhostnet.commands.doctor import qemu_version

pytestmark = [pytest.mark.tap, pytest.mark.qemu]

TAPS = [path for path in GOLDEN if vhostnet.parse_interface(path.read_bytes()).tap]
PAIRS = [pytest.param(path, id=path.stem, marks=pytest.mark.machines if "ccw" in path.stem else ()) for path in TAPS]
NETWORK = ("human-monitor-command", {"command-line": "info network"})


def start(nic, emulator, machine, extra=(), **how):
    return ask(nic, emulator, machine, [NETWORK], extra, **how)[0]


def ask(nic, emulator, machine, questions, extra=(), **how):
    command = [emulator, "-S", "-M", machine, "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none"]
    argv = nic.qemu_argv(**how)
    return ask_qemu([*command, "-qmp", "stdio", *extra, *argv], nic.fds, questions)


def home(name, spec, bus):
    """Emulator, machine, and the bridge or port it must be given to have the NIC's bus."""
    if isinstance(spec.address, CcwAddress):
        return S390, "s390-ccw-virtio", []
    if isinstance(spec.address, MmioAddress):
        return X86, "microvm", []
    if bus == "pcie.0":
        return X86, "q35", []
    if bus == "pci.0":
        return X86, "pc", []
    if name == "q35-port":
        return X86, "q35", ["-device", f"pcie-root-port,id={bus},chassis=9"]
    return X86, "pc", ["-device", f"pci-bridge,id={bus},chassis_nr=9"]


@pytest.fixture(scope="module")
def rom(tmp_path_factory):
    """An option ROM, under a name that QEMU must not take apart."""
    path = tmp_path_factory.mktemp("rom") / "a,script=b.rom"
    path.write_bytes(b"\x55\xaa\x01" + bytes(509))
    return str(path)


@pytest.mark.parametrize("dialect", ["classic", "json"])
@pytest.mark.parametrize("path", PAIRS)
@pytest.mark.filterwarnings("ignore::vhostnet.VhostnetWarning")
def test_a_golden_pair_starts(path, dialect, bridge, rom):
    arguments = json.loads(path.with_suffix(".json").read_text())["arguments"]
    place = {name: arguments[name] for name in ("alias", "bus", "addr") if name in arguments}
    spec = vhostnet.parse_interface(path.read_bytes())
    bridge = None if spec.type in ("ethernet", "direct") else BRIDGE
    source = spec.source and dataclasses.replace(spec.source, dev=BRIDGE)
    spec = dataclasses.replace(
        spec, bridge=bridge, source=source, tap_path="/dev/net/tun", rom_file=spec.rom_file and rom
    )
    bus = place.get("bus", getattr(spec.address, "bus_name", None))
    emulator, machine, extra = home(path.stem, spec, bus)
    with vhostnet.open_nic(spec, vhost="off") as nic:
        if spec.model == "igb" and "igb" not in devices():
            with pytest.raises(RuntimeError, match="igb"):
                start(nic, emulator, machine, extra, dialect=dialect, **place)
            assert "QEMU 7.2" in vhostnet.caveats(spec, qemu=qemu_version(X86))[0]
            return
        network = start(nic, emulator, machine, extra, dialect=dialect, **place)
    assert f"macaddr={spec.mac}" in network


ALONE = [path for path in GOLDEN if path.stem.startswith(("user-net", "teaming", "usb", "model-other"))]
USB = ["-device", "qemu-xhci,id=usb", "-device", "qemu-xhci,id=usb1", "-device", "usb-hub,bus=usb.0,port=1"]


@pytest.mark.parametrize("dialect", ["classic", "json"])
@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::vhostnet.VhostnetWarning")
def test_a_golden_pair_that_needs_nobody_else_starts(path, dialect):
    """The sockets' are in test_cli_tapless.py, with ends that are here; the switch's are in test_vhostuser.py."""
    arguments = json.loads(path.with_suffix(".json").read_text())["arguments"]
    spec = vhostnet.parse_interface(path.read_bytes())
    argv = vhostnet.qemu_argv(spec, **arguments, dialect=dialect)
    command = [X86, "-S", "-M", "pc", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-qmp", "stdio"]
    (network,) = ask_qemu([*command, *(USB if "usb" in path.stem else []), *argv], (), [NETWORK])
    assert f"macaddr={spec.mac}" in network
    assert "type=user,net=" in network


@pytest.mark.parametrize("dialect", ["classic", "json"])
def test_a_vdpa_device_is_found_in_its_fd_set(dialect):
    """QEMU asks the file that is in it, which is none here, for what only such a device has."""
    spec = InterfaceSpec(type="vdpa", source=VdpaSource("/dev/null"))
    fd = vhostnet.open_vdpa(spec)
    argv = vhostnet.qemu_argv(spec, vdpa_fd=fd, dialect=dialect)
    with pytest.raises(RuntimeError, match="Inappropriate ioctl for device"):
        ask_qemu([X86, "-S", "-M", "pc", "-accel", "tcg", "-nodefaults", "-qmp", "stdio", *argv], (fd,), [])
    os.close(fd)


def test_exact_arguments_are_what_some_qemus_refuse(bridge):
    """The seed to the byte: what this QEMU says to it is what doctor says it would."""
    spec = InterfaceSpec(bridge=BRIDGE, tx_queue_size=1024, vhost="off")
    (caveat,) = vhostnet.caveats(spec, qemu=qemu_version(X86))
    with vhostnet.open_nic(spec) as nic, pytest.warns(VhostnetWarning, match="256"):
        if "refuses to start" in caveat:
            with pytest.raises(RuntimeError, match="tx_queue_size"):
                start(nic, X86, "pc", exact=True)
        else:
            assert "in silence" in caveat
            assert f"macaddr={spec.mac}" in start(nic, X86, "pc", exact=True)


def test_an_iommu_and_what_may_be_legacy(bridge):
    """Every QEMU refuses libvirt's arguments on conventional PCI, and starts with ours."""
    spec = InterfaceSpec(bridge=BRIDGE, iommu=True, vhost="off")
    with vhostnet.open_nic(spec) as nic, pytest.warns(VhostnetWarning, match="virtio-non-transitional"):
        for machine in ("pc", "q35"):
            assert "virtio-net-pci" in start(nic, X86, machine)
            with pytest.raises(RuntimeError, match="IOMMU_PLATFORM"):
                start(nic, X86, machine, exact=True)


def test_an_iommu_and_what_must_be_legacy(bridge):
    spec = InterfaceSpec(bridge=BRIDGE, iommu=True, model="virtio-transitional", vhost="off")
    with vhostnet.open_nic(spec) as nic:
        with pytest.raises(RuntimeError, match="IOMMU_PLATFORM"):
            start(nic, X86, "pc", exact=True)
        with pytest.raises(SpecError, match="iommu"):
            nic.qemu_argv()


def test_the_version_that_is_found():
    command = [X86, "-S", "-M", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"]
    (said,) = ask_qemu(command, (), [("query-version", {})])
    assert qemu_version(X86) == tuple(said["qemu"][part] for part in ("major", "minor", "micro"))
