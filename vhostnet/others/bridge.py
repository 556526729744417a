"""Bridges off the hot path, by pyroute2: make one, list them, count their ports.

pyroute2 takes 130 ms to import, so it is imported where it is used, and opening a NIC never comes here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from vhostnet.errors import host_error
from vhostnet.process.netns import call_aside


@dataclass(frozen=True, slots=True)
class Bridge:
    """A Linux bridge as it stands: ``mtu`` in bytes, ``ports`` of at most MAX_PORTS in use."""

    name: str
    ifindex: int
    mtu: int
    mac: str
    up: bool
    ports: int


def list_bridges() -> tuple[Bridge, ...]:
    """Every Linux bridge of this thread's network namespace."""
    links = list_links()
    ports = Counter(link.get("master") for link in links)
    return tuple(_bridge(link, ports[link["index"]]) for link in links if kind(link) == "bridge")


def list_links() -> list[Any]:
    """Every link of this thread's network namespace, as pyroute2 has it."""
    return call_aside(_links)


def _links() -> list[Any]:
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        return list(ip.get_links())


def make_bridge(name: str, *, mtu: int | None = None) -> int:
    """Make the bridge *name*, bring it up, and return its ifindex. Raises HostError."""
    return call_aside(lambda: _make_bridge(name, mtu))


def _make_bridge(name: str, mtu: int | None) -> int:
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as ip:
            ip.link("add", ifname=name, kind="bridge")
            index = int(ip.link_lookup(ifname=name)[0])
            ip.link("set", index=index, state="up", **({} if mtu is None else {"mtu": mtu}))
            return index
    except NetlinkError as error:
        raise host_error(error.code, act="BRIDGE", call="RTM_NEWLINK", ifname=name, queue=None) from None


def kind(link: Any) -> str | None:
    """The kind of one of list_links(), such as ``bridge``."""
    info = link.get("linkinfo")
    return str(info.get("kind")) if info else None


def _bridge(link: Any, ports: int) -> Bridge:
    return Bridge(
        name=str(link.get("ifname")),
        ifindex=int(link["index"]),
        mtu=int(link.get("mtu")),
        mac=str(link.get("address")),
        up=bool(link["flags"] & 1),
        ports=ports,
    )
