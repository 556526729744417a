"""The options that commands share, and how their values are read."""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import Any, Final

BROKER: Final = "/run/vhostnet/broker"
POLICY: Final = "/etc/vhostnet/policy.toml"
HELPER = "make a NIC for QEMU's -netdev bridge,helper= or libvirt's session mode, as qemu-bridge-helper does"
NETNS = "this network namespace: a name (ip netns), or a path"


def _fd_list(text: str) -> list[int]:
    """``80:81:82``."""
    parts = text.split(":") if text else []
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: expected fd numbers with colons, such as 80:81")
    return [int(part) for part in parts]


FDS: Final = (
    ("--tap-fds", _fd_list, "N:N", "one TAP fd a queue pair; once for each NIC with a TAP"),
    ("--vhost-fds", _fd_list, "N:N", "one vhost-net fd a queue pair, or '' for none; likewise"),
    ("--vdpa-fd", int, "N", "the fd of a vDPA device; once for each"),
)


def number_or_name(text: str) -> int | str:
    """A number, or a name (a MAC, an alias)."""
    return int(text) if text.isascii() and text.isdigit() else text


def _network(text: str) -> tuple[str, str]:
    """A network's name and its bridge's; or "" and a path. No such name has a slash: ``./a=b`` is a path."""
    name, equals, bridge = text.partition("=")
    if not equals or "/" in text:
        return "", text
    if not (name and bridge):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NETWORK=BRIDGE, such as default=virbr0, or a path")
    return name, bridge


class _Help(argparse.HelpFormatter):
    """argparse makes one for every option; one that has to look how wide the terminal is would import shutil for it."""

    def __init__(self, prog: str, **how: Any) -> None:
        super().__init__(prog, **{"width": _WIDTH, **how})


def _width() -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(os.environ.get("COLUMNS") or os.get_terminal_size().columns)
    return 80


_WIDTH: Final = _width() - 2


class Parser(argparse.ArgumentParser):
    def __init__(self, **how: Any) -> None:
        super().__init__(**{"formatter_class": _Help, **how})


def reading_options() -> Parser:
    group = Parser(add_help=False)
    group.add_argument("-j", "--json", action="store_true", help="JSON out, errors on stderr too")
    group.add_argument("--strict", action="store_true", help="refuse what libvirt ignores or does not know")
    group.add_argument(
        "--network",
        action="append",
        type=_network,
        metavar="NETWORK=BRIDGE|FILE",
        help="the bridge a <source network=> stands for, or the file of its <network> (may be repeated)",
    )
    group.add_argument(
        "--nic", type=number_or_name, help="only this NIC of the file: its number (from 0), MAC or alias"
    )
    group.add_argument("--no-address", action="store_true", help="leave the NICs' places to QEMU, not to the XML")
    return group


def opening_options(making: Parser) -> Parser:
    group = Parser(add_help=False, parents=[making])
    group.add_argument("--vhost", choices=("auto", "require", "off"), help="instead of <driver name=>")
    return group


def making_options() -> Parser:
    group = Parser(add_help=False)
    group.add_argument("--engine", choices=("auto", "native", "pure"), default="auto", help="default: auto")
    group.add_argument("-n", "--netns", metavar="NETNS", help=f"make the NICs in {NETNS}")
    group.add_argument("--qdisc", choices=("noqueue", "default"), default="noqueue", help="default: noqueue")
    return group


def broker_options() -> Parser:
    group = Parser(add_help=False)
    what = f"have a broker make them (vhostnet serve), at {BROKER} or at this socket"
    group.add_argument("--broker", nargs="?", const=BROKER, metavar="SOCKET", help=what)
    return group


def dialect_options() -> Parser:
    group = Parser(add_help=False)
    group.add_argument("--dialect", choices=("classic", "keyval", "json"), help="default: classic")
    return group


def passt_options() -> Parser:
    group = Parser(add_help=False)
    what = "the socket of a passt that runs; once for each NIC with <backend type='passt'/>"
    group.add_argument(
        "--passt", dest="passt_socket", type=os.path.abspath, action="append", default=[], metavar="SOCKET", help=what
    )
    return group


def helper_options() -> Parser:
    group = Parser(add_help=False)
    group.add_argument("--use-vnet", action="store_true", help="with virtio-net headers, where the kernel has them")
    group.add_argument("--br", required=True, metavar="BRIDGE", help="a bridge that /etc/qemu/bridge.conf allows")
    group.add_argument("--fd", required=True, type=_fd, metavar="N", help="the Unix socket that the TAP is sent to")
    return group


def _fd(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r}: expected the number of an fd")
    return int(text)
