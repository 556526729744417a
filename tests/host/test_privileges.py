"""With CAP_NET_ADMIN alone everything works; without it whatever does not work says what it takes, and where."""

import json
import re
import subprocess
import sys

import pytest
from conftest import BRIDGE, SEED, TESTS, link_names, need
from drop import dropped, run
from life import STEPS
from test_pool import until

import vhostnet
from vhostnet.others import bridge as bridges

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("net")]

LIFE = str(TESTS / "life.py")
ALONE = [step for step in STEPS if step != "elsewhere"]
PYTHON = [sys.executable, "-W", "error"]
XML = "<interface type='bridge'><model type='virtio'/><source bridge='br0'/><driver name='qemu'/></interface>"


@pytest.fixture(autouse=True)
def _another_user(net):
    need("setpriv")
    bridges.make_bridge("br0")


def lived(*privileges, engine, vhost="off", steps=ALONE):
    return run(*privileges, *PYTHON, LIFE, engine, vhost, *steps)


def command(*privileges, arguments, stdin=XML):
    return run(*privileges, *PYTHON, "-m", "vhostnet", *arguments, stdin=stdin)


# --- with CAP_NET_ADMIN --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_capability_is_all_it_takes(engine):
    before = link_names()
    done = lived(*dropped("net_admin"), engine=engine)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ALONE, "")
    assert link_names() == before


@pytest.mark.vhost
def test_with_vhost_net_too(engine):
    done = lived(*dropped("net_admin"), engine=engine, vhost="/dev/net/vhost-net")
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ALONE, "")


@pytest.mark.slow
def test_another_namespace_takes_another_capability(engine):
    done = lived(*dropped("net_admin"), engine=engine, steps=["elsewhere"])
    assert (done.returncode, done.stdout) == (1, "")
    assert "NotPermitted: NETNS (setns): fd " in done.stderr
    assert "CAP_SYS_ADMIN" in done.stderr
    done = lived(*dropped("net_admin", "sys_admin"), engine=engine, steps=["elsewhere"])
    assert (done.returncode, done.stdout) == (0, "elsewhere\n")


@pytest.mark.slow
def test_the_commands(engine):
    allowed = dropped("net_admin")
    shown = ["sh", "-c", "ip -o link show master br0; ls -l /proc/self/fd"]
    done = command(*allowed, arguments=["exec", "--engine", engine, "-", "--", *shown])
    assert done.returncode == 0, done.stderr
    assert "br0 state" in done.stdout
    assert "/dev/net/tun" in done.stdout
    done = command(*allowed, arguments=["doctor"])
    assert done.returncode == 0, done.stdout
    assert "ok    capability    CAP_NET_ADMIN" in done.stdout


# --- without it ----------------------------------------------------------------------------------------------

CALLS = """
import contextlib, os, sys, vhostnet
from vhostnet.others import bridge
engine, how = sys.argv[1], {"engine": sys.argv[1]}
spec = vhostnet.InterfaceSpec(bridge="br0", queues=2, vhost="off")

def netns():
    vhostnet.open_nic(spec, netns="/proc/self/ns/net", **how)

def keep():
    raise vhostnet.open_nics([spec], on_error="keep", **how)[0]

def pool():
    with vhostnet.NicPool(spec, size=2, **how) as pool:
        with contextlib.suppress(vhostnet.NotPermitted):
            pool.take()
        pool.fill()

calls = {
    "open_nic": lambda: vhostnet.open_nic(spec, **how),
    "open_nics": lambda: vhostnet.open_nics([spec], **how),
    "keep": keep,
    "pool": pool,
    "netns": netns,
    "make_bridge": lambda: bridge.make_bridge("br1"),
    "plan_nics": lambda: vhostnet.plan_nics([spec], **how),
    "plan_nics netns": lambda: vhostnet.plan_nics([spec], netns="/proc/self/ns/net", **how),
    "limits": lambda: vhostnet.limits(vhostnet.plan_nics([spec], **how), **how),
    "list_bridges": bridge.list_bridges,
    "qemu_argv": lambda: vhostnet.qemu_argv(spec, tap_fds=[3, 4]),
}
for name, call in calls.items():
    try:
        call()
    except vhostnet.NotPermitted as error:
        named = [word for word in error.remedy.split() if word.startswith("CAP_")]
        print(name, error.act, error.call, *named[:1], sep=": ")
    else:
        print(name)
"""


