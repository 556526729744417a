"""How what was found, done or refused is shown: a line for people, JSON for programs."""

from __future__ import annotations

import contextlib
import shlex
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import vhostnet
from vhostnet.program.parts import Address, Route
from vhostnet.program.text import address_text, route_text


def say(text: str) -> None:
    warnings.warn(text, vhostnet.VhostnetWarning, stacklevel=2)


def cost_line(cost: vhostnet.Cost, left: vhostnet.Limits) -> str:
    ports = [f"{count} of {left.ports.get(name, 0)} ports of {name}" for name, count in cost.ports.items()]
    available = f" of {left.memory / 2**20:.0f}" if left.memory else ""
    parts = [
        f"{cost.fds} of {left.fds} fds",
        f"{cost.memory / 2**20:.1f}{available} MiB of kernel memory",
        *ports,
        f"{cost.acts} acts",
        f"{cost.rtnl_turns} RTNL turns",
    ]
    return "cost: " + ", ".join(parts)


def nic_line(nic: vhostnet.FoundNic) -> str:
    detached = f" {nic.detached} detached" if nic.detached else ""
    parts = [
        f"{nic.ifname:<15}",
        f"{nic.bridge or nic.parent or '-':<15}",
        f"{'UP' if nic.up else 'DOWN':<4}",
        f"queues {nic.attached or '?'}{detached}",
        f"made {_for(nic.mark.uid)} {nic.mark.pid or '?'}" + ("" if nic.mark.maker_lives else " (gone)"),
        "held by " + (" ".join(f"{shlex.quote(holder.command)}({holder.pid})" for holder in nic.holders) or "?"),
        *(["parked"] if nic.mark.parked else []),
        *(["its port of Open vSwitch is all there is of it"] if nic.plugged and not nic.ifindex else []),
        *(["what its bridge guarantees is all there is of it"] if nic.kind == "floor" else []),
        *([nic.kind] if nic.kind == "macvtap" else ["persistent"] if nic.persistent else []),
    ]
    return "  ".join(parts)


def _for(uid: int | None) -> str:
    """A broker makes them for others."""
    return "by" if uid is None else f"for uid {uid},"


def nic_json(nic: vhostnet.FoundNic) -> dict[str, Any]:
    mark = {**nic.mark._asdict(), "maker_lives": nic.mark.maker_lives}
    return {**nic._asdict(), "mark": mark, "holders": [holder._asdict() for holder in nic.holders]}


def program_json(program: vhostnet.Program) -> dict[str, Any]:
    acts = [{**act._asdict(), "op": act.op.name} for act in program.acts]
    return {"nics": [_named(nic) for nic in program.nics], "acts": acts}


def _named(value: Any) -> Any:
    """With its fields' names, and MACs and addresses as they are written."""
    if isinstance(value, Address):
        return address_text(value)
    if isinstance(value, Route):
        return route_text(value)
    if isinstance(value, bytes):
        return value.hex(":")
    if hasattr(value, "_asdict"):
        return {name: _named(field) for name, field in value._asdict().items()}
    return [_named(one) for one in value] if isinstance(value, tuple) else value


def check_json(check: Any) -> dict[str, Any]:
    shown = {key: getattr(check, key) for key in ("name", "state", "detail", "remedy")}
    return {**shown, "error": error_json(check.error)} if check.error else shown


def to_json(value: Any, **how: Any) -> str:
    import json  # takes as long as a NIC, and is for -j alone

    return json.dumps(value, **how)


def error_json(error: BaseException) -> dict[str, Any]:
    details = {name: value for name in _DETAILS if (value := getattr(error, name, None)) not in (None, "", ())}
    return {"error": type(error).__name__, "message": str(error), **details}


_DETAILS = (
    *("errno", "act", "call", "ifname", "queue", "remedy"),
    *("needed", "allowed", "asked", "found", "holders"),
    *("element", "attribute", "line", "value", "expected"),
)


@contextlib.contextmanager
def warnings_shown() -> Iterator[None]:
    """Warnings go to stderr, a line each, whatever Python was told about them."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", vhostnet.VhostnetWarning)

        def show(message: Warning | str, *_: object, **__: object) -> None:
            print(f"vhostnet: warning: {message}", file=sys.stderr)

        warnings.showwarning = show
        yield
