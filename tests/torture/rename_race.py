"""Somebody renames links, ours and others', as fast as the kernel lets him, while NICs are made."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import vhostnet
from tests.torture.kit import (
    BRIDGE,
    ENGINES,
    Event,
    Facts,
    Monitor,
    Outcome,
    Promises,
    beside,
    fresh_namespace,
    links,
    open_fds,
    spec,
)
from vhostnet import HostError, InterfaceSpec, Nic
from vhostnet.engines import _uapi as uapi

SIOCSIFNAME = 0x8923
SIOCGIFHWADDR = 0x8927
FIXED = "victim"
AWAY = "away"
CARRIER = 0x10000 | 0x40  # IFF_LOWER_UP | IFF_RUNNING: whether a queue of a TAP has a holder

# Every one is somebody's, and must stay as it is but for its name. Ours have the flags of the second and third.
DECOYS = {
    "decoy0": "type bridge",
    "decoy1": "tap multi_queue",
    "decoy2": "tap multi_queue",
    "decoy3": "tap",
}


def rename_race(*, creations: int = 5000, rate: int = 1000) -> Outcome:
    """Promise: no link that this process did not make is changed, whoever renames what and whenever.

    A NIC is made wholly, with each of its queues in its own TAP, or there is a HostError and nothing is left.
    """
    fresh_namespace()
    expect = Promises()
    decoys = _make_decoys()
    before, fds = links(), open_fds()
    victim = _Victim(expect, set(before))
    started = time.monotonic()
    with beside(_watcher(before, decoys)) as seen, beside(_renamer(decoys)) as renames:
        for engine in ENGINES:
            for number in range(-(-creations // len(ENGINES) // 8)):
                _creations(victim, engine, number)
    reached = renames[0] / (time.monotonic() - started)
    touched, attached = seen[0]
    expect(not touched, f"a foreign link was changed: {touched[:3]}")
    expect(_decoys_of(links(), decoys) == _decoys_of(before, decoys), "the decoys are not as they were")
    expect(set(links()) == set(before), "links are left")
    expect(open_fds() == fds, "fds are not as they were")
    expect(reached >= rate, f"only {reached:.0f} renames a second")
    return _figures(victim, reached, len(touched), attached), expect.broken


def _figures(victim: _Victim, rate: float, touched: int, attached: int) -> str:
    errors = ", ".join(f"{count} {what}" for what, count in victim.errors.most_common())
    return (
        f"{rate:.0f} renames/s, {victim.made + victim.refused} creations: {victim.made} made, {victim.refused} "
        f"refused ({errors}), {touched} changes of foreign links, {attached} times a queue in one until it was seen"
    )


def _decoys_of(found: dict[int, tuple[str, Facts]], decoys: dict[int, str]) -> dict[int, Facts]:
    return {index: _lasting(found[index][1]) for index in decoys if index in found}


def _lasting(facts: Facts) -> Facts:
    """Without carrier, which a TAP has while somebody holds a queue."""
    return facts._replace(flags=facts.flags & ~CARRIER)


# --- the victim ----------------------------------------------------------------------------------------------


def _creations(victim: _Victim, engine: str, number: int) -> None:
    """Eight: four one by one under a name that is known to the renamer, four at once under generated ones."""
    for _ in range(4):
        victim.create([spec(ifname=FIXED, queues=1 + 3 * (number % 2))], engine)
    victim.create([spec(queues=1 + number % 4) for _ in range(4)], engine)
    victim.close()


class _Victim:
    """Makes NICs and looks at each of them."""

    def __init__(self, expect: Promises, foreign: set[int]) -> None:
        self._expect = expect
        self._foreign = foreign
        self._nics: list[Nic] = []
        self.made = self.refused = 0
        self.errors: Counter[str] = Counter()

    def create(self, specs: Sequence[InterfaceSpec], engine: str) -> None:
        try:
            nics = vhostnet.open_nics(specs, engine=engine)
        except HostError as error:
            self.refused += len(specs)
            self._judge(error)
        else:
            self.made += len(specs)
            self._nics += nics
            for nic in nics:
                self._look_at(nic)
        living = self._foreign | {nic.ifindex for nic in self._nics}
        self._expect(set(links()) == living, "a NIC that was refused left a link")
        if specs[0].ifname:
            self.close()

    def close(self) -> None:
        vhostnet.close_nics(self._nics)
        self._nics = []
        self._expect(set(links()) == self._foreign, "a link is left after close_nics()")

    def _judge(self, error: HostError) -> None:
        what = f"{type(error).__name__} {error.call} {os.strerror(error.errno or 0)}"
        self.errors[what] += 1
        sensible = isinstance(error, vhostnet.NameBusy | vhostnet.FlagMismatch | vhostnet.DeviceGone)
        self._expect(sensible and error.act == "TAP_OPEN" and error.ifname, f"no sensible error: {error}")

    def _look_at(self, nic: Nic) -> None:
        """By its ifindex, and by each fd: its MAC is no other link's."""
        facts = links().get(nic.ifindex, ("", None))[1]
        self._expect(facts, "a NIC that was made has no link")
        if not facts:
            return
        self._expect(facts.mac == nic.mac, "a NIC has not the MAC it was given")
        self._expect(facts.alias.startswith("vhostnet:"), "a NIC has no mark")
        self._expect(facts.qdisc == "noqueue", "a NIC has another qdisc")
        self._expect(facts.flags & uapi.IFF_UP and facts.master == socket.if_nametoindex(BRIDGE), "a NIC is not up")
        macs = {_mac_of(fd) for fd in nic.tap_fds}
        self._expect(macs == {nic.mac}, "a queue of a NIC is in another TAP")


