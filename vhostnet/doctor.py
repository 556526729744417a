"""What this host can do, and why a given file would fail here: found out by doing, with nothing left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from vhostnet import bridge, engines, host
from vhostnet.cost import cost
from vhostnet.engines import Engine, _uapi
from vhostnet.errors import EngineUnavailable, HostError, SpecError, VhostnetError, host_error, vhost_problem
from vhostnet.files import allowed_files, open_files
from vhostnet.others import effects
from vhostnet.plan import MAX_PORTS, Act, NicRow, Op, Program, TunFlag, vhost_policy
from vhostnet.qemu import Version, caveats, check_qemu, dotted
from vhostnet.reasons import describe, free_files, free_memory, name_taken, unfit_bridge
from vhostnet.spec import DEFAULT_TAP, DEFAULT_VHOST, InterfaceSpec

State = Literal["ok", "note", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``fail``: NICs cannot be opened, or not this one; ``note``: they can, but look."""

    name: str
    state: State
    detail: str
    remedy: str = ""
    error: VhostnetError | None = None


def examine() -> Iterator[Check]:
    """What this host can do, one check after the other."""
    yield Check("kernel", "ok", f"{platform.system()} {platform.release()} {platform.machine()}")
    yield _engine()
    yield _tun(DEFAULT_TAP)
    yield _vhost(DEFAULT_VHOST, needed=False)
    yield _capability()
    yield _files(0)
    yield _bridges()
    yield _qemu()


def examine_specs(specs: Sequence[InterfaceSpec]) -> Iterator[Check]:
    """Why opening *specs*, all together, would fail here: every reason, not only the first."""
    for path in dict.fromkeys(spec.tap_path for spec in specs if spec.tap_path != DEFAULT_TAP):
        yield _tun(path)
    need = {spec.vhost_path: spec.vhost == "require" for spec in specs if vhost_policy(spec, None) != "off"}
    for path, needed in need.items():
        yield _vhost(path, needed=needed)
    engine = engines.select()
    try:
        program = host.draft(engine, specs)
    except (SpecError, HostError) as error:
        yield _failed("plan", error)
        return
    yield Check("plan", "ok", f"{len(program.acts)} acts for {len(specs)} NICs")
    yield from _resources(program)
    yield from _joined(engine, program)
    yield from _names(engine, program, specs)
    yield from (Check("mtu", "note", effect) for effect in effects(specs, program, engine=engine.name))
    yield from _asked_of_qemu(specs)


def _engine() -> Check:
    try:
        return Check("engine", "ok", engines.select("native").name)
    except EngineUnavailable as error:
        return Check("engine", "note", f"pure: {error}")


def _failed(name: str, error: VhostnetError, state: State = "fail") -> Check:
    remedy = error.remedy if isinstance(error, HostError) else getattr(error, "expected", "")
    detail = f"{error.ifname or ''} {error.strerror}".strip() if isinstance(error, HostError) else str(error)
    return Check(name, state, detail, remedy, error)


def _tun(path: str) -> Check:
    try:
        word = engines.select().features(path)
    except OSError as error:
        call = str(error.filename)
        refusal = host_error(error.errno or 0, act="TAP_OPEN", call=call, ifname=None, queue=None, subject=path)
        return _failed("tun", refusal)
    flags = [flag.name.lower() for flag in (TunFlag.VNET_HDR, TunFlag.MULTI_QUEUE) if word & flag and flag.name]
    missing = not word & TunFlag.MULTI_QUEUE
    return Check(
        "tun", "fail" if missing else "ok", f"{path}: {' '.join(flags)}", "a kernel from 3.8 on" if missing else ""
    )


def _vhost(path: str, *, needed: bool) -> Check:
    row = NicRow("doctor", 1, 0, DEFAULT_TAP, path)
    result = engines.select().run(Program((row,), (Act(Op.VHOST_OPEN, 0),)))
    if not result.failures:
        engines.select().close([nic.fds for nic in result.nics if nic])
        return Check("vhost-net", "ok", f"{path} opens and has MRG_RXBUF and VERSION_1")
    why = result.failures[0].result
    error = host_error(why.errno, act="VHOST_OPEN", call=why.call, ifname=None, queue=None, subject=path)
    found = _failed("vhost-net", error, "fail" if needed else "note")
    return found if needed else Check(found.name, found.state, vhost_problem(why.errno, why.call, path), found.remedy)


