"""A NIC into a QEMU that runs, and out again: which QMP commands, in which order, and what undoes each.

Pure: a generator gives one step at a time and is told the answer, or is thrown the refusal. Whoever has a connection
drives it, blocking or not (``vhostnet.qmp``).
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from vhostnet.errors import QemuRefused, SpecError
from vhostnet.qemu.argv import RECONNECT_MS, Dialect, assign_aliases, fitted, qemu_properties, set_link
from vhostnet.qemu.tables import Properties
from vhostnet.spec.interface import InterfaceSpec
from vhostnet.spec.parts import PciAddress

DELETED: Final = "DEVICE_DELETED"
GUEST_ERROR: Final = "DEVICE_UNPLUG_GUEST_ERROR"  # QEMU 6.2 and later: the guest will not let go of it
_GONE: Final = "DeviceNotFound"  # QMP's error class


class Command(NamedTuple):
    """A QMP command; *fd* goes along with it (SCM_RIGHTS), where there is one."""

    name: str
    arguments: Mapping[str, Any] = {}
    fd: int | None = None


class Departure(NamedTuple):
    """An event about that device is waited for, so many seconds, and a command is sent before, where there is one.

    The answer is the event's name, None where none came.
    """

    device: str
    seconds: float
    command: Command | None
    events: tuple[str, ...] = (DELETED, GUEST_ERROR)


Step = Command | Departure


class Plugged(NamedTuple):
    """What QEMU has now: ids, and what it granted. ``vhost``: it owns the vhost-net fds.

    ``queues`` are the queue pairs of its netdev, the rings' sizes None where the model has none to set. ``notes`` say
    what was asked for and is otherwise.
    """

    alias: str
    netdev: str
    mac: str
    queues: int
    rx_queue_size: int | None
    tx_queue_size: int | None
    vhost: bool
    notes: tuple[str, ...] = ()


class Given(NamedTuple):
    """What is there already of the NIC: its fds, or its passt's socket."""

    tap_fds: Sequence[int] = ()
    vhost_fds: Sequence[int] = ()
    vdpa_fd: int | None = None
    passt_socket: str | None = None


def plugging(
    spec: InterfaceSpec,
    given: Given,
    *,
    alias: str | None = None,
    bus: str | None = None,
    addr: str | None = None,
    seconds: float = 30.0,
) -> Generator[Step, Any, Plugged]:
    """Plug it in; whatever was done of it is undone where QEMU refuses the rest, or the driver is interrupted.

    The fds are the caller's, and may be closed when this has ended. *seconds* has a guest to let go of a device that is
    undone. Raises QemuRefused, SpecError.
    """
    _check_pluggable(spec)
    spec = fitted(spec)
    places: dict[str, Any] = {"bus": bus, "addr": addr, "passt_socket": given.passt_socket}
    qemu_properties(spec, **_numbers(given), alias=alias, **places)  # or a SpecError, before anything is done
    undo: list[Command] = []
    try:
        dialect = _dialect((yield Command("query-version")))
        alias = _free(spec, alias, (yield Command("qom-list", {"path": "/machine/peripheral"})))
        named = yield from _send(given, alias, undo)
        netdev, device = qemu_properties(spec, **named, alias=alias, **places, dialect=dialect)
        if spec.type == "vhostuser":
            name = str(netdev["chardev"])
            yield from _do(_chardev(spec, given, name, dialect), Command("chardev-remove", {"id": name}), undo)
        yield from _do(Command("netdev_add", netdev), Command("netdev_del", {"id": netdev["id"]}), undo)
        undo[:] = [command for command in undo if command.name != "closefd"]  # the netdev has them now
        yield from _do(Command("device_add", device), Command("device_del", {"id": alias}), undo)
        if spec.link_state == "down":
            told = set_link(spec, alias)
            yield Command(told["execute"], told["arguments"])
        return (yield from _granted(spec, netdev, device))
    except BaseException as error:
        if isinstance(error, QemuRefused):
            error.alias, error.remedy = alias, error.remedy or _remedy(error.problem)
        yield from _undo(undo, error, seconds)
        raise


