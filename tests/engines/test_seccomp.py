"""The system calls that docs/security.md lists are enough for the whole life of NICs, and none of them is too many."""

import platform
import re
import signal
import subprocess
import sys
import termios

import pytest
from conftest import ROOT, TESTS, need
from life import STEPS
from tracing import READY, traced

from vhostnet.engines import _uapi
from vhostnet.others import bridge as bridges

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("net")]

OWN, VHOST, LIBC = "vhostnet's own", "With vhost-net", "CPython's and the C library's"
UDEV = "Where a udevd listens"
MACVTAP = "A macvtap"
ELSEWHERE = "On other machines"
MACHINES = {"aarch64": "arm64", "s390x": "s390x"}  # those with a column there
FIRST = {"AF_NETLINK": 16, "PR_SET_NAME": 15}  # what first arguments are called

# The filter allows what argv[1] names, and kills the process at anything else.
FILTERED = (
    """
import sys
import pyseccomp as seccomp
import life, vhostnet

"""
    + READY
    + """
allowed, engine, vhost, *steps = sys.argv[1:]
vhostnet.select_engine(engine)
filter = seccomp.SyscallFilter(seccomp.KILL_PROCESS)
for name, argument, value in (word.split(":") for word in allowed.split()):
    if argument:
        compared = seccomp.Arg(int(argument), seccomp.MASKED_EQ, 0xFFFFFFFF, int(value))
        filter.add_rule(seccomp.ALLOW, name, compared)
    else:
        filter.add_rule(seccomp.ALLOW, name)
filter.load()
life.live(engine, vhost, *steps)
"""
)


def documented(heading, engine):
    """The calls of one table of the docs, for one engine, as this machine has them: ``openat``, ``ioctl(TUNSETIFF)``,
    ``socket(AF_NETLINK)``.
    """
    return set.union(*alternatives(heading, engine))


def alternatives(heading, engine):
    """The same, each call a set of those that stand for it here: which of them it is is the C library's business."""
    calls = [call for _, cell, *of in rows(heading)[1:] if not of or of[0] in ("both", engine) for call in names(cell)]
    others = elsewhere()
    return [set(others.get(call, [call])) for call in calls]


def elsewhere():
    """What this machine calls in the place of which of x86-64's."""
    machines, *calls = rows(ELSEWHERE)
    if platform.machine() == "x86_64":
        return {}
    column = machines.index(MACHINES[platform.machine()])
    return {names(row[0])[0]: names(row[column]) for row in calls}


def rows(heading):
    """The cells of one table, its head first."""
    page = (ROOT / "docs" / "security.md").read_text()
    section = page.partition(f"### {heading}\n")[2].partition("\n#")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in cells] for cells in lines]


def names(cell):
    return re.findall(r"`([a-z0-9_]+(?:\([A-Z_]+\))?)`", cell)


def rule(call):
    """As the child takes it: the name, and the number of an argument and its value."""
    name, _, what = call.rstrip(")").partition("(")
    if name == "ioctl":
        return f"ioctl:1:{request(what)}"
    return f"{name}:0:{FIRST[what]}" if what else f"{name}::"


def request(name):
    return termios.TCGETS if name == "TCGETS" else getattr(_uapi, name)


def living(calls, engine, vhost):
    """The command that lives the whole life of NICs with nothing but these *calls*."""
    program = [sys.executable, "-B", "-W", "error", "-c", FILTERED, " ".join(map(rule, sorted(calls)))]
    return [*program, engine, vhost, *STEPS]


def filtered(calls, engine, vhost):
    options = {"capture_output": True, "text": True, "check": False, "timeout": 100, "cwd": TESTS}
    return subprocess.run(living(calls, engine, vhost), input="\n", **options)


def headings(vhost):
    return [OWN, LIBC, *([VHOST] if vhost != "off" else [])]


def listed(engine, vhost):
    return set.union(*(documented(heading, engine) for heading in headings(vhost)))


@pytest.fixture(
    params=[
        pytest.param("off", marks=pytest.mark.slow),  # no kernel makes a difference to it
        pytest.param("/dev/vhost-net", marks=pytest.mark.vhost),
    ],
    ids=["tap", "vhost"],
)
def vhost(request):
    return request.param


@pytest.fixture(autouse=True)
def _filter_and_bridge(net):
    need("seccomp")
    bridges.make_bridge("br0")


def test_the_list_is_enough(engine, vhost):
    done = filtered(listed(engine, vhost), engine, vhost)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["ready", *STEPS], "")


@pytest.mark.slow
@pytest.mark.parametrize("left_out", [None, "mknodat"])
def test_a_macvtap(engine, left_out):
    calls = listed(engine, "off").union(documented(MACVTAP, engine)) - {left_out}
    command = living(calls, engine, "off")[: -len(STEPS)]
    done = subprocess.run([*command, "macvtap"], input="\n", capture_output=True, text=True, timeout=100, cwd=TESTS)
    if left_out:
        assert done.returncode == -signal.SIGSYS
    else:
        assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["ready", "macvtap"], "")


