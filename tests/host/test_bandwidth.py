"""A NIC's bandwidth: the tree that libvirt makes by running tc, before the first frame, and what it lets pass."""

import dataclasses
import os
import re
import select
import socket
import subprocess
import threading
import time

import pytest
from conftest import BRIDGE, lacks, link_names
from kernel import ip, link, run_json
from pyroute2 import IPRoute

import vhostnet
from vhostnet import Bandwidth, DirectSource, HostError, InterfaceSpec, Op, Rate, Unsupported
from vhostnet.others import bridge as bridges

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("net")]
MAC = "52:54:00:00:00:0{}"


def wish(number=1, bandwidth=None, **fields):
    # A model without vnet_hdr: what is read and written is a frame.
    own = {"bridge": BRIDGE, "model": "e1000", "mac": MAC.format(number), "bandwidth": bandwidth}
    return InterfaceSpec(**{**own, **fields})


def gets(*rate, **fields):
    return wish(bandwidth=Bandwidth(Rate(*rate)), **fields)


# --- the tree --------------------------------------------------------------------------------------------


def tree_of(name):
    """What tc shows of a device, a line for each thing, without what counts and what the kernel numbers.

    And without bursts, which the older tc's shows, and sets, in whole microseconds: ``bursts_of()`` has them.
    """
    what = ("qdisc show dev", "class show dev", "filter show parent 1: dev", "filter show ingress dev")
    asked = "".join(f"{one} {name}\n" for one in what)
    done = subprocess.run(["tc", "-d", "-batch", "-"], input=asked, capture_output=True, text=True, check=True)
    shown = [re.sub(UNTOLD, "", line).strip() for line in done.stdout.splitlines()]
    return [re.sub(r"(qdisc noqueue) \w+:", r"\1 0:", line) for line in shown if line]


UNTOLD = r"\bdev \S+ | refcnt \d+|police 0x\w+|index \d+|ref \d+ bind \d+|\bc?burst \S+"


def bursts_of(name):
    """How long they take, in ticks: those of the class, and of what a guest sends."""
    found = []
    with IPRoute() as ipr:
        (index,) = ipr.link_lookup(ifname=name)
        for one in ipr.get_classes(index=index):
            numbers = one.get_nested("TCA_OPTIONS", "TCA_HTB_PARMS")
            found += [numbers["buffer"], numbers["cbuffer"]]
        for one in ipr.get_filters(index=index, parent=0xFFFF0000):
            police = one.get_nested("TCA_OPTIONS", "TCA_U32_POLICE", "TCA_POLICE_TBF")
            found += [police["burst"]] if police else []
    return found


def roots(name):
    """The kind of its root, or those of its 256; and whether there is an ingress."""
    kinds = [line.split()[1] for line in tree_of(name) if line.startswith("qdisc")]
    return {kind for kind in kinds if kind not in ("ingress", "sfq")}, "ingress" in kinds


def tc(words, lacking=False):
    """As libvirt runs it; with *lacking*, this kernel may not have what it is about."""
    done = subprocess.run(["tc", *words.split()], capture_output=True, text=True)
    assert lacking or done.returncode == 0, (words, done.stderr)


