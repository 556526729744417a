"""The map of libvirt's <interface>: which attribute of which element fills which field, and how its text is read.

What is here under LATER is known to libvirt and not done yet; what is nowhere here libvirt does not know.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any, Final

from vhostnet.errors import VhostnetWarning
from vhostnet.spec import MODELS, CcwAddress, MmioAddress, PciAddress

Reader = Callable[[str], Any]  # raises ValueError with what would have been right

# --- reading one value -----------------------------------------------------------------------------------

_DIGITS = re.compile(r"[0-9]{1,20}", re.ASCII)
_NUMBER = re.compile(r"0[xX][0-9A-Fa-f]{1,8}|0|[1-9][0-9]{0,9}", re.ASCII)


def _str(text: str) -> str:
    return text


def whole(text: str) -> int:
    if not _DIGITS.fullmatch(text):  # int() would take other scripts' digits, "1_000", " 4 " and "+4" as well
        raise ValueError("a whole number in decimal digits")
    return int(text)


def _device(text: str) -> str:
    """A path that means the same node whoever opens it: in /proc it would be one of our own fds, or another's file."""
    parts = [part for part in text.split("/") if part]
    if not {".", ".."}.isdisjoint(parts) or parts[:1] == ["proc"] or parts[:2] == ["dev", "fd"]:
        raise ValueError("the path of a device node: without . and .., and not in /proc or /dev/fd")
    return text


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError("a whole number, decimal or 0x and hexadecimal")
    return int(text, 0)


def _word(**words: Any) -> Reader:
    def read(text: str) -> Any:
        if text not in words:
            raise ValueError(" or ".join(words))
        return words[text]

    return read


_onoff = _word(on=True, off=False)
_yesno = _word(yes=True, no=False)
_GENERATED = re.compile(r"(vnet|macvtap|macvlan)[0-9]+", re.ASCII)


def _ifname(text: str) -> str | None:
    """libvirt's own prefixes mark a generated name: it is generated anew."""
    if not text.startswith(("vnet", "macvtap", "macvlan")):
        return text
    if not _GENERATED.fullmatch(text) and text != "vnet%d":
        warnings.warn(
            f"<target dev={text!r}>: libvirt keeps this prefix for names it generates; another name will be generated",
            VhostnetWarning,
            stacklevel=2,
        )
    return None


def _alias(text: str) -> str:
    """A user's alias (``ua-``), or the one a running libvirt domain shows (``net0``). libvirt ignores any other."""
    if not re.fullmatch(r"ua-[A-Za-z0-9_-]+|net[0-9]+", text, re.ASCII):
        raise ValueError("ua- and letters, digits, - or _; or netN")
    return text


def _model(text: str) -> str:
    """libvirt knows its models in any case of letters."""
    return text.lower() if text.lower() in MODELS else text


# --- the map ---------------------------------------------------------------------------------------------

# element -> attribute -> (field, reader). Names that start with "_" are not fields: _finish() uses them.
KNOWN: Final[dict[str, dict[str, tuple[str, Reader]]]] = {
    "interface": {"type": ("type", _str)},
    "mac": {"address": ("mac", _str)},
    "model": {"type": ("model", _model)},
    "source": {"bridge": ("bridge", _str), "network": ("network", _str)},
    "target": {"dev": ("ifname", _ifname)},
    "driver": {
        "name": ("vhost", _word(vhost="require", qemu="off")),
        "queues": ("queues", whole),
        "rx_queue_size": ("rx_queue_size", whole),
        "tx_queue_size": ("tx_queue_size", whole),
        "txmode": ("txmode", _word(iothread="iothread", timer="timer")),
        "ioeventfd": ("ioeventfd", _onoff),
        "event_idx": ("event_idx", _onoff),
        "iommu": ("iommu", _onoff),
        "ats": ("ats", _onoff),
        "packed": ("packed", _onoff),
        "page_per_vq": ("page_per_vq", _onoff),
        "rss": ("rss", _onoff),
        "rss_hash_report": ("rss_hash_report", _onoff),
    },
    "driver/host": {
        name: (f"host_{name}", _onoff) for name in ("csum", "gso", "tso4", "tso6", "ecn", "ufo", "mrg_rxbuf")
    },
    "driver/guest": {name: (f"guest_{name}", _onoff) for name in ("csum", "tso4", "tso6", "ecn", "ufo")},
    "backend": {"tap": ("tap_path", _device), "vhost": ("vhost_path", _device)},
    "tune": {},
    "tune/sndbuf": {},
    "mtu": {"size": ("mtu", whole)},
    "link": {"state": ("link_state", _word(up="up", down="down"))},
    "alias": {"name": ("alias", _alias)},
    "boot": {"order": ("boot_order", whole)},
    "rom": {"enabled": ("_rom_enabled", _yesno), "bar": ("rom_bar", _onoff), "file": ("rom_file", _str)},
    "acpi": {"index": ("acpi_index", whole)},
}

# Attributes with one value that asks for nothing: (value, what the other values would need).
NEUTRAL: Final[dict[tuple[str, str], str]] = {
    ("interface", "trustGuestRxFilters"): "no",
    ("target", "managed"): "yes",
    ("source", "macTableManager"): "kernel",
}
# Of no effect in libvirt's QEMU driver (with the words it takes), or written by it about a running domain.
WITHOUT_EFFECT: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("mac", "type"): ("generated", "static"),
    ("mac", "check"): ("yes", "no"),
    ("mac", "currentAddress"): (),
    ("source", "portid"): (),
}
LATER_TYPES: Final = frozenset(
    ("user", "vhostuser", "server", "client", "mcast", "internal", "direct", "hostdev", "udp", "vdpa", "null", "vds")
)
LATER_ELEMENTS: Final = frozenset(
    ("actual", "backenddomain", "bandwidth", "coalesce", "downscript", "filterref", "guest", "ip", "port")
    + ("portForward", "route", "script", "source/address", "source/ip", "source/local", "source/reconnect")
    + ("source/route", "source/slirp", "teaming", "virtualport", "vlan", "address/zpci")
)
LATER_ATTRIBUTES: Final = frozenset(
    (("acpi", "nodeset"), ("backend", "fqdn"), ("backend", "hostname"), ("backend", "logFile"), ("backend", "type"))
    + (("boot", "loadparm"), ("interface", "trustGuestRxFilters"), ("source", "dev"), ("source", "macTableManager"))
    + (("source", "mode"), ("source", "portgroup"), ("source", "path"), ("source", "type"), ("target", "managed"))
)
LATER_ADDRESSES: Final = (
    "ccid",
    "dimm",
    "drive",
    "isa",
    "spapr-vio",
    "unassigned",
    "usb",
    "virtio-s390",
    "virtio-serial",
)
# Elements that are nothing without this attribute.
NEEDED: Final = {"boot": "order"}
ADDRESSES: Final[dict[str, tuple[type[Any], dict[str, Reader]]]] = {
    "pci": (
        PciAddress,
        {"domain": _number, "bus": _number, "slot": _number, "function": _number, "multifunction": _onoff},
    ),
    "ccw": (CcwAddress, {"cssid": _number, "ssid": _number, "devno": _number}),
    "virtio-mmio": (MmioAddress, {}),
}
