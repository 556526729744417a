"""The sweep: every call of every run x every errno x both engines, and after each nothing is left."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import vhostnet
from bench import openvswitch
from tests.faults.expect import Outcome, outcome_of, steps
from tests.faults.shim import Fault, Kind, Tamper, watched
from vhostnet import HostError, InterfaceSpec, Nic
from vhostnet.slow import floors

ERRNOS: Final = tuple(
    getattr(errno, name)
    for name in ["EINTR", "EMFILE", "ENFILE", "ENOMEM", "EPERM", "EACCES", "EBUSY", "ENODEV", "EINVAL", "EBADFD", "EIO"]
)
ENGINES: Final = ("native", "pure")
BRIDGES: Final = ("flt0", "flt1")
THERE: Final = "flt-there"
PARENT: Final = "flt-parent"  # of macvtaps


ENOUGH: Final = 50


class Enough(Exception):
    """So much is wrong that going on shows nothing more."""


@dataclass
class Tally:
    """What was tried, and what was wrong."""

    cases: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def check(self, what: str, good: bool, case: str, detail: object) -> None:
        """One promise of one case."""
        if not good:
            self.wrong.append(f"{what}: {case}: {detail}")
            if len(self.wrong) >= ENOUGH:
                raise Enough


LIMIT: Final = vhostnet.Bandwidth(vhostnet.Rate(1000, 2000))  # of what is sent not every kernel has one
LIMIT_OF_A_MACVTAP: Final = vhostnet.Bandwidth(outbound=vhostnet.Rate(1000))  # likewise at the root


def nics(*queues: int, vhost: str = "off", bandwidth: vhostnet.Bandwidth | None = None) -> list[InterfaceSpec]:
    """NICs of so many queues, going round the bridges."""
    return [
        InterfaceSpec(bridge=BRIDGES[at % 2], ifname=f"flt-{at}", queues=count, vhost=vhost, bandwidth=bandwidth)
        for at, count in enumerate(queues)
    ]


# --- what there is ---------------------------------------------------------------------------------------


def snapshot() -> dict[str, Any]:
    """All that a failed call could leave behind: fds, links, ports and MTUs of bridges, threads, ports of a switch."""
    fds = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            fds[entry] = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:  # the one that lists them
            continue
    bridges = vhostnet.select_engine("pure").describe(BRIDGES)
    return {
        "fds": fds,
        "links": socket.if_nameindex(),
        "bridges": {name: (link.mtu, link.ports) for name, link in bridges.items()},
        "threads": len(os.listdir("/proc/self/task")),
        "switch": [_switch[0].ports(SWITCHED), _switch[0].queueing()] if _switch else [],
        "nodes": _nodes(),
        "floors": _guaranteed(),
    }


def _nodes() -> list[str]:
    """Those in /dev that stay there: others' are for as long as it takes to open a macvtap."""
    found = _vhostnets()
    if found:
        time.sleep(0.02)
        found &= _vhostnets()
    return sorted(found)


def _vhostnets() -> set[str]:
    return {name for name in os.listdir("/dev") if name.startswith(".vhostnet")}


def _guaranteed() -> list[Any]:
    """What the bridge that has a bandwidth guarantees, and what is left of it."""
    if not _shaped:
        return []
    with floors.tree_of(_shaped[0]) as tree:
        return [tree.classes(), tree.filters()]


_shaped: list[str] = []  # a bridge that has a bandwidth, while there is one
_switch: list[Any] = []  # an Open vSwitch of our own, while there is one
SWITCHED: Final = "fltovs"


def calm() -> dict[str, Any]:
    """As it is once the kernel is done with the threads that have ended."""
    while len(os.listdir("/proc/self/task")) > threading.active_count():
        time.sleep(0.01)
    return snapshot()


