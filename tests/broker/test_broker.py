"""A broker that runs, and clients that may make no NIC themselves: what they get, and what they do not."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress

import pytest
from brokers import POLICY, serving, until
from conftest import BRIDGE, ROOT
from drop import dropped

import vhostnet
from vhostnet.broker.client import BrokerNic
from vhostnet.values import replace

pytestmark = pytest.mark.tap


def wish(**fields):
    return vhostnet.InterfaceSpec(**{"bridge": BRIDGE, "queues": 2, "vhost": "off", **fields})


def there():
    return {nic.ifname: nic for nic in vhostnet.list_nics()}


def test_the_mark_says_whose_it_is(net_):
    with net_.open_nic(wish()) as nic:
        mark = there()[nic.ifname].mark
        assert (mark.pid, mark.uid, mark.maker_lives) == (os.getpid(), os.getuid(), True)


# --- the same as without ---------------------------------------------------------------------------------


def test_a_nic_is_what_it_is_without_a_broker(net_):
    with net_.open_nic(wish(mtu=1400)) as nic, vhostnet.open_nic(wish(mtu=1400)) as other:
        assert isinstance(nic, BrokerNic)
        assert (nic.mtu, nic.spec.queues, len(nic.fds), nic.vhost, nic.mac[:2]) == (1400, 2, 2, other.vhost, "fe")
        found, alike = there()[nic.ifname], there()[other.ifname]
        for field in ("bridge", "up", "attached", "detached", "persistent", "kind"):
            assert getattr(found, field) == getattr(alike, field)


def test_a_batch_is_one_program(net_):
    before = net_.status()["programs"]
    nics = net_.open_nics([wish() for _ in range(64)])
    assert net_.status()["programs"] == before + 1
    assert len(there()) == 64
    net_.close_nics(nics)
    assert there() == {}
    assert all(nic.closed for nic in nics)


def test_all_of_a_batch_or_none(net_):
    with net_.open_nic(wish(ifname="vm-1")):
        with pytest.raises(vhostnet.NameBusy) as caught:
            net_.open_nics([wish(ifname="vm-2"), wish(ifname="vm-1"), wish(ifname="vm-3")])
        assert (caught.value.ifname, caught.value.act) == ("vm-1", "TAP_OPEN")
        until(lambda: list(there()) == ["vm-1"])


def test_those_that_can_be_had(net_):
    with net_.open_nic(wish(ifname="vm-1")):
        one, refused, three = net_.open_nics(
            [wish(ifname="vm-2"), wish(ifname="vm-1"), wish(ifname="vm-3")], on_error="keep"
        )
        assert isinstance(refused, vhostnet.NameBusy)
        assert [one.ifname, three.ifname] == ["vm-2", "vm-3"]
        net_.close_nics([one, three])


def test_one_that_is_left_down(net_):
    with net_.open_nic(wish(), up=False) as nic:
        assert not there()[nic.ifname].up
        nic.up()
        assert there()[nic.ifname].up
        nic.down()
        assert not there()[nic.ifname].up
        nic.update(replace(nic.spec, isolated=True))
        assert not there()[nic.ifname].up
        nic.up()
        assert there()[nic.ifname].up


def test_updates(net_):
    with net_.open_nic(wish()) as nic:
        nic.update(replace(nic.spec, mtu=1300, isolated=True))
        assert nic.mtu == 1300
        with pytest.raises(vhostnet.PolicyRefused, match="not br7"):
            nic.update(replace(nic.spec, bridge="br7"))
        with pytest.raises(vhostnet.SpecError, match="queues"):
            nic.update(replace(nic.spec, queues=4))
        assert nic.spec.mtu == 1300


def test_an_error_is_the_one_of_without(net_):
    errors = []
    for make in (net_.open_nic, vhostnet.open_nic):
        with pytest.raises(vhostnet.NoSuchBridge) as caught:
            make(wish(bridge="gone0"))
        errors.append(caught.value)
    for field in ("errno", "strerror", "act", "call", "queue", "remedy"):
        assert getattr(errors[0], field) == getattr(errors[1], field), field


def test_an_empty_batch(net_):
    assert net_.open_nics([]) == []


def test_a_pool(net_, broker):
    shape = wish()
    with net_.NicPool(shape, size=4, low=4) as pool:
        until(lambda: pool.stats.parked == 4)
        nics = [pool.take(), pool.take(wish(ifname="vm-9", mac="52:54:00:00:00:09"), rename=True)]
        assert nics[1].ifname == "vm-9"
        mark = there()[nics[0].ifname].mark
        assert (mark.uid, mark.parked, mark.pid) == (os.getuid(), False, os.getpid())
        assert pool.stats.taken == 2
        with pytest.raises(vhostnet.PolicyRefused):
            pool.take(wish(ifname="other"))
        with pytest.raises(vhostnet.SpecError, match="queues"):
            pool.take(wish(queues=3))
        until(lambda: pool.stats.parked == 4)
        pool.give_back(nics[0])
    with pytest.raises(vhostnet.PoolClosed):
        pool.take()
    until(lambda: set(there()) == {"vm-9"})
    nics[1].close()


def test_threads_and_forks(net_):
    """Each has a connection of its own; a child's is not the parent's."""
    failed = []

    def work():
        try:
            for _ in range(5):
                net_.open_nic(wish()).close()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    with net_.open_nic(wish()) as nic:
        child = os.fork()
        if child == 0:
            with net_.open_nic(wish()):
                os._exit(0 if len(there()) == 2 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert net_.list_nics()[0]["ifname"] == nic.ifname
    until(lambda: there() == {})


@pytest.mark.slow
@pytest.mark.qemu
def test_exec_by_a_broker(broker):
    source = f"<source bridge='{BRIDGE}'/><model type='virtio'/><driver queues='4'/>"
    file = broker.policy.with_name("nic.xml")  # where all users may read
    file.write_text(f"<interface type='bridge'>{source}</interface>")
    command = [sys.executable, "-m", "vhostnet", "exec", "--broker", broker.path, str(file), "--"]
    command += ["qemu-system-x86_64", "-accel", "tcg", "-S", "-nodefaults", "-display", "none", "-monitor", "stdio"]
    command = [*dropped(), "sh", "-c", 'cd "$0" && exec "$@"', str(ROOT), *command]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
        try:
            qemu.stdin.write("info network\n")
            qemu.stdin.flush()
            assert any("type=tap,fd=" in line for line in qemu.stdout), "it has no NIC"
            until(lambda: [nic.attached + nic.detached for nic in there().values()] == [4])
            qemu.stdin.write("quit\n")
            qemu.stdin.flush()
            qemu.wait(timeout=30)
        finally:
            qemu.kill()
    until(lambda: there() == {})


HELPED = """
import os, socket, subprocess, sys, vhostnet
from vhostnet.engines import get_name
ours, its = socket.socketpair()
command = [sys.executable, "-m", "vhostnet", "helper", "--use-vnet", f"--br={sys.argv[1]}", f"--fd={its.fileno()}"]
done = subprocess.run(command, pass_fds=[its.fileno()], capture_output=True, text=True)
its.close()
_, fds, _, _ = socket.recv_fds(ours, 1, 1)
print(os.getuid(), done.returncode, get_name(fds[0])[:4] if fds else done.stderr.strip())
"""


def test_the_helper_has_it_by_a_broker(broker):
    """Who has no capability, and no rule of QEMU's."""
    serve = f"mount -t tmpfs none /run && mkdir /run/vhostnet && ln -s {broker.path} /run/vhostnet/broker"
    for bridge, said in ((BRIDGE, "65534 0 vnet"), ("br7", "65534 1 vhostnet helper: POLICY: rule 'tests' allows")):
        command = [*dropped(), sys.executable, "-c", HELPED, bridge]
        shell = ["unshare", "--mount", "sh", "-c", f'{serve} && exec "$@"', "sh", *command]
        done = subprocess.run(shell, capture_output=True, text=True, check=True, cwd="/", timeout=60)
        assert done.stdout.startswith(said), done.stdout + done.stderr
    until(lambda: there() == {})


