"""NICs that outlive their makers: persistent, whose owner may open them, listed, and deleted in one round."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import BRIDGE, link_names, need, open_fds
from drop import NOBODY, dropped, run
from kernel import ip, run_json

import vhostnet
from vhostnet import InterfaceSpec, NameBusy, NoSuchTap, SpecError

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("net")]


def wish(**fields):
    return InterfaceSpec(**{"bridge": BRIDGE, "vhost": "off", **fields})


def facts(name):
    (found,) = run_json(f"ip -d link show dev {name}")
    data = found["linkinfo"]["info_data"]
    return {key: data.get(key) for key in ("persist", "user", "group", "multi_queue")}


@pytest.mark.parametrize("queues", [1, 8])
def test_it_stays_as_it_was_made(engine, bridge, queues):
    fds = open_fds()
    with vhostnet.open_nic(wish(queues=queues, isolated=True), engine=engine, persist=True) as nic:
        name, mac = nic.ifname, nic.mac
        assert facts(name) == {"persist": True, "user": None, "group": None, "multi_queue": queues > 1}
    assert open_fds() == fds
    (left,) = run_json(f"ip -d link show dev {name}")
    assert (left["address"], left["master"], left["qdisc"]) == (mac, BRIDGE, "noqueue")
    assert "UP" in left["flags"]
    assert left["linkinfo"]["info_slave_data"]["isolated"]
    vhostnet.delete_nics([name], engine=engine)
    assert name not in link_names()
    assert open_fds() == fds


OPEN = """
import sys, vhostnet
spec = vhostnet.InterfaceSpec(type="ethernet", managed=False, vhost="off", ifname=sys.argv[1], queues=2)
try:
    print(len(vhostnet.open_nic(spec, engine=sys.argv[2]).detach().tap))
except vhostnet.NotPermitted:
    print("refused")
"""


@pytest.mark.parametrize(
    ("who", "outcome"),
    [
        ({"owner": NOBODY}, "2"),
        ({"owner": "nobody"}, "2"),
        ({"group": NOBODY}, "2"),
        ({"owner": "root"}, "refused"),
        ({"owner": "nobody", "group": "tty"}, "refused"),  # the kernel wants both
    ],
)
def test_who_may_open_it(engine, bridge, who, outcome):
    need("setpriv")
    with vhostnet.open_nic(wish(queues=2), engine=engine, persist=True, **who) as nic:
        pass
    done = run(*dropped(), sys.executable, "-c", OPEN, nic.ifname, engine)
    assert done.stdout == f"{outcome}\n", done.stderr
    vhostnet.delete_nics([nic.ifname], engine=engine)


@pytest.mark.slow
def test_many_go_in_one_round(engine, bridge):
    before = link_names()
    nics = vhostnet.open_nics([wish(queues=2) for _ in range(150)], engine=engine, persist=True)
    names = [nic.ifname for nic in nics]
    vhostnet.close_nics(nics)
    found = vhostnet.list_nics()
    assert [nic.ifname for nic in found] == names
    assert all(nic.persistent and not nic.holders and nic.attached == 0 for nic in found)
    started = time.monotonic()
    vhostnet.delete_nics(names, engine=engine)
    assert time.monotonic() - started < 20 * 150 / 1000 + 10  # and not a grace period for each
    assert link_names() == before


def test_a_batch_that_fails_leaves_none(engine, bridge):
    before = link_names(), open_fds()
    with pytest.raises(vhostnet.NoSuchBridge):
        vhostnet.open_nics([wish(), wish(bridge="nowhere")], engine=engine, persist=True)
    ip("link add taken type bridge")
    with pytest.raises(NameBusy):
        vhostnet.open_nics([wish(), wish(ifname="taken")], engine=engine, persist=True)
    ip("link del taken")
    assert (link_names(), open_fds()) == before


KILLED = """
import os, signal, sys, vhostnet
from vhostnet.engines import _acts
from vhostnet.program.parts import Op
real, batch = _acts.ACTS[Op.UP]
def put_up(netlink, nic, running):
    os.kill(os.getpid(), signal.SIGKILL)
