"""The Program: order, flags and policy, as data."""

from dataclasses import FrozenInstanceError

import pytest
from conftest import BRIDGE

from vhostnet import (
    Bandwidth,
    DirectSource,
    HostIp,
    HostRoute,
    InterfaceSpec,
    Rate,
    SpecError,
    VirtualPort,
    Vlan,
)
from vhostnet.program.cost import Cost, cost
from vhostnet.program.parts import SLOW, UNSHAPED, Act, Fds, Link, Op, Persist, Queue, TunFlag, held_row
from vhostnet.program.plan import (
    plan,
    plan_delete,
    plan_down,
    plan_end,
    plan_reset,
    plan_take,
    plan_up,
    plan_update,
    resolve,
)
from vhostnet.program.program import Program
from vhostnet.program.rows import Features, tun_flags, vhost_policy
from vhostnet.values import replace

ALL = Features(tun=0x7173, ipv6=True)
BRIDGES = {BRIDGE: Link(BRIDGE, 7, "bridge", 1500, b""), "br9": Link("br9", 9, "bridge", 9000, b"")}


@pytest.fixture
def other(seed):
    return replace(seed, mac="52:54:00:00:00:01", ifname=None)


def ops(program):
    return [act.op.name for act in program.acts]


def test_the_seeds_plan_to_the_letter(seed):
    program = resolve(plan([seed], ["veni_vFsp6g8y"], ALL), BRIDGES)
    assert str(program) == (
        "0  TAP_OPEN    veni_vFsp6g8y  8 queues  tap no_pi vnet_hdr multi_queue  excl\n"
        "1  VHOST_OPEN  veni_vFsp6g8y  8 x /dev/vhost-net  required\n"
        "2  QDISC       veni_vFsp6g8y  noqueue\n"
        "3  LINK        veni_vFsp6g8y  mac fe:90:6f:28:84:f2  mtu 1500  master vbr2525476 (7)\n"
        "4  UP          veni_vFsp6g8y"
    )


def test_a_batch_runs_all_of_one_kind_before_the_next(seed, other):
    program = plan([seed, other], ["a", "b"], ALL, vhost="auto")
    assert [(act.op.name, act.nic) for act in program.acts] == [
        (op, nic) for op in ("TAP_OPEN", "VHOST_OPEN", "QDISC", "LINK", "UP") for nic in (0, 1)
    ]


@pytest.mark.parametrize(
    "specs", [[InterfaceSpec(type="user")], [InterfaceSpec(bridge="br0"), InterfaceSpec(type="user")]]
)
def test_what_has_no_tap_cannot_be_made(specs):
    with pytest.raises(SpecError, match="type='user' has no TAP, so there is nothing to open") as caught:
        plan(specs, ["a", "b"][: len(specs)], ALL)
    assert caught.value.expected == "bridge or ethernet or network or direct"


def test_up_waits_for_every_answer_and_nothing_else_does(seed, other):
    program = plan([seed, other], ["a", "b"], ALL)
    assert [act for act in program.acts if act.barrier] == [Act(Op.UP, 0, barrier=True)]


@pytest.mark.parametrize(
    ("model", "queues", "flags"),
    [
        ("virtio", 1, "TAP NO_PI VNET_HDR"),
        ("virtio", 2, "TAP NO_PI VNET_HDR MULTI_QUEUE"),
        ("virtio-transitional", 1, "TAP NO_PI VNET_HDR"),
        ("e1000e", 1, "TAP NO_PI VNET_HDR"),
        ("vmxnet3", 1, "TAP NO_PI VNET_HDR"),
        ("igb", 1, "TAP NO_PI VNET_HDR"),
        ("e1000", 1, "TAP NO_PI"),
        ("rtl8139", 1, "TAP NO_PI"),
    ],
)
def test_flags_by_model_and_queues(model, queues, flags):
    wanted = 0
    for name in flags.split():
        wanted |= TunFlag[name]
    assert tun_flags(InterfaceSpec(bridge="b", model=model, queues=queues), ALL) == wanted


def test_vnet_hdr_only_where_the_kernel_has_it():
    assert not tun_flags(InterfaceSpec(bridge="b"), Features(0, True)) & TunFlag.VNET_HDR


