"""What NICs may not be together in one batch, nor made ahead, nor left behind: refused before there is a plan."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeVar, cast

from vhostnet.errors import SpecError
from vhostnet.program.rows import floor_of
from vhostnet.spec.interface import InterfaceSpec

if TYPE_CHECKING:
    from vhostnet.spec.sources import DirectSource  # a source is for few

_T = TypeVar("_T")
_NOT_READY: Final = "is nothing that a pool can have ready"


def check_plain(spec: InterfaceSpec) -> None:
    """A NIC that is made ahead has no slow acts: they are about whom it is for, and take longer than to make one."""
    for name in ("virtualport", "script", "downscript", "tap_ips", "tap_routes"):
        value = getattr(spec, name)
        if value:
            raise SpecError(_NOT_READY, attribute=name, value=value, expected="open_nics() for such")
    if floor := floor_of(spec):
        raise SpecError(_NOT_READY, attribute="floor", value=floor.rate // 1000, expected="open_nics() for such")


def check_lasting(specs: Sequence[InterfaceSpec]) -> None:
    for spec in specs:
        if spec.downscript:
            raise SpecError(
                "would be left for nobody to run, when the NIC outlives its maker",
                attribute="downscript",
                value=spec.downscript,
                expected="none, and to run it after delete_nics()",
            )
        if floor := floor_of(spec):
            raise SpecError(
                "would be left for nobody to take away, when the NIC outlives its maker",
                attribute="floor",
                value=floor.rate // 1000,
                expected="none",
            )


def check_unique(what: str, values: Sequence[str]) -> None:
    twice = _first_twice(values)
    if twice is not None:
        raise SpecError("is asked for twice in one batch", attribute=what, value=twice)


def check_macs(specs: Sequence[InterfaceSpec]) -> None:
    """A bridge forwards by MAC, so one MAC is one port of it. Clones of a VM on a bridge each are no harm.

    So does a link that macvtaps are on.
    """
    bridges = [(spec.bridge, spec.mac) for spec in specs if spec.bridge]
    parents = [(cast("DirectSource", spec.source).dev, spec.mac) for spec in specs if spec.type == "direct"]
    for what, places in (("bridge", bridges), ("link", parents)):
        twice = _first_twice(places)
        if twice is not None:
            place, mac = twice
            raise SpecError(f"is asked for twice on {what} {place!r} in one batch", attribute="mac", value=mac)


def _first_twice(values: Sequence[_T]) -> _T | None:
    if len(set(values)) == len(values):
        return None
    return next(value for value, times in Counter(values).items() if times > 1)
