"""Whom QEMU's bridge helper gives NICs on which bridge: /etc/qemu/bridge.conf, read as that one reads it.

A line is ``allow`` or ``deny`` and a bridge's name or ``all``; or ``include`` and a path; or a comment, ``#`` in front.
What nothing allows is denied, and a denial holds wherever it stands. A file that is included and cannot be read counts
for nothing: so an administrator gives a bridge to those who may read it. All are read by who runs the helper (QEMU's,
setuid root, has given that up by then). Seen of QEMU's of 7.2, 10.0 and 11.1: tests/others/test_bridge_acl.py.
"""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Iterator
from typing import Final

from vhostnet.errors import VhostnetWarning

PATH: Final = "/etc/qemu/bridge.conf"  # as distributions build QEMU

_LINE: Final = 4095  # bytes of a line; what comes after them is the next one
_NAME: Final = 15  # bytes of a bridge's name
_BLANK: Final = b" \t\n\f\r"
_EXPECTED: Final = "allow NAME, deny NAME, include PATH, or # and a comment"


class AclRefused(Exception):
    """The rules give no NIC on that bridge, or cannot be followed; and what to do."""


class _Malformed(Exception):
    """A line is no rule: which one, and why."""


def check_acl(bridge: str) -> None:
    """Return if the rules allow a NIC on *bridge* to who runs this. Raises AclRefused."""
    named = (b"all", os.fsencode(bridge))
    allowed, denied, unread = False, "", []
    files = [os.fsencode(PATH)]
    for file in files:  # and those that they include, each once
        try:
            for verb, argument, place in _rules(file):
                if verb == b"include" and argument not in files:
                    files.append(argument)
                elif argument in named:
                    allowed |= verb == b"allow"
                    denied = place if verb == b"deny" else denied
        except (OSError, _Malformed) as error:
            why = f"{_shown(file)}: {error.strerror}" if isinstance(error, OSError) else str(error)
            if file is files[0]:
                raise AclRefused(_unusable(bridge, why)) from None
            unread.append(why)
    for left_out in unread:
        warnings.warn(f"included by the acl file and left out: {left_out}", VhostnetWarning, stacklevel=2)
    if denied:
        raise AclRefused(f"access denied by acl file: {denied} denies {bridge!r}: remove that line")
    if not allowed:
        raise AclRefused(f"access denied by acl file: nothing there allows {bridge!r}: {_remedy(bridge)}")


def _rules(file: bytes) -> Iterator[tuple[bytes, bytes, str]]:
    """Verb, argument and place of each line, as far as they are rules: those before a malformed one hold."""
    try:
        with open(file, "rb") as opened:
            lines = list(iter(lambda: opened.readline(_LINE), b""))
    except IsADirectoryError:  # which opens for C, and has no lines
        return
    for number, line in enumerate(lines, 1):
        text = line.partition(b"\0")[0].lstrip(_BLANK)
        if text and not text.startswith(b"#"):
            place = f"line {number} of {_shown(file)}"
            yield *_rule(text, place), place


def _rule(text: bytes, place: str) -> tuple[bytes, bytes]:
    """The first space ends the verb, and a tab only where there is none.

    Raises _Malformed, without the line: it could be one of any file that whoever runs this has led us to.
    """
    verb, gap, argument = text.partition(b" " if b" " in text else b"\t")
    argument = argument.strip(_BLANK)
    if not gap or verb not in (b"allow", b"deny", b"include"):
        raise _Malformed(f"{place} is no rule; expected {_EXPECTED}")
    if verb != b"include" and len(argument) > _NAME:
        raise _Malformed(f"{place} has a name of {len(argument)} bytes; expected at most {_NAME}")
    return verb, argument


def _unusable(bridge: str, why: str) -> str:
    remedy = f": mkdir -p {os.path.dirname(PATH)} && {_remedy(bridge)}" if not os.path.lexists(PATH) else ""
    return f"failed to parse default acl file: {why}{remedy}"


def _remedy(bridge: str) -> str:
    return f"echo {shlex.quote(f'allow {bridge}')} >>{PATH}"


def _shown(text: bytes) -> str:
    return repr(os.fsdecode(text))
