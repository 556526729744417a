"""Taking many NICs away in one round: all of ours, and nothing else."""

import errno
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import BRIDGE, link_names, need, open_fds, state
from kernel import ip, link

import vhostnet
from vhostnet import InterfaceSpec
from vhostnet.engines import _uapi
from vhostnet.others import bridge as bridges
from vhostnet.program.parts import Act, Fds, Op, held_row
from vhostnet.program.plan import plan_delete
from vhostnet.program.program import Program

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("net")]


def open_some(engine, count, **fields):
    fields = {"bridge": BRIDGE, "queues": 2, "vhost": "off", **fields}
    return vhostnet.open_nics([InterfaceSpec(**fields) for _ in range(count)], engine=engine)


@pytest.mark.parametrize("count", [0, 1, 3, 65, 129])
def test_all_of_them_go(engine, bridge, no_leaks, count):
    nics = open_some(engine, count)
    vhostnet.close_nics(nics)
    assert all(nic.closed for nic in nics)


def test_it_is_one_round_for_each_128(engine, bridge):
    """The links of a round have one group, which nobody had before: as the kernel announces them."""
    nics = open_some(engine, 130, queues=1)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as listener:
        listener.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE: every message of a thousand
        listener.bind((0, 1))  # RTMGRP_LINK
        vhostnet.close_nics(nics)
        deleted = list(groups_of_deleted(listener))
    ours = [(index, group) for index, group in deleted if index in {nic.ifindex for nic in nics}]
    rounds = {group: sum(1 for _, g in ours if g == group) for _, group in ours}
    assert sorted(rounds.values()) == [2, 128]
    assert 0 not in rounds


def groups_of_deleted(listener):
    """(ifindex, group) of every RTM_DELLINK; a bridge says that its port is gone as AF_BRIDGE, which is passed over."""
    while True:
        try:
            data = listener.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        _, kind, *_ = _uapi.NLMSGHDR.unpack_from(data)
        family, _, index, _, _ = _uapi.IFINFOMSG.unpack_from(data, 16)
        if kind == _uapi.RTM_DELLINK and family == socket.AF_UNSPEC:
            found = dict(attributes(data[32:]))
            yield index, struct.unpack("=I", found[_uapi.IFLA_GROUP])[0]


def attributes(data):
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        yield kind, data[4:size]
        data = data[(size + 3) & ~3 :]


def test_what_is_closed_already_is_passed_over(engine, bridge, no_leaks):
    nics = open_some(engine, 3)
    nics[1].close()
    vhostnet.close_nics(nics)
    vhostnet.close_nics(nics)
    assert not [name for name in link_names() if name.startswith("vnet")]


def test_a_link_that_was_deleted_meanwhile(engine, bridge, no_leaks):
    nics = open_some(engine, 3)
    ip(f"link del {nics[1].ifname}")
    vhostnet.close_nics(nics)
    assert not [name for name in link_names() if name.startswith("vnet")]


def test_a_renamed_one_is_still_ours(engine, bridge, no_leaks):
    nics = open_some(engine, 2)
    ip(f"link set {nics[0].ifname} down")
    ip(f"link set {nics[0].ifname} name other")
    vhostnet.close_nics(nics)
    assert link_names() == ["lo", BRIDGE]


def test_a_link_of_the_same_name_and_ifindex_is_not_ours(engine, bridge):
    """The ifindex is proven by the TAP that holds it: here it is another link's, and that one stays."""
    (nic,) = open_some(engine, 1)
    fds = nic.detach()
    program = plan_delete([held_row(nic.ifname, link(BRIDGE)["ifindex"], fds)])
    result = vhostnet.select_engine(engine).run(program)
    assert [failure.result.call for failure in result.failures] == ["SIOCGIFINDEX"]
    assert {BRIDGE, nic.ifname} <= set(link_names())
    vhostnet.select_engine(engine).close([fds])
    assert nic.ifname not in link_names()


def test_fds_that_are_no_tap(engine, no_leaks):
    read, write = os.pipe()
    result = vhostnet.select_engine(engine).run(plan_delete([held_row("x", 1, Fds((read,), ()))]))
    assert [failure.result.call for failure in result.failures] == ["TUNGETIFF"]
    os.close(read)
    os.close(write)


