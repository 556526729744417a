"""What doctor finds around NICs: a real udevd, real bridges, real policies; each remedy is run, and helps."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from apart import apart
from conftest import ROOT, need

from vhostnet import InterfaceSpec
from vhostnet.commands import doctor

pytestmark = [pytest.mark.tap, pytest.mark.slow]

DOCTOR = f"{sys.executable} -m vhostnet doctor -j"
BRIDGE = "ip link add br0 address 02:00:00:00:00:01 up type bridge"
# Configuration of this host's own: /run is.
CONFIGURED = "mkdir -p /run/{0} && {1} >/run/{0}/{2} && udevadm control --reload && udevadm settle"


NAMES = ("udev", "networkd", "sysctl", "bridge", "netfilter")


def by_name(checks):
    """Those of doctor's checks that are about the surroundings; of bridges there is a list."""
    bridges = [check for check in checks if check.name == "bridge"]
    return {**{check.name: check for check in checks if check.name in NAMES}, "bridge": bridges}


def said(done):
    """Likewise of what the command printed."""
    assert done.returncode == 0 or "capability" in done.stdout, done.stderr
    return by_name([SimpleNamespace(**check) for check in json.loads(done.stdout)])


@pytest.fixture
def looked(net):
    """What doctor finds in a namespace without any daemon, once a shell has set it up."""

    def look(setup):
        subprocess.run(["sh", "-c", setup], check=True)
        return by_name(list(doctor.examine()))

    return look


# --- udevd -----------------------------------------------------------------------------------------------


def beside_udevd(setup="true", *words, under=""):
    """What doctor says in namespaces with a stock udevd; *under* a command that runs it."""
    script = f"{setup} && {under} {' '.join([DOCTOR, *words])}"
    command = [ROOT / "tools" / "with-udevd", "sh", "-c", script]
    return said(subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT))


@pytest.mark.udev
def test_a_stock_udevd_has_macs_of_its_own():
    udev = beside_udevd()["udev"]
    assert udev.state == "note"
    assert "99-default.link" in udev.detail
    assert "examples/host/10-vhostnet.link" in udev.remedy


@pytest.mark.udev
def test_with_the_file_that_is_shipped_it_leaves_ours_alone():
    shipped = f"cat {ROOT}/examples/host/10-vhostnet.link"
    udev = beside_udevd(CONFIGURED.format("systemd/network", shipped, "10-vhostnet.link"))["udev"]
    assert (udev.state, udev.detail.endswith("(/run/systemd/network/10-vhostnet.link)")) == ("ok", True)


@pytest.mark.udev
def test_a_namespace_of_its_own_has_no_udevd():
    udev = beside_udevd("ip netns add vms", "-n", "vms")["udev"]
    assert (udev.state, "no udevd listens" in udev.detail) == ("ok", True)


@pytest.mark.udev
def test_nothing_is_left_of_looking():
    """No link, and no link of another name meanwhile than those that doctor's TAP has."""
    links = "ls /sys/class/net"
    script = f"{links}; {DOCTOR} >/dev/null; udevadm settle; {links}; ls /run/udev/data"
    command = [ROOT / "tools" / "with-udevd", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT)
    assert done.stdout.split() == ["lo", "lo"]


@pytest.mark.udev
def test_a_udevd_that_renames():
    rule = 'echo \'SUBSYSTEM=="net", ENV{ID_NET_DRIVER}=="tun", NAME="evil0"\''
    udev = beside_udevd(CONFIGURED.format("udev/rules.d", rule, "90-evil.rules"))["udev"]
    assert (udev.state, " became evil0" in udev.detail) == ("note", True)


@pytest.mark.udev
def test_who_listens_and_is_no_udevd():
    """libvirtd hears the kernel's uevents, too: a namespace in which only it does."""
    listener = "import socket, time; s = socket.socket(16, 3, 15); s.bind((0, 1)); print(flush=True); time.sleep(60)"
    script = (
        f"unshare --net sh -c '{sys.executable} -c \"{listener}\" | (read x; {DOCTOR}; kill 0)' 2>/dev/null || true"
    )
    command = [ROOT / "tools" / "with-udevd", "setsid", "--wait", "sh", "-c", script]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=60, cwd=ROOT)
    udev = said(done)["udev"]
    assert (udev.state, "no udevd was done with a new TAP" in udev.detail) == ("note", True)


