"""Where NICs on no bridge lead to: frozen values, each the ``source`` of an InterfaceSpec."""

from __future__ import annotations

import re
from typing import Final

from vhostnet.checks import is_link_name, is_path, is_text, is_whole
from vhostnet.errors import SpecError
from vhostnet.spec.parts import Source
from vhostnet.values import dataclass

MODES: Final = ("vepa", "bridge", "private", "passthrough")
LENGTHS: Final = {"ipv4": (4, 27), "ipv6": (64, 64)}  # of a user NIC's network, in bits: libvirt's rule


@dataclass(frozen=True)
class DirectSource(Source):
    """The link that a macvtap is on, and how those on one link hear each other.

    ``vepa``: by way of the switch beyond it; ``bridge``: straight; ``private``: not at all. ``passthrough``: there is
    but one, and the link has its MAC, until it is gone and the kernel puts the link's own back.

    Of multicast a macvtap lets in what its host asks for, so that nobody finds its guest by IPv6. With
    ``trust_guest_rx_filters`` it lets in all (IFF_ALLMULTI), and the guest takes of it what it wants. libvirt follows
    the guest's filters instead, by QEMU's events, and its MAC too, which is to stay what it is here.
    """

    dev: str
    mode: str = "vepa"
    trust_guest_rx_filters: bool = False
    types = ("direct",)

    def __post_init__(self) -> None:
        _check("dev", self.dev, is_link_name(self.dev), "the name of a link, 1 to 15 bytes")
        _check("mode", self.mode, self.mode in MODES, " or ".join(MODES))
        trust = self.trust_guest_rx_filters
        _check("trust_guest_rx_filters", trust, type(trust) is bool, "True or False")


@dataclass(frozen=True)
class UserSource(Source):
    """What QEMU's own network, to which the guest is alone, is called: ``172.17.2.0/24``, ``2001:db8::/64``.

    The length of the IPv4 one is 4..27 bits, that of the IPv6 one 64, as libvirt has it; either may be left out.
    """

    ipv4: str | None = None
    ipv6: str | None = None
    types = ("user",)

    def __post_init__(self) -> None:
        for family in LENGTHS:
            value = getattr(self, family)
            if value is not None:
                object.__setattr__(self, family, _network(family, value))

    @property
    def ipv6_prefix(self) -> str | None:
        return self.ipv6.partition("/")[0] if self.ipv6 else None

    @property
    def ipv6_length(self) -> int | None:
        return int(self.ipv6.partition("/")[2]) if self.ipv6 and "/" in self.ipv6 else None


@dataclass(frozen=True)
class VhostUserSource(Source):
    """A vhost-user switch at a socket: QEMU goes there, or with ``server`` waits there to be called.

    ``reconnect`` is in seconds, 0..2147483: how long QEMU waits before it calls again; 0 is never, None its choice.
    """

    path: str
    server: bool = False
    reconnect: int | None = None
    types = ("vhostuser",)

    def __post_init__(self) -> None:
        _check("path", self.path, is_path(self.path), "an absolute path without control characters")
        _check("server", self.server, isinstance(self.server, bool), "True or False")
        _check_reconnect(self.reconnect)
        _check("reconnect", self.reconnect, self.reconnect is None or not self.server, "none: a server does not call")

    @property
    def reconnect_ms(self) -> int | None:
        return _in_ms(self.reconnect)


@dataclass(frozen=True)
class PasstSource(Source):
    """A passt that whoever runs the VM has started: its socket is told with the arguments (``passt_socket=``).

    ``reconnect`` is in seconds, 0..2147483: how long QEMU waits before it calls again when that passt has ended, 5 in
    libvirt; 0 is never, and so is None, for type user the word for a QEMU before 8.0, which has no such option.
    """

    reconnect: int | None = 5
    types = ("user", "vhostuser")
    passt = True

    def __post_init__(self) -> None:
        _check_reconnect(self.reconnect)

    @property
    def reconnect_ms(self) -> int | None:
        return _in_ms(self.reconnect)


@dataclass(frozen=True)
class VdpaSource(Source):
    """A vDPA device by its node, such as /dev/vhost-vdpa-0: the caller opens it."""

    dev: str
    types = ("vdpa",)

    def __post_init__(self) -> None:
        _check("dev", self.dev, is_path(self.dev), "an absolute path without control characters")


@dataclass(frozen=True)
class SocketSource(Source):
    """An address and a port: of the peer, of the multicast group, or for type server of its own, where "" is any.

    Type udp has an address and a port of its own as well.
    """

    address: str = ""
    port: int = 0
    local_address: str | None = None
    local_port: int | None = None
    types = ("udp", "mcast", "server", "client")

    def __post_init__(self) -> None:
        _check_end(self, "address", "port")
        if self.local_address is not None or self.local_port is not None:
            _check_end(self, "local_address", "local_port")
            _check("local_address", self.local_address, self.local_address != "", "an address")

    def check(self, kind: str) -> None:
        """Only a server can do without an address, and only type udp has a second end."""
        if not self.address and kind != "server":
            raise SpecError(f"is missing, and type {kind} needs it", attribute="address", expected="an address")
        if self.local_port is None and kind == "udp":
            raise SpecError("is missing, and type udp needs it", attribute="local_port", expected="a port, 1..65535")
        if self.local_port is not None and kind != "udp":
            raise SpecError(f"has no place in a NIC of type {kind}", attribute="local_port", value=self.local_port)

    @property
    def text(self) -> str:
        return f"{self.address}:{self.port}"

    @property
    def local_text(self) -> str:
        return f"{self.local_address}:{self.local_port}"


def _check(name: str, value: object, allowed: bool, expected: str) -> None:
    if not allowed:
        raise SpecError("is not allowed", attribute=name, value=value, expected=expected)


def _check_reconnect(seconds: int | None) -> None:
    _check("reconnect", seconds, seconds is None or is_whole(seconds, 0, 2147483), "seconds, 0..2147483")


def _in_ms(seconds: int | None) -> int | None:
    return None if seconds is None else seconds * 1000


def _check_end(source: SocketSource, address: str, port: str) -> None:
    host, number = getattr(source, address), getattr(source, port)
    _check(address, host, is_text(host) and not re.search(r"\s", host), "an address, or a name")
    _check(port, number, is_whole(number, 1, 65535), "a port, 1..65535")


def canonical(family: str, text: str) -> str:
    """An address of that family, ``ipv4`` or ``ipv6``, in its shortest form; "" where *text* is none."""
    import socket  # an address is for few

    number = socket.AF_INET if family == "ipv4" else socket.AF_INET6
    try:
        return socket.inet_ntop(number, socket.inet_pton(number, text))
    except (OSError, ValueError):
        return ""


def _network(family: str, value: object) -> str:
    """*value* in the shortest form of its address."""
    low, high = LENGTHS[family]
    head, slash, length = value.partition("/") if isinstance(value, str) else ("", "", "")
    address = canonical(family, head)
    fits = not slash or (re.fullmatch("[0-9]{1,3}", length) is not None and low <= int(length) <= high)
    bits = f"{low}..{high}" if low < high else str(low)
    _check(family, value, address != "" and fits, f"an {family} address, and a length of {bits} if any")
    return f"{address}/{int(length)}" if slash else address
