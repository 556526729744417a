"""What one value may be, of whatever it is a part."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

# Patterns are compiled by the first value that needs them: all of them at once would take as long as a NIC.

Check = Callable[[Any], bool]

_CONTROL = r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"  # bidi's with them
_ID = r"[A-Za-z][A-Za-z0-9_.-]{0,127}"
_GENERATED = r"net[0-9]+"
_ADDR = r"(0x)?[01]?[0-9A-Fa-f](\.(0x)?[0-7])?"


def is_id(value: object) -> bool:
    """What QEMU takes as an id, of a device or a bus: a letter, then letters, digits and ``-._``."""
    return isinstance(value, str) and re.fullmatch(_ID, value) is not None


def is_generated(alias: object) -> bool:
    """An alias as libvirt generates them: it stands for nothing, and another is as good."""
    return isinstance(alias, str) and re.fullmatch(_GENERATED, alias) is not None


def is_addr(value: object) -> bool:
    """A PCI slot, with or without function, as QEMU's ``addr=`` takes it: ``0x7``, ``0x7.0x1``."""
    return isinstance(value, str) and re.fullmatch(_ADDR, value) is not None


def is_link_name(value: object) -> bool:
    """A link that exists already: whatever the kernel's dev_valid_name() lets exist."""
    return (
        is_text(value)
        and isinstance(value, str)
        and 0 < len(value.encode()) <= 15
        and value not in (".", "..")
        and not re.search(r"[/:\s]", value)
    )


def matches(pattern: str) -> Check:
    """The whole of it is of this pattern."""
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def one_of(*words: str) -> Check:
    """One of these words."""
    return lambda value: isinstance(value, str) and value in words


def tuple_of(kind: type[Any]) -> Check:
    """A tuple of nothing else."""
    return lambda value: isinstance(value, tuple) and all(isinstance(one, kind) for one in value)


def is_whole(value: object, low: int, high: int) -> bool:
    """A whole number within these limits; True and False are none."""
    return type(value) is int and low <= value <= high


def whole(low: int, high: int) -> Check:
    """is_whole() within these limits."""
    return lambda value: is_whole(value, low, high)


def is_bool(value: object) -> bool:
    """True or False, and no number that is as good."""
    return isinstance(value, bool)


def is_text(value: object) -> bool:
    """Any text without control characters: a newline could forge a line or an option, a bidi override its look."""
    return isinstance(value, str) and re.search(_CONTROL, value) is None


def is_path(value: object) -> bool:
    """An absolute path that is such text."""
    return is_text(value) and isinstance(value, str) and value.startswith("/") and len(value) < 4096


def is_program(value: object) -> bool:
    """The path of a program, or its name alone, which is looked for in $PATH: as libvirt finds a script."""
    return is_path(value) or (is_text(value) and isinstance(value, str) and 0 < len(value) < 256 and "/" not in value)
