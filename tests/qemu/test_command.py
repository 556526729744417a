"""What a QEMU command line says of the machine: its buses, the ids that are taken, and who closes the fds before it."""

import pytest

from vhostnet import CcwAddress, InterfaceSpec, MmioAddress, PciAddress, UsbAddress
from vhostnet.qemu.command import closers, read_command, settle, unplaced

X86 = "/usr/bin/qemu-system-x86_64"
PORT = ["-device", "pcie-root-port,id=pci.1,chassis=1"]


def spec(**fields):
    return InterfaceSpec(bridge="br0", mac="52:54:00:00:00:01", **fields)


@pytest.mark.parametrize(
    ("words", "root"),
    [
        ([X86], "pci.0"),
        ([X86, "-M", "q35"], "pcie.0"),
        ([X86, "-machine", "pc-q35-7.2,accel=kvm"], "pcie.0"),
        ([X86, "--machine", "accel=kvm,type=q35"], "pcie.0"),
        ([X86, "-machine", "accel=kvm"], "pci.0"),
        ([X86, "-M", "pc", "-M", "q35"], "pcie.0"),
        (["qemu-system-aarch64", "-M", "virt"], "pcie.0"),
        (["qemu-system-riscv64", "-M", "virt,aia=none"], "pcie.0"),
        (["qemu-system-ppc64"], "pci.0"),
        (["taskset", "-c", "1", "kvm", "-M", "q35"], "pcie.0"),
    ],
)
def test_the_root_bus(words, root):
    assert read_command(words).machine.root == root


@pytest.mark.parametrize("words", [["./start-vm", "-M", "q35"], [X86, "-readconfig", "vm.cfg"], []])
def test_what_cannot_be_seen_may_be_anything(words):
    command = read_command(words)
    assert command.machine is None
    assert command.has_bus("pci.77")
    asked = spec(address=PciAddress(bus=7))
    assert settle(asked, command) == (asked, "")


@pytest.mark.parametrize(
    ("device", "bus"),
    [
        ("pcie-root-port,id=pci.1,chassis=1", "pci.1"),
        ("driver=pci-bridge,chassis_nr=1,id=pci.1", "pci.1"),
        ('{"driver":"pcie-root-port","id":"pci.1","chassis":1}', "pci.1"),
        ("pcie-root-port,id=a,,b", "a,b"),
    ],
)
def test_a_bus_that_the_command_makes(device, bus):
    command = read_command([X86, "-M", "q35", "-device", device])
    assert command.has_bus(bus)
    assert not command.has_bus("pci.2")


@pytest.mark.parametrize("device", ["{", "[]", '{"id"', "", "=", ",,,", "{}"])
def test_what_is_no_option_says_nothing(device):
    assert read_command([X86, "-device", device, "-machine", device]).machine.root == "pci.0"


def test_an_address_on_a_bus_that_is_not_there_is_left_to_qemu():
    asked = spec(address=PciAddress(bus=1), queues=2)
    kept, nothing = settle(asked, read_command([X86, "-M", "q35", *PORT]))
    assert (kept, nothing) == (asked, "")
    settled, note = settle(asked, read_command([X86, "-M", "q35", "-device", "virtio-rng-pci,id=rng"]))
    assert settled == spec(queues=2)
    assert note == (
        "address pci.1 0x0: the command line makes no such bus (it has pcie.0 rng); the place is left to QEMU"
    )


def test_a_nic_behind_a_host_bridge_of_its_own():
    asked = spec(address=PciAddress(bus=1, slot=1, name="pci.1.0"))
    bridge = ["-device", "spapr-pci-host-bridge,index=1,id=pci.1"]
    assert settle(asked, read_command(["qemu-system-ppc64", *bridge])) == (asked, "")
    assert settle(asked, read_command(["qemu-system-ppc64"]))[0].address is None


def test_a_usb_nic_is_where_its_controller_is():
    asked = spec(model="usb-net", address=UsbAddress(1, "1.2"))
    controller = ["-device", "qemu-xhci,id=usb1"]
    assert settle(asked, read_command([X86, *controller])) == (asked, "")
    settled, note = settle(asked, read_command([X86]))
    assert settled == unplaced(asked) == spec(model="usb-net")
    assert note.startswith("address usb1.0 port 1.2: the command line makes no such bus (it has pci.0)")


def test_the_root_bus_of_another_machine():
    asked = spec(address=PciAddress(slot=3, name="pcie.0"))
    assert settle(asked, read_command([X86]))[0].address is None
    assert settle(asked, read_command([X86, "-M", "q35"]))[0] == asked


@pytest.mark.parametrize(
    ("words", "address"),
    [
        ([X86, "-M", "microvm"], MmioAddress()),
        (["qemu-system-x86_64-microvm"], MmioAddress()),
        (["qemu-system-s390x"], CcwAddress()),
        ([X86], None),
    ],
)
def test_a_nic_of_no_place_goes_where_the_machine_has_virtio(words, address):
    assert settle(spec(), read_command(words)) == (spec(address=address), "")
    e1000 = spec(model="e1000")
    assert settle(e1000, read_command(words)) == (e1000, "")
    nowhere, note = settle(spec(address=PciAddress(bus=3)), read_command(words))
    assert (nowhere, "no such bus" in note) == (spec(address=address), True)


@pytest.mark.parametrize(
    ("words", "there"),
    [
        (["-M", "microvm"], False),
        (["-M", "microvm,pcie=off"], False),
        (["-M", "microvm,pcie=on"], True),
        (["-M", "microvm", "-machine", "pcie=on"], True),
        (["-M", "q35"], True),
    ],
)
def test_a_microvm_has_pci_only_if_asked(words, there):
    asked = spec(address=PciAddress(slot=3, name="pcie.0"))
    settled, note = settle(asked, read_command([X86, *words]))
    assert settled == (asked if there else spec(address=MmioAddress()))
    assert note.endswith("(it has none); the place is left to QEMU") is not there


def test_ids_that_are_taken():
    words = [X86, "-netdev", "user,id=hostnet0", "-device", "e1000,netdev=hostnet0,id=net5", "-nic", "user,id=u"]
    words += ["-chardev", "socket,id=charnet6,path=/a", "-chardev", "stdio,id=c"]
    assert read_command(words).aliases == {"net0", "net5", "net6"}


def test_without_an_address():
    assert unplaced(spec(address=PciAddress(slot=3))) == spec()
    assert unplaced(spec(address=CcwAddress(devno=3))) == spec(address=CcwAddress())
    assert unplaced(spec(address=MmioAddress())) == spec(address=MmioAddress())


@pytest.mark.parametrize(
    ("words", "who"),
    [
        (["sudo", X86], ["sudo"]),
        (["/usr/bin/doas", "-u", "vm", X86], ["doas"]),
        (["nice", "sudo", "-E", "./start-vm"], ["sudo"]),
        (["systemd-run", X86], ["systemd-run"]),
        (["systemd-run", "--scope", X86], []),
        (["runuser", "-u", "vm", "--", X86], []),
        (["setpriv", "--reuid", "vm", X86, "-name", "sudo"], []),
        ([X86, "-name", "sudo"], []),
    ],
)
def test_who_keeps_the_fds_from_qemu(words, who):
    assert [said.split()[0] for said in closers(read_command(words))] == who
