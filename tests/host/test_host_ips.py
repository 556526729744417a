"""<source><ip/><route/></source> of an ethernet NIC: the host's end of its cable, as libvirt sets it."""

import errno
import subprocess

import pytest
from conftest import link_names
from kernel import ip, run_json

import vhostnet
from vhostnet import HostError, HostIp, HostRoute, InterfaceSpec

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("net", "no_leaks")]

# libvirt's own case (net-eth-hostip), and what real libvirt 11.3 was seen to make of it.
IPS = (HostIp("192.168.125.1", 24, "192.168.125.2"), HostIp("172.20.1.1"), HostIp("fd00::1"))
ROUTES = (
    HostRoute("10.20.0.0", "192.168.125.2", 16),
    HostRoute("11.0.0.0", "172.20.1.2", 16, metric=7),
    HostRoute("fd01::", "fd00::2", 16),
)


def wish(**fields):
    return InterfaceSpec(**{"type": "ethernet", "vhost": "off", "ifname": "nic0", **fields})


def addresses(name="nic0"):
    (link,) = run_json(f"ip address show dev {name}")
    return [
        (entry["local"], entry.get("address"), entry["prefixlen"], entry.get("broadcast"))
        for entry in link["addr_info"]
        if entry["scope"] == "global"
    ]


def routes(family=4):
    """But for those that come with an address."""
    found = run_json(f"ip -{family} route show dev nic0")
    return {route["dst"]: (route["gateway"], route["metric"]) for route in found if "gateway" in route}


def test_addresses_and_routes(engine):
    with vhostnet.open_nic(wish(tap_ips=IPS, tap_routes=ROUTES), engine=engine) as nic:
        assert sorted(addresses()) == [
            ("172.20.1.1", None, 16, "172.20.255.255"),
            ("192.168.125.1", "192.168.125.2", 24, None),
            ("fd00::1", None, 64, None),
        ]
        assert routes() == {"10.20.0.0/16": ("192.168.125.2", 1), "11.0.0.0/16": ("172.20.1.2", 7)}
        assert routes(6) == {"fd01::/16": ("fd00::2", 1)}
        assert nic.timings[-1].act == "ADDRESS"
        assert not nic.needs_closing  # they go with the link


def test_the_default_route(engine):
    spec = wish(tap_ips=(HostIp("10.1.1.1"),), tap_routes=(HostRoute("0.0.0.0", "10.1.1.2"),))
    with vhostnet.open_nic(spec, engine=engine):
        assert routes() == {"default": ("10.1.1.2", 1)}


def test_the_program_says_so(engine):
    program = vhostnet.plan_nics([wish(tap_ips=IPS[:1], tap_routes=ROUTES[:1])], engine=engine)
    assert str(program).splitlines()[-1] == (
        "4  ADDRESS     nic0  192.168.125.1 peer 192.168.125.2/24  route 10.20.0.0/16 via 192.168.125.2 metric 1"
    )


UNREACHABLE = (HostRoute("11.0.0.0", "12.0.0.1", 8),)


@pytest.mark.parametrize(
    ("ips", "routes", "code", "call", "what"),
    [
        ((HostIp("10.0.0.1"), HostIp("10.0.0.1")), (), errno.EEXIST, "RTM_NEWADDR", "10.0.0.1/8"),
        ((HostIp("10.0.0.1"),), UNREACHABLE, errno.ENETUNREACH, "RTM_NEWROUTE", "11.0.0.0/8"),
        ((), UNREACHABLE, errno.ENETUNREACH, "RTM_NEWROUTE", "11.0.0.0/8"),
    ],
)
def test_refused(engine, ips, routes, code, call, what):
    with pytest.raises(HostError) as caught:
        vhostnet.open_nics([wish(ifname="nic1"), wish(tap_ips=ips, tap_routes=routes)], engine=engine)
    error = caught.value
    assert (error.errno, error.act, error.call, error.ifname) == (code, "ADDRESS", call, "nic0")
    assert error.strerror.startswith(what)
    assert error.remedy
    assert link_names() == ["lo"]


def test_left_down_they_come_when_it_comes_up(engine):
    with vhostnet.open_nic(wish(tap_ips=IPS, tap_routes=ROUTES), engine=engine, up=False) as nic:
        assert addresses() == []
        nic.up()
        assert len(addresses()) == 3


def test_they_go_with_it_when_it_goes_down_and_come_back(engine):
    with vhostnet.open_nic(wish(tap_ips=IPS, tap_routes=ROUTES), engine=engine) as nic:
        before = sorted(addresses()), routes(), routes(6)
        for _ in range(2):
            nic.down()
            assert (addresses(), routes(), routes(6)) == ([], {}, {})
        for _ in range(2):
            nic.up()
            assert (sorted(addresses()), routes(), routes(6)) == before


def test_a_tap_that_is_there_is_what_it_was_before(engine):
    subprocess.run(["ip", "tuntap", "add", "nic0", "mode", "tap"], check=True)
    ip("address add 192.168.9.1/24 dev nic0")
    ip("link set nic0 up")
    before = addresses()
    spec = wish(managed=False, tap_ips=IPS, tap_routes=ROUTES)
    with vhostnet.open_nic(spec, engine=engine) as nic:
        assert len(addresses()) == 4
        assert nic.needs_closing
    assert (addresses(), routes(), routes(6)) == (before, {}, {})
    ip("link del nic0")


def test_what_somebody_else_has_set_is_not_taken_away(engine):
    """The second address is there, and it is not ours; the first goes again."""
    subprocess.run(["ip", "tuntap", "add", "nic0", "mode", "tap"], check=True)
    ip("address add 172.20.1.1/16 brd + dev nic0")
    ip("link set nic0 up")
    before = addresses()
    with pytest.raises(HostError, match="there already") as caught:
        vhostnet.open_nic(wish(managed=False, tap_ips=IPS), engine=engine)
    assert caught.value.errno == errno.EEXIST
    assert addresses() == before
    ip("link del nic0")
