"""Ports of Open vSwitch, by its database: one transaction for all of them, and one to wait until the switch has them.

The protocol is RFC 7047, JSON over a Unix socket; what is asked stands in ``ovsops.py``. By the NIC's mark what was
left behind can be told from what is somebody else's. Whatever is refused is an OSError, its ``filename`` the call
(``connect``, ``OVSDB``).
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from vhostnet.program.parts import NicRow
from vhostnet.slow import ovsops
from vhostnet.slow.ovskernel import unlimited
from vhostnet.slow.ovsops import MARK, NONE, STATE, Operation, Row, from_map, from_set, plug_of

RUNDIR: Final = "/var/run/openvswitch"  # OVS_RUNDIR is another, as for Open vSwitch's own tools
ANSWER: Final = 5.0  # seconds for an answer of ovsdb-server's, which has it at hand
SWITCH, SWITCH_A_PORT = 5.0, 0.1  # and for ovs-vswitchd, which may be in the middle of other work
_RECEIVED: Final = 1 << 16


class FoundPort(NamedTuple):
    """A port with a mark of ours; the switch does not have its device open (``open``) where that is gone."""

    name: str
    bridge: str
    mark: str
    open: bool


def is_there() -> bool:
    """There is a socket, at least."""
    return os.path.exists(_path())


# --- a port in and out -----------------------------------------------------------------------------------


def look(rows: Sequence[NicRow]) -> dict[str, OSError]:
    """Name -> why it cannot be plugged in: no such bridge, or a port of that name that is not left over from us."""
    with _database() as database:
        bridges = [bridge["name"] for bridge in database.select("Bridge", ["name"])]
        named = [ovsops.named("Interface", row.ifname, ["name", "external_ids", *STATE]) for row in rows]
        found = [answer["rows"] for answer in database.transact(*named)]
    refused = {}
    for row, there in zip(rows, found, strict=True):
        plug = plug_of(row)
        if plug.bridge not in bridges:
            others = f"it has {', '.join(sorted(bridges))}" if bridges else "and no other either"
            refused[row.ifname] = _error(errno.ENODEV, f"no bridge {plug.bridge!r} in Open vSwitch: {others}")
        elif there and not _is_left_over(there[0]):
            refused[row.ifname] = _error(errno.EEXIST, f"Open vSwitch has a port {row.ifname!r} already")
    return refused


def plug(rows: Sequence[NicRow]) -> dict[str, OSError]:
    """Put all of them in, and wait until the switch has them. Name -> why it has not; OSError where it has none."""
    with _database() as database:
        ended = list(_ended(database, rows))
        answers = database.transact(*ended, *ovsops.insertions(rows), ovsops.NOTICE)[len(ended) :]
        _check_bridges(rows, answers[2 * len(rows) :])
        made = [answer["uuid"] for answer in answers[: 2 * len(rows) : 2]]
        patience = SWITCH + SWITCH_A_PORT * len(rows)
        waits = [ovsops.until_seen(interface, patience) for interface in made]
        asked = [ovsops.one("Interface", interface, STATE) for interface in made]
        answers = database.transact(*waits, *asked, patience=patience + ANSWER)[len(rows) :]
    seen = [answer["rows"][0] if answer["rows"] else {} for answer in answers]
    problems = {row.ifname: _problem(row, interface) for row, interface in zip(rows, seen, strict=True)}
    refused = {name: _error(errno.EIO, problem) for name, problem in problems.items() if problem}
    return refused | _unlimited([row for row in rows if row.ifname not in refused])


def unplug(rows: Sequence[NicRow]) -> None:
    """Take out those that are there, by name and mark, and what shapes them. Nobody waits until the switch has done so.

    Whatever of it somebody else has taken out already, the rest goes.
    """
    with _database() as database:
        asked = [ovsops.named("Port", row.ifname, ["_uuid"], row.alias) for row in rows]
        there = [found["_uuid"] for answer in database.transact(*asked) for found in answer["rows"]]
        queues = ovsops.queue_deletions([row.alias for row in rows])
        database.transact(*ovsops.deletions(there), *queues, ovsops.NOTICE)


def replug(rows: Sequence[NicRow]) -> dict[str, OSError]:
    """Make ports of ours what the rows say now, where they are, and wait for the switch. Name -> why it is not."""
    with _database() as database:
        answers = database.transact(*ovsops.updates(rows), ovsops.NOTICE, ovsops.CONFIGURED)
        counts = [answer["count"] for answer in answers[: 2 * len(rows) : 2]]
        gone = [row for row, count in zip(rows, counts, strict=True) if not count]
        if gone:  # no port leads to what would shape them
            database.transact(*ovsops.queue_deletions([row.alias for row in gone]))
        _await_switch(database, answers[-1]["rows"][0])
    refused = {row.ifname: _error(errno.ESTALE, "no port of ours any more") for row in gone}
    return refused | _unlimited([row for row in rows if row.ifname not in refused])


def list_ports() -> list[FoundPort]:
    """Those that have a mark of ours."""
    with _database() as database:
        bridges = database.select("Bridge", ["name", "ports"])
        ports = database.select("Port", ["_uuid", "name", "external_ids"])
        interfaces = database.select("Interface", ["name", *STATE])
    bridge_of = {uuid[1]: bridge["name"] for bridge in bridges for uuid in from_set(bridge["ports"])}
    states = {interface["name"]: interface for interface in interfaces}
    return [
        FoundPort(port["name"], bridge_of.get(port["_uuid"][1], ""), mark, not _is_dead(states.get(port["name"], {})))
        for port in ports
        if (mark := from_map(port["external_ids"]).get(MARK))
    ]


def _is_left_over(interface: Row) -> bool:
    """Ours, and the device is gone: a new one of that name would otherwise have the port of the one before."""
    return MARK in from_map(interface["external_ids"]) and _is_dead(interface)


def _is_dead(interface: Row) -> bool:
    """ovs-vswitchd has said that there is no device of that name.

    It takes milliseconds to notice that one is gone, or a second where the kernel switches. Of a new one it says
    nothing at first.
    """
    return interface.get("ofport") == -1 or interface.get("ifindex") == 0


def _problem(row: NicRow, interface: Row) -> str:
    """Why the switch does not have what was put in; "" where it has."""
    if interface.get("error", NONE) != NONE:
        return str(interface["error"])
    if interface.get("ofport", -1) == -1:
        return "ovs-vswitchd gives it no port number"
    if interface["ifindex"] not in (0, NONE, row.ifindex):
        return f"ovs-vswitchd has another link of that name (ifindex {interface['ifindex']}, and not {row.ifindex})"
    return ""


def _unlimited(rows: Sequence[NicRow]) -> dict[str, OSError]:
    return {name: _error(errno.EOPNOTSUPP, problem) for name, problem in unlimited(rows).items()}


def _ended(database: _Database, rows: Sequence[NicRow]) -> Iterator[Operation]:
    """What must go before these rows come, or can go with it: what is left over from us."""
    ports = _left_over(database, [row.ifname for row in rows])
    yield from ovsops.deletions([port["_uuid"] for port in ports])
    yield from ovsops.queue_deletions([from_map(port["external_ids"])[MARK] for port in ports])
    if any(plug_of(row).queue for row in rows):
        yield from ovsops.ownerless(*(answer["rows"] for answer in database.transact(*ovsops.queueing())))


def _left_over(database: _Database, names: Sequence[str]) -> list[Row]:
    """The ports by these names with a mark of ours; look() has seen that no device is there."""
    asked = [ovsops.named("Port", name, ["_uuid", "external_ids"]) for name in names]
    found = [port for answer in database.transact(*asked) for port in answer["rows"]]
    return [port for port in found if MARK in from_map(port["external_ids"])]


def _check_bridges(rows: Sequence[NicRow], answers: Sequence[Any]) -> None:
    """A bridge that went meanwhile: then the rows that nothing leads to are gone by themselves."""
    for bridge, answer in zip(ovsops.by_bridge(rows), answers, strict=False):
        if not answer["count"]:
            raise _error(errno.ENODEV, f"no bridge {bridge!r} in Open vSwitch any more")


def _await_switch(database: _Database, config: Row) -> None:
    """Until ovs-vswitchd has done all that there is to do by that *config*; ovs-vsctl waits for the same."""
    done = config["cur_cfg"]
    while done < config["next_cfg"]:
        change = ovsops.until_other("Open_vSwitch", [], "cur_cfg", done, SWITCH)
        done = database.transact(change, ovsops.CONFIGURED, patience=SWITCH + ANSWER)[1]["rows"][0]["cur_cfg"]


# --- the database ----------------------------------------------------------------------------------------


class _Database:
    """A connection to ovsdb-server."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._received = ""
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._number = 0

    def select(self, table: str, columns: Sequence[str]) -> list[Row]:
        """Every row."""
        (answer,) = self.transact(ovsops.every(table, columns))
        return list(answer["rows"])

    def transact(self, *operations: Operation, patience: float = ANSWER) -> list[Any]:
        """What each came to: all of them, or OSError."""
        self._number += 1
        self._until = time.monotonic() + patience
        asked = {"method": "transact", "params": ["Open_vSwitch", *operations], "id": self._number}
        self._send(asked)
        while (answer := self._receive()).get("id") != self._number or "method" in answer:
            if answer.get("method") == "echo":  # whether we are there
                self._send({"result": answer["params"], "error": None, "id": answer["id"]})
        answers = list(answer["result"] or [answer["error"]])
        for one in answers:
            if one and "error" in one:
                raise _refused(one)
        return answers

    def _send(self, message: Mapping[str, Any]) -> None:
        with _named_call("send"):
            self._socket.settimeout(max(0.001, self._until - time.monotonic()))
            self._socket.sendall(json.dumps(message).encode())

    def _receive(self) -> dict[str, Any]:
        """The next message: nothing says where one ends but its last brace."""
        while True:
            try:
                message, end = json.JSONDecoder().raw_decode(self._received)
            except ValueError:
                with _named_call("recv"):
                    self._socket.settimeout(max(0.001, self._until - time.monotonic()))
                    received = self._socket.recv(_RECEIVED)
                if not received:
                    raise OSError(errno.ECONNRESET, "ovsdb-server has gone away", "recv") from None
                self._received += self._decode(received)
            else:
                self._received = self._received[end:].lstrip()
                return dict(message)


