"""The command line: what it prints, its exit codes, and its errors as text and as JSON."""

import io
import json
import os
import re
import resource
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
from conftest import BRIDGE, ROOT, SEED, lacks, link_names
from kernel import ip

from vhostnet.commands import cli

SEED_FILE = str(ROOT / "examples" / "seed.xml")
FDS = ["--tap-fds", "80:81:82:83:84:85:86:87", "--vhost-fds", "88:89:90:91:92:93:94:95"]
PLACE = ["--alias", "net2", "--bus", "pci.0", "--addr", "0x7"]
PLAIN = "<interface type='bridge'><model type='virtio'/><source bridge='vbr2525476'/><driver name='qemu'/></interface>"
REQUIRED = PLAIN.replace("name='qemu'", "name='vhost'").replace("<driver", "<backend vhost='/nowhere'/><driver")


def vhostnet(*arguments, stdin=""):
    """The command in this process: its exit code, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        try:
            code = cli.main(arguments)
        except SystemExit as end:  # argparse's way
            code = end.code
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def spawned(*arguments, stdin=""):
    """The command as a process of its own."""
    command = [sys.executable, "-m", "vhostnet", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=60)


# --- argv ------------------------------------------------------------------------------------------------


def test_argv_of_the_seed_to_the_letter():
    done = vhostnet("argv", SEED_FILE, *FDS, *PLACE)
    assert done.returncode == 0
    assert done.stdout == (
        "-netdev tap,fds=80:81:82:83:84:85:86:87,id=hostnet2,vhost=on,vhostfds=88:89:90:91:92:93:94:95 "
        "-device virtio-net-pci,event_idx=on,mq=on,vectors=18,rx_queue_size=1024,tx_queue_size=1024,"
        "netdev=hostnet2,id=net2,mac=20:90:6f:28:84:f2,bus=pci.0,addr=0x7\n"
    )
    assert "warning" in done.stderr
    assert "256" in done.stderr


@pytest.mark.parametrize("dialect", ["classic", "keyval", "json"])
def test_argv_as_json_is_the_same_words(dialect):
    how = ["argv", "-", *FDS, *PLACE, "--dialect", dialect]
    quoted = vhostnet(*how, stdin=SEED).stdout
    assert json.loads(vhostnet(*how, "-j", stdin=SEED).stdout) == shlex.split(quoted)


def test_argv_of_many_takes_the_fds_of_each_in_order():
    two = f"<devices>{PLAIN}<interface><model type='virtio'/></interface>{PLAIN.replace('qemu', 'vhost')}</devices>"
    done = vhostnet("argv", "-", "--tap-fds", "3", "--vhost-fds", "", "--tap-fds", "4", "--vhost-fds", "5", stdin=two)
    assert [word for word in done.stdout.split() if "id=hostnet" in word] == [
        "tap,fd=3,id=hostnet0",
        "user,id=hostnet1",
        "tap,fd=4,id=hostnet2,vhost=on,vhostfd=5",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tap-fds", "3"], "needs --tap-fds, and there is none left"),
        (["--tap-fds", "3", "--tap-fds", "4", "--tap-fds", "5"], "--tap-fds is given more often"),
        (["--tap-fds", "3", "--tap-fds", "4", "--vdpa-fd", "5"], "--vdpa-fd is given more often"),
        (["--tap-fds", "3", "--tap-fds", "4", "--alias", "net7"], "--nic picks one"),
    ],
)
def test_argv_of_many_wants_as_many(arguments, message):
    done = vhostnet("argv", "-", *arguments, stdin=f"<devices>{PLAIN}{PLAIN}</devices>")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


# --- exit codes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "COMMAND"),
        (("fly",), 2, "fly"),
        (("argv", SEED_FILE), 2, "--tap-fds"),
        (("argv", SEED_FILE, "--tap-fds", "a:b"), 2, "fd numbers"),
        (("plan", "/nowhere.xml"), 2, "/nowhere.xml: No such file"),
        (("plan", SEED_FILE, "--network", "default"), 2, "--network default: No such file or directory; expected NET"),
        (("plan", SEED_FILE, "--network", "default="), 2, "NETWORK=BRIDGE"),
        (("plan", SEED_FILE, "--network", "/nowhere/a=b"), 2, "--network /nowhere/a=b: No such file or directory"),
        (("plan", SEED_FILE, "--network", SEED_FILE), 3, f"in {SEED_FILE!r} is not a network; expected <network>"),
        (("exec", SEED_FILE), 2, "-- COMMAND"),
        (("argv", SEED_FILE, "--tap-fds", "80:81"), 3, "tap_fds"),
        (("plan", SEED_FILE, "--vhost", "off", "--netns", "/nowhere"), 1, "/nowhere"),
    ],
)
def test_exit_codes(arguments, code, message):
    done = vhostnet(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_xml_is_3_and_json_says_where():
    text = SEED.replace('queues="8"', 'queues="0"')
    done = vhostnet("plan", "-", "-j", stdin=text)
    error = json.loads(done.stderr)
    assert done.returncode == 3
    assert {key: error[key] for key in ("error", "element", "attribute", "line", "value")} == {
        "error": "SpecError",
        "element": "driver",
        "attribute": "queues",
        "line": 4,
        "value": "0",
    }
    assert "1..256" in error["expected"]


def test_what_libvirt_does_not_know_is_a_warning_or_with_strict_an_error():
    text = PLAIN.replace("<source", "<frob/><source")
    loose = vhostnet("argv", "-", "--tap-fds", "3", stdin=text)
    assert (loose.returncode, "warning: line 1: <frob>" in loose.stderr) == (0, True)
    assert vhostnet("argv", "-", "--tap-fds", "3", "--strict", stdin=text).returncode == 3


def test_a_network_is_mapped():
    text = "<interface type='network'><model type='virtio'/><source network='default'/></interface>"
    assert vhostnet("plan", "-", stdin=text).returncode == 3
    done = vhostnet("plan", "-", "--network", "default=nowhere", "-j", stdin=text)
    assert (done.returncode, json.loads(done.stderr)["error"]) == (1, "NoSuchBridge")


def test_a_network_is_what_its_document_says(tmp_path):
    network = "<network><name>default</name><bridge name='nowhere'/><port isolated='yes'/>{}</network>"
    nic = "<interface type='network'><model type='virtio'/><source network='default'/></interface>"
    file = tmp_path / "a=b.xml"
    file.write_text(network.format("<portgroup name='a'/>"))
    done = vhostnet("plan", "-", "--network", "other=br0", "--network", str(file), "-j", stdin=nic)
    error = json.loads(done.stderr)
    assert (done.returncode, error["error"]) == (1, "NoSuchBridge")
    assert error["remedy"] == "it is network 'default''s: virsh net-start default"
    named = nic.replace("'default'", "'default' portgroup='b'")
    done = vhostnet("plan", "-", "--network", str(file), stdin=named)
    assert (done.returncode, "expected one of its groups: 'a'" in done.stderr) == (3, True)
    file.write_text(network.format("<nic/>"))
    done = vhostnet("plan", "-", "--network", str(file), "--strict", stdin=nic)
    assert (done.returncode, f"line 1: <nic> in {str(file)!r} is no element" in done.stderr) == (3, True)


def test_version_and_help():
    assert spawned("--version").stdout.startswith("vhostnet 0.")
    shown = vhostnet("--help").stdout
    for command in ("argv", "plan", "exec", "doctor", "demo", "exit codes"):
        assert command in shown


def test_a_reader_that_had_enough(tmp_path):
    file = tmp_path / "many.xml"
    file.write_text(f"<devices>{PLAIN * 100}</devices>")
    command = f"{sys.executable} -m vhostnet plan {file} --netns /proc/self/ns/net 2>&1 | head -c 1 >/dev/null"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stdout + done.stderr


# --- on the kernel ---------------------------------------------------------------------------------------


@pytest.mark.tap
def test_plan_prints_what_would_run_and_touches_nothing(bridge):
    before = link_names()
    done = vhostnet("plan", SEED_FILE)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "0  TAP_OPEN    veni_vFsp6g8y  8 queues  tap no_pi vnet_hdr multi_queue  excl"
    assert lines[3].startswith("3  LINK        veni_vFsp6g8y  mac fe:90:6f:28:84:f2  mtu 1500  master vbr2525476 (")
    assert re.fullmatch(
        r"cost: 16 of \d+ fds, 0.9 of \d+ MiB of kernel memory, 1 of 1023 ports of vbr2525476, 5 acts, 25 RTNL turns",
        lines[5],
    )
    assert len(lines) == 6
    assert link_names() == before


@pytest.mark.tap
def test_the_cost_of_many_files(bridge, tmp_path):
    for number in range(3):
        file = tmp_path / f"{number}.xml"
        file.write_text(PLAIN)
    ip("tuntap add alien mode tap")
    ip(f"link set alien master {BRIDGE}")
    program = json.loads(vhostnet("plan", "-j", "--vhost", "off", *map(str, tmp_path.glob("*.xml"))).stdout)
    assert program["cost"]["fds"] == 3
    assert program["cost"]["ports"] == {BRIDGE: 3}
    assert program["left"]["ports"] == {BRIDGE: 1022}
    assert program["left"]["fds"] < resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert program["cost"]["rtnl_turns"] == 3 * (2 + 3 + 4) + 2


@pytest.mark.tap
def test_plan_as_json(bridge):
    program = json.loads(vhostnet("plan", SEED_FILE, "-j").stdout)
    assert [act["op"] for act in program["acts"]] == ["TAP_OPEN", "VHOST_OPEN", "QDISC", "LINK", "UP"]
    assert program["nics"][0]["mac"] == "fe:90:6f:28:84:f2"
    assert program["nics"][0]["port"] == {"isolated": False, "guest_mac": "", "vlans": []}


@pytest.mark.tap
def test_plan_of_a_limited_macvtap_as_json(bridge):
    bandwidth = "<bandwidth><outbound average='7' peak='9'/></bandwidth>"
    text = f"<interface type='direct'><source dev='{BRIDGE}' mode='bridge'/>{bandwidth}</interface>"
    (nic,) = json.loads(vhostnet("plan", "-", "-j", stdin=text).stdout)["nics"]
    assert nic["macvtap"] == {"parent": BRIDGE, "mode": 4, "all_multicast": False}
    assert (nic["shaping"]["rate"], nic["shaping"]["ceil"], nic["shaping"]["police_rate"]) == (7000, 9000, 0)


SHOW = """
import json, os, sys
open_now = [int(fd) for fd in os.listdir('/proc/self/fd')]
inherited = [fd for fd in open_now if fd > 2 and os.path.exists(f'/proc/self/fd/{fd}')]
taps = [fd for fd in inherited if os.readlink(f'/proc/self/fd/{fd}') == '/dev/net/tun']
print(json.dumps({'argv': sys.argv[1:], 'taps': taps, 'others': [fd for fd in inherited if fd not in taps]}))
"""


@pytest.mark.tap
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["native", "pure"])
def test_exec_becomes_the_command_with_exactly_those_fds(bridge, engine):
    second = PLAIN.replace("name=", "queues='2' name=")
    two = f"<devices>{PLAIN}{second}</devices>"
    command = ["exec", "-", "--engine", engine, "--", sys.executable, "-c", SHOW, "-name", "vm"]
    done = spawned(*command, stdin=two)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (len(seen["taps"]), seen["others"]) == (3, [])
    first, second, third = seen["taps"]
    assert seen["argv"][:4] == ["-name", "vm", "-netdev", f"tap,fd={first},id=hostnet0"]
    assert seen["argv"][7] == f"tap,fds={second}:{third},id=hostnet1"


@pytest.mark.tap
@pytest.mark.slow
def test_exec_of_nothing_leaves_nothing(bridge):
    before = link_names()
    done = vhostnet("exec", "-", "--", "/nowhere/qemu", stdin=PLAIN)
    assert (done.returncode, "cannot run '/nowhere/qemu'" in done.stderr) == (2, True)
    assert link_names() == before


@pytest.mark.tap
@pytest.mark.slow
def test_exec_restores_what_python_ignores(bridge):
    done = spawned("exec", "-", "--", "sh", "-c", "grep SigIgn /proc/self/status", stdin=PLAIN)
    ignored = int(done.stdout.split()[-1], 16)
    assert not ignored & (1 << 12 | 1 << 24)  # SIGPIPE, SIGXFSZ


@pytest.mark.tap
@pytest.mark.slow
def test_the_kernels_refusals_have_their_codes(bridge):
    named = PLAIN.replace("<source", "<target dev='mine'/><source")
    held = ["exec", "-", "--", sys.executable, "-c", "import time; print('up', flush=True); time.sleep(30)"]
    with subprocess.Popen(
        [sys.executable, "-m", "vhostnet", *held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        holder.stdin.write(named)
        holder.stdin.close()
        assert holder.stdout.readline() == "up\n"
        busy = vhostnet("exec", "-", "-j", "--", "true", stdin=named)
        holder.kill()
    assert busy.returncode == 5
    error = json.loads(busy.stderr)
    assert (error["error"], error["act"], error["ifname"], error["queue"]) == ("NameBusy", "TAP_OPEN", "mine", 0)
    assert error["remedy"]
    assert vhostnet("exec", "-", "--", "true", stdin=REQUIRED).returncode == 6
    bare = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-all", sys.executable, "-m", "vhostnet", "exec", "-"]
    refused = subprocess.run([*bare, "--", "true"], input=PLAIN, capture_output=True, text=True, check=False)
    assert (refused.returncode, "CAP_NET_ADMIN" in refused.stderr) == (4, True)


@pytest.mark.tap
def test_exec_refuses_what_no_qemu_starts_with_before_anything_is_made(bridge):
    before = link_names()
    text = PLAIN.replace("'virtio'", "'virtio-transitional'").replace("name=", "iommu='on' name=")
    done = vhostnet("exec", "-", "--", "true", stdin=text)
    assert (done.returncode, "no QEMU starts with both" in done.stderr) == (3, True)
    assert link_names() == before


@pytest.mark.tap
def test_exec_asks_for_what_every_qemu_gives(bridge):
    text = PLAIN.replace("name=", "tx_queue_size='1024' name=")
    done = spawned("exec", "-", "--", "echo", stdin=text)
    assert "tx_queue_size=256," in done.stdout
    assert "warning: tx_queue_size=1024" in done.stderr


# --- doctor ----------------------------------------------------------------------------------------------


@pytest.mark.tap
def test_doctor_says_what_this_host_can_do(bridge):
    done = vhostnet("doctor", "-j")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert checks["kernel"]["detail"].split()[1] == os.uname().release
    assert "multi_queue" in checks["tun"]["detail"]
    assert f"{BRIDGE} (mtu 1500, 0 of 1023 ports)" in checks["bridges"]["detail"]
    assert set(checks) >= {"engine", "vhost-net", "capability", "open files", "qemu"}


@pytest.mark.tap
@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (PLAIN, 0, "ok    plan"),
        (PLAIN.replace(BRIDGE, "nowhere"), 1, "ip link add nowhere"),
        (PLAIN.replace(BRIDGE, "lo"), 1, "not a Linux bridge"),
        (PLAIN.replace("<driver", "<bandwidth><inbound average='7'/></bandwidth><driver"), 0, "ok    bandwidth"),
        (
            PLAIN.replace("<source", f"<target dev='{BRIDGE}'/><source"),
            5,
            "the name is that of a link of kind 'bridge'",
        ),
        (
            PLAIN.replace("name='qemu'", "name='vhost'").replace("<driver", "<backend vhost='/dev/null'/><driver"),
            6,
            "null",
        ),
        (PLAIN.replace("<driver", "<backend tap='/dev/null'/><driver"), 6, "no TUN/TAP device"),
        (PLAIN.replace("name=", "queues='257' name="), 3, "1..256"),
        ("<interface", 3, "well-formed"),
    ],
)
def test_doctor_says_why_a_file_would_fail(bridge, tmp_path, text, code, says):
    file = tmp_path / "nic.xml"
    file.write_text(text)
    before = link_names()
    done = vhostnet("doctor", str(file))
    assert done.returncode == code, done.stdout
    assert says in done.stdout
    assert link_names() == before


@pytest.mark.tap
def test_doctor_tries_what_a_guest_sends(bridge, tmp_path):
    """No NIC of anybody's is touched."""
    file, before = tmp_path / "nic.xml", link_names()
    file.write_text(PLAIN.replace("<driver", "<bandwidth><outbound average='7'/></bandwidth><driver"))
    checks = json.loads(vhostnet("doctor", "-j", str(file)).stdout)
    (found,) = (check for check in checks if check["name"] == "bandwidth")
    assert found["state"] == ("fail" if lacks("shaping") else "ok")
    assert link_names() == before


