"""Who may have what: the file, and each rule's refusal."""

import grp
import pwd

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vhostnet
from vhostnet.broker.peer import Peer
from vhostnet.broker.policy import Policy, Rule, parse_policy
from vhostnet.values import replace

ME = Peer(7, 1000, 100, frozenset((100, 36)), "/system.slice/vm-1.service", "9")
OPEN = Rule(name="mine", users=(1000,), bridges=("br0", "vm-*"))
WHOLE = """
[[rule]]
name = "all of it"
users = ["root", 1000]
groups = ["root", 36]
cgroups = ["/system.slice/vm-*.service"]
types = ["bridge", "ethernet"]
bridges = ["br0"]
vlans = [7, "100-199"]
ifnames = ["vm-*"]
macs = ["52:54:00:AA", ""]
devices = ["/dev/net/tun"]
nics = 1
queues = 2
clients = 3
rate = 1000
virtualports = true

[[rule]]
users = []
"""


def wish(**fields):
    return vhostnet.InterfaceSpec(**{"bridge": "br0", **fields})


def test_the_file():
    one, two = parse_policy(WHOLE, "it").rules
    assert one == Rule(
        name="all of it",
        users=(pwd.getpwnam("root").pw_uid, 1000),
        groups=(grp.getgrnam("root").gr_gid, 36),
        cgroups=("/system.slice/vm-*.service",),
        types=("bridge", "ethernet"),
        bridges=("br0",),
        vlans=((7, 7), (100, 199)),
        ifnames=("vm-*",),
        macs=("52:54:00:aa", ""),
        devices=("/dev/net/tun",),
        nics=1,
        queues=2,
        clients=3,
        rate=1000,
        virtualports=True,
    )
    assert two == Rule(name="2", users=())


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("[[rule]\n", "it", ""),
        ("rules = 1", "it", "[[rule]]"),
        ("rule = 1", "it", "[[rule]]"),
        ("rule = [1]", "it: rule 1", "[[rule]]"),
        ("[[rule]]\nbridge = 'br0'", "it: rule 1", "bridges"),
        ("[[rule]]\nusers = 'root'", "it: rule 1, users", "uids"),
        ("[[rule]]\nusers = ['nobody-of-that-name']", "it: rule 1, users", "users that this host knows"),
        ("[[rule]]\nusers = [true]", "it: rule 1, users", "uids"),
        ("[[rule]]\ngroups = ['nobody-of-that-name']", "it: rule 1, groups", "gids"),
        ("[[rule]]\nbridges = [1]", "it: rule 1, bridges", "patterns"),
        ("[[rule]]\nbridges = ['']", "it: rule 1, bridges", "patterns"),
        ("[[rule]]\nvlans = 7", "it: rule 1, vlans", "ranges"),
        ("[[rule]]\nvlans = ['7-']", "it: rule 1, vlans", "ranges"),
        ("[[rule]]\nvlans = ['9-7']", "it: rule 1, vlans", "ranges"),
        ("[[rule]]\nvlans = [4096]", "it: rule 1, vlans", "ranges"),
        ("[[rule]]\nvlans = [true]", "it: rule 1, vlans", "ranges"),
        ("[[rule]]\nmacs = ['5254']", "it: rule 1, macs", "prefixes"),
        ("[[rule]]\ntypes = ['direct']", "it: rule 1, types", "ethernet"),
        ("[[rule]]\nnics = -1", "it: rule 1, nics", "NICs"),
        ("[[rule]]\nnics = 1.5", "it: rule 1, nics", "NICs"),
        ("[[rule]]\nrate = 0", "it: rule 1, rate", "kB"),
        ("[[rule]]\nvirtualports = 1", "it: rule 1, virtualports", "true"),
        ("[[rule]]\nname = ''", "it: rule 1, name", "name"),
        ("[[rule]]\nname = 'x'\n[[rule]]\nname = 'x'", "it", ""),
    ],
)
def test_a_file_that_is_wrong(text, place, expected):
    with pytest.raises(vhostnet.SpecError) as caught:
        parse_policy(text, "it")
    assert caught.value.attribute == place
    assert expected in caught.value.expected


@given(st.text())
def test_any_text_is_a_policy_or_refused(text):
    try:
        parse_policy(text, "it")
    except vhostnet.SpecError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        (Rule(name="", users=(1000,)), True),
        (Rule(name="", users=(1001,)), False),
        (Rule(name="", users=()), False),
        (Rule(name=""), False),
        (Rule(name="", groups=(36,)), True),
        (Rule(name="", groups=(37,)), False),
        (Rule(name="", cgroups=("/system.slice/*",)), True),
        (Rule(name="", cgroups=("/user.slice/*",)), False),
        (Rule(name="", users=(1000,), groups=(37,)), False),
        (Rule(name="", users=(1000,), groups=(36,), cgroups=("*vm-1*",)), True),
    ],
)
def test_whom_a_rule_is_for(rule, holds):
    assert rule.is_for(ME) is holds


def test_whose_cgroup_nobody_knows_is_in_none():
    assert not Rule(name="", cgroups=("/*",)).is_for(ME._replace(cgroup=""))


