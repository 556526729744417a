"""What is asked of Open vSwitch's database, as data: operations of RFC 7047, and its values as they are written.

A port's columns are those that ovs-vsctl and libvirt write, and the NIC's mark besides. A bandwidth is columns, too: of
the interface ``ingress_policing_rate`` and ``ingress_policing_burst`` for what comes in by it, of the port ``qos`` for
what it sends, a row of the table QoS whose queue 0 is one of the table Queue. Nothing takes these two away but who says
so, so that they have the NIC's mark as well, and go in the transaction in which their port goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from vhostnet.program.parts import NicRow, Plug

MARK: Final = "vhostnet"  # the key of the mark in external_ids
QUEUEING: Final = ("QoS", "Queue")  # the tables in which a row stays that nothing leads to
STATE: Final = ("ofport", "error", "ifindex")  # of an interface, by ovs-vswitchd
NONE: Final[list[Any]] = ["set", []]

Operation = dict[str, Any]
Row = dict[str, Any]

# What ovs-vswitchd looks at: that there is something new to do.
NOTICE: Final[Operation] = {
    "op": "mutate",
    "table": "Open_vSwitch",
    "where": [],
    "mutations": [["next_cfg", "+=", 1]],
}


# How much there was to do, and what of it has been done.
CONFIGURED: Final[Operation] = {
    "op": "select",
    "table": "Open_vSwitch",
    "where": [],
    "columns": ["next_cfg", "cur_cfg"],
}


# --- a port ----------------------------------------------------------------------------------------------


def insertions(rows: Sequence[NicRow]) -> Iterator[Operation]:
    """An interface and a port a row, then each bridge gets its ports, and the ports the queues that they lead to."""
    for number, row in enumerate(rows):
        interface = {"name": row.ifname, **_ids(row), **_policing(row)}
        port = {
            "name": row.ifname,
            "interfaces": ["named-uuid", f"i{number}"],
            "external_ids": to_map([(MARK, row.alias)]),
            "other_config": to_map([("transient", "true")]),
            **_vlans(row),
            **_qos(number, row),
        }
        yield {"op": "insert", "table": "Interface", "uuid-name": f"i{number}", "row": interface}
        yield {"op": "insert", "table": "Port", "uuid-name": f"p{number}", "row": port}
    for bridge, numbers in by_bridge(rows).items():
        ports = ["set", [["named-uuid", f"p{number}"] for number in numbers]]
        yield {
            "op": "mutate",
            "table": "Bridge",
            "where": [["name", "==", bridge]],
            "mutations": [["ports", "insert", ports]],
        }
    yield from _queues(rows)


def updates(rows: Sequence[NicRow]) -> Iterator[Operation]:
    """A port and its interface a row, by their name; the mark is the port's. Then come its queues in place of others:
    the switch looks at what they say, and changes nothing where that is the same. A bandwidth that somebody else has
    told the switch of a NIC without stays.
    """
    for number, row in enumerate(rows):
        where = [["name", "==", row.ifname], _is_marked(row.alias)]
        ours = plug_of(row).limited or plug_of(row).was_limited
        port = {**_vlans(row), **(_qos(number, row) if ours else {})}
        interface = {**_ids(row), **(_policing(row) if ours else {})}
        yield {"op": "update", "table": "Port", "where": where, "row": port}
        yield {"op": "update", "table": "Interface", "where": where, "row": interface}
    yield from queue_deletions([row.alias for row in rows])
    yield from _queues(rows)


def deletions(ports: Iterable[Any]) -> Iterator[Operation]:
    """Each from the bridge that has it, and its row, which would lead to its queues for as long as the transaction
    lasts. The interface goes when nothing leads to it.
    """
    for port in ports:
        yield {
            "op": "mutate",
            "table": "Bridge",
            "where": [["ports", "includes", port]],
            "mutations": [["ports", "delete", port]],
        }
        yield {"op": "delete", "table": "Port", "where": [["_uuid", "==", port]]}


def queue_deletions(marks: Iterable[str]) -> Iterator[Operation]:
    """Of the NICs with these marks. Whatever port leads to one must go, or lead elsewhere, in the same transaction."""
    for mark in marks:
        for table in QUEUEING:
            yield {"op": "delete", "table": table, "where": [_is_marked(mark)]}


def _queues(rows: Sequence[NicRow]) -> Iterator[Operation]:
    """The port sends by its queue 0 whatever no flow leads to another: all there is. Of all together the switch heeds
    max-rate; the rest says so to who looks, as libvirt has it.
    """
    for number, row in enumerate(rows):
        queue = plug_of(row).queue
        if queue is None:
            continue
        ids = to_map([(MARK, row.alias), ("ifname", row.ifname)])
        rates = [("min-rate", str(queue.min_rate)), ("max-rate", str(queue.max_rate))]
        if queue.burst:
            rates.append(("burst", str(queue.burst)))
        both = {"other_config": to_map(rates), "external_ids": ids}
        qos = {**both, "type": "linux-htb", "queues": ["map", [[0, ["named-uuid", f"k{number}"]]]]}
        yield {"op": "insert", "table": "QoS", "uuid-name": f"q{number}", "row": qos}
        yield {"op": "insert", "table": "Queue", "uuid-name": f"k{number}", "row": both}


def _vlans(row: NicRow) -> Row:
    plug = plug_of(row)
    return {
        "tag": NONE if plug.tag is None else plug.tag,
        "trunks": ["set", list(plug.trunks)],
        "vlan_mode": plug.vlan_mode or NONE,
    }


def _qos(number: int, row: NicRow) -> Row:
    return {"qos": ["named-uuid", f"q{number}"] if plug_of(row).queue else NONE}


def _ids(row: NicRow) -> Row:
    return {"external_ids": to_map((*plug_of(row).ids, (MARK, row.alias)))}


def _policing(row: NicRow) -> Row:
    plug = plug_of(row)
    return {"ingress_policing_rate": plug.police_rate, "ingress_policing_burst": plug.police_burst}


def plug_of(row: NicRow) -> Plug:
    assert row.slow.plug, "it has none"
    return row.slow.plug


def by_bridge(rows: Sequence[NicRow]) -> dict[str, list[int]]:
    """Bridge -> the rows that go there."""
    found: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        found.setdefault(plug_of(row).bridge, []).append(number)
    return found


# --- what there is ---------------------------------------------------------------------------------------


def every(table: str, columns: Sequence[str]) -> Operation:
    return {"op": "select", "table": table, "where": [], "columns": list(columns)}


def named(table: str, name: str, columns: Sequence[str], mark: str = "") -> Operation:
    where: list[Any] = [["name", "==", name]]
    if mark:
        where.append(_is_marked(mark))
    return {"op": "select", "table": table, "where": where, "columns": list(columns)}


def one(table: str, uuid: Any, columns: Sequence[str]) -> Operation:
    return {"op": "select", "table": table, "where": [["_uuid", "==", uuid]], "columns": list(columns)}


def queueing() -> tuple[Operation, ...]:
    """Which ports lead to which queues, for ownerless()."""
    led = {"op": "select", "table": "Port", "where": [["qos", "!=", NONE]], "columns": ["qos"]}
    return led, every("QoS", ["_uuid", "queues", "external_ids"]), every("Queue", ["_uuid", "external_ids"])


def ownerless(ports: Sequence[Row], several: Sequence[Row], queues: Sequence[Row]) -> Iterator[Operation]:
    """What takes away the queues with a mark of ours that no port leads to: whoever took the port out has left them, as
    Open vSwitch does with transient ports after the host has started anew.
    """
    led = [port["qos"] for port in ports]
    left = [qos["_uuid"] for qos in several if qos["_uuid"] not in led and MARK in from_map(qos["external_ids"])]
    led = [uuid for qos in several if qos["_uuid"] not in left for _, uuid in qos["queues"][1]]
    gone = [queue["_uuid"] for queue in queues if queue["_uuid"] not in led and MARK in from_map(queue["external_ids"])]
    for table, uuids in zip(QUEUEING, (left, gone), strict=True):
        for uuid in uuids:
            yield {"op": "delete", "table": table, "where": [["_uuid", "==", uuid]]}


def until_seen(interface: Any, patience: float) -> Operation:
    """ovs-vswitchd gives every interface a port number, -1 where it could not open it; by then it shapes the port."""
    return until_other("Interface", [["_uuid", "==", interface]], "ofport", NONE, patience)


def until_other(table: str, where: list[Any], column: str, value: Any, patience: float) -> Operation:
    return {
        "op": "wait",
        "timeout": int(patience * 1000),
        "table": table,
        "where": where,
        "columns": [column],
        "until": "!=",
        "rows": [{column: value}],
    }


def _is_marked(mark: str) -> list[Any]:
    return ["external_ids", "includes", to_map([(MARK, mark)])]


def to_map(pairs: Sequence[tuple[str, str]]) -> list[Any]:
    return ["map", [list(pair) for pair in pairs]]


def from_map(value: Any) -> Mapping[str, str]:
    return dict(value[1])


def from_set(value: Any) -> Sequence[Any]:
    """A set of one is written without it."""
    return value[1] if value[0] == "set" else [value]
