"""What a bridge guarantees a guest, by the tree that libvirt makes of a network's bandwidth."""

import contextlib
import errno
import os
import re
import socket
import subprocess
import sys

import pytest
from conftest import BRIDGE, ROOT, link_names
from kernel import ip, link
from pyroute2 import IPRoute

import vhostnet
from vhostnet import Bandwidth, HostError, InterfaceSpec, NicPool, NoSuchTap, Op, Rate, SpecError, Unsupported
from vhostnet.slow import floors

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("bridge")]
MAC = "52:54:00:00:00:0{}"
OTHER = "br9"


def tc(words):
    subprocess.run(["tc", *words.split()], check=True)


def shape(bridge, average=1000, peak=5000):
    """As libvirt 11.3 does when it starts a network of such a bandwidth."""
    tc(f"qdisc add dev {bridge} root handle 1: htb default 2")
    tc(f"class add dev {bridge} parent 1: classid 1:1 htb rate {average}kbps ceil {peak}kbps quantum 85")
    tc(f"class add dev {bridge} parent 1:1 classid 1:2 htb rate {average}kbps ceil {peak}kbps burst 100kb quantum 85")


@pytest.fixture(autouse=True)
def shaped(bridge):
    shape(BRIDGE)


def wish(number=1, floor=200, average=None, **fields):
    band = Bandwidth(Rate(average, floor=floor)) if floor else None
    own = {"type": "network", "network": "n", "bridge": BRIDGE, "vhost": "off", "mac": MAC.format(number)}
    return InterfaceSpec(**{**own, "bandwidth": band, **fields})


def classes(bridge=BRIDGE):
    """Class -> its rate and what it may have of others, in kB/s; and its quantum."""
    found = {}
    with IPRoute() as ipr:
        (index,) = ipr.link_lookup(ifname=bridge)
        for one in ipr.get_classes(index=index):
            numbers = one.get_nested("TCA_OPTIONS", "TCA_HTB_PARMS")
            minor = one["handle"] & 0xFFFF
            found[minor] = numbers["rate"] // 1000, numbers["ceil"] // 1000, numbers["quantum"]
    return found


def guaranteed(bridge=BRIDGE):
    """The rates of all but those that are libvirt's, least first; and what is left."""
    found = classes(bridge)
    return sorted(rate for minor, (rate, _, _) in found.items() if minor not in (1, 2)), found[2][0]


def shown(words):
    return subprocess.run(["tc", *words.split()], capture_output=True, text=True, check=True).stdout


def filters(bridge=BRIDGE):
    """A line each, less what is left of a priority that has none any more."""
    lines = shown(f"-d filter show dev {bridge} parent 1:").splitlines()
    return [line.strip() for line in lines if "flowid" in line or "match" in line]


def everything(bridge=BRIDGE):
    return classes(bridge), filters(bridge)


MATCHES = ["match 00000001/ffffffff at -12", "match 00005254/0000ffff at -16"]  # as tc shows those of libvirt


@pytest.fixture
def nothing_left(shaped):
    before = everything()
    yield
    assert everything() == before


# --- in and out ------------------------------------------------------------------------------------------


def test_a_class_beside_the_one_of_all_others(engine, nothing_left):
    with vhostnet.open_nic(wish(floor=200, average=300), engine=engine) as nic:
        assert classes() == {1: (1000, 5000, 85), 2: (800, 5000, 85), 0x7FFF: (200, 5000, 25)}
        assert [line for line in filters() if line.startswith("match")] == MATCHES
        assert any("flowid 1:7fff" in line for line in filters())
        assert [timing.act for timing in nic.timings][-3:] == ["TC", "FLOOR", "UP"]
        assert link(nic.ifname)["qdisc"] == "htb"  # of its average
        assert nic.needs_closing


def test_a_floor_alone_is_no_limit(engine, nothing_left):
    with vhostnet.open_nic(wish(), engine=engine) as nic:
        assert link(nic.ifname)["qdisc"] == "noqueue"
        assert "TC" not in [timing.act for timing in nic.timings]


