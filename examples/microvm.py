"""Boot a kernel as a microVM with one NIC, its console here: examples/microvm.py KERNEL INITRAMFS NIC.XML [WORD...]

KERNEL is a vmlinux or bzImage, NIC.XML an <interface> as libvirt has it; the words go onto the kernel's command line.
Without KVM the kernel has no clock to measure its own by: tell it tsc_early_khz=2000000.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import vhostnet

kernel, initramfs, xml, *words = sys.argv[1:]

QEMU = [
    "qemu-system-x86_64",
    *("-accel", "kvm", "-accel", "tcg"),  # the first that is to be had
    # Where virtio drivers are modules, as in Debian, the one for MMIO is seldom in an initramfs; the one for PCI is.
    # A Linux that finds itself without legacy hardware does not silence a PIC: one tick of the PIT, and it is dead.
    *("-machine", "microvm,pcie=on,pic=off,pit=off"),
    *("-m", "128", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
    *("-kernel", kernel, "-append", " ".join(["console=ttyS0", "panic=-1", *words])),
]

spec = vhostnet.parse_interface(Path(xml).read_bytes())
with tempfile.NamedTemporaryFile() as pages, vhostnet.open_nic(spec, vhost="auto") as nic:
    # The ACPI tables lie in the last page of memory, onto which QEMU loads what the initramfs has beyond whole pages.
    size = pages.write(Path(initramfs).read_bytes())
    pages.truncate(size + -size % 4096)
    vm = subprocess.run([*QEMU, "-initrd", pages.name, *nic.qemu_argv()], pass_fds=nic.fds, check=False)
sys.exit(vm.returncode)
