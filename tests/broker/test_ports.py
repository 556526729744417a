"""Ports of a real Open vSwitch by a broker: they outlive a NIC, and so a client that is killed."""

import subprocess
import sys

import pytest
from brokers import serving, until
from conftest import ROOT

import vhostnet
from bench import openvswitch
from vhostnet.values import replace

pytestmark = [pytest.mark.ovs, pytest.mark.tap]
POLICY = "[[rule]]\nusers = [0]\nbridges = ['ovs0']\nvlans = [7]\nvirtualports = true\n"
HOLDER = """
import sys, time, vhostnet
net = vhostnet.connect(sys.argv[1])
limit = vhostnet.Bandwidth(vhostnet.Rate(7))
port = vhostnet.VirtualPort()
nic = net.open_nic(vhostnet.InterfaceSpec(bridge="ovs0", vhost="off", virtualport=port, bandwidth=limit))
print("ready", flush=True)
time.sleep(100)
"""


@pytest.fixture
def switch(net):
    with openvswitch.switch("ovs0") as made:
        yield made


def wish(**fields):
    return vhostnet.InterfaceSpec(bridge="ovs0", vhost="off", virtualport=vhostnet.VirtualPort(), **fields)


def test_a_port_goes_with_its_nic(switch, no_leaks):
    with serving(POLICY) as broker, vhostnet.connect(broker.path) as net:
        nics = net.open_nics([wish(), wish(vlan=vhostnet.Vlan((7,)))])
        assert sorted(switch.ports("ovs0")) == sorted(nic.ifname for nic in nics)
        nics[0].update(replace(nics[0].spec, vlan=vhostnet.Vlan((7,))))
        assert switch.row("Port", nics[0].ifname)["tag"] == 7
        with pytest.raises(vhostnet.PolicyRefused, match="VLANs 7, not 8"):
            nics[0].update(replace(nics[0].spec, vlan=vhostnet.Vlan((8,))))
        nics[0].close()
        assert switch.ports("ovs0") == [nics[1].ifname]
        net.close_nics(nics)
        assert switch.ports("ovs0") == []


@pytest.mark.slow
def test_a_port_of_a_client_that_was_killed(switch, no_leaks):
    """The broker looks for such every 5 s; and takes none of anybody else's."""
    with serving(POLICY) as broker, vhostnet.open_nic(wish(ifname="ours")) as nic:
        command = [sys.executable, "-c", HOLDER, broker.path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout.readline() == "ready\n"
            assert (len(switch.ports("ovs0")), len(switch.queueing())) == (2, 2)
            process.kill()
        until(lambda: switch.ports("ovs0") == [nic.ifname], 30)
        assert switch.queueing() == []