def settled(before: dict[str, Any]) -> dict[str, Any]:
    """As it is now, once threads in the background have ended: how it differs from *before*.

    Whoever reads of a TAP's fd in /proc holds the file for as long, and RTNL may take a while.
    """
    for thread in threading.enumerate():
        if thread.name == "vhostnet-close":
            thread.join()
    for _ in range(200):  # the kernel's part of a thread ends after its join()
        if len(os.listdir("/proc/self/task")) == before["threads"]:
            break
        time.sleep(0.01)
    _gone(before)
    return _differing(before)


def _differing(before: dict[str, Any]) -> dict[str, Any]:
    now = snapshot()
    return {key: (before[key], now[key]) for key in now if now[key] != before[key]}


# --- opening ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """What is opened, and how."""

    name: str
    specs: Sequence[InterfaceSpec]
    selftest: bool = False

    def open(self, engine: str, *faults: Fault) -> tuple[list[Nic] | Exception, list[str]]:
        """The NICs or the error, and the calls."""
        vhostnet.host.opening._selftested = False

        def work() -> list[Nic] | Exception:
            try:
                return vhostnet.open_nics(self.specs, engine=engine, selftest=self.selftest)
            except Exception as error:  # of whatever kind: only a HostError is right
                return error

        return watched(work, *faults)


def outcome(got: list[Nic] | Exception) -> Outcome:
    """What was made is checked, and taken away again."""
    if isinstance(got, HostError):
        return Outcome(got.errno, got.act, got.call, got.ifname, got.queue)
    if isinstance(got, Exception):
        return Outcome(act=repr(got))
    whole = all(len(nic.tap_fds) == nic.spec.queues for nic in got)
    whole = whole and all(len(nic.vhost_fds) in (0, nic.spec.queues) for nic in got)
    vhostnet.close_nics(got)
    return Outcome() if whole else Outcome(act="not whole")


def sweep_opening(batch: Batch, errnos: Sequence[int], tally: Tally, of: Sequence[str] = ()) -> None:
    """Every call of opening *batch*; with *of*, those of other acts with one errno each, which go round."""
    expected = steps(batch.specs, batch.selftest)
    for engine in ENGINES:
        before = snapshot()
        got, calls = batch.open(engine)
        tally.check("calls", calls == [step.name for step in expected], f"{batch.name} {engine}", calls)
        tally.check("whole", outcome(got) == Outcome(), f"{batch.name} {engine}", got)
        for index, step in enumerate(expected):
            for code in errnos if not of or step.act in of else errnos[index % len(errnos) :][:1]:
                case = f"{batch.name} {engine}: call {index} {step.name} {errno.errorcode[code]}"
                got, _ = batch.open(engine, Fault(index, code))
                wanted, found = outcome_of(step, code, batch.specs), outcome(got)
                tally.check("wrong error", found == wanted, case, f"{found}, not {wanted}")
                _check_words(got, case, tally)
                left = settled(before)
                tally.check("leak", not left, case, left)
                tally.cases[f"{batch.name} {engine}"] += 1


def _check_words(got: list[Nic] | Exception, case: str, tally: Tally) -> None:
    """An error has a remedy, but where the errno makes no sense there; and its text names act, NIC and errno."""
    if isinstance(got, HostError):
        words = (str(got.act), str(got.ifname), errno.errorcode[got.errno or 0])
        tally.check("words", all(word in str(got) for word in words), case, str(got))


# --- undoing ---------------------------------------------------------------------------------------------


def sweep_undoing(batch: Batch, tally: Tally) -> None:
    """A second fault, at every call of undoing the first: still nothing is left, and the first error is kept."""
    for engine in ENGINES:
        before = snapshot()
        for first, code in _first_faults(batch):
            got, calls = batch.open(engine, Fault(first, code))
            wanted = outcome(got)
            settled(before)
            for second in range(first + 1, len(calls)):
                other = ERRNOS[1 + (first + second) % (len(ERRNOS) - 1)]
                case = f"{batch.name} {engine}: calls {first} and {second} {calls[second]} {errno.errorcode[other]}"
                got, _ = batch.open(engine, Fault(first, code), Fault(second, other))
                found = outcome(got)
                tally.check("wrong error", found == wanted, case, f"{found}, not {wanted}")
                _check_undoing(got, calls[second], other, case, tally)
                left = settled(before)
                tally.check("leak", not left, case, left)
                tally.cases[f"{batch.name} undone {engine}"] += 1


