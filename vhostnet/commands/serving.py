"""``vhostnet serve``: the broker, and ``vhostnet status``: what one does."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from types import FrameType
from typing import Any, Final

import vhostnet
from vhostnet.broker.policy import Policy, read_policy
from vhostnet.broker.server import Server, listening, passed_listeners
from vhostnet.commands.shared import UsageError
from vhostnet.commands.showing import to_json
from vhostnet.observe.log import log_event
from vhostnet.process.notify import is_service, notify


def serve(options: argparse.Namespace) -> int:
    """Until SIGTERM; SIGHUP reads the policy again."""
    level = logging.DEBUG if options.verbose else logging.INFO
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=level)
    if options.verbose:
        vhostnet.on_event(log_event)
    policy = _read(options.policy)
    if options.check:
        print(to_json([_shown(rule) for rule in policy.rules]) if options.json else _summary(policy))
        return 0
    servers: list[Server] = []
    stopped: list[int] = []  # by these signals, which may come before there is one to stop

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        stopped.append(number)
        for server in servers:
            server.stop()

    def reload(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        for server in servers:
            server.reload()

    for number, what in ((signal.SIGTERM, stop), (signal.SIGINT, stop), (signal.SIGHUP, reload)):
        signal.signal(number, what)
    servers.append(_server(options))
    if stopped:
        servers[0].stop()
    if is_service():
        notify(f"READY=1\nSTATUS={_summary(policy)}")
    servers[0].run()
    return 0


def _server(options: argparse.Namespace) -> Server:
    try:
        return Server(passed_listeners() or [listening(options.socket)], options.policy, engine=options.engine)
    except OSError as error:
        if isinstance(error, vhostnet.VhostnetError):
            raise
        raise UsageError(f"{options.socket}: {error.strerror}") from None


def _read(path: str) -> Policy:
    try:
        return read_policy(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; it says who may have which NICs (docs/broker.md)") from None


def _summary(policy: Policy) -> str:
    names = ", ".join(repr(rule.name) for rule in policy.rules)
    return f"{policy.path}: {len(policy.rules)} rules: {names}" if names else f"{policy.path}: no rules, for nobody"


def _shown(rule: Any) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(rule).items()}


_LINES: Final = (
    "{version} for {seconds:.0f} s; policy {policy}, {rules} rules",
    "{clients} clients, {calls} calls, {refused} refused",
    "{made} NICs made by {programs} runs, {deleted} deleted",
)


def status(options: argparse.Namespace) -> int:
    """Text or JSON."""
    with vhostnet.connect(options.socket) as broker:
        if options.metrics:
            print(broker.metrics(), end="")
            return 0
        found = broker.status()
    if options.json:
        print(to_json(found))
        return 0
    for line in _LINES:
        print(line.format(**found))
    for user in found["users"]:
        print("uid {uid}: at most {nics} NICs of {queues} queues, {clients} clients".format(**user))
    return 0
