"""What a Program is made of: acts, and of each NIC its row, with all that an engine needs to know of it."""

import enum
from typing import Final, NamedTuple

from vhostnet.values import dataclass

MACVTAP_MODES: Final = {1: "private", 2: "vepa", 4: "bridge", 8: "passthrough"}  # enum macvlan_mode
IFNAMSIZ: Final = 16  # bytes of an interface name, its NUL with them
ALIASSIZ: Final = 128  # bytes of a mark, likewise; the kernel would take 256
MAX_VLANS: Final = 1024  # of one port, in one message: a range counts as two
MAX_PORTS: Final = 1023  # of a bridge: the kernel's BR_MAX_PORTS is 1024, and port number 0 is never given


class Op(enum.IntEnum):
    """What an act does; the numbers below SLOW are the C core's (VN_TAP_OPEN, ...), which knows no others."""

    TAP_OPEN = 0
    ADOPT = 1
    MACVTAP = 2
    VHOST_OPEN = 3
    SELFTEST = 4
    QDISC = 5
    LEAVE = 6
    LINK = 7
    VLAN_ADD = 8
    VLAN_DEL = 9
    FDB = 10
    COALESCE = 11
    TC = 12
    UP = 13
    DOWN = 14
    UNFDB = 15
    PERSIST = 16
    ATTACH = 17
    ALTNAME = 18
    RENAME = 19
    DELETE = 20

    PLUG = 64
    SCRIPT = 65
    ADDRESS = 66
    DOWNSCRIPT = 67
    UNADDRESS = 68
    UNPLUG = 69
    REPLUG = 70
    FLOOR = 71
    UNFLOOR = 72
    REFLOOR = 73


SLOW: Final = 64  # acts from here on are no engine's: see vhostnet/slow/


class TunFlag(enum.IntFlag):
    """``ifr_flags`` of TUNSETIFF (linux/if_tun.h)."""

    TUN = 0x0001
    TAP = 0x0002
    MULTI_QUEUE = 0x0100
    DETACH_QUEUE = 0x0400
    PERSIST = 0x0800
    NO_PI = 0x1000
    VNET_HDR = 0x4000
    EXCL = 0x8000


@dataclass(frozen=True)
class Link:
    """What the kernel says of a link that exists.

    ``kind`` is its rtnetlink kind ("bridge", "tun", ""), ``ports`` how many a bridge has, ``vlan_filtering`` whether it
    heeds VLANs, ``tun_flags`` those of a TUN or TAP device, as TUNGETIFF has them.
    """

    name: str
    ifindex: int
    kind: str
    mtu: int
    mac: bytes
    ports: int = 0
    tun_flags: int = 0
    vlan_filtering: bool = False
    alias: str = ""


class Fds(NamedTuple):
    """Queue pair i is ``tap[i]`` and, with vhost-net, ``vhost[i]``."""

    tap: tuple[int, ...]
    vhost: tuple[int, ...]


class VlanFlag(enum.IntFlag):
    """``flags`` of struct bridge_vlan_info (linux/if_bridge.h)."""

    PVID = 0x02
    UNTAGGED = 0x04
    RANGE_BEGIN = 0x08
    RANGE_END = 0x10


class VlanEntry(NamedTuple):
    """One VLAN of a port, or one end of a range of them, as the kernel has it: (flags, VLAN id)."""

    flags: int
    vid: int


class Port(NamedTuple):
    """What a NIC is on its bridge, more than any port.

    ``isolated`` ones see none but those that are not. With ``guest_mac`` the bridge neither learns from the port nor
    floods to it: its forwarding table has that MAC instead. ``vlans`` are all it is in.
    """

    isolated: bool = False
    guest_mac: bytes = b""
    vlans: tuple[VlanEntry, ...] = ()


PORT: Final = Port()


class Shaping(NamedTuple):
    """What a NIC's bandwidth is to the kernel, by TC: rates in bytes a second, bursts in ticks (64 ns) at the rate.

    ``rate`` is of what it sends, ``ceil`` what that may be for as long as a burst lasts, ``quantum`` in bytes;
    ``police_rate`` is of what comes in by it. 0 has no limit. Of a TAP the guest gets the one and sends the other.
    A NIC that is on Open vSwitch has none: there it is the port's (Plug).
    """

    rate: int = 0
    ceil: int = 0
    burst: int = 0
    ceil_burst: int = 0
    quantum: int = 0
    police_burst: int = 0
    police_rate: int = 0


UNSHAPED: Final = Shaping()


class Persist(NamedTuple):
    """That a NIC outlives its fds; and the uid and gid that may open it without privileges, -1 for none."""

    owner: int = -1
    group: int = -1


class Queue(NamedTuple):
    """What a port of Open vSwitch sends, and its guest gets: bits a second; ``burst`` in bits, 0 the switch's own."""

    min_rate: int
    max_rate: int
    burst: int = 0