@pytest.mark.parametrize(
    ("fields", "override", "policy"),
    [
        ({}, None, "auto"),
        ({"vhost": "require"}, None, "require"),
        ({"vhost": "require"}, "auto", "auto"),
        ({"vhost": "off"}, "require", "require"),
        ({"model": "e1000"}, None, "off"),
        ({"model": "e1000"}, "auto", "off"),
    ],
)
def test_vhost_policy(fields, override, policy):
    assert vhost_policy(InterfaceSpec(bridge="b", **fields), override) == policy


def test_vhost_cannot_be_required_of_a_model_that_has_none():
    with pytest.raises(SpecError, match="e1000"):
        vhost_policy(InterfaceSpec(bridge="b", model="e1000"), "require")


def test_vhost_open_is_optional_under_auto_and_absent_under_off(seed):
    auto = plan([seed], ["a"], ALL, vhost="auto")
    assert [act.optional for act in auto.acts if act.op == Op.VHOST_OPEN] == [True]
    assert "VHOST_OPEN" not in ops(plan([seed], ["a"], ALL, vhost="off"))


def test_the_default_qdisc_is_left_alone(seed):
    assert "QDISC" not in ops(plan([seed], ["a"], ALL, qdisc="default"))


def test_the_selftest_is_made_once_and_before_anything_is_visible(seed, other):
    program = plan([seed, other], ["a", "b"], ALL, selftest=True)
    assert ops(program).count("SELFTEST") == 1
    assert ops(program).index("SELFTEST") < ops(program).index("QDISC")
    assert "private /dev/vhost-net" in str(program)


@pytest.mark.parametrize(
    ("fields", "asked", "resolved"),
    [
        ({"bridge": BRIDGE}, (0, 0), (1500, 7)),
        ({"bridge": "br9"}, (0, 0), (9000, 9)),
        ({"bridge": "br9", "mtu": 1400}, (1400, 0), (1400, 9)),
        ({"type": "ethernet"}, (1500, 0), (1500, 0)),
        ({"type": "network", "network": "n", "bridge": "br9"}, (0, 0), (9000, 9)),
    ],
)
def test_mtu_and_master(fields, asked, resolved):
    """What is left to the run to look up, and what a dry run shows of it."""
    program = plan([InterfaceSpec(**fields)], ["a"], ALL)
    (row,) = program.nics
    assert (row.mtu, row.master) == asked
    (row,) = resolve(program, BRIDGES).nics
    assert (row.mtu, row.master) == resolved


def test_what_is_not_known_yet_is_printed_as_such():
    assert (
        str(plan([InterfaceSpec(bridge="br9")], ["a"], ALL)).splitlines()[3].endswith("mtu of the bridge  master br9")
    )


def test_without_ipv6_the_kernel_is_told_nothing_about_it(seed):
    (row,) = plan([seed], ["a"], Features(0x7173, False)).nics
    assert not row.no_ipv6


def test_two_nics_of_one_name_or_one_mac_are_refused(seed, other):
    with pytest.raises(SpecError, match="ifname='a' is asked for twice"):
        plan([seed, other], ["a", "a"], ALL)
    with pytest.raises(SpecError, match="mac='20:90:6f:28:84:f2' is asked for twice"):
        plan([other, seed, seed], ["a", "b", "c"], ALL)


def test_parked_is_all_but_up(seed):
    assert ops(plan([seed], ["a"], ALL, park=True)) == ops(plan([seed], ["a"], ALL))[:-1]


HELD = held_row("pool7", 9, Fds((3, 4, 5), (6, 7, 8)))


@pytest.mark.parametrize(
    ("how", "first"),
    [
        ({}, []),
        ({"wish": "mine"}, ["0  ALTNAME     pool7  mine"]),
        ({"wish": "mine", "rename": True}, ["0  RENAME      pool7  to mine"]),
    ],
)
def test_what_is_taken_is_named_and_comes_up(seed, how, first):
    program = plan_take(HELD, seed, "mark", **how)
    link = f"{len(first)}  LINK        pool7  mac fe:90:6f:28:84:f2  mtu of the bridge  master {BRIDGE}  up"
    assert str(program).splitlines() == [*first, link]
    assert not any(act.barrier for act in program.acts)  # one send
    assert program.nics[0].alias == "mark"


def test_attach():
    assert str(plan_reset(HELD, "")) == "0  ATTACH      pool7  queues 1..2"
    assert str(plan_reset(HELD, "/dev/vhost-net")).splitlines() == [
        "0  VHOST_OPEN  pool7  3 x /dev/vhost-net  required",
        "1  ATTACH      pool7  queues 1..2",
    ]


