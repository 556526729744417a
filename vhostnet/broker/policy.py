"""What a broker lets whom have: rules from a TOML file, frozen values. What no rule allows is refused."""

from __future__ import annotations

import fnmatch
import grp
import pwd
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from vhostnet.broker.peer import Peer
from vhostnet.errors import PolicyRefused, SpecError
from vhostnet.spec.interface import DEFAULT_TAP, DEFAULT_VHOST, InterfaceSpec
from vhostnet.spec.parts import MAX_RATE, MAX_VLAN, Rate
from vhostnet.values import dataclass, field

DEFAULT_PATH: Final = "/etc/vhostnet/policy.toml"
TYPES: Final = ("bridge", "network", "ethernet")  # a macvtap does not go with its fds: whoever had it would leave it


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Who it is for, and what those may have. Each list is of patterns as a shell has them (``vm-*``).

    ``users`` and ``groups`` are names or ids, ``cgroups`` patterns of paths; who a rule is for is in one of each that
    it gives, and one that gives none is for nobody. ``bridges`` are those of Linux and of Open vSwitch, ``vlans``
    numbers, or ranges (``"100-199"``), of which a port may be in: without, in none. ``ifnames`` are names that may be
    asked for: without, all are generated. ``macs`` are prefixes. ``devices`` are paths, of ``<backend tap= vhost=>``.
    ``nics``, and the ``queues`` of all of them, are a user's at any time, and ``clients`` its connections. With
    ``rate`` (kB a second, of 1000 bytes) every NIC has a bandwidth in both directions, and none of more.
    ``virtualports`` lets a NIC have a port of Open vSwitch, by which OVN and others know a guest.
    """

    name: str
    users: tuple[int, ...] | None = None
    groups: tuple[int, ...] | None = None
    cgroups: tuple[str, ...] | None = None
    types: tuple[str, ...] = ("bridge", "network")
    bridges: tuple[str, ...] = ()
    vlans: tuple[tuple[int, int], ...] = ()
    ifnames: tuple[str, ...] = ()
    macs: tuple[str, ...] = ("52:54:00",)
    devices: tuple[str, ...] = (DEFAULT_TAP, DEFAULT_VHOST)
    nics: int = 64
    queues: int = 256
    clients: int = 64
    rate: int | None = None
    virtualports: bool = False

    def is_for(self, peer: Peer) -> bool:
        """Some condition is given, and all that are hold."""
        given = (
            (self.users, self.users is not None and peer.uid in self.users),
            (self.groups, self.groups is not None and not peer.groups.isdisjoint(self.groups)),
            (self.cgroups, self.cgroups is not None and _fits(peer.cgroup, self.cgroups)),
        )
        return any(wanted is not None for wanted, _ in given) and all(
            holds for wanted, holds in given if wanted is not None
        )

    def forbids(self, spec: InterfaceSpec) -> str:
        """What of it this rule does not allow, "" for nothing."""
        return next((why for check in _CHECKS if (why := check(self, spec))), "")


@dataclass(frozen=True)
class Policy:
    """The rules, in the file's order. ``path`` is where they are from."""

    rules: tuple[Rule, ...] = ()
    path: str = field(default_factory=str)

    def rules_for(self, peer: Peer) -> tuple[Rule, ...]:
        """Those that are for *peer*. Raises PolicyRefused where there are none."""
        found = tuple(rule for rule in self.rules if rule.is_for(peer))
        if not found:
            groups = ", ".join(str(group) for group in sorted(peer.groups))
            who = f"uid {peer.uid} (groups {groups}; cgroup {peer.cgroup or '?'})"
            raise PolicyRefused(f"no rule of {self.path} is for {who}", rule=None)
        return found

    def check(self, peer: Peer, specs: Sequence[InterfaceSpec]) -> Rule:
        """The rule that allows *peer* all of *specs*: the first that does. Raises PolicyRefused."""
        refused: PolicyRefused | None = None
        for rule in self.rules_for(peer):
            why, name = next(((why, spec.ifname) for spec in specs if (why := rule.forbids(spec))), ("", None))
            if not why:
                return rule
            refused = refused or PolicyRefused(f"rule {rule.name!r} {why}", rule=rule.name, ifname=name)
        assert refused
        raise refused


