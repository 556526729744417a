"""What several commands do: they read files, deal out what is there already, and wait for udev."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import vhostnet
from vhostnet import InterfaceSpec, SpecError
from vhostnet.commands.showing import say
from vhostnet.qemu.argv import START_PASST
from vhostnet.qemu.command import unplaced

UDEV_TIME: Final = 3.0  # seconds that are waited for udev, where one listens: it takes 2 to 13 ms


class UsageError(Exception):
    """The command line cannot be followed: a file that cannot be read, a command that cannot be run."""


def specs_of(files: Sequence[str], options: argparse.Namespace) -> list[InterfaceSpec]:
    networks = _networks(options)
    if options.nic is not None and len(files) > 1:
        raise UsageError("--nic picks from one file, and more are given")
    found: list[InterfaceSpec] = []
    for file in files:
        specs = vhostnet.parse_any(_read(file), networks=networks, strict=options.strict, nic=options.nic)
        if not specs:
            raise SpecError(f"{file!r} has no NICs", expected="an <interface>, or a <domain> with one")
        found += specs
    return [unplaced(spec) for spec in found] if options.no_address else found


def _networks(options: argparse.Namespace) -> dict[str, Any] | None:
    """Name -> bridge, or what its document says."""
    found: dict[str, Any] = {}
    for name, given in options.network or ():
        if name:
            found[name] = given
            continue
        try:
            network = vhostnet.parse_network(_read(given), strict=options.strict)
        except UsageError as error:
            raise UsageError(f"--network {error}; expected NETWORK=BRIDGE, or a file with a <network>") from None
        except SpecError as error:
            error.problem = f"in {given!r} {error.problem}"  # which is not the file that has the NIC
            raise
        found[network.name] = network
    return found or None


def _read(file: str) -> bytes:
    try:
        if file == "-":
            return sys.stdin.buffer.read()
        with open(file, "rb") as opened:
            return opened.read()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None


def opening(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("engine", "vhost", "netns", "qdisc")}


def open_nics(specs: Sequence[InterfaceSpec], options: argparse.Namespace) -> list[vhostnet.Nic]:
    """By this process, or by a broker."""
    how = opening(options)
    if options.broker is None:
        return vhostnet.open_nics(specs, **how)
    engine, netns = how.pop("engine"), how.pop("netns")
    if netns is not None or engine != "auto":
        raise UsageError("--netns and --engine are not for --broker: its NICs are where it is, and made as it likes")
    return vhostnet.connect(options.broker).open_nics(specs, **how)


def next_of(spec: InterfaceSpec, given: Mapping[str, Iterator[Any]]) -> dict[str, Any]:
    """What is the next NIC's, of the ones that take such."""
    name = _taken(spec)
    if not name:
        return {}
    found = {name: next(given[name], None)}
    if found[name] is None:
        start = f"; start one: {START_PASST[spec.type]}" if spec.passt else ""
        raise UsageError(
            f"NIC {spec.mac} of type {spec.type} needs {_option(name)}, and there is none left for it{start}"
        )
    return {**found, "vhost_fds": next(given["vhost_fds"], [])} if spec.tap else found


def _taken(spec: InterfaceSpec) -> str:
    """The argument that says what is there already of a NIC; "" where nothing is."""
    if spec.passt:
        return "passt_socket"
    return "tap_fds" if spec.tap else "vdpa_fd" if spec.type == "vdpa" else ""


def check_used_up(given: Mapping[str, Iterator[Any]]) -> None:
    for name, left in given.items():
        if any(True for _ in left):
            raise UsageError(f"{_option(name)} is given more often than there are NICs that take it")


def _option(name: str) -> str:
    return "--passt" if name == "passt_socket" else f"--{name.replace('_', '-')}"


def await_udev(nics: Sequence[vhostnet.Nic]) -> None:
    """Whoever looks at their MACs when udev is done is gone once this process is QEMU."""
    until = time.monotonic() + UDEV_TIME
    for nic in nics:
        if not nic.settle(max(0.0, until - time.monotonic())):
            say(f"{nic.ifname}: udev is not done with it after {UDEV_TIME:.0f} s, and may give it another MAC yet")