def test_each_is_deleted_for_itself():
    program = plan_delete([HELD, HELD._replace(ifname="pool8", ifindex=10)])
    assert str(program) == "0  DELETE      pool7  ifindex 9\n1  DELETE      pool8  ifindex 10"
    assert program.keep


def test_programs_are_values(seed):
    assert plan([seed], ["a"], ALL) == plan([seed], ["a"], ALL)
    with pytest.raises(FrozenInstanceError):
        plan([seed], ["a"], ALL).acts = ()


# --- what it costs ---------------------------------------------------------------------------------------


def test_the_cost_of_the_seed(seed):
    assert cost(plan([seed], ["a"], ALL)) == Cost(
        fds=16, memory=(257 + 8 * 66) * 1024 + 8 * 11_700, ports={BRIDGE: 1}, acts=5, rtnl_turns=25
    )


def test_the_cost_of_a_batch_is_the_sum(seed, other):
    batches = ([seed], ["a"]), ([other], ["b"]), ([seed, other], ["a", "b"])
    one, two, both = (cost(plan(specs, names, ALL)) for specs, names in batches)
    assert both.fds == one.fds + two.fds
    assert both.memory == one.memory + two.memory
    assert both.ports == {BRIDGE: 2}
    assert both.rtnl_turns == one.rtnl_turns + two.rtnl_turns - 2  # the bridge is looked up once


def test_the_default_qdisc_takes_twenty_times_the_memory(seed):
    slim, fat = (cost(plan([seed], ["a"], ALL, vhost="off", qdisc=qdisc)).memory for qdisc in ("noqueue", "default"))
    assert 15 < fat / slim < 25


def test_what_exists_costs_nothing_more():
    assert cost(plan_delete([HELD]))[:2] == (0, 0)


# --- slow acts -------------------------------------------------------------------------------------------

PLUGGED = InterfaceSpec(bridge="ovs0", vhost="off", vlan=Vlan((5, 6), True, 6), virtualport=VirtualPort())
SCRIPTED = InterfaceSpec(
    type="ethernet",
    vhost="off",
    script="/up",
    downscript="/down",
    tap_ips=(HostIp("10.0.0.1"),),
    tap_routes=(HostRoute("11.0.0.0", "10.0.0.2", 8),),
)


def test_slow_acts_stand_in_their_places(seed):
    program = plan([seed, PLUGGED, SCRIPTED], ["a", "b", "c"], ALL, vhost=None)
    assert [(act.op.name, act.nic) for act in program.acts if act.op not in (Op.VHOST_OPEN, Op.TAP_OPEN)] == [
        *(("QDISC", 0), ("QDISC", 2)),  # the switch would take it away
        *(("LINK", nic) for nic in range(3)),
        ("PLUG", 1),
        ("QDISC", 1),
        *(("UP", nic) for nic in range(3)),
        ("SCRIPT", 2),
        ("ADDRESS", 2),
    ]
    assert program.slow
    assert not plan([seed], ["a"], ALL).slow
    assert (program.nics[1].bridge, program.nics[1].no_ipv6, program.nics[1].port.vlans) == ("", True, ())


@pytest.mark.parametrize(
    ("inbound", "outbound", "queue", "police", "says", "last"),
    [
        (Rate(1000), None, Queue(8_000_000, 8_000_000), (0, 0), "gets 1000 kB/s", []),
        (Rate(7, 9, 3), None, Queue(56_000, 72_000, 24_576), (0, 0), "gets 7 kB/s, at most 9 kB/s", []),
        (None, Rate(1000), None, (8000, 8000), "sends 1000 kB/s", ["QDISC"]),
        (None, Rate(1000, 2000, 3), None, (8000, 24), "sends 1000 kB/s", ["QDISC"]),
        (Rate(1), Rate(1), Queue(8000, 8000), (8, 8), "gets 1 kB/s  sends 1 kB/s", []),
        (None, Rate(4_294_967), None, (34_359_736, 4_194_296), "sends 4294967 kB/s", ["QDISC"]),
    ],
)
def test_the_bandwidth_of_a_port_is_its_switchs(inbound, outbound, queue, police, says, last):
    spec = replace(PLUGGED, vlan=None, bandwidth=Bandwidth(inbound, outbound))
    program = plan([spec], ["b"], ALL)
    (row,) = program.nics
    assert row.shaping is UNSHAPED
    assert row.slow.plug.queue == queue
    assert (row.slow.plug.police_rate, row.slow.plug.police_burst) == police
    assert ops(program) == ["TAP_OPEN", "LINK", "PLUG", *last, "UP"]
    assert f"openvswitch ovs0  {says}" in str(program)


