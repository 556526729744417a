"""The native engine: one cffi call a batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from vhostnet._vhostnet import ffi, lib
from vhostnet.engines._protocol import CALLS, ActResult, NicResult, Result, failures_of, words_in
from vhostnet.process.files import close_fd
from vhostnet.program.parts import PORT, UNSHAPED, Act, Fds, Link, NicRow, Port
from vhostnet.program.program import Program


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


_NO_MAC, _NOBODY = bytes(6), (-1, -1)
_FLAGS = {(False, False): 0, (True, False): lib.VN_OPTIONAL, (False, True): lib.VN_BARRIER}
# Types and not their names, which cffi would look up each time.
_FDS, _NICS, _ACTS = ffi.typeof("int32_t[]"), ffi.typeof("struct vn_nic[]"), ffi.typeof("struct vn_act[]")
_VLANS, _BRIDGES, _PROGRAM = (
    ffi.typeof("struct vn_vlan[]"),
    ffi.typeof("struct vn_bridge[]"),
    ffi.typeof("struct vn_program *"),
)


class _Table:
    """A Program as the C core reads it, and all the memory it points into."""

    def __init__(self, program: Program) -> None:
        bridges: dict[tuple[bytes, int], int] = {}
        vlans: list[Any] = []
        rows, fds = _rows(program.nics, bridges, vlans)
        self.nics = ffi.new(_NICS, rows)
        self.acts = ffi.from_buffer(_ACTS, bytearray(_packed(program.acts)))
        named = ffi.new(_BRIDGES, list(bridges))
        tables = self.nics, self.acts, named, len(rows), len(self.acts), len(bridges)
        self.program = ffi.new(_PROGRAM, (*tables, program.keep))
        self._kept = rows, fds, named, vlans


def _rows(
    nics: Sequence[NicRow], bridges: dict[tuple[bytes, int], int], vlans: list[Any]
) -> tuple[list[tuple[Any, ...]], Any]:
    """Each in the order of the struct's members, and the fds they point to; *bridges* are numbered as they come."""
    queues = 0
    for row in nics:
        queues += row.queues
    every = taps = ffi.new(_FDS, 2 * queues)
    rows = []
    for row in nics:
        name, queues, flags, tap_path, vhost_path, bridge, master, mtu, mac, no_ipv6, alias, wish = row[:12]
        ifindex, held, up, port, frames, adopted, persist, shaping, macvtap = row[12:21]
        vhosts = taps + queues
        joined = bridges.setdefault((bridge.encode(), master), len(bridges)) if bridge else -1
        fds: tuple[Any, ...] = 0, taps, vhosts
        if held:
            fds = 1, taps, vhosts, len(held.tap), len(held.vhost), ifindex
            taps[0 : len(held.tap)] = held.tap
            vhosts[0 : len(held.vhost)] = held.vhost
        if port is not PORT or frames or adopted or persist or shaping is not UNSHAPED or macvtap:
            fds = *_with_port(fds, port, frames, vlans), adopted, bool(persist), *(persist or _NOBODY), *shaping
        if macvtap:
            fds = *fds, True, macvtap.mode, macvtap.parent.encode(), macvtap.all_multicast
        what = name.encode(), _string(tap_path), _string(vhost_path), queues, flags, joined, mtu
        rows.append((*what, mac or _NO_MAC, bool(mac), no_ipv6, up, wish.encode(), alias.encode(), *fds))
        taps = vhosts + queues
    return rows, every


def _with_port(fds: tuple[Any, ...], port: Port, frames: int, vlans: list[Any]) -> tuple[Any, ...]:
    """The rest of the struct's members; *vlans* keeps what they point to."""
    listed = ffi.NULL
    if port.vlans:
        listed = ffi.new(_VLANS, port.vlans)
        vlans.append(listed)
    rest = listed, len(port.vlans), frames, port.isolated, bool(port.guest_mac), port.guest_mac or _NO_MAC
    return (*fds, *(0, 0, 0)[len(fds) - 3 :], *rest)


@lru_cache(maxsize=8)  # most Programs have the acts of the one before
def _packed(acts: tuple[Act, ...]) -> bytes:
    table = ffi.new(_ACTS, [(op, nic, _FLAGS[optional, barrier]) for op, nic, optional, barrier in acts])
    return bytes(ffi.buffer(table))


@lru_cache(maxsize=64)  # NICs have the same few paths
def _string(text: str) -> Any:
    return ffi.new("char[]", os.fsencode(text))


def _run(program: Program, table: _Table) -> Result:
    results = _ActResults(table.acts, table.nics)
    try:
        rc = lib.vn_run(table.program)
        if rc == 0 and not program.keep:
            return Result(tuple(map(_nic_result, table.nics)), results)
    except BaseException:  # such as a KeyboardInterrupt that waited for the call to end
        _close_made(program.nics, table.nics)
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

    def __init__(self, table: Any, nics: Any) -> None:
        self._table = table
        self._nics = nics

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return tuple(self[n] for n in range(*number.indices(len(self))))
        act = self._table[range(len(self))[number]]
        call, queue = CALLS[act.call] if act.error else "", act.queue if act.queue >= 0 else None
        said = words_in(bytes(ffi.buffer(self._nics[act.nic].said))) if act.op == lib.VN_TC and act.error else ""
        return ActResult(-act.error, call, queue, act.ns, said)


def _nic_result(nic: Any) -> NicResult:
    taps, vhosts = nic.n_tap, nic.n_vhost
    fds = Fds(tuple(ffi.unpack(nic.tap_fds, taps)), tuple(ffi.unpack(nic.vhost_fds, vhosts)) if vhosts else ())
    return NicResult(nic.ifindex, nic.mtu, fds)


def _undo(program: Any) -> ActResult | None:
    return ActResult(-program.undo_error, CALLS[program.undo_call], None, 0) if program.undo_error else None


def _close_made(rows: Sequence[NicRow], nics: Any) -> None:
    """What the run opened: not what was held before."""
    for row, nic in zip(rows, nics, strict=True):
        made = {*ffi.unpack(nic.vhost_fds, nic.n_vhost), *ffi.unpack(nic.tap_fds, nic.n_tap)}
        for fd in made.difference(row.fds.vhost, row.fds.tap):
            close_fd(fd)


def _link(name: str, link: Any) -> Link:
    mac = bytes(ffi.buffer(link.mac, link.mac_len))
    kind, filtering = ffi.string(link.kind).decode(), bool(link.vlan_filtering)
    alias = ffi.string(link.alias).decode("utf-8", "replace")
    return Link(name, link.ifindex, kind, link.mtu, mac, link.ports, link.tun_flags, filtering, alias)
