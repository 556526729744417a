"""The exact system calls of a batch: what opening NICs costs, without a clock and so without noise."""

import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from conftest import ROOT, need
from tracing import READY, traced

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("net")]

OPEN = (
    """
import os, sys, vhostnet
"""
    + READY
    + """
engine, vhost = sys.argv[1:3]
direct = {"type": "direct", "source": vhostnet.DirectSource("p0")} if sys.argv[5] == "direct" else {}
settings = {
    "set": {"isolated": True, "mac_table_manager": "libvirt", "rx_frames": 32},
    "limited": {"bandwidth": vhostnet.Bandwidth(vhostnet.Rate(1000))},
}.get(sys.argv[5], {})
def specs(count, queues):
    places = [direct or {"bridge": f"br{n % 2}"} for n in range(count)]
    return [vhostnet.InterfaceSpec(queues=queues, vhost=vhost, **place, **settings) for place in places]
vhostnet.close_nics(vhostnet.open_nics(specs(1, 1), engine=engine))  # what is asked once a process
asked = specs(int(sys.argv[3]), int(sys.argv[4]))
os.access("/begin", os.F_OK)
nics = vhostnet.open_nics(asked, engine=engine)
os.access("/end", os.F_OK)
vhostnet.close_nics(nics)
"""
)

# The allocator's, whenever it likes; and those that are no calls where the kernel has put them into the process: the
# clock, if the machine has a good one, and random numbers with glibc 2.41 and Linux 6.11.
OTHERS = {"brk", "mmap", "munmap", "madvise", "mremap", "mprotect", "clock_gettime", "getrandom"}


def trace(path, engine, vhost, count, queues, ports="plain"):
    """How often each call was made: ``openat(tun)``, ``ioctl(TUNSETIFF)``, ``sendto``, ..."""
    for name in ("br0", "br1", "p0"):  # a bridge carries macvtaps, too
        subprocess.run(["ip", "link", "add", name, "up", "type", "bridge"], check=True)
    return between_marks(path, OPEN, engine, vhost, str(count), str(queues), ports)