def test_the_bandwidth_of_a_port_changes_with_it():
    """HTB is the switch's to put there and to take away; the kernel's own, which comes then, goes for noqueue."""
    plain, gets, sends, both = (
        replace(PLUGGED, bandwidth=limits and Bandwidth(*limits))
        for limits in (None, (Rate(7),), (None, Rate(7)), (Rate(9), Rate(7)))
    )
    for was, to, found in (
        *((plain, to, ["REPLUG"]) for to in (gets, sends, both)),
        *((gets, to, ["REPLUG", "QDISC"]) for to in (plain, sends)),
        *((both, to, ["REPLUG", "QDISC"]) for to in (plain, sends)),
        (gets, both, ["REPLUG"]),
        (sends, plain, ["REPLUG"]),
        (both, both, []),
    ):
        (row,) = plan([was], ["b"], ALL).nics
        held = held_row("b", 3, Fds((7,), ()), "mark", slow=row.slow)
        changed = plan_update(held, was, to)
        assert (ops(changed), changed.nics[0].slow.plug.was_limited) == (found, was is not plain)


def test_the_root_that_a_switch_puts_there_is_no_dear_one():
    spec = replace(PLUGGED, queues=8)
    limited = replace(spec, bandwidth=Bandwidth(Rate(7), Rate(7)))
    plain, more = (cost(plan([one], ["b"], ALL)).memory for one in (spec, limited))
    assert plain < more < plain + 2**16


def test_what_lasts_is_last(seed):
    program = plan([PLUGGED], ["b"], ALL, persist=Persist())
    assert ops(program) == ["TAP_OPEN", "LINK", "PLUG", "QDISC", "UP", "PERSIST"]
    with pytest.raises(SpecError, match="downscript='/down' would be left for nobody"):
        plan([SCRIPTED], ["c"], ALL, persist=Persist())


def test_left_down_the_rest_waits_for_up():
    program = plan([PLUGGED, SCRIPTED], ["b", "c"], ALL, up=False)
    assert "SCRIPT" not in ops(program)
    assert "ADDRESS" not in ops(program)
    held = held_row("c", 3, Fds((7,), ()), slow=program.nics[1].slow)
    assert ops(plan_up(held, SCRIPTED)) == ["UP", "SCRIPT", "ADDRESS"]


def test_down_and_up_again():
    """What a bridge has once, and what goes with a link that is down; a script but once."""
    managed = InterfaceSpec(bridge=BRIDGE, mac_table_manager="libvirt", vhost="off")
    assert "FDB" not in ops(plan([managed], ["a"], ALL, up=False))
    held = held_row("a", 3, Fds((7,), ()))
    assert ops(plan_down(held, managed)) == ["DOWN", "UNFDB"]
    assert ops(plan_up(held, managed)) == ["FDB", "UP"]
    for up, found in ((False, ["LEAVE", "LINK", "COALESCE"]), (True, ["LEAVE", "LINK", "FDB", "COALESCE", "UP"])):
        assert ops(plan_update(held, managed, managed, up=up)) == found
    held = held_row("c", 3, Fds((7,), ()), slow=plan([SCRIPTED], ["c"], ALL).nics[0].slow)
    assert ops(plan_down(held, SCRIPTED)) == ["DOWN", "UNADDRESS"]
    assert ops(plan_up(held, SCRIPTED, {Op.SCRIPT})) == ["UP", "ADDRESS"]


def test_the_end_of_slow_acts_is_tried_whatever_comes_of_it():
    rows = [
        held_row(name, 3 + number, Fds((7 + number,), ()), slow=row.slow)
        for number, (name, row) in enumerate(zip("bc", plan([PLUGGED, SCRIPTED], ["b", "c"], ALL).nics, strict=True))
    ]
    program = plan_end(rows)
    assert [(act.op.name, act.nic, act.optional) for act in program.acts] == [
        ("DOWNSCRIPT", 1, True),
        ("UNADDRESS", 1, True),
        ("UNPLUG", 0, True),
    ]
    assert program.keep
    assert not plan_end([held_row("a", 3, Fds((7,), ()))]).acts


