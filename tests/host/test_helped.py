"""Without CAP_NET_ADMIN, by QEMU's own bridge helper: the real one, setuid root in a mount namespace of its own."""

import re
import subprocess
import sys

import pytest
from conftest import link_names, need
from drop import dropped, helped, run

from vhostnet.others import bridge as bridges
from vhostnet.others.bridge_helper import find_helper

pytestmark = [pytest.mark.tap, pytest.mark.slow, pytest.mark.usefixtures("net")]

PYTHON = [sys.executable, "-W", "error"]
ALLOWED = "allow br0\n"
# In the helper's place.
FAKE = "printf '#!/bin/sh\\n{text}\\n' >/dev/net/fake; chmod 755 /dev/net/fake; mv /dev/net/fake"


@pytest.fixture(autouse=True)
def _bridge(net):
    need("setpriv")
    need("helper")
    bridges.make_bridge("br0", mtu=1400)


def lived(script, engine, rules=ALLOWED, **how):
    """What an unprivileged process that runs *script* says."""
    before = link_names()
    done = run(*helped(find_helper(), rules, **how), *PYTHON, "-c", HEAD + script, engine)
    assert link_names() == before
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines()


HEAD = """
import os, re, subprocess, sys, vhostnet
from vhostnet.engines import get_mac, get_name
how = {"engine": sys.argv[1]}
vhostnet.select_engine(sys.argv[1])  # with Python 3.14's ctypes libffi opens a file of its own, and keeps it
def spec(**fields):
    return vhostnet.InterfaceSpec(**{"bridge": "br0", "mac": "52:54:00:00:00:01", **fields})
def fds():
    paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd") if int(fd) > 2]
    return sorted(os.readlink(path) for path in paths if os.path.lexists(path))
def links():
    return [name for name in os.listdir("/proc/sys/net/ipv4/conf") if name.startswith("tap")]
def refused(*specs, **more):
    before = fds(), links()
    try:
        vhostnet.open_nics(specs, **how, **more)
    except vhostnet.HostError as error:
        print(error)
    assert (fds(), links()) == before
"""


@pytest.mark.parametrize("privilege", ["chmod 4755", "setcap cap_net_admin+ep"])
def test_a_nic_that_is_as_any(engine, privilege):
    script = """
before = fds()
with vhostnet.open_nic(spec(vhost="off"), **how) as nic:
    print(nic.ifname == get_name(nic.tap_fds[0]), nic.ifindex == __import__("socket").if_nametoindex(nic.ifname))
    print(nic.mac, get_mac(nic.tap_fds[0]).hex(":"), nic.mtu, bool(nic.vhost), os.get_inheritable(nic.tap_fds[0]))
    shown = subprocess.run(["ip", "-d", "-o", "link", "show", "dev", nic.ifname], capture_output=True, text=True).stdout
    print(re.findall(r"UP|master \\S+| mtu \\d+|vnet_hdr \\w+|persist \\w+", shown))
    print(nic.qemu_argv()[1])
    nic.reset_queues()
    print(nic.tap_fds[0], [timing.act for timing in nic.timings])
print(links(), fds() == before, nic.closed)
"""
    first, second, shown, argv, reset, gone = lived(script, engine, privilege=privilege)
    assert first == "True True"
    assert second == "fe:54:00:00:00:01 fe:54:00:00:00:01 1400 False False"
    assert shown == "['UP', 'UP', ' mtu 1400', 'master br0', 'vnet_hdr on', 'persist off']"
    fd = reset.partition(" ")[0]
    assert argv == f"tap,fd={fd},id=hostnet0"
    assert reset == f"{fd} []"
    assert gone == "[] True True"


@pytest.mark.vhost
def test_with_vhost_net(engine):
    script = """
with vhostnet.open_nic(spec(vhost="require", vhost_path="/dev/net/vhost-net"), **how) as nic:
    print(bool(nic.vhost), len(nic.fds), [timing.act for timing in nic.timings])
    nic.reset_queues()
    print(len(nic.vhost_fds))
print(links())
"""
    assert lived(script, engine) == ["True 2 ['VHOST_OPEN']", "1", "[]"]


def test_without_vhost_net_it_is_as_its_policy_says(engine):
    script = """
with vhostnet.open_nic(spec(vhost_path="/dev/null"), **how) as nic:
    print(nic.vhost)
refused(spec(vhost="require", vhost_path="/dev/null"))
"""
    said, error = lived(script, engine)
    assert "on=False" in said
    assert re.match(r"VHOST_OPEN \(VHOST_GET_FEATURES\) of tap\d+, queue 0: /dev/null is not a vhost-net device", error)


def test_many_all_or_none_or_those_that_succeed(engine):
    script = """
nics = vhostnet.open_nics([spec(mac=f"52:54:00:00:00:0{n}", vhost="off") for n in range(4)], **how)
print(len({nic.ifname for nic in nics}))
vhostnet.close_nics(nics)
print(links())
refused(spec(vhost="off"), spec(mac="52:54:00:00:00:02", queues=2, vhost="off"))
kept = vhostnet.open_nics([spec(vhost="off"), spec(mac="52:54:00:00:00:02", isolated=True)], on_error="keep", **how)
print([type(nic).__name__ for nic in kept], len(links()))
kept[0].close()
with vhostnet.open_nic(spec(type="network", network="lab", model="e1000", vhost="off"), **how) as nic:
    print(subprocess.run(["ip", "-d", "link", "show", nic.ifname], capture_output=True).stdout.count(b"vnet_hdr off"))
"""
    four, none, refused, kept, plain = lived(script, engine)
    assert (four, none, kept, plain) == ("4", "[]", "['Nic', 'NotPermitted'] 1", "1")
    assert refused.endswith("makes NICs of one queue and no settings, and this is to have 2 queues")


