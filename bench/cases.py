"""What is measured: who opens NICs, how many at a time, of how many queues, and beside what."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import vhostnet

BRIDGE = "bench0"


class Opened(NamedTuple):
    """What a contestant opened: the links, and the fds that hold them."""

    indexes: list[int]
    fds: list[int]


@dataclass(frozen=True)
class Case:
    """One line of the table: *batch* NICs of *queues* queues in one go, quiet or beside one busy Python thread."""

    queues: int
    batch: int
    busy: bool
    rounds: int
    per_round: int = 1  # how often each contestant opens before all is deleted; deleting one link takes 20 ms

    @property
    def name(self) -> str:
        return f"{self.queues}q x {self.batch}{' busy' if self.busy else ''}"


CASES = (
    Case(1, 1, False, rounds=30, per_round=10),
    Case(8, 1, False, rounds=30, per_round=10),
    Case(1, 100, False, rounds=30),
    Case(8, 100, False, rounds=30),
    Case(8, 1, True, rounds=10, per_round=10),
    Case(8, 100, True, rounds=15),
)

Contestant = Callable[[int, int], Opened]


class Floor:
    """bench/floor.c, compiled on the spot."""

    def __init__(self, bridge: int) -> None:
        source = Path(__file__).with_name("floor.c")
        with tempfile.TemporaryDirectory() as directory:
            made = Path(directory) / "floor.so"
            subprocess.run(["cc", "-std=gnu11", "-O2", "-shared", "-fPIC", "-o", made, source], check=True)
            self._lib = ctypes.CDLL(str(made))
        self._bridge = bridge
        self._numbers = itertools.count()
        self._groups = itertools.count(0x7E57_0000)

    def open(self, batch: int, queues: int) -> Opened:
        """The bare syscalls."""
        fds, indexes = (ctypes.c_int * (batch * queues))(), (ctypes.c_int * batch)()
        first = next(self._numbers) * batch % 1_000_000
        if self._lib.floor_open(first, batch, queues, self._bridge, fds, indexes) != 0:
            raise RuntimeError("the floor failed")
        return Opened(list(indexes), list(fds))

    def delete(self, indexes: Sequence[int]) -> None:
        """All links at once, by a group of their own."""
        if self._lib.floor_delete(len(indexes), (ctypes.c_int * len(indexes))(*indexes), next(self._groups)) != 0:
            raise RuntimeError("deleting failed")


def library(engine: str) -> Contestant:
    """The whole of open_nics(): from specs to Nic objects."""

    def contestant(batch: int, queues: int) -> Opened:
        specs = _specs(batch, queues)
        nics = vhostnet.open_nics(specs, engine=engine)
        opened = Opened([nic.ifindex for nic in nics], [])
        for nic in nics:
            opened.fds.extend(nic.detach().tap)
        return opened

    return contestant


def _specs(batch: int, queues: int) -> list[vhostnet.InterfaceSpec]:
    return [vhostnet.InterfaceSpec(bridge=BRIDGE, queues=queues, vhost="off") for _ in range(batch)]