def _first_faults(batch: Batch) -> Iterator[tuple[int, int]]:
    """Of each kind of call that is fatal, the last one: then there is most to undo."""
    last = {(step.act, step.name): index for index, step in enumerate(steps(batch.specs, batch.selftest)) if step.act}
    return ((index, errno.EIO) for index in last.values())


_NOT_FATAL: Final = ("close", "thread")  # closing goes on, by this thread if need be


def _check_undoing(got: list[Nic] | Exception, call: str, code: int, case: str, tally: Tally) -> None:
    undoing = got.undoing if isinstance(got, HostError) else None
    # A TAP that says EBADFD has no link any more, and there is nothing to delete.
    passed_over = call in _NOT_FATAL or (call == "TUNGETIFF" and code == errno.EBADFD)
    good = undoing is None if passed_over else undoing is not None and undoing.errno == code
    tally.check("second error", good, case, undoing)


# --- netlink ---------------------------------------------------------------------------------------------

# Those that an honest kernel could send are taken for what they are.
HARMLESS: Final = (Tamper.TWICE, Tamper.SWAPPED)


def sweep_answers(batch: Batch, tally: Tally) -> None:
    """Every answer garbled in every way, and what a socket can say instead of one."""
    expected = steps(batch.specs)
    for engine in ENGINES:
        before = snapshot()
        for index, step in enumerate(expected):
            if step.name != "recv":
                continue
            faults = [Fault(index, how, Kind.TAMPER) for how in Tamper]
            faults += [Fault(index, code) for code in (errno.ENOBUFS, errno.EAGAIN)]
            for fault in faults:
                case = f"{batch.name} {engine}: answer {index} {fault}"
                got, _ = batch.open(engine, fault)
                found = outcome(got)
                calls = ("recv", "RTM_NEWLINK", "RTM_NEWQDISC", "RTM_NEWTCLASS")
                good = found == Outcome() if _harmless(fault) else found.call in calls
                tally.check("wrong error", good, case, found)
                left = settled(before)
                tally.check("leak", not left, case, left)
                tally.cases[f"{batch.name} answers {engine}"] += 1


def _harmless(fault: Fault) -> bool:
    return fault.kind == Kind.TAMPER and fault.value in HARMLESS


# --- everything else that a NIC does ---------------------------------------------------------------------


@dataclass(frozen=True)
class Deed:
    """Something that is done to NICs that exist: each time anew, and all of it is taken away afterwards."""

    name: str
    prepare: Callable[[str], Any]
    act: Callable[[Any], Any]
    never_fails: bool = False
    lasting: bool = False  # what is made stays when it is closed


def sweep_deed(deed: Deed, errnos: Sequence[int], tally: Tally) -> None:
    """Every call of it, on both engines; their outcomes are the same."""
    outcomes = {engine: _deed_outcomes(deed, engine, errnos, tally) for engine in ENGINES}
    native, pure = outcomes.values()
    for case in native.keys() & pure.keys():
        tally.check("engines differ", native[case] == pure[case], f"{deed.name} {case}", (native[case], pure[case]))


def _deed_outcomes(deed: Deed, engine: str, errnos: Sequence[int], tally: Tally) -> dict[tuple[str, int], Any]:
    found = {}
    calls = _do(deed, engine, tally, f"{deed.name} {engine}")[1]
    seen: Counter[str] = Counter()
    for index, name in enumerate(calls):
        seen[name] += 1
        for code in errnos:
            case = f"{deed.name} {engine}: call {index} {name} {errno.errorcode[code]}"
            got, made = _do(deed, engine, tally, case, Fault(index, code))
            if made[index : index + 1] != [name]:  # somebody else's uevent was received, too: a macvtap's is waited for
                got, _ = _do(deed, engine, tally, case, Fault(index, code))
            refused = Outcome(got.errno, got.act, got.call, None, got.queue) if isinstance(got, HostError) else None
            meant = errno.EAGAIN if name == "thread" else code  # Python does not say why none could be started
            told = not isinstance(got, Exception) if refused is None or deed.never_fails else refused.errno == meant
            tally.check("wrong error", told, case, repr(got))
            found[f"{name} {seen[name]}", code] = refused
            tally.cases[f"{deed.name} {engine}"] += 1
    return found


