"""What else is on this host that acts on our NICs: udevd, networkd, NetworkManager, the bridges' own ways, netfilter.

Found out by looking, in this thread's network namespace. What the daemons do to a new NIC is seen on a TAP that is made
for it, is on no bridge and goes again.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final, NamedTuple

from vhostnet.engines import _uapi
from vhostnet.engines._calls import get_name, ifreq, ioctl, name_of, open_device
from vhostnet.others import bridge, udev
from vhostnet.process.files import close_fd
from vhostnet.program.parts import TunFlag
from vhostnet.spec.interface import DEFAULT_TAP

UDEV_TIME: Final = 3.0  # seconds for udevd to be done with a link: 10 ms where it has nothing else to do
NETWORKD_TIME: Final = 1.0  # seconds for networkd, from then on

_QUEUE: Final = "/run/udev/queue"  # there while udevd has something to do
_NETWORKD: Final = "systemd-network"  # what the kernel keeps of its name
_NETWORKD_LINKS: Final = "/run/systemd/netif/links"
_MANAGER: Final = "NetworkManager"
_MANAGER_DEVICES: Final = "/run/NetworkManager/devices"
_DECIDED: Final = ("unmanaged", "configuring", "configured", "failed")  # networkd's ADMIN_STATE, once it has one
_NF_CALL: Final = "/proc/sys/net/bridge/bridge-nf-call-"
_TABLES: Final = {"ip": "iptables", "ip6": "ip6tables"}
_ADDR_SET: Final = "3"  # NET_ADDR_SET: somebody gave the link its MAC
_TAPS_MACS: Final = "fa"  # what ours begin with, or fe: what is lower comes before them


# --- the daemons -----------------------------------------------------------------------------------------


class Trial(NamedTuple):
    """What became of a new TAP: ``heard`` that udevd came to it and was done in time, ``link_file`` what it went by.

    ``mac_kept`` where nobody gave it another MAC, None where that cannot be known; ``ipv6_kept`` where no IPv6 address
    generation stays as it was set. ``networkd`` is the state that networkd has for it, None where none runs, and
    ``network_file`` what it goes by.
    """

    ifname: str
    renamed: str
    heard: bool
    link_file: str
    mac_kept: bool | None
    ipv6_kept: bool
    networkd: str | None
    network_file: str


def try_tap() -> Trial:
    """Make a TAP as ours are, but with the kernel's MAC, and see what is done to it. Raises OSError.

    It has the MAC that udev takes for nobody's: whoever gives it another would give it to one of ours, where it looks
    before we set ours.
    """
    born = time.time()
    fd = open_device(DEFAULT_TAP)
    try:
        made = ifreq("vnet%d", TunFlag.TAP | TunFlag.NO_PI)
        ioctl(fd, _uapi.TUNSETIFF, made, "TUNSETIFF")
        ifname = name_of(made)
        _write_gen_mode(ifname, "1")
        return _tried(fd, ifname, born)
    finally:
        close_fd(fd)


def _tried(fd: int, ifname: str, born: float) -> Trial:
    ifindex = _ifindex(fd)
    heard = udev.listens() and _settles(ifindex, born)
    state: str | None = None
    if runs_here(_NETWORKD):
        _within(NETWORKD_TIME, lambda: _networkd(ifindex).get("ADMIN_STATE") in _DECIDED)
        state = _networkd(ifindex).get("ADMIN_STATE", "")
    renamed = get_name(fd)
    with _sysfs() as sysfs:
        assigned = _assigned(sysfs, renamed, ifindex)
        if heard:
            _add_again(sysfs, renamed, ifindex)
    return Trial(
        ifname,
        renamed,
        heard,
        udev.link_file(ifindex) if heard else "",
        None if assigned is None else assigned != _ADDR_SET,
        _gen_mode(renamed) in ("1", ""),
        state,
        _networkd(ifindex).get("NETWORK_FILE", ""),
    )


def _settles(ifindex: int, since: float) -> bool:
    """udevd is done with what it heard of a link since then, all that its rules run included."""
    return _within(UDEV_TIME, lambda: udev.is_done(ifindex, since) and not os.path.exists(_QUEUE))


def _add_again(sysfs: int, ifname: str, ifindex: int) -> None:
    """Have udevd apply the host's sysctl settings once more: it may have done so before our own mode was written.

    What ``udevadm trigger --action=add`` does. Nothing where this sysfs is of another namespace, or closed to us.
    """
    if _read(f"class/net/{ifname}/ifindex", sysfs) != str(ifindex):
        return
    with contextlib.suppress(OSError):
        fd = os.open(f"class/net/{ifname}/uevent", os.O_WRONLY | os.O_CLOEXEC, dir_fd=sysfs)
        try:
            _write_gen_mode(ifname, "1")
            time.sleep(2 * udev.TICK)  # so that what it writes now is newer than what it wrote before
            again = time.time()
            os.write(fd, b"add")
        finally:
            close_fd(fd)
        _settles(ifindex, again)


def runs_here(command: str) -> bool:
    """A process of that name is in this network namespace, or in one that we may not know."""
    return any(_is_here(pid) for pid in os.listdir("/proc") if pid.isdigit() and _read(f"/proc/{pid}/comm") == command)


def _is_here(pid: str) -> bool:
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), os.stat("/proc/thread-self/ns/net"))
    except PermissionError:
        return True
    except OSError:  # it has just ended
        return False


def _ifindex(fd: int) -> int:
    """Whatever it is called at the moment: a udevd that renames it may just be doing so."""
    with contextlib.suppress(OSError):
        return socket.if_nametoindex(get_name(fd))
    return socket.if_nametoindex(get_name(fd))


def _gen_mode(ifname: str) -> str:
    return _read(f"/proc/sys/net/ipv6/conf/{ifname}/addr_gen_mode")


def _write_gen_mode(ifname: str, mode: str) -> None:
    """Where there is IPv6, and /proc/sys is not closed to us."""
    with contextlib.suppress(OSError), open(f"/proc/sys/net/ipv6/conf/{ifname}/addr_gen_mode", "w") as file:
        file.write(mode)


def _networkd(ifindex: int) -> dict[str, str]:
    return _settings(f"{_NETWORKD_LINKS}/{ifindex}")


def _within(seconds: float, done: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


# --- bridges ---------------------------------------------------------------------------------------------


class Switch(NamedTuple):
    """A bridge, and how it treats its ports.

    ``mute`` seconds pass before a new port forwards anything. ``follows`` its ports with its MAC, where nobody has
    given it one; None where that cannot be known. ``anchored`` by a port whose MAC is lower than any of ours.
    ``managed`` by NetworkManager, which made it. ``netfilter``: the families (``ip``, ``ip6``) that pass netfilter on
    this bridge, whatever the namespace's own settings say.
    """

    name: str
    mac: str
    up: bool
    mute: int
    follows: bool | None
    anchored: bool
    managed: bool
    netfilter: tuple[str, ...]


def list_switches() -> list[Switch]:
    """Every bridge of this namespace."""
    links, managed = bridge.list_links(), runs_here(_MANAGER)
    with _sysfs() as sysfs:
        return [_switch(link, links, sysfs, managed) for link in links if bridge.kind(link) == "bridge"]


def _switch(link: Any, links: list[Any], sysfs: int, managed: bool) -> Switch:
    data = link.get("linkinfo").get("data")
    index, name = link["index"], str(link.get("ifname"))
    macs = [str(port.get("address")) for port in links if port.get("master") == index and bridge.kind(port) != "tun"]
    stp = bool(data.get("br_stp_state"))
    assigned = _assigned(sysfs, name, index)
    return Switch(
        name=name,
        mac=str(link.get("address")),
        up=bool(link["flags"] & _uapi.IFF_UP),
        mute=2 * int(data.get("br_forward_delay")) // os.sysconf("SC_CLK_TCK") if stp else 0,
        follows=None if assigned is None else assigned != _ADDR_SET,
        anchored=any(mac < _TAPS_MACS for mac in macs),
        managed=managed and _settings(f"{_MANAGER_DEVICES}/{index}").get("nm-owned") == "true",
        netfilter=tuple(family for family, tables in _TABLES.items() if data.get(f"br_nf_call_{tables}")),
    )


# --- sysfs, which alone says how a link came by its MAC ------------------------------------------------------


def _assigned(sysfs: int, name: str, index: int) -> str | None:
    """The link's addr_assign_type; None where this sysfs is not of the namespace that it is in."""
    if _read(f"class/net/{name}/ifindex", sysfs) != str(index):
        return None
    return _read(f"class/net/{name}/addr_assign_type", sysfs)


