"""The units of examples/: what systemd says of it, and a real run, on this kernel, in a container."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TESTS, lacks, need

from vhostnet.broker.policy import read_policy

UNIT = ROOT / "examples" / "broker" / "vhostnet-broker.service"
SOCKET = UNIT.with_suffix(".socket")
SWITCH = ROOT / "examples" / "host" / "vms-switch"
EXPOSURE = 20  # tenths: "OK" on the scale of systemd-analyze, where 100 is a service with every privilege

PLAIN = "[Unit]\nDefaultDependencies=no\n"

SPEC = "vhostnet.InterfaceSpec(bridge='br0', queues=2, vhost='off')"

# What ends it.
END = "After=vhostnet-broker.service\nSuccessAction=exit-force\nFailureAction=exit-force\n"

# What only this checkout needs: the interpreter and vhostnet may lie where the unit has nothing to look for.
HERE = f"""[Service]
ProtectHome=tmpfs
BindReadOnlyPaths={sys.base_prefix} {sys.prefix} {ROOT}
ExecStart=
"""

# A process that may connect, and can do nothing else.
CLIENT = """
import json, os, socket, time
import vhostnet

def until_gone(name):
    deadline = time.monotonic() + 60
    while name in (link for _, link in socket.if_nameindex()):
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.05)

net = vhostnet.connect()
told = {}
for bridge in ("another", "br0"):
    spec = vhostnet.InterfaceSpec(bridge=bridge, queues=2, mac="52:54:00:00:00:07", isolated=True)
    try:
        nic = net.open_nic(spec)
    except vhostnet.PolicyRefused as error:
        told["refused"] = str(error)
told |= {"fds": [os.readlink(f"/proc/self/fd/{fd}") for fd in nic.fds], "why": nic.vhost.why, "mac": nic.spec.mac}
told["master"] = os.path.basename(os.readlink(f"/sys/class/net/{nic.ifname}/master"))
mark = open(f"/sys/class/net/{nic.ifname}/ifalias").read().split(":")
told["mark"] = [int(mark[2]) == os.getpid(), mark[3] != "0", mark[4].strip()]
nic.reset_queues()
nic.close()
until_gone(nic.ifname)
told["status"] = net.status()["made"]
print(json.dumps(told))
"""


@pytest.fixture(autouse=True)
def _systemd():
    need("systemd")


def analyze(*arguments):
    return subprocess.run(["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, check=False)


def test_the_units_are_sound():
    for unit in (UNIT, SOCKET):
        done = analyze("verify", "--man=no", str(unit))
        lines = (done.stdout + done.stderr).splitlines()
        said = [line for line in lines if "/usr/bin/vhostnet is not exec" not in line]
        assert said == []


def test_the_example_of_a_policy_is_one():
    assert [rule.name for rule in read_policy(str(UNIT.with_name("policy.toml"))).rules] == ["virtual machines", "CI"]


def test_the_unit_is_closed():
    done = analyze("security", "--offline=yes", f"--threshold={EXPOSURE}", str(UNIT))
    assert done.returncode == 0, done.stdout
    assert "✗ CapabilityBoundingSet=~CAP_NET_ADMIN" in done.stdout
    assert done.stdout.count("✗ CapabilityBoundingSet") == done.stdout.count("✗ SystemCallFilter") + 1 == 1


@pytest.fixture
def units(tmp_path):
    """A directory of units, and how to put one there: the example's with something changed, or a text."""
    for name in ("sysinit.target", "basic.target", "shutdown.target", "network.target"):
        (tmp_path / name).write_text(PLAIN)

    def put(name, changed=None, text=None):
        if text is not None:
            (tmp_path / name).write_text(PLAIN + text)
            return
        (tmp_path / name).write_text(UNIT.read_text())
        (tmp_path / f"{name}.d").mkdir()
        (tmp_path / f"{name}.d" / "here.conf").write_text(HERE + changed)

    return put


def boot(directory):
    """Until the unit that says exit has ended: the log of it all."""
    need("setpriv")  # as root, that is
    command = [str(TESTS / "container"), str(directory)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=110)
    written = [Path(directory, name) for name in ("log", "told")]
    said = "".join(file.read_text() for file in written if file.exists())
    assert done.returncode == 0, done.stdout + done.stderr + said
    return done.stdout + done.stderr


def python(tmp_path, name, *words):
    """What runs, and where its output goes."""
    output = f"StandardOutput=file:{tmp_path}/{name}\nStandardError=file:{tmp_path}/{name}\n"
    return output + f"ExecStart={' '.join([sys.executable, *map(str, words)])}\n"