def _do(deed: Deed, engine: str, tally: Tally, case: str, *faults: Fault) -> tuple[Any, list[str]]:
    before = snapshot()
    prepared = deed.prepare(engine)

    def work() -> Any:
        try:
            return deed.act(prepared)
        except Exception as error:
            return error

    got, calls = watched(work, *faults)
    for nic in (*_nics_in(prepared), *_nics_in(got)):
        nic.close()
        if deed.lasting:
            subprocess.run(["ip", "link", "del", nic.ifname], check=True)
    if isinstance(prepared, vhostnet.NicPool):
        prepared.close()
    left = settled(before)
    tally.check("leak", not left, case, left)
    return got, calls


def _nics_in(value: Any) -> list[Nic]:
    found = value if isinstance(value, list) else [value]
    return [nic for nic in found if isinstance(nic, Nic)]


def _pool(engine: str) -> vhostnet.NicPool:
    pool = vhostnet.NicPool(InterfaceSpec(bridge=BRIDGES[0], queues=2, vhost="off"), size=1, low=0, engine=engine)
    pool.fill()
    return pool


def _wish(**fields: Any) -> InterfaceSpec:
    return InterfaceSpec(**{"bridge": BRIDGES[0], "queues": 2, "vhost": "off", **fields})


def _set_up(vlan: vhostnet.Vlan | None = None) -> list[InterfaceSpec]:
    """Two ports with all settings that a port can have; VLANs take a bridge that heeds them."""
    settings = {"isolated": True, "mac_table_manager": "libvirt", "rx_frames": 7, "vlan": vlan, "bandwidth": LIMIT}
    return [_wish(bridge=name, **settings) for name in BRIDGES]


def _there() -> InterfaceSpec:
    """A TAP that is there before, and stays."""
    return InterfaceSpec(type="ethernet", managed=False, ifname=THERE, queues=2, vhost="off")


def _direct(*queues: int, mode: str = "bridge", bandwidth: vhostnet.Bandwidth | None = None) -> list[InterfaceSpec]:
    own: dict[str, Any] = {"type": "direct", "source": vhostnet.DirectSource(PARENT, mode), "bandwidth": bandwidth}
    return [InterfaceSpec(**own, ifname=f"flt-d{at}", queues=count, vhost="off") for at, count in enumerate(queues)]


_OF_GUEST: Final[dict[str, str]] = {"mac": "52:54:00:00:00:01"}


def _update(nic: Nic) -> None:
    """To another bridge, as another port."""
    nic.update(replace(_set_up()[1], ifname="flt-u", **_OF_GUEST))


def _take_set_up(pool: vhostnet.NicPool) -> Nic:
    return pool.take(_set_up()[0])


