"""The bridge is deleted, changed or filled in the middle of a batch, or the network namespace goes."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

import vhostnet
from tests.torture.kit import (
    BRIDGE,
    ENGINES,
    Monitor,
    Outcome,
    Promises,
    beside,
    fresh_namespace,
    link_names,
    open_fds,
    spec,
    wait_until,
)
from vhostnet import HostError, Nic
from vhostnet.engines import _uapi as uapi
from vhostnet.others import bridge
from vhostnet.process import netns

BATCH = 24
PORTS = 1023
SENSIBLE = (vhostnet.NoSuchBridge, vhostnet.NotABridge, vhostnet.BridgeFull, vhostnet.DeviceGone)


def bridge_race(*, rounds: int = 150) -> Outcome:
    """Promise: whatever happens to the bridge or the namespace, a batch is there wholly or not at all.

    What it is refused with is a HostError with act and ifname, and nothing is left.
    """
    expect = Promises()
    against = {
        "deleted": _delete,
        "given another MTU": _change_mtu,
        "filled": _fill,
        "its NICs moved to a namespace that ends": _take_away,
    }
    figures = [_against(what, work, rounds, expect) for what, work in against.items()]
    figures.append(_namespace_ends(rounds // 3, expect))
    return f"batches of {BATCH}; {'; '.join(figures)}", expect.broken


def _against(what: str, work: Callable[[Callable[[], bool]], object], rounds: int, expect: Promises) -> str:
    fresh_namespace()
    fds = open_fds()
    outcomes: Counter[str] = Counter()
    with beside(work) as done:
        for number in range(rounds):
            nics = _open(what, ENGINES[number % 2], expect, outcomes)
            vhostnet.close_nics(nics)
            expect(not _ours(), f"{what}: links are left")
    expect(open_fds() == fds, f"{what}: fds are left")
    return f"bridge {what} ({done[0]}): {_said(outcomes)}"


def _said(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())


def _open(what: str, engine: str, expect: Promises, outcomes: Counter[str]) -> Sequence[Nic]:
    try:
        nics = vhostnet.open_nics([spec(queues=2) for _ in range(BATCH)], engine=engine)
    except HostError as error:
        outcomes[type(error).__name__] += 1
        named = error.act in ("TAP_OPEN", "QDISC", "LINK", "UP") and (error.ifname or "").startswith("vnet")
        expect(isinstance(error, SENSIBLE) and named, f"{what}: no sensible error: {type(error).__name__} {error}")
        expect(not _ours(), f"{what}: a batch that was refused left links")
        wait_until(lambda: BRIDGE in link_names())  # or nothing more would be tried than the look-up
        return []
    outcomes["made"] += 1
    expect(len(nics) == BATCH, f"{what}: {len(nics)} NICs of {BATCH}")
    return nics


def _ours() -> set[str]:
    return {name for name in link_names() if name.startswith("vnet")}


# --- the others ----------------------------------------------------------------------------------------------


def _delete(stopped: Callable[[], bool]) -> int:
    done = 0
    with IPRoute() as ip:
        while not stopped():
            time.sleep(0.005 * (done % 5))
            with suppress(NetlinkError, IndexError):
                ip.link("del", index=ip.link_lookup(ifname=BRIDGE)[0])
            ip.link("add", ifname=BRIDGE, kind="bridge")
            ip.link("set", index=ip.link_lookup(ifname=BRIDGE)[0], state="up")
            done += 1
    return done


def _change_mtu(stopped: Callable[[], bool]) -> int:
    done = 0
    with IPRoute() as ip:
        (index,) = ip.link_lookup(ifname=BRIDGE)
        while not stopped():
            ip.link("set", index=index, mtu=(1500, 1400, 9000, 1280)[done % 4])
            done += 1
    return done


def _fill(stopped: Callable[[], bool]) -> int:
    """All ports but some; and then batches as ours, for which there is not always room."""
    standing = vhostnet.open_nics([spec(ifname="port%d") for _ in range(PORTS - BATCH * 3 // 2)])
    done = 0
    while not stopped():
        with suppress(vhostnet.BridgeFull):
            vhostnet.close_nics(vhostnet.open_nics([spec(ifname="port%d") for _ in range(BATCH)]))
            done += 1
    vhostnet.close_nics(standing)
    return done


def _take_away(stopped: Callable[[], bool]) -> int:
    """Whatever appears is moved to the namespace of a process that ends."""
    monitor = Monitor()
    done = 0
    with IPRoute() as ip:
        while not stopped():
            born = {event.ifindex for event in monitor.events() if event.name.startswith("vnet")}
            if not born:
                time.sleep(0.001)
                continue
            there = _another_namespace()
            for index in list(born)[:3]:
                with suppress(NetlinkError):
                    ip.link("set", index=index, net_ns_fd=there)
                    done += 1
            os.close(there)
    return done


def _another_namespace() -> int:
    """The only fd of a new network namespace, with a bridge: whoever closes it ends it."""
    made: list[int] = []

    def make() -> None:
        netns.unshare_net()
        bridge.make_bridge(BRIDGE)
        made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


def _namespace_ends(rounds: int, expect: Promises) -> str:
    """``ip netns del`` while a batch is made inside: its own fds keep the namespace until they are closed."""
    fresh_namespace()
    fds = open_fds()
    for number in range(rounds):
        there = _another_namespace()
        entered = os.dup(there)
        ending = threading.Timer(0.002 * (number % 5), os.close, [there])
        ending.start()
        nics = vhostnet.open_nics([spec() for _ in range(BATCH)], engine=ENGINES[number % 2], netns=entered)
        os.close(entered)
        ending.join()
        answers = {fcntl.ioctl(fd, uapi.TUNGETIFF, bytes(40))[:4] for nic in nics for fd in nic.tap_fds}
        expect(answers == {b"vnet"}, "a NIC went with the name of its namespace")
        vhostnet.close_nics(nics)
        expect(open_fds() == fds, "fds are left of a namespace that ended")
    return f"namespace ended ({rounds}): {rounds} made"