def _capability() -> Check:
    """By what takes it: a set of capabilities says nothing where another user namespace owns the network."""
    with socket.socket(socket.AF_UNIX) as here:
        try:
            os.close(fcntl.ioctl(here, _uapi.SIOCGSKNS))
        except OSError as refused:
            error = host_error(refused.errno or 0, act="TAP_OPEN", call="TUNSETIFF", ifname=None, queue=None)
            return Check("capability", "fail", "no CAP_NET_ADMIN in this network namespace", error.remedy, error)
    return Check("capability", "ok", "CAP_NET_ADMIN")


def _files(needed: int) -> Check:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = allowed_files()
    free = allowed - open_files(allowed)
    detail = f"{free} of {allowed} left (hard limit {hard})" + (f", {needed} needed" if needed else "")
    if free < needed:
        error = host_error(errno.EMFILE, act="TAP_OPEN", call="open", ifname=None, queue=None, subject=DEFAULT_TAP)
        return Check("open files", "fail", detail, error.remedy, error)
    return Check("open files", "ok", detail)


def _bridges() -> Check:
    found = bridge.list_bridges()
    if not found:
        return Check("bridges", "note", "none here", "ip link add br0 up type bridge")
    shown = (f"{b.name} (mtu {b.mtu}, {b.ports} of {MAX_PORTS} ports)" for b in found)
    return Check("bridges", "ok", ", ".join(shown))


OLDEST_QEMU: Final = (7, 2, 0)  # the oldest that is tried


def _qemu() -> Check:
    path = _find_qemu()
    if path is None:
        name = f"qemu-system-{platform.machine()}"
        return Check("qemu", "note", f"no {name} in PATH", "vhostnet makes NICs without it; running a VM needs it")
    version = qemu_version(path)
    if version is None:
        return Check("qemu", "note", f"{path} does not say its version", f"see what is wrong: {path} --version")
    detail = f"{path}: {dotted(version)}"
    if version < OLDEST_QEMU:
        return Check("qemu", "note", detail, "7.2 is the oldest that is tried")
    return Check("qemu", "ok", detail)


def _find_qemu() -> str | None:
    return shutil.which(f"qemu-system-{platform.machine()}")


def qemu_version(path: str) -> Version | None:
    """What the QEMU at *path* says it is; None if it does not run, or says none."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", said, re.ASCII)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


# --- a file ----------------------------------------------------------------------------------------------


def _resources(program: Program) -> Iterator[Check]:
    """vhost-net counts where it is tried."""
    takes = cost(program)
    yield _files(takes.fds)
    for name, code, needed, allowed, unit in (
        ("system files", errno.ENFILE, takes.fds, free_files(), 1),
        ("memory", errno.ENOMEM, takes.memory, free_memory(), 2**20),
    ):
        if allowed is None or needed <= allowed:
            continue
        error = host_error(code, act="TAP_OPEN", call="open", ifname=None, queue=None, subject=DEFAULT_TAP)
        what = f"{needed // unit} needed, {allowed // unit} left" + (" (MiB)" if unit > 1 else "")
        yield Check(name, "fail", what, error.remedy, error)


def _joined(engine: Engine, program: Program) -> Iterator[Check]:
    joining = cost(program).ports
    links = describe(engine, list(joining))
    for name, count in joining.items():
        unfit = unfit_bridge(name, links.get(name), count)
        free = f"{name}: {MAX_PORTS - links[name].ports} ports free, {count} needed" if name in links else ""
        yield _failed("bridge", unfit) if unfit else Check("bridge", "ok", free)


def _names(engine: Engine, program: Program, specs: Sequence[InterfaceSpec]) -> Iterator[Check]:
    """Names that were asked for and are somebody's."""
    asked = [row for row, spec in zip(program.nics, specs, strict=True) if not host.is_template(spec.ifname)]
    taken = describe(engine, [row.ifname for row in asked])
    for row in asked:
        if row.ifname in taken:
            busy = host_error(errno.EBUSY, act="TAP_OPEN", call="TUNSETIFF", ifname=row.ifname, queue=None)
            yield _failed("name", name_taken(engine, row, busy))


def _asked_of_qemu(specs: Sequence[InterfaceSpec]) -> Iterator[Check]:
    """What the QEMU that is here would say to the NICs, or, where none is, what any would."""
    path = _find_qemu()
    version = qemu_version(path) if path else None
    for spec in specs:
        name = spec.ifname or "NIC"
        try:
            check_qemu(spec)
        except SpecError as error:
            yield _failed(name, error)
        yield from (Check(name, "note", caveat) for caveat in caveats(spec, qemu=version))
