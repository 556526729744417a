"""A QEMU that runs, with a monitor, and what it has of NICs."""

import os
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import vhostnet
from vhostnet.qmp import Monitor

X86, ARM, S390 = "qemu-system-x86_64", "qemu-system-aarch64", "qemu-system-s390x"
COMMAND = [X86, "-accel", "tcg", "-m", "64", "-nodefaults", "-no-user-config", "-display", "none"]
# Slots that are off until a guest switches them on: what is in one comes out without asking a guest.
OFF = ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
PORTS = [word for port in (1, 2) for word in ("-device", f"pcie-root-port,id=pci.{port},slot={port},chassis={port}")]
Q35 = ["-M", "q35", *OFF, *PORTS]  # named as libvirt names them


class Machine:
    """Its process, and the path of its monitor's socket."""

    def __init__(self, process, path):
        self.process = process
        self.socket = path

    def fds(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextmanager
def running(*words, before=(), fds=(), **how):
    """Started with these arguments and fds, by the words *before* it, if any, which become it; killed in the end.

    Its monitor listens before it runs, as libvirt has it: between QEMU's own bind() and listen() a client is refused.
    """
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        path = str(Path(directory) / "qmp")
        listener.bind(path)
        listener.listen()
        fd = listener.fileno()
        monitor = ["-chardev", f"socket,id=monitor,fd={fd},server=on,wait=off", "-mon", "chardev=monitor,mode=control"]
        with subprocess.Popen([*before, *COMMAND, *words, *monitor], pass_fds=[fd, *fds], **how) as process:
            listener.close()  # or who asks a QEMU that has ended would wait
            try:
                yield Machine(process, path)
            finally:
                process.kill()


def inventory(machine):
    """All that a NIC could leave in it."""
    with Monitor(machine.socket) as monitor:
        asked = {
            "devices": monitor.execute("qom-list", {"path": "/machine/peripheral"}),
            "netdevs": monitor.execute("human-monitor-command", {"command-line": "info network"}),
            "chardevs": monitor.execute("query-chardev"),
            "fd sets": monitor.execute("query-fdsets"),
        }
        return {**asked, "fds": machine.fds()}


def is_there(ifname):
    return any(nic.ifname == ifname for nic in vhostnet.list_nics())
