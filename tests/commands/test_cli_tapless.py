"""NICs without a TAP on the command line: they take no privileges, and nothing is made for them."""

import json
import socket
import sys

import pytest
from conftest import link_names
from kernel import ip
from test_cli import PLAIN, spawned, vhostnet

SHARED = "<memoryBacking><access mode='shared'/></memoryBacking>"
QUIT = '{"execute": "qmp_capabilities"}\n{"execute": "human-monitor-command", "arguments": {"command-line": "'
QUIT += 'info network"}}\n{"execute": "quit"}\n'
QEMU = ["qemu-system-x86_64", "-S", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-qmp", "stdio"]
VDPA = "<source dev='{}'/>"


def nic(kind, inside="", mac=1, model="virtio"):
    return f"<interface type='{kind}'><mac address='52:54:00:00:00:0{mac}'/><model type='{model}'/>{inside}</interface>"


def domain(*nics):
    return f"<domain type='kvm'>{SHARED}<devices>{''.join(nics)}</devices></domain>"


def test_argv_of_a_whole_domain():
    text = domain(
        nic("user"),
        nic("vhostuser", "<source path='/run/a.sock' mode='server'/><driver queues='2'/>", 2),
        nic("vdpa", VDPA.format("/dev/vhost-vdpa-0"), 3),
    )
    done = vhostnet("argv", "-", "-j", "--vdpa-fd", "9", stdin=text)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [
        *("-netdev", "user,id=hostnet0"),
        *("-device", "virtio-net-pci,netdev=hostnet0,id=net0,mac=52:54:00:00:00:01"),
        *("-chardev", "socket,id=charnet1,path=/run/a.sock,server=on"),
        *("-netdev", "vhost-user,chardev=charnet1,queues=2,id=hostnet1"),
        *("-device", "virtio-net-pci,mq=on,vectors=6,netdev=hostnet1,id=net1,mac=52:54:00:00:00:02"),
        *("-add-fd", "set=9,fd=9,opaque=net2-vdpa"),
        *("-netdev", "vhost-vdpa,vhostdev=/dev/fdset/9,id=hostnet2"),
        *("-device", "virtio-net-pci,netdev=hostnet2,id=net2,mac=52:54:00:00:00:03"),
    ]


PASST = "<backend type='passt'/>"


def test_argv_gives_each_passt_its_socket_in_the_documents_order(tmp_path):
    text = domain(nic("vhostuser", PASST), nic("user", mac=2), nic("user", PASST, 3, "rtl8139"))
    done = vhostnet("argv", "-", "-j", "--passt", "/run/a", "--passt", f"{tmp_path}/../b,c", stdin=text)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [
        *("-chardev", "socket,id=charnet0,path=/run/a,reconnect=5"),
        *("-netdev", "vhost-user,chardev=charnet0,id=hostnet0"),
        *("-device", "virtio-net-pci,netdev=hostnet0,id=net0,mac=52:54:00:00:00:01"),
        *("-netdev", "user,id=hostnet1"),
        *("-device", "virtio-net-pci,netdev=hostnet1,id=net1,mac=52:54:00:00:00:02"),
        "-netdev",
        f"stream,addr.type=unix,addr.path={tmp_path.parent}/b,,c,server=off,reconnect=5,id=hostnet2",
        *("-device", "rtl8139,netdev=hostnet2,id=net2,mac=52:54:00:00:00:03"),
    ]


@pytest.mark.parametrize("command", [("argv", "-"), ("exec", "-")])
@pytest.mark.parametrize(
    ("kind", "sockets", "message"),
    [
        (
            "user",
            (),
            "NIC 52:54:00:00:00:02 of type user needs --passt, and there is none left for it; start one: passt ",
        ),
        ("vhostuser", (), "needs --passt, and there is none left for it; start one: passt --vhost-user --socket PATH"),
        ("user", ("/a", "/b"), "--passt is given more often than there are NICs that take it"),
    ],
)
def test_each_passt_has_one_socket(command, kind, sockets, message):
    given = [word for path in sockets for word in ("--passt", path)]
    done = vhostnet(
        *command,
        *given,
        *(["--", "echo"] if command[0] == "exec" else []),
        stdin=domain(nic("user"), nic(kind, PASST, 2)),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_exec_does_not_ask_what_a_command_may_not_know():
    text = domain(nic("user", PASST), nic("vhostuser", PASST, 2))
    done = spawned("exec", "-", "--passt", "/run/a", "--passt", "/run/b", "--", "echo", stdin=text)
    assert done.returncode == 0, done.stderr
    assert "stream,addr.type=unix,addr.path=/run/a,server=off,id=hostnet0" in done.stdout
    assert "socket,id=charnet1,path=/run/b -netdev" in done.stdout
    assert done.stderr.count("calls its passt once, and not again when that has ended") == 2


@pytest.mark.tap
def test_exec_makes_nothing_where_a_socket_is_missing(bridge):
    before = link_names()
    done = vhostnet("exec", "-", "--", "echo", stdin=f"<devices>{PLAIN}{nic('user', PASST)}</devices>")
    assert (done.returncode, link_names()) == (2, before)


def test_plan_says_who_starts_passt():
    done = vhostnet("plan", "-", stdin=domain(nic("user", PASST), nic("vhostuser", PASST, 2)))
    assert done.returncode == 0, done.stderr
    start = "type {} has no TAP: passt is its network: start it ({}), and give its socket (--passt)"
    assert start.format("user", "passt --socket PATH") + "\n" in done.stdout
    assert start.format("vhostuser", "passt --vhost-user --socket PATH") + ", and passt reads" in done.stdout


def test_plan_says_that_there_is_no_tap():
    done = vhostnet("plan", "-", stdin=domain(nic("user"), nic("mcast", "<source address='230.0.0.1' port='9'/>", 2)))
    assert done.returncode == 0, done.stderr
    assert "TAP_OPEN" not in done.stdout
    assert "note: NIC 52:54:00:00:00:01: type user has no TAP: QEMU is its network" in done.stdout
    assert "note: NIC 52:54:00:00:00:02: type mcast has no TAP: QEMU opens the socket" in done.stdout


@pytest.mark.tap
def test_plan_of_both_kinds(bridge):
    done = vhostnet("plan", "-", "-j", stdin=f"<devices>{nic('user')}{PLAIN}</devices>")
    told = json.loads(done.stdout)
    assert [row["bridge"] for row in told["nics"]] == [bridge]
    assert ["user has no TAP" in note for note in told["notes"]] == [True]


SHOW = """
import os, sys
fd = int(sys.argv[sys.argv.index("-add-fd") + 1].partition("fd=")[2].partition(",")[0])
print(os.readlink(f"/proc/self/fd/{fd}"), os.get_inheritable(fd))
"""


def test_exec_opens_the_node_of_a_vdpa_device_and_hands_it_over(tmp_path):
    node = tmp_path / "vhost-vdpa-0"
    node.touch()
    text = domain(nic("vdpa", VDPA.format(node)))
    done = spawned("exec", "-", "--", sys.executable, "-c", SHOW, stdin=text)
    assert (done.returncode, done.stdout) == (0, f"{node} True\n")


def test_exec_says_which_node_is_not_there():
    done = spawned("exec", "-", "--", "echo", stdin=domain(nic("vdpa", VDPA.format("/dev/vhost-vdpa-77"))))
    assert (done.returncode, done.stdout) == (6, "")
    assert "VDPA_OPEN (open): /dev/vhost-vdpa-77: No such file" in done.stderr
    assert "vdpa dev show" in done.stderr


@pytest.mark.tap
def test_exec_makes_nothing_where_a_node_is_not_there(bridge):
    before = link_names()
    text = f"<devices>{PLAIN}{nic('vdpa', VDPA.format('/dev/vhost-vdpa-77'))}</devices>"
    assert vhostnet("exec", "-", "--", "echo", stdin=text).returncode == 6
    assert link_names() == before


@pytest.mark.tap
def test_exec_gives_each_its_arguments_in_the_documents_order(bridge):
    done = spawned("exec", "-", "--", "echo", stdin=f"<devices>{nic('user')}{PLAIN}{nic('user', mac=2)}</devices>")
    words = done.stdout.split()
    assert [word.partition(",")[0] for word in words[1::4]] == ["user", "tap", "user"]
    assert [f"id=net{number}," in words[3 + 4 * number] for number in range(3)] == [True] * 3


def test_doctor_says_what_it_finds_of_a_file(tmp_path):
    file = tmp_path / "vm.xml"
    file.write_text(domain(nic("vhostuser", "<source path='/a'/>"), nic("vdpa", VDPA.format("/dev/vhost-vdpa-77"), 2)))
    done = vhostnet("doctor", "-j", str(file))
    checks = json.loads(done.stdout)
    assert [check["state"] for check in checks if check["name"] == "no tap"] == ["note", "note"]
    (vdpa,) = (check for check in checks if check["name"] == "vdpa")
    assert (vdpa["state"], vdpa["error"]["error"], vdpa["remedy"][:4]) == ("fail", "Unsupported", "no s")
    assert "plan" not in {check["name"] for check in checks}  # there is none


@pytest.mark.qemu
def test_doctor_asks_qemu_for_a_model_that_it_does_not_know(tmp_path):
    file = tmp_path / "vm.xml"
    file.write_text(domain(nic("user", model="ne2k_pci"), nic("user", mac=2, model="smc91c111"), nic("user", mac=3)))
    checks = json.loads(vhostnet("doctor", "-j", str(file)).stdout)
    (model,) = (check for check in checks if check["name"] == "model")
    assert model["state"] == "note"
    assert "smc91c111: /" in model["detail"]


@pytest.mark.tap
@pytest.mark.qemu
@pytest.mark.parametrize("dialect", ["classic", "keyval", "json"])
def test_a_real_qemu_starts_with_all_that_it_makes_itself(net, tmp_path, dialect):
    ip("link set lo up")
    ip("route add 224.0.0.0/4 dev lo")  # or nobody can be in a multicast group
    with socket.create_server(("127.0.0.1", 0)) as peer, socket.create_server(("127.0.0.1", 0)) as free:
        port, own = peer.getsockname()[1], free.getsockname()[1]
        free.close()
        ends = f"<source address='127.0.0.1' port='{port}'"
        text = domain(
            nic("user", "<ip address='172.17.2.0' prefix='24'/><ip address='2001:db8::' prefix='64'/>"),
            nic("udp", f"{ends}><local address='127.0.0.1' port='{own}'/></source>", 2),
            nic("mcast", f"<source address='230.0.0.1' port='{own}'/>", 3, "e1000"),
            nic("server", f"<source address='127.0.0.1' port='{own}'/>", 4, "ne2k_pci"),
            nic("client", f"{ends}/>", 5, "usb-net"),
        )
        (tmp_path / "vm.xml").write_text(text)
        command = ["exec", str(tmp_path / "vm.xml"), "--dialect", dialect, "--", *QEMU, "-M", "pc", "-usb"]
        done = spawned(*command, stdin=QUIT)
    assert done.returncode == 0, done.stderr
    network = "".join(
        json.loads(line).get("return") or "" for line in done.stdout.splitlines() if '"return": "' in line
    )
    for device in (
        "net0: index=0,type=nic,model=virtio-net-pci",
        "hostnet0: index=0,type=user,net=172.17.2.0",
        "hostnet1: index=0,type=socket,socket: udp=127.0.0.1",
        "hostnet2: index=0,type=socket,socket: mcast=230.0.0.1",
        "net3: index=0,type=nic,model=ne2k_pci",
        "net4: index=0,type=nic,model=usb-net",
    ):
        assert device in network
