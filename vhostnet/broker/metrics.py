"""What a broker counts, as Prometheus reads it (its text format, version 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

_METRICS: Final = (
    ("calls", "vhostnet_calls_total", "counter", "Calls of all clients."),
    ("refused", "vhostnet_refused_total", "counter", "Calls that the policy, the host or good sense refused."),
    ("made", "vhostnet_nics_made_total", "counter", "NICs that clients were given."),
    ("programs", "vhostnet_programs_total", "counter", "Runs that made them."),
    ("deleted", "vhostnet_nics_deleted_total", "counter", "NICs that clients had deleted."),
    ("clients", "vhostnet_clients", "gauge", "Connections."),
    ("rules", "vhostnet_policy_rules", "gauge", "Rules of the policy."),
    ("seconds", "vhostnet_uptime_seconds", "gauge", "Since the broker was started."),
)
_OF_USERS: Final = (
    ("nics", "vhostnet_user_nics", "NICs of a user, at the most."),
    ("queues", "vhostnet_user_queues", "Queue pairs of a user's NICs, at the most."),
    ("clients", "vhostnet_user_clients", "Connections of a user."),
)


def exposition(status: Mapping[str, Any]) -> str:
    """Of what GetStatus answers."""
    return "".join(f"{line}\n" for line in _lines(status))


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    for key, name, kind, what in _METRICS:
        yield f"# HELP {name} {what}"
        yield f"# TYPE {name} {kind}"
        yield f"{name} {status[key]}"
    for key, name, what in _OF_USERS:
        yield f"# HELP {name} {what}"
        yield f"# TYPE {name} gauge"
        for user in status["users"]:
            yield f'{name}{{uid="{user["uid"]}"}} {user[key]}'