# --- what a rule says of a spec --------------------------------------------------------------------------


def _fits(text: str, patterns: tuple[str, ...]) -> bool:
    return _matcher(patterns)(text) is not None


@lru_cache(maxsize=1024)
def _matcher(patterns: tuple[str, ...]) -> Callable[[str], re.Match[str] | None]:
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns) or r"(?!)").match


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values) or "none"


def _check_type(rule: Rule, spec: InterfaceSpec) -> str:
    if spec.type not in rule.types:
        return f"allows the types {_listed(rule.types)}, not {spec.type}"
    never = ("script", "downscript", "tap_ips", "tap_routes")
    name = next((name for name in never if getattr(spec, name)), "")
    if name or spec.managed is False:
        return f"allows no {name or 'TAP that is there already'}: it is the host's, and no client's"
    if spec.bandwidth and spec.bandwidth.inbound and spec.bandwidth.inbound.floor:
        return "allows no floor: others on the bridge would pay for it"
    return ""


def _check_bridge(rule: Rule, spec: InterfaceSpec) -> str:
    if spec.bridge is not None and not _fits(spec.bridge, rule.bridges):
        return f"allows the bridges {_listed(rule.bridges)}, not {spec.bridge}"
    if spec.virtualport is not None and not rule.virtualports:
        return "allows no virtualport"
    return ""


def _check_vlans(rule: Rule, spec: InterfaceSpec) -> str:
    for tag in spec.vlan.tags if spec.vlan else ():
        if not any(low <= tag <= high for low, high in rule.vlans):
            ranges = [str(low) if low == high else f"{low}-{high}" for low, high in rule.vlans]
            return f"allows the VLANs {_listed(ranges)}, not {tag}"
    return ""


def _check_names(rule: Rule, spec: InterfaceSpec) -> str:
    if spec.ifname is not None and not _fits(spec.ifname, rule.ifnames):
        return f"allows the names {_listed(rule.ifnames)}, not {spec.ifname}"
    if not any(spec.mac.startswith(prefix) for prefix in rule.macs):
        return f"allows MACs that begin with {_listed(rule.macs)}, not {spec.mac}"
    return ""


def _check_devices(rule: Rule, spec: InterfaceSpec) -> str:
    wrong = next((path for path in (spec.tap_path, spec.vhost_path) if not _fits(path, rule.devices)), "")
    return f"allows the devices {_listed(rule.devices)}, not {wrong}" if wrong else ""


def _check_rate(rule: Rule, spec: InterfaceSpec) -> str:
    if rule.rate is None:
        return ""
    for direction in ("inbound", "outbound"):
        rate: Rate | None = getattr(spec.bandwidth, direction, None)
        asked = None if rate is None else max(rate.average or 0, rate.peak or 0)
        if asked is None or asked > rule.rate:
            what = "no limit" if asked is None else f"{asked} kB/s"
            return f"allows {rule.rate} kB/s {direction}, and {what} is asked for"
    return ""


_CHECKS: Final[tuple[Callable[[Rule, InterfaceSpec], str], ...]] = (
    _check_type,
    _check_bridge,
    _check_vlans,
    _check_names,
    _check_devices,
    _check_rate,
)


# --- the file --------------------------------------------------------------------------------------------


def read_policy(path: str) -> Policy:
    """The rules of the TOML file at *path*: its tables ``[[rule]]``. Raises SpecError, OSError."""
    with open(path, "rb") as file:
        text = file.read()
    return parse_policy(text.decode(errors="surrogateescape"), path)


