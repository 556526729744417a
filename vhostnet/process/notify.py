"""What a service tells the service manager that started it: datagrams, as sd_notify(3) sends them."""

from __future__ import annotations

import array
import os
import socket
from typing import Final

PATIENCE: Final = 30.0  # seconds


def is_service() -> bool:
    """A service manager listens to this process."""
    return os.environ.get("NOTIFY_SOCKET", "")[:1] in ("/", "@")


def notify(text: str, *fds: int) -> None:
    """Lines such as ``READY=1``, and copies of fds where they are about those. Raises OSError."""
    path = os.environ["NOTIFY_SOCKET"]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(PATIENCE)
        sock.connect("\0" + path[1:] if path[0] == "@" else path)
        sock.sendmsg([text.encode()], rights)