FORBIDDEN = [
    ({}, {"bridge": "br1"}, "allows the bridges br0, vm-*, not br1"),
    ({"bridges": ()}, {}, "allows the bridges none, not br0"),
    ({}, {"type": "ethernet", "bridge": None}, "allows the types bridge, network, not ethernet"),
    ({}, {"type": "network", "network": "n", "bridge": "br1"}, "not br1"),
    ({}, {"type": "user", "bridge": None}, "not user"),
    (
        {"types": ("direct",)},
        {"type": "user", "bridge": None},
        "not user",
    ),
    ({"types": ("ethernet",)}, {"type": "ethernet", "bridge": None, "script": "/bin/true"}, "allows no script"),
    ({"types": ("ethernet",)}, {"type": "ethernet", "bridge": None, "downscript": "/bin/true"}, "allows no downscript"),
    (
        {"types": ("ethernet",)},
        {"type": "ethernet", "bridge": None, "tap_ips": (vhostnet.HostIp("10.0.0.1"),)},
        "allows no tap_ips",
    ),
    (
        {"types": ("ethernet",), "ifnames": ("*",)},
        {"type": "ethernet", "bridge": None, "managed": False, "ifname": "x"},
        "allows no TAP that is there already",
    ),
    ({}, {"vlan": vhostnet.Vlan((7,))}, "allows the VLANs none, not 7"),
    ({"vlans": ((7, 7), (9, 11))}, {"vlan": vhostnet.Vlan((7, 8), trunk=True)}, "allows the VLANs 7, 9-11, not 8"),
    ({}, {"ifname": "x"}, "allows the names none, not x"),
    ({"ifnames": ("vm-*",)}, {"ifname": "vn-1"}, "allows the names vm-*, not vn-1"),
    ({}, {"mac": "20:90:6f:00:00:01"}, "allows MACs that begin with 52:54:00, not 20:90:6f:00:00:01"),
    ({}, {"tap_path": "/dev/other"}, "not /dev/other"),
    ({}, {"vhost_path": "/dev/other", "vhost": "off"}, "not /dev/other"),
    ({}, {"virtualport": vhostnet.VirtualPort()}, "allows no virtualport"),
    ({"rate": 10}, {}, "allows 10 kB/s inbound, and no limit is asked for"),
    (
        {"rate": 10},
        {"bandwidth": vhostnet.Bandwidth(vhostnet.Rate(10), vhostnet.Rate(11))},
        "allows 10 kB/s outbound, and 11 kB/s",
    ),
    ({"rate": 10}, {"bandwidth": vhostnet.Bandwidth(vhostnet.Rate(10, peak=20), vhostnet.Rate(10))}, "20 kB/s"),
    (
        {},
        {
            "type": "network",
            "network": "n",
            "bandwidth": vhostnet.Bandwidth(vhostnet.Rate(10, floor=5)),
        },
        "allows no floor",
    ),
]


@pytest.mark.parametrize(("changes", "fields", "problem"), FORBIDDEN)
def test_what_a_rule_forbids(changes, fields, problem):
    rule = replace(OPEN, **changes)
    with pytest.raises(vhostnet.PolicyRefused) as caught:
        Policy((rule,), "it").check(ME, [wish(**fields)])
    assert caught.value.rule == "mine"
    assert "rule 'mine'" in str(caught.value)
    assert problem in str(caught.value)


ALLOWED = [
    ({}, {"bridge": "vm-7"}),
    ({"vlans": ((7, 9),)}, {"vlan": vhostnet.Vlan((7, 9), trunk=True)}),
    ({"ifnames": ("vm-*",)}, {"ifname": "vm-1"}),
    ({"macs": ("",)}, {"mac": "20:90:6f:00:00:01"}),
    ({"types": ("ethernet",)}, {"type": "ethernet", "bridge": None}),
    ({"virtualports": True}, {"virtualport": vhostnet.VirtualPort()}),
    ({"rate": 10}, {"bandwidth": vhostnet.Bandwidth(vhostnet.Rate(10), vhostnet.Rate(10))}),
]


@pytest.mark.parametrize(("changes", "fields"), ALLOWED)
def test_what_a_rule_allows(changes, fields):
    rule = replace(OPEN, **changes)
    assert Policy((rule,), "it").check(ME, [wish(**fields)]) is rule


def test_the_first_rule_that_allows_all_of_it():
    one, two = replace(OPEN, name="one"), replace(OPEN, name="two", bridges=("*",))
    policy = Policy((replace(OPEN, name="another's", users=(1,), bridges=("*",)), one, two), "it")
    assert policy.check(ME, [wish(), wish(bridge="br1")]) is two
    assert policy.check(ME, [wish()]) is one
    with pytest.raises(vhostnet.PolicyRefused) as caught:
        policy.check(ME, [wish(ifname="x")])
    assert caught.value.rule == "one"


def test_nobody_is_allowed_anything_where_nothing_is_said():
    with pytest.raises(vhostnet.PolicyRefused, match=r"no rule of it is for uid 1000 \(groups 36, 100; cgroup /sys"):
        Policy((), "it").check(ME, [wish()])