def deeds() -> list[Deed]:
    """All of them."""
    return [
        Deed("port settings", lambda engine: engine, lambda engine: vhostnet.open_nics(_set_up(), engine=engine)),
        Deed(
            "macvtaps",
            lambda engine: engine,
            lambda engine: vhostnet.open_nics([*_direct(2, 1), *nics(1)], engine=engine),
        ),
        Deed(
            "a macvtap alone",
            lambda engine: engine,
            lambda engine: vhostnet.open_nic(_direct(3, mode="passthrough")[0], engine=engine),
        ),
        Deed(
            "a macvtap that is limited",
            lambda engine: engine,
            lambda engine: vhostnet.open_nics(_direct(2, 1, bandwidth=LIMIT_OF_A_MACVTAP), engine=engine),
        ),
        Deed(
            "close macvtaps",
            lambda engine: vhostnet.open_nics(_direct(2, 1, 4), engine=engine),
            vhostnet.close_nics,
            never_fails=True,
        ),
        Deed(
            "close a macvtap",
            lambda engine: vhostnet.open_nics(_direct(2), engine=engine)[0],
            Nic.close,
            never_fails=True,
        ),
        Deed(
            "reset a macvtap's queues",
            lambda engine: vhostnet.open_nics(_direct(4), engine=engine)[0],
            Nic.reset_queues,
        ),
        Deed("up, a macvtap", lambda engine: vhostnet.open_nic(_direct(1)[0], engine=engine, up=False), Nic.up),
        Deed("down, a macvtap", lambda engine: vhostnet.open_nic(_direct(1)[0], engine=engine), Nic.down),
        Deed("adopt", lambda engine: engine, lambda engine: vhostnet.open_nics([_there(), *nics(1)], engine=engine)),
        Deed(
            "persist",
            lambda engine: engine,
            lambda engine: vhostnet.open_nics(nics(2, 1), engine=engine, persist=True, owner=0, group=0),
            lasting=True,
        ),
        Deed("take with port settings", _pool, _take_set_up),
        Deed("plan", lambda engine: engine, lambda engine: vhostnet.plan_nics(nics(1, 2), engine=engine)),
        Deed(
            "keep",
            lambda engine: engine,
            lambda engine: vhostnet.open_nics(nics(2, 1), engine=engine, on_error="keep"),
        ),
        Deed(
            "close_nics",
            lambda engine: vhostnet.open_nics(nics(2, 1, 4), engine=engine),
            vhostnet.close_nics,
            never_fails=True,
        ),
        Deed("close", lambda engine: vhostnet.open_nic(_wish(), engine=engine), Nic.close, never_fails=True),
        Deed("update", lambda engine: vhostnet.open_nic(_wish(ifname="flt-u", **_OF_GUEST), engine=engine), _update),
        Deed(
            "to no limit",
            lambda engine: vhostnet.open_nic(_wish(ifname="flt-u", bandwidth=LIMIT, **_OF_GUEST), engine=engine),
            lambda nic: nic.update(_wish(ifname="flt-u", **_OF_GUEST)),
        ),
        Deed("up", lambda engine: vhostnet.open_nic(_set_up()[0], engine=engine, up=False), Nic.up),
        Deed("down", lambda engine: vhostnet.open_nic(_set_up()[0], engine=engine), Nic.down),
        Deed("reset_queues", lambda engine: vhostnet.open_nic(_wish(queues=4), engine=engine), Nic.reset_queues),
        Deed("take", _pool, lambda pool: pool.take()),
        Deed("take with an altname", _pool, lambda pool: pool.take(_wish(ifname="flt-alt"))),
        Deed("take with a rename", _pool, lambda pool: pool.take(_wish(ifname="flt-new"), rename=True)),
    ]


def _slow(engine: str) -> list[Nic]:
    """Scripts, addresses, and a NIC that is as any."""
    scripts = {"script": "true", "downscript": "true", "tap_ips": (vhostnet.HostIp("10.9.0.1"),)}
    routes = (vhostnet.HostRoute("10.8.0.0", "10.9.0.2", 16),)
    slow = InterfaceSpec(type="ethernet", ifname="flt-slow", vhost="off", **scripts, tap_routes=routes)
    return vhostnet.open_nics([slow, *nics(1)], engine=engine)


def _kept(engine: str) -> list[Nic]:
    """Two that their bridge guarantees something, and one that is as any."""
    return vhostnet.open_nics([_with_floor(100, ifname="flt-f0"), _with_floor(200), *nics(1)], engine=engine)


def _with_floor(floor: int, ifname: str = "flt-f") -> InterfaceSpec:
    band, mac = vhostnet.Bandwidth(vhostnet.Rate(floor=floor)), f"52:54:00:00:09:{len(ifname):02x}"
    own = {"type": "network", "network": "n", "bridge": _shaped[0], "vhost": "off", "mac": mac}
    return InterfaceSpec(**own, ifname=ifname, bandwidth=band)


