"""What there is on this host that this package made: each NIC by its mark, and who made it and has it open.

By rtnetlink, /proc and Open vSwitch's database; nothing is touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vhostnet.errors import Holder
from vhostnet.host.marks import NOBODY, Mark, read_mark
from vhostnet.others import bridge
from vhostnet.others.holders import find_holders
from vhostnet.process.netns import NetNs, call_inside
from vhostnet.slow import floors, ovsdb


class FoundNic(NamedTuple):
    """A NIC as it stands: ``bridge`` None when it is on none; ``kind`` is tun or macvtap, and ``parent`` the link that
    a macvtap is on.

    ``attached`` queues have an fd that takes part, ``detached`` ones an fd that does not, as a QEMU that ended leaves
    them. The mark names who made it, ``holders`` have it open now, as far as /proc tells. A ``persistent`` one stays
    without any; so does a macvtap, which does not tell its queues (``attached`` 0). One that is ``plugged`` has a port
    of an Open vSwitch bridge, and that is its bridge; with ``ifindex`` 0 the port is all that a crash has left of it.
    So is, with kind ``floor``, what the bridge keeps for a guest whose NIC is gone: the name is the guest's MAC, and
    the mark nobody's.
    """

    ifname: str
    ifindex: int
    bridge: str | None
    up: bool
    attached: int
    detached: int
    mark: Mark
    holders: tuple[Holder, ...]
    persistent: bool
    plugged: bool = False
    kind: str = "tun"
    parent: str | None = None


def list_nics(*, netns: NetNs | None = None) -> tuple[FoundNic, ...]:
    """Every NIC of this package's in the namespace, whichever process made it, by ifindex. Raises HostError.

    Ports of Open vSwitch are seen by who may ask its database.
    """
    return call_inside(netns, survey)


def survey() -> tuple[FoundNic, ...]:
    """As list_nics(), where this thread is."""
    links = bridge.list_links()
    names = {link["index"]: str(link.get("ifname")) for link in links}
    marked = [(link, mark) for link in links if (mark := read_mark(link.get("ifalias")))]
    holders = find_holders([names[link["index"]] for link, _ in marked]) if marked else {}
    found = [_found(link, mark, names, holders) for link, mark in marked]
    shaped = [names[link["index"]] for link in links if bridge.kind(link) == "bridge" and link.get("qdisc") == "htb"]
    return (*_with_ports(found), *_left_floors(shaped))


def _left_floors(bridges: Sequence[str]) -> Iterator[FoundNic]:
    for name in bridges:
        with contextlib.suppress(OSError):
            for mac in floors.left_over(name):
                yield FoundNic(mac.hex(":"), 0, name, False, 0, 0, NOBODY, (), False, kind="floor")


def _with_ports(found: list[FoundNic]) -> Iterator[FoundNic]:
    """With what Open vSwitch says of them; and ports of whose device nobody knows any more."""
    ports = {}
    if ovsdb.is_there():
        with contextlib.suppress(OSError):
            ports = {port.mark: port for port in ovsdb.list_ports()}
    for nic in found:
        port = ports.pop(nic.mark.text, None)
        yield nic._replace(bridge=port.bridge, plugged=True) if port else nic
    for port in ports.values():
        mark = read_mark(port.mark)
        if mark and not port.open:
            yield FoundNic(port.name, 0, port.bridge, False, 0, 0, mark, (), False, True)


def _found(link: Any, mark: Mark, names: Mapping[int, str], holders: Mapping[str, tuple[Holder, ...]]) -> FoundNic:
    info = link.get("linkinfo")
    kind = info.get("kind") if info else None
    tun = info.get("data") if kind == "tun" else None
    macvtap = kind == "macvtap"
    name = names[link["index"]]
    return FoundNic(
        ifname=name,
        ifindex=link["index"],
        bridge=names.get(link.get("master")),
        up=bool(link["flags"] & 1),
        attached=_count(tun, "IFLA_TUN_NUM_QUEUES", 0 if macvtap else 1),
        detached=_count(tun, "IFLA_TUN_NUM_DISABLED_QUEUES", 0),
        mark=mark,
        holders=holders.get(name, ()),
        persistent=macvtap or bool(tun and tun.get_attr("IFLA_TUN_PERSIST")),
        kind=str(kind),
        parent=names.get(link.get("link")) if macvtap else None,
    )


def _count(tun: Any, attribute: str, single: int) -> int:
    """The kernel counts the queues of multi-queue devices only."""
    found = tun.get_attr(attribute) if tun else None
    return single if found is None else int(found)
