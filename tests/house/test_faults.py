"""Some of the fault sweep; all of it, vhost-net with it, is ``make test-faults``."""

import errno
import json
import os
import subprocess
import sys

import pytest
from conftest import BRIDGE, ROOT, need

NONE_WRONG = "0 leak, 0 wrong error, 0 second error, 0 engines differ; 0 wrong in all"


def sweep(*arguments):
    """The line that sums it up."""
    command = [str(ROOT / "tests" / "faults" / "apart"), sys.executable, "-m", "tests.faults", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.tap
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whatever_is_refused_nothing_is_left_and_the_error_says_what_it_was():
    assert NONE_WRONG in sweep("opening", "--errnos", "EIO")


@pytest.mark.tap
@pytest.mark.ovs
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nor_of_scripts_addresses_and_ports_of_open_vswitch():
    assert NONE_WRONG in sweep("slow", "--errnos", "EIO")


# --- by strace, which is not our shim --------------------------------------------------------------------

OPEN = """
import json, os, sys, vhostnet
def state():  # without a netlink socket, which would be counted
    paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    links = [line.partition(":")[0] for line in open("/proc/self/net/dev")]
    return [(path, os.readlink(path)) for path in paths if os.path.exists(path)], links
spec = vhostnet.InterfaceSpec(bridge=sys.argv[2], ifname="mine", queues=2, vhost="off")
vhostnet.select_engine(sys.argv[1])  # libffi keeps an fd of its own from when ctypes is imported
before = state()
try:
    vhostnet.open_nic(spec, engine=sys.argv[1]).close()
    error = None
except vhostnet.HostError as refused:
    error = refused.errno, refused.act, refused.call, refused.queue
print(json.dumps([error, state() == before]))
"""
TUN = ("-P", "/dev/net/tun")


@pytest.mark.tap
@pytest.mark.slow
@pytest.mark.parametrize(
    ("inject", "refused"),
    [
        (("openat:error=EMFILE:when=2", *TUN), (errno.EMFILE, "TAP_OPEN", "open", 0)),  # the first asks for features
        (("openat:error=ENOMEM:when=3", *TUN), (errno.ENOMEM, "TAP_OPEN", "open", 1)),
        (("ioctl:error=EPERM:when=2", *TUN), (errno.EPERM, "TAP_OPEN", "TUNSETIFF", 0)),
        (("ioctl:error=E2BIG:when=4", *TUN), (errno.E2BIG, "TAP_OPEN", "TUNSETIFF", 1)),
        (("ioctl:error=EBADFD:when=6", *TUN), (errno.EBADFD, "TAP_OPEN", "SIOCGIFHWADDR", None)),
        (("ioctl:error=EINTR:when=2..4", *TUN), None),
        (("socket:error=ENFILE:when=1",), (errno.ENFILE, "TAP_OPEN", "socket", None)),
        (("sendto:error=ENOBUFS:when=2",), (errno.ENOBUFS, "QDISC", "send", None)),
        (("recvmsg:error=EAGAIN:when=3",), (errno.EAGAIN, "LINK", "recv", None)),
        (("sendto:error=EINTR:when=1",), None),
    ],
)
def test_what_the_kernel_itself_is_made_to_refuse(engine, net, bridge, inject, refused):
    need("strace")
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={inject[0]}", *inject[1:]]
    command += [sys.executable, "-c", OPEN, engine, BRIDGE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [refused and list(refused), True]
