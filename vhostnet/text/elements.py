"""The map of libvirt's <interface>: which attribute of which element fills which field, and how its text is read.

What is here as UNSUPPORTED is known to libvirt and refused, and each says what to do instead; what is IGNORED
libvirt knows too, and does nothing with for a NIC of ours; what is nowhere here libvirt does not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from vhostnet.spec.interface import TAP_TYPES, TAPLESS_TYPES
from vhostnet.spec.parts import CcwAddress, MmioAddress, PciAddress, SpaprVioAddress, UsbAddress, ZpciAddress

Reader = Callable[[str], Any]  # None for a text that asks for nothing; raises ValueError with what would be right
Known = Mapping[str, Mapping[str, tuple[str, Reader]]]


class Ignored(ValueError):
    """libvirt takes the text, and does nothing with it; why."""


# --- reading one value -----------------------------------------------------------------------------------

_DIGITS = r"[0-9]{1,20}"
_NUMBER = r"0[xX][0-9A-Fa-f]{1,8}|0|[1-9][0-9]{0,9}"


def plain(text: str) -> str:
    return text


def whole(text: str) -> int:
    if not re.fullmatch(_DIGITS, text):  # int() would take other scripts' digits, "1_000", " 4 " and "+4" as well
        raise ValueError("a whole number in decimal digits")
    return int(text)


def _port(text: str) -> int:
    if not whole(text):
        raise ValueError("a port, from 1 on")
    return int(text)


def unless_empty(reader: Reader) -> Reader:
    """libvirt reads some attributes such that an empty one is none."""
    return lambda text: reader(text) if text else None


def _mtu(text: str) -> int | None:
    return whole(text) or None if text else None  # 0 is libvirt's word for none


def device_path(text: str) -> str:
    """A path that means the same node whoever opens it: in /proc it would be one of our own fds, or another's file."""
    parts = [part for part in text.split("/") if part]
    if not {".", ".."}.isdisjoint(parts) or parts[:1] == ["proc"] or parts[:2] == ["dev", "fd"]:
        raise ValueError("the path of a device node: without . and .., and not in /proc or /dev/fd")
    return text


def _number(text: str) -> int:
    if not re.fullmatch(_NUMBER, text):
        raise ValueError("a whole number, decimal or 0x and hexadecimal")
    return int(text, 0)


def word(**words: Any) -> Reader:
    def read(text: str) -> Any:
        if text not in words:
            raise ValueError(" or ".join(words))
        return words[text]

    return read


_onoff = word(on=True, off=False)
yesno = word(yes=True, no=False)
_PREFIXES = ("vnet", "macvtap", "macvlan")
_GENERATED = r"(vnet|macvtap|macvlan)[0-9]+"
_ALIAS = r"(ua-[A-Za-z0-9_-]*|net[0-9]+)"


def _ifname(text: str) -> str | None:
    """libvirt's own prefixes mark a generated name: it is generated anew."""
    if not text.startswith(_PREFIXES):
        return text or None
    if not re.fullmatch(_GENERATED, text) and text != "vnet%d":
        raise Ignored("begins as the names that libvirt generates: it is ignored, and another name generated")
    return None


def _alias(text: str) -> str | None:
    """A user's alias (``ua-``), or the one a running libvirt domain shows (``net0``)."""
    if text and not re.fullmatch(_ALIAS, text):
        raise Ignored("has no effect: libvirt ignores an alias other than ua- and letters, digits, - or _")
    return text or None


# Those that libvirt has a name for, and so knows in any case of letters; any other is QEMU's to know.
_SPELLED = (
    *("virtio", "virtio-transitional", "virtio-non-transitional", "e1000", "e1000e", "igb", "rtl8139", "vmxnet3"),
    *("usb-net", "spapr-vlan", "lan9118", "netfront"),
)


def _model(text: str) -> str | None:
    return text.lower() if text.lower() in _SPELLED else text or None


def _loadparm(text: str) -> str:
    return text.upper() if text.isascii() else text  # another script's letter can be one of ours in upper case


# --- the map ---------------------------------------------------------------------------------------------

