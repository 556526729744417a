"""Network namespaces: run a function inside another one, and make fresh ones.

A thread's namespace is the thread's own, so work in another namespace is done by a thread that is made for
it and ends with it: no caller's thread is ever left in the wrong one.
"""

from __future__ import annotations

import contextlib
import errno as _errno
import os
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from vhostnet.errors import HostError, NotPermitted, ResourceExhausted, SpecError
from vhostnet.process.files import close_fd
from vhostnet.process.forks import under_way

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

_SYS_ADMIN = "entering one needs CAP_SYS_ADMIN in the user namespace that owns it, and in this process's own"
_REMEDIES = {"open": "it must be readable: one in /proc is its process's owner's and root's (CAP_SYS_PTRACE)"}

_HERE: Final = "/proc/thread-self/ns/net"
NAMED: Final = "/run/netns"  # where ip-netns(8) keeps those that have a name

NetNs = str | os.PathLike[str] | int
_T = TypeVar("_T")


def call_inside(netns: NetNs | None, function: Callable[..., _T], *arguments: Any) -> _T:
    """What *function* returns or raises, called inside *netns*: a name, a path or an fd of one.

    What has no slash is a name, as ip-netns(8) has them: ``vms`` is /run/netns/vms. None runs it here.
    Raises HostError with act ``NETNS`` when the namespace cannot be entered.
    """
    if netns is None:
        return function(*arguments)

    def inside() -> _T:
        _enter(netns)
        return function(*arguments)

    return call_aside(inside)


def call_aside(function: Callable[[], _T]) -> _T:
    """What *function* returns or raises, run on a thread of its own, in this thread's namespace.

    For pyroute2, too: it runs an event loop, and this thread may have one running already.
    """
    outcome: list[_T] = []
    failure: list[BaseException] = []

    asking = threading.get_ident()

    def work() -> None:
        try:
            with under_way.aside(asking):
                outcome.append(function())
        except BaseException as error:  # carried over to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=work, name="vhostnet-netns")
    try:
        thread.start()
    except RuntimeError as error:
        raise no_thread(error) from None
    thread.join()
    under_way.back()
    if failure:
        raise failure[0]
    return outcome[0]


def no_thread(error: RuntimeError) -> HostError:
    """Python does not say why it could not start one; EAGAIN is what pthread_create(3) has for it."""
    remedy = "raise the limit on threads (ulimit -u, TasksMax=)"
    return ResourceExhausted(_errno.EAGAIN, str(error), act="THREAD", call="pthread_create", remedy=remedy)


def _enter(netns: NetNs) -> None:
    if isinstance(netns, int):
        _libc("setns", netns, CLONE_NEWNET, what=f"fd {netns}")
        return
    name, path = os.fspath(netns), path_of(netns)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _libc("setns", fd, CLONE_NEWNET, what=path)
        finally:
            close_fd(fd)
    except HostError as error:
        raise _of_name(name, error) from None
    except OSError as error:
        raise _of_name(name, _refused(error.errno or 0, path, "open")) from None


def path_of(netns: str | os.PathLike[str]) -> str:
    """The file of a namespace that has a name; a path is one already. Raises SpecError for what can be neither."""
    path = os.fspath(netns)
    if path in ("", ".", "..") or "\0" in path:
        raise SpecError("is not allowed", attribute="netns", value=path, expected="a name (ip netns), a path or an fd")
    return path if "/" in path else f"{NAMED}/{path}"


def _of_name(name: str, error: HostError) -> HostError:
    """The same, with what ip-netns(8) does about a name that stands for nothing."""
    if "/" in name or error.errno not in (_errno.ENOENT, _errno.EINVAL):
        return error
    if error.errno == _errno.EINVAL:  # the file that a namespace is mounted on
        error.remedy = f"no namespace is mounted there: ip netns del {name}, and ip netns add {name}"
    elif name.isdecimal():
        error.remedy = f"digits are a name, too: ip netns add {name}; the namespace of a process is /proc/{name}/ns/net"
    else:
        error.remedy = f"make it: ip netns add {name}"
    return error


class Home:
    """The network namespace that this thread is in now, by its fd, until the last who holds it has let go.

    Whoever makes it holds it. Raises HostError.
    """

    def __init__(self) -> None:
        try:
            self._which: Final = _here()
            self.fd: Final = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _refused(error.errno or 0, _HERE, "open") from None
        self._owned = [self.fd]  # whoever pops it closes it
        self._holders = [None]

    def hold(self) -> Home:
        """The same; whoever calls this holds it, too."""
        self._holders.append(None)
        return self

    def release(self) -> None:
        """Let go of it."""
        self._holders.pop()
        with contextlib.suppress(IndexError):
            if not self._holders:
                close_fd(self._owned.pop())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Home) and self._which == other._which

    def __hash__(self) -> int:
        return hash(self._which)

    def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """What *function* returns or raises, called there: by this thread, if it is there. Raises HostError."""
        return call_inside(None if _here() == self._which else self.fd, function, *arguments)


def _here() -> tuple[int, int]:
    """This thread's network namespace, to compare with another."""
    status = os.stat(_HERE)
    return status.st_dev, status.st_ino


def unshare_net() -> None:
    """Move this thread into a network namespace of its own, new and empty."""
    _libc("unshare", CLONE_NEWNET, what="a new network namespace")


def become_root_of_own() -> None:
    """Move this process into a user and a network namespace of its own, and be root there.

    What an unprivileged user may do where the host allows user namespaces. The process must have one
    thread.
    """
    uid, gid = os.getuid(), os.getgid()
    _libc("unshare", CLONE_NEWUSER | CLONE_NEWNET, what="a user namespace")
    for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        try:
            with open(f"/proc/self/{file}", "w") as control:
                control.write(text)
        except OSError as error:
            raise _refused(error.errno or 0, "a user namespace", file) from None


def _libc(call: str, *arguments: int, what: str) -> None:
    """os.setns and os.unshare, which Python has from 3.12 on only."""
    import ctypes

    if getattr(ctypes.CDLL(None, use_errno=True), call)(*arguments) != 0:
        raise _refused(ctypes.get_errno(), what, call)


def _refused(errno: int, what: str, call: str) -> HostError:
    problem = f"{what}: {os.strerror(errno)}"
    if isinstance(OSError(errno, ""), PermissionError):
        return NotPermitted(errno, problem, act="NETNS", call=call, remedy=_REMEDIES.get(call, _SYS_ADMIN))
    return HostError(
        errno, problem, act="NETNS", call=call, remedy="give a network namespace: its name (ip netns), a path or an fd"
    )