_acts.ACTS[Op.UP] = put_up, batch
vhostnet.open_nics([vhostnet.InterfaceSpec(bridge=sys.argv[1], vhost="off")] * 1, engine="pure", persist=True)
"""


def test_a_process_that_is_killed_before_its_end_leaves_none(bridge):
    before = link_names()
    done = subprocess.run([sys.executable, "-c", KILLED, BRIDGE], check=False)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 3
    while link_names() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert link_names() == before


def test_the_plan_has_it_last(engine, bridge):
    acts = [act.op.name for act in vhostnet.plan_nics([wish()], engine=engine).acts]
    assert "PERSIST" not in acts
    nic = vhostnet.open_nic(wish(), engine=engine, persist=True)
    assert [timing.act for timing in nic.timings][-1] == "PERSIST"
    vhostnet.close_nics([nic])
    vhostnet.delete_nics([nic.ifname], engine=engine)


# --- deleting --------------------------------------------------------------------------------------------


def test_only_what_is_ours_and_all_or_none(engine, bridge):
    ip("tuntap add stranger mode tap")
    with vhostnet.open_nic(wish(), engine=engine, persist=True) as nic:
        pass
    for other in ("stranger", "nowhere"):
        with pytest.raises(NoSuchTap, match=f"no NIC '{other}' of vhostnet's here"):
            vhostnet.delete_nics([nic.ifname, other], engine=engine)
    assert {nic.ifname, "stranger"} <= set(link_names())
    vhostnet.delete_nics([nic.ifname, nic.ifname], engine=engine)
    assert nic.ifname not in link_names()


def test_not_while_somebody_has_it_open(engine, bridge):
    with vhostnet.open_nic(wish(queues=2), engine=engine, persist=True) as nic:
        with pytest.raises(NameBusy) as caught:
            vhostnet.delete_nics([nic.ifname], engine=engine)
        assert [holder.pid for holder in caught.value.holders] == [os.getpid()]
    vhostnet.delete_nics([nic.ifname], engine=engine)


@pytest.mark.parametrize(
    ("how", "attribute"),
    [
        ({"owner": 1}, "owner"),
        ({"group": "tty"}, "group"),
        ({"persist": True, "owner": "no such user"}, "owner"),
        ({"persist": True, "group": -1}, "group"),
        ({"persist": True, "owner": 2**32 - 1}, "owner"),
        ({"persist": True, "owner": True}, "owner"),
    ],
)
def test_who_cannot_be_meant(bridge, how, attribute):
    with pytest.raises(SpecError) as caught:
        vhostnet.open_nic(wish(), **how)
    assert caught.value.attribute == attribute


# --- by command ------------------------------------------------------------------------------------------


def command(*words, stdin=""):
    done = subprocess.run([sys.executable, "-m", "vhostnet", *words], input=stdin, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_by_command(bridge):
    text = f"<domain><devices>{XML}{XML}</devices></domain>"
    code, out, err = command("create", "--owner", "nobody", "-", stdin=text)
    assert (code, err) == (0, "")
    first, second = out.split()
    assert facts(first) == {"persist": True, "user": "nobody", "group": None, "multi_queue": True}
    listed = command("list")[1].splitlines()
    assert [line.split()[0] for line in listed] == [first, second]
    assert all(line.endswith("persistent") and "(gone)" in line for line in listed)
    code, _, err = command("delete", first, "nowhere")
    assert code == 1
    assert "no NIC 'nowhere'" in err
    assert command("delete", first, second) == (0, "", "")
    assert not {first, second} & set(link_names())


XML = f"<interface type='bridge'><source bridge='{BRIDGE}'/><model type='virtio'/><driver queues='2'/></interface>"


@pytest.mark.slow
def test_by_command_in_json(bridge):
    (made,) = json.loads(command("create", "-j", "-", stdin=XML)[1])
    (found,) = json.loads(command("list", "-j")[1])
    assert (found["ifname"], found["ifindex"], found["persistent"]) == (made["ifname"], made["ifindex"], True)
    assert command("delete", made["ifname"])[0] == 0
