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
        rc = lib.vn_run(nics, len(nics), acts, len(acts))
        results = tuple(_act_result(act) for act in acts)
        if rc == 0:
            return Result(tuple(_nic_result(nic) for nic in nics), results, None)
        return Result((), results, _failure(program, results, rc))

    def describe(self, names: Sequence[str]) -> dict[str, Link]:
        links = ffi.new("struct vn_link[]", len(names))
        for link, name in zip(links, names, strict=True):
            link.name = os.fsencode(name)
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
    nics = ffi.new("struct vn_nic[]", len(rows))
    fds = keep["fds"] = ffi.new("int32_t[]", 2 * sum(row.queues for row in rows))
    at = 0
    for nic, row in zip(nics, rows, strict=True):
        nic.name = os.fsencode(row.ifname)
        nic.tap_path = _string(row.tap_path, keep)
        nic.vhost_path = _string(row.vhost_path, keep)
        nic.queues = row.queues
        nic.tun_flags = row.tun_flags
        nic.mtu = row.mtu
        nic.master = row.master
        nic.no_ipv6 = row.no_ipv6
        if row.mac:
            nic.set_mac = True
            nic.mac = row.mac
        nic.tap_fds = fds + at
        nic.vhost_fds = fds + at + row.queues
        at += 2 * row.queues
        if row.tap_fds:
            nic.tap_fds[0 : row.queues] = row.tap_fds
    return nics


def _string(text: str, keep: dict[str, Any]) -> Any:
    if text not in keep:
        keep[text] = ffi.new("char[]", os.fsencode(text))
    return keep[text]


def _acts(acts: Sequence[Act]) -> Any:
    table = ffi.new("struct vn_act[]", len(acts))
    for entry, act in zip(table, acts, strict=True):
        entry.op = act.op
        entry.nic = act.nic
        if act.optional or act.barrier:
            entry.flags = act.optional * lib.VN_OPTIONAL | act.barrier * lib.VN_BARRIER
    return table


def _act_result(act: Any) -> ActResult:
    return ActResult(-act.error, CALLS[act.call], act.queue if act.queue >= 0 else None, act.ns)


def _nic_result(nic: Any) -> NicResult:
    return NicResult(
        nic.ifindex, tuple(ffi.unpack(nic.tap_fds, nic.n_tap)), tuple(ffi.unpack(nic.vhost_fds, nic.n_vhost))
    )


def _failure(program: Program, results: Sequence[ActResult], rc: int) -> Failure:
    for number, (act, result) in enumerate(zip(program.acts, results, strict=True)):
        if result.errno and not act.optional:
            return Failure(number, result)
    raise ValueError(f"the C core refuses the Program ({os.strerror(-rc)})")


def _link(name: str, link: Any) -> Link:
    mac = bytes(ffi.buffer(link.mac, link.mac_len))
    return Link(name, link.ifindex, ffi.string(link.kind).decode(), link.mtu, mac)
