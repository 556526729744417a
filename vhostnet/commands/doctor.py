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

from vhostnet import engines
from vhostnet.engines import Engine, _uapi
from vhostnet.errors import EngineUnavailable, HostError, SpecError, VhostnetError, host_error, vhost_problem
from vhostnet.host import opening
from vhostnet.host.effects import effects, without_tap
from vhostnet.host.names import is_template
from vhostnet.host.reasons import (
    describe,
    free_files,
    free_memory,
    joined,
    name_taken,
    unfit_bridge,
    unfit_floors,
    unfit_parents,
    unfit_plugs,
    unfit_taps,
)
from vhostnet.others import bridge, surroundings, udev
from vhostnet.others.bridge_helper import find_helper
from vhostnet.process.files import allowed_files, open_files
from vhostnet.process.netns import call_aside, unshare_net
from vhostnet.program.cost import cost
from vhostnet.program.parts import MAX_PORTS, Act, NicRow, Op, TunFlag
from vhostnet.program.program import Program
from vhostnet.program.rows import vhost_policy
from vhostnet.qemu.argv import Version, caveats, check_qemu, dotted
from vhostnet.qemu.vdpa import open_vdpa
from vhostnet.spec.interface import DEFAULT_TAP, DEFAULT_VHOST, InterfaceSpec
from vhostnet.spec.parts import Bandwidth, Rate
from vhostnet.spec.sources import VdpaSource

State = Literal["ok", "note", "fail"]

_EXAMPLES: Final = "examples/host"
_APART: Final = "a network namespace of their own (-n)"
_NO_IPV6: Final = "a line net.ipv6.conf.vnet*.addr_gen_mode = 1 in a later file of /etc/sysctl.d"
_BRIDGED: Final = (
    "sysctl net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0, or a rule:"
    " iptables -I FORWARD -m physdev --physdev-is-bridged -j ACCEPT (with Docker in DOCKER-USER)"
)


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
    yield from _surroundings()
    yield _qemu()


def examine_specs(specs: Sequence[InterfaceSpec]) -> Iterator[Check]:
    """Why opening *specs*, all together, would fail here: every reason, not only the first."""
    yield from (Check("no tap", "note", note) for note in without_tap(specs))
    yield from _vdpa(specs)
    made = [spec for spec in specs if spec.tap]
    if made:
        yield from _examine_taps(made)
    yield from _asked_of_qemu(specs)


def _examine_taps(specs: Sequence[InterfaceSpec]) -> Iterator[Check]:
    for path in dict.fromkeys(spec.tap_path for spec in specs if spec.tap_path != DEFAULT_TAP):
        yield _tun(path)
    need = {spec.vhost_path: spec.vhost == "require" for spec in specs if vhost_policy(spec, None) != "off"}
    for path, needed in need.items():
        yield _vhost(path, needed=needed)
    engine = engines.select()
    try:
        program = opening.draft(engine, specs)
    except (SpecError, HostError) as error:
        yield _failed("plan", error)
        return
    yield Check("plan", "ok", f"{len(program.acts)} acts for {len(specs)} NICs")
    yield from _resources(program)
    yield from _joined(engine, program, specs)
    yield from _adopted(engine, program)
    yield from (_failed("Open vSwitch", unfit) for unfit in unfit_plugs(program))
    yield from (_failed("floor", unfit) for unfit in unfit_floors(program))
    yield from _scripts(specs)
    yield from _parents(engine, program)
    yield from _names(engine, program, specs)
    yield from _bandwidth(program)
    yield from (Check("mtu", "note", effect) for effect in effects(specs, program, engine=engine.name))
    yield from _reserved(specs)


