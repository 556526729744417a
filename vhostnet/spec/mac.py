"""MAC addresses: read, made at random, and turned into the one the TAP gets.

A MAC is six octets, written lower-case with colons; it must be unicast and not zero.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator

_OCTETS = r"[0-9A-Fa-f]{1,2}(:[0-9A-Fa-f]{1,2}){5}"
_NORMAL = re.compile(r"(?!00(:00){5})[0-9a-f][02468ace](:[0-9a-f]{2}){5}").fullmatch

EXPECTED = "six hexadecimal octets with colons, unicast and not zero, such as 52:54:00:12:34:56"


def normalize(text: object) -> str | None:
    """*text* lower-case with two digits an octet; None when it is no unicast, non-zero MAC.

    One-digit octets are taken as libvirt's parser takes them. Multicast addresses (lowest bit of the
    first octet) and zero are refused by the kernel for the TAP; QEMU takes them for the guest, to
    nobody's use.
    """
    if isinstance(text, str) and _NORMAL(text):
        return text
    if not isinstance(text, str) or not re.fullmatch(_OCTETS, text):
        return None
    octets = [int(part, 16) for part in text.split(":")]
    if octets[0] & 1 or not any(octets):
        return None
    return ":".join(f"{octet:02x}" for octet in octets)


def _count_from_anywhere() -> Iterator[int]:
    return itertools.count(int.from_bytes(os.urandom(3), "big"))


def random_mac() -> str:
    """A fresh MAC in QEMU's and libvirt's own prefix, 52:54:00; no two of this process are the same.

    They count on from a random start: of a thousand that were random each, two are the same in one case of thirty.
    """
    return "52:54:00:" + (next(_numbers) & 0xFFFFFF).to_bytes(3, "big").hex(":")


_numbers = _count_from_anywhere()


def _count_anew() -> None:
    global _numbers
    _numbers = _count_from_anywhere()


os.register_at_fork(after_in_child=_count_anew)  # or parent and child would count through the same


def octets(mac: str) -> bytes:
    """The six octets of a normalized MAC."""
    return bytes.fromhex(mac.replace(":", ""))


def tap_mac(guest: str) -> bytes:
    """The six octets the TAP gets when the guest's NIC has *guest* (a normalized MAC).

    libvirt's rule: the guest's address with a first octet of 0xFE, or 0xFA where the guest's own is
    0xFE already. Never the guest's own (the kernel would log "received packet with own address"), and
    so high that a bridge, which takes the lowest MAC of its ports, does not take this one.
    """
    first = "fa" if guest.startswith("fe") else "fe"
    return octets(first + guest[2:])
