"""vhostnet exec: NICs for a command, most often a QEMU, that is run with their arguments."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import vhostnet
from vhostnet import InterfaceSpec
from vhostnet.commands.shared import UsageError, await_udev, check_used_up, next_of, open_nics, specs_of
from vhostnet.commands.showing import say
from vhostnet.qemu.argv import RECONNECT_MS, STREAM_RECONNECT, Dialect, Version, check_qemu
from vhostnet.qemu.command import Command, closers, read_command, settle
from vhostnet.values import replace


def run(options: argparse.Namespace) -> int:
    """Become the command, or wait for it where something of a NIC's would be left behind."""
    if not options.command_line:
        raise UsageError("no command to run: vhostnet exec FILE... -- COMMAND [ARGUMENT...]")
    command = read_command(options.command_line)
    options.no_address |= options.bus is not None
    # Who names a bus has placed all of them, wherever the machine would have virtio.
    machine = command if options.bus is None else command._replace(machine=None)
    specs = _settled(specs_of(options.files, options), machine)
    version = _version(specs, command)
    options.dialect = options.dialect or ("json" if version and version >= RECONNECT_MS else "classic")
    specs = [_callable(spec, version, options.dialect) for spec in specs]
    sockets = _sockets(specs, options)
    for closer in closers(command):
        say(f"{closer}: QEMU would not have those of its NICs; run vhostnet itself by it (sudo vhostnet exec ...)")
    with contextlib.ExitStack() as stack:
        vdpa_fds = [_vdpa_fd(spec, stack) for spec in specs if spec.type == "vdpa"]
        made = [spec for spec in specs if spec.tap]
        nics = [stack.enter_context(nic) for nic in open_nics(made, options)]
        for fd in [*vdpa_fds, *(fd for nic in nics for fd in nic.fds)]:
            os.set_inheritable(fd, True)
        given = {"vdpa_fd": iter(vdpa_fds), "passt_socket": iter(sockets)}
        words = [*options.command_line, *_arguments(specs, nics, given, options)]
        await_udev(nics)
        if any(nic.needs_closing for nic in nics):
            return _stay(words, nics)
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, and exec would hand that on
            signal.signal(ignored, signal.SIG_DFL)
        try:
            os.execvp(words[0], words)
        except OSError as error:
            raise UsageError(f"cannot run {words[0]!r}: {error.strerror}") from None


def _version(specs: Sequence[InterfaceSpec], command: Command) -> Version | None:
    """QEMU's, where it must be told in its own words: ``reconnect`` came to be ``reconnect-ms``. Else any does."""
    if not command.emulator or not any(getattr(spec.source, "reconnect", None) is not None for spec in specs):
        return None
    from vhostnet.commands.doctor import qemu_version

    return qemu_version(command.emulator)


def _callable(spec: InterfaceSpec, version: Version | None, dialect: Dialect) -> InterfaceSpec:
    """Calling passt again is libvirt's wish, and not the XML's: a QEMU that may not know how is not asked to."""
    first = RECONNECT_MS if dialect == "json" else STREAM_RECONNECT if spec.type == "user" else (0, 0, 0)
    if not spec.passt or (version and version >= first):
        return spec
    say(f"NIC {spec.mac}: this QEMU calls its passt once, and not again when that has ended: it may not know how")
    return replace(spec, source=vhostnet.PasstSource(reconnect=None))


def _sockets(specs: Sequence[InterfaceSpec], options: argparse.Namespace) -> list[str]:
    """Each NIC's that leads to a passt; none is missing, and none left."""
    given = {"passt_socket": iter(options.passt_socket)}
    found = [next_of(spec, given)["passt_socket"] for spec in specs if spec.passt]
    check_used_up(given)
    return found


def _stay(words: Sequence[str], nics: Sequence[vhostnet.Nic]) -> int:
    """Run the command as a child, and close the NICs when it has ended: nobody else would be left to do it."""
    import subprocess

    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, _: object) -> None:
        child.send_signal(number) if child else early.append(number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, pass_on)  # which it does not inherit
    try:
        child = subprocess.Popen(words, close_fds=False)
    except OSError as error:
        raise UsageError(f"cannot run {words[0]!r}: {error.strerror}") from None
    for missed in early:
        child.send_signal(missed)
    status = child.wait()
    vhostnet.close_nics(nics)
    return status if status >= 0 else 128 - status


def _vdpa_fd(spec: InterfaceSpec, stack: contextlib.ExitStack) -> int:
    fd = vhostnet.open_vdpa(spec)
    stack.callback(os.close, fd)
    return fd


def _arguments(
    specs: Sequence[InterfaceSpec],
    nics: Sequence[vhostnet.Nic],
    given: Mapping[str, Iterator[Any]],
    options: argparse.Namespace,
) -> Iterator[str]:
    """QEMU's, of every NIC in its turn: *nics* are of those that have a TAP."""
    next_nic = iter(nics)
    for spec in specs:
        how = {"bus": options.bus if spec.pci else None, "dialect": options.dialect}
        if spec.tap:
            yield from next(next_nic).qemu_argv(**how)
        else:
            yield from vhostnet.qemu_argv(vhostnet.fitted(spec), **next_of(spec, given), **how)


def _settled(specs: list[InterfaceSpec], command: Command) -> list[InterfaceSpec]:
    """The NICs as they fit into the machine that *command* starts; what never fits is refused before it is made."""
    settled = []
    for spec in specs:
        fit, note = settle(spec, command)
        if note:
            say(f"NIC {spec.mac}: {note}")
        check_qemu(fit)
        settled.append(fit)
    return vhostnet.assign_machine(settled, taken=command.aliases)