def _vdpa(specs: Sequence[InterfaceSpec]) -> Iterator[Check]:
    for spec in specs:
        if isinstance(spec.source, VdpaSource):
            try:
                os.close(open_vdpa(spec))
            except HostError as error:
                yield _failed("vdpa", error)
            else:
                yield Check("vdpa", "ok", f"{spec.source.dev} opens")


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
            helper = find_helper()
            error.remedy += f"; for NICs of one queue and no settings {helper} will do" if helper else ""
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
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", _said(path, "--version"), re.ASCII)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def _said(*command: str) -> str:
    """What it printed; nothing, if it does not run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


# --- what else acts on NICs here -------------------------------------------------------------------------


def _surroundings() -> Iterator[Check]:
    switches = surroundings.list_switches()
    try:
        trial = surroundings.try_tap()
    except OSError as refused:
        what = "what udevd, networkd and sysctl settings do to a new NIC"
        yield Check(
            "udev",
            "note",
            f"{what} is not known, since none can be made ({refused.strerror or refused})",
            "run it as root",
        )
    else:
        yield _udev(trial)
        yield _networkd(trial)
        if not trial.ipv6_kept and trial.networkd in (None, "unmanaged"):
            detail = "the host's sysctl settings switch IPv6 address generation on again, on every new NIC"
            yield Check("sysctl", "note", detail, _NO_IPV6)
    for switch in switches:
        yield from (Check("bridge", "note", *finding) for finding in _ways(switch))
    yield _netfilter(switches)


def _udev(trial: surroundings.Trial) -> Check:
    if not udev.listens():
        return Check("udev", "ok", "no udevd listens in this network namespace")
    if not trial.heard:
        what = (
            f"somebody listens to uevents here, but no udevd was done with a new TAP in {surroundings.UDEV_TIME:.0f} s"
        )
        return Check("udev", "note", what, "udevadm settle, and look again")
    file = trial.link_file or "no .link file"
    if trial.renamed != trial.ifname:
        renamed = f"a udevd renames NICs: {trial.ifname} became {trial.renamed}"
        return Check("udev", "note", renamed, f"leave out vnet* where they get their names, {file} or a rule")
    if trial.mac_kept is None:
        unknown = f"a udevd listens here; whether it leaves MACs alone is not known ({file})"
        return Check("udev", "note", unknown, "mount a sysfs of this network namespace, or run it as root")
    if trial.mac_kept:
        return Check("udev", "ok", f"a udevd listens here and leaves the NICs' MACs alone ({file})")
    given = f"a udevd listens here, and has a MAC of its own for a TAP that has none yet ({file}); vhostnet looks again"
    return Check("udev", "note", given, f"{_EXAMPLES}/10-vhostnet.link into /etc/systemd/network, or NICs in {_APART}")


def _networkd(trial: surroundings.Trial) -> Check:
    if trial.networkd is None:
        return Check("networkd", "ok", "does not run in this network namespace")
    if trial.networkd == "unmanaged":
        return Check("networkd", "ok", "runs here and leaves NICs alone")
    if not trial.networkd:
        waited = f"runs here, and did not say in {surroundings.NETWORKD_TIME:.0f} s what it does with a new TAP"
        return Check("networkd", "note", waited, "look again; networkctl status says what it is busy with")
    taken = f"takes NICs for links of its own, and off their bridge ({trial.network_file or trial.networkd})"
    return Check(
        "networkd", "note", taken, f"{_EXAMPLES}/10-vhostnet.network into /etc/systemd/network, networkctl reload"
    )


def _ways(switch: surroundings.Switch) -> Iterator[tuple[str, str]]:
    """What there is to know of a bridge before a NIC joins it, and what to do about it."""
    name = switch.name
    if not switch.up:
        yield f"{name} is down: no frame passes", f"ip link set {name} up"
    if switch.mute:
        stp = f"ip link set {name} type bridge stp_state 0 (networkd: STP=no, NetworkManager: bridge.stp no)"
        yield f"{name} runs STP: a NIC is mute for its first {switch.mute} s", stp
    if switch.follows and not switch.anchored:
        own = switch.mac if switch.mac.strip("0:") else "MAC, one of your own"
        lowest = f"{name} has no MAC of its own: it takes the lowest of its ports', which are NICs that come and go"
        yield lowest, f"ip link set {name} address {own}"
    if switch.managed:
        kept = f"apply changes by nmcli device reapply {name}"
        yield f"{name} is NetworkManager's: nmcli con up {name} and nmcli networking off take every NIC off it", kept


def _netfilter(switches: Sequence[surroundings.Switch]) -> Check:
    families = surroundings.filtered_families(switches)
    if not families:
        return Check("netfilter", "ok", "does not see what bridges forward")
    dropping = surroundings.dropping_policies(families)
    if dropping is None:
        unknown = "sees what bridges forward, and whether it drops it is not known: neither nft nor iptables answers"
        return Check("netfilter", "note", unknown, "look at the policy of FORWARD (iptables -S FORWARD)")
    if not dropping:
        return Check("netfilter", "ok", "sees what bridges forward, and no policy drops it")
    dropped = f"sees what bridges forward, and drops it unless a rule accepts it ({', '.join(dropping)})"
    return Check("netfilter", "note", f"{dropped}: ARP passes, IP between guests does not", _BRIDGED)


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


def _joined(engine: Engine, program: Program, specs: Sequence[InterfaceSpec]) -> Iterator[Check]:
    joining = joined(program)
    networks = {spec.bridge: spec.network for spec in specs}
    links = describe(engine, list(joining))
    for name, nics in joining.items():
        unfit = unfit_bridge(name, links.get(name), nics, networks.get(name))
        free = f"{name}: {MAX_PORTS - links[name].ports} ports free, {len(nics)} needed" if name in links else ""
        yield _failed("bridge", unfit) if unfit else Check("bridge", "ok", free)


def _scripts(specs: Sequence[InterfaceSpec]) -> Iterator[Check]:
    """Programs that are to be run, and are not there."""
    for path in dict.fromkeys(path for spec in specs for path in (spec.script, spec.downscript) if path):
        if shutil.which(path) is None:
            remedy = "an absolute path, or a name that is found in $PATH; and chmod +x"
            yield Check("script", "fail", f"{path} is no program that can be run", remedy)


def _bandwidth(program: Program) -> Iterator[Check]:
    """That this kernel has what they are limited by: tried on a TAP in a network namespace that nobody sees."""
    rooted = any(row.rooted for row in program.nics)
    policed = any(row.policed for row in program.nics)
    if not (rooted or policed):
        return
    wanted = Bandwidth(Rate(1) if rooted else None, Rate(1) if policed else None)

    def tried() -> None:
        unshare_net()
        opening.open_nic(InterfaceSpec(type="ethernet", vhost="off", bandwidth=wanted)).close()

    try:
        call_aside(tried)
    except HostError as error:
        error.ifname = None  # it was none of theirs
        yield _failed("bandwidth", error, "fail" if error.act == Op.TC.name else "note")
    else:
        yield Check("bandwidth", "ok", "this kernel has all that they are limited by, but perhaps SFQ")


def _adopted(engine: Engine, program: Program) -> Iterator[Check]:
    """TAPs that are to be there."""
    return (_failed("TAP", unfit) for unfit in unfit_taps(engine, program))


def _parents(engine: Engine, program: Program) -> Iterator[Check]:
    """Links that macvtaps are to be on."""
    return (_failed("link", unfit) for unfit in unfit_parents(engine, program))


def _names(engine: Engine, program: Program, specs: Sequence[InterfaceSpec]) -> Iterator[Check]:
    """Names that were asked for and are somebody's."""
    asked = [
        row for row, spec in zip(program.nics, specs, strict=True) if not (row.adopted or is_template(spec.ifname))
    ]
    taken = describe(engine, [row.ifname for row in asked])
    for row in asked:
        if row.ifname in taken:
            busy = host_error(errno.EBUSY, act="TAP_OPEN", call="TUNSETIFF", ifname=row.ifname, queue=None)
            yield _failed("name", name_taken(engine, row, busy))