@pytest.mark.parametrize("spec", [PLUGGED, SCRIPTED], ids=["plugged", "scripted"])
def test_slow_acts_are_not_done_ahead(seed, spec):
    with pytest.raises(SpecError, match="is nothing that a pool can have ready"):
        plan([spec], ["a"], ALL, park=True)
    with pytest.raises(SpecError, match="is nothing that a pool can have ready"):
        plan_take(held_row("a", 3, Fds((7,), ())), spec, "mark")


@pytest.mark.parametrize("op", [op for op in Op if op >= SLOW], ids=lambda op: op.name)
def test_a_slow_act_is_about_something(op):
    with pytest.raises(ValueError, match="nothing to set in row 0"):
        Program((held_row("a", 3, Fds((7,), ())),), (Act(op, 0),))


# --- macvtaps --------------------------------------------------------------------------------------------


def direct(dev="eth0", mode="vepa", **fields):
    return InterfaceSpec(type="direct", source=DirectSource(dev, mode), **fields)


def test_a_macvtap_takes_the_place_of_a_tap(other):
    specs = [direct(queues=8, mac="52:54:00:00:00:01"), other, direct(mode="passthrough", vhost="off")]
    program = plan(specs, ["m0", "t0", "m1"], ALL)
    assert [(act.op.name, act.nic) for act in program.acts] == [
        *[("TAP_OPEN", 1), ("MACVTAP", 0), ("MACVTAP", 2), ("VHOST_OPEN", 0), ("VHOST_OPEN", 1)],
        *[("QDISC", 0), ("QDISC", 1), ("QDISC", 2), ("LINK", 1), ("UP", 0), ("UP", 1), ("UP", 2)],
    ]
    lines = str(program).splitlines()
    told = "8 queues  vepa on eth0  tap no_pi vnet_hdr multi_queue  mac 52:54:00:00:00:01"
    assert " ".join(lines[1].split()) == f"1 MACVTAP m0 {told}".replace("  ", " ")
    assert "passthrough on eth0" in lines[2]


def test_one_mac_is_one_macvtap_of_a_link():
    twice = [direct(mac="52:54:00:00:00:01"), direct(mac="52:54:00:00:00:01")]
    with pytest.raises(SpecError, match="asked for twice on link 'eth0'"):
        plan(twice, ["a", "b"], ALL)
    assert plan([twice[0], direct("eth1", mac="52:54:00:00:00:01")], ["a", "b"], ALL)


def test_what_a_macvtap_costs():
    taken, default = (cost(plan([direct(queues=8, vhost="off")], ["a"], ALL, qdisc=qdisc)) for qdisc in QDISCS)
    assert (taken.fds, taken.ports) == (8, {})
    assert 80_000 < taken.memory < default.memory < taken.memory + 20_000  # one transmit queue, and not 256


QDISCS = ("noqueue", "default")


def test_a_macvtaps_directions_are_its_guests():
    """What it sends is what its guest sends; of a TAP it is what the guest gets."""
    swapped = Bandwidth(RATES.outbound, RATES.inbound)
    tap, macvtap = (InterfaceSpec(type="ethernet", bandwidth=RATES), direct(bandwidth=swapped))
    program = plan([tap, macvtap, direct("eth1", bandwidth=Bandwidth(Rate(7)))], ["t", "m", "n"], ALL, vhost="off")
    assert program.nics[0].shaping == program.nics[1].shaping
    assert program.nics[0].shaping[:2] == (1_000_000, 5_000_000)
    acts = [[act.op.name for act in program.acts if act.nic == nic] for nic in range(3)]
    assert acts == [["TAP_OPEN", "LINK", "TC", "UP"], ["MACVTAP", "TC", "UP"], ["MACVTAP", "QDISC", "TC", "UP"]]
    told = [line.split(maxsplit=3)[3] for line in str(program).splitlines() if "  TC  " in line]
    assert told == [
        "gets 1000 kB/s, at most 5000 kB/s  sends 128 kB/s",
        "sends 1000 kB/s, at most 5000 kB/s  gets 128 kB/s",
        "gets 7 kB/s",
    ]


RATES = Bandwidth(Rate(1000, 5000, 1024), Rate(128, 256))
