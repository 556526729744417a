"""libvirt <interface> XML in; a multi-queue TAP on its bridge, vhost-net fds and QEMU arguments out.

spec = vhostnet.parse_interface(xml)              what is asked, as a value
print(vhostnet.plan_nics([spec]))                 every kernel act, in order, before anything is touched
with vhostnet.open_nic(spec) as nic:              all of them, or none
    subprocess.Popen(["qemu-system-x86_64", *nic.qemu_argv()], pass_fds=nic.fds)
# ... and the NIC is gone
"""

from vhostnet.closing import close_nics
from vhostnet.cost import Cost, Limits, cost
from vhostnet.engines import select as select_engine
from vhostnet.errors import (
    BridgeFull,
    DeviceGone,
    EngineUnavailable,
    FlagMismatch,
    Holder,
    HostError,
    NameBusy,
    NicClosed,
    NoSuchBridge,
    NotABridge,
    NotPermitted,
    PoolClosed,
    QueueLimit,
    ResourceExhausted,
    SpecError,
    Unsupported,
    VhostnetError,
    VhostnetWarning,
    VhostUnavailable,
)
from vhostnet.host import limits, open_nic, open_nics, plan_nics
from vhostnet.marks import Mark
from vhostnet.nic import Nic, Timing, Vhost
from vhostnet.others import effects
from vhostnet.parse import parse_any, parse_domain, parse_interface
from vhostnet.plan import Act, Fds, NicRow, Op, Program
from vhostnet.pool import NicPool, PoolStats
from vhostnet.qemu import assign_aliases, assign_machine, caveats, fitted, qemu_argv, qemu_properties
from vhostnet.spec import CcwAddress, InterfaceSpec, MmioAddress, PciAddress
from vhostnet.survey import FoundNic, list_nics

__version__ = "0.1.0"

__all__ = [
    "Act",
    "BridgeFull",
    "CcwAddress",
    "Cost",
    "DeviceGone",
    "EngineUnavailable",
    "Fds",
    "FlagMismatch",
    "FoundNic",
    "Holder",
    "HostError",
    "InterfaceSpec",
    "Limits",
    "Mark",
    "MmioAddress",
    "NameBusy",
    "Nic",
    "NicClosed",
    "NicPool",
    "NicRow",
    "NoSuchBridge",
    "NotABridge",
    "NotPermitted",
    "Op",
    "PciAddress",
    "PoolClosed",
    "PoolStats",
    "Program",
    "QueueLimit",
    "ResourceExhausted",
    "SpecError",
    "Timing",
    "Unsupported",
    "Vhost",
    "VhostUnavailable",
    "VhostnetError",
    "VhostnetWarning",
    "assign_aliases",
    "assign_machine",
    "caveats",
    "close_nics",
    "cost",
    "effects",
    "fitted",
    "limits",
    "list_nics",
    "open_nic",
    "open_nics",
    "parse_any",
    "parse_domain",
    "parse_interface",
    "plan_nics",
    "qemu_argv",
    "qemu_properties",
    "select_engine",
]