# --- the policy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"bridge": "br7"}, "allows the bridges vbr2525476, gone0, not br7"),
        ({"vlan": vhostnet.Vlan((8,))}, "allows the VLANs 7, 100-199, not 8"),
        ({"ifname": "eth0"}, "allows the names vm-*, veni_*, not eth0"),
        ({"mac": "00:11:22:33:44:55"}, "allows MACs that begin with 52:54:00, 20:90:6f, not 00:11:22:33:44:55"),
        ({"tap_path": "/dev/mem"}, "allows the devices /dev/net/tun, /dev/vhost-net, not /dev/mem"),
        ({"type": "ethernet", "bridge": None}, "allows the types bridge, network, not ethernet"),
        ({"queues": 256}, ""),
    ],
)
def test_what_the_policy_forbids(net_, fields, problem):
    if not problem:
        net_.close_nics([net_.open_nic(wish(**fields))])
        return
    with pytest.raises(vhostnet.PolicyRefused, match="rule 'tests'") as caught:
        net_.open_nics([wish(), wish(**fields)])
    assert problem in str(caught.value)
    assert caught.value.rule == "tests"
    assert there() == {}


def test_a_user_that_no_rule_is_for(bridge, tmp_path, no_leaks):
    with serving("[[rule]]\nusers = [1]\nbridges = ['*']\n") as broker, vhostnet.connect(broker.path) as net:
        with pytest.raises(vhostnet.PolicyRefused, match="no rule of .* is for uid 0"):
            net.open_nic(wish())
        with pytest.raises(vhostnet.HandoverError):  # more connections than it takes to be told so
            held = [socket.socket(socket.AF_UNIX) for _ in range(3)]
            for sock in held:
                sock.connect(broker.path)
            try:
                vhostnet.connect(broker.path)
            finally:
                for sock in held:
                    sock.close()