def test_a_batch_and_its_end(engine, nothing_left):
    nics = vhostnet.open_nics([wish(number, 10 * number) for number in range(1, 10)], engine=engine)
    assert guaranteed() == ([10, 20, 30, 40, 50, 60, 70, 80, 90], 550)
    nics.pop(0).close()
    assert guaranteed() == ([20, 30, 40, 50, 60, 70, 80, 90], 560)
    vhostnet.close_nics(nics)


def test_more_than_one_send(engine, nothing_left):
    nics = vhostnet.open_nics(
        [wish(mac=f"52:54:00:00:01:{number:02x}", floor=5) for number in range(40)], engine=engine
    )
    assert guaranteed() == ([5] * 40, 800)
    vhostnet.close_nics(nics)


def test_all_of_it(engine, nothing_left):
    """The kernel has no class of nothing."""
    with vhostnet.open_nic(wish(floor=1000), engine=engine):
        assert guaranteed() == ([1000], 1)


def test_rates_of_more_than_32_bits(engine):
    ip(f"link add {OTHER} up type bridge")
    shape(OTHER, 8_000_000, 9_000_000)
    with vhostnet.open_nic(wish(floor=5_000_000, bridge=OTHER), engine=engine):
        assert wide(OTHER) == {
            1: (8_000_000_000, 9_000_000_000),
            2: (3_000_000_000, 9_000_000_000),
            0x7FFF: (5_000_000_000, 9_000_000_000),
        }


def wide(bridge):
    """Class -> its rates, in bytes a second."""
    with IPRoute() as ipr:
        (index,) = ipr.link_lookup(ifname=bridge)
        every = {one["handle"] & 0xFFFF: one.get_attr("TCA_OPTIONS") for one in ipr.get_classes(index=index)}
    found = {}
    for minor, one in every.items():
        narrow = one.get_attr("TCA_HTB_PARMS")
        found[minor] = tuple(one.get_attr(f"TCA_HTB_{what.upper()}64") or narrow[what] for what in ("rate", "ceil"))
    return found


def sent(minor):
    """How many frames have gone by a class."""
    every = re.split(r"^class ", shown(f"-s class show dev {BRIDGE}"), flags=re.MULTILINE)
    (found,) = [one for one in every if one.startswith(f"htb 1:{minor} ")]
    return int(re.search(r"Sent \d+ bytes (\d+) pkt", found)[1])


@pytest.mark.parametrize("ethertype", [0x0800, 0x86DD, 0x0806])
def test_what_is_for_the_guest_goes_by_its_class(engine, ethertype):
    """Of whatever protocol; libvirt's filter is for IPv4."""
    frame = bytes.fromhex(MAC.format(1).replace(":", "")) + bytes(6) + ethertype.to_bytes(2, "big") + bytes(50)
    nics = vhostnet.open_nics([wish(1), wish(2)], engine=engine)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((BRIDGE, 0))
        before = sent("7fff"), sent("7ffe")
        for _ in range(5):
            sender.send(frame)
        assert (sent("7fff") - before[0], sent("7ffe") - before[1]) == (5, 0)
    vhostnet.close_nics(nics)


def test_what_libvirt_does_beside_it_stays(engine):
    tc(f"class add dev {BRIDGE} parent 1:1 classid 1:3 htb rate 100kbps ceil 5000kbps")
    match = "u32 match u16 0x0800 0xffff at -2 match u32 0x00000007 0xffffffff at -12 match u16 0x5254 0xffff at -14"
    tc(f"filter add dev {BRIDGE} protocol ip prio 2 handle 800::3 {match} flowid 1:3")
    before = everything()
    with vhostnet.open_nic(wish(7), engine=engine):
        assert guaranteed() == ([100, 200], 700)
    assert guaranteed() == ([100], 900)
    assert everything()[1] == before[1]


# --- what is refused -------------------------------------------------------------------------------------


@contextlib.contextmanager
def refused(kind=HostError):
    before = link_names(), everything()
    with pytest.raises(kind) as caught:
        yield caught
    assert (link_names(), everything()) == before
    assert caught.value.act == "FLOOR"


