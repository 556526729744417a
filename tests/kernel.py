"""What the kernel says of a link, by another road than the engines': netlink through pyroute2, and ``ip``."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from pyroute2 import IPRoute


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


def addrgenmode(name: str) -> str:
    words = ip(f"-d link show dev {name}").split()
    return words[words.index("addrgenmode") + 1]
