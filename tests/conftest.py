"""Fixtures: an engine, a network namespace, a bridge, and the proof that nothing leaks.

A test skips only when a probe that does the thing failed, and says why. ``VHOSTNET_REQUIRE=native,tap,...``
turns such a skip into a failure.
"""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from drop import dropped, run

import vhostnet
from vhostnet import engines
from vhostnet.commands.demo import enter_own_namespace
from vhostnet.others import bridge as bridges
from vhostnet.others.bridge_helper import PATHS, find_helper
from vhostnet.process import netns

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
sys.path.append(str(ROOT))  # for bench; at the end, so that an installed vhostnet comes before this checkout's
SEED = (ROOT / "examples" / "seed.xml").read_text()
BRIDGE = "vbr2525476"
CACHE = Path(os.environ.get("VHOSTNET_CACHE") or os.environ.get("XDG_CACHE_HOME", "~/.cache") + "/vhostnet")
LIBVIRT_SUITE = CACHE.expanduser() / "libvirt" / "trixie"
REQUIRED = set(filter(None, os.environ.get("VHOSTNET_REQUIRE", "").split(",")))


# --- what this host can do: None, or why not -------------------------------------------------------------


@cache
def lacks(what: str) -> str | None:
    return _PROBES[what]()


def _lacks_native() -> str | None:
    try:
        engines.select("native")
    except vhostnet.EngineUnavailable as error:
        return str(error)
    return None


def _lacks_tap() -> str | None:
    """Root, or a user namespace of our own; and then a TAP that really opens."""
    try:
        enter_own_namespace()
        vhostnet.open_nic(vhostnet.InterfaceSpec(type="ethernet", vhost="off"), engine="pure").close()
    except vhostnet.HostError as error:
        return f"{error} (run as root, or allow user namespaces and make /dev/net/tun readable: chmod 666)"
    return None


def _lacks_qemu() -> str | None:
    return None if shutil.which("qemu-system-x86_64") else "no qemu-system-x86_64 in PATH"


def _lacks_machines() -> str | None:
    """The QEMUs of other architectures."""
    missing = [name for name in ("qemu-system-aarch64", "qemu-system-s390x") if not shutil.which(name)]
    return f"no {' and no '.join(missing)} in PATH" if missing else None


def _lacks_udev() -> str | None:
    """A real udevd that listens in a network namespace where we may make TAPs."""
    done = run(str(ROOT / "tools" / "with-udevd"), "true")
    return f"tools/with-udevd: {done.stderr.strip()}" if done.returncode else _lacks_tap()


def _lacks_vhost() -> str | None:
    try:
        os.close(os.open("/dev/vhost-net", os.O_RDWR))
    except OSError as error:
        return f"/dev/vhost-net: {error.strerror}"
    return None


def _lacks_vlan() -> str | None:
    """A bridge that can heed VLANs, tried where nobody is in the way."""
    done = run("unshare", "--net", "ip", "link", "add", "br0", "type", "bridge", "vlan_filtering", "1")
    return f"bridges do not filter by VLAN: {done.stderr.strip()}" if done.returncode else _lacks_tap()


def _lacks_shaping() -> str | None:
    """What libvirt puts on a TAP, on a loopback where nobody is in the way."""
    added = (
        "qdisc add dev lo root handle 1: htb default 1",
        "class add dev lo parent 1: classid 1:1 htb rate 1kbps",
        "qdisc add dev lo parent 1:1 handle 2: sfq perturb 10",
        "filter add dev lo parent 1: protocol all prio 1 handle 1 fw flowid 1",
        "qdisc add dev lo ingress",
        "filter add dev lo parent ffff: protocol all u32 match u32 0 0 police rate 1kbps burst 1kb drop",
    )
    done = run("unshare", "--net", "sh", "-ec", "\n".join(f"tc {one}" for one in added))
    return f"tc: {done.stderr.strip()}" if done.returncode else lacks("tap")


def _lacks_e2e() -> str | None:
    return _lacks_qemu() or (None if shutil.which("busybox") else "no busybox in PATH")


def _lacks_strace() -> str | None:
    return None if shutil.which("strace") else "no strace in PATH"


def _lacks_setpriv() -> str | None:
    """A user that is not root, and device nodes that are open to it; with them a library that it may read."""
    done = run(*dropped("net_admin"), sys.executable, "-c", "import vhostnet; open('/dev/net/tun', 'r+b', 0)")
    return done.stderr.strip() or None


def _lacks_helper() -> str | None:
    return None if find_helper() else f"none of {', '.join(PATHS)}"


def _lacks_seccomp() -> str | None:
    try:
        importlib.import_module("pyseccomp")  # and libseccomp with it
    except (ImportError, RuntimeError) as error:
        return str(error)
    return None


def _lacks_systemd() -> str | None:
    return None if shutil.which("systemd-analyze") else "no systemd-analyze in PATH"


