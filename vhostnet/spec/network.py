"""A libvirt network, as far as it bears on a NIC: its values, and what may not be together in one.

Addresses, DHCP, names and the bridge's own shaping are the business of whoever makes the bridge.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from vhostnet.checks import Check, is_bool, is_link_name, is_text, one_of, whole
from vhostnet.errors import SpecError
from vhostnet.spec.parts import Bandwidth, PortProfile, Vlan
from vhostnet.values import dataclass

ROUTED: Final = ("nat", "route", "open")  # and "": libvirt has made the bridge, and is its guests' router or none
DIRECT: Final = ("bridge", "private", "vepa", "passthrough")  # "bridge" where it has none: macvtap on a device
MODES: Final = ("", *ROUTED, *DIRECT, "hostdev")


@dataclass(frozen=True, kw_only=True)
class PortGroup:
    """What those of a network's NICs have that name this group; the ``default`` one is of those that name none."""

    name: str
    default: bool = False
    vlan: Vlan | None = None
    virtualport: PortProfile | None = None
    bandwidth: Bandwidth | None = None
    trust_guest_rx_filters: bool | None = None

    def __post_init__(self) -> None:
        _check_values(self, _GROUP_RULES)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A libvirt network, as far as it bears on a NIC; made by ``parse_network`` or straight in Python.

    ``forward`` is its mode: "nat", "route", "open" or "" (isolated), which libvirt makes the ``bridge`` for; "bridge"
    for a ``bridge`` that is there; this one without a bridge, "private", "vepa" and "passthrough" for one of
    ``devices`` of the host; "hostdev". ``bridge`` None is one that libvirt has yet to name. ``mtu`` is the bridge's, in
    bytes. ``isolated``, ``vlan``, ``virtualport`` and, of macvtaps, ``trust_guest_rx_filters`` are those of NICs that
    say nothing of it, nor their group.

    Raises SpecError, naming the argument, its value and what would be right.
    """

    name: str
    forward: str = ""
    bridge: str | None = None
    devices: tuple[str, ...] = ()
    mac_table_manager: str | None = None
    mtu: int | None = None
    isolated: bool | None = None
    vlan: Vlan | None = None
    virtualport: PortProfile | None = None
    trust_guest_rx_filters: bool | None = None
    portgroups: tuple[PortGroup, ...] = ()
    later: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What its NICs are: "network" on libvirt's own bridge, "bridge" on another, "direct" or "hostdev"."""
        if self.forward in ("", *ROUTED):
            return "network"
        if self.forward == "hostdev":
            return "hostdev"
        return "bridge" if self.bridge else "direct"

    @property
    def takes_vlan(self) -> bool:
        """Its NICs may be in VLANs."""
        return self.kind in ("bridge", "hostdev") or self.forward == "passthrough"

    def __post_init__(self) -> None:
        for name in ("devices", "portgroups"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_values(self, _RULES)
        _check_groups(self.portgroups)
        _check_mode(self)


def _check(name: str, value: object, allowed: bool, expected: str) -> None:
    if not allowed:
        raise SpecError("is not allowed", attribute=name, value=value, expected=expected)


_YES_NO: Final = "yes or no (True or False)"
_LINK: Final = "the name of a link, 1 to 15 bytes"
_PORT_RULES: Final[tuple[tuple[str, Check, str], ...]] = (
    ("vlan", lambda value: isinstance(value, Vlan), "a Vlan"),
    ("virtualport", lambda value: isinstance(value, PortProfile), "a PortProfile"),
)
_GROUP_RULES: Final = (
    ("name", lambda value: is_text(value) and value != "", "the group's name"),
    ("default", is_bool, _YES_NO),
    ("bandwidth", lambda value: isinstance(value, Bandwidth), "a Bandwidth"),
    ("trust_guest_rx_filters", is_bool, _YES_NO),
    *_PORT_RULES,
)
_RULES: Final = (
    ("name", lambda value: is_text(value) and value != "" and "/" not in value, "a network's name, without /"),
    ("forward", one_of(*MODES), ", ".join(MODES[1:])),
    ("bridge", is_link_name, _LINK),
    ("devices", lambda value: all(map(is_link_name, value)) and len(set(value)) == len(value), f"{_LINK}, each once"),
    ("mac_table_manager", one_of("kernel", "libvirt"), "kernel or libvirt"),
    ("mtu", whole(68, 65521), "a whole number of bytes, 68..65521"),
    ("isolated", is_bool, _YES_NO),
    ("trust_guest_rx_filters", is_bool, _YES_NO),
    *_PORT_RULES,
    ("portgroups", lambda value: all(isinstance(group, PortGroup) for group in value), "PortGroups"),
)


_NEVER_NONE: Final = ("name", "forward", "default")


def _check_values(one: PortGroup | Network, rules: tuple[tuple[str, Check, str], ...]) -> None:
    for name, allowed, expected in rules:
        value = getattr(one, name)
        _check(name, value, allowed(value) if value is not None else name not in _NEVER_NONE, expected)


def _check_mode(network: Network) -> None:
    """libvirt refuses what a mode has no use for."""
    mode, bridge, manager = network.forward, network.bridge, network.mac_table_manager
    if mode in (*DIRECT[1:], "hostdev"):
        _check("bridge", bridge, bridge is None, f"none with forward mode {mode}")
        _check("mac_table_manager", manager, manager is None, f"none with forward mode {mode}")
    if mode in (*DIRECT, "hostdev"):
        _check("mtu", network.mtu, network.mtu is None, f"none with forward mode {mode}: the bridge has its own")
    if bridge is not None and mode == "bridge":
        _check("devices", network.devices, not network.devices, "a bridge, or devices, and not both")
    if not network.takes_vlan:
        _check("vlan", network.vlan, network.vlan is None, f"none: {NO_VLAN}")
        group = next((group for group in network.portgroups if group.vlan), None)
        _check("portgroups", group and group.name, group is None, f"none with a <vlan>: {NO_VLAN}")
    if network.kind in ("direct", "hostdev"):
        group = next((group for group in network.portgroups if group.bandwidth), None)
        _check("portgroups", group and group.name, group is None, f"none with a <bandwidth>: {_NO_BANDWIDTH}")


NO_VLAN: Final = "libvirt has VLANs on a bridge that it has not made, with forward mode bridge"
_NO_BANDWIDTH: Final = "libvirt has it on a bridge, and each NIC may have its own"


def _check_groups(groups: tuple[PortGroup, ...]) -> None:
    names = Counter(group.name for group in groups)
    twice = next((name for name, count in names.items() if count > 1), None)
    _check("portgroups", twice, twice is None, "one group of a name")
    defaults = [group.name for group in groups if group.default]
    _check("portgroups", " and ".join(defaults), len(defaults) < 2, "one default group")