def unplugging(alias: str, seconds: float = 30.0) -> Generator[Step, Any, None]:
    """Take it out: the guest lets go of it first, and has so many seconds. Raises QemuRefused.

    Where the device has gone since somebody asked for that, what is left of it goes.
    """
    gone: QemuRefused | None = None
    try:
        yield from _departing(alias, seconds)
    except QemuRefused as refused:
        refused.alias = alias
        if refused.error_class != _GONE:
            raise
        gone = refused
    try:
        yield Command("netdev_del", {"id": f"host{alias}"})
    except QemuRefused as refused:
        raise gone or refused from None
    if any(one["label"] == f"char{alias}" for one in (yield Command("query-chardev"))):
        yield Command("chardev-remove", {"id": f"char{alias}"})
    for one in (yield Command("query-fdsets")):
        if any(fd.get("opaque") == f"{alias}-vdpa" for fd in one["fds"]):
            yield Command("remove-fd", {"fdset-id": one["fdset-id"]})


_BUSY: Final = "it is in use there: take it down in the guest, and unplug it again"
_DEAF: Final = "it has to run, and to heed hotplug; unplug it again then"
_AGAIN: Final = 2.0  # seconds until a guest is asked again
_PENDING: Final = ("in the process of unplug", "guest is busy")  # it was asked before, and may let go of it yet


def _departing(alias: str, seconds: float) -> Generator[Step, Any, None]:
    """The guest is asked, and again until it lets go: one that boots, or just plugs it in, may not hear of it."""
    command = Command("device_del", {"id": alias})
    times = max(1, round(seconds / _AGAIN))
    for turn in range(times):
        try:
            event = yield Departure(alias, seconds / times, command)
        except QemuRefused as refused:
            if turn and refused.error_class == _GONE:
                return
            if not any(word in refused.problem for word in _PENDING):
                raise
            event = yield Departure(alias, seconds / times, None)
        if event == DELETED:
            return
        if event == GUEST_ERROR:
            raise QemuRefused("the guest refused to let go of it", command=command.name, alias=alias, remedy=_BUSY)
    problem = f"the guest has not let go of it in {seconds:g} s"
    raise QemuRefused(problem, command=command.name, alias=alias, remedy=_DEAF)


# --- steps -----------------------------------------------------------------------------------------------


def _do(command: Command, undoing: Command, undo: list[Command]) -> Generator[Step, Any, Any]:
    """Whoever is interrupted does not know whether QEMU did it; what it refused it did not."""
    undo.append(undoing)
    try:
        return (yield command)
    except QemuRefused:
        undo.remove(undoing)
        raise


def _undo(undo: Sequence[Command], error: BaseException, seconds: float) -> Generator[Step, Any, None]:
    """In reverse; a refusal of that is noted in *error*."""
    for command in reversed(undo):
        try:
            if command.name == "device_del":
                yield from _departing(command.arguments["id"], seconds)
            else:
                yield command
        except Exception as refused:  # the connection may be gone, and QEMU with it
            if isinstance(error, QemuRefused) and error.undoing is None and command.name not in _GOES_ALONG:
                error.undoing = refused


# A netdev_add that was refused may have closed some of the fds, and a netdev takes its chardev along.
_GOES_ALONG: Final = ("closefd", "chardev-remove")


def _check_pluggable(spec: InterfaceSpec) -> None:
    if isinstance(spec.address, PciAddress) and spec.address.zpci:
        what = "a place without zpci, which QEMU then has of its own accord"
        raise SpecError(
            "with zpci is not for a machine that runs", attribute="address", value=spec.address, expected=what
        )


def _numbers(given: Given) -> dict[str, Any]:
    return {"tap_fds": given.tap_fds, "vhost_fds": given.vhost_fds, "vdpa_fd": given.vdpa_fd}