class Plug(NamedTuple):
    """A port of the Open vSwitch bridge *bridge*, as its database has it.

    ``ids`` are external_ids of the interface, beside the NIC's mark; ``tag``, ``trunks`` and ``vlan_mode`` are the
    port's columns, and "" and None are none. Of its bandwidth ``queue`` is what the guest gets, and ``police_rate``
    (kbit of 1000 a second) and ``police_burst`` (kbit of 1024) what it sends; None and 0 have no limit, and leave it
    those that others have told the switch of, unless it ``was_limited``.
    """

    bridge: str
    ids: tuple[tuple[str, str], ...] = ()
    tag: int | None = None
    trunks: tuple[int, ...] = ()
    vlan_mode: str = ""
    queue: Queue | None = None
    police_rate: int = 0
    police_burst: int = 0
    was_limited: bool = False

    @property
    def limited(self) -> bool:
        """In one direction at least."""
        return self.queue is not None or self.police_rate > 0


class Address(NamedTuple):
    """One of the host's end: ``ip`` and ``peer`` of 4 or 16 bytes, as the kernel has them."""

    ip: bytes
    prefix: int
    peer: bytes = b""


class Route(NamedTuple):
    """To a network, by way of what is behind the NIC."""

    network: bytes
    prefix: int
    gateway: bytes
    metric: int


class Floor(NamedTuple):
    """What *bridge* guarantees that *guest_mac* gets, in bytes a second; ``burst`` in ticks, ``quantum`` in bytes.

    With a ``rate`` of 0 there is to be none; ``before`` is the bridge that has had one of it and is to have it no more.
    """

    bridge: str
    guest_mac: bytes
    rate: int
    burst: int = 0
    quantum: int = 0
    before: str = ""


class Slow(NamedTuple):
    """What a NIC's slow acts are about: a port of Open vSwitch, commands, addresses and routes of the host's end, and
    what its bridge guarantees it.
    """

    plug: Plug | None = None
    script: str = ""
    downscript: str = ""
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    floor: Floor | None = None


NOTHING_SLOW: Final = Slow()


class Macvtap(NamedTuple):
    """That a NIC is a macvtap: on which link, and how (IFLA_MACVLAN_MODE); whether it lets in all multicast.

    Of one that is held none of it is known.
    """

    parent: str = ""
    mode: int = 0
    all_multicast: bool = False


class NicRow(NamedTuple):
    """One NIC of a Program: everything an engine needs to know of it.

    ``master`` 0 leaves it to the run to look ``bridge`` up, before its first act: it must be there, be a
    bridge, and have a port left. ``mtu`` 0 is the bridge's. ``alias`` is the mark the link gets
    (IFLA_IFALIAS); ``wish`` the name that ALTNAME or RENAME gives it. With ``held`` the NIC exists: its fds
    and ``ifindex`` are the caller's, and no act but DELETE closes them; held without vhost-net fds it can be
    given some. With ``up`` the LINK act brings it up, too: for one that was parked. ``port`` is what UP, VLAN_ADD,
    VLAN_DEL and FDB set (and UNFDB takes away), ``frames`` what COALESCE does (rx-frames), ``shaping`` what TC does.
    One that is ``adopted`` is there already, is somebody else's, and stays when its fds are closed: ADOPT in the place
    of TAP_OPEN, and nothing is set of it. With ``persist`` it stays, too, by PERSIST. A ``macvtap`` is made by MACVTAP:
    a link of its own, which stays when its fds are closed, until DELETE, to which its ``ifindex`` and ``alias`` are
    enough. ``slow`` is what no engine sees.
    """

    ifname: str
    queues: int
    tun_flags: int
    tap_path: str
    vhost_path: str
    bridge: str = ""
    master: int = 0
    mtu: int = 0
    mac: bytes = b""
    no_ipv6: bool = False
    alias: str = ""
    wish: str = ""
    ifindex: int = 0
    held: Fds | None = None
    up: bool = False
    port: Port = PORT
    frames: int = 0
    adopted: bool = False
    persist: Persist | None = None
    shaping: Shaping = UNSHAPED
    macvtap: Macvtap | None = None
    slow: Slow = NOTHING_SLOW

    @property
    def fds(self) -> Fds:
        return self.held or Fds((), ())

    @property
    def joins(self) -> str:
        """The bridge that it is to be on, Linux's or Open vSwitch's; "" for none."""
        return self.slow.plug.bridge if self.slow.plug else self.bridge

    @property
    def rooted(self) -> bool:
        """HTB is to be its root: by TC, or by Open vSwitch."""
        return self.shaping.rate > 0 or (self.slow.plug is not None and self.slow.plug.queue is not None)

    @property
    def policed(self) -> bool:
        """What comes in by it is to be limited, by one of the two."""
        return self.shaping.police_rate > 0 or (self.slow.plug is not None and self.slow.plug.police_rate > 0)


class Act(NamedTuple):
    """One step: *op* on the NIC of row *nic*.

    ``optional``: a refusal is noted and undone, and the run goes on (VHOST_OPEN, and what ends slow acts). ``barrier``:
    every answer to the acts before must have been read and good.
    """

    op: Op
    nic: int
    optional: bool = False
    barrier: bool = False


def held_row(
    ifname: str,
    ifindex: int,
    fds: Fds,
    alias: str = "",
    *,
    adopted: bool = False,
    macvtap: Macvtap | None = None,
    slow: Slow = NOTHING_SLOW,
) -> NicRow:
    """The row of a NIC that exists."""
    return NicRow(
        ifname,
        max(1, len(fds.tap)),
        0,
        "",
        "",
        alias=alias,
        ifindex=ifindex,
        held=fds,
        adopted=adopted,
        macvtap=macvtap,
        slow=slow,
    )
