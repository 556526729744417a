"""Real vhost-net: the fds are proven, whole and never owned by us. Runs in a guest where the host's kernel has none."""

import os
import subprocess
import sys
import threading

import pytest
from conftest import BRIDGE, need, state
from machine import Q35, inventory, running
from test_pool import until
from test_refusals import spec

import vhostnet
from vhostnet import engines
from vhostnet.commands.demo import ask_qemu
from vhostnet.engines import _uapi
from vhostnet.host import opening
from vhostnet.qmp import Monitor

pytestmark = [pytest.mark.tap, pytest.mark.vhost, pytest.mark.usefixtures("net")]

OWN = f"""
import fcntl, sys
for fd in map(int, sys.argv[1:]):
    fcntl.ioctl(fd, {_uapi.VHOST_SET_OWNER})
print("owned", len(sys.argv) - 1)
"""


def own_from_elsewhere(fds):
    """Another process, such as QEMU, makes itself the owner of each."""
    command = [sys.executable, "-c", OWN, *map(str, fds)]
    return subprocess.run(command, pass_fds=fds, capture_output=True, text=True, check=True).stdout.split()


def test_the_seed_as_it_stands(engine, bridge, seed):
    before = state()
    with vhostnet.open_nic(seed, engine=engine) as nic:
        assert nic.vhost
        assert len(set(nic.vhost_fds)) == 8
        assert not set(nic.vhost_fds) & set(nic.tap_fds)
        assert {os.readlink(f"/proc/self/fd/{fd}") for fd in nic.vhost_fds} == {"/dev/vhost-net"}
        assert not any(os.get_inheritable(fd) for fd in nic.vhost_fds)
        assert own_from_elsewhere(nic.vhost_fds) == ["owned", "8"]
        with pytest.warns(vhostnet.VhostnetWarning, match="256"):
            argv = nic.qemu_argv(alias="net2")
        assert f"vhost=on,vhostfds={':'.join(map(str, nic.vhost_fds))}" in argv[1]
    assert state() == before


def test_whether_somebody_has_them(engine, bridge):
    """To ask is not to have: who comes after us still can."""
    with vhostnet.open_nic(spec(vhost="require"), engine=engine) as nic:
        assert not any(map(engines.is_vhost_owned, nic.vhost_fds))
        assert own_from_elsewhere(nic.vhost_fds) == ["owned", "2"]
        assert all(map(engines.is_vhost_owned, nic.vhost_fds))


def test_opening_leaves_no_worker_behind(engine, bridge):
    # Those of an earlier test may still be on their way out.
    until(lambda: len(os.listdir("/proc/self/task")) == threading.active_count())
    with vhostnet.open_nic(spec(queues=4, vhost="require"), engine=engine):
        assert len(os.listdir("/proc/self/task")) == threading.active_count()


def test_the_selftest_proves_and_leaves_the_fds_without_an_owner(engine, bridge, monkeypatch):
    monkeypatch.setattr(opening, "_selftested", False)
    before = state()
    with vhostnet.open_nic(spec(vhost="require"), engine=engine, selftest=True) as nic:
        assert "SELFTEST" in [timing.act for timing in nic.timings]
        assert own_from_elsewhere(nic.vhost_fds) == ["owned", "2"]
    with vhostnet.open_nic(spec(vhost="require"), engine=engine, selftest=True) as nic:
        assert "SELFTEST" not in [timing.act for timing in nic.timings]
    assert state() == before


def test_a_selftest_that_fails_is_said(engine, bridge):
    """The TAP's fd is replaced by one that is no TAP before the ring is bound: ENOTSOCK, and nothing left."""
    from vhostnet.program.parts import Act, NicRow, Op
    from vhostnet.program.program import Program

    before = state()
    row = NicRow("none", 1, 0x1002, "/dev/net/tun", "/dev/net/tun")
    result = vhostnet.select_engine(engine).run(Program((row,), (Act(Op.TAP_OPEN, 0), Act(Op.SELFTEST, 0))))
    (failure,) = result.failures
    assert (failure.act, failure.result.call) == (1, "VHOST_GET_FEATURES")
    assert state() == before


@pytest.mark.parametrize("policy", ["auto", "require"])
def test_policies_that_have_it(engine, bridge, policy):
    with vhostnet.open_nic(spec(vhost=policy), engine=engine) as nic:
        assert (nic.vhost, nic.vhost.why) == ((True, ""), "")


def test_a_model_without_vhost_has_none(engine, bridge):
    with vhostnet.open_nic(vhostnet.InterfaceSpec(bridge=BRIDGE, model="e1000e"), engine=engine) as nic:
        assert nic.vhost_fds == ()


def test_a_partial_list_is_no_list(engine, bridge):
    """Fds run out at the third of four vhost opens: none is kept, under auto as under require."""
    from test_refusals import limited

    program = vhostnet.plan_nics([spec(queues=4, vhost="auto", ifname="part")], engine=engine)
    chosen = vhostnet.select_engine(engine)
    before = state()
    result = limited(1 + 4 + 2, lambda: chosen.run(program))  # the socket, four queues, two of the four
    assert result.failures == ()
    tap, vhost = result.nics[0].fds
    assert (vhost, len(tap)) == ((), 4)
    assert (result.acts[1].errno, result.acts[1].queue) == (24, 2)
    chosen.close([result.nics[0].fds])
    assert state() == before