WISHES = {
    "queues=3": "3 queues",
    "isolated=True": "isolated",
    "mac_table_manager='libvirt'": "macTableManager",
    "rx_frames=8": "coalesce",
    "bandwidth=vhostnet.Bandwidth(vhostnet.Rate(7))": "bandwidth",
    "mtu=1500": "an MTU of 1500, where br0 has 1400",
    "tap_path='/dev/net/../net/tun'": "the device /dev/net/../net/tun",
}


def test_what_the_helper_does_not_give_is_refused_by_name(engine):
    script = "".join(f"refused(spec({wish}))\n" for wish in WISHES) + "refused(spec(type='ethernet', bridge=None))\n"
    *wishes, ethernet = lived(script, engine)
    for error, wish in zip(wishes, WISHES.values(), strict=True):
        assert "Operation not permitted (EPERM); needs CAP_NET_ADMIN" in error
        assert error.endswith(f"makes NICs of one queue and no settings, and this is to have {wish}")
    assert ethernet.endswith("; without it, qemu-bridge-helper makes NICs on a bridge only")


@pytest.mark.vlan
def test_nor_does_it_give_vlans(engine):
    subprocess.run(["ip", "link", "set", "br0", "type", "bridge", "vlan_filtering", "1"], check=True)
    (error,) = lived("refused(spec(vlan=vhostnet.Vlan((7,))))", engine)
    assert error.endswith("and this is to have vlan")


def test_one_that_does_not_answer_is_ended(engine):
    script = "import vhostnet.others.bridge_helper as it\nit.PATIENCE = 0.2\nrefused(spec(vhost='off'))"
    (error,) = lived(script, engine, privilege=FAKE.format(text="exec sleep 100"))
    assert error.endswith("/qemu-bridge-helper has not answered in 0 s")


def test_a_mtu_that_is_the_bridges_and_a_name(engine):
    script = """
import warnings
warnings.simplefilter("always")
with vhostnet.open_nic(spec(mtu=1400, ifname="mine", vhost="off"), **how) as nic:
    print(nic.ifname[:3], "host_mtu=1400" in nic.qemu_argv()[3])
"""
    assert lived(script, engine) == ["tap True"]


@pytest.mark.parametrize(
    ("rules", "privilege", "says"),
    [
        (
            "deny br0\n",
            "chmod 4755",
            "said 'access denied by acl file': let it: echo 'allow br0' >>/etc/qemu/bridge.conf",
        ),
        ("nonsense\n", "chmod 4755", "failed to parse default acl file .*: let it: echo 'allow br0'"),
        (
            ALLOWED,
            "chmod 755",
            "said 'failed to create tun device: Operation not permitted': it has no privilege itself: ",
        ),
        (ALLOWED, "chmod 4644", "needs CAP_NET_ADMIN .*; without it, qemu-bridge-helper, a part of QEMU, is not here"),
        (ALLOWED, FAKE.format(text="exit 3"), "said 'exit code 3'$"),
    ],
)
def test_what_the_helper_says_is_in_the_error(engine, rules, privilege, says):
    (error,) = lived("refused(spec(vhost='off'))", engine, rules=rules, privilege=privilege)
    assert error.startswith("TAP_OPEN (TUNSETIFF) of vnet")
    assert re.search(says, error)


def test_a_bridge_that_is_not_there_is_what_it_always_was(engine):
    (error,) = lived("refused(spec(bridge='br7', vhost='off'))", engine)
    assert "no link 'br7' here (ENODEV); make it: ip link add br7 up type bridge" in error


def test_what_takes_the_capability_later_is_refused_and_the_nic_stays(engine):
    script = """
with vhostnet.open_nic(spec(vhost="off"), **how) as nic:
    for refused_later in (nic.down, lambda: nic.update(spec(vhost="off", isolated=True))):
        try:
            refused_later()
        except vhostnet.NotPermitted as error:
            print(error.act)
    print(len(links()))
refused(spec(vhost="off"), up=False)
refused(spec(vhost="off"), persist=True)
"""
    down, update, left, *others = lived(script, engine)
    assert (down, update, left, len(others)) == ("DOWN", "LEAVE", "1", 2)
    assert all(error.endswith("(run as root, or grant it)") for error in others)


def test_the_command(engine):
    before = link_names()
    xml = "<interface type='bridge'><model type='virtio'/><source bridge='br0'/><driver name='qemu'/></interface>"
    shown = ["sh", "-c", "ip -o link show master br0; echo"]
    words = [*helped(find_helper(), ALLOWED), *PYTHON, "-m", "vhostnet", "exec", "--engine", engine, "-", "--", *shown]
    done = run(*words, stdin=xml)
    assert (done.returncode, "tap0" in done.stdout) == (0, True), done.stderr
    assert link_names() == before


def test_who_may_gain_no_privilege_has_none_of_it(engine):
    """NoNewPrivileges=, or a container: setuid counts for nothing there."""
    done = run(*dropped(), *PYTHON, "-c", HEAD + "refused(spec(vhost='off'))", engine)
    assert "without it, " in done.stdout
