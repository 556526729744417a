"""The native engine: one cffi call a batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from vhostnet._vhostnet import ffi, lib
from vhostnet.engines._protocol import CALLS, ActResult, Failure, NicResult, Result
from vhostnet.plan import Act, Link, NicRow, Program


class NativeEngine:
    """Programs through the C core, without the GIL."""

    name = "native"

    def run(self, program: Program) -> Result:
        if not program.acts:
            return Result((), (), None)
        keep: dict[str, Any] = {}  # the C strings, which must outlive the call
        nics = _nics(program.nics, keep)
        acts = _acts(program.acts)
        results = _ActResults(acts)
        try:
            rc = lib.vn_run(nics, len(program.nics), acts, len(program.acts))
            if rc == 0:
                return Result(tuple([_nic_result(nic) for nic in nics]), results, None)
        except BaseException:  # such as a KeyboardInterrupt that waited for the call to end
            _close(nics)
            raise
        return Result((), results, _failure(program, results, rc))

    def describe(self, names: Sequence[str]) -> dict[str, Link]:
        links = ffi.new("struct vn_link[]", [(os.fsencode(name),) for name in names])
        _check(lib.vn_describe(links, len(names)), "RTM_GETLINK")
        return {name: _link(name, link) for name, link in zip(names, links, strict=True) if link.ifindex}

    def features(self, tap_path: str) -> int:
        word, call = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        rc = lib.vn_features(os.fsencode(tap_path), word, call)
        _check(rc, CALLS[call[0]])
        return int(word[0])


def _check(rc: int, call: str) -> None:
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc), call)


def _nics(rows: Sequence[NicRow], keep: dict[str, Any]) -> Any:
    fds = keep["fds"] = ffi.new("int32_t[]", 2 * sum([row.queues for row in rows]))
    at = 0
    table = []
    for row in rows:
        paths = _string(row.tap_path, keep), _string(row.vhost_path, keep)
        asked = row.queues, row.tun_flags, os.fsencode(row.bridge), row.master, row.mtu
        address = row.mac or bytes(6), bool(row.mac), row.no_ipv6
        table.append((row.ifname.encode(), *paths, *asked, *address, fds + at, fds + at + row.queues))
        if row.tap_fds:
            fds[at : at + row.queues] = row.tap_fds
        at += 2 * row.queues
    return ffi.new("struct vn_nic[]", table)  # in the order of the struct's members


def _string(text: str, keep: dict[str, Any]) -> Any:
    if text not in keep:
        keep[text] = ffi.new("char[]", os.fsencode(text))
    return keep[text]


_FLAGS = {(False, False): 0, (True, False): lib.VN_OPTIONAL, (False, True): lib.VN_BARRIER}


def _acts(acts: Sequence[Act]) -> Any:
    return ffi.new("struct vn_act[]", [(op, nic, _FLAGS[optional, barrier]) for op, nic, optional, barrier in acts])


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
        return ActResult(-act.error, CALLS[act.call], act.queue if act.queue >= 0 else None, act.ns)


def _nic_result(nic: Any) -> NicResult:
    taps, vhosts = ffi.unpack(nic.tap_fds, nic.n_tap), ffi.unpack(nic.vhost_fds, nic.n_vhost)
    return NicResult(nic.ifindex, nic.mtu, tuple(taps), tuple(vhosts))


def _close(nics: Any) -> None:
    for nic in nics:
        for fd in (*ffi.unpack(nic.vhost_fds, nic.n_vhost), *ffi.unpack(nic.tap_fds, nic.n_tap)):
            os.close(fd)


def _failure(program: Program, results: Sequence[ActResult], rc: int) -> Failure:
    for number, (act, result) in enumerate(zip(program.acts, results, strict=True)):
        if result.errno and not act.optional:
            return Failure(number, result)
    raise ValueError(f"the C core refuses the Program ({os.strerror(-rc)})")


def _link(name: str, link: Any) -> Link:
    mac = bytes(ffi.buffer(link.mac, link.mac_len))
    return Link(name, link.ifindex, ffi.string(link.kind).decode(), link.mtu, mac)
