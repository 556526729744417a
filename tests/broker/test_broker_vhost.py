"""The seed's NIC for who may make none: with vhost-net where the kernel has it."""

import json
import os

import pytest
from brokers import POLICY, powerless, serving
from conftest import BRIDGE, ROOT, lacks, link_names
from drop import NOBODY

pytestmark = pytest.mark.tap

NOBODYS = """
import json, os, subprocess, sys, warnings
import vhostnet
warnings.simplefilter("ignore", vhostnet.VhostnetWarning)
try:
    vhostnet.open_nic(vhostnet.InterfaceSpec(type="ethernet", vhost="off"))
except vhostnet.NotPermitted as error:
    alone = str(error)
net = vhostnet.connect(sys.argv[1])
spec = vhostnet.parse_interface(sys.stdin.read())
with net.open_nic(spec, vhost=sys.argv[2]) as nic:
    told = {"ifname": nic.ifname, "mac": nic.mac, "fds": [os.readlink(f"/proc/self/fd/{fd}") for fd in nic.fds]}
    told |= {"argv": nic.qemu_argv(), "numbers": nic.fds, "list": net.list_nics(), "uid": os.getuid(), "alone": alone}
    nic.reset_queues()
    nic.update(vhostnet.values.replace(nic.spec, isolated=True))
    (port,) = json.loads(subprocess.check_output(["bridge", "-d", "-j", "link", "show", "dev", nic.ifname]))
    told["isolated"] = port["isolated"]
told["after"] = net.list_nics()
print(json.dumps(told))
"""


@pytest.mark.parametrize("engine", ["native", pytest.param("pure", marks=pytest.mark.slow)])
def test_who_may_make_none_has_the_seeds_nic(engine, bridge, tmp_path, no_leaks):
    vhost = "auto" if lacks("vhost") else "require"
    with serving(POLICY, "--engine", engine) as broker:
        seed = (ROOT / "examples" / "seed.xml").read_text()
        told = json.loads(powerless(NOBODYS, broker.path, vhost, input=seed))
    assert told["uid"] == NOBODY
    assert "CAP_NET_ADMIN" in told["alone"]
    assert (told["ifname"], told["mac"]) == ("veni_vFsp6g8y", "fe:90:6f:28:84:f2")
    kinds = ["/dev/net/tun"] * 8 + ([] if lacks("vhost") else ["/dev/vhost-net"] * 8)
    assert [os.path.basename(kind) for kind in told["fds"]] == [os.path.basename(kind) for kind in kinds]
    assert f"fds={':'.join(map(str, told['numbers'][:8]))}" in told["argv"][1]
    (found,) = told["list"]
    assert (found["ifname"], found["attached"], found["up"]) == ("veni_vFsp6g8y", 8, True)
    assert told["isolated"]
    assert told["after"] == []
    assert link_names() == ["lo", BRIDGE]