def test_whatever_is_given_as_vhost_is_closed_too(engine, bridge, no_leaks):
    (nic,) = open_some(engine, 1)
    fds = nic.detach()
    given = os.pipe()
    vhostnet.select_engine(engine).close([Fds(fds.tap, given)])
    assert not {*fds.tap, *given} & set(open_fds())
    assert nic.ifname not in link_names()


def test_a_nic_that_was_refused_is_not_deleted(engine, bridge):
    """Two to be attached and deleted, and one of them has a queue that is none: that one is left as it is."""
    nics = open_some(engine, 2)
    good, bad = (nic.detach() for nic in nics)
    read, write = os.pipe()
    rows = (held_row("good", nics[0].ifindex, good), held_row("bad", nics[1].ifindex, Fds((bad.tap[0], read), ())))
    acts = tuple(Act(op, nic) for op in (Op.ATTACH, Op.DELETE) for nic in range(2))
    result = vhostnet.select_engine(engine).run(Program(rows, acts, keep=True))
    left = set(link_names())
    vhostnet.select_engine(engine).close([bad, Fds((read, write), ())])
    assert [(failure.act, failure.result.call) for failure in result.failures] == [(1, "TUNGETIFF")]
    assert [act.errno for act in result.acts] == [0, errno.ENOTTY, 0, errno.ECANCELED]
    assert {nic.ifname for nic in nics} & left == {nics[1].ifname}


# --- decoys ----------------------------------------------------------------------------------------------

GROUP = 0x47070707  # the random group of a process whose every random octet is 7

FIXED_RANDOM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
ssize_t getrandom(void *buffer, size_t size, unsigned int flags)
{
    (void)flags;
    memset(buffer, 7, size);
    return (ssize_t)size;
}
long syscall(long number, ...)
{
    long (*next)(long, ...) = dlsym(RTLD_NEXT, "syscall");
    long given[6];
    va_list list;

    va_start(list, number);
    for (int i = 0; i < 6; i++)
        given[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_getrandom)
        return getrandom((void *)given[0], (size_t)given[1], (unsigned int)given[2]);
    return next(number, given[0], given[1], given[2], given[3], given[4], given[5]);
}
"""

DELETE = """
import sys, vhostnet
from vhostnet.program.plan import plan_delete
specs = [vhostnet.InterfaceSpec(bridge=sys.argv[1], mac=f"52:54:00:00:00:0{n}", vhost="off") for n in range(5)]
nics = vhostnet.open_nics(specs, engine=sys.argv[2])
engine, rows = vhostnet.select_engine(sys.argv[2]), [nic.surrender()[1] for nic in nics]
result = engine.run(plan_delete(rows))
print(*(failure.result.call for failure in result.failures))
engine.close([row.fds for row, nic in zip(rows, result.nics) if nic is None])
"""


@pytest.fixture(scope="module")
def fixed_random(tmp_path_factory):
    made = tmp_path_factory.mktemp("shim") / "random.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", made, "-xc", "-"], input=FIXED_RANDOM, text=True, check=True)
    return {**os.environ, "LD_PRELOAD": f"{os.environ.get('LD_PRELOAD', '')} {made}"}


def delete_with(engine, environment):
    """The kernel calls that kept it from deleting five NICs by their group."""
    command = [sys.executable, "-c", DELETE, BRIDGE, engine]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.slow
def test_the_neighbouring_groups_are_untouched(engine, bridge, fixed_random):
    for number, group in enumerate((GROUP - 1, GROUP + 1, GROUP ^ 0x40000000, 1, 0)):
        ip(f"link add decoy{number} group {group} type bridge")
    before = link_names()
    assert delete_with(engine, fixed_random) == []
    assert link_names() == before


@pytest.mark.slow
def test_a_decoy_in_the_same_group_survives(engine, bridge, fixed_random):
    """Then nothing is deleted by group, and the threads close ours."""
    ip(f"link add decoy group {GROUP} type bridge")
    before = link_names()
    assert delete_with(engine, fixed_random) == ["RTM_GETLINK"] * 5
    assert link_names() == before


# --- namespaces ------------------------------------------------------------------------------------------


def test_each_goes_in_its_own_namespace(engine, bridge, no_leaks, namespaces):
    """Same names, same ifindexes: only the TAP's own namespace tells them apart."""
    here = open_some(engine, 2)
    there = [
        vhostnet.open_nic(InterfaceSpec(type="ethernet", ifname=nic.ifname, vhost="off"), engine=engine, netns=fd)
        for fd in namespaces
        for nic in here
    ]
    vhostnet.close_nics([there[3], here[0], there[0], there[2], here[1], there[1]])
    for fd in namespaces:
        assert vhostnet.process.netns.call_inside(fd, link_names) == ["lo"]


