"""A QEMU command line that is there already: what it says of the machine it makes, where NICs are to fit in."""

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from vhostnet.spec.interface import InterfaceSpec
from vhostnet.spec.machines import Machine, find_machine
from vhostnet.spec.parts import CcwAddress, PciAddress, UsbAddress
from vhostnet.values import replace

_QEMU: Final = r"qemu-system-([a-z0-9_]+)(-microvm)?|qemu-kvm|kvm"
_LOOKED_AT: Final = {
    "device": "driver",
    "netdev": "type",
    "chardev": "backend",
    "nic": "type",
    "machine": "type",
    "M": "type",
}
_BACKENDS: Final = ("netdev", "nic", "chardev")
_COMMA: Final = r"(?<!,),(?!,)"  # two of them are one in a value

# Programs that start what they are given without the fds they have from 3 on: seen, or documented.
CLOSERS: Final = {
    **dict.fromkeys(("sudo", "doas", "pkexec", "screen"), "closes the fds it is given"),
    **dict.fromkeys(
        ("tmux", "systemd-run", "run0", "machinectl", "ssh", "docker", "podman"), "has the command started by another"
    ),
}


class Command(NamedTuple):
    """``machine`` is None where it cannot be seen: no QEMU in the command (a script knows what it starts), or a file.

    ``devices`` are the ids of what -device makes: a bus that is not the machine's own is called by one. ``backends``
    are those of network back ends and character devices, ``emulator`` is QEMU ("" without one), ``wrappers`` the words
    before it, or all without one.
    """

    machine: Machine | None
    devices: frozenset[str]
    backends: frozenset[str]
    emulator: str
    wrappers: tuple[str, ...]

    @property
    def aliases(self) -> frozenset[str]:
        """The ids that a NIC cannot have: they are taken, or that of its back end is."""
        return self.devices | {name[4:] for name in self.backends if name.startswith(("host", "char"))}

    def has_bus(self, name: str) -> bool:
        """As far as can be seen; the first bus of a device that can have several has its id and a number."""
        if self.machine is None or name == self.machine.root:
            return True
        return name in self.devices or name.removesuffix(".0") in self.devices


def read_command(words: Sequence[str]) -> Command:
    """What can be seen of a command that starts QEMU, maybe by way of others."""
    names = [os.path.basename(word) for word in words]
    at = next((number for number, name in enumerate(names) if re.fullmatch(_QEMU, name)), None)
    if at is None:
        return Command(None, frozenset(), frozenset(), "", tuple(words))
    given = list(_given(words[at + 1 :]))
    devices = frozenset(options["id"] for name, options in given if name == "device" and "id" in options)
    backends = frozenset(options["id"] for name, options in given if name in _BACKENDS and "id" in options)
    machine = None if "-readconfig" in words else _machine(names[at], given)
    return Command(machine, devices, backends, words[at], tuple(words[:at]))


def _given(words: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Each option that matters, and what it says."""
    for word, text in itertools.pairwise(words):
        name = word.removeprefix("-").removeprefix("-")
        if word.startswith("-") and name in _LOOKED_AT:
            yield name, _options(text, _LOOKED_AT[name])


def _options(text: str, implied: str) -> Mapping[str, str]:
    """``key=value,...``, the first maybe without its key; or a JSON object. What is neither says nothing."""
    if text.startswith("{"):
        import json  # three milliseconds that only this form needs

        try:
            return {key: str(value) for key, value in dict(json.loads(text)).items()}
        except (ValueError, TypeError):
            return {}
    first, *rest = re.split(_COMMA, text)
    parts = [first if "=" in first else f"{implied}={first}", *rest]
    pairs = (part.partition("=") for part in parts)
    return {key: value.replace(",,", ",") for key, _, value in pairs}


def _machine(emulator: str, given: Sequence[tuple[str, Mapping[str, str]]]) -> Machine:
    found = re.fullmatch(_QEMU, emulator)
    arch, microvm = (found[1] or "", found[2]) if found else ("", None)
    said = {key: value for name, options in given if name in ("machine", "M") for key, value in options.items()}
    name = said.get("type", "microvm" if microvm else "")
    machine = find_machine(arch, name)
    return machine._replace(root="") if name.startswith("microvm") and said.get("pcie") != "on" else machine


def settle(spec: InterfaceSpec, command: Command) -> tuple[InterfaceSpec, str]:
    """*spec* where it can be in that machine, and what was changed of its address ("" for nothing).

    An address on a bus that is not there is left to QEMU; a NIC without one goes where the machine has virtio.
    """
    address, machine, note = spec.address, command.machine, ""
    if isinstance(address, (PciAddress, UsbAddress)) and not command.has_bus(address.bus_name):
        there = f"{machine.root if machine else ''} {' '.join(sorted(command.devices))}".strip() or "none"
        place = address.addr if isinstance(address, PciAddress) else f"port {address.port}"
        note = f"address {address.bus_name} {place}: the command line makes no such bus (it has {there})"
        note += "; the place is left to QEMU"
        address, spec = None, replace(spec, address=None)
    if address is None and spec.model == "virtio" and machine:
        spec = replace(spec, address=machine.virtio)
    return spec, note


def unplaced(spec: InterfaceSpec) -> InterfaceSpec:
    """*spec* without its address, in the kind of place it had."""
    if isinstance(spec.address, (PciAddress, UsbAddress)):
        return replace(spec, address=None)
    return replace(spec, address=CcwAddress()) if isinstance(spec.address, CcwAddress) else spec


def closers(command: Command) -> list[str]:
    """The wrappers that do not hand QEMU the fds, each with what it does."""
    names = [os.path.basename(word) for word in command.wrappers]
    scope = "--scope" in command.wrappers  # systemd-run becomes the command then
    return [f"{name} {CLOSERS[name]}" for name in names if name in CLOSERS and not (name == "systemd-run" and scope)]