@pytest.mark.tap
@pytest.mark.qemu
def test_doctor_knows_the_qemu_it_found(bridge, tmp_path):
    file = tmp_path / "nic.xml"
    file.write_text(PLAIN.replace("name=", "tx_queue_size='1024' name="))
    checks = json.loads(vhostnet("doctor", "-j", str(file)).stdout)
    (version,) = (check["detail"].rpartition(" ")[2] for check in checks if check["name"] == "qemu")
    assert f"({version} " in checks[-1]["detail"]


@pytest.mark.tap
@pytest.mark.parametrize(
    ("script", "state", "says"),
    [
        ("echo QEMU emulator version 11.1.2 '(Debian 1:11.1.2+ds-1)'", "ok", ": 11.1.2"),
        ("echo QEMU emulator version 6.2.0", "note", ": 6.2.0"),
        ("exit 1", "note", "does not say its version"),
    ],
)
def test_doctor_reads_any_version(net, tmp_path, monkeypatch, script, state, says):
    qemu = tmp_path / f"qemu-system-{os.uname().machine}"
    qemu.write_text(f"#!/bin/sh\n{script}\n")
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (check,) = (check for check in json.loads(vhostnet("doctor", "-j").stdout) if check["name"] == "qemu")
    assert (check["state"], says in check["detail"]) == (state, True)