# element -> attribute -> (field, reader). Names that start with "_" are not fields: _finish() uses them.
KNOWN: Final[Known] = {
    "interface": {"type": ("type", plain)},
    "mac": {"address": ("mac", plain)},
    "model": {"type": ("model", _model)},
    "source": {
        "bridge": ("bridge", plain),
        "network": ("network", plain),
        "portgroup": ("_portgroup", plain),
        "macTableManager": ("mac_table_manager", word(kernel="kernel", libvirt="libvirt")),
    },
    "script": {"path": ("script", unless_empty(plain))},
    "downscript": {"path": ("downscript", unless_empty(plain))},
    "target": {"dev": ("ifname", _ifname), "managed": ("managed", yesno)},
    "driver": {
        "name": ("vhost", word(vhost="require", qemu="off")),
        "queues": ("queues", whole),
        "rx_queue_size": ("rx_queue_size", whole),
        "tx_queue_size": ("tx_queue_size", whole),
        "txmode": ("txmode", word(iothread="iothread", timer="timer")),
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
    "backend": {"tap": ("tap_path", device_path), "vhost": ("vhost_path", device_path)},
    "tune": {},
    "tune/sndbuf": {},
    "mtu": {"size": ("mtu", _mtu)},
    "port": {"isolated": ("isolated", yesno)},
    "coalesce": {},
    "coalesce/rx": {},
    "coalesce/rx/frames": {"max": ("rx_frames", whole)},
    "link": {"state": ("link_state", unless_empty(word(up="up", down="down")))},
    "alias": {"name": ("alias", _alias)},
    "teaming": {
        "type": ("_teaming", word(persistent="persistent", transient="transient")),
        "persistent": ("_pair", plain),
    },
    "boot": {"order": ("boot_order", whole), "loadparm": ("loadparm", _loadparm)},
    "rom": {"enabled": ("_rom_enabled", yesno), "bar": ("rom_bar", _onoff), "file": ("rom_file", plain)},
    "acpi": {"index": ("acpi_index", whole)},
}
read_sndbuf: Final = unless_empty(whole)  # its value is text, not an attribute

VLAN: Final[dict[str, dict[str, Reader]]] = {
    "vlan": {"trunk": yesno},
    "vlan/tag": {"id": whole, "nativeMode": word(tagged="tagged", untagged="untagged")},
}
# What others than Open vSwitch's ports have, and libvirt refuses for these.
OTHER_PARAMETERS: Final = ("managerid", "typeid", "typeidversion", "instanceid")
VIRTUALPORT: Final[dict[str, dict[str, Reader]]] = {
    "virtualport": {"type": plain},
    "virtualport/parameters": dict.fromkeys(("interfaceid", "profileid", *OTHER_PARAMETERS), plain),
}
HOST_IPS: Final[dict[str, dict[str, Reader]]] = {
    "source/ip": {"address": plain, "family": plain, "prefix": whole, "peer": plain},
    "source/route": {
        "address": plain,
        "family": plain,
        "prefix": whole,
        "netmask": plain,
        "gateway": plain,
        "metric": whole,
    },
}
# What is for whoever starts passt: it is read to be checked, as libvirt's parser checks it.
PORT_FORWARD: Final[dict[str, dict[str, Reader]]] = {
    "portForward": {"proto": word(tcp="tcp", udp="udp"), "address": plain, "dev": plain},
    "portForward/range": {"start": _port, "end": _port, "to": _port, "exclude": yesno},
}
RATE: Final[dict[str, Reader]] = dict.fromkeys(("average", "peak", "burst"), whole)
BANDWIDTH: Final[dict[str, dict[str, Reader]]] = {
    "bandwidth": {},
    "bandwidth/inbound": {**RATE, "floor": whole},
    "bandwidth/outbound": RATE,
}
# Elements that are nothing without this attribute.
NEEDED: Final = {"boot": "order"}
ADDRESSES: Final[dict[str, tuple[type[Any], dict[str, Reader]]]] = {
    "pci": (
        PciAddress,
        {"domain": _number, "bus": _number, "slot": _number, "function": _number, "multifunction": _onoff},
    ),
    "ccw": (CcwAddress, {"cssid": _number, "ssid": _number, "devno": _number}),
    "virtio-mmio": (MmioAddress, {}),
    "usb": (UsbAddress, {"bus": _number, "port": plain}),
    "spapr-vio": (SpaprVioAddress, {"reg": _number}),
}
ZPCI: Final[tuple[type[Any], dict[str, Reader]]] = (ZpciAddress, {"uid": _number, "fid": _number})

# --- what asks for nothing -------------------------------------------------------------------------------

# The values of an attribute that ask for nothing; an element of UNSUPPORTED_ELEMENTS that has no others, and whose
# children have none, asks for nothing either.
NEUTRAL: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("interface", "trustGuestRxFilters"): ("no",),
    ("target", "managed"): ("yes",),
    ("source", "macTableManager"): ("kernel",),
    ("source", "portgroup"): ("",),
    ("backend", "type"): ("default",),
    ("port", "isolated"): ("no",),
    ("script", "path"): ("",),  # QEMU took that for none, and so does libvirt
    ("downscript", "path"): ("",),
    ("coalesce/rx/frames", "max"): ("", "0"),  # 0 is what a TAP has
}
NEVER_EMPTY: Final = ("ip", "portForward", "route", "source/ip", "source/route")  # libvirt refuses empty ones
# Of no effect in libvirt's QEMU driver (with the words it takes), or written by it about a running domain.
WITHOUT_EFFECT: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("mac", "type"): ("generated", "static"),
    ("mac", "check"): ("yes", "no"),
    ("mac", "currentAddress"): (),
    ("source", "portid"): (),
}

