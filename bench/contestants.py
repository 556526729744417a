"""Who is measured: the bare system calls, this library, and the other ways there are to do the same."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import os
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import vhostnet
from bench import openvswitch
from bench.cases import Case
from vhostnet.engines import _uapi as uapi
from vhostnet.program.parts import NicRow, Plug, Slow, TunFlag
from vhostnet.program.rows import shaping_of
from vhostnet.slow import ovsdb


class Opened(NamedTuple):
    """What there is now: the links, the fds that hold them, and which MACs they were given."""

    indexes: list[int]
    fds: list[int]
    macs: Sequence[str] = ()


class Contestant(Protocol):
    """Somebody who does what a case asks for."""

    @property
    def noqueue(self) -> bool:
        """What it makes has no qdisc."""

    def prepare(self, case: Case, specs: list[vhostnet.InterfaceSpec]) -> Any:
        """What is needed for it; not timed. Everyone is given fresh *specs*, so that everyone starts as cold."""

    def act(self, asked: Any) -> Any:
        """Do it; timed."""

    def give(self, made: Any) -> Opened:
        """What there is now, for checking and deleting; not timed."""


class Way(Contestant, Protocol):
    """A way of opening, which knows how its users take away what it made."""

    def look(self, made: Any) -> Opened:
        """What there is now, left where it is; not timed."""

    def end(self, made: Any) -> None:
        """Take it away."""


def bridge_names(case: Case) -> list[str]:
    """The bridges of a case."""
    return [f"bench{number}" for number in range(case.bridges)]


def bridge_of(case: Case, number: int) -> str:
    """The NICs of a case go round its bridges."""
    return f"bench{(case.first + number) % case.bridges}"


def specs_of(case: Case) -> list[vhostnet.InterfaceSpec]:
    """What a case asks for."""
    if case.direct:
        source = vhostnet.DirectSource(bridge_names(case)[0])
        fields: dict[str, Any] = {"type": "direct", "source": source, "queues": case.queues, "vhost": "off"}
        return [vhostnet.InterfaceSpec(**fields) for _ in range(case.batch)]
    settings = {**(SETTINGS if case.settings else {}), **(LIMITED if case.limited else {})}
    return [
        vhostnet.InterfaceSpec(bridge=bridge_of(case, number), queues=case.queues, vhost="off", **settings)
        for number in range(case.batch)
    ]


# All that can be set of a port on every kernel: some have no VLANs, and some cannot limit what is sent.
SETTINGS: dict[str, Any] = {"isolated": True, "mac_table_manager": "libvirt", "rx_frames": 32}
LIMITED: dict[str, Any] = {"bandwidth": vhostnet.Bandwidth(vhostnet.Rate(1000))}


class Macvtaps(NamedTuple):
    """The arguments of floor_open_direct()."""

    first: int
    number: int
    queues: int
    parent: bytes
    fds: Any
    indexes: Any
    home: Any


class Floor:
    """bench/floor.c, compiled on the spot."""

    noqueue = True

    def __init__(self) -> None:
        source = Path(__file__).with_name("floor.c")
        with tempfile.TemporaryDirectory() as directory:
            made = Path(directory) / "floor.so"
            subprocess.run(["cc", "-std=gnu11", "-O2", "-shared", "-fPIC", "-o", made, source], check=True)
            self.lib = ctypes.CDLL(str(made))
        self._numbers = itertools.count()
        self._groups = itertools.count(0x7E57_0000)

    def prepare(self, case: Case, specs: list[vhostnet.InterfaceSpec]) -> Any:  # noqa: ARG002
        """The arguments of floor_open(), or of floor_open_direct()."""
        if case.direct:
            return self.macvtaps(case.batch, case.queues, bridge_names(case)[0])
        how = {"settings": case.settings, "limited": case.limited}
        return self.arguments(case.batch, case.queues, bridge_names(case), **how)

    def arguments(
        self, count: int, queues: int, bridges: Sequence[str], *, settings: bool = False, limited: bool = False
    ) -> Any:
        """So many NICs of so many queues on these bridges; on none where there are none."""
        first = next(self._numbers) * 10_000 % 10_000_000
        names = (ctypes.c_char_p * max(1, len(bridges)))(*map(str.encode, bridges))
        fds, indexes = (ctypes.c_int * (count * queues))(), (ctypes.c_int * count)()
        return first, count, queues, names, len(bridges), fds, indexes, settings, limited

    def macvtaps(self, count: int, queues: int, parent: str) -> Any:
        """So many macvtaps of so many queues, on that link."""
        first = next(self._numbers) * 10_000 % 10_000_000
        fds, indexes, home = (ctypes.c_int * (count * queues))(), (ctypes.c_int * count)(), (ctypes.c_int * 1)()
        return Macvtaps(first, count, queues, parent.encode(), fds, indexes, home)

    def act(self, asked: Any) -> Any:
        """The bare system calls."""
        does = self.lib.floor_open_direct if isinstance(asked, Macvtaps) else self.lib.floor_open
        if does(*asked) != 0:
            raise RuntimeError("the floor failed")
        return asked

    def give(self, made: Any) -> Opened:
        """The C arrays as lists."""
        if isinstance(made, Macvtaps):
            os.close(made.home[0])
            return Opened(list(made.indexes), list(made.fds))
        return Opened(list(made[6]), list(made[5]))

    def delete(self, indexes: Sequence[int]) -> None:
        """All links at once, by a group of their own."""
        if self.lib.floor_delete(len(indexes), (ctypes.c_int * len(indexes))(*indexes), next(self._groups)) != 0:
            raise RuntimeError("deleting failed")


@dataclass(frozen=True)
class Library:
    """The whole of open_nics(): from specs to Nic objects."""

    engine: str
    noqueue: bool = True

    def prepare(self, case: Case, specs: list[vhostnet.InterfaceSpec]) -> Any:  # noqa: ARG002
        """The specs."""
        return specs

    def act(self, asked: Any) -> Any:
        """One call."""
        return vhostnet.open_nics(asked, engine=self.engine)

    def give(self, made: Any) -> Opened:
        """What the Nics have, which is not theirs any more."""
        there = self.look(made)
        for nic in made:
            nic.detach()
        return there

    def look(self, made: Any) -> Opened:
        """What the Nics have; the MACs by libvirt's rule, not by what they say."""
        fds = [fd for nic in made for fd in nic.tap_fds]
        return Opened([nic.ifindex for nic in made], fds, [f"fe{nic.spec.mac[2:]}" for nic in made])

    def end(self, made: Any) -> None:
        """All at once."""
        vhostnet.close_nics(made)


