"""QEMU's bridge helper: setuid root, it gives who has no privilege a TAP on a bridge that its rules allow.

It is started for each TAP, and hands it over through a socket. The TAP has one queue, the bridge's MTU, and is up.
"""

from __future__ import annotations

import array
import os
import shlex
import socket
from typing import Final

from vhostnet.process.files import close_fd

# Where Debian and Arch, Fedora, openSUSE and NixOS have it, and who builds QEMU himself.
PATHS: Final = (
    "/usr/lib/qemu/qemu-bridge-helper",
    "/usr/libexec/qemu-bridge-helper",
    "/usr/lib/qemu-bridge-helper",
    "/run/wrappers/bin/qemu-bridge-helper",
    "/usr/local/libexec/qemu-bridge-helper",
)
PATIENCE: Final = 10.0  # seconds; it takes a few milliseconds

# What is in its message -> what to do.
_REMEDIES: Final = (
    ("acl", "let it: echo {rule} >>/etc/qemu/bridge.conf"),
    (
        "not permitted",
        "it has no privilege itself: chmod u+s {path}, or setcap cap_net_admin+ep {path}; and not with no_new_privs",
    ),
)


class HelperRefused(Exception):
    """It gave no TAP; what it said, and what to do."""


def find_helper() -> str | None:
    """The path of the one that is here and may be run; never one that only PATH has."""
    return next((path for path in PATHS if os.access(path, os.X_OK)), None)


def helped_tap(path: str, bridge: str, *, vnet_hdr: bool) -> int:
    """The fd (O_CLOEXEC, the caller's) of a new TAP on *bridge*, by the helper at *path*. Raises HelperRefused."""
    import subprocess  # who has privileges needs none of it

    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, its:
        vnet = ["--use-vnet"] if vnet_hdr else []
        command = [path, *vnet, f"--br={bridge}", f"--fd={its.fileno()}"]
        try:
            done = subprocess.run(
                command,
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PATIENCE,
                check=False,
            )
        except OSError as error:
            raise HelperRefused(f"{path}: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise HelperRefused(f"{path} has not answered in {PATIENCE:.0f} s") from None
        its.close()  # what it did not send will not come
        fd = _received(ours)
    if fd is None:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise HelperRefused(_refusal(path, bridge, said or f"exit code {done.returncode}"))
    return fd


def _received(sock: socket.socket) -> int | None:
    """The fd that was sent, if one was."""
    fds = array.array("i")
    _, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    for surplus in fds[1:]:
        close_fd(surplus)
    return fds[0] if fds else None


def _refusal(path: str, bridge: str, said: str) -> str:
    remedy = next((remedy for sign, remedy in _REMEDIES if sign in said), "")
    remedy = remedy.format(path=path, rule=shlex.quote(f"allow {bridge}"))
    return f"{path} said {said!r}" + (f": {remedy}" if remedy else "")
