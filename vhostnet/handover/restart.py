"""A manager's restart: its NICs wait for it in systemd's fd store, or go through exec().

In the store each fd has a name of its own, since systemd gives them back in whatever order: the NIC's key, and what of
it the fd is. What is said of the NIC is there as well, in a memfd.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from vhostnet.errors import HandoverError, VhostnetError, VhostnetWarning
from vhostnet.handover.proof import proven, told_of
from vhostnet.host.marks import read_mark
from vhostnet.host.nic import Nic
from vhostnet.process.files import close_fd
from vhostnet.process.notify import PATIENCE, is_service, notify

_NAME: Final = re.compile(r"vhostnet-([A-Za-z0-9_.-]{1,64})-(about|tap|vhost|netns)-([0-9]{1,20})-([0-9]{1,20})")
_EXEC: Final = "VHOSTNET_NICS"
_FIRST: Final = 3  # SD_LISTEN_FDS_START

_stored: dict[str, set[str]] = {}  # by a NIC's key, the names of what systemd has of it
_claimed: list[str] = []  # that this process has what systemd passed to it, by its pid


def store_nics(nics: Iterable[Nic]) -> None:
    """Have systemd keep these NICs for this service's next process, which gets them by ``restore_nics()``.

    They stay this process's, too; what has changed since it was stored (``update()``, ``reset_queues()``) is stored by
    calling it again. A NIC is there for as long as systemd has it: ``unstore_nics()`` before it is closed. The unit
    needs ``FileDescriptorStoreMax=`` of as many as there are fds, and one a NIC; ``FileDescriptorStorePreserve=yes``
    (systemd 254) for one that is stopped, not restarted. Raises HandoverError without a systemd that takes them, and
    then it has those before, which are named by no error; NicClosed.
    """
    nics = list(nics)
    _check_room(nics)
    for nic in nics:
        key = _key(nic)
        named = _named(nic, key)
        had = _stored.get(key, set())
        try:
            for name, fd in named.items():
                if name not in had:
                    _notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", fd)  # a queue that is detached looks broken
        finally:
            close_fd(next(iter(named.values())))
        _stored[key] = set(named)
        _forget(had - set(named))
    _await()


def unstore_nics(nics: Iterable[Nic]) -> None:
    """systemd lets go of these NICs, which are still this process's. Those that it does not have are passed over."""
    for nic in nics:
        _forget(_stored.pop(_key(nic), set()))
    _await()


@contextlib.contextmanager
def inherit_nics(nics: Sequence[Nic]) -> Iterator[dict[str, str]]:
    """What to add to the environment of the program that this process becomes, which has them by ``restore_nics()``::

        with vhostnet.inherit_nics(nics) as more:
            os.execve(path, argv, {**os.environ, **more})

    In there their fds are inheritable. Where exec() fails all is as it was. Raises NicClosed.
    """
    about = _memfd([{**told_of(nic), "fds": [*nic.fds, *nic.home_fds]} for nic in nics])
    fds = [about, *(fd for nic in nics for fd in (*nic.fds, *nic.home_fds))]
    try:
        for fd in fds:
            os.set_inheritable(fd, True)
        yield {_EXEC: f"{os.getpid()}:{about}"}
    finally:
        for fd in fds:
            os.set_inheritable(fd, False)
        close_fd(about)


def restore_nics() -> list[Nic]:
    """The NICs that were this process's before its exec(), and those that systemd has kept for it.

    Each is proven as ``recv_nics()`` does; one that is not what was said of it any more is closed, with a
    VhostnetWarning. Of what systemd has passed all else is left alone. Nothing is there when it is called again.
    """
    found = [(told, tuple(told.pop("fds"))) for told in _through_exec()]
    found += _from_store()
    nics = []
    for told, fds in found:
        try:
            nics.append(proven(told, fds))
        except (VhostnetError, ValueError, TypeError) as error:
            for fd in fds:
                close_fd(fd)
            warnings.warn(f"{told.get('ifname')} is not restored: {error}", VhostnetWarning, stacklevel=2)
    kept = {_key(nic) for nic in nics}
    for key in [key for key in _stored if key not in kept]:
        _forget(_stored.pop(key))
    return nics


# --- systemd's store -------------------------------------------------------------------------------------


def _key(nic: Nic) -> str:
    """The same in every process that has it; one that was adopted has no mark."""
    mark = read_mark(nic.mark)
    return mark.uuid if mark else nic.ifname