# --- the other ways --------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """One NIC, for those who are not this library."""

    name: str
    queues: int
    bridge: str
    mac: str


_numbers = itertools.count()


def open_taps(asked: Asked, *, probe: bool = False) -> list[int]:
    """The queues of a TAP, by fcntl."""
    fds = []
    flags = TunFlag.TAP | TunFlag.NO_PI | TunFlag.VNET_HDR | (TunFlag.MULTI_QUEUE if asked.queues > 1 else 0)
    request = uapi.IFREQ_FLAGS.pack(asked.name.encode(), flags)
    for _ in range(asked.queues):
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        if probe:
            fcntl.ioctl(fd, uapi.TUNGETFEATURES, struct.pack("I", 0))
        fcntl.ioctl(fd, uapi.TUNSETIFF, request)
        fds.append(fd)
    return fds


def configure(sock: socket.socket, asked: Asked) -> None:
    """MAC, MTU, bridge and UP by ioctls, one after the other, as libvirt does."""
    name = asked.name.encode()
    fcntl.ioctl(sock, 0x8924, struct.pack("16sH6s16x", name, 1, bytes.fromhex(asked.mac.replace(":", ""))))
    fcntl.ioctl(sock, 0x8922, uapi.IFREQ_INDEX.pack(name, 1500))  # SIOCSIFMTU; before: SIOCSIFHWADDR
    index = socket.if_nametoindex(asked.name)
    fcntl.ioctl(sock, 0x89A2, uapi.IFREQ_INDEX.pack(asked.bridge.encode(), index))  # SIOCBRADDIF
    fcntl.ioctl(sock, 0x8914, uapi.IFREQ_FLAGS.pack(name, uapi.IFF_UP | 0x1002))  # SIOCSIFFLAGS


