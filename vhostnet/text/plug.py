"""Network -> NIC: what a NIC of type='network' takes over from its network, and its port group."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from vhostnet.errors import SpecError
from vhostnet.spec.network import NO_VLAN, Network, PortGroup
from vhostnet.spec.parts import PortProfile
from vhostnet.spec.sources import DirectSource
from vhostnet.text.domain import attribute
from vhostnet.text.elements import UNSUPPORTED_TYPES
from vhostnet.text.reading import Place, Reading

if TYPE_CHECKING:
    from vhostnet.text.document import Element
else:
    Element = Any

# What a network would give its NICs that is not supported, and what to do instead.
UNSUPPORTED: Final = {"pf": "name its virtual functions: <interface dev=...>"}


def plug(element: Element, reading: Reading, network: Network, group_name: str | None, taken: Counter[str]) -> None:
    """Put into *reading*, of the <interface> *element*, what such a NIC takes over from its network.

    As libvirt's network driver does (networkAllocatePort): what it says itself counts before its group's, and that
    before the network's. *taken* says how many NICs of its document are on each device of the host's.
    """
    values, place = reading.values, reading.places["network"]
    group = _group(network, reading, group_name)
    _take_port(network, group, reading)
    _check_supported(network, place)
    if network.kind == "direct":
        _go_direct(network, reading, taken, trust=_trust(element, group, network))
    else:
        values["bridge"] = network.bridge
        values["mac_table_manager"] = network.mac_table_manager
    if network.isolated and not attribute(element, "port", "isolated"):
        values["isolated"] = True
    if "vlan" in values and not network.takes_vlan:
        raise reading.places["vlan"].error(f"is not for a NIC of network {network.name!r}: {NO_VLAN}")
    if "vlan" not in values:
        values["vlan"] = (group and group.vlan) or network.vlan
    if "bandwidth" not in values and group:
        values["bandwidth"] = group.bandwidth


def _trust(element: Element, group: PortGroup | None, network: Network) -> bool:
    own = {"yes": True, "no": False}.get(element.get("trustGuestRxFilters", ""))
    told = (own, group.trust_guest_rx_filters if group else None, network.trust_guest_rx_filters)
    return next((one for one in told if one is not None), False)


def _go_direct(network: Network, reading: Reading, taken: Counter[str], *, trust: bool) -> None:
    """A macvtap on the device that fewest of this document are on; libvirt knows of its other domains, too.

    A device that is passed through is one NIC's.
    """
    device = min(network.devices, key=lambda name: taken[name])
    if network.forward == "passthrough" and taken[device]:
        expected = f"{len(network.devices)} NICs of it at the most"
        raise reading.places["network"].error("has a device for each of its NICs, and no more", expected)
    taken[device] += 1
    del reading.values["network"]
    reading.values |= {"type": "direct", "source": DirectSource(device, network.forward, trust)}


def _group(network: Network, reading: Reading, name: str | None) -> PortGroup | None:
    """The one that the NIC names, or the default one. libvirt says nothing of a name that is none's."""
    if name is None:
        return next((group for group in network.portgroups if group.default), None)
    found = next((group for group in network.portgroups if group.name == name), None)
    if found is None:
        there = ", ".join(repr(group.name) for group in network.portgroups)
        expected = f"one of its groups: {there}" if there else "none: it has none"
        raise reading.places["_portgroup"].error(f"is no port group of network {network.name!r}", expected)
    return found


def _check_supported(network: Network, place: Place) -> None:
    """What a NIC there would be, and have."""
    kind = network.kind
    if kind == "direct" and not (network.devices or network.later):
        raise place.error("has neither a bridge nor a device", "<bridge name=...>, or <forward dev=...>")
    if kind in UNSUPPORTED_TYPES:
        problem = f"would make a NIC of type {kind} of it (<forward mode={network.forward!r}>)"
        raise place.error(f"{problem}, which is not supported: {UNSUPPORTED_TYPES[kind]}")
    for name in network.later:
        raise place.error(f"would give it <{name}>, which is not supported: {UNSUPPORTED[name]}")
    if not network.bridge and kind != "direct":
        raise place.error("has no <bridge name=> yet", "a running network's document: virsh net-dumpxml NETWORK")


def _take_port(network: Network, group: PortGroup | None, reading: Reading) -> None:
    """The NIC's own virtualport, the network's and its group's in one; they may not differ, nor be of any type."""
    place = reading.places["network"]
    problem = "and its port group have virtualports that differ"
    port = _merged(network.virtualport, group.virtualport if group else None, place, problem)
    problem = f"is another than that of network {network.name!r}: they differ"
    port = _merged(reading.values.pop("_profile", None), port, reading.places.get("_profile", place), problem)
    if port and port.type not in _PORTS[network.kind] and (port.type or "_profile" not in reading.places):
        expected = " or ".join(_PORTS[network.kind]) or "none"
        what = f"type {port.type}" if port.type else "no type"
        raise place.error(f"would give a NIC of type {network.kind} a virtualport of {what}", expected)
    if port:
        reading.put("_profile", port, reading.places.get("_profile", place))


def _merged(one: PortProfile | None, other: PortProfile | None, place: Place, problem: str) -> PortProfile | None:
    try:
        return one.merged(other) if one and other else one or other
    except SpecError as error:
        raise place.error(f"{problem} in {error.attribute}", f"one of {error.value}") from None


# The types of <virtualport> that libvirt takes, by what the NIC is.
_PORTS: Final = {
    "network": (),
    "bridge": ("openvswitch",),
    **dict.fromkeys(("direct", "hostdev"), ("802.1Qbg", "802.1Qbh")),
}