def _mac_of(fd: int) -> str:
    """Of the device that a TAP's fd is a queue of."""
    request = bytearray(uapi.IFREQ_FLAGS.size)
    fcntl.ioctl(fd, SIOCGIFHWADDR, request)
    return request[18:24].hex(":")


# --- the others ----------------------------------------------------------------------------------------------


def _make_decoys() -> dict[int, str]:
    """Ifindex -> the name it has at home. Each has something of everything that could be changed."""
    _ip("link add decoybr up type bridge")
    for number, (name, kind) in enumerate(DECOYS.items()):
        _ip(f"link add {name} {kind}" if kind.startswith("type") else f"tuntap add {name} mode {kind} vnet_hdr")
        _ip(f"link set {name} address 02:00:00:00:00:0{number} mtu {1400 + number} group {number + 7}")
        _ip(f"link set {name} alias somebodys")
        if kind.startswith("tap"):
            _ip(f"link set {name} master decoybr")
        _ip(f"link set {name} up")
    return {socket.if_nametoindex(name): name for name in DECOYS}


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


def _watcher(before: dict[int, tuple[str, Facts]], decoys: dict[int, str]) -> Callable[[Callable[[], bool]], object]:
    """Reads every announcement of a decoy: what was changed, and how often one got a queue of ours."""
    home = _decoys_of(before, decoys)
    plugged = {index: before[index][1].flags & CARRIER for index in decoys}

    def judge(event: Event, touched: list[str]) -> bool:
        if event.type == uapi.RTM_NEWLINK and event.facts:
            carrier = event.facts.flags & CARRIER
            new, plugged[event.ifindex] = carrier & ~plugged[event.ifindex], carrier
            if _lasting(event.facts) != home[event.ifindex]:
                touched.append(f"{decoys[event.ifindex]}: {event.facts}")
            return bool(new)
        if event.type != uapi.RTM_NEWLINK:
            touched.append(f"{decoys[event.ifindex]}: message {event.type}")
        return False

    def watch(stopped: Callable[[], bool]) -> tuple[list[str], int]:
        monitor = Monitor(Monitor.LINKS | Monitor.QDISCS)
        touched: list[str] = []
        attached = 0
        while not stopped():
            attached += sum(judge(event, touched) for event in monitor.events() if event.ifindex in decoys)
            time.sleep(0.001)
        return touched, attached

    return watch


class _Names(NamedTuple):
    """Renames by name, as fast as there is."""

    socket: socket.socket

    def __call__(self, old: str, new: str) -> bool:
        try:
            fcntl.ioctl(self.socket, SIOCSIFNAME, struct.pack("16s16s8x", old.encode(), new.encode()))
        except OSError:
            return False
        return True


def _renamer(decoys: dict[int, str]) -> Callable[[Callable[[], bool]], object]:
    """Swaps each NIC that appears with a decoy, and back; in between the one whose name it knows."""

    def work(stopped: Callable[[], bool]) -> int:
        rename = _Names(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        monitor = Monitor()
        homes = list(decoys.values())
        chance = random.Random(1)
        done = 0
        while not stopped():
            born = {event.name for event in monitor.events() if event.type == uapi.RTM_NEWLINK}
            for name in [*(name for name in born if name.startswith("vnet")), FIXED]:
                done += _swap(rename, name, chance.choice(homes), chance)
        return done

    return work


def _swap(rename: _Names, victim: str, decoy: str, chance: random.Random) -> int:
    """How many renames succeeded. The decoy is at home afterwards."""
    done = rename(victim, AWAY)
    if chance.random() < (0.8 if done else 0.05) and rename(decoy, victim):
        done += 1
        if chance.random() < 0.5:
            done += rename(AWAY, decoy)  # ours under the name of another
        else:
            time.sleep(chance.random() * 0.0005)
        done += rename(decoy, AWAY)
        done += rename(victim, decoy)
    return done + rename(AWAY, victim)