def test_those_of_another_namespace_leave_ours_alone(engine, bridge, namespaces):
    here = open_some(engine, 2)
    there = [
        vhostnet.open_nic(
            InterfaceSpec(type="ethernet", ifname=nic.ifname, vhost="off"), engine=engine, netns=namespaces[0]
        )
        for nic in here
    ]
    vhostnet.close_nics(there)
    assert {nic.ifname for nic in here} <= set(link_names())
    vhostnet.close_nics(here)


NO_WAY_IN = """
import os, sys, vhostnet
from vhostnet.program.parts import Fds, held_row
from vhostnet.removal import Surrendered, delete_all
fd = int(sys.argv[2])
delete_all([Surrendered(vhostnet.select_engine(sys.argv[1]), held_row("there", 2, Fds((fd,), ())), None)])
print(os.path.exists(f"/proc/self/fd/{fd}"))
"""


def test_what_is_in_a_namespace_without_a_way_in_is_closed(engine, namespaces):
    """By a process that may not enter any: its copy of the fd goes, and the NIC stays with whoever has another."""
    there = InterfaceSpec(type="ethernet", vhost="off")
    with vhostnet.open_nic(there, engine=engine, netns=namespaces[0]) as nic:
        command = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", sys.executable, "-c", NO_WAY_IN, engine]
        done = subprocess.run([*command, str(nic.fds[0])], pass_fds=nic.fds, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["False"]
        assert vhostnet.process.netns.call_inside(namespaces[0], link_names) == ["lo", nic.ifname]


@pytest.fixture
def namespaces():
    fds = []

    def make():
        vhostnet.process.netns.unshare_net()
        fds.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

    for _ in range(2):
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
    yield fds
    for fd in fds:
        os.close(fd)


# --- in the background -----------------------------------------------------------------------------------


def finish():
    for thread in threading.enumerate():
        if thread.name == "vhostnet-close":
            thread.join()


def test_in_the_background(engine, bridge, no_leaks):
    for _ in range(3):
        nics = open_some(engine, 10)
        vhostnet.close_nics(nics, wait=False)
        assert all(nic.closed for nic in nics)
    finish()


def test_nothing_needs_no_thread():
    vhostnet.close_nics([], wait=False)
    assert "vhostnet-close" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.slow
def test_the_end_of_the_process_waits_for_it(engine, bridge):
    code = (
        "import sys, vhostnet\n"
        f"specs = [vhostnet.InterfaceSpec(bridge='{BRIDGE}', vhost='off') for _ in range(30)]\n"
        "vhostnet.close_nics(vhostnet.open_nics(specs, engine=sys.argv[1]), wait=False)\n"
    )
    before = link_names()
    subprocess.run([sys.executable, "-W", "error", "-c", code, engine], check=True)
    assert link_names() == before


@pytest.mark.slow
def test_at_the_interpreters_end_it_is_done_on_the_spot(engine, bridge):
    code = (
        "import atexit, sys, vhostnet\n"
        f"nic = vhostnet.open_nic(vhostnet.InterfaceSpec(bridge='{BRIDGE}', vhost='off'), engine=sys.argv[1])\n"
        "atexit.register(lambda: vhostnet.close_nics([nic], wait=False))\n"
    )
    before = link_names()
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, engine], capture_output=True, check=True)
    assert (link_names(), done.stderr) == (before, b"")


def test_a_child_forgets_what_its_parent_is_about_to_close(engine, bridge, no_leaks):
    """The gathered fds are closed in a forked child, and the parent's NICs go all the same."""
    from vhostnet.host import closing

    nics = open_some(engine, 3)
    closing._background._working = True  # as if a thread were busy: these are only gathered
    vhostnet.close_nics(nics, wait=False)
    child = os.fork()
    if child == 0:
        left = [fd for fd in open_fds().values() if "tun" in fd]
        os._exit(len(left))
    assert os.waitpid(child, 0)[1] == 0
    closing._background._work()