def _shape(bridge: str) -> None:
    for words in (
        "qdisc add dev {} root handle 1: htb default 2",
        "class add dev {} parent 1: classid 1:1 htb rate 1000kbps",
        "class add dev {} parent 1:1 classid 1:2 htb rate 1000kbps",
    ):
        subprocess.run(["tc", *words.format(bridge).split()], check=True)
    _shaped.append(bridge)


def _plugged(engine: str) -> list[Nic]:
    """Two ports of Open vSwitch, one of them with a queue, and one of a Linux bridge."""
    port = vhostnet.VirtualPort
    specs = [
        InterfaceSpec(bridge=SWITCHED, ifname=f"flt-p{n}", vhost="off", virtualport=port(), bandwidth=limit)
        for n, limit in enumerate((LIMIT, None))
    ]
    return vhostnet.open_nics([*specs, *nics(1)], engine=engine)


def _port(engine: str) -> Nic:
    mac, port = "52:54:00:00:00:07", vhostnet.VirtualPort()
    spec = InterfaceSpec(bridge=SWITCHED, ifname="flt-p0", vhost="off", mac=mac, virtualport=port, bandwidth=LIMIT)
    return vhostnet.open_nic(spec, engine=engine)


def _replug(nic: Nic) -> None:
    """Other VLANs, and no limit."""
    nic.update(replace(nic.spec, vlan=vhostnet.Vlan((5,)), bandwidth=None))


# --- crashes ---------------------------------------------------------------------------------------------


def sweep_lasting(tally: Tally) -> None:
    """One that is to outlive the process, which is killed at every call until it lasts: nothing is left before."""
    for engine in ENGINES:
        before = snapshot()
        _, calls = watched(partial(_open_lasting, engine))
        for index in range(calls.index("TUNSETPERSIST") + 1):
            case = f"lasting {engine}: killed at call {index} {calls[index]}"
            status = _killed(partial(watched, partial(_open_lasting, engine), Fault(index, kind=Kind.KILL)))
            tally.check("killed", os.WTERMSIG(status) == 9, case, status)
            tally.check("leak", _gone(before), case, settled(before))
            tally.cases[f"lasting killed {engine}"] += 1


def _open_lasting(engine: str) -> None:
    (nic,) = vhostnet.open_nics(nics(2), engine=engine, persist=True)
    nic.close()
    subprocess.run(["ip", "link", "del", nic.ifname], check=True)


def sweep_crashes(batch: Batch, tally: Tally) -> None:
    """The process is killed at every call: within 3 s no link and no port, and the same names work at once."""
    for engine in ENGINES:
        before = snapshot()
        for index, step in enumerate(steps(batch.specs)):
            case = f"{batch.name} {engine}: killed at call {index} {step.name}"
            status = _killed(partial(batch.open, engine, Fault(index, kind=Kind.KILL)))
            tally.check("killed", os.WTERMSIG(status) == 9, case, status)
            tally.check("leak", _gone(before), case, settled(before))
            got, _ = batch.open(engine)
            tally.check("same names", outcome(got) == Outcome(), case, got)
            tally.cases[f"{batch.name} killed {engine}"] += 1


def sweep_crashes_of(what: str, make: Callable[[str], list[Nic]], tidy: Callable[[], object], tally: Tally) -> None:
    """Something outlives whoever is killed, at any call; it is found, and taken away."""
    for engine in ENGINES:
        before = snapshot()
        _, calls = watched(partial(_open_and_close, make, engine))
        for index, name in enumerate(calls):
            case = f"{what} {engine}: killed at call {index} {name}"
            status = _killed(partial(watched, partial(_open_and_close, make, engine), Fault(index, kind=Kind.KILL)))
            tally.check("killed", os.WTERMSIG(status) == 9, case, status)
            tally.check("leak", _gone(before, tidy), case, settled(before))
            tally.cases[f"{what} killed {engine}"] += 1


