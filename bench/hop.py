"""What the veth pair costs that joins a switch in a namespace of its own to the host: ``python -m bench.hop [ROUNDS]``.

A frame goes from a TAP's fd over a bridge to a packet socket at the host's end, and back: once with bridge and NIC in
the host's namespace, where the host's end is the bridge itself, and once with both in ``vms`` as
examples/host/vms-switch makes it, where it is the end of the veth pair. One thread does it all, so what is measured is
the kernel's work (and Python's, the same on both ways), not the waking of anybody. All namespaces are of its own.
"""

from __future__ import annotations

import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vhostnet import InterfaceSpec, open_nic
from vhostnet.others.bridge import make_bridge

SWITCH = Path(__file__).resolve().parent.parent / "examples" / "host" / "vms-switch"
ETHERTYPE = 0x88B5  # for local experiments (IEEE 802)
VNET_HEADER = 10
ROUNDS, FRAMES, BURST = 100, 1000, 50
SIZES = (60, 1514)
GUEST = bytes.fromhex("525400000007")


class Way:
    """A TAP, and a packet socket at the host's end of the way to it."""

    def __init__(self, end: str, netns: str | None, bridge: str) -> None:
        self.nic = open_nic(InterfaceSpec(bridge=bridge, vhost="off"), netns=netns)
        self.tap = self.nic.tap_fds[0]
        os.set_blocking(self.tap, True)
        self.host = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        self.host.bind((end, ETHERTYPE))
        self.mac: bytes = self.host.getsockname()[4]

    def frames(self, size: int) -> tuple[bytes, bytes]:
        """From the guest, as a TAP takes it, and from the host."""
        kind = ETHERTYPE.to_bytes(2, "big")
        return (
            bytes(VNET_HEADER) + (self.mac + GUEST + kind).ljust(size, b"."),
            (GUEST + self.mac + kind).ljust(size, b"."),
        )

    def arrives(self, frame: bytes) -> None:
        """At the guest, behind whatever else comes there."""
        while os.read(self.tap, 2048)[VNET_HEADER:] != frame:
            pass

    def ping(self, size: int) -> float:
        """Microseconds there and back."""
        up, down = self.frames(size)
        started = time.perf_counter()
        for _ in range(FRAMES):
            os.write(self.tap, up)
            self.host.recv(2048)
            self.host.send(down)
            self.arrives(down)
        return (time.perf_counter() - started) / FRAMES * 1e6

    def from_guest(self, size: int) -> float:
        """Thousands of frames a second."""
        up, _ = self.frames(size)
        return _rate(lambda: os.write(self.tap, up), lambda: self.host.recv(2048))

    def to_guest(self, size: int) -> float:
        """Likewise."""
        _, down = self.frames(size)
        return _rate(lambda: self.host.send(down), lambda: self.arrives(down))


def _rate(send: Callable[[], object], receive: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(FRAMES // BURST):
        for _ in range(BURST):
            send()
        for _ in range(BURST):
            receive()
    return FRAMES / (time.perf_counter() - started) / 1e3


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    if os.environ.get("STEP") != "inside":
        script = 'mount -t tmpfs run /run && exec "$@"'
        command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
        again = [sys.executable, "-m", "bench.hop", str(rounds)]
        os.execvpe(command[0], command + again, {**os.environ, "STEP": "inside"})
    make_bridge("br0")
    subprocess.run([SWITCH, "up"], check=True)
    ways = {"in the host's namespace": Way("br0", None, "br0"), "over the veth pair": Way("vms0", "vms", "br0")}
    acts = {
        "there and back, us": Way.ping,
        "guest to host, 1000/s": Way.from_guest,
        "host to guest, 1000/s": Way.to_guest,
    }
    print(f"{'':<24}{'bytes':>6}" + "".join(f"{name:>26}" for name in ways))
    for title, act in acts.items():
        for size in SIZES:
            measured: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name in random.sample(list(ways), len(ways)):
                    measured[name].append(act(ways[name], size))
            print(f"{title:<24}{size:>6}" + "".join(f"{statistics.median(m):>26.1f}" for m in measured.values()))


if __name__ == "__main__":
    main()
