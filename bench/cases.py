"""What is measured: who opens NICs, how many at a time, of how many queues, and beside what."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import vhostnet

BRIDGE = "bench0"


class Opened(NamedTuple):
    """What a contestant opened: the links, and the fds that hold them."""

    indexes: list[int]
    fds: list[int]


@dataclass(frozen=True)
class Case:
    """One line of the table: *batch* NICs of *queues* queues in one go, and what runs beside it.

    ``process`` is the control for ``thread``: the same load on the machine, but another GIL.
    """

    queues: int
    batch: int
    beside: Literal["", "process", "thread"]
    rounds: int
    per_round: int = 1  # how often in a row each contestant opens before all is deleted: deleting a link takes 20 ms

    @property
    def name(self) -> str:
        return f"{self.queues}q x {self.batch}{' beside a busy ' if self.beside else ''}{self.beside}"


CASES = (
    Case(1, 1, "", rounds=30, per_round=10),
    Case(8, 1, "", rounds=30, per_round=10),
    Case(1, 100, "", rounds=30),
    Case(8, 100, "", rounds=30),
    Case(8, 1, "process", rounds=20, per_round=10),
    Case(8, 1, "thread", rounds=8, per_round=10),
    Case(8, 100, "process", rounds=20),
    Case(8, 100, "thread", rounds=4),  # the pure engine takes seconds
)


class Contestant(Protocol):
    """Somebody who opens NICs."""

    def prepare(self, batch: int, queues: int) -> Any:
        """What is asked for; not timed."""

    def open(self, asked: Any) -> Any:
        """Open them; timed."""

    def give(self, opened: Any) -> Opened:
        """What was opened, for checking and deleting; not timed."""


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

    def prepare(self, batch: int, queues: int) -> Any:
        """The arguments of floor_open()."""
        first = next(self._numbers) * batch % 1_000_000
        fds, indexes = (ctypes.c_int * (batch * queues))(), (ctypes.c_int * batch)()
        return first, batch, queues, self._bridge, fds, indexes

    def open(self, asked: Any) -> Any:
        """The bare syscalls."""
        if self._lib.floor_open(*asked) != 0:
            raise RuntimeError("the floor failed")
        return asked

    def give(self, opened: Any) -> Opened:
        """The C arrays as lists."""
        return Opened(list(opened[5]), list(opened[4]))

    def delete(self, indexes: Sequence[int]) -> None:
        """All links at once, by a group of their own."""
        if self._lib.floor_delete(len(indexes), (ctypes.c_int * len(indexes))(*indexes), next(self._groups)) != 0:
            raise RuntimeError("deleting failed")


@dataclass(frozen=True)
class Library:
    """The whole of open_nics(): from specs to Nic objects."""

    engine: str

    def prepare(self, batch: int, queues: int) -> Any:
        """The specs."""
        return [vhostnet.InterfaceSpec(bridge=BRIDGE, queues=queues, vhost="off") for _ in range(batch)]

    def open(self, asked: Any) -> Any:
        """One call."""
        return vhostnet.open_nics(asked, engine=self.engine)

    def give(self, opened: Any) -> Opened:
        """The Nics' indexes and fds."""
        return Opened([nic.ifindex for nic in opened], [fd for nic in opened for fd in nic.detach().tap])
