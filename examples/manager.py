"""A manager of QEMUs on one event loop, which plugs NICs into all of them at once: examples/manager.py BRIDGE [COUNT]

pip install 'vhostnet[qmp]' brings qemu.qmp, QEMU's own library for its monitor.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys

from qemu.qmp import QMPClient, QMPError

import vhostnet
from vhostnet import aio

QEMU = [
    *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg,tb-size=1", "-m", "32", "-nodefaults", "-no-user-config"),
    *("-S", "-display", "none", "-device", "pcie-root-port,id=port1,slot=1"),
    # There is no guest here that would let go of a NIC. Such a slot is off until one switches it on, and asks nobody.
    *("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"),
]


class VM:
    """A QEMU and its monitor."""

    def __init__(self, name):
        self.name = name
        self.client = QMPClient(name)
        self.process = None

    async def start(self):
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            monitor = ["-chardev", f"socket,id=qmp,fd={fd}", "-qmp", "chardev:qmp"]
            self.process = await asyncio.create_subprocess_exec(*QEMU, *monitor, pass_fds=[fd])
        await self.client.connect(ours)

    async def plug(self, nic):
        """QEMU gets copies of the fds, so the NIC stays ours."""
        plugged = await aio.plug(self.client, nic, alias="net0", bus="port1")
        print(f"{self.name}: {plugged.alias} is {nic.ifname}, {plugged.queues} queues", flush=True)

    async def unplug(self):
        await aio.unplug(self.client, "net0")
        print(f"{self.name}: net0 is out", flush=True)

    async def end(self):
        if self.process is None:
            return
        if self.process.returncode is None:
            # Older Pythons' process.kill() may take a dead one's exit code away from asyncio, which then says so.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
        await self.process.wait()
        with contextlib.suppress(QMPError, EOFError, OSError):
            await self.client.disconnect()


async def each(vms, act):
    """*act* on all of them at once: those where it is done. Of the others is said why, and none is in another's way."""
    results = await asyncio.gather(*map(act, vms), return_exceptions=True)
    for vm, result in zip(vms, results, strict=True):
        if isinstance(result, Exception):
            print(f"{vm.name}: {type(result).__name__}: {result}", flush=True)
    return [vm for vm, result in zip(vms, results, strict=True) if not isinstance(result, Exception)]


async def main(bridge, count=4):
    vms = [VM(f"vm{number}") for number in range(count)]
    nics = []
    try:
        running = await each(vms, VM.start)
        nics = await aio.open_nics([vhostnet.InterfaceSpec(bridge=bridge, queues=2, vhost="auto") for _ in running])
        of = dict(zip(running, nics, strict=True))
        running = await each(running, lambda vm: vm.plug(of[vm]))
        vms[0].process.kill()  # one that dies meanwhile
        running = await each(running, VM.unplug)
        print(f"{len(running)} of {count} are left", flush=True)
    finally:
        await asyncio.gather(*(vm.end() for vm in vms))
        await aio.close_nics(nics)  # in one round


asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