def parse_policy(text: str, path: str) -> Policy:
    """Raises SpecError, naming the rule and the key."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"is no TOML: {error}", attribute=path) from None
    rules = found.pop("rule", [])
    if found or not isinstance(rules, list):
        raise SpecError("is no table of a policy", attribute=path, value=next(iter(found), "rule"), expected="[[rule]]")
    read = tuple(_rule(number, table, path) for number, table in enumerate(rules, 1))
    names = [rule.name for rule in read]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SpecError("is the name of two rules", attribute=path, value=twice)
    return Policy(read, path)


def _rule(number: int, table: Any, path: str) -> Rule:
    place = f"{path}: rule {number}"
    if not isinstance(table, Mapping):
        raise SpecError("is no table", attribute=place, value=table, expected="[[rule]]")
    fields: dict[str, Any] = {"name": str(number)}
    for key, value in table.items():
        if key not in _KEYS:
            raise SpecError("is no key of a rule", attribute=place, value=key, expected=", ".join(_KEYS))
        read, expected = _KEYS[key]
        try:
            fields[key] = read(value)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise SpecError("is not allowed", attribute=f"{place}, {key}", value=value, expected=expected) from None
    return Rule(**fields)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise ValueError
    return tuple(value)


def _ids(number: Callable[[str], int]) -> Callable[[Any], tuple[int, ...]]:
    def ids(value: Any) -> tuple[int, ...]:
        if not isinstance(value, list) or any(type(one) not in (int, str) for one in value):
            raise ValueError
        return tuple(number(one) if isinstance(one, str) else one for one in value)

    return ids


def _ranges(value: Any) -> Iterator[tuple[int, int]]:
    for one in value if isinstance(value, list) else [None]:
        if type(one) is not int and not (isinstance(one, str) and re.fullmatch(r"\d{1,4}-\d{1,4}", one)):
            raise ValueError
        low, _, high = str(one).partition("-")
        if not 0 <= int(low) <= int(high or low) <= MAX_VLAN:
            raise ValueError
        yield int(low), int(high or low)


def _prefixes(value: Any) -> tuple[str, ...]:
    """An empty one is of all."""
    if not isinstance(value, list) or not all(re.fullmatch(_PREFIX, one.lower()) for one in value):
        raise ValueError
    return tuple(one.lower() for one in value)


def _number(low: int, high: int) -> Callable[[Any], int]:
    def number(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError
        return value

    return number


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _types(value: Any) -> tuple[str, ...]:
    if not set(_texts(value)) <= set(TYPES):
        raise ValueError
    return tuple(value)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or not value:
        raise ValueError
    return value


_PREFIX: Final = "([0-9a-f]{2}:){0,5}[0-9a-f]{0,2}"
_COUNT: Final = _number(0, 2**31)
_PATTERNS: Final = 'a list of patterns, such as ["br0", "vm-*"]'
_KEYS: Final[dict[str, tuple[Callable[[Any], Any], str]]] = {
    "name": (_name, "a name to be told by"),
    "users": (_ids(lambda name: pwd.getpwnam(name).pw_uid), "a list of users that this host knows, or uids"),
    "groups": (_ids(lambda name: grp.getgrnam(name).gr_gid), "a list of groups that this host knows, or gids"),
    "cgroups": (_texts, 'a list of patterns, such as ["/system.slice/vm-*.service"]'),
    "types": (_types, "a list of " + ", ".join(TYPES)),
    "bridges": (_texts, _PATTERNS),
    "vlans": (lambda value: tuple(_ranges(value)), 'a list of VLAN ids and ranges, such as [7, "100-199"]'),
    "ifnames": (_texts, _PATTERNS),
    "macs": (_prefixes, 'a list of prefixes, such as ["52:54:00:07"]'),
    "devices": (_texts, 'a list of paths, such as ["/dev/net/tun"]'),
    "nics": (_COUNT, "a whole number of NICs"),
    "queues": (_COUNT, "a whole number of queue pairs"),
    "clients": (_COUNT, "a whole number of connections"),
    "rate": (_number(1, MAX_RATE), "kB a second"),
    "virtualports": (_flag, "true or false"),
}
