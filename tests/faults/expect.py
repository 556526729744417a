"""What opening NICs asks of the kernel, call by call, and what is to come of it when one of these is refused.

Written from the documentation (docs/order.md), not from the plan or an engine: the sweep compares the two.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from vhostnet import InterfaceSpec

SEND: Final = 64  # messages
RETRIED: Final = frozenset(("open", "send", "recv", "fstat", "mknod"))  # and every ioctl: tried again on EINTR


@dataclass(frozen=True)
class Step:
    """One kernel call, and whom an error of it is put down to.

    ``call`` is what an error calls it. Without ``act`` a refusal is passed over.
    """

    name: str
    act: str = ""
    nic: int = 0
    queue: int | None = None
    call: str = ""
    optional: bool = False

    @property
    def retried(self) -> bool:
        return self.name in RETRIED or self.name.isupper()


class Outcome(NamedTuple):
    """What open_nics() did: all None for NICs that are there."""

    errno: int | None = None
    act: str | None = None
    call: str | None = None
    ifname: str | None = None
    queue: int | None = None


def outcome_of(step: Step, code: int, specs: Sequence[InterfaceSpec]) -> Outcome:
    """What is to come of it when *step* is refused with *code*."""
    if not step.act or step.optional or (code == errno.EINTR and step.retried):
        return Outcome()
    return Outcome(code, step.act, step.call or step.name, specs[step.nic].ifname, step.queue)


def steps(specs: Sequence[InterfaceSpec], selftest: bool = False) -> list[Step]:
    """Every call, in order."""
    return [
        *_before(specs),
        *(step for nic, spec in enumerate(specs) for step in _tap(nic, spec.queues)),
        *(step for nic, spec in enumerate(specs) for step in _vhost(nic, spec)),
        *(_selftest(specs) if selftest else ()),
        *_exchange([*_qdiscs(specs), *_every("LINK", specs), *_limits(specs)]),
        *_exchange([*_every("UP", specs)]),
        *(Step("SIOCGIFHWADDR", "LINK", nic) for nic in range(len(specs))),
        Step("close"),
    ]


def _before(specs: Sequence[InterfaceSpec]) -> Iterator[Step]:
    """The socket; whether all fits under RLIMIT_NOFILE; every bridge, and its ports."""
    for name in ("socket", "bind", "getsockname"):
        yield Step(name, "TAP_OPEN", call="socket")
    if any(spec.bandwidth for spec in specs):
        yield Step("setsockopt")
    yield Step("getrlimit")
    yield Step("stat")
    for bridge in dict.fromkeys(spec.bridge for spec in specs):
        first = next(nic for nic, spec in enumerate(specs) if spec.bridge == bridge)
        for name in ("SIOCGIFINDEX", "SIOCGIFMTU", "SIOCETHTOOL"):
            yield Step(name, "LINK", first, call="SIOCGIFINDEX")
        yield Step("SIOCDEVPRIVATE")


def _tap(nic: int, queues: int) -> Iterator[Step]:
    for queue in range(queues):
        yield Step("open", "TAP_OPEN", nic, queue)
        yield Step("TUNSETIFF", "TAP_OPEN", nic, queue)
        if queue == 0:
            yield Step("SIOCSIFHWADDR", "TAP_OPEN", nic, queue)
    for _ in range(queues):
        yield Step("SIOCGIFHWADDR", "TAP_OPEN", nic)
    yield from _exchange([Step("recv", "TAP_OPEN", nic)])
    yield Step("SIOCSIFHWADDR", "TAP_OPEN", nic)


def _vhost(nic: int, spec: InterfaceSpec) -> Iterator[Step]:
    for queue in range(spec.queues if spec.vhost != "off" else 0):
        for name in ("open", "fstat", "VHOST_GET_FEATURES"):
            yield Step(name, "VHOST_OPEN", nic, queue, optional=spec.vhost == "auto")


def _selftest(specs: Sequence[InterfaceSpec]) -> Iterator[Step]:
    """On the first NIC with vhost-net: a private fd with two dummy rings."""
    nic = next(nic for nic, spec in enumerate(specs) if spec.vhost != "off")
    names = ["open", "fstat", "VHOST_GET_FEATURES", "mmap", "VHOST_SET_OWNER", "VHOST_SET_FEATURES"]
    names += ["VHOST_SET_MEM_TABLE", *["VHOST_SET_VRING_NUM", "VHOST_SET_VRING_BASE", "VHOST_SET_VRING_ADDR"] * 2]
    names += ["VHOST_NET_SET_BACKEND"] * 4
    for name in names:
        call = "VHOST_SET_VRING" if name.startswith("VHOST_SET_VRING") else ""
        yield Step(name, "SELFTEST", nic, call=call)
    yield Step("close")


def _every(act: str, specs: Sequence[InterfaceSpec]) -> Iterator[Step]:
    return (Step("recv", act, nic) for nic in range(len(specs)))


def _qdiscs(specs: Sequence[InterfaceSpec]) -> Iterator[Step]:
    """One that is limited has another root."""
    return (step for step in _every("QDISC", specs) if not specs[step.nic].bandwidth)


def _limits(specs: Sequence[InterfaceSpec]) -> Iterator[Step]:
    """Of what the guest gets: the root, the class, and a leaf."""
    for nic, spec in enumerate(specs):
        yield from [Step("recv", "TC", nic)] * (3 if spec.bandwidth else 0)


def _exchange(messages: Sequence[Step]) -> Iterator[Step]:
    """A send, and then its answers; who is not answered is refused."""
    for first in range(0, len(messages), SEND):
        batch = messages[first : first + SEND]
        yield replace(batch[0], name="send")
        yield from batch