def _path() -> str:
    return f"{os.environ.get('OVS_RUNDIR') or RUNDIR}/db.sock"


@contextlib.contextmanager
def _database() -> Iterator[_Database]:
    path = _path()
    with _named_call("socket"):
        connected = socket.socket(socket.AF_UNIX)
    with connected:
        try:
            connected.settimeout(ANSWER)
            connected.connect(path)
        except OSError as error:
            code = error.errno or errno.ENAMETOOLONG  # which Python says in words
            raise OSError(code, f"{path}: {os.strerror(code)}", "connect") from None
        yield _Database(connected)


@contextlib.contextmanager
def _named_call(call: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise OSError(errno.ETIMEDOUT, "ovsdb-server does not answer", call) from None
    except OSError as error:
        raise OSError(error.errno, f"ovsdb-server: {error.strerror}", call) from None


def _error(code: int, words: str) -> OSError:
    return OSError(code, words, "OVSDB")


def _refused(answer: Row) -> OSError:
    """What the database says, and the errno that comes nearest."""
    kind, details = str(answer["error"]), str(answer.get("details") or "")
    if kind == "timed out":
        return _error(errno.ETIMEDOUT, "ovs-vswitchd does not answer")
    code = {"constraint violation": errno.EEXIST, "permission error": errno.EPERM}.get(kind, errno.EPROTO)
    return _error(code, f"{kind}: {details}" if details else kind)
