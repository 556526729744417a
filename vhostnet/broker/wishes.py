"""NICs that clients ask for: read, allowed by the policy, and put together into what one Program can make."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from vhostnet.broker.connection import Call
from vhostnet.broker.policy import Policy, Rule
from vhostnet.errors import SpecError
from vhostnet.handover.fields import another, spec_of
from vhostnet.host.names import is_template
from vhostnet.host.opening import How
from vhostnet.program.plan import QDISCS
from vhostnet.spec.interface import VHOST_POLICIES, InterfaceSpec
from vhostnet.text.parse import parse_any

MOST: Final = 512  # NICs of several clients that one Program makes


class Wish(NamedTuple):
    """What a call asks for, allowed by *rule*: all or none, or with *keep* as many as the host has."""

    call: Call
    specs: Sequence[InterfaceSpec]
    rule: Rule
    how: How
    keep: bool

    @property
    def queues(self) -> int:
        return sum(spec.queues for spec in self.specs)


def read_wish(call: Call, policy: Policy) -> Wish:
    """Raises SpecError, PolicyRefused."""
    given, xml = call.parameters.get("specs"), call.parameters.get("xml")
    if (given is None) == (xml is None) or not isinstance(given, (list, type(None))):
        expected = "specs, or an XML document as xml, and not both"
        raise SpecError("is not allowed", attribute="specs", value=given, expected=expected)
    specs = list(_specs(given)) if given is not None else list(parse_any(call.text("xml")))
    if not specs:
        raise SpecError("has no NIC", attribute="specs" if xml is None else "xml", expected="one or more")
    return Wish(call, specs, policy.check(call.peer, specs), _how(call), call.flag("keep", False))


def _specs(given: Sequence[Any]) -> Iterator[InterfaceSpec]:
    """Most NICs are like one before, but for their MACs, and to check all that can be asked for takes a while.

    A virtualport is each one's own: where it has no id it gets a random one.
    """
    last, like = "", None
    for fields in given:
        mac = fields.get("mac") if isinstance(fields, dict) and "virtualport" not in fields else None
        if isinstance(mac, str):
            others = {**fields, "mac": ""}
            text = repr(others)
            if like is None or text != last:
                last, like = text, _like(json.dumps(others))
            yield another(like, mac)
        else:
            yield spec_of(fields)


@lru_cache(maxsize=256)
def _like(text: str) -> InterfaceSpec:
    return spec_of({name: value for name, value in json.loads(text).items() if name != "mac"})


def _how(call: Call) -> How:
    vhost: Any = call.parameters.get("vhost")
    qdisc: Any = call.parameters.get("qdisc") or "noqueue"
    if vhost is not None and vhost not in VHOST_POLICIES:
        raise SpecError("is not allowed", attribute="vhost", value=vhost, expected="auto, require or off")
    if qdisc not in QDISCS:
        raise SpecError("is not allowed", attribute="qdisc", value=qdisc, expected="noqueue or default")
    return How(vhost, qdisc, up=call.flag("up", True))


def grouped(wishes: Sequence[Wish]) -> Iterator[list[Wish]]:
    """What one Program can make: of one kind, no name and no MAC twice, and not so many that the others wait long."""
    left = list(wishes)
    while left:
        group, names, count, others = [left[0]], _unique(left[0]), len(left[0].specs), []
        for wish in left[1:]:
            fits = wish.how == group[0].how and count + len(wish.specs) <= MOST and names.isdisjoint(_unique(wish))
            if fits:
                group.append(wish)
                names |= _unique(wish)
                count += len(wish.specs)
            else:
                others.append(wish)
        yield group
        left = others


def _unique(wish: Wish) -> set[str]:
    named = {spec.ifname for spec in wish.specs if spec.ifname is not None and not is_template(spec.ifname)}
    return named | {spec.mac for spec in wish.specs}
