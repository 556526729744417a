"""Ports of Open vSwitch, by its database: one transaction for all of them, and one to wait until the switch has them.

The protocol is RFC 7047, JSON over a Unix socket; the columns are those that ovs-vsctl and libvirt write, and the NIC's
mark besides, by which what was left behind can be told from what is somebody else's. Whatever is refused is an OSError,
its ``filename`` the call (``connect``, ``OVSDB``).
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

from vhostnet.program.parts import NicRow, Plug

RUNDIR: Final = "/var/run/openvswitch"  # OVS_RUNDIR is another, as for Open vSwitch's own tools
MARK: Final = "vhostnet"  # the key of the mark in external_ids
ANSWER: Final = 5.0  # seconds for an answer of ovsdb-server's, which has it at hand
SWITCH, SWITCH_A_PORT = 5.0, 0.1  # and for ovs-vswitchd, which may be in the middle of other work
_RECEIVED: Final = 1 << 16

_Operation = dict[str, Any]
Row = dict[str, Any]


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
        named = [_named("Interface", row.ifname, ["name", "external_ids", *_STATE]) for row in rows]
        found = [answer["rows"] for answer in database.transact(*named)]
    refused = {}
    for row, there in zip(rows, found, strict=True):
        plug = _plug(row)
        if plug.bridge not in bridges:
            others = f"it has {', '.join(sorted(bridges))}" if bridges else "and no other either"
            refused[row.ifname] = _error(errno.ENODEV, f"no bridge {plug.bridge!r} in Open vSwitch: {others}")
        elif there and not _is_left_over(there[0]):
            refused[row.ifname] = _error(errno.EEXIST, f"Open vSwitch has a port {row.ifname!r} already")
    return refused


def plug(rows: Sequence[NicRow]) -> dict[str, OSError]:
    """Put all of them in, and wait until the switch has them. Name -> why it has not; OSError where it has none."""
    with _database() as database:
        left_over = _left_over(database, [row.ifname for row in rows])
        answers = database.transact(*_deletions(left_over), *_insertions(rows), _NOTICE)
        _check_bridges(rows, answers[len(left_over) + 2 * len(rows) :])
        made = [answer["uuid"] for answer in answers[len(left_over) :][: 2 * len(rows) : 2]]
        patience = SWITCH + SWITCH_A_PORT * len(rows)
        waits = [_until_seen(interface, patience) for interface in made]
        asked = [_of("Interface", interface, _STATE) for interface in made]
        answers = database.transact(*waits, *asked, patience=patience + ANSWER)[len(rows) :]
    seen = [answer["rows"][0] if answer["rows"] else {} for answer in answers]
    problems = {row.ifname: _problem(row, interface) for row, interface in zip(rows, seen, strict=True)}
    return {name: _error(errno.EIO, problem) for name, problem in problems.items() if problem}


def unplug(rows: Sequence[NicRow]) -> None:
    """Take out those that are there, by name and mark. Nobody waits until the switch has done so."""
    with _database() as database:
        asked = [_named("Port", row.ifname, ["_uuid"], row.alias) for row in rows]
        there = [found["_uuid"] for answer in database.transact(*asked) for found in answer["rows"]]
        if there:
            database.transact(*_deletions(there), _NOTICE)


def replug(rows: Sequence[NicRow]) -> dict[str, OSError]:
    """Make ports of ours what the rows say now, where they are, and wait for the switch. Name -> why it is not."""
    with _database() as database:
        answers = database.transact(*(update for row in rows for update in _updates(row)), _NOTICE, _CONFIGURED)
        _await_switch(database, answers[-1]["rows"][0])
    there = dict(zip([row.ifname for row in rows], answers[::2], strict=False))
    return {name: _error(errno.ESTALE, "no port of ours any more") for name, one in there.items() if not one["count"]}


def list_ports() -> list[FoundPort]:
    """Those that have a mark of ours."""
    with _database() as database:
        bridges = database.select("Bridge", ["name", "ports"])
        ports = database.select("Port", ["_uuid", "name", "external_ids"])
        interfaces = database.select("Interface", ["name", *_STATE])
    bridge_of = {uuid[1]: bridge["name"] for bridge in bridges for uuid in _set(bridge["ports"])}
    states = {interface["name"]: interface for interface in interfaces}
    return [
        FoundPort(port["name"], bridge_of.get(port["_uuid"][1], ""), mark, not _is_dead(states.get(port["name"], {})))
        for port in ports
        if (mark := _map(port["external_ids"]).get(MARK))
    ]


def _plug(row: NicRow) -> Plug:
    assert row.slow.plug, "it has none"
    return row.slow.plug


def _is_left_over(interface: Row) -> bool:
    """Ours, and the device is gone: a new one of that name would otherwise have the port of the one before."""
    return MARK in _map(interface["external_ids"]) and _is_dead(interface)


def _is_dead(interface: Row) -> bool:
    """ovs-vswitchd has said that there is no device of that name.

    It takes milliseconds to notice that one is gone, or a second where the kernel switches. Of a new one it says
    nothing at first.
    """
    return interface.get("ofport") == -1 or interface.get("ifindex") == 0


def _problem(row: NicRow, interface: Row) -> str:
    """Why the switch does not have what was put in; "" where it has."""
    if interface.get("error", _NONE) != _NONE:
        return str(interface["error"])
    if interface.get("ofport", -1) == -1:
        return "ovs-vswitchd gives it no port number"
    if interface["ifindex"] not in (0, _NONE, row.ifindex):
        return f"ovs-vswitchd has another link of that name (ifindex {interface['ifindex']}, and not {row.ifindex})"
    return ""


def _left_over(database: _Database, names: Sequence[str]) -> list[Any]:
    """The ports by these names with a mark of ours; look() has seen that no device is there."""
    asked = [_named("Port", name, ["_uuid", "external_ids"]) for name in names]
    found = [port for answer in database.transact(*asked) for port in answer["rows"]]
    return [port["_uuid"] for port in found if MARK in _map(port["external_ids"])]


def _check_bridges(rows: Sequence[NicRow], answers: Sequence[Any]) -> None:
    """A bridge that went meanwhile: then the rows that nothing leads to are gone by themselves."""
    for bridge, answer in zip(_bridges(rows), answers, strict=False):
        if not answer["count"]:
            raise _error(errno.ENODEV, f"no bridge {bridge!r} in Open vSwitch any more")


# --- what is asked of the database -----------------------------------------------------------------------

_NONE: Final[list[Any]] = ["set", []]
_STATE: Final = ("ofport", "error", "ifindex")  # of an interface, by ovs-vswitchd
# What ovs-vswitchd looks at: that there is something new to do.
_NOTICE: Final[_Operation] = {
    "op": "mutate",
    "table": "Open_vSwitch",
    "where": [],
    "mutations": [["next_cfg", "+=", 1]],
}


# How much there was to do, and what of it has been done.
_CONFIGURED: Final[_Operation] = {
    "op": "select",
    "table": "Open_vSwitch",
    "where": [],
    "columns": ["next_cfg", "cur_cfg"],
}


def _await_switch(database: _Database, config: Row) -> None:
    """Until ovs-vswitchd has done all that there is to do by that *config*; ovs-vsctl waits for the same."""
    done = config["cur_cfg"]
    while done < config["next_cfg"]:
        change = _until_other("Open_vSwitch", [], "cur_cfg", done, SWITCH)
        done = database.transact(change, _CONFIGURED, patience=SWITCH + ANSWER)[1]["rows"][0]["cur_cfg"]


def _insertions(rows: Sequence[NicRow]) -> Iterator[_Operation]:
    """An interface and a port a row, and then each bridge gets its ports."""
    for number, row in enumerate(rows):
        interface = {"name": row.ifname, "external_ids": _ids(row)}
        port = {
            "name": row.ifname,
            "interfaces": ["named-uuid", f"i{number}"],
            "external_ids": _to_map([(MARK, row.alias)]),
            "other_config": _to_map([("transient", "true")]),
            **_vlans(_plug(row)),
        }
        yield {"op": "insert", "table": "Interface", "uuid-name": f"i{number}", "row": interface}
        yield {"op": "insert", "table": "Port", "uuid-name": f"p{number}", "row": port}
    for bridge, numbers in _bridges(rows).items():
        ports = ["set", [["named-uuid", f"p{number}"] for number in numbers]]
        yield {
            "op": "mutate",
            "table": "Bridge",
            "where": [["name", "==", bridge]],
            "mutations": [["ports", "insert", ports]],
        }


def _updates(row: NicRow) -> Iterator[_Operation]:
    """The port and its interface, by their name; the mark is the port's."""
    where = [["name", "==", row.ifname], ["external_ids", "includes", _to_map([(MARK, row.alias)])]]
    yield {"op": "update", "table": "Port", "where": where, "row": _vlans(_plug(row))}
    yield {"op": "update", "table": "Interface", "where": where, "row": {"external_ids": _ids(row)}}