def test_more_than_there_is(engine):
    with vhostnet.open_nic(wish(9, 300), engine=engine):
        asked = [wish(1, 400), wish(2, 301)]
        with refused() as caught:
            vhostnet.open_nics(asked, engine=engine)
        assert (
            caught.value.strerror
            == f"bridge '{BRIDGE}' has 300 of its 1000 kB/s left to guarantee, and 301 are asked for"
        )
        assert "floor=" in caught.value.remedy
        with refused():
            vhostnet.plan_nics([wish(1, 701)], engine=engine)
        assert vhostnet.plan_nics([wish(1, 700)], engine=engine)
        kept, lost = vhostnet.open_nics(asked, engine=engine, on_error="keep")
        assert guaranteed() == ([300, 400], 300)
        assert (lost.act, lost.ifname is not None) == ("FLOOR", True)
        kept.close()
    assert guaranteed() == ([], 1000)


def test_what_one_bridge_refuses_is_no_matter_of_another_s(engine):
    ip(f"link add {OTHER} up type bridge")
    kept, lost = vhostnet.open_nics([wish(), wish(2, bridge=OTHER)], engine=engine, on_error="keep")
    assert (lost.act, lost.errno, guaranteed()) == ("FLOOR", errno.EOPNOTSUPP, ([200], 800))
    kept.close()
    assert guaranteed() == ([], 1000)


def test_a_bridge_that_is_gone_keeps_nobody_elses(engine, nothing_left):
    ip(f"link add {OTHER} up type bridge")
    shape(OTHER)
    nics = vhostnet.open_nics([wish(bridge=OTHER), wish(2)], engine=engine)
    ip(f"link del {OTHER}")
    vhostnet.close_nics(nics)
    assert guaranteed() == ([], 1000)


@pytest.mark.parametrize("tree", ["none", "another"])
def test_a_bridge_without_a_bandwidth(engine, tree):
    ip(f"link add {OTHER} up type bridge")
    if tree == "another":
        tc(f"qdisc add dev {OTHER} root handle 1: htb default 5")
    with refused(Unsupported) as caught:
        vhostnet.open_nic(wish(bridge=OTHER), engine=engine)
    assert caught.value.strerror == f"bridge '{OTHER}' has no bandwidth of its own to guarantee some of"
    assert "<inbound average=>" in caught.value.remedy
    with refused(Unsupported):
        vhostnet.plan_nics([wish(bridge=OTHER)], engine=engine)


def test_a_later_act_that_is_refused(engine, tmp_path):
    """Its class goes with it."""
    with pytest.raises(HostError):
        vhostnet.open_nics([wish(), wish(2, None, ifname="lo")], engine=engine)
    assert guaranteed() == ([], 1000)


def test_for_what_is_made_ahead_or_lasts_it_is_none(engine):
    with NicPool(wish(), size=1, engine=engine) as pool, pytest.raises(SpecError, match="floor=200 is nothing"):
        pool.fill()
    with pytest.raises(SpecError, match="floor=200 would be left"):
        vhostnet.open_nic(wish(), engine=engine, persist=True)
    assert guaranteed() == ([], 1000)


# --- another ---------------------------------------------------------------------------------------------


def test_it_changes(engine, nothing_left):
    with vhostnet.open_nic(wish(), engine=engine) as nic:
        nic.update(wish(floor=300))
        assert guaranteed() == ([300], 700)
        nic.update(wish(floor=300, isolated=True))
        assert guaranteed() == ([300], 700)
        nic.update(wish(floor=None))
        assert (guaranteed(), nic.needs_closing) == (([], 1000), False)
        nic.update(wish(floor=1000))
        assert guaranteed() == ([1000], 1)


def test_it_moves(engine, nothing_left):
    ip(f"link add {OTHER} up type bridge")
    shape(OTHER, 500)
    with vhostnet.open_nic(wish(), engine=engine) as nic:
        nic.update(wish(bridge=OTHER, network="m"))
        assert (guaranteed(), guaranteed(OTHER)) == (([], 1000), ([200], 300))
    assert guaranteed(OTHER) == ([], 500)


