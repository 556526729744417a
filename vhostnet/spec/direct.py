"""The map of <interface> for type direct, a macvtap: what only it has, and what it cannot have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vhostnet.errors import SpecError
from vhostnet.spec.elements import Known, plain, word
from vhostnet.spec.reading import Elsewhere, Reading, at
from vhostnet.spec.sources import MODES, DirectSource

if TYPE_CHECKING:
    from vhostnet.spec.document import Element

# As elements.KNOWN; every name begins with "_", since none is a field: finish() uses them.
OWN: Final[Known] = {
    "source": {"dev": ("_dev", plain), "mode": ("_mode", word(**{mode: mode for mode in MODES}))},
}

_REFUSED: Final = "is not for this type, and libvirt refuses it, too"
_ELSEWHERE: Final[Elsewhere] = {
    "filterref": (_REFUSED, "type bridge, network or ethernet"),
    "script": (_REFUSED, "type ethernet"),
    "downscript": (_REFUSED, "type ethernet"),
    "source/ip": (_REFUSED, "type ethernet"),
    "source/route": (_REFUSED, "type ethernet"),
    "vlan": (
        "is not supported yet: libvirt has it for passthrough on a VF alone",
        "no <vlan>: ip link set PF vf NUMBER vlan ID, or a VLAN device of its own as the parent",
    ),
    "virtualport": (
        "is not supported yet: it would be lldpad's (802.1Qbg) or the card's (802.1Qbh)",
        "no <virtualport>; where the switch needs one, lldptool gives it to the parent",
    ),
}


def begin(element: Element, strict: bool) -> Reading:
    """What a NIC of type direct is read into."""
    if element.get("trustGuestRxFilters") == "yes":
        problem = "is not supported yet: nobody here listens to QEMU"
        raise at(element, "trustGuestRxFilters").error(problem, "no, and one MAC for as long as the guest runs")
    reading = Reading(strict, OWN, _ELSEWHERE)
    reading.values["type"] = "direct"
    return reading


def finish(element: Element, reading: Reading) -> None:
    """Make the source of what was read, and leave in ``reading.values`` the fields of the spec alone."""
    dev, mode = reading.values.pop("_dev", None), reading.values.pop("_mode", MODES[0])
    source = element.find("source")
    if dev is None:
        raise at(element if source is None else source, "dev").error(
            "is missing", "the link to be on: <source dev=...>"
        )
    try:
        reading.values["source"] = DirectSource(dev, mode)
    except SpecError as error:
        raise reading.places["_dev"].error(error.problem, error.expected) from None