@pytest.mark.tap
@pytest.mark.parametrize("engine", ["native", pytest.param("pure", marks=pytest.mark.slow)])
def test_a_client_without_privileges_gets_a_nic(engine, units, tmp_path):
    (tmp_path / "client.py").write_text(CLIENT)
    rule = "users = ['root']\nbridges = ['br0']\ncgroups = ['*/client.service']\n"
    (tmp_path / "policy.toml").write_text(f"[[rule]]\n{rule}")
    (tmp_path / "policy.toml").chmod(0o644)  # for whatever user systemd makes up
    serve = python(tmp_path, "log", "-m", "vhostnet", "serve", "--policy", "/tmp/policy.toml")
    units(
        "vhostnet-broker.service",
        f"Environment=VHOSTNET_ENGINE={engine}\nBindReadOnlyPaths={tmp_path}/policy.toml:/tmp/policy.toml\n{serve}",
    )
    units("vhostnet-broker.socket", text=SOCKET.read_text())
    # Root without root's capabilities, but for what reads an interpreter in root's home.
    who = "[Service]\nType=oneshot\nGroup=kvm\nCapabilityBoundingSet=CAP_DAC_READ_SEARCH\n"
    units("client.service", text=END + who + python(tmp_path, "told", tmp_path / "client.py"))
    units("main.target", text="Wants=vhostnet-broker.service client.service\n")
    log = boot(tmp_path)
    text = (tmp_path / "told").read_text()
    assert text.startswith("{"), text + log + (tmp_path / "log").read_text()
    told = json.loads(text)
    assert told["fds"][:2] == ["/dev/net/tun", "/dev/net/tun"]
    assert (told["master"], told["mac"], told["mark"]) == ("br0", "52:54:00:00:00:07", [True, True, "0"])
    assert "allows the bridges br0, not another" in told["refused"]
    assert told["status"] == 1
    assert told["fds"][2:] == ([] if lacks("vhost") else ["/dev/vhost-net", "/dev/vhost-net"]), told["why"]


LESS = {
    "all": "",
    "device": "DeviceAllow=\n",
    "netlink": "RestrictAddressFamilies=\nRestrictAddressFamilies=AF_UNIX\n",
    "capability": "CapabilityBoundingSet=\nAmbientCapabilities=\n",
}


@pytest.mark.slow
@pytest.mark.tap
def test_with_one_line_less_what_is_missing_is_named(engine, units, tmp_path):
    make = f"vhostnet.open_nic({SPEC}, engine='{engine}').close()"
    (tmp_path / "nic.py").write_text(f"import vhostnet\n{make}\nprint('made')\n")
    every = " ".join(f"{name}.service" for name in LESS)
    for name, line in LESS.items():
        run = python(tmp_path, name, tmp_path / "nic.py")
        # Each has a directory of its own: they are removed when their service ends.
        alone = f"Type=oneshot\nRestart=no\nRuntimeDirectory=\nRuntimeDirectory={name}\n"
        units(f"{name}.service", f"{alone}BindReadOnlyPaths={tmp_path}/nic.py\n{line}{run}")
    units("end.service", text=f"After={every}\n{END}[Service]\nType=oneshot\nExecStart=/bin/true\n")
    units("main.target", text=f"Wants=end.service {every}\n")
    log = boot(tmp_path)
    said = {name: (tmp_path / name).read_text().splitlines()[-1:] for name in LESS}
    assert said["all"] == ["made"], log
    assert "DeviceAllow=/dev/net/tun rw" in said["device"][0]
    assert "RestrictAddressFamilies=AF_NETLINK" in said["netlink"][0]
    assert "CAP_NET_ADMIN" in said["capability"][0]


@pytest.mark.slow
@pytest.mark.tap
def test_a_switch_is_there_from_boot_on_and_other_units_run_in_it(units, tmp_path):
    """The example makes it; who says NetworkNamespacePath= is where the NICs are, with one capability."""
    text = SWITCH.with_suffix(".service").read_text().replace("/usr/local/sbin/vms-switch", str(SWITCH))
    (tmp_path / "vms-switch.service").write_text(text)
    there = "NetworkNamespacePath=/run/netns/vms\n"
    links = "[name for _, name in socket.if_nameindex()]"
    (tmp_path / "nic.py").write_text(f"import socket, vhostnet\nwith vhostnet.open_nic({SPEC}): print(*{links})\n")
    once = f"Type=oneshot\nRestart=no\nBindReadOnlyPaths={tmp_path}/nic.py\n"
    units("nic.service", f"{once}{there}{python(tmp_path, 'made', tmp_path / 'nic.py')}")
    where = f"[Service]\nType=oneshot\n{there}StandardOutput=file:{tmp_path}/told\nExecStart=ip -br link\n"
    units("inside.service", text=END.replace("vhostnet-broker", "nic") + where)
    (tmp_path / "nic.service.d" / "after.conf").write_text(
        "[Unit]\nRequires=vms-switch.service\nAfter=vms-switch.service\n"
    )
    units("main.target", text="Wants=inside.service nic.service\n")
    log = boot(tmp_path)
    told = [line.split()[0].partition("@")[0] for line in (tmp_path / "told").read_text().splitlines()]
    made = (tmp_path / "made").read_text().split()
    assert told == ["lo", "br0", "host"], log
    assert (sorted(made[:3]), made[3][:4], len(made)) == (["br0", "host", "lo"], "vnet", 4), log
