"""What has been read of one <interface>, where each value stood, and what is said of one that cannot be meant."""

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from vhostnet.errors import SpecError, VhostnetWarning
from vhostnet.spec.elements import Ignored, Known, Reader

if TYPE_CHECKING:
    from vhostnet.spec.document import Element
else:
    Element = Any


class Place(NamedTuple):
    """Where a value stood, and its text there."""

    element: str
    attribute: str | None
    line: int
    text: str | None

    def error(self, problem: str, expected: str = "") -> SpecError:
        return SpecError(
            problem,
            element=self.element,
            attribute=self.attribute,
            line=self.line,
            value=self.text,
            expected=expected,
        )


def at(element: Element, attribute: str | None = None, text: str | None = None) -> Place:
    if attribute and text is None:
        text = element.get(attribute)
    return Place(str(element.tag), attribute, getattr(element, "sourceline", 0), text)


Elsewhere = Mapping[str, tuple[str, str] | None]
_NOTHING: Mapping[str, Any] = {}


class Reading:
    """What has been read of one <interface>, and where each value stood."""

    def __init__(
        self, strict: bool, own: Known = _NOTHING, elsewhere: Elsewhere = _NOTHING, many: Iterable[str] = ()
    ) -> None:
        """*own* is what only NICs of this type have, *many* of it may come more than once and is kept for the end.

        *elsewhere* is what only others have: why it is refused, and what would be right; or None where it is ignored.
        """
        self.strict = strict
        self.own = own
        self.elsewhere = elsewhere
        self.kept: dict[str, list[Element]] = {name: [] for name in many}
        self.values: dict[str, Any] = {}
        self.places: dict[str, Place] = {}

    def put(self, name: str, value: Any, place: Place) -> None:
        """None asks for nothing."""
        if value is not None:
            self.values[name] = value
            self.places[name] = place

    def drop(self, name: str, why: str) -> None:
        """libvirt reads it, and does nothing with it here."""
        if name in self.values:
            self.unknown(f"has no effect {why}", self.places[name])
            del self.values[name]

    def unknown(self, problem: str, place: Place) -> None:
        error = place.error(problem)
        if self.strict:
            raise error
        warn(error)


def read(place: Place, reader: Reader, reading: Reading) -> Any:
    try:
        return reader(place.text or "")
    except Ignored as why:
        return reading.unknown(str(why), place)
    except ValueError as error:
        raise place.error("is not readable", str(error)) from None


def warn(error: SpecError) -> None:
    warnings.warn(str(error), VhostnetWarning, stacklevel=3)
