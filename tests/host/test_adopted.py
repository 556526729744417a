"""A TAP that is there already (managed='no'): it is opened, and neither it nor its place is changed."""

import fcntl
import os
import struct
import subprocess
import sys

import pytest
from conftest import BRIDGE, link_names, need, open_fds
from drop import dropped, run
from kernel import ethtool, ip, run_json

import vhostnet
from vhostnet import FlagMismatch, InterfaceSpec, NameBusy, NoSuchTap
from vhostnet.engines import _uapi

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("net")]
TUNGETVNETHDRSZ = 0x800454D7


def wish(**fields):
    return InterfaceSpec(**{"type": "ethernet", "managed": False, "ifname": "mine", "vhost": "off", **fields})


def facts(name="mine"):
    """All but whether it has a carrier: that comes and goes with its queues, and a moment later."""
    (found,) = run_json(f"ip -d link show dev {name}")
    told = {key: found.get(key) for key in ("ifindex", "address", "mtu", "master", "qdisc", "ifalias")}
    return {**told, "up": "UP" in found["flags"]}


@pytest.fixture
def mine(bridge):
    """As a manager may have made it: on its bridge, with a MAC and an MTU of its own, and up."""
    ip("tuntap add mine mode tap multi_queue")
    ip(f"link set mine address 02:00:00:00:00:07 mtu 1400 master {BRIDGE} up")


@pytest.mark.parametrize("queues", [1, 2, 16])
def test_it_is_taken_as_it_is_and_stays(engine, mine, queues):
    before, fds = facts(), open_fds()
    with vhostnet.open_nic(wish(queues=queues, mtu=9000), engine=engine) as nic:
        assert (nic.ifname, nic.ifindex, nic.mac, nic.mtu) == ("mine", before["ifindex"], "02:00:00:00:00:07", 1400)
        assert len(nic.tap_fds) == queues
        assert facts() == before
    assert (facts(), open_fds()) == (before, fds)


def test_without_multi_queue_it_has_one(engine, net):
    ip("tuntap add mine mode tap")
    with vhostnet.open_nic(wish(), engine=engine) as nic:
        assert len(nic.tap_fds) == 1
        assert not facts()["up"]  # whoever made it may not want it up yet
    with pytest.raises(FlagMismatch) as caught:
        vhostnet.open_nic(wish(queues=2), engine=engine)
    error = caught.value
    assert "multi_queue" in error.asked
    assert "multi_queue" not in error.found
    assert "it is a tap" in str(error)
    assert "2 queues are asked for" in str(error)
    assert "ip tuntap add mine mode tap multi_queue" in str(error)


def test_one_that_is_not_there(engine, net):
    before = link_names()
    with pytest.raises(NoSuchTap, match="no link 'mine' here.*ip tuntap add mine mode tap"):
        vhostnet.open_nic(wish(), engine=engine)
    assert link_names() == before


@pytest.mark.parametrize("kind", ["bridge", "tun"])
def test_one_that_is_something_else(engine, net, kind):
    ip("link add mine type bridge" if kind == "bridge" else "tuntap add mine mode tun")
    with pytest.raises(FlagMismatch, match=f"kind '{kind}'|a tun") as caught:
        vhostnet.open_nic(wish(), engine=engine)
    assert caught.value.act == "ADOPT"


def test_its_one_queue_is_in_use(engine, net):
    ip("tuntap add mine mode tap")
    with vhostnet.open_nic(wish(), engine=engine), pytest.raises(NameBusy) as caught:
        vhostnet.open_nic(wish(), engine=engine)
    assert [holder.pid for holder in caught.value.holders] == [os.getpid()]


def test_what_the_last_one_left_in_it_is_gone(engine, mine):
    with vhostnet.open_nic(wish(), engine=engine) as nic:
        fcntl.ioctl(nic.tap_fds[0], _uapi.TUNSETVNETHDRSZ, struct.pack("=i", 12))
        fcntl.ioctl(nic.tap_fds[0], _uapi.TUNSETOFFLOAD, 0x01)  # TUN_F_CSUM
        assert checksums()
    assert checksums()  # it stays with the TAP
    with vhostnet.open_nic(wish(), engine=engine) as nic:
        size = fcntl.ioctl(nic.tap_fds[0], TUNGETVNETHDRSZ, bytes(4))
        assert struct.unpack("=i", size) == (10,)
        assert not checksums()


def checksums():
    """Whether it leaves checksums to who reads from it."""
    return ethtool("mine", 0x16, 2)[1] == 1  # ETHTOOL_GTXCSUM


def test_with_others_it_is_all_or_none(engine, mine):
    before = facts(), link_names(), open_fds()
    specs = [wish(queues=2), InterfaceSpec(bridge="nowhere", vhost="off")]
    with pytest.raises(vhostnet.NoSuchBridge):
        vhostnet.open_nics(specs, engine=engine)
    assert (facts(), link_names(), open_fds()) == before
    specs[1] = InterfaceSpec(bridge=BRIDGE, vhost="off")
    nics = vhostnet.open_nics(specs, engine=engine)
    vhostnet.close_nics(nics)
    assert (facts(), link_names(), open_fds()) == before


def test_closed_in_the_background_it_stays_too(engine, mine):
    vhostnet.close_nics([vhostnet.open_nic(wish(queues=4), engine=engine)], wait=False)
    with vhostnet.open_nic(wish(queues=4), engine=engine) as nic:
        assert nic.ifname == "mine"


def test_the_next_qemu(engine, mine):
    with vhostnet.open_nic(wish(queues=2), engine=engine) as nic:
        fcntl.ioctl(nic.tap_fds[1], _uapi.TUNSETQUEUE, bytes(_uapi.IFREQ_FLAGS.pack(b"", 0x0400)))
        nic.reset_queues()
        assert run_json("ip -d link show dev mine")[0]["linkinfo"]["info_data"]["numqueues"] == 2


UNPRIVILEGED = """
import sys, vhostnet
spec = vhostnet.InterfaceSpec(type="ethernet", managed=False, ifname="mine", queues=2, vhost="off")
try:
    print(*map(str, [len(vhostnet.open_nic(spec, engine=sys.argv[1]).detach().tap)]))
except vhostnet.NotPermitted as error:
    print("refused:", error.remedy)
"""


@pytest.mark.parametrize("owner", ["nobody", "root"])
def test_whose_owner_one_is_needs_no_privilege(engine, net, owner):
    need("setpriv")
    ip(f"tuntap add mine mode tap multi_queue user {owner}")
    done = run(*dropped(), sys.executable, "-c", UNPRIVILEGED, engine)
    assert done.returncode == 0, done.stderr
    wanted = "2" if owner == "nobody" else "refused: it is another user's"
    assert done.stdout.startswith(wanted)


@pytest.mark.slow
def test_the_plan_and_the_doctor(engine, mine):
    (line,) = str(vhostnet.plan_nics([wish(queues=2)], engine=engine)).splitlines()
    assert line.split() == ["0", "ADOPT", "mine", "2", "queues", "of", "a", "TAP", "that", "is", "there"]
    with pytest.raises(NoSuchTap):
        vhostnet.plan_nics([wish(ifname="other")], engine=engine)
    text = "<interface type='ethernet'><target dev='other' managed='no'/><model type='virtio'/></interface>"
    done = subprocess.run([sys.executable, "-m", "vhostnet", "doctor", "-"], input=text, capture_output=True, text=True)
    assert "ip tuntap add other mode tap" in done.stdout
    assert done.returncode != 0
