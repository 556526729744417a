"""A user's script about a NIC, run as libvirt means it: with one privilege, and with nothing of ours.

Of the capabilities it has CAP_NET_ADMIN alone, of the environment what follows, of the fds none. The thread that starts
it is one of its own, and in the network namespace of its caller: a thread's capabilities are the thread's, and a child
has those of the thread that started it. So no code of ours runs between fork and exec.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
from typing import Final

from vhostnet.process.netns import call_aside

PATIENCE: Final = 60.0  # seconds; libvirt waits for ever, and the domain with it
SHOWN: Final = 500  # bytes of what it said last
ENVIRONMENT: Final = ("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "LD_PRELOAD", "LD_LIBRARY_PATH")  # virCommand's

_NET_ADMIN: Final = 12
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT = 23, 24, 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_CAPABILITY_VERSION_3: Final = 0x20080522


def run_script(path: str, ifname: str) -> None:
    """Run it, and wait until it has done.

    Raises OSError, its ``filename`` what was refused: ``exit 1``, with the last it said on stderr, ``execve``, ...
    """
    call_aside(lambda: _run_here(path, ifname))


def _run_here(path: str, ifname: str) -> None:
    _keep_net_admin()
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ} | {"LC_ALL": "C"}
    said = os.memfd_create("stderr")  # and no pipe: a daemon that it leaves would keep that open
    try:
        status = _wait(_start(path, ifname, environment, said), path)
        words = _last_words(said)
    finally:
        os.close(said)
    if status:
        how = f"exit {status}" if status > 0 else f"signal {-status}"
        raise OSError(errno.EIO, f"{path}: {words}" if words else f"{path} says nothing of why", how)


def _start(path: str, ifname: str, environment: dict[str, str], said: int) -> subprocess.Popen[bytes]:
    nothing = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            [path, ifname],
            stdin=nothing,
            stdout=nothing,
            stderr=said,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}", "execve") from None


def _wait(script: subprocess.Popen[bytes], path: str) -> int:
    with script:
        try:
            return script.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise OSError(errno.ETIMEDOUT, f"{path} has not ended after {PATIENCE:.0f} s", "wait") from None
        finally:
            if script.poll() is None:  # nobody waits for it any more
                os.killpg(script.pid, signal.SIGKILL)


def _last_words(said: int) -> str:
    """On one line, and such that none of it can forge another."""
    size = os.fstat(said).st_size
    text = os.pread(said, SHOWN, max(0, size - SHOWN)).decode(errors="replace")
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


# --- capabilities ----------------------------------------------------------------------------------------


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _keep_net_admin() -> None:
    """This thread, and whatever it starts, has no other privilege than CAP_NET_ADMIN; nor that, where it had it not."""
    libc = ctypes.CDLL(None, use_errno=True)
    _drop_bounding(libc)
    header = _Header(_CAPABILITY_VERSION_3, 0)
    sets = (_Sets * 2)()
    _check(libc.capget(ctypes.byref(header), sets), "capget")
    kept = sets[0].permitted & 1 << _NET_ADMIN
    sets[0], sets[1] = _Sets(kept, kept, kept), _Sets()
    _check(libc.capset(ctypes.byref(header), sets), "capset")
    if kept:  # whoever is not root would lose it on exec
        _check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _NET_ADMIN, 0, 0), "prctl")


def _drop_bounding(libc: ctypes.CDLL) -> None:
    """Root gets on exec what the bounding set has. Others do not, so that it is no matter that they may not do this."""
    number = 0
    while (there := libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0)) >= 0:
        if there and number != _NET_ADMIN and libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            if os.geteuid() != 0:
                return
            _check(-1, "PR_CAPBSET_DROP")
        number += 1


def _check(rc: int, call: str) -> None:
    if rc < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), call)