def _open_and_close(make: Callable[[str], list[Nic]], engine: str) -> None:
    vhostnet.close_nics(make(engine))


def _delete_left_over() -> None:
    vhostnet.delete_nics([nic.ifname for nic in vhostnet.list_nics() if not nic.ifindex])


def sweep_macvtaps(tally: Tally) -> None:
    """Killed at every call: what is left is a link that has our mark, and goes by it; and at worst a node in /dev."""
    for engine in ENGINES:
        before = calm()
        opening = partial(vhostnet.open_nics, _direct(2, 1), engine=engine)
        made, calls = watched(opening)
        vhostnet.close_nics(made)
        for index in range(len(calls)):
            case = f"macvtaps {engine}: killed at call {index} {calls[index]}"
            status = _killed(partial(watched, opening, Fault(index, kind=Kind.KILL)))
            tally.check("killed", os.WTERMSIG(status) == 9, case, status)
            vhostnet.delete_nics([nic.ifname for nic in vhostnet.list_nics()], engine=engine)
            nodes = [name for name in snapshot()["nodes"] if name not in before["nodes"]]
            tally.check("leak", len(nodes) <= 1, case, nodes)
            for name in nodes:
                os.unlink(f"/dev/{name}")
            tally.check("leak", _gone(before), case, settled(before))
            tally.cases[f"macvtaps killed {engine}"] += 1