@pytest.mark.udev
def test_sysctl_settings_that_give_nics_addresses():
    """And the remedy, as doctor has it, takes it away."""
    every = "echo net.ipv6.conf.*.addr_gen_mode = 0"
    given = beside_udevd(CONFIGURED.format("sysctl.d", every, "50-all.conf"))
    line = given["sysctl"].remedy.removeprefix("a line ").partition(" in ")[0]
    assert given["sysctl"].state == "note"
    spared = CONFIGURED.format("sysctl.d", f"{every} >/run/sysctl.d/50-all.conf && echo '{line}'", "60-vhostnet.conf")
    assert "sysctl" not in beside_udevd(spared)


@pytest.mark.udev
def test_sysctl_settings_that_udevd_is_quicker_with():
    """They are applied before doctor's own mode is there to be overwritten."""
    need("strace")
    every = CONFIGURED.format("sysctl.d", "echo net.ipv6.conf.*.addr_gen_mode = 0", "50-all.conf")
    late = "-P /proc/sys/net/ipv6/conf/vnet0/addr_gen_mode -e inject=openat:delay_enter=300000:when=1"
    assert beside_udevd(every, under=f"strace -qq -o /dev/null {late}")["sysctl"].state == "note"


def test_without_the_privilege_it_is_said_to_be_unknown():
    done = apart("setpriv", "--bounding-set=-net_admin", "--inh-caps=-all", "sh", "-c", DOCTOR)
    udev = said(done)["udev"]
    assert (udev.state, "is not known" in udev.detail) == ("note", True)


# --- bridges ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bridge", "says"),
    [
        ("ip link add br0 address 02:00:00:00:00:01 type bridge", "br0 is down"),
        (f"{BRIDGE} stp_state 1", "mute for its first 30 s"),
        (f"{BRIDGE} stp_state 1 forward_delay 200", "mute for its first 4 s"),
        ("ip link add br0 up type bridge", "no MAC of its own"),
    ],
)
def test_a_bridge_to_look_at(looked, bridge, says):
    """One finding each, and none when its remedy has been run."""
    (finding,) = looked(bridge)["bridge"]
    assert (finding.state, says in finding.detail) == ("note", True)
    assert looked(finding.remedy.partition(" (")[0])["bridge"] == []


PORT = "ip link add port address {} type veth peer name wire && ip link set port master br0 up"


@pytest.mark.parametrize(
    ("bridge", "port", "findings"),
    [
        (f"{BRIDGE} stp_state 0", "52:54:00:00:00:01", 0),
        ("ip link add br0 up type bridge", "52:54:00:00:00:01", 0),  # lower than any NIC's, and it stays
        ("ip link add br0 up type bridge", "fe:54:00:00:00:01", 1),
    ],
)
def test_a_port_that_holds_the_bridges_mac(looked, bridge, port, findings):
    assert len(looked(f"{bridge} && {PORT.format(port)}")["bridge"]) == findings


def test_a_bridge_that_lost_its_last_port_has_no_mac_to_keep(looked):
    empty = f"ip link add br0 up type bridge && {PORT.format('52:54:00:00:00:01')} && ip link del port"
    (finding,) = looked(empty)["bridge"]
    assert finding.remedy == "ip link set br0 address MAC, one of your own"


def test_the_bridges_of_another_namespace():
    setup = "ip netns add vms && ip -n vms link add br0 up type bridge"
    there = said(apart("sh", "-c", f"{DOCTOR} -n vms", setup=setup))
    assert "no MAC of its own" in there["bridge"][0].detail


# --- netfilter -------------------------------------------------------------------------------------------


@pytest.fixture
def netfilter():
    need("netfilter")


SEEN = f"{BRIDGE}; sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1"
UNSEEN = SEEN.replace("=1 ", "=0 ").replace("tables=1", "tables=0")
NFT = "nft add table inet f && nft 'add chain inet f c { type filter hook forward priority 0; policy drop; }'"