@pytest.mark.slow
def test_every_call_works_or_says_what_it_takes(engine):
    done = run(*dropped(), *PYTHON, "-c", CALLS, engine)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "open_nic: TAP_OPEN: TUNSETIFF: CAP_NET_ADMIN",
        "open_nics: TAP_OPEN: TUNSETIFF: CAP_NET_ADMIN",
        "keep: TAP_OPEN: TUNSETIFF: CAP_NET_ADMIN",
        "pool: TAP_OPEN: TUNSETIFF: CAP_NET_ADMIN",
        "netns: NETNS: setns: CAP_SYS_ADMIN",
        "make_bridge: BRIDGE: RTM_NEWLINK: CAP_NET_ADMIN",
        "plan_nics",
        "plan_nics netns: NETNS: setns: CAP_SYS_ADMIN",
        "limits",
        "list_bridges",
        "qemu_argv",
    ]


# Root makes them, and is nobody from then on.
HELD = """
import os, sys, vhostnet
how = {"engine": sys.argv[1]}
spec = vhostnet.InterfaceSpec(bridge="br0", queues=2, vhost="off")
nics = [vhostnet.open_nic(vhostnet.InterfaceSpec(bridge="br0", queues=2, vhost="off"), **how) for _ in range(4)]
pool = vhostnet.NicPool(spec, size=3, low=0, **how)
pool.fill()
given = pool.take()
os.setresuid(65534, 65534, 65534)
nics[0].reset_queues()
nics[0].close()
vhostnet.close_nics(nics[1:3])
vhostnet.close_nics(nics[3:], wait=False)
pool.give_back(given)
for rename in (False, True):
    try:
        pool.take(vhostnet.InterfaceSpec(bridge="br0", queues=2, vhost="off", ifname="wish"), rename=rename)
    except vhostnet.NotPermitted as error:
        print(error)
pool.close()
"""