def _ids(row: NicRow) -> list[Any]:
    return _to_map((*_plug(row).ids, (MARK, row.alias)))


def _vlans(plug: Plug) -> Row:
    return {
        "tag": _NONE if plug.tag is None else plug.tag,
        "trunks": ["set", list(plug.trunks)],
        "vlan_mode": plug.vlan_mode or _NONE,
    }


def _bridges(rows: Sequence[NicRow]) -> dict[str, list[int]]:
    """Bridge -> the rows that go there."""
    found: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        found.setdefault(_plug(row).bridge, []).append(number)
    return found


def _deletions(ports: Sequence[Any]) -> list[_Operation]:
    """Each from the bridge that has it; port and interface go when nothing leads to them."""
    return [
        {
            "op": "mutate",
            "table": "Bridge",
            "where": [["ports", "includes", port]],
            "mutations": [["ports", "delete", port]],
        }
        for port in ports
    ]


def _named(table: str, name: str, columns: Sequence[str], mark: str = "") -> _Operation:
    where: list[Any] = [["name", "==", name]]
    if mark:
        where.append(["external_ids", "includes", _to_map([(MARK, mark)])])
    return {"op": "select", "table": table, "where": where, "columns": list(columns)}


def _of(table: str, uuid: Any, columns: Sequence[str]) -> _Operation:
    return {"op": "select", "table": table, "where": [["_uuid", "==", uuid]], "columns": list(columns)}


def _until_seen(interface: Any, patience: float) -> _Operation:
    """ovs-vswitchd gives every interface a port number, -1 where it could not open it."""
    return _until_other("Interface", [["_uuid", "==", interface]], "ofport", _NONE, patience)


def _until_other(table: str, where: list[Any], column: str, value: Any, patience: float) -> _Operation:
    return {
        "op": "wait",
        "timeout": int(patience * 1000),
        "table": table,
        "where": where,
        "columns": [column],
        "until": "!=",
        "rows": [{column: value}],
    }


def _to_map(pairs: Sequence[tuple[str, str]]) -> list[Any]:
    return ["map", [list(pair) for pair in pairs]]


def _map(value: Any) -> Mapping[str, str]:
    return dict(value[1])


def _set(value: Any) -> Sequence[Any]:
    """A set of one is written without it."""
    return value[1] if value[0] == "set" else [value]


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
        (answer,) = self.transact({"op": "select", "table": table, "where": [], "columns": list(columns)})
        return list(answer["rows"])

    def transact(self, *operations: _Operation, patience: float = ANSWER) -> list[Any]:
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