def _send(given: Given, alias: str, undo: list[Command]) -> Generator[Step, Any, dict[str, Any]]:
    """The fds, a message each; and how a netdev calls them: by names, a vDPA device's node by its set's number."""
    sent: dict[str, Any] = {}
    for what, fds in (("tap", given.tap_fds), ("vhost", given.vhost_fds)):
        sent[f"{what}_fds"] = [f"{alias}.{what}{number}" for number, _ in enumerate(fds)]
        for name, fd in zip(sent[f"{what}_fds"], fds, strict=True):
            yield from _do(Command("getfd", {"fdname": name}, fd), Command("closefd", {"fdname": name}), undo)
    if given.vdpa_fd is not None:
        # Not by _do(): which set it is QEMU says no sooner than in its answer.
        added = yield Command("add-fd", {"opaque": f"{alias}-vdpa"}, given.vdpa_fd)
        sent["vdpa_fd"] = int(added["fdset-id"])
        undo.append(Command("remove-fd", {"fdset-id": added["fdset-id"]}))
    return sent


def _free(spec: InterfaceSpec, alias: str | None, devices: Sequence[Mapping[str, str]]) -> str:
    """An id that no device of this QEMU has: a second is refused, and what is undone then must not be the first."""
    taken = {one["name"] for one in devices}
    found = alias or assign_aliases([spec], taken=taken)[0]
    if found in taken:
        problem = "the machine has a device of that id"
        raise QemuRefused(problem, command="device_add", alias=found, remedy=_ANOTHER)
    return found


_ANOTHER: Final = "give another (alias=, plug --alias), or unplug that one"


def _chardev(spec: InterfaceSpec, given: Given, name: str, dialect: Dialect) -> Command:
    path = given.passt_socket or getattr(spec.source, "path", "")
    server = bool(getattr(spec.source, "server", False))
    how: dict[str, Any] = {"addr": {"type": "unix", "data": {"path": path}}, "server": server}
    if server:
        how["wait"] = False  # or this QEMU would stand still until the switch has called
    again = getattr(spec.source, "reconnect", None)
    if again is not None:
        how |= {"reconnect-ms": 1000 * again} if dialect == "json" else {"reconnect": again}
    return Command("chardev-add", {"id": name, "backend": {"type": "socket", "data": how}})


def _dialect(answer: Mapping[str, Any]) -> Dialect:
    """How a reconnect is called; else they say the same."""
    found = answer["qemu"]
    return "json" if (found["major"], found["minor"], found["micro"]) >= RECONNECT_MS else "keyval"


_REMEDIES: Final = (
    ("does not support hotplugging", "name a bus that does (bus=, plug --bus): on q35 a pcie-root-port that is free"),
    ("no slot/function available", "name a bus that has one free (bus=, plug --bus), or add a pcie-root-port"),
    ("PCI: slot", "give a slot that is free (addr=, plug --addr), or another bus"),
    ("not found", "see what buses the machine has: info qtree, in its monitor"),
    ("Duplicate ID", "give another alias (alias=, plug --alias)"),
)


def _remedy(problem: str) -> str:
    return next((remedy for word, remedy in _REMEDIES if word in problem), "")


# --- what it came to -------------------------------------------------------------------------------------


def _granted(spec: InterfaceSpec, netdev: Properties, device: Properties) -> Generator[Step, Any, Plugged]:
    """Read back: some QEMUs make rings smaller, and say nothing."""
    alias, host = str(device["id"]), str(netdev["id"])
    path = f"/machine/peripheral/{alias}"
    sizes: dict[str, int | None] = dict.fromkeys(("rx_queue_size", "tx_queue_size"))
    if spec.virtio:
        for name in sizes:
            sizes[name] = int((yield Command("qom-get", {"path": path, "property": name})))
    network = yield Command("human-monitor-command", {"command-line": "info network"})
    queues = len(re.findall(rf"\b{re.escape(host)}: index=\d+", str(network)))
    asked = {"queues": spec.queues, **{name: getattr(spec, name) for name in sizes}}
    found = {"queues": queues, **sizes}
    notes = tuple(
        f"{name}: {asked[name]} was asked for, QEMU has {found[name]}"
        for name in asked
        if asked[name] is not None and found[name] is not None and asked[name] != found[name]
    )
    return Plugged(alias, host, str(device["mac"]), queues, **sizes, vhost=False, notes=notes)