# --- what libvirt knows, and ignores ---------------------------------------------------------------------

IGNORED_ELEMENTS: Final = {
    "actual": "libvirt reads it in its own files about running domains only",
    "backenddomain": "it is for Xen",
    "guest": "it is for containers",
    "source/address": "it is for type hostdev",
    "source/local": "it is for type udp",
    "source/reconnect": "it is for type vhostuser",
    "source/slirp": "it is for type user",
}
TRUST: Final = "libvirt heeds it for type direct"
IGNORED_ATTRIBUTES: Final = {
    ("interface", "trustGuestRxFilters"): TRUST,
    ("acpi", "nodeset"): "libvirt heeds it for a hostdev",
    ("backend", "fqdn"): "it is for passt",
    ("backend", "hostname"): "it is for passt",
    ("backend", "logFile"): "it is for passt",
}
# What only others have, with what would be right, by type; libvirt ignores it where nothing stands there.
REFUSED: Final = "is not for this type, and libvirt refuses it, too"
_ETHERNET: Final = (REFUSED, "type ethernet")
ELSEWHERE: Final[dict[str, dict[str, tuple[str, str] | None]]] = {
    "ethernet": {"virtualport": (REFUSED, "type bridge or network")},
    **{
        kind: {"script": _ETHERNET, "downscript": None, "source/ip": _ETHERNET, "source/route": _ETHERNET}
        for kind in ("bridge", "network", "direct", *TAPLESS_TYPES)
    },
}
# The attributes of <source> that libvirt reads; a running network's may have those of what it stands for.
SOURCES: Final = {
    "bridge": ("bridge", "macTableManager"),
    "ethernet": (),
    "direct": ("dev", "mode"),
    "network": ("network", "portgroup", "portid", "bridge", "macTableManager", "dev", "mode"),
    "user": (),
    "vhostuser": ("type", "path", "mode"),
    "vdpa": ("dev",),
    **dict.fromkeys(("udp", "mcast", "server", "client"), ("address", "port")),
}

# --- what is refused by its name, and what to do instead -------------------------------------------------

SUPPORTED: Final = ", ".join((*TAP_TYPES, *TAPLESS_TYPES))
_BRIDGED = "or give it a NIC of type bridge"
UNSUPPORTED_TYPES: Final = {
    "internal": f"libvirt makes a NIC of type user of it: write that, {_BRIDGED}",
    "hostdev": f"it is a device of the host's: leave it to QEMU (-device vfio-pci,host=...), {_BRIDGED}",
    "null": "leave it out: no QEMU has such a NIC, and libvirt refuses it",
    "vds": "leave it out: no QEMU has such a NIC, and libvirt refuses it",
}
_WHEN_OPEN = "leave it out, and when the NIC is there"
UNSUPPORTED_ELEMENTS: Final = {
    "filterref": f"{_WHEN_OPEN} filter on its TAP (nft add table bridge ...)",
    "ip": "leave it out, and configure the guest: it is for type user, and libvirt refuses it here, too",
    "portForward": "leave it out: without <backend type='passt'/> libvirt refuses it, too",
    "route": "leave it out, and configure the guest: libvirt refuses it, too",
}
UNSUPPORTED_PORTS: Final = {
    "midonet": "leave it out, and bind the TAP (mm-ctl --bind-port) when the NIC is there",
    "802.1Qbg": "libvirt has it for type direct alone: leave it out, and tell lldpad (vdptool) when the NIC is there",
    "802.1Qbh": "libvirt has it for type direct alone: leave it out, or give the guest the device itself",
}
UNSUPPORTED_ATTRIBUTES: Final = {
    ("backend", "type"): "leave it out: passt is for types user and vhostuser, and libvirt refuses it here, too",
    ("source", "dev"): "this network is not a bridge here: map it to one (--network NAME=BRIDGE), and leave dev= out",
    ("source", "mode"): "this network is not a bridge here: map it to one (--network NAME=BRIDGE), and leave mode= out",
}
UNSUPPORTED_ADDRESSES: Final = (
    "ccid",
    "dimm",
    "drive",
    "isa",
    "unassigned",
    "virtio-s390",
    "virtio-serial",
)