def by_ioctl(asked: Sequence[Asked], *, tc: bool, probe: bool = False) -> list[list[int]]:
    """NIC after NIC: the queues, then the ioctls; and with *tc* noqueue when it is up."""
    made = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for one in asked:
            made.append(open_taps(one, probe=probe))
            configure(sock, one)
            if tc:
                subprocess.run(["tc", "qdisc", "add", "dev", one.name, "root", "handle", "0:", "noqueue"], check=True)
    return made


def _added(one: Asked) -> str:
    return f"tuntap add dev {one.name} mode tap vnet_hdr" + (" multi_queue" if one.queues > 1 else "")


def _set(one: Asked) -> str:
    return f"link set dev {one.name} address {one.mac} mtu 1500 master {one.bridge} up"


def by_ip(asked: Sequence[Asked]) -> list[list[int]]:
    """Two processes of ``ip`` a NIC, which make it persistent; then the queues, and it is let go of."""
    made = []
    for one in asked:
        for command in (_added(one), _set(one)):
            subprocess.run(["ip", *command.split()], check=True)
        made.append(_attach(one))
    return made


def by_ip_batch(asked: Sequence[Asked]) -> list[list[int]]:
    """One process of ``ip`` for all."""
    commands = "\n".join(line for one in asked for line in (_added(one), _set(one)))
    subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)
    return [_attach(one) for one in asked]


def by_pyroute2(asked: Sequence[Asked]) -> list[list[int]]:
    """The queues by fcntl, the rest by pyroute2's own calls."""
    from pyroute2 import IPRoute

    made = []
    with IPRoute() as ip:
        for one in asked:
            made.append(open_taps(one))
            index = socket.if_nametoindex(one.name)
            ip.link("set", index=index, address=one.mac, mtu=1500, master=socket.if_nametoindex(one.bridge))
            ip.link("set", index=index, state="up")
    return made


def _attach(one: Asked) -> list[int]:
    fds = open_taps(one)
    fcntl.ioctl(fds[0], 0x400454CB, 0)  # TUNSETPERSIST: from now on it lives as long as its fds
    return fds


@dataclass(frozen=True)
class Others:
    """Another way: a function from what is asked to the fds of each NIC."""

    way: Callable[[Sequence[Asked]], list[list[int]]]
    noqueue: bool = False

    def prepare(self, case: Case, specs: list[vhostnet.InterfaceSpec]) -> Any:  # noqa: ARG002
        """Names and MACs."""
        numbers = [next(_numbers) for _ in range(case.batch)]
        return [
            Asked(f"other{number}", case.queues, bridge_of(case, at), f"fe:54:02:{number.to_bytes(3, 'big').hex(':')}")
            for at, number in enumerate(numbers)
        ]

    def act(self, asked: Any) -> Any:
        """The whole batch."""
        return asked, self.way(asked)

    def give(self, made: Any) -> Opened:
        """By name."""
        asked, fds = made
        indexes = [socket.if_nametoindex(one.name) for one in asked]
        return Opened(indexes, [fd for some in fds for fd in some], [one.mac for one in asked])

    look = give

    def end(self, made: Any) -> None:
        """As the end of a QEMU does."""
        _, fds = made
        close_all([fd for some in fds for fd in some])


# --- closing ---------------------------------------------------------------------------------------------


def close_all(fds: Sequence[int]) -> None:
    """One after the other."""
    for fd in fds:
        os.close(fd)


def each_by_itself(nics: Sequence[vhostnet.Nic]) -> None:
    """As who has one NIC does."""
    for nic in nics:
        nic.close()


@dataclass(frozen=True)
class Closer:
    """NICs that are open are to go: the links, and the fds."""

    way: Callable[[list[vhostnet.Nic]], None]
    noqueue: bool = True

    def prepare(self, case: Case, specs: list[vhostnet.InterfaceSpec]) -> Any:  # noqa: ARG002
        """They are opened."""
        return vhostnet.open_nics(specs)

    def act(self, asked: Any) -> Any:
        """They go."""
        self.way(asked)

    def give(self, made: Any) -> Opened:  # noqa: ARG002
        """Nothing is left."""
        return Opened([], [])