QUOTA = f"[[rule]]\nname = 'few'\nusers = [0]\nbridges = ['{BRIDGE}']\nnics = 3\nqueues = 8\nclients = 2\n"


def test_how_many(bridge, tmp_path, no_leaks):
    with serving(QUOTA, directory=tmp_path) as broker, vhostnet.connect(broker.path) as net:
        nics = net.open_nics([wish(), wish()])
        with pytest.raises(vhostnet.PolicyRefused, match="allows 3 NICs at a time: 2 are there, 2 are asked for"):
            net.open_nics([wish(), wish()])
        with pytest.raises(vhostnet.PolicyRefused, match="allows 8 queues at a time: 4 are there, 5 are asked for"):
            net.open_nic(wish(queues=5))
        with pytest.raises(vhostnet.PolicyRefused, match="allows 3 NICs"), net.NicPool(wish(), size=2):
            pass
        nics[0].close()  # of which the broker is told by nobody
        until(lambda: len(there()) == 1)
        until(lambda: not _refused(net, nics))
        assert len(nics) == 4
        net.close_nics(nics)
        assert net.status()["users"][0]["clients"] == 1


def _refused(net, nics):
    try:
        nics += net.open_nics([wish(), wish()])
    except vhostnet.PolicyRefused:
        return True
    return False


def test_how_many_connections(bridge, tmp_path, no_leaks):
    with serving(QUOTA, directory=tmp_path) as broker, vhostnet.connect(broker.path) as net:
        with net.NicPool(wish(), size=1), pytest.raises(vhostnet.HandoverError, match="log has why"):
            vhostnet.connect(broker.path)
        net.close_nics([net.open_nic(wish())])


def test_what_was_made_before_counts_after_a_restart(bridge, tmp_path, no_leaks):
    with serving(QUOTA, directory=tmp_path) as broker, vhostnet.connect(broker.path) as net:
        nics = net.open_nics([wish(), wish()])
    assert len(there()) == 2  # a broker's end harms nobody
    with serving(QUOTA, directory=tmp_path):
        with pytest.raises(vhostnet.PolicyRefused, match="2 are there, 2 are asked for"):
            net.open_nics([wish(), wish()])
        nics[0].update(replace(nics[0].spec, isolated=True))
        net.close_nics(nics)
    assert there() == {}


def test_a_client_does_not_notice_a_restart(bridge, tmp_path, no_leaks):
    """Between two calls: the connections that it kept are ended, and it makes others."""
    with serving(directory=tmp_path) as broker, vhostnet.connect(broker.path) as net:
        nic = net.open_nic(wish())
    assert list(there()) == [nic.ifname]
    with serving(directory=tmp_path):
        other = net.open_nic(wish())
        assert set(there()) == {nic.ifname, other.ifname}
        net.close_nics([nic, other])
    assert there() == {}


