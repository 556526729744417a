"""The native engine: one cffi call a batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from vhostnet._vhostnet import ffi, lib
from vhostnet.engines._protocol import CALLS, ActResult, NicResult, Result, failures_of
from vhostnet.files import close_fd
from vhostnet.plan import Fds, Link, NicRow, Program


class NativeEngine:
    """Programs through the C core, without the GIL."""

    name = "native"

    def run(self, program: Program) -> Result:
        return _run(program, _Table(program)) if program.acts else Result((), ())

    def ready(self, program: Program) -> Callable[[bytes], Result]:
        table = _Table(program)

        def run(mac: bytes) -> Result:
            table.nics[0].mac = mac
            return _run(program, table)

        return run

    def close(self, held: Sequence[Fds]) -> None:
        every = ffi.new("int32_t[]", [fd for fds in held for fd in (*fds.tap, *fds.vhost)])
        table, at = [], every
        for tap, vhost in held:
            table.append({"tap_fds": at, "vhost_fds": at + len(tap), "n_tap": len(tap), "n_vhost": len(vhost)})
            at += len(tap) + len(vhost)
        lib.vn_close(ffi.new("struct vn_nic[]", table), len(table))

    def describe(self, names: Sequence[str]) -> dict[str, Link]:
        links = ffi.new("struct vn_link[]", [(os.fsencode(name),) for name in names])
        call = ffi.new("uint32_t *")
        rc = lib.vn_describe(links, len(names), call)
        _check(rc, CALLS[call[0]])
        return {name: _link(name, link) for name, link in zip(names, links, strict=True) if link.ifindex}

    def features(self, tap_path: str) -> int:
        word, call = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        rc = lib.vn_features(os.fsencode(tap_path), word, call)
        _check(rc, CALLS[call[0]])
        return int(word[0])


def _check(rc: int, call: str) -> None:
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc), call)


_NO_MAC = bytes(6)
_FLAGS = {(False, False): 0, (True, False): lib.VN_OPTIONAL, (False, True): lib.VN_BARRIER}


class _Table:
    """A Program as the C core reads it, and all the memory it points into."""

    def __init__(self, program: Program) -> None:
        self._bridges: dict[tuple[str, int], int] = {}
        self._kept: list[Any] = []
        self._fds = ffi.new("int32_t[]", 2 * sum([row.queues for row in program.nics]))
        self.nics = ffi.new("struct vn_nic[]", self._rows(program.nics))
        acts = [(op, nic, _FLAGS[optional, barrier]) for op, nic, optional, barrier in program.acts]
        self.acts = ffi.new("struct vn_act[]", acts)
        self._named = ffi.new("struct vn_bridge[]", [(name.encode(), index) for name, index in self._bridges])
        sizes = len(program.nics), len(program.acts), len(self._bridges)
        self.program = ffi.new("struct vn_program *", (self.nics, self.acts, self._named, *sizes, program.keep))

    def _rows(self, rows: Sequence[NicRow]) -> list[tuple[Any, ...]]:
        """Each in the order of the struct's members."""
        table = []
        taps = self._fds
        for row in rows:
            name, queues, flags, tap_path, vhost_path, bridge, master, mtu, mac, no_ipv6, alias, wish = row[:12]
            ifindex, held, up = row[12:]
            vhosts = taps + queues
            paths = _string(tap_path), _string(vhost_path)
            self._kept.append(paths)
            joined = self._bridges.setdefault((bridge, master), len(self._bridges)) if bridge else -1
            asked = queues, flags, joined, mtu, mac or _NO_MAC, bool(mac), no_ipv6, up, wish.encode(), alias.encode()
            fds: tuple[Any, ...] = 0, taps, vhosts
            if held:
                fds = 1, taps, vhosts, len(held.tap), len(held.vhost), ifindex
                taps[0 : len(held.tap)] = held.tap
                vhosts[0 : len(held.vhost)] = held.vhost
            table.append((name.encode(), *paths, *asked, *fds))
            taps = vhosts + queues
        return table


@lru_cache(maxsize=64)  # NICs have the same few paths
def _string(text: str) -> Any:
    return ffi.new("char[]", os.fsencode(text))


def _run(program: Program, table: _Table) -> Result:
    results = _ActResults(table.acts)
    try:
        rc = lib.vn_run(table.program)
        if rc == 0 and not program.keep:
            return Result(tuple([_nic_result(nic) for nic in table.nics]), results)
    except BaseException:  # such as a KeyboardInterrupt that waited for the call to end
        _close_made(table.nics)
        raise
    failures = failures_of(program, results)
    if rc and not failures:
        raise ValueError(f"the C core refuses the Program ({os.strerror(-rc)})")
    undo = _undo(table.program)
    if not program.keep:
        return Result((), results, failures[:1], undo)
    nics = tuple([None if nic.failed else _nic_result(nic) for nic in table.nics])
    return Result(nics, results, failures, undo)


class _ActResults(Sequence[ActResult]):
    """The C table, read where it is looked at: most callers never ask how long each act took."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return tuple(self[n] for n in range(*number.indices(len(self))))
        act = self._table[range(len(self))[number]]
        call, queue = CALLS[act.call] if act.error else "", act.queue if act.queue >= 0 else None
        return ActResult(-act.error, call, queue, act.ns)


def _nic_result(nic: Any) -> NicResult:
    taps, vhosts = nic.n_tap, nic.n_vhost
    fds = Fds(tuple(ffi.unpack(nic.tap_fds, taps)), tuple(ffi.unpack(nic.vhost_fds, vhosts)) if vhosts else ())
    return NicResult(nic.ifindex, nic.mtu, fds)


def _undo(program: Any) -> ActResult | None:
    return ActResult(-program.undo_error, CALLS[program.undo_call], None, 0) if program.undo_error else None


def _close_made(nics: Any) -> None:
    for nic in nics:
        if not nic.held:
            for fd in (*ffi.unpack(nic.vhost_fds, nic.n_vhost), *ffi.unpack(nic.tap_fds, nic.n_tap)):
                close_fd(fd)


def _link(name: str, link: Any) -> Link:
    mac = bytes(ffi.buffer(link.mac, link.mac_len))
    return Link(name, link.ifindex, ffi.string(link.kind).decode(), link.mtu, mac, link.ports, link.tun_flags)