@pytest.mark.usefixtures("netfilter")
@pytest.mark.parametrize(
    ("setup", "state", "says"),
    [
        (UNSEEN, "ok", "does not see"),
        (SEEN, "ok", "no policy drops it"),
        (f"{SEEN}; iptables -P FORWARD DROP", "note", "nft chain ip filter FORWARD"),
        (f"{SEEN}; ip6tables -P FORWARD DROP", "note", "nft chain ip6 filter FORWARD"),
        (f"{SEEN}; iptables-legacy -P FORWARD DROP", "note", "iptables-legacy FORWARD"),
        (f"{SEEN}; {NFT}", "note", "nft chain inet f c"),
        (f"{UNSEEN}; iptables -P FORWARD DROP", "ok", "does not see"),
        (
            f"{UNSEEN}; ip link set br0 type bridge nf_call_iptables 1; iptables -P FORWARD DROP",
            "note",
            "nft chain ip filter FORWARD",
        ),
        (
            f"{UNSEEN}; ip link set br0 type bridge nf_call_iptables 1; ip6tables -P FORWARD DROP",
            "ok",
            "no policy drops",
        ),
    ],
)
def test_a_policy_that_drops_what_bridges_forward(looked, setup, state, says):
    netfilter = looked(setup)["netfilter"]
    assert (netfilter.state, says in netfilter.detail) == (state, True), netfilter


@pytest.mark.usefixtures("netfilter")
def test_who_may_not_ask_is_told_so():
    done = apart("setpriv", "--bounding-set=-net_admin", "--inh-caps=-all", "sh", "-c", DOCTOR, setup=SEEN)
    netfilter = said(done)["netfilter"]
    assert (netfilter.state, "is not known" in netfilter.detail) == ("note", True)


# An IPv4 packet and another frame, from one guest's fd to the other's.
PASS = """
import json, os, select, vhostnet
one, other = nics = vhostnet.open_nics([vhostnet.InterfaceSpec(bridge="br0", vhost="off") for _ in range(2)])

def passes(kind, body):
    to, from_ = (bytes.fromhex(nic.spec.mac.replace(":", "")) for nic in (other, one))
    frame = to + from_ + kind + body.ljust(46, b".")
    os.write(one.tap_fds[0], bytes(10) + frame)
    while select.select([other.tap_fds[0]], [], [], 1)[0]:
        if os.read(other.tap_fds[0], 2048)[10:] == frame:
            return True
    return False

header = bytes.fromhex("4500002e000000004011") + bytes(2) + bytes([10, 0, 0, 1, 10, 0, 0, 2])
total = sum(int.from_bytes(header[i:i + 2], "big") for i in range(0, 20, 2))
checksum = 0xFFFF ^ ((total & 0xFFFF) + (total >> 16))
packet = header[:10] + checksum.to_bytes(2, "big") + header[12:] + bytes.fromhex("00010002001a0000")
print(json.dumps([passes(b"\\x08\\x00", packet), passes(b"\\x88\\xb5", b"")]))
vhostnet.close_nics(nics)
"""


@pytest.mark.usefixtures("netfilter")
@pytest.mark.parametrize(
    ("change", "ip"),
    [("true", False), ("{0}", True), ("{1}", True)],
    ids=["drops", "sysctl", "rule"],
)
def test_what_it_does_to_frames_and_what_its_remedies_do(looked, change, ip):
    setup = f"{SEEN}; iptables -P FORWARD DROP; ip6tables -P FORWARD DROP"
    sysctl, rule = looked(setup)["netfilter"].remedy.partition(" (with")[0].split(", or a rule: ")
    subprocess.run(["sh", "-c", f"{change.format(sysctl, rule)} >/dev/null"], check=True)
    done = subprocess.run([sys.executable, "-c", PASS], stdout=subprocess.PIPE, check=True, timeout=60)
    assert json.loads(done.stdout) == [ip, True]


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "notes"), [("vt-1", 1), ("vt1", 0)])
def test_a_name_that_is_systemds(net, name, notes):
    spec = InterfaceSpec(type="ethernet", ifname=name, vhost="off")
    found = [check for check in doctor.examine_specs([spec]) if "systemd-networkd takes" in check.detail]
    assert [(check.state, check.name) for check in found] == [("note", "name")] * notes
