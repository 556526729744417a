"""<script> and <downscript>: run in their places, with one privilege, and what refuses leaves nothing behind."""

import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import link_names, need
from drop import dropped, run

import vhostnet
from vhostnet import HostError, InterfaceSpec, NotPermitted, SpecError
from vhostnet.slow import scripts

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("net", "no_leaks")]


@pytest.fixture
def script(tmp_path):
    """Writes one: it says its name in ``said``, and then does what it is told to."""

    def write(name, does=""):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\nexec >>{tmp_path}/said\necho {name} "$@"\n{does}\n')
        path.chmod(0o755)
        return str(path)

    return write


@pytest.fixture
def said(tmp_path):
    """What they said, line by line."""
    return lambda: (tmp_path / "said").read_text().splitlines() if (tmp_path / "said").exists() else []


def wish(**fields):
    return InterfaceSpec(**{"type": "ethernet", "vhost": "off", **fields})


UP = 'ip -o link show dev "$1" | grep -o "[<,]UP[,>]\\|mtu [0-9]*\\|fe:[0-9a-f:]*"'


def test_when_it_is_up_with_its_mac_and_mtu_and_before_it_goes(engine, script, said):
    spec = wish(
        ifname="nic0", mac="52:54:00:00:00:01", mtu=1400, script=script("up", UP), downscript=script("down", UP)
    )
    facts = [",UP,", "mtu 1400", "fe:54:00:00:00:01"]
    with vhostnet.open_nic(spec, engine=engine) as nic:
        assert said() == ["up nic0", *facts]
        assert [timing.act for timing in nic.timings][-2:] == ["UP", "SCRIPT"]
        assert nic.needs_closing
    assert said() == ["up nic0", *facts, "down nic0", *facts]
    nic.close()
    assert said().count("down nic0") == 1


def test_a_batch_and_its_end_in_one_round(engine, script, said):
    up, down = script("up"), script("down")
    nics = vhostnet.open_nics([wish(ifname=f"nic{n}", script=up, downscript=down) for n in range(3)], engine=engine)
    vhostnet.close_nics(nics)
    assert said() == [f"{which} nic{n}" for which in ("up", "down") for n in range(3)]


def test_in_the_background(engine, script, said):
    vhostnet.close_nics([vhostnet.open_nic(wish(ifname="nic0", downscript=script("down")), engine=engine)], wait=False)
    vhostnet.open_nic(wish(ifname="nic0"), engine=engine).close()  # waits for the name
    assert said() == ["down nic0"]


def test_at_the_end_of_a_process_that_left_it_open(engine, script, said):
    """Each of them, though warnings are errors."""
    code = (
        "import sys, vhostnet\n"
        "for name, down in (('nic0', sys.argv[2]), ('nic1', None), ('nic2', sys.argv[2])):\n"
        "    spec = vhostnet.InterfaceSpec(type='ethernet', vhost='off', ifname=name, downscript=down)\n"
        "    globals()[name] = vhostnet.open_nic(spec, engine=sys.argv[1])\n"
    )
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", code, engine, script("down")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said() == ["down nic0", "down nic2"]
    assert [done.stderr.count(f"unclosed <Nic nic{n}") for n in range(3)] == [1, 1, 1]
    assert link_names() == ["lo"]


def test_the_program_says_so(engine, script):
    program = vhostnet.plan_nics([wish(ifname="nic0", script="/usr/bin/true", downscript="x")], engine=engine)
    assert str(program).splitlines()[-1].split() == ["4", "SCRIPT", "nic0", "/usr/bin/true"]
    assert program.slow
    assert not vhostnet.plan_nics([wish()], engine=engine).slow


PRIVILEGES = 'grep -E "^Cap|^NoNewPrivs" /proc/self/status; env | sort; ls /proc/self/fd; pwd; cat'
ONLY_NET_ADMIN = f"{1 << 12:016x}"


