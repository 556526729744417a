"""Clients that nobody here wrote: systemd's varlinkctl, and a Python library. And the interface's own description."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys

import pytest
from brokers import until
from conftest import BRIDGE, ROOT, need

import vhostnet
from vhostnet.broker import errors, service
from vhostnet.handover import fields
from vhostnet.host.pool import PoolStats

INTERFACE = "io.vhostnet.Broker"
SPEC = {"bridge": BRIDGE, "vhost": "off", "queues": 2}


def types(text):
    """The types that are described, each by its fields."""
    plain = re.sub(r"#.*", "", text)
    found = re.findall(r"(?:type|error)\s+(\w+)\s*\(([^()]*)\)", plain)
    return {name: {one.split(":")[0].strip() for one in body.split(",") if one.strip()} for name, body in found}


def test_the_description_is_of_what_there_is():
    described = types(service.description(INTERFACE))
    spec = set(vhostnet.InterfaceSpec.__annotations__) - {"source"}  # of a macvtap, which it has none of
    assert described["Spec"] == spec
    assert described["Vlan"] == set(vhostnet.Vlan.__annotations__)
    assert described["Rate"] == set(vhostnet.Rate.__annotations__)
    assert described["Bandwidth"] == set(vhostnet.Bandwidth.__annotations__)
    assert described["VirtualPort"] == set(vhostnet.VirtualPort.__annotations__)
    assert described["HostIp"] == set(vhostnet.HostIp.__annotations__)
    assert described["HostRoute"] == set(vhostnet.HostRoute.__annotations__)
    assert described["Zpci"] == set(vhostnet.ZpciAddress.__annotations__)
    places = {name for cls in fields.ADDRESSES.values() for name in cls.__annotations__}
    assert described["Address"] == {"type", *places}
    assert described["Refusal"] == set(errors.refusal_of(vhostnet.HostError(1)))
    assert described["Pool"] == set(PoolStats._fields)
    methods = set(re.findall(r"method (\w+)\(", service.description(INTERFACE)))
    assert methods == {name.rpartition(".")[2] for name in service._METHODS if name.startswith(INTERFACE)} | {"Open"}


def links():
    return [name for _, name in socket.if_nameindex() if name.startswith("vnet")]


def ctl(*words, code=0):
    done = subprocess.run(["varlinkctl", *map(str, words)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


@pytest.mark.tap
class TestVarlinkctl:
    """Of systemd 257 and later; it executes since 258."""

    @pytest.fixture(autouse=True)
    def _there(self):
        need("varlinkctl")

    def test_it_is_introspected(self, broker):
        assert "vhostnet serve" in ctl("info", broker.path)
        assert INTERFACE in ctl("list-interfaces", broker.path)
        assert "method Open(" in ctl("introspect", broker.path, INTERFACE)
        assert "method GetInfo(" in ctl("introspect", broker.path, "org.varlink.service")
        for name in (INTERFACE, "org.varlink.service"):
            ctl("validate-idl", ROOT / "vhostnet" / "broker" / f"{name}.varlink")

    def test_it_is_called(self, broker):
        asked = json.dumps({"specs": [SPEC], "argv": True})
        found = json.loads(ctl("-j", "call", broker.path, f"{INTERFACE}.Open", asked))["nic"]
        assert (found["tap"], found["vhost"]) == (2, 0)
        assert "tap,fds=3:4,id=hostnet0" in found["argv"][1]
        asked = json.dumps({"specs": [SPEC] * 3})
        found = ctl("-j", "--more", "call", broker.path, f"{INTERFACE}.Open", asked)
        assert found.count('"ifname"') == 3
        until(lambda: links() == [])
        assert json.loads(ctl("-j", "call", broker.path, f"{INTERFACE}.GetStatus", "{}"))["made"] == 4
        asked = json.dumps({"specs": [{**SPEC, "bridge": "br7"}]})
        assert "Forbidden" in ctl("call", broker.path, f"{INTERFACE}.Open", asked, code=1)

    def test_what_it_executes_has_the_fds(self, broker):
        need("varlinkctl --exec")
        script = "echo $LISTEN_FDS; readlink /proc/self/fd/3 /proc/self/fd/4; ls /sys/class/net >/dev/null"
        asked = json.dumps({"specs": [SPEC]})
        said = ctl("--exec", "call", broker.path, f"{INTERFACE}.Open", asked, "--", "sh", "-c", script).splitlines()
        assert said == ["2", "/dev/net/tun", "/dev/net/tun"]
        until(lambda: links() == [])

    @pytest.mark.qemu
    def test_it_executes_a_qemu(self, broker):
        """As it is: the numbers are those that the reply's argv has."""
        need("varlinkctl --exec")
        asked = json.dumps({"specs": [SPEC]})
        qemu = ["qemu-system-x86_64", "-accel", "tcg", "-S", "-nodefaults", "-display", "none", "-monitor", "stdio"]
        argv = vhostnet.qemu_argv(vhostnet.InterfaceSpec(**SPEC), tap_fds=[3, 4])
        command = ["varlinkctl", "--exec", "call", broker.path, f"{INTERFACE}.Open", asked, "--", *qemu, *argv]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(["sh", "-c", 'exec "$@"', "sh", *command], text=True, **pipes) as process:
            try:
                until(lambda: [nic.attached + nic.detached for nic in vhostnet.list_nics()] == [2])
                until(lambda: os.readlink(f"/proc/{process.pid}/exe").endswith("qemu-system-x86_64"))
                assert [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in (3, 4)] == ["/dev/net/tun"] * 2
                (nic,) = vhostnet.list_nics()
                assert [holder.pid for holder in nic.holders if holder.pid == process.pid] == [process.pid]
            finally:
                process.kill()
        until(lambda: links() == [])


@pytest.mark.tap
@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncvarlink is for Python 3.11 and later")
def test_another_python(broker, no_leaks):
    """asyncvarlink, which has never heard of us."""
    import asyncvarlink

    async def opened():
        transport, protocol = await asyncvarlink.connect_unix_varlink(asyncvarlink.VarlinkClientProtocol, broker.path)
        done = asyncio.get_running_loop().create_future()
        call = asyncvarlink.VarlinkMethodCall(f"{INTERFACE}.Open", {"specs": [SPEC]})
        reply, fds = await protocol.call(call, replyfdsdone=done)
        told = reply.parameters["nic"]
        names = [os.readlink(f"/proc/self/fd/{fd.fileno()}") for fd in fds]
        there = [(nic.ifname, nic.attached) for nic in vhostnet.list_nics()]
        done.set_result(None)
        transport.close()
        await transport.closed_future
        return told, names, there

    told, names, there = asyncio.run(opened())
    assert names == ["/dev/net/tun"] * 2
    assert there == [(told["ifname"], 2)]
    until(lambda: links() == [])
