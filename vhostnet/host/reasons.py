"""Why the host refuses, in an exception: what is asked for beside what there is, looked up once it has gone wrong."""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from vhostnet.engines import ActResult, Engine, Failure, Result
from vhostnet.errors import (
    BridgeFull,
    FlagMismatch,
    Holder,
    HostError,
    NameBusy,
    NoSuchBridge,
    NotABridge,
    ResourceExhausted,
    host_error,
)
from vhostnet.host.marks import read_mark
from vhostnet.others.holders import find_holders
from vhostnet.process.files import allowed_files, open_files
from vhostnet.program.cost import cost
from vhostnet.program.parts import MAX_PORTS, SLOW, Link, NicRow, Op, TunFlag
from vhostnet.program.program import Program, fds_needed
from vhostnet.program.text import flag_names

_SLOW: Final = tuple(op.name for op in Op if op >= SLOW)
_ON_BRIDGE: Final = (Op.LINK, Op.VLAN_ADD, Op.VLAN_DEL, Op.FDB, Op.UNFDB)


def refusal(program: Program, failure: Failure) -> HostError:
    """The exception for a refused act of a Program."""
    act = program.acts[failure.act]
    nic = program.nics[act.nic]
    result = failure.result
    subject = nic.vhost_path
    if act.op == Op.TAP_OPEN or (act.op == Op.ADOPT and result.call == "open"):
        subject = nic.tap_path
    elif act.op == Op.ADOPT:
        subject = nic.ifname
    elif act.op == Op.MACVTAP and nic.macvtap:
        subject = nic.macvtap.parent if result.call != "open" else f"a node in /dev of {nic.ifname}"
    elif act.op == Op.UP:
        subject = nic.mac.hex(":")
    elif act.op in (Op.ALTNAME, Op.RENAME):
        subject = nic.wish
    elif act.op in _ON_BRIDGE:
        subject = nic.bridge
    elif act.op in (Op.PLUG, Op.REPLUG) and nic.slow.plug:
        subject = nic.ifname if result.errno == errno.EEXIST else nic.slow.plug.bridge
    error = host_error(
        result.errno,
        act=act.op.name,
        call=result.call,
        ifname=nic.ifname,
        queue=result.queue,
        subject=subject,
        said=result.said,
    )
    if act.op >= SLOW:
        error.strerror = result.said or error.strerror
    return error


def refusals(program: Program, result: Result) -> dict[int, HostError]:
    """Row -> why it was refused. In a run that did not get as far as its acts, every row for the same reason."""
    if not result.failures:
        return {}
    first = result.failures[0]
    failures = dict.fromkeys((row for row, nic in enumerate(result.nics) if nic is None), first)
    failures.update((program.acts[failure.act].nic, failure) for failure in result.failures)
    refused = {row: refusal(program, failure) for row, failure in failures.items()}
    if result.undo:
        undo = result.undo
        undoing = host_error(undo.errno, act=Op.DELETE.name, call=undo.call, ifname=None, queue=None)
        undoing.strerror = undo.said or undoing.strerror
        for error in refused.values():
            error.undoing = undoing
    return refused


def describe(engine: Engine, names: Sequence[str]) -> dict[str, Link]:
    """Those of the links that exist. Raises HostError with act ``DESCRIBE``."""
    try:
        return engine.describe(names) if names else {}
    except OSError as error:
        call = str(error.filename or "")
        raise host_error(error.errno or 0, act="DESCRIBE", call=call, ifname=None, queue=None) from None


_NAME_TAKEN: Final = (
    (Op.TAP_OPEN.name, errno.EBUSY),
    (Op.TAP_OPEN.name, errno.EINVAL),
    (Op.MACVTAP.name, errno.EEXIST),
)