@pytest.mark.slow
def test_what_was_made_before_goes_and_no_more(engine):
    """Closing takes no capability; changing a NIC by its ifindex does, since the proof that it is ours does."""
    before = link_names()
    done = run(*PYTHON, "-c", HELD, engine)
    assert (done.returncode, done.stderr) == (0, "")
    altname, rename = done.stdout.splitlines()
    assert altname.startswith("ALTNAME (TUNGETDEVNETNS) of vnp")
    assert rename.startswith("RENAME (TUNGETDEVNETNS) of vnp")
    assert done.stdout.count("CAP_NET_ADMIN") == 2
    assert link_names() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["plan", "-"], 0, ""),
        (["argv", "-", "--tap-fds", "3"], 0, ""),
        (["plan", "-", "--netns", "/proc/self/ns/net"], 4, r"NETNS \(setns\): /proc/self/ns/net: .*CAP_SYS_ADMIN"),
        (["exec", "-", "--", "true"], 4, r"TAP_OPEN \(TUNSETIFF\) of vnet[0-9]+, queue 0: .*CAP_NET_ADMIN"),
        (["doctor"], 4, r"fail  capability    no CAP_NET_ADMIN in this network namespace  -> needs CAP_NET_ADMIN"),
    ],
    ids=["plan", "argv", "plan-netns", "exec", "doctor"],
)
def test_every_command_works_or_says_what_it_takes(engine, arguments, code, said):
    done = command(*dropped(), "env", f"VHOSTNET_ENGINE={engine}", arguments=arguments)
    assert done.returncode == code, done.stderr
    assert re.search(said, done.stdout + done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_doctor_is_not_taken_in_by_another_user_namespace():
    """There it has every capability, over nothing that is here."""
    done = command("unshare", "--user", "--map-root-user", arguments=["doctor", "-j"])
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert (done.returncode, checks["capability"]["state"]) == (4, "fail")


# --- device nodes --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_device_node_that_is_closed_is_named(engine):
    closed = dropped("net_admin", mode="600")
    done = lived(*closed, engine=engine)
    assert done.returncode == 1
    assert re.search(
        r"NotPermitted: TAP_OPEN \(open\) of vnet\d+, queue 0: /dev/net/tun: Permission denied \(EACCES\)", done.stderr
    )
    assert "read and write access to the device node" in done.stderr
    done = command(*closed, arguments=["doctor"])
    assert done.returncode == 4
    assert "fail  tun           /dev/net/tun: Permission denied  -> give this user" in done.stdout


@pytest.mark.vhost
def test_so_is_one_of_vhost_net(engine):
    """Required it is an error, under auto a reason."""
    required = XML.replace("<driver", "<backend vhost='/dev/vhost-net'/><driver").replace("'qemu'", "'vhost'")
    done = command(*dropped("net_admin"), arguments=["exec", "--engine", engine, "-", "--", "true"], stdin=required)
    assert done.returncode == 4
    assert re.search(
        r"VHOST_OPEN \(open\) of vnet\d+, queue 0: /dev/vhost-net: Permission denied \(EACCES\)", done.stderr
    )


# --- a /proc with little in it -------------------------------------------------------------------------------


@pytest.mark.slow
def test_where_proc_has_processes_only(bridge):
    """systemd's ProcSubset=pid: the plan is the same one, but for the memory that is left, which nobody tells."""
    bare = ["unshare", "--mount", "sh", "-c", 'mount -t proc -o subset=pid proc /proc && exec "$@"', "sh"]
    here, there = (command(*how, arguments=["plan", "-j", "-"], stdin=SEED) for how in ([], bare))
    assert there.returncode == 0, there.stderr
    plan = json.loads(there.stdout)
    assert plan["left"].pop("memory") == 0
    assert plan["nics"] == json.loads(here.stdout)["nics"]
    shown = command(*bare, arguments=["plan", "-"], stdin=SEED).stdout
    assert "0.9 MiB of kernel memory, 1 of 1023 ports of " + BRIDGE in shown


# --- what an fd can do for who has no capability -------------------------------------------------------------

HOLDER = """
import fcntl, os, socket, struct, sys
from vhostnet.engines import _uapi
tap = int(sys.argv[1])
here = socket.socket(socket.AF_UNIX)
name = fcntl.ioctl(tap, _uapi.TUNGETIFF, bytes(_uapi.IFREQ_INDEX.size))[:16]
queue = lambda flag: _uapi.IFREQ_FLAGS.pack(b"", flag)
acts = {
    "detach": (tap, _uapi.TUNSETQUEUE, queue(0x0400)),
    "attach": (tap, _uapi.TUNSETQUEUE, queue(_uapi.IFF_ATTACH_QUEUE)),
    "offloads": (tap, _uapi._ioc(1, "T", 208, 4), 1),
    "persist": (tap, _uapi._ioc(1, "T", 203, 4), 1),
    "not persist": (tap, _uapi._ioc(1, "T", 203, 4), 0),
    "mac": (tap, 0x8924, struct.pack("=16sH6s16x", name, 1, bytes.fromhex("fe0102030405"))),
    "namespace": (tap, _uapi.TUNGETDEVNETNS, 0),
    "mtu": (here, 0x8922, _uapi.IFREQ_INDEX.pack(name, 1400)),
    "down": (here, 0x8914, _uapi.IFREQ_FLAGS.pack(name, 0)),
}
for act, (fd, request, argument) in acts.items():
    try:
        fcntl.ioctl(fd, request, argument)
        print(act)
    except PermissionError:
        print("no", act)
os.write(tap, bytes(10) + b"\\xff" * 12 + b"\\x88\\xb5" + bytes(46))
print("frames")
here.close()
"""


@pytest.mark.slow
def test_what_the_holder_of_a_queue_can_do():
    """As docs/security.md has it."""
    with vhostnet.open_nic(vhostnet.InterfaceSpec(bridge="br0", queues=2, vhost="off")) as nic:
        held = str(nic.tap_fds[1])
        done = subprocess.run(
            [*dropped(), *PYTHON, "-c", HOLDER, held], pass_fds=nic.fds, capture_output=True, text=True, check=False
        )
    assert done.stderr == ""
    may = ["detach", "attach", "offloads", "persist", "not persist", "mac"]
    assert done.stdout.splitlines() == [*may, "no namespace", "no mtu", "no down", "frames"]


STRANGER = """
import fcntl, os, sys
from vhostnet.engines import _uapi
for name in sys.argv[1:]:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, _uapi.TUNSETIFF, _uapi.IFREQ_FLAGS.pack(name.encode(), 0x5102))  # the NIC's own flags
print("joined", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_who_may_open_the_device_may_join_a_tap_that_has_no_owner():
    """The kernel's rule, and why docs/security.md says whom to give the device to. close_nics() ends it."""
    kept, deleted = (vhostnet.open_nic(vhostnet.InterfaceSpec(bridge="br0", queues=2, vhost="off")) for _ in range(2))
    command = [*dropped(), sys.executable, "-c", STRANGER, kept.ifname, deleted.ifname]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as stranger:
        assert stranger.stdout.readline() == "joined\n"
        kept.close()
        vhostnet.close_nics([deleted])
        assert kept.ifname in link_names()
        assert deleted.ifname not in link_names()
        stranger.communicate()
    until(lambda: kept.ifname not in link_names())
