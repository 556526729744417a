"""Text -> elements that know their line. The only user of the XML parser, which is Python's own (expat)."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from typing import Final, cast
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from vhostnet.errors import SpecError

__all__ = ["Element", "read_document"]

MAX_DEPTH: Final = 256  # elements in elements; libvirt's documents have a dozen
MAX_NODES: Final = 64 * 1024  # tags and attributes; each takes 200 bytes, and as few as four in the text


class _Located(Element):
    sourceline = 0


def read_document(text: str | bytes, limit: int) -> Element:
    """The root element of *text*, of at most *limit* bytes in UTF-8; comments and the like are left out.

    Each element has the line where it begins, ``sourceline``.

    Raises SpecError for what is too long or not well-formed, and for a DOCTYPE: entities are defined in one, and there
    is no other way to have one expanded, nor to have another file read.
    """
    if not isinstance(text, (str, bytes)):
        raise TypeError(f"XML is str or bytes, not {type(text).__name__}")
    raw = (text if isinstance(text, str) else _decode(text)).encode("utf-8", "surrogatepass")
    nodes = raw.count(b"<") + raw.count(b"=")
    for count, most, what in ((len(raw), limit, "bytes"), (nodes, MAX_NODES, "tags and attributes")):
        if count > most:
            raise SpecError(f"the document has {count} {what}", expected=f"at most {most}")
    return _parsed(raw)


# What a document's bytes are, by their byte order mark, and what it may call that.
_UTF_8: Final = ("utf-8", ("utf-8",))
_UTF_16: Final = {
    codecs.BOM_UTF16_LE: ("utf-16-le", ("utf-16", "utf-16le")),
    codecs.BOM_UTF16_BE: ("utf-16-be", ("utf-16", "utf-16be")),
}
_DECLARED = r"""\ufeff?<\?xml[^>]*?\sencoding\s*=\s*["']([^"']*)"""


def _decode(raw: bytes) -> str:
    """UTF-8, as libvirt writes it, or UTF-16: in others (UTF-7, ...) tags hide from whoever looks at the bytes."""
    encoding, names = _UTF_16.get(raw[:2], _UTF_8)
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise SpecError(f"not well-formed XML: no {encoding} at byte {error.start}") from None
    declared = re.match(_DECLARED, text)
    allowed = (*names, "us-ascii", "ascii") if text.isascii() else names
    if declared and declared[1].lower() not in allowed:
        raise SpecError("is not this document's", attribute="encoding", value=declared[1], expected=" or ".join(names))
    return text


def _parsed(raw: bytes) -> Element:
    """Its root; it is UTF-8, whatever it says of itself."""
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
