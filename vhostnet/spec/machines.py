"""QEMU's machines, as far as they bear on a NIC: what PCI bus 0 is called, and where virtio goes when nothing says."""

import re
from typing import NamedTuple

from vhostnet.spec.parts import CcwAddress, MmioAddress


class Machine(NamedTuple):
    """``root`` is the name of PCI bus 0; ``virtio`` where a virtio NIC goes that names no place, if not on PCI.

    ``takes_virtio``: a NIC that names no model is virtio's there, as libvirt has it.
    """

    root: str = "pci.0"
    virtio: CcwAddress | MmioAddress | None = None
    takes_virtio: bool = False


_VIRT_ARCHES = r"aarch64|arm|riscv|loongarch"


def find_machine(arch: str, name: str) -> Machine:
    """The machine *name* ("": the one that *arch* has by default), each as QEMU and libvirt call it, or "": unknown."""
    family = name.partition("-")[0]
    if arch.startswith("s390") or family == "s390":
        return Machine(virtio=CcwAddress(), takes_virtio=True)
    if family == "virt" or (not name and re.match(_VIRT_ARCHES, arch)):
        return Machine("pcie.0", takes_virtio=True)
    if family == "microvm":
        return Machine("pcie.0", MmioAddress())
    if family == "vexpress":
        return Machine(virtio=MmioAddress())
    return Machine("pcie.0" if "q35" in name or family == "sbsa" else "pci.0")
