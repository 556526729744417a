"""A libvirtd of our own, for processes in a Debian of their own (tools/inside, with ONCE): started, asked, ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

ONCE = (Path(__file__).resolve().parent.parent / "tests" / "libvirt" / "packages").read_text().strip()
VIRSH = ("virsh", "--connect", "qemu:///system", "--quiet")
PATIENCE = 180  # seconds for one answer: in a guest that is emulated, beside others, a QEMU takes its time


@contextlib.contextmanager
def libvirtd(netns: str = "") -> Iterator[None]:
    """With the bus it wants, until it answers; in the network namespace *netns* of ip-netns(8), with that one's /sys.

    The bus ends with this Debian, and so do the QEMUs that nobody destroyed.
    """
    where = ["ip", "netns", "exec", netns] if netns else []
    Path("/run/dbus").mkdir(exist_ok=True)
    if not Path("/run/dbus/pid").exists():
        subprocess.run(["dbus-daemon", "--system", "--fork"], check=True)
    subprocess.run([*where, "libvirtd", "--daemon"], check=True)
    ending = os.pidfd_open(int(Path("/run/libvirtd.pid").read_text()))
    try:
        while subprocess.run([*VIRSH, "version"], capture_output=True).returncode:
            time.sleep(0.1)
        yield
    finally:
        signal.pidfd_send_signal(ending, signal.SIGTERM)
        select.select([ending], [], [])
        os.close(ending)


class Refused(RuntimeError):
    """libvirt does not do it, and says why."""


class Gone(RuntimeError):
    """There is no libvirtd any more."""


def virsh(*words: str) -> str:
    """What it says."""
    done = subprocess.run([*VIRSH, *words], capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise (Gone if "failed to connect" in done.stderr or "End of file" in done.stderr else Refused)(
            done.stderr.strip()
        )
    return done.stdout