def test_the_policy_is_read_again(broker, net_):
    kept = net_.open_nic(wish())
    with pytest.raises(vhostnet.PolicyRefused):
        net_.open_nic(wish(vlan=vhostnet.Vlan((8,))))
    broker.policy.write_text("[[rule]]\nusers = [")
    broker.process.send_signal(signal.SIGHUP)
    with pytest.raises(vhostnet.PolicyRefused, match="VLANs"):  # it has the old one
        net_.open_nic(wish(vlan=vhostnet.Vlan((8,))))
    broker.policy.write_text(POLICY.replace("vlans = [7", "vlans = [8, 7"))
    broker.process.send_signal(signal.SIGHUP)

    def is_allowed():
        try:
            net_.open_nic(wish(vlan=vhostnet.Vlan((8,)))).close()
        except vhostnet.PolicyRefused:
            return False
        except vhostnet.HostError:  # this kernel's bridges have no VLANs
            return True
        return True

    until(is_allowed)
    kept.close()


def test_a_nic_of_another_users(broker):
    """Root's is not nobody's to change, though it has the fd; and one that no broker made is nobody's."""
    script = """
import sys, vhostnet
from vhostnet.broker.client import Line
line = Line(sys.argv[1], 10)
for fd in map(int, sys.argv[2:]):
    try:
        line.call("Close", {}, [fd])
    except vhostnet.HostError as error:
        print(error.act, type(error).__name__)
    except vhostnet.SpecError as error:
        print(error.problem)
"""
    with vhostnet.connect(broker.path) as net, net.open_nic(wish()) as nic, vhostnet.open_nic(wish()) as other:
        with open("/dev/null") as null:
            fds = [nic.tap_fds[0], other.tap_fds[0], null.fileno()]
            command = [*dropped(), sys.executable, "-c", script, broker.path, *map(str, fds)]
            done = subprocess.run(command, pass_fds=fds, capture_output=True, text=True, check=True, cwd="/")
        assert done.stdout.splitlines() == [
            "POLICY NotPermitted",
            "POLICY NotPermitted",
            f"is no queue of a TAP: {os.strerror(errno.ENOTTY)}",
        ]
        assert len(there()) == 2


# --- who dies when ---------------------------------------------------------------------------------------

HOLDER = """
import sys, time, vhostnet
net = vhostnet.connect(sys.argv[1])
nics = net.open_nics([vhostnet.InterfaceSpec(bridge="vbr2525476", queues=2, vhost="off") for _ in range(8)])
pool = net.NicPool(nics[0].spec, size=4)
print("ready", flush=True)
time.sleep(100)
"""


