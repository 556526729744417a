"""What the kernel says of a link, by another road than the engines': netlink through pyroute2, and ``ip``."""

from __future__ import annotations

import ctypes
import fcntl
import json
import socket
import struct
import subprocess
from typing import Any

from pyroute2 import IPRoute

SIOCETHTOOL = 0x8946


def link(name: str) -> dict[str, Any]:
    """The facts of the link *name* that the tests look at."""
    with IPRoute() as ip:
        (found,) = ip.link("get", ifname=name)
        master = found.get("master")
        info = found.get("linkinfo")
        return {
            "ifindex": found["index"],
            "up": bool(found["flags"] & 1),
            "mac": found.get("address"),
            "mtu": found.get("mtu"),
            "qdisc": found.get("qdisc"),
            "kind": info and info.get("kind"),
            "master": master and ip.link("get", index=master)[0].get("ifname"),
        }


def ip(command: str) -> str:
    """The output of an ``ip`` command; it must succeed."""
    return subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=True).stdout


def run_json(command: str) -> Any:
    """What a command of iproute2 says, as data."""
    program, *words = command.split()
    found = subprocess.run([program, "-j", *words], capture_output=True, text=True, check=True).stdout
    return json.loads(found or "[]")


def ethtool(name: str, command: int, words: int) -> tuple[int, ...]:
    """What the kernel answers to a command (ETHTOOL_G...) in so many words, the first of them the command."""
    answer = ctypes.create_string_buffer(struct.pack("=I", command), 4 * words)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        request = struct.pack("16sP", name.encode(), ctypes.addressof(answer)).ljust(40, b"\0")
        fcntl.ioctl(asking, SIOCETHTOOL, request)
    return struct.unpack(f"={words}I", answer)


def addrgenmode(name: str) -> str:
    words = ip(f"-d link show dev {name}").split()
    return words[words.index("addrgenmode") + 1]