def explained(engine: Engine, program: Program, error: HostError, networks: Mapping[str, str]) -> HostError:
    """The same, with what there is on this host that tells why; *networks* are those that bridges stand for."""
    row = next(nic for nic in program.nics if nic.ifname == error.ifname)
    if error.act in _SLOW:  # who has said it all
        return error
    try:
        if isinstance(error, BridgeFull):
            _count_ports(engine, program, row, error)
        elif isinstance(error, (NoSuchBridge, NotABridge)):
            _say_of_bridge(error, row.bridge, describe(engine, [row.bridge]).get(row.bridge), networks.get(row.bridge))
        elif (error.act, error.errno) in _NAME_TAKEN:
            return name_taken(engine, row, error)
        elif error.act == Op.ADOPT.name and error.call == "open":
            _say_of_node(engine, row, error)
        elif error.act == Op.ADOPT.name and error.errno in (errno.EBUSY, errno.EINVAL):
            return _unfit_tap(engine, row, error)
        elif isinstance(error, ResourceExhausted):
            _count_resources(program, error)
    except HostError:  # there is no asking: what the kernel said first has to do
        pass
    return error


# --- bridges ---------------------------------------------------------------------------------------------


def joined(program: Program) -> dict[str, list[NicRow]]:
    """Bridge -> the NICs that are to join it."""
    found: dict[str, list[NicRow]] = {}
    for nic in program.nics:
        if nic.bridge:
            found.setdefault(nic.bridge, []).append(nic)
    return found


def unfit_bridge(name: str, link: Link | None, joining: Sequence[NicRow], network: str | None) -> HostError | None:
    """Why these NICs could not join the bridge *name*, which is *link*; None when they could.

    *network* is the libvirt network that it stands for, where there is one.
    """
    code = 0
    if link is None:
        code = errno.ENODEV
    elif link.kind != "bridge":
        code = errno.EOPNOTSUPP
    elif link.ports + len(joining) > MAX_PORTS:
        code = errno.EXFULL
    if not code:
        return _unheeded(name, link, joining)
    error = host_error(code, act=Op.LINK.name, call="RTM_GETLINK", ifname=None, queue=None, subject=name)
    if link and code == errno.EXFULL:
        error.strerror = _full(name, link.ports, len(joining))
    else:
        _say_of_bridge(error, name, link, network)
    return error


def _unheeded(name: str, link: Link | None, joining: Sequence[NicRow]) -> HostError | None:
    """Some are to be in VLANs, and the bridge would not care."""
    asking = next((nic.ifname for nic in joining if nic.port.vlans), None)
    if asking is None or (link and link.vlan_filtering):
        return None
    call = "IFLA_BR_VLAN_FILTERING"
    return host_error(errno.EOPNOTSUPP, act=Op.VLAN_ADD.name, call=call, ifname=asking, queue=None, subject=name)


_LIBVIRTS = re.compile(r"virbr[0-9]+", re.ASCII)


def _say_of_bridge(error: HostError, name: str, link: Link | None, network: str | None) -> None:
    """A bridge that is libvirt's to make, or that is another system's."""
    if link is None and network:
        error.remedy = f"it is network {network!r}'s: virsh net-start {shlex.quote(network)}"
    elif link is None and _LIBVIRTS.fullmatch(name):
        error.remedy = "libvirt makes it with its network: virsh net-list --all, virsh net-start NETWORK"
    elif link and link.kind == "openvswitch":
        error.strerror = f"{name!r} is an Open vSwitch bridge, and not a Linux bridge"
        error.remedy = "say so: <virtualport type='openvswitch'/> in the interface"


def _count_ports(engine: Engine, program: Program, row: NicRow, error: BridgeFull) -> None:
    links = describe(engine, [row.bridge])
    ports = links[row.bridge].ports if row.bridge in links else MAX_PORTS
    error.strerror = _full(row.bridge, ports, cost(program).ports[row.bridge])


def _full(name: str, ports: int, joining: int) -> str:
    return f"bridge {name!r} has {ports} of {MAX_PORTS} ports in use, and {joining} NICs are to join it"


# --- names -----------------------------------------------------------------------------------------------