# --- batches ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_thousand_over_four_bridges(engine):
    """Set up, every queue used, torn down."""
    for number in range(4):
        bridges.make_bridge(f"br{number}")
    before = state()
    specs = [InterfaceSpec(bridge=f"br{number % 4}", queues=2, vhost="off") for number in range(1000)]
    nics = vhostnet.open_nics(specs, engine=engine)
    from test_nic import flags_of

    names = {flags_of(fd)[0] for nic in nics for fd in nic.tap_fds}
    ports = {b.name: b.ports for b in bridges.list_bridges()}
    vhostnet.close_nics(nics)
    assert names == {nic.ifname for nic in nics}
    assert ports == dict.fromkeys(ports, 250)
    assert state() == before


@pytest.mark.slow
def test_a_bridge_has_1023_ports(engine, bridge):
    """One more is refused by name before anything is made, whoever has the others."""
    nics = open_some(engine, 1022, queues=1)
    ip("tuntap add alien mode tap")
    ip(f"link set alien master {BRIDGE}")
    before = state()
    with pytest.raises(vhostnet.BridgeFull) as caught:
        open_some(engine, 2)
    assert (caught.value.act, caught.value.call) == ("LINK", "BRCTL_GET_PORT_LIST")
    assert f"bridge {BRIDGE!r} has 1023 of 1023 ports in use, and 2 NICs are to join it" in str(caught.value)
    assert state() == before
    nics.pop().close()
    kept = vhostnet.open_nics(
        [InterfaceSpec(bridge=BRIDGE, vhost="off") for _ in range(3)], engine=engine, on_error="keep"
    )
    assert [type(nic) for nic in kept] == [vhostnet.Nic, vhostnet.BridgeFull, vhostnet.BridgeFull]
    vhostnet.close_nics([*nics, kept[0]])
    assert [name for name in link_names() if name.startswith("vnet")] == []


def test_the_ports_of_a_bridge_are_counted(engine, bridge):
    ip("link add empty type bridge")
    nics = open_some(engine, 3)
    found = vhostnet.select_engine(engine).describe([BRIDGE, "empty", "lo", nics[0].ifname])
    vhostnet.close_nics(nics)
    assert {name: link.ports for name, link in found.items()} == {BRIDGE: 3, "empty": 0, "lo": 0, nics[0].ifname: 0}


def test_keep_gives_what_succeeded(engine, bridge, no_leaks):
    ip("link add taken type bridge")
    ip("link add other type bridge")
    specs = [
        InterfaceSpec(**{"bridge": BRIDGE, "vhost": "off", **fields})
        for fields in (
            {},
            {"ifname": "taken"},
            {"queues": 3},
            {"bridge": "nowhere"},
            {"bridge": "lo"},
            {"tap_path": "/dev/null"},
            {"vhost": "require", "vhost_path": "/dev/null"},
            {"bridge": "other"},
        )
    ]
    kept = vhostnet.open_nics(specs, engine=engine, on_error="keep")
    refused = {number: type(nic).__name__ for number, nic in enumerate(kept) if isinstance(nic, vhostnet.HostError)}
    good = [nic for nic in kept if isinstance(nic, vhostnet.Nic)]
    facts = [(link(nic.ifname)["master"], link(nic.ifname)["up"], len(nic.tap_fds)) for nic in good]
    made = set(link_names())
    vhostnet.close_nics(good)
    assert made - set(link_names()) == {nic.ifname for nic in good}
    assert refused == {
        1: "FlagMismatch" if refused[1] == "FlagMismatch" else "NameBusy",
        3: "NoSuchBridge",
        4: "NotABridge",
        5: "Unsupported",
        6: "VhostUnavailable",
    }
    assert kept[1].ifname == "taken"
    assert facts == [(BRIDGE, True, 1), (BRIDGE, True, 3), ("other", True, 1)]
    ip("link del taken")
    ip("link del other")


def test_keep_tries_generated_names_again(engine, bridge):
    with vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, ifname=f"{engine}k%d", vhost="off"), engine=engine) as nic:
        number = int(nic.ifname.removeprefix(f"{engine}k"))
        ip(f"link add {engine}k{number + 2} type bridge")
        specs = [InterfaceSpec(bridge=BRIDGE, ifname=f"{engine}k%d", vhost="off") for _ in range(3)]
        kept = vhostnet.open_nics(specs, engine=engine, on_error="keep")
        names = [one.ifname for one in kept]
        vhostnet.close_nics(kept)
    assert names == [f"{engine}k{number + step}" for step in (1, 4, 3)]