def test_what_it_has(engine, script, said, monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    os.set_inheritable(leaked := os.open("/dev/null", os.O_RDONLY), True)
    with vhostnet.open_nic(wish(ifname="nic0", script=script("up", PRIVILEGES)), engine=engine):
        os.close(leaked)
    told = dict(line.split(":\t") for line in said() if ":\t" in line)
    assert told.pop("NoNewPrivs") == "0"
    assert set(told.values()) == {ONLY_NET_ADMIN}
    names = {line.partition("=")[0] for line in said() if "=" in line}
    assert {"LC_ALL", "PATH"} <= names <= {"LC_ALL", "PWD", "OLDPWD", "_", "SHLVL", *scripts.ENVIRONMENT}
    assert [line for line in said() if line.isdigit()] == ["0", "1", "2", "3"]  # 3 is the list's own
    assert said()[-1] == "/"


def test_this_process_has_what_it_had(engine):
    def capabilities():
        with open("/proc/thread-self/status") as status:
            return [line for line in status if line.startswith("Cap")]

    before = capabilities()
    vhostnet.open_nic(wish(script="true"), engine=engine).close()
    assert capabilities() == before


UNPRIVILEGED = """
import sys, vhostnet
spec = vhostnet.InterfaceSpec(type="ethernet", vhost="off", ifname="nic0", script=sys.argv[2])
vhostnet.open_nic(spec, engine=sys.argv[1]).close()
"""


@pytest.fixture
def everybodys():
    """A directory that all users may write to: what pytest has, another that begins makes root's again."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o777)
        yield Path(path)


def test_who_has_one_capability_gives_that(engine, everybodys):
    need("setpriv")
    path = everybodys / "up"
    path.write_text(
        f"#!/bin/sh\ngrep CapEff /proc/self/status >{everybodys}/said\nip link set dev $1 alias by-the-script\n"
    )
    path.chmod(0o755)
    done = run(*dropped("net_admin"), sys.executable, "-c", UNPRIVILEGED, engine, str(path))
    assert done.returncode == 0, done.stderr
    assert (everybodys / "said").read_text() == f"CapEff:\t{ONLY_NET_ADMIN}\n"


def test_in_its_network_namespace(engine, script, said):
    subprocess.run(["ip", "netns", "add", "vhostnet-script"], check=True)
    try:
        inside = 'ip -o link show dev "$1" | grep -c .'
        spec = wish(ifname="nic0", script=script("up", inside), downscript=script("down", inside))
        with vhostnet.open_nic(spec, engine=engine, netns="vhostnet-script"):
            assert "nic0" not in link_names()
        nics = [vhostnet.open_nic(spec, engine=engine, netns="vhostnet-script")]
        vhostnet.close_nics(nics)
    finally:
        subprocess.run(["ip", "netns", "del", "vhostnet-script"], check=True)
    assert said() == ["up nic0", "1", "down nic0", "1"] * 2


REFUSALS = [
    ("echo why >&2\nexit 3", 5, "exit 3", "why"),
    ("printf 'a\\nb\\033[1m' >&2\nexit 1", 5, "exit 1", "a b [1m"),
    ("exit 1", 5, "exit 1", "says nothing of why"),
    ("kill -9 $$", 5, "signal 9", "says nothing of why"),
]


@pytest.mark.parametrize(("does", "code", "call", "why"), REFUSALS)
def test_one_that_refuses(engine, script, said, does, code, call, why):
    specs = [
        wish(ifname="nic0", script=script("first"), downscript=script("down")),
        wish(ifname="nic1", script=script("up", does), downscript=script("down")),
        wish(ifname="nic2", script=script("never"), downscript=script("never-down")),
    ]
    with pytest.raises(HostError) as caught:
        vhostnet.open_nics(specs, engine=engine)
    error = caught.value
    assert (error.errno, error.act, error.call, error.ifname) == (code, "SCRIPT", call, "nic1")
    assert error.strerror.endswith(why)
    assert specs[1].script in str(error)
    assert error.remedy
    assert link_names() == ["lo"]
    assert said() == ["first nic0", "up nic1", "down nic1", "down nic0"]  # the last first, and what was begun


def test_only_the_one_that_refuses_is_not_kept(engine, script, said):
    up, down = script("up", '[ "$1" != nic1 ]'), script("down")
    specs = [wish(ifname=f"nic{n}", script=up, downscript=down) for n in range(3)]
    first, error, last = vhostnet.open_nics(specs, engine=engine, on_error="keep")
    assert isinstance(error, HostError)
    assert link_names() == ["lo", "nic0", "nic2"]
    assert said() == ["up nic0", "up nic1", "down nic1", "up nic2"]
    vhostnet.close_nics([first, last])


@pytest.mark.parametrize(
    ("path", "code", "kind"),
    [("no", 2, HostError), ("/no/such", 2, HostError), ("/etc/passwd", 13, NotPermitted)],
)
def test_what_is_no_script(engine, path, code, kind):
    with pytest.raises(kind) as caught:
        vhostnet.open_nic(wish(script=path), engine=engine)
    assert (caught.value.errno, caught.value.act, caught.value.call) == (code, "SCRIPT", "execve")
    assert path in caught.value.strerror


def test_one_that_does_not_end(engine, script, monkeypatch, tmp_path):
    monkeypatch.setattr(scripts, "PATIENCE", 0.3)
    with pytest.raises(HostError, match="has not ended") as caught:
        vhostnet.open_nic(wish(script=script("up", f"echo $$ >{tmp_path}/pid\nsleep 60 & wait")), engine=engine)
    assert caught.value.call == "wait"
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_that_leaves_a_daemon(engine, script, tmp_path):
    """Which keeps stderr open: nobody waits for that."""
    started = time.monotonic()
    does = f"sleep 30 &\necho $! >{tmp_path}/pid"
    vhostnet.open_nic(wish(script=script("up", does)), engine=engine).close()
    assert time.monotonic() - started < 10
    os.kill(int((tmp_path / "pid").read_text()), 9)


def test_a_downscript_that_refuses_is_logged_and_the_nic_goes(engine, script, caplog):
    with caplog.at_level(logging.WARNING, "vhostnet"):
        vhostnet.open_nic(wish(ifname="nic0", downscript=script("down", "echo why >&2; exit 3")), engine=engine).close()
    assert "DOWNSCRIPT (exit 3) of nic0" in caplog.text
    assert "why" in caplog.text
    assert link_names() == ["lo"]


def test_a_downscript_while_undoing_is_not_the_reason(engine, script):
    spec = wish(ifname="nic0", script=script("up", "exit 3"), downscript=script("down", "exit 4"))
    with pytest.raises(HostError) as caught:
        vhostnet.open_nic(spec, engine=engine)
    assert caught.value.call == "exit 3"
    assert caught.value.undoing.call == "exit 4"


def test_left_down_it_runs_when_it_comes_up(engine, script, said):
    with vhostnet.open_nic(wish(ifname="nic0", script=script("up", UP)), engine=engine, up=False) as nic:
        assert said() == []
        nic.up()
        assert said()[:2] == ["up nic0", ",UP,"]


def test_it_runs_but_once(engine, script, said):
    spec = wish(ifname="nic0", script=script("up"), downscript=script("down"))
    for up in (True, False):
        with vhostnet.open_nic(spec, engine=engine, up=up) as nic:
            nic.down()
            nic.up()
            nic.down()
            nic.up()
            nic.up()
    assert said() == ["up nic0", "down nic0"] * 2


def test_of_a_tap_that_is_there(engine, script, said):
    subprocess.run(["ip", "tuntap", "add", "tap0", "mode", "tap"], check=True)
    spec = wish(ifname="tap0", managed=False, script=script("up"), downscript=script("down"))
    vhostnet.open_nic(spec, engine=engine).close()
    assert said() == ["up tap0", "down tap0"]
    assert link_names() == ["lo", "tap0"]
    subprocess.run(["ip", "link", "del", "tap0"], check=True)


def test_a_nic_that_lasts(engine, script, said):
    with pytest.raises(SpecError, match="downscript"):
        vhostnet.open_nic(wish(downscript=script("down")), engine=engine, persist=True)
    with vhostnet.open_nic(wish(ifname="nic0", script=script("up")), engine=engine, persist=True) as nic:
        assert [timing.act for timing in nic.timings][-2:] == ["SCRIPT", "PERSIST"]
        assert not nic.needs_closing
    assert said() == ["up nic0"]
    vhostnet.delete_nics(["nic0"], engine=engine)


def test_one_that_is_to_last_and_refuses_leaves_none(engine, script):
    with pytest.raises(HostError):
        vhostnet.open_nic(wish(ifname="nic0", script=script("up", "exit 1")), engine=engine, persist=True)
    assert link_names() == ["lo"]


def test_not_for_a_pool(engine):
    with vhostnet.NicPool(wish(script="true"), size=1, engine=engine) as pool:
        with pytest.raises(SpecError, match="script='true' is nothing that a pool can have ready"):
            pool.fill()


@pytest.mark.parametrize("name", ["script", "downscript"])
def test_it_cannot_change(engine, name):
    spec = wish(ifname="nic0")
    with vhostnet.open_nic(spec, engine=engine) as nic, pytest.raises(SpecError):
        nic.update(wish(ifname="nic0", mac=spec.mac, **{name: "true"}))


def test_a_forked_child_runs_no_downscript(engine, script, said):
    with vhostnet.open_nic(wish(downscript=script("down")), engine=engine):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert said() == []


def test_whatever_else_goes_wrong_undoes_it(engine, script, monkeypatch):
    def fails(function):
        raise MemoryError

    monkeypatch.setattr(scripts, "call_aside", fails)
    with pytest.raises(MemoryError):
        vhostnet.open_nic(wish(ifname="nic0", script=script("up")), engine=engine)
    assert link_names() == ["lo"]