def _lacks_varlinkctl() -> str | None:
    done = run("varlinkctl", "--version") if shutil.which("varlinkctl") else None
    version = int(done.stdout.split()[1]) if done else 0
    return None if version >= 257 else f"no varlinkctl of systemd 257: {version}"


def _lacks_varlinkctl_exec() -> str | None:
    done = run("varlinkctl", "--help") if shutil.which("varlinkctl") else None
    return None if done and "--exec" in done.stdout else "no varlinkctl of systemd 258, which has --exec"


def _lacks_netfilter() -> str | None:
    done = run("sh", "-c", "iptables -S FORWARD && iptables-legacy -S FORWARD && nft list chains && sysctl --version")
    return done.stderr.strip() if done.returncode else None


def _lacks_ovs() -> str | None:
    """A switch that runs, and takes a TAP; root, for its bridges are TAPs of its own."""
    from bench import openvswitch

    return openvswitch.missing() or _lacks_tap() or (None if os.geteuid() == 0 else "it takes root")


def _lacks_datapath() -> str | None:
    """Open vSwitch, and the kernel's part of it."""
    loaded = Path("/sys/module/openvswitch").exists()
    return _lacks_ovs() if loaded else "the kernel's module openvswitch is not loaded"


def _lacks_libvirt() -> str | None:
    return None if LIBVIRT_SUITE.exists() else f"no {LIBVIRT_SUITE}: tests/libvirt/fetch gets it"


def _lacks_libvirtd() -> str | None:
    """One of our own: on a machine that is somebody's none is started."""
    if "VHOSTNET_LIBVIRTD" not in os.environ:
        return "it runs in a Debian of its own: make test-libvirt"
    return None if shutil.which("libvirtd") else "no libvirtd in PATH"


_PROBES = {
    "native": _lacks_native,
    "tap": _lacks_tap,
    "udev": _lacks_udev,
    "qemu": _lacks_qemu,
    "machines": _lacks_machines,
    "vhost": _lacks_vhost,
    "vlan": _lacks_vlan,
    "shaping": _lacks_shaping,
    "e2e": _lacks_e2e,
    "strace": _lacks_strace,
    "setpriv": _lacks_setpriv,
    "helper": _lacks_helper,
    "seccomp": _lacks_seccomp,
    "systemd": _lacks_systemd,
    "varlinkctl": _lacks_varlinkctl,
    "varlinkctl --exec": _lacks_varlinkctl_exec,
    "netfilter": _lacks_netfilter,
    "ovs": _lacks_ovs,
    "datapath": _lacks_datapath,
    "libvirt": _lacks_libvirt,
    "libvirtd": _lacks_libvirtd,
}


def need(what: str) -> None:
    why = lacks(what)
    if why:
        (pytest.fail if what in REQUIRED else pytest.skip)(f"{what}: {why}")


def pytest_sessionstart() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    lacks("tap")  # a user namespace can be entered only while there is one thread


_MARKERS = (
    *("tap", "udev", "qemu", "machines", "vhost", "vlan", "shaping"),
    *("libvirt", "libvirtd", "ovs", "datapath", "e2e"),
)


@pytest.fixture(autouse=True)
def _needs(request: pytest.FixtureRequest) -> None:
    for marker in _MARKERS:
        if request.node.get_closest_marker(marker):
            need(marker)


@pytest.fixture(params=["native", "pure"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each test that takes it runs on both engines."""
    if request.param == "native":
        need("native")
    return str(request.param)


# --- a network of one's own ------------------------------------------------------------------------------


@pytest.fixture
def net() -> Iterator[None]:
    """A fresh, empty network namespace."""
    netns.unshare_net()
    yield
    netns.unshare_net()  # leave it, so that it can go


@pytest.fixture
def bridge(net: None) -> str:
    """The seed's bridge, in a fresh namespace."""
    bridges.make_bridge(BRIDGE)
    return BRIDGE


@pytest.fixture
def broker(bridge: str) -> Iterator[Any]:
    """One that runs here, for root and nobody."""
    from brokers import serving

    with serving() as found:
        yield found


@pytest.fixture
def net_(broker: Any, no_leaks: None) -> Iterator[vhostnet.Broker]:
    """A client of it."""
    with vhostnet.connect(broker.path) as client:
        yield client


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """The fds (numbers and what they are) and links of before are those of after."""
    before = state()
    yield
    assert state() == before


def state() -> tuple[dict[int, str], list[str]]:
    return open_fds(), link_names()


def open_fds() -> dict[int, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except FileNotFoundError:
            continue  # the one that lists the directory
    return found


def link_names() -> list[str]:
    return sorted(name for _, name in socket.if_nameindex())


@pytest.fixture
def seed() -> vhostnet.InterfaceSpec:
    return vhostnet.parse_interface(SEED)