def test_a_guest_that_goes_to_another_nic(engine, nothing_left):
    """As docs/migration.md has it: the new one is opened without, and gets the floor when the old one is closed."""
    old = vhostnet.open_nic(wish(), engine=engine)
    with vhostnet.open_nic(wish(floor=0), up=False, engine=engine) as new:
        old.down()
        assert guaranteed() == ([200], 800)
        new.up()
        old.close()
        assert guaranteed() == ([], 1000)
        new.update(wish())
        assert guaranteed() == ([200], 800)


@pytest.mark.parametrize("place", [BRIDGE, OTHER])
def test_refused_it_is_what_it_was(engine, nothing_left, place):
    ip(f"link add {OTHER} up type bridge")
    shape(OTHER, 500)
    with vhostnet.open_nic(wish(), engine=engine) as nic:
        with pytest.raises(HostError, match="left to guarantee") as caught:
            nic.update(wish(floor=1001, bridge=place))
        assert caught.value.undoing is None
        assert (guaranteed(), guaranteed(OTHER), nic.spec) == (([200], 800), ([], 500), wish())
        assert link(nic.ifname)["master"] == BRIDGE


def test_refused_after_it_it_is_what_it_was(engine, nothing_left):
    """Its port may not be in such a VLAN; by then there is nothing else, and the old one still stands."""
    with vhostnet.open_nic(wish(), engine=engine) as nic:
        with pytest.raises(HostError):
            nic.update(wish(floor=300, bridge="none-such"))
        assert guaranteed() == ([200], 800)


# --- a crash ---------------------------------------------------------------------------------------------


def crash(*specs, engine):
    """Whoever made these is killed."""
    child = os.fork()
    if child == 0:
        try:
            kept = vhostnet.open_nics(specs, engine=engine)
        finally:
            os.kill(os.getpid(), 9)
        del kept
    os.waitpid(child, 0)


def test_what_a_crash_has_left_goes_with_the_next(engine, nothing_left):
    crash(wish(1, 100), wish(2, 150), engine=engine)
    assert guaranteed() == ([100, 150], 750)
    with vhostnet.open_nic(wish(3, 900), engine=engine):
        assert guaranteed() == ([900], 100)


def test_it_is_listed_and_deleted(engine, nothing_left, run):
    with vhostnet.open_nic(wish(3, 300), engine=engine) as nic:
        crash(wish(1, 100), wish(2, 150), engine=engine)
        mine, first, second = vhostnet.list_nics()
        assert (mine.ifname, mine.kind) == (nic.ifname, "tun")
        assert {one.ifname for one in (first, second)} == {MAC.format(1), MAC.format(2)}
        assert (first.kind, first.bridge, first.ifindex, first.mark.maker_lives) == ("floor", BRIDGE, 0, False)
        listed = run("list").stdout.splitlines()
        assert [line.split()[0] for line in listed] == [one.ifname for one in (mine, first, second)]
        assert "what its bridge guarantees is all there is of it" in listed[1]
        assert run("delete", MAC.format(1)).returncode == 0
        assert guaranteed() == ([150, 300], 550)
        vhostnet.delete_nics([MAC.format(2)], engine=engine)
        assert guaranteed() == ([300], 700)
        with pytest.raises(NoSuchTap):
            vhostnet.delete_nics([MAC.format(3)], engine=engine)


@pytest.fixture
def run():
    def command(*words):
        return subprocess.run([sys.executable, "-m", "vhostnet", *words], capture_output=True, text=True, cwd=ROOT)

    return command


def test_of_a_bridge_that_is_gone(engine):
    ip(f"link add {OTHER} up type bridge")
    shape(OTHER)
    nic = vhostnet.open_nic(wish(bridge=OTHER), engine=engine)
    ip(f"link del {OTHER}")
    nic.close()
    assert nic.closed


def test_it_is_an_act_like_any(engine):
    program = vhostnet.plan_nics([wish(floor=200, ifname="nic0")], engine=engine)
    assert "FLOOR       nic0  gets 200 kB/s of " + BRIDGE in str(program)
    assert [act.op for act in program.acts][-2:] == [Op.FLOOR, Op.UP]


def test_the_priority_of_its_filters_is_its_own():
    assert floors.PRIORITY not in (1, 2)
