"""Network namespaces by name, as ip-netns(8) makes them: every call and command that takes one takes a name."""

import json
import os
import sys

import pytest
from apart import apart

import vhostnet
from vhostnet.process.netns import path_of

# A bridge br0 in a namespace that is called vms, and there only.
SETUP = "ip netns add vms && ip -n vms link add br0 up type bridge"
XML = "<interface type='bridge'><model type='virtio'/><driver name='qemu'/><source bridge='br0'/></interface>"


CALLS = """
import json, sys, socket, vhostnet
from pathlib import Path

engine = sys.argv[1]
spec = vhostnet.InterfaceSpec(bridge="br0", queues=2, vhost="off")
how = {"engine": engine, "netns": "vms"}
said = {"here": [name for _, name in socket.if_nameindex()]}
program = vhostnet.plan_nics([spec], **how)
said["plan"] = program.nics[0].bridge
said["limits"] = vhostnet.limits(program, **how).ports
with vhostnet.open_nic(spec, **how) as nic, vhostnet.NicPool(spec, size=1, **how) as pool:
    more = vhostnet.open_nics([spec], engine=engine, netns=Path("vms"))
    with pool.take() as taken:
        found = {one.ifname: one.bridge for one in vhostnet.list_nics(netns="vms")}
        said["listed"] = [found[one.ifname] for one in (nic, *more, taken)]
    vhostnet.close_nics(more)
said["after"] = [one.ifname for one in vhostnet.list_nics(netns="/run/netns/vms")]
said["here too"] = [name for _, name in socket.if_nameindex()]
print(json.dumps(said))
"""


@pytest.mark.tap
@pytest.mark.slow
def test_every_call_takes_a_name(engine):
    done = apart(sys.executable, "-W", "error", "-c", CALLS, engine, setup=SETUP)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "here": ["lo"],
        "plan": "br0",
        "limits": {"br0": 1023},
        "listed": ["br0"] * 3,
        "after": [],
        "here too": ["lo"],
    }


LIST = f"{sys.executable} -m vhostnet list -n vms"


@pytest.mark.tap
@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("plan", "-n", "vms", "-"), "master br0"),
        (("exec", "-n", "vms", "-", "--", "sh", "-c", f"{LIST} && echo"), "br0"),
        (("list", "--netns", "vms"), ""),
        (("doctor", "-n", "vms"), "br0 (mtu 1500"),
    ],
    ids=["plan", "exec", "list", "doctor"],
)
def test_every_command_takes_a_name(words, says):
    done = apart(sys.executable, "-m", "vhostnet", *words, setup=SETUP, stdin=XML)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


@pytest.mark.tap
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "setup", "says"),
    [
        ("vms", "true", "NETNS (open): /run/netns/vms: No such file or directory (ENOENT); make it: ip netns add vms"),
        ("1", "true", "the namespace of a process is /proc/1/ns/net"),
        ("vms", "mkdir /run/netns && touch /run/netns/vms", "ip netns del vms, and ip netns add vms"),
        ("./vms", SETUP, "NETNS (open): ./vms: No such file or directory (ENOENT); give a network namespace"),
    ],
    ids=["none", "digits", "no namespace", "a path"],
)
def test_a_name_that_stands_for_nothing(name, setup, says):
    done = apart(sys.executable, "-m", "vhostnet", "plan", "-n", name, "-", setup=setup, stdin=XML)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr


@pytest.mark.tap
@pytest.mark.slow
def test_its_remedy_helps():
    """What the error says is what makes it work."""
    broken = "mkdir /run/netns && touch /run/netns/vms && ip netns del vms && ip netns add vms"
    done = apart(sys.executable, "-m", "vhostnet", "list", "-n", "vms", setup=broken)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["", ".", "..", "v\0ms"])
def test_what_can_be_no_name(name):
    with pytest.raises(vhostnet.SpecError, match="netns=.* expected a name"):
        vhostnet.list_nics(netns=name)


def test_what_has_a_slash_is_a_path():
    assert [path_of(name) for name in ("vms", "5", "./vms", os.path.join("/", "vms"))] == [
        "/run/netns/vms",
        "/run/netns/5",
        "./vms",
        "/vms",
    ]