def closers(floor: Floor) -> dict[str, Contestant]:
    """The ways to close."""

    def by_group(nics: list[vhostnet.Nic]) -> None:
        floor.delete([nic.ifindex for nic in nics])
        close_all([fd for nic in nics for fd in nic.detach().tap])

    def by_threads(count: int) -> Callable[[list[vhostnet.Nic]], None]:
        def way(nics: list[vhostnet.Nic]) -> None:
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(close_all, [nic.detach().tap for nic in nics]))

        return way

    return {
        "bare group": Closer(by_group),
        "close_nics": Closer(vhostnet.close_nics),
        "32 threads": Closer(by_threads(32)),
        "8 threads": Closer(by_threads(8)),
        "each by itself": Closer(each_by_itself),
        "one by one": Closer(lambda nics: close_all([fd for nic in nics for fd in nic.detach().tap])),
    }


# --- taking ----------------------------------------------------------------------------------------------


@dataclass
class Taker:
    """A NIC that is parked becomes a VM's: by the pool, or with *floor* by the bare exchange with the kernel."""

    engine: str
    floor: Floor | None = None
    noqueue: bool = True
    _pool: vhostnet.NicPool | None = field(default=None, init=False)

    def prepare(self, case: Case, specs: list[vhostnet.InterfaceSpec]) -> Any:  # noqa: ARG002
        """A pool with something parked, and what is wished for."""
        (spec,) = specs
        self._pool = self._pool or vhostnet.NicPool(spec, size=32, low=0, engine=self.engine)
        self._pool.fill()
        if self.floor:
            parked = self._pool._pop()
            assert parked
            return parked.nic, next(_numbers)
        return spec

    def act(self, asked: Any) -> Any:
        """One exchange."""
        if self.floor:
            nic, number = asked
            if self.floor.lib.floor_take(nic.ifindex, number) != 0:
                raise RuntimeError("the floor failed")
            return nic
        assert self._pool
        return self._pool.take(asked)

    def give(self, made: Any) -> Opened:
        """The Nic's."""
        return Library(self.engine).give([made])

    def close(self) -> None:
        """The parked ones go."""
        if self._pool:
            self._pool.close()


# --- ports of Open vSwitch -------------------------------------------------------------------------------


OVS = "benchovs"


class SharedSwitch:
    """One of our own, for all who plug in: two would be in each other's way."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self.started: openvswitch.Switch | None = None

    def start(self) -> None:
        """Once."""
        self.started = self.started or self.stack.enter_context(openvswitch.switch(OVS))

    @property
    def switch(self) -> openvswitch.Switch:
        """The one that was started."""
        assert self.started
        return self.started


@dataclass
class Plugger:
    """TAPs that are there become ports of a bridge of Open vSwitch's, until ovs-vswitchd has each of them."""

    way: Callable[[openvswitch.Switch, Sequence[NicRow]], object]
    shared: SharedSwitch
    noqueue: bool = False

    def prepare(self, case: Case, specs: list[vhostnet.InterfaceSpec]) -> Any:  # noqa: ARG002
        """The TAPs, which are down as yet; and at first the switch."""
        self.shared.start()
        wanted = [vhostnet.InterfaceSpec(type="ethernet", vhost="off", queues=case.queues) for _ in range(case.batch)]
        nics = vhostnet.open_nics(wanted, up=False)
        return nics, [nic.held()._replace(slow=Slow(Plug(OVS))) for nic in nics]

    def act(self, asked: Any) -> Any:
        """All of them."""
        self.way(self.shared.switch, asked[1])
        return asked

    def give(self, made: Any) -> Opened:
        """Nothing is left, once it was looked whether they were there."""
        nics, rows = made
        found = self.shared.switch.vsctl("--bare", "--columns=name", "find", "Interface", "ofport>0").split()
        if not {row.ifname for row in rows} <= set(found):
            raise RuntimeError(f"{len(found)} of {len(rows)} ports are there")
        self.shared.switch.vsctl(*(word for row in rows for word in ("--", "del-port", OVS, row.ifname)))
        vhostnet.close_nics(nics)
        return Opened([], [])

    def close(self) -> None:
        """The switch goes, with the first of those who had it."""
        self.shared.stack.close()


def _by_vsctl(switch: openvswitch.Switch, rows: Sequence[NicRow]) -> None:
    for row in rows:
        switch.vsctl("add-port", OVS, row.ifname)


