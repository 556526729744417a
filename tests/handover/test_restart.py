"""A manager's restart: its NICs go through exec(), or wait in systemd's fd store, with a real systemd."""

import json
import os
import subprocess
import sys

import pytest
from conftest import BRIDGE, ROOT, TESTS, lacks, link_names, need

import vhostnet

pytestmark = pytest.mark.tap

# A manager that becomes itself, as many times as it is told to.
MANAGER = """
import json, os, sys
import vhostnet
left = int(sys.argv[1])
nics = vhostnet.restore_nics()
if not nics:
    specs = [vhostnet.InterfaceSpec(bridge="vbr2525476", queues=queues, vhost=sys.argv[2]) for queues in (1, 8)]
    nics = vhostnet.open_nics(specs)
assert vhostnet.restore_nics() == []
nics[1].reset_queues()
found = [[nic.ifname, nic.ifindex, nic.mac, len(nic.fds)] for nic in nics]
print(json.dumps([os.getpid(), found, len(os.listdir("/proc/self/fd")), len(vhostnet.list_nics())]), flush=True)
if left:
    with vhostnet.inherit_nics(nics) as more:
        try:
            os.execve("/nowhere", ["none"], {})
        except FileNotFoundError:
            pass
    assert not any(os.get_inheritable(fd) for nic in nics for fd in nic.fds)
    with vhostnet.inherit_nics(nics) as more:
        os.execve(sys.executable, [sys.executable, sys.argv[0], str(left - 1), sys.argv[2]], {**os.environ, **more})
vhostnet.close_nics(nics)
"""


def test_through_exec(bridge, no_leaks, tmp_path):
    (tmp_path / "manager.py").write_text(MANAGER)
    vhost = "off" if lacks("vhost") else "require"
    command = [sys.executable, str(tmp_path / "manager.py"), "3", vhost]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert len(lines) == 4
    assert all(line == lines[0] for line in lines)  # the process is the same, its NICs are, and no fd is left
    assert lines[0][3] == 2
    assert link_names() == ["lo", BRIDGE]


def test_what_is_not_there_any_more(bridge, no_leaks, monkeypatch):
    """Somebody has deleted one meanwhile: the other is restored, and it is said."""
    nics = vhostnet.open_nics([vhostnet.InterfaceSpec(bridge=BRIDGE, queues=2, vhost="off") for _ in range(2)])
    with vhostnet.inherit_nics(nics) as more:
        monkeypatch.setenv(*next(iter(more.items())))
        for nic in nics:  # as exec() leaves them
            nic.detach()
        monkeypatch.setattr(os, "close", lambda fd: None)  # the memfd that inherit_nics() ends with
    monkeypatch.undo()
    monkeypatch.setenv(*next(iter(more.items())))
    subprocess.run(["ip", "link", "del", nics[0].ifname], check=True)
    with pytest.warns(vhostnet.VhostnetWarning, match=f"{nics[0].ifname} is not restored"):
        (restored,) = vhostnet.restore_nics()
    assert restored.ifname == nics[1].ifname
    restored.close()


def test_the_variables_of_another_process(no_leaks, monkeypatch):
    monkeypatch.setenv("VHOSTNET_NICS", f"{os.getpid() + 1}:3")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "7")
    assert vhostnet.restore_nics() == []


