"""The node of a vDPA device: any file stands for one, since opening is all that is done with it here."""

import errno
import os

import pytest

import vhostnet
from vhostnet import HostError, InterfaceSpec, NotPermitted, SpecError, Unsupported, VdpaSource


def spec(path):
    return InterfaceSpec(type="vdpa", source=VdpaSource(str(path)))


def test_it_is_opened_and_not_inherited(tmp_path):
    (tmp_path / "node").touch()
    fd = vhostnet.open_vdpa(spec(tmp_path / "node"))
    try:
        assert os.readlink(f"/proc/self/fd/{fd}") == str(tmp_path / "node")
        assert not os.get_inheritable(fd)
        os.write(fd, b"for reading and writing")
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("path", "kind", "number"),
    [("/dev/vhost-vdpa-77", Unsupported, errno.ENOENT), ("/dev", HostError, errno.EISDIR)],
)
def test_what_the_host_refuses(path, kind, number):
    with pytest.raises(kind, match=path) as caught:
        vhostnet.open_vdpa(spec(path))
    assert (caught.value.errno, caught.value.act, caught.value.call) == (number, "VDPA_OPEN", "open")


def test_what_the_kernel_says_of_one_that_is_in_use_or_closed_to_us():
    """Each with a remedy; a busy one takes a device that is there."""
    for number, kind, remedy in ((errno.EBUSY, HostError, "one QEMU"), (errno.EACCES, NotPermitted, "read and write")):
        error = vhostnet.errors.host_error(number, act="VDPA_OPEN", call="open", ifname=None, queue=None, subject="/v")
        assert isinstance(error, kind)
        assert remedy in error.remedy


def test_a_nic_of_another_type_has_none():
    with pytest.raises(SpecError, match="type='user' has no vDPA device; expected vdpa"):
        vhostnet.open_vdpa(InterfaceSpec(type="user"))


@pytest.mark.parametrize("engine", ["pure", "auto"])
def test_there_is_no_nic_to_open(engine):
    for specs in ([spec("/dev/vhost-vdpa-0")], [InterfaceSpec(type="ethernet"), InterfaceSpec(type="user")]):
        with pytest.raises(SpecError, match="has no TAP, so there is nothing to open"):
            vhostnet.open_nics(specs, engine=engine)
        with pytest.raises(SpecError, match="has no TAP"):
            vhostnet.plan_nics(specs, engine=engine)