def test_closed_in_one_round_the_vhost_fds_go_too(engine, bridge):
    before = state()
    nics = vhostnet.open_nics([spec(queues=2, vhost="require") for _ in range(3)], engine=engine)
    vhostnet.close_nics(nics)
    assert state() == before


def test_a_pool_has_them_ahead(engine, bridge):
    before = state()
    with vhostnet.NicPool(spec(vhost="require"), size=2, low=0, engine=engine) as pool:
        pool.fill()
        with pool.take() as nic:
            assert (bool(nic.vhost), len(nic.vhost_fds)) == (True, 2)
            assert own_from_elsewhere(nic.vhost_fds) == ["owned", "2"]
    assert state() == before


QEMU = ["qemu-system-x86_64", "-S", "-M", "pc", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none"]


def what_qemu_has(nic):
    """A QEMU that takes the NIC, with its vhost-net fds, says so and quits."""
    with pytest.warns(vhostnet.VhostnetWarning):
        argv = nic.qemu_argv(alias="net2")
    assert f"vhost=on,vhostfds={':'.join(map(str, nic.vhost_fds))}" in argv[1]
    ask = [("human-monitor-command", {"command-line": "info network"})]
    return ask_qemu([*QEMU, "-qmp", "stdio", *argv], nic.fds, ask)[0]


def test_plugged_into_a_qemu_that_runs(engine, bridge, seed):
    """It owns them, which it does not say; out of it, and into it again."""
    need("qemu")
    before = state()
    with vhostnet.open_nic(seed, engine=engine) as nic, running("-S", *Q35) as machine:
        empty = inventory(machine)
        for _ in range(2):
            with Monitor(machine.socket) as monitor:
                with pytest.warns(vhostnet.VhostnetWarning):
                    plugged = monitor.plug(nic, bus="pci.1")
                assert (plugged.queues, plugged.vhost, plugged.notes) == (8, True, ())
                assert machine.fds() >= empty["fds"] + 16
                monitor.unplug("net0", timeout=100)
            assert inventory(machine) == empty
            nic.reset_queues()
    assert state() == before


def test_one_qemu_after_the_other_on_the_same_nic(engine, bridge, seed):
    """Each becomes the owner of the vhost-net fds, and leaves queues detached."""
    need("qemu")
    before = state()
    with vhostnet.open_nic(seed, engine=engine) as nic:
        taps, seen = nic.tap_fds, set()
        for _ in range(3):
            seen.add(tuple(os.fstat(fd).st_ino for fd in nic.vhost_fds))
            assert what_qemu_has(nic).count("hostnet2: index=") == 8
            nic.reset_queues()
            assert (nic.tap_fds, len(set(nic.vhost_fds))) == (taps, 8)
            assert own_from_elsewhere(nic.vhost_fds) == ["owned", "8"]
            nic.reset_queues()
    assert state() == before


def test_without_fresh_fds_the_second_owner_is_refused(engine, bridge):
    """What that is good for: the kernel's rule."""
    with vhostnet.open_nic(spec(vhost="require"), engine=engine) as nic:
        own_from_elsewhere(nic.vhost_fds)
        with pytest.raises(subprocess.CalledProcessError) as refused:
            own_from_elsewhere(nic.vhost_fds)
        assert "Device or resource busy" in refused.value.stderr


def test_a_nic_that_cannot_be_reset_has_the_fds_it_had(engine, bridge, tmp_path):
    """Its vhost-net is gone; or there is no room for so many more fds."""
    from test_refusals import limited

    device = tmp_path / "vhost-net"
    device.symlink_to("/dev/vhost-net")
    with vhostnet.open_nic(spec(queues=4, vhost="require", vhost_path=str(device)), engine=engine) as nic:
        before = state()
        for at_hand in (0, 3):
            with pytest.raises(vhostnet.ResourceExhausted):
                limited(1 + at_hand, nic.reset_queues)
            assert state() == before
        device.unlink()
        with pytest.raises(vhostnet.VhostUnavailable) as refused:
            nic.reset_queues()
        assert (refused.value.act, refused.value.ifname, refused.value.queue) == ("VHOST_OPEN", nic.ifname, 0)
        assert state() == before
        device.symlink_to("/dev/vhost-net")
        nic.reset_queues()


def test_a_queue_that_does_not_attach_leaves_no_fresh_fds(engine, bridge):
    """The TAP has been deleted by then."""
    with vhostnet.open_nic(spec(queues=4, vhost="require"), engine=engine) as nic:
        before = state()
        subprocess.run(["ip", "link", "del", nic.ifname], check=True)
        with pytest.raises(vhostnet.DeviceGone):
            nic.reset_queues()
        assert state()[0] == before[0]


def test_qemu_takes_them(engine, bridge, seed):
    need("qemu")
    with vhostnet.open_nic(seed, engine=engine) as nic:
        assert what_qemu_has(nic).count("hostnet2: index=") == 8