def _asked_of_qemu(specs: Sequence[InterfaceSpec]) -> Iterator[Check]:
    """What the QEMU that is here would say to the NICs, or, where none is, what any would."""
    path = _find_qemu()
    version = qemu_version(path) if path else None
    yield from _models(path, specs) if path else ()
    for spec in specs:
        name = spec.ifname or "NIC"
        try:
            check_qemu(spec)
        except SpecError as error:
            yield _failed(name, error)
        yield from (Check(name, "note", caveat) for caveat in caveats(spec, qemu=version))


def _models(path: str, specs: Sequence[InterfaceSpec]) -> Iterator[Check]:
    """Any name can be a model's; whether it is one, that QEMU says. igb, which comes with a version, has a caveat."""
    asked = dict.fromkeys(spec.model for spec in specs if not spec.virtio and spec.model != "igb")
    shown = _said(path, "-device", "help") if asked else ""
    has = set(re.findall(r'name "([^"]+)"', shown))
    for model in asked if has else ():
        if model not in has:
            yield Check("model", "note", f"{model}: {path} has no such device", f"{path} -device help says what it has")


def _reserved(specs: Sequence[InterfaceSpec]) -> Iterator[Check]:
    for name in (spec.ifname for spec in specs if (spec.ifname or "").startswith("vt-")):
        taken = f"{name}: systemd-networkd takes every TAP called vt-* (80-vm-vt.network), and off its bridge"
        yield Check("name", "note", taken, "choose another <target dev=>")