def _killed(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def _gone(before: dict[str, Any], tidy: Callable[[], object] = lambda: None) -> bool:
    """All that a process held goes with it, but not before its end."""
    deadline = time.monotonic() + 3
    while _differing(before):
        tidy()
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# --- all of it -------------------------------------------------------------------------------------------


SEVERAL: Final = Batch("2q 1q 4q", nics(2, 1, 4))
LIMITED: Final = Batch("2q 1q limited", [*nics(2, 1, bandwidth=LIMIT), nics(1, 1, 1)[2]])


def opening(errnos: Sequence[int], tally: Tally) -> None:
    """One NIC, and a batch over two bridges."""
    for queues in (1, 2, 4, 16):
        sweep_opening(Batch(f"{queues}q", nics(queues)), errnos, tally)
    sweep_opening(SEVERAL, errnos, tally)
    sweep_opening(LIMITED, errnos, tally)


def undoing(_: Sequence[int], tally: Tally) -> None:
    """Each second fault has one errno: they go round."""
    sweep_undoing(Batch("1q", nics(1)), tally)
    sweep_undoing(SEVERAL, tally)
    sweep_undoing(LIMITED, tally)


def answers(_: Sequence[int], tally: Tally) -> None:
    """What netlink brings."""
    sweep_answers(SEVERAL, tally)
    sweep_answers(LIMITED, tally)


def life(errnos: Sequence[int], tally: Tally) -> None:
    """What a NIC does beside being opened."""
    for deed in deeds():
        sweep_deed(deed, errnos, tally)


def crashes(_: Sequence[int], tally: Tally) -> None:
    """In a batch."""
    sweep_crashes(SEVERAL, tally)
    sweep_lasting(tally)
    sweep_macvtaps(tally)


def vhost(errnos: Sequence[int], tally: Tally) -> None:
    """What only a kernel with vhost-net can do; a guest is emulated, and the rest was tried outside."""
    batches = [Batch(f"{queues}q vhost", nics(queues, vhost="require")) for queues in (1, 2, 4, 16)]
    batches += [Batch("2q 1q vhost", nics(2, 1, vhost="require"))]
    batches += [Batch("2q vhost if it is there", nics(2, vhost="auto"))]
    batches += [Batch("1q self-test", nics(1, vhost="require"), selftest=True)]
    for batch in batches:
        sweep_opening(batch, errnos, tally, of=("VHOST_OPEN", "SELFTEST"))
    sweep_undoing(Batch("2q vhost", nics(2, vhost="require")), tally)


def vlan(errnos: Sequence[int], tally: Tally) -> None:
    """What only a kernel can do whose bridges filter by VLAN."""
    for name in BRIDGES:
        subprocess.run(["ip", "link", "set", name, "type", "bridge", "vlan_filtering", "1"], check=True)
    tagged = vhostnet.Vlan((10, 11, 20), trunk=True, native=20)
    for count in (1, 2):
        deed = Deed(
            f"{count} in VLANs",
            lambda engine: engine,
            lambda engine, count=count: vhostnet.open_nics(_set_up(tagged)[:count], engine=engine),
        )
        sweep_deed(deed, errnos[::4], tally)  # a guest is emulated, and plain calls were refused with each of them


def slow(errnos: Sequence[int], tally: Tally) -> None:
    """Acts that no engine does."""
    vhostnet.close_nics(_slow("pure"))  # what is imported late
    sweep_deed(Deed("slow acts", lambda engine: engine, _slow), errnos, tally)
    _shape(BRIDGES[1])
    sweep_deed(Deed("floors", lambda engine: engine, _kept), errnos[::2], tally)
    other = Deed(
        "another floor",
        lambda engine: vhostnet.open_nic(_with_floor(100), engine=engine),
        lambda nic: nic.update(_with_floor(150)),
    )
    sweep_deed(other, errnos[1::4], tally)
    sweep_crashes_of("floors", _kept, _delete_left_over, tally)
    _shaped.clear()
    if why := openvswitch.missing():
        print(f"no ports of Open vSwitch: {why}")
        return
    with openvswitch.switch(SWITCHED) as switch:
        _switch.append(switch)
        vhostnet.close_nics(_plugged("pure"))
        # Not EINTR: no connect() with a time limit to a Unix socket is interrupted, and Python takes it for a success.
        sweep_deed(Deed("ports of Open vSwitch", lambda engine: engine, _plugged), errnos[1::3], tally)
        sweep_deed(Deed("a port becomes another", _port, _replug), errnos[1::6], tally)
        sweep_crashes_of("ports of Open vSwitch", _plugged, _delete_left_over, tally)
        _switch.clear()


def shaping(errnos: Sequence[int], tally: Tally) -> None:
    """What only a kernel can do that limits what a guest sends."""
    both = vhostnet.Bandwidth(vhostnet.Rate(1000), vhostnet.Rate(8))
    other = _wish(ifname="flt-u", bandwidth=both, **_OF_GUEST)
    for deed in (
        Deed(
            "both ways",
            lambda engine: engine,
            lambda engine: vhostnet.open_nics(nics(1, bandwidth=both), engine=engine),
        ),
        Deed(
            "to both ways",
            lambda engine: vhostnet.open_nic(replace(other, bandwidth=LIMIT), engine=engine),
            lambda nic: nic.update(other),
        ),
    ):
        sweep_deed(deed, errnos[::4], tally)  # likewise


PARTS: Final = {part.__name__: part for part in (opening, undoing, answers, life, crashes, slow, vhost, vlan, shaping)}
HERE: Final = tuple(name for name in PARTS if name not in ("vhost", "vlan", "shaping"))


def sweep(parts: Sequence[str], errnos: Sequence[int]) -> Tally:
    """Those parts, in this network namespace, until too much is wrong."""
    tally = Tally()
    vhostnet.others.bridge.make_bridge(BRIDGES[0])
    vhostnet.others.bridge.make_bridge(BRIDGES[1], mtu=9000)
    vhostnet.others.bridge.make_bridge(PARENT)
    subprocess.run(["ip", "tuntap", "add", THERE, "mode", "tap", "multi_queue"], check=True)
    warnings.simplefilter("error")
    for engine in ENGINES:  # what is asked once a process, or imported late, is not to be counted
        vhostnet.close_nics(vhostnet.open_nics([*nics(1, 1), *_direct(1)], engine=engine))
        vhostnet.list_nics()
        vhostnet.plan_nics(nics(1), engine=engine)
    calm()
    with contextlib.suppress(Enough):
        for part in parts:
            PARTS[part](errnos, tally)
    return tally
