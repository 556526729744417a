"""A broker, and a client of it, as a contestant; and how late an event loop's turns are while NICs are made aside."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import vhostnet
from bench.cases import Case
from bench.contestants import Opened
from vhostnet import aio

POLICY = f"[[rule]]\nusers = [{os.getuid()}]\nbridges = ['bench*']\nnics = 1000000\nqueues = 100000000\n"
PATIENCE = 30.0  # seconds until it serves
BEAT = 0.001  # seconds between turns: epoll knows no less


_served: list[vhostnet.Broker] = []  # the client of the one that runs


class ByBroker:
    """open_nics() of a client, by a broker that is a process of its own in this network namespace."""

    noqueue = True

    def prepare(self, case: Case, specs: list[vhostnet.InterfaceSpec]) -> Any:  # noqa: ARG002
        """The specs; and the broker, the first time."""
        if not _served:
            _served.append(_serve())
        return specs

    def act(self, asked: Any) -> Any:
        """One call."""
        return _served[0].open_nics(asked)

    def give(self, made: Any) -> Opened:
        """What the Nics have, which is not theirs any more."""
        fds = [fd for nic in made for fd in nic.tap_fds]
        there = Opened([nic.ifindex for nic in made], fds, [f"fe{nic.spec.mac[2:]}" for nic in made])
        for nic in made:
            nic.detach()
        return there


def _serve() -> vhostnet.Broker:
    directory = tempfile.mkdtemp()
    policy, path = Path(directory) / "policy.toml", f"{directory}/broker"
    policy.write_text(POLICY)
    words = ["-m", "vhostnet", "serve", "--socket", path, "--policy", str(policy)]
    process = subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL)
    atexit.register(_end, process, directory)
    until = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(vhostnet.HandoverError):
            return vhostnet.connect(path)
        if time.monotonic() > until or process.poll() is not None:
            raise RuntimeError("the broker does not serve")
        time.sleep(0.01)


def _end(process: subprocess.Popen[bytes], directory: str) -> None:
    process.kill()
    process.wait()
    for file in Path(directory).iterdir():
        file.unlink()
    os.rmdir(directory)


def of_loop(rounds: int) -> dict[str, list[int]]:
    """Nanoseconds that each turn of an event loop came late: alone, and while batches of 64 NICs of 8 queues are made.

    Where there are two CPUs the loop has one and the work the other: who waits for whom on one is the kernel's to say,
    and one that does not preempt lets the loop wait for a tick (4 ms).
    """
    cpus = os.sched_getaffinity(0)
    try:
        return asyncio.run(_of_loop(rounds, sorted(cpus)))
    finally:
        os.sched_setaffinity(0, cpus)


async def _of_loop(rounds: int, cpus: list[int]) -> dict[str, list[int]]:
    late: dict[str, list[int]] = {"alone": [], "aside": []}

    async def beat(turns: list[int]) -> None:
        while True:
            due = time.perf_counter_ns() + int(BEAT * 10**9)
            await asyncio.sleep(BEAT)
            turns.append(max(0, time.perf_counter_ns() - due))

    os.sched_setaffinity(0, {cpus[0]})
    await aio.aside(lambda: os.sched_setaffinity(threading.get_native_id(), {cpus[-1]}))
    for _ in range(rounds):
        specs = [vhostnet.InterfaceSpec(bridge="bench0", queues=8, vhost="off") for _ in range(64)]
        heart = asyncio.create_task(beat(late["alone"]))
        await asyncio.sleep(0.02)
        heart.cancel()
        heart = asyncio.create_task(beat(late["aside"]))
        nics = await aio.open_nics(specs)
        heart.cancel()
        await aio.close_nics(nics)
    return late