def name_taken(engine: Engine, row: NicRow, error: HostError) -> HostError:
    """The same, with what it is that has the row's name, and who holds it; as it was when there is no such link."""
    link = describe(engine, [row.ifname]).get(row.ifname)
    if link is None:
        return error
    holders = find_holders([row.ifname]).get(row.ifname, ()) if link.kind in ("tun", "macvtap") else ()
    asked, found = flag_names(row.tun_flags), flag_names(link.tun_flags)
    kind = FlagMismatch if link.kind == "tun" and asked != found and not row.macvtap else NameBusy
    taken = _taken_by(link, found, holders)
    busy = kind(error.errno or 0, taken, act=error.act, call=error.call, ifname=row.ifname, queue=error.queue)
    busy.remedy = _OTHER_NAME
    if link.tun_flags & TunFlag.PERSIST and not holders:
        busy.remedy = (
            f"nobody has it open and it is persistent: ip link del {row.ifname}, if nobody needs it; or {_OTHER_NAME}"
        )
    if read_mark(link.alias) and link.kind == "macvtap" and not holders:
        busy.remedy = f"nobody has it open, and it is vhostnet's: vhostnet delete {row.ifname}; or {_OTHER_NAME}"
    busy.holders, busy.undoing = holders, error.undoing
    if isinstance(busy, FlagMismatch):
        busy.asked, busy.found = asked, found
    return busy


_OTHER_NAME = "choose another <target dev=>, or leave it out and one is generated"


def _taken_by(link: Link, flags: Sequence[str], holders: Sequence[Holder]) -> str:
    kind = f"a {' '.join(flags)} device" if link.kind == "tun" else f"a link of kind {link.kind or 'hardware'!r}"
    held = ", ".join(f"{holder.command!r} (pid {holder.pid})" for holder in holders)
    return f"the name is that of {kind}" + (f", held by {held}" if held else "")


def unfit_taps(engine: Engine, program: Program) -> Iterator[HostError]:
    """Why TAPs that are to be there could not be adopted, one reason each."""
    adopted = [row for row in program.nics if row.adopted]
    links = describe(engine, [row.ifname for row in adopted])
    for row in adopted:
        link = links.get(row.ifname)
        if link is None:
            code, call = errno.ENODEV, "RTM_GETLINK"
        elif link.kind == "macvtap" or _has_queues(link, row):
            continue
        else:
            code, call = errno.EINVAL, "TUNSETIFF"
        error = host_error(code, act=Op.ADOPT.name, call=call, ifname=row.ifname, queue=None, subject=row.ifname)
        yield _unfit_tap(engine, row, error)


def _has_queues(link: Link, row: NicRow) -> bool:
    return bool(link.tun_flags & TunFlag.TAP) and (row.queues == 1 or bool(link.tun_flags & TunFlag.MULTI_QUEUE))


def unfit_parents(engine: Engine, program: Program) -> Iterator[HostError]:
    """Why macvtaps could not be on the links they are to be on, one reason each."""
    rows = [(row, row.macvtap.parent) for row in program.nics if row.macvtap]
    links = describe(engine, list(dict.fromkeys(parent for _, parent in rows)))
    for row, parent in rows:
        code = 0 if parent in links else errno.ENODEV
        if parent == "lo":
            code = errno.EINVAL
        if code:
            name = row.ifname
            yield host_error(code, act=Op.MACVTAP.name, call="RTM_NEWLINK", ifname=name, queue=None, subject=parent)


