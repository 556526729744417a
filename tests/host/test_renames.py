"""Names that change between two kernel calls of one NIC: it is made of its own device, or not at all."""

import os
import subprocess
import sys

import pytest
from conftest import BRIDGE, link_names
from kernel import link

pytestmark = [pytest.mark.tap, pytest.mark.slow, pytest.mark.usefixtures("net", "bridge")]

# Around the n-th call of its kind ours and the decoy have each other's names.
SWAP = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static int (*real_ioctl)(int, unsigned long, void *);

static void rename_link(const char *old, const char *new)
{
    struct ifreq request = { 0 };
    int fd = socket(AF_INET, SOCK_DGRAM, 0);

    strcpy(request.ifr_name, old);
    strcpy(request.ifr_newname, new);
    real_ioctl(fd, SIOCSIFNAME, &request);
    close(fd);
}

static void swap(void)
{
    rename_link("mine", "third");
    rename_link("decoy", "mine");
    rename_link("third", "decoy");
}

static int is_the_time(const char *call)
{
    static int left;
    const char *wanted = getenv("SWAP");

    if (!left)
        left = atoi(strchr(wanted, ':') + 1) + 1;
    return strncmp(wanted, call, strlen(call)) == 0 && --left == 1;
}

int ioctl(int fd, unsigned long request, ...)
{
    const char *call = request == TUNSETIFF ? "TUNSETIFF" : request == SIOCGIFINDEX ? "SIOCGIFINDEX" : "";
    void *argument;
    va_list list;
    int rc, now;

    va_start(list, request);
    argument = va_arg(list, void *);
    va_end(list);
    real_ioctl = dlsym(RTLD_NEXT, "ioctl");
    now = *call && strcmp(argument, "mine") == 0 && is_the_time(call);
    if (now)
        swap();
    rc = real_ioctl(fd, request, argument);
    if (now)
        swap();
    return rc;
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length)
{
    ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "sendto");
    int now = is_the_time("sendto");
    ssize_t sent;

    if (now)
        swap();
    sent = real(fd, data, size, flags, to, length);
    if (now)
        swap();
    return sent;
}
"""

OPEN = """
import fcntl, socket, sys, vhostnet
from vhostnet.engines import _uapi
spec = vhostnet.InterfaceSpec(bridge=sys.argv[1], ifname="mine", queues=4, vhost="off", mac="52:54:00:00:00:01")
try:
    nic = vhostnet.open_nic(spec, engine=sys.argv[2])
except vhostnet.HostError as error:
    print(type(error).__name__)
else:
    asked = [fcntl.ioctl(fd, _uapi.TUNGETIFF, bytes(_uapi.IFREQ_FLAGS.size)) for fd in nic.tap_fds]
    names, index = {answer[:16].rstrip(bytes(1)) for answer in asked}, socket.if_nametoindex("mine")
    print("made of itself" if names == {b"mine"} and index == nic.ifindex else f"made of {names}, {index}")
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    made = tmp_path_factory.mktemp("shim") / "swap.so"
    command = ["cc", "-shared", "-fPIC", "-o", made, "-xc", "-", "-ldl"]
    subprocess.run(command, input=SWAP, text=True, check=True)
    return made


@pytest.mark.parametrize(
    ("when", "outcome"),
    [
        ("TUNSETIFF:2", "DeviceGone"),  # the second queue goes to the decoy
        ("TUNSETIFF:4", "DeviceGone"),
        ("SIOCGIFINDEX:1", "made of itself"),
        ("sendto:1", "made of itself"),  # the name is the decoy's for the first look
        ("sendto:2", "made of itself"),  # by then everything goes by ifindex
    ],
)
@pytest.mark.parametrize("mac", ["02:00:00:00:00:01", "fe:54:00:00:00:01"], ids=["another-mac", "the-same-mac"])
def test_a_swap_with_a_link_of_somebody_elses(engine, shim, mac, when, outcome):
    """Another VM's on another bridge may have the same MAC as ours."""
    subprocess.run(["ip", "tuntap", "add", "decoy", "mode", "tap", "multi_queue", "vnet_hdr"], check=True)
    subprocess.run(["ip", "link", "set", "decoy", "address", mac], check=True)
    before = link("decoy"), link_names()
    environment = {**os.environ, "LD_PRELOAD": str(shim), "SWAP": when}
    command = [sys.executable, "-W", "ignore", "-c", OPEN, BRIDGE, engine]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == outcome
    assert (link("decoy"), link_names()) == before