@pytest.mark.tap
@pytest.mark.slow
def test_doctor_counts_the_files_that_are_needed(bridge, tmp_path):
    file = tmp_path / "nic.xml"
    file.write_text(PLAIN.replace("name=", "queues='256' name="))
    command = f"ulimit -n 200; {sys.executable} -m vhostnet doctor {file}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "256 needed" in done.stdout
    assert done.returncode == 1


@pytest.mark.tap
@pytest.mark.slow
def test_doctor_finds_every_reason_at_once(bridge, tmp_path):
    """Each with its error, as opening would raise it: and nothing was touched."""
    ip("tuntap add dev mine mode tap")
    file = tmp_path / "vm.xml"
    interfaces = [
        PLAIN.replace("<source", "<target dev='mine'/><source"),
        PLAIN.replace(BRIDGE, "nowhere"),
        PLAIN.replace(BRIDGE, "lo"),
        *[PLAIN.replace("name='qemu'", "queues='256'")] * 2000,
    ]
    file.write_text(f"<devices>{''.join(interfaces)}</devices>")
    before = link_names()
    done = vhostnet("doctor", "-j", str(file))
    assert link_names() == before
    failed = [check for check in json.loads(done.stdout) if check["state"] == "fail"]
    found = [check for check in failed if check["name"] != "system files"]  # a small machine has too few of these, too
    assert [(check["name"], check["error"]["error"]) for check in found] == [
        ("open files", "ResourceExhausted"),
        ("memory", "ResourceExhausted"),
        ("bridge", "BridgeFull"),
        ("bridge", "NoSuchBridge"),
        ("bridge", "NotABridge"),
        ("name", "FlagMismatch"),
    ]
    assert all(check["remedy"] for check in found)
    assert "0 of 1023 ports in use, and 2001 NICs are to join it" in found[2]["detail"]
    assert found[5]["error"]["found"] == ["tap", "no_pi"]


# --- demo ------------------------------------------------------------------------------------------------


@pytest.mark.tap
@pytest.mark.qemu
def test_demo_shows_the_whole_job_and_leaves_nothing(net):
    before = link_names()
    done = spawned("demo", "--nics", "4")
    assert done.returncode == 0, done.stderr
    for fact in (
        "numqueues 8",
        f"master {BRIDGE}",
        "qdisc noqueue",
        "vectors=18",
        "index=7,type=tap",
        "tx_queue_size=256",
        "libvirt's order",
    ):
        assert fact in done.stdout
    assert link_names() == before
    assert BRIDGE not in link_names()