def test_without_a_systemd(bridge, no_leaks, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with vhostnet.open_nic(vhostnet.InterfaceSpec(bridge=BRIDGE, vhost="off")) as nic:
        with pytest.raises(vhostnet.HandoverError, match="NotifyAccess="):
            vhostnet.store_nics([nic])
        monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
        with pytest.raises(vhostnet.HandoverError, match="/nowhere"):
            vhostnet.store_nics([nic])
        monkeypatch.setenv("FDSTORE", "2")
        with pytest.raises(vhostnet.HandoverError, match="FileDescriptorStoreMax="):
            vhostnet.store_nics([nic])


# --- systemd ---------------------------------------------------------------------------------------------

# A manager that is killed, restarts, is killed, ...: each life a line.
SERVICE = """
import json, os, signal, sys
import vhostnet
lives = len(open(sys.argv[1]).read().splitlines())
nics = vhostnet.restore_nics()
foreign = os.environ.get("LISTEN_FDNAMES", "").split(":").count("mine")
if lives == 0:
    wishes = [dict(queues=queues, mac=f"52:54:00:00:00:0{queues}") for queues in (1, 4)]
    specs = [vhostnet.InterfaceSpec(bridge="br0", vhost="off", **wish) for wish in wishes]
    nics = vhostnet.open_nics([*specs, vhostnet.InterfaceSpec(type="ethernet", ifname="gone", vhost="off")])
    from vhostnet.handover.restart import _notify
    _notify("FDSTORE=1\\nFDNAME=mine", os.open("/etc/passwd", os.O_RDONLY))
    vhostnet.store_nics(nics)
    from vhostnet.values import replace
    nics[1].update(replace(nics[1].spec, isolated=True))
    vhostnet.store_nics(nics)
    vhostnet.unstore_nics(nics[2:])
there = {nic.ifname: [nic.ifindex, nic.attached, nic.detached] for nic in vhostnet.list_nics()}
told = [[nic.ifname, nic.ifindex, nic.mac, len(nic.tap_fds), nic.spec.isolated] for nic in nics[:2]]
told = [[*one, there.get(one[0])] for one in told]
nics[1].reset_queues()
last = lives == 3
if last:
    vhostnet.unstore_nics(nics)
    vhostnet.close_nics(nics)
fds = len(os.listdir("/proc/self/fd"))
with open(sys.argv[1], "a") as log:
    print(json.dumps([told, sorted(there), foreign, fds, len(vhostnet.list_nics())]), file=log)
if not last:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_systemd_keeps_them(tmp_path):
    """A manager that is killed three times has the same NICs in each of its lives, and in the end there are none."""
    need("systemd")
    need("setpriv")
    (tmp_path / "service.py").write_text(SERVICE)
    (tmp_path / "log").write_text("")
    (tmp_path / "manager.service").write_text(
        "[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0\n"
        "[Service]\nType=exec\nRestart=on-failure\nRestartSec=0\nNotifyAccess=main\nFileDescriptorStoreMax=100\n"
        f"StandardOutput=append:{tmp_path}/out\nStandardError=append:{tmp_path}/out\n"
        f"ExecStart={sys.executable} {tmp_path}/service.py {tmp_path}/log\n"
    )
    for name in ("sysinit.target", "basic.target", "shutdown.target"):
        (tmp_path / name).write_text("[Unit]\nDefaultDependencies=no\n")
    (tmp_path / "end.service").write_text(
        "[Unit]\nDefaultDependencies=no\nSuccessAction=exit-force\nFailureAction=exit-force\n[Service]\nType=oneshot\n"
        f"ExecStart=sh -c 'for i in $(seq 300); do [ $(wc -l <{tmp_path}/log) -lt 4 ] || exit 0; sleep 0.1; done'\n"
    )
    (tmp_path / "main.target").write_text("[Unit]\nDefaultDependencies=no\nWants=manager.service end.service\n")
    command = [str(TESTS / "container"), str(tmp_path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=110)
    said = done.stdout + done.stderr + ((tmp_path / "out").read_text() if (tmp_path / "out").exists() else "")
    lives = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(lives) == 4, said
    first, *others = lives
    assert [nic[2:5] for nic in first[0]] == [["fe:54:00:00:00:01", 1, None], ["fe:54:00:00:00:04", 4, True]]
    assert "gone" in first[1]
    for life in others:
        assert life[0] == first[0], said
        assert life[1] == sorted(nic[0] for nic in first[0])  # what systemd was to forget went with its process
        assert life[2] == 1  # what is not ours systemd still has
    assert {life[3] for life in others[:-1]} == {others[0][3]}  # no fd is left over
    assert lives[-1][4] == 0