def beside_a_udevd(engine, left_out=None):
    """The same life, and a thread that waits for udev."""
    calls = listed(engine, "off").union(documented(UDEV, engine)) - {left_out}
    bridge = [ROOT / "tools/with-udevd", "sh", "-c", 'ip link add br0 up type bridge && exec "$@"', "sh"]
    command = [*bridge, *living(calls, engine, "off")]
    return subprocess.run(command, input="\n", capture_output=True, text=True, timeout=100, cwd=TESTS)


@pytest.mark.udev
@pytest.mark.slow
def test_where_a_udevd_listens(engine):
    done = beside_a_udevd(engine)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["ready", *STEPS], "")


@pytest.mark.udev
@pytest.mark.slow
def test_who_waits_for_udev_sleeps(engine):
    """Now and then udev is done before anybody has to wait."""
    ends = {beside_a_udevd(engine, left_out="clock_nanosleep").returncode for _ in range(8)}
    assert 128 + signal.SIGSYS in ends <= {0, 128 + signal.SIGSYS}


@pytest.mark.slow
@pytest.mark.parametrize("call", ["ioctl(TUNSETIFF)", "socket(AF_NETLINK)", "recvmsg"])
def test_one_less_is_too_few(engine, call):
    """So the filter is there, and looks at what the calls are about."""
    assert filtered(listed(engine, "off") - {call}, engine, "off").returncode == -signal.SIGSYS


def test_every_call_of_ours_is_used(engine, vhost, tmp_path):
    """What is made under the filter, seen from outside: all of the tables that are ours, and nothing of no table."""
    allowed = listed(engine, vhost)
    program = living(allowed, engine, vhost)
    done = traced(tmp_path / "trace", program, "-e", "raw=ioctl", cwd=TESTS)
    assert done.returncode == 0, done.stderr
    made = calls_since((tmp_path / "trace").read_text())
    ours = [one for heading in headings(vhost) if heading != LIBC for one in alternatives(heading, engine)]
    assert [one for one in ours if not one & made] == []
    assert made <= allowed


def calls_since(text):
    """The calls since the filter was loaded."""
    after = text[text.rindex("seccomp(SECCOMP_SET_MODE_FILTER") :].partition("\n")[2]
    known = {request(name): name for name in [*dir(_uapi), "TCGETS"] if re.match("TUN|SIOC|VHOST_|TCGETS", name)}
    made = set()
    for name, arguments in re.findall(r"^\d+ +(\w+)\((.*)", after, re.MULTILINE):
        if name == "ioctl":
            number = int(arguments.split(", ")[1].split()[0].rstrip(")"), 16)
            name = f"ioctl({known.get(number, hex(number))})"
        made.add(f"{name}({arguments.partition(',')[0]})" if name in ("socket", "prctl") else name)
    return made


# --- what a filter answers is named --------------------------------------------------------------------------

REFUSED = """
import errno, sys
import pyseccomp as seccomp
import vhostnet
from vhostnet.engines import _uapi

engine, call, code = sys.argv[1:]
spec = vhostnet.InterfaceSpec(bridge="br0", queues=2, vhost="off")
vhostnet.open_nic(spec, engine=engine).close()
of = {
    "openat": (2, 0o2000002),  # O_RDWR | O_CLOEXEC
    "ioctl": (1, _uapi.TUNSETIFF),
    "socket": (0, 16),  # AF_NETLINK
}
filter = seccomp.SyscallFilter(seccomp.ALLOW)
argument, value = of[call]
filter.add_rule(seccomp.ERRNO(getattr(errno, code)), call, seccomp.Arg(argument, seccomp.EQ, value))
filter.load()
try:
    vhostnet.open_nic(spec, engine=engine)
except vhostnet.HostError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "code", "said"),
    [
        ("openat", "EPERM", r"NotPermitted TAP_OPEN \(open\) .* device cgroup .*DeviceAllow=/dev/net/tun rw"),
        ("ioctl", "EACCES", r"NotPermitted TAP_OPEN \(TUNSETIFF\) .* a security module \(SELinux, AppArmor\)"),
        ("socket", "EAFNOSUPPORT", r"Unsupported TAP_OPEN \(socket\) .* RestrictAddressFamilies=AF_NETLINK"),
    ],
)
def test_what_others_forbid_is_told_from_a_capability(engine, call, code, said):
    """The answers of a device cgroup, a security module and systemd, given by a filter."""
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, engine, call, code], capture_output=True, text=True, check=True, timeout=60
    )
    assert re.match(said, done.stdout), done.stdout