def _check_room(nics: Sequence[Nic]) -> None:
    """What is too much systemd closes, and says so in its log alone; before 254 it does not tell how much it takes."""
    most = os.environ.get("FDSTORE", "")
    others = sum(len(names) for key, names in _stored.items() if key not in {_key(nic) for nic in nics})
    needed = others + sum(len(nic.fds) + len(nic.home_fds) + 2 for nic in nics)  # two memfds for a moment
    if most.isdecimal() and needed > int(most):
        raise HandoverError(
            f"systemd keeps {most} fds of this service, and {needed} are needed: FileDescriptorStoreMax="
        )


def _named(nic: Nic, key: str) -> dict[str, int]:
    """The fds by their names: first a memfd, the caller's to close. A name never stands for another fd than before."""
    told = told_of(nic)
    taps = {f"vhostnet-{key}-tap-{queue}-0": fd for queue, fd in enumerate(nic.tap_fds)}
    vhosts = {f"vhostnet-{key}-vhost-{queue}-{nic.resets}": fd for queue, fd in enumerate(nic.vhost_fds)}
    homes = {f"vhostnet-{key}-netns-0-0": fd for fd in nic.home_fds}
    return {f"vhostnet-{key}-about-0-{time.time_ns()}": _memfd(told), **taps, **vhosts, **homes}


def _memfd(said: Any) -> int:
    fd = os.memfd_create("vhostnet")
    with open(fd, "wb", closefd=False) as file:
        file.write(json.dumps(said).encode())
    return fd


def _notify(text: str, *fds: int) -> None:
    if not is_service():
        raise HandoverError("no systemd keeps NICs for this process: it is no service with NotifyAccess=main")
    try:
        notify(text, *fds)
    except OSError as error:
        raise HandoverError(f"systemd does not take them ({os.environ['NOTIFY_SOCKET']}): {error}") from None


def _forget(names: Iterable[str]) -> None:
    for name in sorted(names):
        _notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def _await() -> None:
    """Until systemd has done what it was told: of a process that has ended by then it takes nothing (sd_notify(3))."""
    if not is_service():
        return
    ours, its = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            _notify("BARRIER=1", its)
        finally:
            close_fd(its)
        poll = select.poll()
        poll.register(ours, 0)
        if not poll.poll(PATIENCE * 1000):
            raise HandoverError(f"systemd has not answered in {PATIENCE:g} s")
    finally:
        close_fd(ours)


def _from_store() -> list[tuple[dict[str, Any], tuple[int, ...]]]:
    """What is said of each, and its fds in their order. What is left over of one is closed, there and here."""
    parts: defaultdict[str, dict[tuple[str, int, int], int]] = defaultdict(dict)
    for fd, name in _passed():
        if match := _NAME.fullmatch(name):
            os.set_inheritable(fd, False)
            parts[match[1]][match[2], int(match[3]), int(match[4])] = fd
            _stored.setdefault(match[1], set()).add(name)
    found = []
    for key, fds in parts.items():
        abouts = sorted(name for name in fds if name[0] == "about")
        if abouts:
            about = fds.pop(abouts[-1])
            told = _read(about)
            close_fd(about)
            found.append((abouts[-1], told, tuple(fds.pop(name) for name in _wanted(told) if name in fds)))
            stale = {f"vhostnet-{key}-{what}-{number}-{serial}" for what, number, serial in fds}
            _stored[key] -= stale
            _forget(stale)
        for fd in fds.values():
            close_fd(fd)
    return [(told, wanted) for _, told, wanted in sorted(found, key=lambda one: one[0])]  # as they were stored


def _wanted(told: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    for queue in range(told["tap"]):
        yield "tap", queue, 0
    for queue in range(told["vhost"]):
        yield "vhost", queue, told["resets"]
    yield "netns", 0, 0


def _read(memfd: int) -> Any:
    with open(memfd, "rb", closefd=False) as file:
        file.seek(0)
        return json.loads(file.read())


def _passed() -> Iterator[tuple[int, str]]:
    """What systemd has passed to this process, by number and name (sd_listen_fds_with_names(3))."""
    pid = str(os.getpid())
    if os.environ.get("LISTEN_PID") != pid or pid in _claimed:
        return
    _claimed.append(pid)
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    for number in range(int(os.environ.get("LISTEN_FDS", "0"))):
        yield _FIRST + number, names[number] if number < len(names) else ""


def _through_exec() -> list[dict[str, Any]]:
    pid, _, number = os.environ.pop(_EXEC, "").partition(":")
    if pid != str(os.getpid()):
        return []
    about = int(number)
    told: list[dict[str, Any]] = _read(about)
    for fd in [about, *(fd for one in told for fd in one["fds"])]:
        os.set_inheritable(fd, False)
    close_fd(about)
    return told
