"""What goes wrong, as it goes over the wire, and as the client has it again: the same exception."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vhostnet import errors
from vhostnet.errors import HandoverError, HostError, PolicyRefused, SpecError, VhostnetError

INTERFACE: Final = "io.vhostnet.Broker"
_FORBIDDEN: Final = f"{INTERFACE}.Forbidden"
_UNMEANT: Final = f"{INTERFACE}.Unmeant"
_REFUSED: Final = f"{INTERFACE}.Refused"


def refusal_of(error: HostError) -> dict[str, Any]:
    """What the host refused, as values."""
    return {
        "kind": type(error).__name__,
        "errno": error.errno or 0,
        "problem": error.strerror or "",
        "act": error.act,
        "call": error.call,
        "ifname": error.ifname,
        "queue": error.queue,
        "remedy": error.remedy,
        "rule": getattr(error, "rule", None),
    }


def packed_error(error: VhostnetError) -> tuple[str, dict[str, Any]]:
    """The error's name, and its parameters."""
    if isinstance(error, PolicyRefused):
        return _FORBIDDEN, {"refusal": refusal_of(error)}
    if isinstance(error, HostError):
        return _REFUSED, {"refusal": refusal_of(error)}
    if isinstance(error, SpecError):
        value = None if error.value is None else str(error.value)
        place = {"element": error.element, "attribute": error.attribute, "line": error.line, "value": value}
        return _UNMEANT, {"problem": error.problem, **place, "expected": error.expected}
    return _UNMEANT, {"problem": str(error), "expected": ""}


def read_refusal(said: Mapping[str, Any]) -> HostError:
    """The exception that refusal_of() was given."""
    kind = getattr(errors, str(said.get("kind")), HostError)
    if kind is PolicyRefused:
        return PolicyRefused(str(said.get("problem")), rule=said.get("rule"), ifname=said.get("ifname"))
    if not (isinstance(kind, type) and issubclass(kind, HostError)):
        kind = HostError
    where: dict[str, Any] = {name: said.get(name) for name in ("act", "call", "ifname", "queue")}
    code = said.get("errno")
    error: HostError = kind(code if type(code) is int else 0, str(said.get("problem")), **where)
    error.remedy = str(said.get("remedy", ""))
    return error


def read_error(name: str, said: Mapping[str, Any]) -> VhostnetError:
    """The exception that packed_error() was given; what a broker says besides is a HandoverError."""
    if name in (_FORBIDDEN, _REFUSED):
        return read_refusal(said.get("refusal") or {})
    if name == _UNMEANT:
        place = {key: said.get(key) for key in ("element", "attribute", "line", "value")}
        return SpecError(str(said.get("problem")), **place, expected=str(said.get("expected", "")))
    return HandoverError(f"the broker refuses: {name.rpartition('.')[2]} {dict(said) or ''}".rstrip())
