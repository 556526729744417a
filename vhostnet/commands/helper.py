"""vhostnet helper: what QEMU and libvirt run in the place of QEMU's bridge helper, once for each NIC.

Rules, protocol and exit codes are that one's; the NIC is made as any of ours. A virtual machine waits for it meanwhile,
so both entry points lead past cli.py and its parser: 3 of 53 ms.
"""

from __future__ import annotations

import argparse
import errno
import os
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from vhostnet import InterfaceSpec, Nic, NotPermitted, VhostnetError, select_engine
from vhostnet.commands.options import BROKER, HELPER, Parser, helper_options
from vhostnet.commands.shared import UsageError, await_udev
from vhostnet.commands.showing import warnings_shown
from vhostnet.host.opening import How, make_nics
from vhostnet.others.bridge_acl import AclRefused, check_acl
from vhostnet.process.files import close_fd

CAP_NET_ADMIN = 12
_NAMES = "tap%d"  # which firewalls may know
_SETUID = "setuid root is no way for a Python program, which heeds the environment of whoever runs it"


class _Parser(Parser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: error: {message}\n")  # 2 for our other commands


def main(arguments: Sequence[str], prog: str) -> int:
    """Run the command and return its exit code."""
    return run(_Parser(prog=prog, description=HELPER, parents=[helper_options()]).parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """0, and the NIC is the receiver's; or 1, and there is none."""
    with warnings_shown():
        try:
            _refuse_setuid()
            by_broker = os.path.exists(BROKER) and not _may()
            if not by_broker:  # whose policy says what is allowed
                check_acl(options.br)
            with _receiver(options.fd) as receiver:
                _give(receiver, _opened(options, by_broker=by_broker), options.fd)
        except (AclRefused, UsageError, VhostnetError) as error:
            print(f"vhostnet helper: {error}", file=sys.stderr)
            return 1
    return 0


def _refuse_setuid() -> None:
    if (os.geteuid(), os.getegid()) != (os.getuid(), os.getgid()):
        raise NotPermitted(errno.EPERM, _SETUID, remedy="give it CAP_NET_ADMIN otherwise: docs/security.md has ways")


def _receiver(fd: int) -> socket.socket:
    """The socket, which is ours: it was opened for this process."""
    try:
        receiver = socket.socket(fileno=fd)
        if receiver.family == socket.AF_UNIX:
            return receiver
        receiver.close()
        problem = "a socket of another family"
    except OSError as error:
        problem = str(error.strerror)
    raise UsageError(f"--fd={fd}: {problem}; expected a Unix socket, with whoever runs this at its other end")


def _may() -> bool:
    """This process has CAP_NET_ADMIN (proc(5), status: CapEff)."""
    with open("/proc/self/status") as status:
        effective = next((line.split()[1] for line in status if line.startswith("CapEff")), "0")
    return bool(int(effective, 16) >> CAP_NET_ADMIN & 1)


def _opened(options: argparse.Namespace, *, by_broker: bool) -> Nic:
    """By this process, or where it may not by a broker that serves here."""
    model = "virtio" if options.use_vnet else "e1000"
    if by_broker:
        from vhostnet.broker.client import connect

        return connect(BROKER).open_nic(InterfaceSpec(bridge=options.br, model=model, vhost="off"))
    spec = InterfaceSpec(bridge=options.br, model=model, ifname=_NAMES, vhost="off")
    try:
        return make_nics(select_engine(), [spec], How("off", "noqueue", helped=False))[0]
    except NotPermitted as error:
        error.remedy += "; setuid does nothing for a script"
        raise


def _give(receiver: socket.socket, nic: Nic, fd: int) -> None:
    """The NIC goes with whoever has received it, or here when nobody has."""
    with nic:
        await_udev([nic])
        try:
            socket.send_fds(receiver, [b"\0"], nic.tap_fds)
        except OSError as error:
            raise UsageError(f"failed to write fd to unix socket {fd}: {error.strerror}") from None
        for tap in nic.detach().tap:
            close_fd(tap)