def _unfit_tap(engine: Engine, row: NicRow, error: HostError) -> HostError:
    """What it is that was to be adopted, beside what was asked for."""
    link = describe(engine, [row.ifname]).get(row.ifname)
    if link is None:
        return error
    asked, found = flag_names(row.tun_flags), flag_names(link.tun_flags)
    holders = find_holders([row.ifname]).get(row.ifname, ()) if link.kind == "tun" else ()
    queues = "1 queue" if row.queues == 1 else f"{row.queues} queues"
    problem = _taken_by(link, found, holders).replace("the name is that of", "it is") + f", and {queues} are asked for"
    kind = NameBusy if error.errno == errno.EBUSY else FlagMismatch
    unfit = kind(error.errno or 0, problem, act=error.act, call=error.call, ifname=row.ifname, queue=error.queue)
    unfit.remedy, unfit.holders, unfit.undoing = error.remedy, holders, error.undoing
    if isinstance(unfit, FlagMismatch):
        unfit.asked, unfit.found = asked, found
        more = " multi_queue" if row.queues > 1 else ""
        unfit.remedy = f"make it so: ip tuntap del {row.ifname} mode tap, ip tuntap add {row.ifname} mode tap{more}"
        if link.kind != "tun":
            unfit.remedy = "name a TAP in <target dev=>"
    return unfit


# --- slow acts -------------------------------------------------------------------------------------------


def unfit_plugs(program: Program) -> Iterator[HostError]:
    """Why NICs could not be ports of Open vSwitch, one reason each; nothing where this user may not ask."""
    if asked := _of_kind(program, Op.PLUG):
        from vhostnet.slow import ovsdb

        yield from _unfit(program, asked, ovsdb.look)


def unfit_floors(program: Program) -> Iterator[HostError]:
    """Why bridges could not guarantee NICs what they are to have, one reason each."""
    if asked := _of_kind(program, Op.FLOOR):
        from vhostnet.slow import floors

        yield from _unfit(program, asked, floors.look)


def _of_kind(program: Program, op: Op) -> list[tuple[int, NicRow]]:
    return [(number, program.nics[act.nic]) for number, act in enumerate(program.acts) if act.op == op]


def _unfit(
    program: Program,
    asked: Sequence[tuple[int, NicRow]],
    look: Callable[[Sequence[NicRow]], Mapping[str, OSError]],
) -> Iterator[HostError]:
    try:
        refused = look([row for _, row in asked])
    except PermissionError:
        return
    except OSError as error:
        refused = {asked[0][1].ifname: error}
    for number, row in asked:
        if why := refused.get(row.ifname):
            outcome = ActResult(why.errno or errno.EIO, str(why.filename or ""), None, 0, why.strerror or "")
            yield refusal(program, Failure(number, outcome))


def _say_of_node(engine: Engine, row: NicRow, error: HostError) -> None:
    """A macvtap has a node of its own, which somebody else makes."""
    link = describe(engine, [row.ifname]).get(row.ifname)
    if link and link.kind == "macvtap":
        node = f"/dev/tap{link.ifindex}"
        error.strerror = f"{node}: {os.strerror(error.errno or 0)}"
        error.remedy = (
            f"the node of macvtap {row.ifname}: make it (mknod {node} c MAJOR MINOR, as /sys/class/net/{row.ifname}"
            f"/tap{link.ifindex}/dev has them), and let this user read and write it"
        )


# --- resources -------------------------------------------------------------------------------------------


def _count_resources(program: Program, error: ResourceExhausted) -> None:
    needed = fds_needed(program)
    if error.errno == errno.EMFILE:
        allowed = allowed_files()
        there = open_files(allowed)
        error.needed, error.allowed = needed, allowed - there
        error.strerror = f"{needed} fds are needed, and {there} of the {allowed} that are allowed are open"
        if error.call == "RLIMIT_NOFILE":
            error.ifname = None  # it is about all of them
    elif error.errno == errno.ENFILE:
        error.needed, error.allowed = needed, free_files()
    elif error.errno == errno.ENOMEM:
        error.needed, error.allowed = cost(program).memory, free_memory()


def free_files() -> int | None:
    """How many more files this kernel allows all processes together (fs.file-max)."""
    try:
        there, free, most = map(int, _read("/proc/sys/fs/file-nr").split())
    except (OSError, ValueError):
        return None
    return most - there + free


def free_memory() -> int | None:
    """Bytes that can be had without swapping (MemAvailable)."""
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _read(path: str) -> str:
    with open(path) as opened:
        return opened.read()