def _by_one_vsctl(switch: openvswitch.Switch, rows: Sequence[NicRow]) -> None:
    switch.vsctl(*(word for row in rows for word in ("--", "add-port", OVS, row.ifname)))


def _in_one_transaction(_: openvswitch.Switch, rows: Sequence[NicRow]) -> None:
    refused = ovsdb.plug(rows)
    if refused:
        raise RuntimeError(str(refused))


def pluggers() -> dict[str, Contestant]:
    """The ways to plug in."""
    shared = SharedSwitch()
    return {
        "one transaction": Plugger(_in_one_transaction, shared),
        "one ovs-vsctl": Plugger(_by_one_vsctl, shared),
        "ovs-vsctl": Plugger(_by_vsctl, shared),
    }


# --- limiting --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limiter:
    """NICs that are there, and down, are limited in what their guests get; then, and not timed, they come up."""

    way: Callable[[list[vhostnet.Nic]], None]
    noqueue: bool = False

    def prepare(self, case: Case, specs: list[vhostnet.InterfaceSpec]) -> Any:  # noqa: ARG002
        """They are opened."""
        return vhostnet.open_nics(specs, up=False)

    def act(self, asked: Any) -> Any:
        """Each has its tree."""
        self.way(asked)
        return asked

    def give(self, made: Any) -> Opened:
        """That it is there is checked, and they come up."""
        for nic in made:
            shown = subprocess.run(
                ["tc", "class", "show", "dev", nic.ifname], capture_output=True, text=True, check=True
            )
            if "class htb 1:1 root" not in shown.stdout:
                raise RuntimeError(f"{nic.ifname} is not limited: {shown.stdout}")
            nic.up()
        return Library("native").give(made)


def by_act(engine: str) -> Callable[[list[vhostnet.Nic]], None]:
    """One run of the engine's, with nothing but TC."""
    chosen = vhostnet.select_engine(engine)

    def way(nics: list[vhostnet.Nic]) -> None:
        limited = vhostnet.InterfaceSpec(bridge=nics[0].spec.bridge, **LIMITED)
        rows = [nic.held()._replace(shaping=shaping_of(limited)) for nic in nics]
        acts = [vhostnet.Act(vhostnet.Op.TC, row) for row in range(len(rows))]
        result = chosen.run(vhostnet.Program(tuple(rows), tuple(acts)))
        if result.failures:
            raise RuntimeError(f"refused: {result.failures}")

    return way


def by_tc(nics: list[vhostnet.Nic]) -> None:
    """libvirt's processes of tc, in its order. A kernel without SFQ or fw refuses two of them."""
    for nic in nics:
        for words in (
            "qdisc del dev {} root",
            "qdisc del dev {} ingress",
            "qdisc show dev {} handle 1:",
            "qdisc add dev {} root handle 1: htb default 1",
            "class add dev {} parent 1: classid 1:1 htb rate 1000kbps quantum 85",
            "qdisc add dev {} parent 1:1 handle 2: sfq perturb 10",
            "filter add dev {} parent 1:0 protocol all prio 1 handle 1 fw flowid 1",
        ):
            subprocess.run(["tc", *words.format(nic.ifname).split()], capture_output=True, check=False)


def ways() -> dict[str, Way]:
    """The ways to open."""
    return {
        "native": Library("native"),
        "pure": Library("pure"),
        "libvirt": Others(lambda asked: by_ioctl(asked, tc=True), noqueue=True),
        "ganeti": Others(lambda asked: by_ioctl(asked, tc=False, probe=True)),
        "ip -batch": Others(by_ip_batch),
        "ip": Others(by_ip),
        "pyroute2": Others(by_pyroute2),
    }


def everybody() -> tuple[Floor, dict[str, Contestant]]:
    """All of them, by name; the floor is also who cleans up."""
    floor = Floor()
    return floor, {
        "floor": floor,
        **ways(),
        **closers(floor),
        **pluggers(),
        "bare exchange": Taker("native", floor),
        "take": Taker("native"),
        "take, pure": Taker("pure"),
        "act": Limiter(by_act("native")),
        "act, pure": Limiter(by_act("pure")),
        "tc": Limiter(by_tc),
    }