@contextmanager
def holder(broker):
    command = [sys.executable, "-c", HOLDER, broker.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_client_that_is_killed(broker):
    with vhostnet.connect(broker.path) as net:
        before = broker.fds()
        with holder(broker) as process:
            until(lambda: len(there()) == 12)
            process.kill()
            process.wait()
        until(lambda: there() == {})
        until(lambda: broker.fds() == before)
        assert net.status()["clients"] == 1


def test_a_broker_that_is_killed(bridge, tmp_path, no_leaks):
    """Its clients' NICs stay, their pools go, and the next one serves them."""
    with serving(directory=tmp_path) as broker:
        net = vhostnet.connect(broker.path)
        nic = net.open_nic(wish())
        pool = net.NicPool(wish(), size=4)
        until(lambda: pool.stats.parked == 4)
        broker.process.kill()
        broker.process.wait()
        until(lambda: list(there()) == [nic.ifname])
        for asked in (pool.take, lambda: net.open_nic(wish()), lambda: nic.update(replace(nic.spec, isolated=True))):
            with pytest.raises(vhostnet.HandoverError):
                asked()
        pool.close()
    with serving(directory=tmp_path):
        nic.update(replace(nic.spec, isolated=True))
        net.open_nic(wish()).close()
        net.close_nics([nic])
    net.close()


@pytest.mark.slow
def test_a_client_that_is_killed_at_any_moment(broker):
    """While it asks: a NIC that it did not get goes, and the broker has what it had."""
    with vhostnet.connect(broker.path):
        before, killed = broker.fds(), 0
        for delay in range(40):
            script = "import sys, vhostnet\nnet = vhostnet.connect(sys.argv[1])\nprint(flush=True)\n"
            script += 'net.open_nics([vhostnet.InterfaceSpec(bridge="vbr2525476", vhost="off") for _ in range(64)])\n'
            with subprocess.Popen(
                [sys.executable, "-c", script, broker.path], stdout=subprocess.PIPE, cwd=ROOT
            ) as child:
                child.stdout.readline()
                try:
                    child.wait(timeout=delay / 1000)
                except subprocess.TimeoutExpired:
                    child.kill()
                    killed += 1
        until(lambda: there() == {} and broker.fds() == before)
        assert (killed > 10, there(), broker.fds()) == (True, {}, before)


# --- the command line ------------------------------------------------------------------------------------


def command(*words, **how):
    done = subprocess.run(
        [sys.executable, "-m", "vhostnet", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        **how,
    )
    return done.returncode, done.stdout, done.stderr


def test_status(broker, net_):
    with net_.open_nic(wish()):
        code, said, _ = command("status", broker.path)
        assert code == 0
        assert "uid 0: at most 1 NICs of 2 queues" in said
        code, said, _ = command("status", "--metrics", broker.path)
        assert "# TYPE vhostnet_nics_made_total counter\nvhostnet_nics_made_total 1\n" in said
        assert 'vhostnet_user_queues{uid="0"} 2\n' in said
        code, said, _ = command("status", "-j", broker.path)
        assert json.loads(said)["made"] == 1


def test_a_policy_is_checked(tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    assert command("serve", "--policy", policy, "--check") == (0, f"{policy}: 1 rules: 'tests'\n", "")
    policy.write_text("[[rule]]\nbridge = 1\n")
    code, _, said = command("serve", "--policy", policy, "--check")
    assert (code, "is no key of a rule; expected" in said) == (3, True)
    code, _, said = command("serve", "--policy", "/nowhere", "--check")
    assert (code, "/nowhere: No such file" in said) == (2, True)


def test_where_nobody_serves(tmp_path):
    code, _, said = command("status", tmp_path / "nobody")
    assert (code, "vhostnet serve" in said) == (1, True)


def test_where_somebody_serves_already(broker):
    code, _, said = command("serve", "--socket", broker.path, "--policy", broker.policy)
    assert (code, "somebody serves at" in said) == (1, True)


def test_where_somebody_serves_who_has_no_time(tmp_path):
    policy, path = tmp_path / "policy.toml", str(tmp_path / "busy")
    policy.write_text(POLICY)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(path)
        listener.listen(0)  # one may wait
        waiting.connect(path)
        code, _, said = command("serve", "--socket", path, "--policy", policy)
    assert (code, "somebody serves at" in said) == (1, True)


def test_told_to_go_before_it_has_begun_it_begins_and_goes(bridge, tmp_path):
    """Nothing is broken off in its midst, wherever that is."""
    policy = tmp_path / "policy.toml"
    os.mkfifo(policy)  # which is read twice: before signals are heard, and when the server is made
    serve = [sys.executable, "-m", "vhostnet", "serve", "--socket", tmp_path / "broker", "--policy", policy]
    with subprocess.Popen(serve, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        policy.write_text(POLICY)
        until(lambda: hears(process.pid, signal.SIGTERM))
        process.send_signal(signal.SIGTERM)
        again = []

        def read_again():
            with suppress(OSError):  # nobody reads
                again.append(os.open(policy, os.O_WRONLY | os.O_NONBLOCK))
            return again

        until(read_again)
        os.write(again[0], POLICY.encode())
        os.close(again[0])
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


def hears(pid, number):
    """It has a handler for that signal (SigCgt, proc_pid_status(5))."""
    with open(f"/proc/{pid}/status") as file:
        mask = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)


def test_its_socket_is_made_anew(bridge, tmp_path):
    with serving(directory=tmp_path) as broker:
        broker.process.kill()
        broker.process.wait()
    assert os.path.exists(broker.path)
    with serving(directory=tmp_path) as broker:
        vhostnet.connect(broker.path).close()