def as_libvirt_does(name, bandwidth):
    """The commands of libvirt 11.3, as it runs them; its fw filter, too."""
    rate, lacking = bandwidth.inbound, lacks("shaping") is not None
    tc(f"qdisc add dev {name} root handle 0: noqueue")
    if rate:
        peak, burst = f"ceil {rate.peak}kbps " if rate.peak else "", f"burst {rate.burst}kb " if rate.burst else ""
        quantum = max(1, rate.average * 1024 // 8 // 1500)
        tc(f"qdisc del dev {name} root")
        tc(f"qdisc add dev {name} root handle 1: htb default 1")
        tc(f"class add dev {name} parent 1: classid 1:1 htb rate {rate.average}kbps {peak}{burst}quantum {quantum}")
        tc(f"qdisc add dev {name} parent 1:1 handle 2: sfq perturb 10", lacking)
        tc(f"filter add dev {name} parent 1:0 protocol all prio 1 handle 1 fw flowid 1", lacking)
    rate = bandwidth.outbound
    if rate:
        burst = rate.burst or min(rate.average, 2**22 - 1)
        tc(f"qdisc add dev {name} ingress")
        match = "u32 match u32 0 0 police rate"
        tc(
            f"filter add dev {name} parent ffff: protocol all {match} {rate.average}kbps burst {burst}kb mtu 64kb drop "
            "flowid :1"
        )


def told_by_tc(bandwidth, macvtap):
    if macvtap:  # which has its guest's directions
        bandwidth = swapped(bandwidth)
    ip(f"link add theirs link {BRIDGE} type macvtap" if macvtap else "tuntap add theirs mode tap multi_queue")
    as_libvirt_does("theirs", bandwidth)
    shown, bursts = tree_of("theirs"), bursts_of("theirs")
    ip("link del theirs")
    return shown, bursts


def check_against_tc(nic):
    theirs, bursts = told_by_tc(nic.spec.bandwidth, nic.spec.type == "direct")
    assert tree_of(nic.ifname) == without_the_filter_that_leads_nowhere(theirs)
    ours = bursts_of(nic.ifname)
    kinds, ingress = roots(nic.ifname)
    assert len(ours) == len(bursts) == 2 * ("htb" in kinds) + ingress
    assert all(0 <= mine - its <= 1000 / 64 + 1 for mine, its in zip(ours, bursts, strict=True)), (ours, bursts)


INBOUND = [
    Bandwidth(Rate(1000)),
    Bandwidth(Rate(1000, 5000, 1024)),
    Bandwidth(Rate(1000, 500, 7)),
    Bandwidth(Rate(1)),
    Bandwidth(Rate(8, 125_000, 2147)),
    Bandwidth(Rate(4_294_967, 4_294_968)),  # below 32 bits of bytes, and above
    Bandwidth(Rate(5_000_000, 10_000_000, 100_000)),
]
OUTBOUND = [
    Bandwidth(outbound=Rate(128, 256)),
    Bandwidth(outbound=Rate(4_294_968, burst=1)),
    Bandwidth(Rate(1000, 5000, 1024), Rate(128, burst=256)),
    Bandwidth(Rate(2**33, 2**34), Rate(4_294_967)),
]


def without_the_filter_that_leads_nowhere(tree):
    return [line for line in tree if not re.match(r"filter .*protocol all pref 1 fw", line)]


@pytest.mark.parametrize("bandwidth", INBOUND, ids=str)
def test_it_is_libvirts_tree(engine, bridge, bandwidth):
    with vhostnet.open_nic(wish(bandwidth=bandwidth, queues=1), engine=engine) as nic:
        check_against_tc(nic)
        assert roots(nic.ifname) == ({"htb"}, False)


@pytest.mark.shaping
@pytest.mark.parametrize("bandwidth", OUTBOUND, ids=str)
def test_it_is_libvirts_tree_of_what_a_guest_sends(engine, bridge, bandwidth):
    with vhostnet.open_nic(wish(bandwidth=bandwidth, model="virtio", queues=4, vhost="off"), engine=engine) as nic:
        check_against_tc(nic)
        assert roots(nic.ifname) == ({"htb" if bandwidth.inbound else "noqueue"}, True)


@pytest.mark.shaping
def test_the_filter_that_is_left_out_leads_nowhere(bridge):
    """With libvirt's fw filter a frame that is marked 1 goes where it goes without, and none is counted as led."""
    ip("tuntap add theirs mode tap")
    as_libvirt_does("theirs", Bandwidth(Rate(1000)))
    led = [line for line in tree_of("theirs") if re.match(r"filter .* fw", line) and "classid" in line]
    assert len(led) == 1
    assert led[0].endswith("classid :1")  # and not 1:1, which is the class that there is


@pytest.fixture
def macvtaps(bridge):
    """A kernel may have none, and a user namespace's root makes no device nodes."""
    try:
        vhostnet.open_nic(direct(None)).close()
    except HostError as error:
        pytest.skip(f"macvtap: {error}")


def direct(bandwidth, **fields):
    own = {"type": "direct", "bridge": None, "source": DirectSource(BRIDGE), "bandwidth": bandwidth}
    return wish(**{**own, **fields})


def swapped(bandwidth):
    return Bandwidth(bandwidth.outbound, bandwidth.inbound)


@pytest.mark.usefixtures("macvtaps")
@pytest.mark.parametrize("bandwidth", [swapped(one) for one in INBOUND], ids=str)
def test_a_macvtap_has_libvirts_tree_of_what_its_guest_sends(engine, bandwidth):
    with vhostnet.open_nic(direct(bandwidth), engine=engine) as nic:
        check_against_tc(nic)
        assert roots(nic.ifname) == ({"htb"}, False)


@pytest.mark.shaping
@pytest.mark.usefixtures("macvtaps")
@pytest.mark.parametrize("bandwidth", [swapped(one) for one in OUTBOUND], ids=str)
def test_a_macvtap_has_libvirts_tree_of_what_its_guest_gets(engine, bandwidth):
    with vhostnet.open_nic(direct(bandwidth, model="virtio", queues=4, vhost="off"), engine=engine) as nic:
        check_against_tc(nic)
        assert roots(nic.ifname) == ({"htb" if bandwidth.outbound else "noqueue"}, True)


@pytest.mark.parametrize("kind", ["tap", "macvtap"])
def test_it_stands_before_the_nic_is_up(engine, bridge, request, kind):
    limited = gets(1000)
    if kind == "macvtap":
        request.getfixturevalue("macvtaps")
        limited = direct(Bandwidth(outbound=Rate(1000)))
    with vhostnet.open_nic(limited, engine=engine, up=False) as nic:
        before = tree_of(nic.ifname)
        assert (link(nic.ifname)["up"], roots(nic.ifname)) == (False, ({"htb"}, False))
        nic.up()
        assert (link(nic.ifname)["up"], tree_of(nic.ifname)) == (True, before)


def test_the_order_of_its_acts(engine, bridge):
    specs = [gets(1000), wish(2), wish(3, Bandwidth(outbound=Rate(7))), wish(4, Bandwidth(Rate(7), Rate(7)))]
    program = vhostnet.plan_nics(specs, engine=engine)
    acts = [[act.op.name for act in program.acts if act.nic == row and act.op != Op.VHOST_OPEN] for row in range(4)]
    assert acts == [
        ["TAP_OPEN", "LINK", "TC", "UP"],  # HTB is the root, and there is never another
        ["TAP_OPEN", "QDISC", "LINK", "UP"],
        ["TAP_OPEN", "QDISC", "LINK", "TC", "UP"],
        ["TAP_OPEN", "LINK", "TC", "UP"],
    ]
    assert [line.split(maxsplit=3)[3] for line in str(program).splitlines() if "  TC  " in line] == [
        "gets 1000 kB/s",
        "sends 7 kB/s",
        "gets 7 kB/s  sends 7 kB/s",
    ]
    assert "gets 7 kB/s, at most 9 kB/s" in str(vhostnet.plan_nics([gets(7, 9)], engine=engine))


@pytest.mark.parametrize("qdisc", ["noqueue", "default"])
def test_whatever_the_qdisc_what_shapes_is_the_root(engine, bridge, qdisc):
    with vhostnet.open_nic(gets(1000, queues=4, model="virtio", vhost="off"), engine=engine, qdisc=qdisc) as nic:
        assert roots(nic.ifname) == ({"htb"}, False)


@pytest.mark.shaping
@pytest.mark.parametrize(("qdisc", "root"), [("noqueue", {"noqueue"}), ("default", None)])
def test_what_a_guest_gets_is_as_the_qdisc_says(engine, bridge, qdisc, root):
    spec = wish(bandwidth=Bandwidth(outbound=Rate(1000)))
    with vhostnet.open_nic(spec, engine=engine, qdisc=qdisc) as nic:
        kinds, ingress = roots(nic.ifname)
        assert (kinds == root if root else "noqueue" not in kinds and "htb" not in kinds, ingress) == (True, True)


def test_many_are_in_as_few_sends_as_can_be(engine, bridge):
    """And each has its own."""
    specs = [gets(number + 1, mac=f"52:54:00:00:01:{number:02x}") for number in range(70)]
    nics = vhostnet.open_nics(specs, engine=engine)
    for number, nic in enumerate(nics):
        assert f" rate {8 * (number + 1)}Kbit " in " ".join(tree_of(nic.ifname)).replace("Mbit", "000Kbit")
    vhostnet.close_nics(nics)


# --- what it lets pass -----------------------------------------------------------------------------------

FRAME = b"\xff" * 6 + bytes.fromhex("525400000001") + b"\x88\xb5" + bytes(1400)  # to everybody


def test_a_guest_gets_no_more_than_its_rate(engine, bridge):
    """500 kB at 250 kB/s: 2 s, or longer where nobody has the time."""
    with vhostnet.open_nic(gets(250), engine=engine) as nic, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as host:
        host.bind((BRIDGE, 0))
        host.setblocking(False)
        (tap,) = nic.tap_fds
        os.set_blocking(tap, False)
        got, started = 0, time.monotonic()
        while got < 500_000 and time.monotonic() - started < 60:
            write_some(lambda: host.send(FRAME))
            while select.select([tap], [], [], 0.001)[0]:
                got += len(os.read(tap, 2048))
        taken = time.monotonic() - started
    assert got >= 500_000
    assert taken >= 1


def write_some(write):
    for _ in range(20):
        try:
            write()
        except (BlockingIOError, OSError):  # ENOBUFS: what does not fit is dropped
            return


@pytest.mark.shaping
def test_a_guest_sends_no_more_than_its_rate(engine, bridge):
    """Eight times what it may, and at most twice that arrives."""
    spec = wish(bandwidth=Bandwidth(outbound=Rate(50, burst=50)))
    with vhostnet.open_nic(spec, engine=engine) as nic:
        (tap,) = nic.tap_fds
        before, sent, started = passed("rx"), 0, time.monotonic()
        while sent < 8 * (may := 50 * 1024 + 50_000 * (time.monotonic() - started)):
            sent += os.write(tap, FRAME)
            assert time.monotonic() - started < 60
        arrived = passed("rx") - before
    assert sent >= 8 * may
    assert may / 4 <= arrived <= 2 * may


def passed(way):
    (found,) = run_json(f"ip -s link show dev {BRIDGE}")
    return found["stats64"][way]["bytes"]


def write_all_it_takes(tap, seconds):
    """How much of it went out by the bridge below, and how long that took."""
    os.set_blocking(tap, False)
    before, started = passed("tx"), time.monotonic()
    while time.monotonic() - started < seconds:
        write_some(lambda: os.write(tap, FRAME))
        time.sleep(0.001)
    return passed("tx") - before, time.monotonic() - started


@pytest.mark.usefixtures("macvtaps")
def test_a_macvtaps_guest_sends_no_more_than_its_rate(engine, bridge):
    """A hundred times as much is offered as it may, and at most twice that goes out."""
    arrived = {}
    for bandwidth in (None, Bandwidth(outbound=Rate(50, burst=50))):
        with vhostnet.open_nic(direct(bandwidth), engine=engine) as nic:
            arrived[bandwidth], taken = write_all_it_takes(nic.tap_fds[0], 2)
            may = 50 * 1024 + 50_000 * taken
    unlimited, limited = arrived.values()
    assert may / 4 <= limited <= 2 * may < unlimited


def read_all_that_comes(tap, peer, seconds):
    """How much of it came in from the other end of the link below, and how long that took."""
    os.set_blocking(tap, False)
    peer.setblocking(False)
    got, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        write_some(lambda: peer.send(bytes.fromhex("525400000001") + FRAME[6:]))
        while select.select([tap], [], [], 0.001)[0]:
            got += len(os.read(tap, 2048))
    return got, time.monotonic() - started


@pytest.mark.shaping
@pytest.mark.usefixtures("macvtaps")
def test_a_macvtaps_guest_gets_no_more_than_its_rate(engine):
    ip("link add p0 type veth peer name q0")
    ip("link set p0 up")
    ip("link set q0 up")
    arrived = {}
    for bandwidth in (None, Bandwidth(Rate(50, burst=50))):
        nic = vhostnet.open_nic(direct(bandwidth, source=DirectSource("p0")), engine=engine)
        with nic, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as peer:
            peer.bind(("q0", 0))
            arrived[bandwidth], taken = read_all_that_comes(nic.tap_fds[0], peer, 2)
            may = 50 * 1024 + 50_000 * taken
    unlimited, limited = arrived.values()
    assert may / 4 <= limited <= 2 * may < unlimited


# --- its life --------------------------------------------------------------------------------------------

ALONE = [None, Bandwidth(Rate(1000, 5000, 1024)), Bandwidth(Rate(7)), None, Bandwidth(Rate(7)), Bandwidth(Rate(7))]
BOTH = [Bandwidth(outbound=Rate(8)), None, Bandwidth(Rate(9), Rate(8)), Bandwidth(Rate(9)), Bandwidth(outbound=Rate(1))]


def changed(engine, bandwidths):
    """Each that it is given, there and back: its tree, and that of a new one which has that."""
    with vhostnet.open_nic(wish(bandwidth=bandwidths[0]), engine=engine) as nic:
        fds = nic.fds
        for bandwidth in [*bandwidths, *reversed(bandwidths)]:
            nic.update(wish(bandwidth=bandwidth))
            with vhostnet.open_nic(wish(2, bandwidth), engine=engine) as fresh:
                yield tree_of(nic.ifname), tree_of(fresh.ifname)
            assert (nic.fds, nic.spec.bandwidth, link(nic.ifname)["up"]) == (fds, bandwidth, True)


def test_it_changes_comes_and_goes(engine, bridge, no_leaks):
    for its, fresh in changed(engine, ALONE):
        assert its == fresh


@pytest.mark.parametrize("kind", ["ethernet", "direct"])
def test_of_one_that_is_on_no_bridge_too(engine, kind, request):
    """In its place: it does not leave any."""
    source = None
    if kind == "direct":
        request.getfixturevalue("macvtaps")
        ip("link add p0 type veth peer name q0")
        source = DirectSource("p0")
    plain = InterfaceSpec(type=kind, source=source, vhost="off", mac="52:54:00:00:00:01")
    one_way = (lambda rate: Bandwidth(outbound=rate)) if kind == "direct" else Bandwidth
    with vhostnet.open_nic(plain, engine=engine) as nic:
        before = nic.fds, nic.mtu
        for bandwidth in (one_way(Rate(1000)), one_way(Rate(7)), None, one_way(Rate(9)), None):
            spec = dataclasses.replace(plain, bandwidth=bandwidth)
            nic.update(spec)
            assert roots(nic.ifname) == ({"htb"} if bandwidth else {"noqueue"}, False)
            assert (nic.fds, nic.mtu, nic.spec, link(nic.ifname)["up"]) == (*before, spec, True)


@pytest.mark.shaping
def test_what_a_guest_sends_changes_too(engine, bridge, no_leaks):
    for its, fresh in changed(engine, BOTH):
        assert its == fresh


REFUSED = {
    "LINK": {"bridge": "nowhere"},
    "VLAN_ADD": {"vlan": vhostnet.Vlan((10,))},
}


@pytest.mark.parametrize("was", [None, Bandwidth(Rate(1000, 2000))], ids=["plain", "limited"])
@pytest.mark.parametrize("to", [None, Bandwidth(Rate(7))], ids=["to none", "to another"])
@pytest.mark.parametrize("act", REFUSED)
def test_what_is_refused_leaves_it_as_it_was(engine, bridge, was, to, act):
    with vhostnet.open_nic(wish(bandwidth=was), engine=engine) as nic:
        before = tree_of(nic.ifname)
        with pytest.raises(HostError) as caught:
            nic.update(wish(bandwidth=to, **REFUSED[act]))
        assert (caught.value.act, caught.value.undoing) == (act, None)
        assert (tree_of(nic.ifname), nic.spec.bandwidth, link(nic.ifname)["master"]) == (before, was, BRIDGE)


def test_one_that_somebody_has_given_another_tree(engine, bridge):
    """The root is ours to replace; what is somebody else's at the ingress is not."""
    with vhostnet.open_nic(gets(1000), engine=engine) as nic:
        tc(f"qdisc replace dev {nic.ifname} root tbf rate 1mbit burst 32kbit latency 400ms")
        tc(f"qdisc add dev {nic.ifname} clsact")
        nic.update(gets(7))
        assert roots(nic.ifname) == ({"htb", "clsact"}, False)
        nic.update(wish())
        assert roots(nic.ifname) == ({"noqueue", "clsact"}, False)


def test_from_a_pool(engine, bridge, no_leaks):
    shape = InterfaceSpec(bridge=BRIDGE, queues=2, vhost="off", bandwidth=Bandwidth(Rate(1000)))
    with vhostnet.NicPool(shape, size=4, low=0, engine=engine) as pool:
        pool.fill()
        assert {tuple(sorted(roots(name)[0])) for name in link_names() if name.startswith("vnp")} == {("noqueue",)}
        for bandwidth in (shape.bandwidth, Bandwidth(Rate(7, 9)), None):
            spec = dataclasses.replace(shape, mac=MAC.format(7), bandwidth=bandwidth)
            fresh = vhostnet.open_nic(dataclasses.replace(spec, mac=MAC.format(8)), engine=engine)
            with fresh, pool.take(spec) as nic:
                assert (tree_of(nic.ifname), link(nic.ifname)["up"]) == (tree_of(fresh.ifname), True)
        with pool.take() as nic:
            assert roots(nic.ifname) == ({"htb"}, False)
        assert pool.stats.missed == 0


def test_one_that_lasts_keeps_it(engine, bridge):
    with vhostnet.open_nic(gets(1000), engine=engine, persist=True) as nic:
        before = tree_of(nic.ifname)
        nic.update(gets(7))
        nic.update(gets(1000))
    assert tree_of(nic.ifname) == before
    vhostnet.delete_nics([nic.ifname])
    assert nic.ifname not in link_names()


def test_many_threads(engine, bridge):
    """Each update is whole, whichever is the last."""
    with vhostnet.open_nic(wish(), engine=engine) as nic:
        wanted = []
        for bandwidth in (Bandwidth(Rate(1000)), Bandwidth(Rate(7))):
            nic.update(wish(bandwidth=bandwidth))
            wanted.append(tree_of(nic.ifname))

        def work(bandwidth):
            for _ in range(20):
                nic.update(wish(bandwidth=bandwidth))

        threads = [threading.Thread(target=work, args=(Bandwidth(Rate(rate)),)) for rate in (1000, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert tree_of(nic.ifname) in wanted


# --- refusals --------------------------------------------------------------------------------------------


def test_a_kernel_that_lacks_a_part_of_it(engine, bridge, no_leaks):
    """What there was of it is gone, and so are the others."""
    if not lacks("shaping"):
        pytest.skip("it has all of it")
    specs = [gets(1000, mac=MAC.format(9)), wish(1), wish(2, Bandwidth(Rate(7), Rate(7)), ifname="vnet7")]
    with pytest.raises(Unsupported) as caught:
        vhostnet.open_nics(specs, engine=engine)
    error = caught.value
    assert (error.act, error.call, error.ifname, error.undoing) == ("TC", "RTM_NEWTFILTER", "vnet7", None)
    assert error.strerror in ("Failed to load TC action module", "TC classifier not found")
    assert "modprobe" in error.remedy
    kept = vhostnet.open_nics(specs, engine=engine, on_error="keep")
    assert [type(one) for one in kept] == [vhostnet.Nic, vhostnet.Nic, Unsupported]
    assert str(kept[2]) == str(error)
    vhostnet.close_nics(kept[:2])
    with vhostnet.open_nic(gets(1000), engine=engine) as nic:
        before = tree_of(nic.ifname)
        with pytest.raises(Unsupported):
            nic.update(wish(bandwidth=Bandwidth(Rate(7), Rate(7))))
        assert (tree_of(nic.ifname), nic.spec) == (before, gets(1000))


@pytest.mark.usefixtures("macvtaps")
def test_a_kernel_that_lacks_what_a_macvtaps_guest_gets(engine, no_leaks):
    """It is a link of its own, and goes all the same."""
    if not lacks("shaping"):
        pytest.skip("it has all of it")
    specs = [direct(Bandwidth(outbound=Rate(7)), mac=MAC.format(9)), direct(Bandwidth(Rate(7)), ifname="vnet7")]
    with pytest.raises(Unsupported) as caught:
        vhostnet.open_nics(specs, engine=engine)
    assert (caught.value.act, caught.value.ifname, caught.value.undoing) == ("TC", "vnet7", None)


def test_the_cost_is_of_what_is_made(engine):
    bridges.make_bridge(BRIDGE)
    plain, limited, default = (
        vhostnet.cost(vhostnet.plan_nics([spec], engine=engine, qdisc=qdisc))
        for spec, qdisc in [(wish(), "noqueue"), (gets(1000), "noqueue"), (wish(), "default")]
    )
    assert plain.memory < limited.memory < plain.memory + 20_000
    assert limited.rtnl_turns > plain.rtnl_turns
    assert default.memory > plain.memory
