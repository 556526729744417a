"""vhostnet plug and unplug: NICs for a QEMU that runs."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence

import vhostnet
from vhostnet import InterfaceSpec, VhostnetError
from vhostnet.commands.shared import UsageError, await_udev, check_used_up, next_of, open_nics, specs_of
from vhostnet.commands.showing import say, to_json
from vhostnet.qmp import Monitor, Plugged


def plug(options: argparse.Namespace) -> int:
    """All the NICs of the files, or none. What they are is QEMU's then: they go when it ends, or unplugs them."""
    specs = specs_of(options.files, options)
    if len(specs) > 1 and (options.alias or options.bus or options.addr):
        raise UsageError(f"--alias, --bus and --addr are for one NIC, and here are {len(specs)}: --nic picks one")
    made = [spec for spec in specs if spec.tap]
    with _monitor(options.socket) as monitor, contextlib.ExitStack() as stack:
        nics = [stack.enter_context(nic) for nic in open_nics(made, options)]
        plugged = _plug_each(monitor, specs, nics, options)
        await_udev(nics)
        for nic in nics:
            _leave(nic)
    print(to_json([one._asdict() for one in plugged]) if options.json else "\n".join(map(_line, plugged)))
    return 0


def _plug_each(
    monitor: Monitor, specs: Sequence[InterfaceSpec], nics: Sequence[vhostnet.Nic], options: argparse.Namespace
) -> list[Plugged]:
    given, next_nic = {"passt_socket": iter(options.passt_socket)}, iter(nics)
    place = {"alias": options.alias, "bus": options.bus, "addr": options.addr}
    plugged: list[Plugged] = []
    try:
        for spec in specs:
            socket = next_of(spec, given)["passt_socket"] if spec.passt else None
            plugged.append(monitor.plug(next(next_nic) if spec.tap else spec, **place, passt_socket=socket))
            for note in plugged[-1].notes:
                say(f"{plugged[-1].alias}: {note}")
        check_used_up(given)
    except BaseException:
        for one in reversed(plugged):
            _take_back(monitor, one)
        raise
    return plugged


def _take_back(monitor: Monitor, plugged: Plugged) -> None:
    try:
        monitor.unplug(plugged.alias)
    except VhostnetError as error:
        say(f"{error}")


def _leave(nic: vhostnet.Nic) -> None:
    """QEMU has copies of its fds, and ours go; of a macvtap and the like something stays when QEMU ends."""
    if nic.needs_closing:
        say(f"{nic.ifname}: something of it stays when QEMU ends; vhostnet delete {nic.ifname} takes it away then")
    fds = nic.detach()
    for fd in (*fds.tap, *fds.vhost):
        os.close(fd)


def _line(plugged: Plugged) -> str:
    rings = "" if plugged.rx_queue_size is None else f"  rx {plugged.rx_queue_size}  tx {plugged.tx_queue_size}"
    vhost = "on" if plugged.vhost else "off"
    return f"{plugged.alias}  {plugged.mac}  queues {plugged.queues}{rings}  vhost {vhost}"


def unplug(options: argparse.Namespace) -> int:
    """One after the other: each guest driver lets go of its own."""
    with _monitor(options.socket) as monitor:
        for alias in options.aliases:
            monitor.unplug(alias, timeout=options.timeout)
    return 0


@contextlib.contextmanager
def _monitor(path: str) -> Iterator[Monitor]:
    try:
        monitor = Monitor(path)
    except ImportError as missing:
        raise UsageError(f"{missing}: pip install 'vhostnet[qmp]'") from None
    with monitor:
        yield monitor