@contextlib.contextmanager
def _sysfs() -> Iterator[int]:
    """An fd of a sysfs of this thread's network namespace: /sys shows that of whoever mounted it."""
    fd = _mount_sysfs()
    if fd < 0:  # not allowed
        with contextlib.suppress(OSError):
            fd = os.open("/sys", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        if fd >= 0:
            close_fd(fd)


def _mount_sysfs() -> int:
    """One that is mounted nowhere, and goes with its fd (fsopen(2), fsmount(2)); -1 where that is refused."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    fsopen, fsconfig, fsmount, create, cloexec = 430, 431, 432, 6, 1  # on every architecture but alpha and mips
    context = call(fsopen, b"sysfs", cloexec)
    if context < 0:
        return -1
    try:
        refused = call(fsconfig, context, create, None, None, 0)
        return -1 if refused else int(call(fsmount, context, cloexec, 0))
    finally:
        close_fd(context)


# --- netfilter -------------------------------------------------------------------------------------------


def filtered_families(switches: Iterable[Switch]) -> set[str]:
    """Of ``ip`` and ``ip6``, those whose frames netfilter gets to see when a bridge forwards them (br_netfilter)."""
    found = {family for switch in switches for family in switch.netfilter}
    return found | {family for family, tables in _TABLES.items() if _read(f"{_NF_CALL}{tables}") == "1"}


def dropping_policies(families: Collection[str]) -> list[str] | None:
    """The chains that drop what is forwarded unless a rule accepts it; None where nobody could be asked."""
    answers = [_nft_drops(said, families) for said in _ask("nft", "-j", "list", "chains")]
    for family in families:
        tool = _TABLES[family]
        legacy = "filter" in _read(f"/proc/thread-self/net/{family}_tables_names").split()
        if legacy or _found("nft") is None:
            name = f"{tool}-legacy" if legacy and _found(f"{tool}-legacy") else tool
            answers += [_iptables_drops(name, said) for said in _ask(name, "-S", "FORWARD")]
    return [chain for answer in answers for chain in answer] if answers else None


def _nft_drops(said: str, families: Collection[str]) -> list[str]:
    chains = [entry["chain"] for entry in json.loads(said)["nftables"] if "chain" in entry]
    return [
        f"nft chain {chain['family']} {chain['table']} {chain['name']}"
        for chain in chains
        if (chain.get("hook"), chain.get("policy")) == ("forward", "drop") and chain["family"] in (*families, "inet")
    ]


def _iptables_drops(tool: str, said: str) -> list[str]:
    return [f"{tool} FORWARD"] if "-P FORWARD DROP" in said.splitlines() else []


def _ask(*command: str) -> list[str]:
    """What a tool says, in a list; an empty one where it is not there or may not."""
    path = _found(command[0])
    if path is None:
        return []
    done = subprocess.run([path, *command[1:]], capture_output=True, text=True, check=False)
    return [] if done.returncode else [done.stdout]


def _found(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


# --- files -----------------------------------------------------------------------------------------------


def _settings(path: str) -> dict[str, str]:
    """The lines KEY=VALUE of a file."""
    pairs = (line.partition("=") for line in _read(path).splitlines())
    return {key: value for key, equals, value in pairs if equals}


def _read(path: str, directory: int | None = None) -> str:
    """A file without its last newline; empty where there is none."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        with open(fd, errors="replace") as file:
            return file.read().rstrip("\n")
    return ""