AGAIN = """
import sys, vhostnet
def spec(name):
    return vhostnet.InterfaceSpec(bridge=sys.argv[2], ifname=name, vhost="off")
kept = vhostnet.open_nics([spec("two_digits_of%d"), spec("y")], engine=sys.argv[1], on_error="keep")
print(kept[0].act, kept[0].errno, kept[1].ifname)
kept[1].close()
"""


@pytest.mark.slow
def test_keep_gives_what_succeeded_when_there_is_no_looking_for_other_names(engine, bridge, no_leaks):
    need("strace")
    names = take_every_name("two_digits_of%d")
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=socket:error=EMFILE:when=2"]
    command += [sys.executable, "-W", "error", "-c", AGAIN, engine, BRIDGE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    batch("link property del dev lo altname {}", names)
    assert (done.stdout.split(), done.stderr) == (["DESCRIBE", str(errno.EMFILE), "y"], "")


def take_every_name(template):
    names = [template.replace("%d", str(number)) for number in range(100)]
    batch("link property add dev lo altname {}", names)
    return names


def batch(command, names):
    lines = "\n".join(command.format(name) for name in names)
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)


def test_a_template_whose_names_are_all_taken_is_refused(engine, bridge, no_leaks):
    names = take_every_name("two_digits_of%d")
    with pytest.raises(vhostnet.NameBusy, match="every name of this template is taken") as refused:
        vhostnet.open_nic(named("two_digits_of%d"), engine=engine)
    assert (refused.value.errno, refused.value.ifname) == (errno.EEXIST, "two_digits_of%d")
    batch("link property del dev lo altname {}", names)


def test_two_of_one_mac_on_one_bridge_are_refused_before_anything_is_touched(engine, bridge, no_leaks):
    spec = InterfaceSpec(bridge=BRIDGE, vhost="off", mac="52:54:00:00:00:01")
    with pytest.raises(vhostnet.SpecError, match=f"mac='52:54:00:00:00:01' is asked for twice on bridge '{BRIDGE}'"):
        vhostnet.open_nics([spec, spec], engine=engine)


def test_clones_of_one_mac_each_on_its_own_bridge(engine, bridge, no_leaks):
    """As a lab has them, one isolated bridge a copy; and on no bridge the MAC is the guest's affair."""
    ip("link add br1 up type bridge")
    fields = {"vhost": "off", "queues": 2, "mac": "52:54:00:00:00:01"}
    places = [{"bridge": BRIDGE}, {"bridge": "br1"}, {"type": "ethernet"}, {"type": "ethernet"}]
    nics = vhostnet.open_nics([InterfaceSpec(**fields, **place) for place in places], engine=engine)
    assert {link(nic.ifname)["mac"] for nic in nics} == {"fe:54:00:00:00:01"}
    assert [link(nic.ifname)["master"] for nic in nics] == [BRIDGE, "br1", None, None]
    assert all(link(nic.ifname)["ifindex"] == nic.ifindex for nic in nics)
    vhostnet.close_nics(nics)
    ip("link del br1")


def test_a_name_that_is_being_deleted_in_the_background_is_waited_for(engine, bridge, no_leaks):
    """At once, over and over: never NameBusy. Also one that was a wish, and is an alternative name."""
    for _ in range(20):
        nics = vhostnet.open_nics([named(f"web{number}") for number in range(3)], engine=engine)
        assert [nic.ifname for nic in nics] == ["web0", "web1", "web2"]
        vhostnet.close_nics(nics, wait=False)
    with vhostnet.NicPool(named(None), size=1, low=0, engine=engine) as pool:
        for rename in (False, True, False):
            pool.fill()
            pool.give_back(pool.take(named("web1"), rename=rename))
            vhostnet.close_nics([vhostnet.open_nic(named("web1"), engine=engine)], wait=False)
    finish()


def named(ifname):
    return InterfaceSpec(bridge=BRIDGE, vhost="off", ifname=ifname)


def test_every_nic_has_its_mark(engine, bridge):
    nics = open_some(engine, 2)
    marks = [words[words.index("alias") + 1] for words in (ip(f"link show {nic.ifname}").split() for nic in nics)]
    vhostnet.close_nics(nics)
    start = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    for mark in marks:
        name, uuid, pid, started = mark.split(":")
        assert (name, len(uuid), pid, started) == ("vhostnet", 36, str(os.getpid()), start)
    assert marks[0] != marks[1]
