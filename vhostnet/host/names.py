"""Generated names: from a counter of this process, and not the kernel's."""

import errno
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from vhostnet.engines import Engine
from vhostnet.errors import host_error
from vhostnet.host.reasons import describe
from vhostnet.program.parts import Op
from vhostnet.spec.interface import InterfaceSpec

_BEGINNINGS: Final = 10**6  # of the numbers in generated names: six digits, where there is room for more


class _Series(NamedTuple):
    """The names of one template: its two halves, how many different ones have room between them, and the counter."""

    head: str
    tail: str
    room: int
    numbers: Iterator[int]


_TEMPLATE: Final = "vnet%d"
_series: dict[str, _Series] = {}


def is_template(ifname: str | None) -> bool:
    return ifname is None or "%d" in ifname


def _room(template: str | None) -> int:
    return _series[template or _TEMPLATE].room


def name_for(ifname: str | None) -> str:
    """*ifname* itself, or the next name of a template, from a counter of this process; never the kernel's own %d.

    The kernel's costs a walk over every link, and gives a name again as soon as it is free. The counter begins
    anywhere, so that no process gives the names of the one before it, which some rule may still be about.
    """
    template = ifname or _TEMPLATE
    if "%d" not in template:
        return template
    head, tail, room, numbers = _series.get(template) or _series.setdefault(template, _new_series(template))
    return f"{head}{next(numbers) % room}{tail}"


def _new_series(template: str) -> _Series:
    head, _, tail = template.partition("%d")
    room = 10 ** (15 - len(head) - len(tail))
    anywhere = int.from_bytes(os.urandom(4), "big") % min(room, _BEGINNINGS)
    return _Series(head, tail, room, itertools.count(anywhere))


os.register_at_fork(after_in_child=_series.clear)  # or parent and child would give the same


def names_for(specs: Sequence[InterfaceSpec]) -> list[str]:
    return [name_for(spec.ifname) for spec in specs]


def free_names(engine: Engine, specs: Sequence[InterfaceSpec]) -> list[str]:
    """As names_for(), but without generated ones that exist already; one that was asked for is the kernel's to judge.

    Raises NameBusy for a template all of whose names are taken.
    """
    free = names_for(specs)
    unsure = [number for number, spec in enumerate(specs) if is_template(spec.ifname)]
    tried: Counter[str | None] = Counter()
    while unsure:
        links = describe(engine, [free[number] for number in unsure])
        unsure = [number for number in unsure if free[number] in links]
        for number in unsure:
            template = specs[number].ifname
            tried[template] += 1
            if tried[template] > _room(template):
                raise host_error(errno.EEXIST, act=Op.TAP_OPEN.name, call=None, ifname=template, queue=None)
            free[number] = name_for(template)
    return free
