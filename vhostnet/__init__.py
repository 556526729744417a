"""libvirt <interface> XML in; a multi-queue TAP on its bridge, vhost-net fds and QEMU arguments out.

spec = vhostnet.parse_interface(xml)              what is asked, as a value
print(vhostnet.plan_nics([spec]))                 every kernel act, in order, before anything is touched
with vhostnet.open_nic(spec) as nic:              all of them, or none
    subprocess.Popen(["qemu-system-x86_64", *nic.qemu_argv()], pass_fds=nic.fds)
# ... and the NIC is gone
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vhostnet.engines import select as select_engine
from vhostnet.errors import (
    BridgeFull,
    DeviceGone,
    EngineUnavailable,
    FlagMismatch,
    HandoverError,
    Holder,
    HostError,
    NameBusy,
    NicClosed,
    NoSuchBridge,
    NoSuchLink,
    NoSuchTap,
    NotABridge,
    NotPermitted,
    PolicyRefused,
    PoolClosed,
    QemuGone,
    QemuRefused,
    QueueLimit,
    ResourceExhausted,
    SpecError,
    Unsupported,
    VhostnetError,
    VhostnetWarning,
    VhostUnavailable,
)
from vhostnet.events import DoneAct, Event, Listening, on_event
from vhostnet.host.closing import close_nics
from vhostnet.host.marks import Mark
from vhostnet.host.nic import Nic, Timing, Vhost
from vhostnet.host.opening import limits, open_nic, open_nics, plan_nics
from vhostnet.program.cost import Cost, Limits, cost
from vhostnet.program.parts import Act, Fds, NicRow, Op
from vhostnet.program.program import Program
from vhostnet.qemu.argv import assign_aliases, assign_machine, caveats, fitted, qemu_argv, qemu_properties
from vhostnet.spec.interface import InterfaceSpec
from vhostnet.spec.parts import (
    Bandwidth,
    CcwAddress,
    HostIp,
    HostRoute,
    MmioAddress,
    PciAddress,
    PortProfile,
    Rate,
    SpaprVioAddress,
    UsbAddress,
    VirtualPort,
    Vlan,
    ZpciAddress,
)
from vhostnet.text.parse import parse_any, parse_domain, parse_interface
from vhostnet.version import __version__ as __version__

if TYPE_CHECKING:
    from vhostnet.broker.client import Broker, connect
    from vhostnet.handover.passing import recv_nics, send_nics
    from vhostnet.handover.restart import inherit_nics, restore_nics, store_nics, unstore_nics
    from vhostnet.host.effects import effects
    from vhostnet.host.lasting import delete_nics
    from vhostnet.host.pool import NicPool, PoolStats
    from vhostnet.host.survey import FoundNic, list_nics
    from vhostnet.qemu.vdpa import open_vdpa
    from vhostnet.spec.network import Network, PortGroup
    from vhostnet.spec.sources import DirectSource, PasstSource, SocketSource, UserSource, VdpaSource, VhostUserSource
    from vhostnet.text.networks import parse_network

__all__ = [
    "Act",
    "Bandwidth",
    "BridgeFull",
    "Broker",
    "CcwAddress",
    "Cost",
    "DeviceGone",
    "DirectSource",
    "DoneAct",
    "EngineUnavailable",
    "Event",
    "Fds",
    "FlagMismatch",
    "FoundNic",
    "HandoverError",
    "Holder",
    "HostError",
    "HostIp",
    "HostRoute",
    "InterfaceSpec",
    "Limits",
    "Listening",
    "Mark",
    "MmioAddress",
    "NameBusy",
    "Network",
    "Nic",
    "NicClosed",
    "NicPool",
    "NicRow",
    "NoSuchBridge",
    "NoSuchLink",
    "NoSuchTap",
    "NotABridge",
    "NotPermitted",
    "Op",
    "PasstSource",
    "PciAddress",
    "PolicyRefused",
    "PoolClosed",
    "PoolStats",
    "PortGroup",
    "PortProfile",
    "Program",
    "QemuGone",
    "QemuRefused",
    "QueueLimit",
    "Rate",
    "ResourceExhausted",
    "SocketSource",
    "SpaprVioAddress",
    "SpecError",
    "Timing",
    "Unsupported",
    "UsbAddress",
    "UserSource",
    "VdpaSource",
    "Vhost",
    "VhostUnavailable",
    "VhostUserSource",
    "VhostnetError",
    "VhostnetWarning",
    "VirtualPort",
    "Vlan",
    "ZpciAddress",
    "assign_aliases",
    "assign_machine",
    "caveats",
    "close_nics",
    "connect",
    "cost",
    "delete_nics",
    "effects",
    "fitted",
    "inherit_nics",
    "limits",
    "list_nics",
    "on_event",
    "open_nic",
    "open_nics",
    "open_vdpa",
    "parse_any",
    "parse_domain",
    "parse_interface",
    "parse_network",
    "plan_nics",
    "qemu_argv",
    "qemu_properties",
    "recv_nics",
    "restore_nics",
    "select_engine",
    "send_nics",
    "store_nics",
    "unstore_nics",
]

# What opening a NIC does not need is imported when it is asked for.
_LATER = {
    "effects": "vhostnet.host.effects",
    "FoundNic": "vhostnet.host.survey",
    "delete_nics": "vhostnet.host.lasting",
    "list_nics": "vhostnet.host.survey",
    "NicPool": "vhostnet.host.pool",
    "PoolStats": "vhostnet.host.pool",
    "open_vdpa": "vhostnet.qemu.vdpa",
    **dict.fromkeys(("Broker", "connect"), "vhostnet.broker.client"),
    **dict.fromkeys(("recv_nics", "send_nics"), "vhostnet.handover.passing"),
    **dict.fromkeys(("inherit_nics", "restore_nics", "store_nics", "unstore_nics"), "vhostnet.handover.restart"),
    **dict.fromkeys(("Network", "PortGroup"), "vhostnet.spec.network"),
    **dict.fromkeys(
        ("DirectSource", "PasstSource", "SocketSource", "UserSource", "VdpaSource", "VhostUserSource"),
        "vhostnet.spec.sources",
    ),
    "parse_network": "vhostnet.text.networks",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(_LATER[name]), name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