def between_marks(path, code, *arguments):
    """The calls of what *code* does between its two marks."""
    # No udevd: where one is, in some network namespace, it is asked whether it is in this one.
    alone = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /run && exec "$@"', "sh"]
    done = traced(path, [*alone, sys.executable, "-c", code, *arguments], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = path.read_text().splitlines()
    begin, end = (next(n for n, line in enumerate(lines) if f'"/{what}"' in line) for what in ("begin", "end"))
    return Counter(name for line in lines[begin + 1 : end] if (name := call(line)) not in OTHERS)


def call(line):
    """The name of a traced call; of open() the device with it, of ioctl() the request."""
    name, arguments = re.fullmatch(r"\d+ +(\w+)\((.*)", line).groups()
    if name == "openat":
        return f"openat({re.sub('[0-9]+$', 'N', arguments.split(chr(34))[1].rpartition('/')[2])})"
    if name == "ioctl":
        return f"ioctl({arguments.split(', ')[1].rstrip(')')})"
    return {"newfstatat": "fstat" if '""' in arguments else "stat", "statx": "stat"}.get(name, name)


def expected(count, queues, bridges):
    """Per queue open and TUNSETIFF; per NIC a MAC at once, the proof whose each is, its own MAC, its share of two sends
    and their answers, and a look whether the MAC is still ours."""
    sends = count + -(-2 * count // 64) + -(-count // 64)
    listed = {} if os.stat("/proc/self/fd").st_size else {"openat(fd)": 1, "fstat": 1, "getdents64": 2, "close": 1}
    return Counter(listed) + Counter(
        {
            "prlimit64": 1,  # whether all of it fits under RLIMIT_NOFILE,
            "stat": 2,  # next to what is open already; and whether there is a udevd
            "socket": 1,
            "bind": 1,
            "getsockname": 1,
            "ioctl(SIOCGIFMTU)": bridges,
            "ioctl(SIOCETHTOOL)": bridges,
            "ioctl(SIOCDEVPRIVATE)": bridges,
            "openat(tun)": count * queues,
            "ioctl(TUNSETIFF)": count * queues,
            "ioctl(SIOCSIFHWADDR)": 2 * count,
            "ioctl(SIOCGIFHWADDR)": count * queues + count,
            "ioctl(SIOCGIFINDEX)": bridges,
            "sendto": sends,
            "recvmsg": 4 * count,
            "close": 1,
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize(("count", "queues"), [(1, 1), (1, 8), (3, 4), (100, 2)])
def test_nothing_but_what_it_takes(engine, tmp_path, count, queues):
    assert trace(tmp_path / "trace", engine, "off", count, queues) == expected(count, queues, min(count, 2))


@pytest.mark.slow
def test_the_settings_of_a_port(engine, tmp_path):
    """In every one a message in the sends that there are, and an ioctl; the rest rides in UP."""
    more = {"sendto": -(-3 * 40 // 64) - -(-2 * 40 // 64), "recvmsg": 40, "ioctl(SIOCETHTOOL)": 40}
    made = trace(tmp_path / "trace", engine, "off", 40, 2, "set")
    assert made == expected(40, 2, 2) + Counter({**more, "ioctl(TUNGETIFF)": 2 * 40})


@pytest.mark.slow
def test_a_bandwidth(engine, tmp_path):
    """Of what a guest gets: three messages in the place of noqueue's one, and words are asked for.

    Those of one NIC stay together: 40 LINKs and 8 of these, then 21, then 11.
    """
    more = {"sendto": 1, "recvmsg": 2 * 40, "setsockopt": 1}
    made = trace(tmp_path / "trace", engine, "off", 40, 2, "limited")
    assert made == expected(40, 2, 2) + Counter(more)


@pytest.mark.slow
def test_vhost_that_is_not_there_is_one_open_a_nic(engine, tmp_path, lacks_vhost):
    made = trace(tmp_path / "trace", engine, "auto", 3, 4)
    assert made == expected(3, 4, 2) + Counter({"openat(vhost-net)": 3})


def expected_of_macvtaps(count, queues):
    """Per NIC one send that makes it, and what the kernel says of its device; its node is there while its queues
    are being opened. Nothing is left for LINK."""
    listed = {} if os.stat("/proc/self/fd").st_size else {"openat(fd)": 1, "fstat": 1, "getdents64": 2, "close": 1}
    return Counter(listed) + Counter(
        {
            "prlimit64": 1,
            "stat": 3,
            "openat(net)": 1,  # where they are to be deleted
            "socket": 1 + count,
            "bind": 1 + count,
            "getsockname": 1,
            "ioctl(SIOCGIFINDEX)": 2 * count,  # the parent's, and whether it is still there
            "ioctl(SIOCGIFMTU)": count,
            "sendto": count + 2 * -(-count // 64),
            "recvmsg": (2 + 4 + 2) * count,  # its answers, the uevents of its queues and itself, QDISC and UP
            "mknodat": count,
            "openat(.vhostnet-tapN)": count * queues,
            "ioctl(TUNSETIFF)": count * queues,
            "ioctl(TUNGETIFF)": count,
            "unlink": count,
            "close": 1 + count,
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize(("count", "queues"), [(1, 1), (1, 8), (70, 2)])
def test_a_macvtap(engine, tmp_path, count, queues):
    assert trace(tmp_path / "trace", engine, "off", count, queues, "direct") == expected_of_macvtaps(count, queues)


FLOOR = (
    """
import os, sys
from bench.contestants import Floor
"""
    + READY
    + """
count, queues, bridges = map(int, sys.argv[1:4])
floor = Floor()
if sys.argv[4] == "direct":
    asked = floor.macvtaps(count, queues, "p0")
else:
    how = {"settings": sys.argv[4] == "set", "limited": sys.argv[4] == "limited"}
    asked = floor.arguments(count, queues, [f"br{n}" for n in range(bridges)], **how)
os.access("/begin", os.F_OK)
floor.act(asked)
os.access("/end", os.F_OK)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "queues", "ports"),
    [
        (1, 8, "plain"),
        (100, 2, "plain"),
        (100, 2, "set"),
        (1, 8, "limited"),
        (100, 2, "limited"),
        (70, 2, "direct"),
    ],
)
def test_the_benchmarks_floor_makes_the_same_calls(tmp_path, count, queues, ports):
    """What it is faster by is then ours, and nothing else's."""
    native = trace(tmp_path / "native", "native", "off", count, queues, ports)
    assert between_marks(tmp_path / "floor", FLOOR, str(count), str(queues), str(min(count, 2)), ports) == native


KEEP = """
import sys, vhostnet
specs = [vhostnet.InterfaceSpec(type="ethernet", vhost="off", tap_path="/nowhere") for _ in range(2)]
print(*(type(error).__name__ for error in vhostnet.open_nics(specs, on_error="keep", engine=sys.argv[1])))
"""


@pytest.mark.slow
def test_nothing_is_sent_for_nics_that_have_all_failed(engine, tmp_path):
    """The kernel would warn of an empty message."""
    need("strace")
    command = ["strace", "-f", "-qq", "-e", "trace=socket,sendto", "-o", tmp_path / "trace", sys.executable, "-c", KEEP]
    done = subprocess.run([*command, engine], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Unsupported"] * 2
    calls = [call(line) for line in (tmp_path / "trace").read_text().splitlines()]
    assert calls == ["socket"]


@pytest.fixture
def lacks_vhost():
    from conftest import lacks

    if not lacks("vhost"):
        pytest.skip("it is there; the test below is for that")


@pytest.mark.vhost
def test_vhost_is_an_open_and_a_proof_a_queue(engine, tmp_path):
    made = trace(tmp_path / "trace", engine, "auto", 2, 3)
    proof = {"openat(vhost-net)": 6, "fstat": 6, "ioctl(VHOST_GET_FEATURES)": 6}
    assert made == expected(2, 3, 2) + Counter(proof)
