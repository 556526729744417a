"""A <domain> -> what it decides for its NICs."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from vhostnet.checks import is_id
from vhostnet.spec.machines import Machine, find_machine
from vhostnet.spec.parts import CcwAddress, MmioAddress, is_uuid

if TYPE_CHECKING:
    from vhostnet.text.document import Element
else:
    Element = Any


class Domain(NamedTuple):
    """What a domain decides for its NICs. The defaults are of a document that says nothing of it."""

    type: str = "kvm"
    machine: Machine = Machine()
    buses: Mapping[int, str] = MappingProxyType({})  # what PCI buses are called, where that is not pci.N
    shared: bool | None = None  # the guest's memory is; None: nobody says
    uuid: str = ""
    devices: Counter[str] | None = None  # how many of its NICs are on each device of the host's, by their networks
    channels: bool = True  # it has s390x's, or nobody says what it is


def read_domain(root: Element, devices: Element | None) -> Domain:
    """Of a <domain> or <devices>, and the devices in it."""
    name = attribute(root, "os/type", "machine")
    arch = attribute(root, "os/type", "arch")
    machine = find_machine(arch, name)
    channels = isinstance(machine.virtio, CcwAddress) or not (arch or name)
    if devices is not None:
        first = devices.find("controller[@type='pci'][@index='0']")
        model = "" if first is None else first.get("model", "")
        machine = machine._replace(root={"pcie-root": "pcie.0", "pci-root": "pci.0"}.get(model, machine.root))
        if name.startswith("virt") and devices.find("*/address[@type='virtio-mmio']") is not None:
            machine = machine._replace(virtio=MmioAddress())  # as libvirt: where one device has it, all have
    buses = {0: machine.root, **dict(_buses(devices) if devices is not None else ())}
    if root.tag != "domain":
        return Domain("kvm", machine, buses, devices=Counter())
    uuid = root.findtext("uuid", "").strip()
    uuid = uuid if is_uuid(uuid) else ""
    return Domain(root.get("type", "kvm"), machine, buses, _shares_memory(root), uuid, Counter(), channels)


def _buses(devices: Element) -> Iterator[tuple[int, str]]:
    """As libvirt calls them: a controller's user may have named it, and a host bridge has a bus 0 of its own."""
    for controller in devices.findall("controller[@type='pci']"):
        index, alias = controller.get("index", ""), attribute(controller, "alias", "name")
        if re.fullmatch("[1-9][0-9]{0,2}", index):
            name = alias if alias.startswith("ua-") and is_id(alias) else f"pci.{index}"
            yield int(index), f"{name}.0" if controller.get("model") == "pci-root" else name


def _shares_memory(root: Element) -> bool:
    """All of it, by default or in every NUMA cell; libvirt asks for that where another process is to read it."""
    cells = root.findall("cpu/numa/cell")
    return attribute(root, "memoryBacking/access", "mode") == "shared" or (
        bool(cells) and all(cell.get("memAccess") == "shared" for cell in cells)
    )


def attribute(element: Element, path: str, name: str) -> str:
    """That of the element at *path*, or "" where there is none."""
    found = element.find(path)
    return "" if found is None else found.get(name, "")
