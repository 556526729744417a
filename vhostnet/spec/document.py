"""Bytes -> elements that know their line. The only user of the XML parser, which is Python's own (expat)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from vhostnet.errors import SpecError

__all__ = ["Element", "read_document"]

MAX_DEPTH: Final = 256  # elements in elements; libvirt's documents have a dozen


class _Located(Element):
    sourceline = 0


def read_document(raw: bytes) -> Element:
    """The root element of *raw*, which is UTF-8 whatever it says of itself; comments and the like are left out.

    Each element has the line where it begins, ``sourceline``.

    Raises SpecError for what is not well-formed, and for a DOCTYPE: entities are defined in one, and there is no other
    way to have one expanded, nor to have another file read.
    """
    parser = expat.ParserCreate("utf-8", "}")
    parser.buffer_text = True
    builder = TreeBuilder(element_factory=_Located)
    depth = 0

    def start(tag: str, attributes: Mapping[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise SpecError(f"elements are in more than {MAX_DEPTH} others", line=parser.CurrentLineNumber)
        element = builder.start(_qualified(tag), {_qualified(name): text for name, text in attributes.items()})
        cast(_Located, element).sourceline = parser.CurrentLineNumber

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_qualified(tag))

    def doctype(*_: object) -> None:
        raise SpecError("a DOCTYPE is not allowed", line=parser.CurrentLineNumber, expected="plain XML without a DTD")

    def declaration(version: str, *_: object) -> None:
        if not version.startswith("1."):
            raise SpecError(f"not well-formed XML: its version is {version!r}", line=1)

    parser.XmlDeclHandler = declaration
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(raw, True)
    except expat.ExpatError as error:
        raise SpecError(f"not well-formed XML: {expat.ErrorString(error.code)}", line=error.lineno) from None
    return builder.close()


def _qualified(name: str) -> str:
    """``{namespace}name``, as ElementTree has it."""
    return f"{{{name}" if "}" in name else name
