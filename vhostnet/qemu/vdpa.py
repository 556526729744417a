"""A vDPA device's node, opened for a QEMU: it is all that this host has to give to a NIC of that type."""

import os

from vhostnet.errors import SpecError, host_error
from vhostnet.spec.interface import InterfaceSpec
from vhostnet.spec.sources import VdpaSource


def open_vdpa(spec: InterfaceSpec) -> int:
    """The fd of *spec*'s vDPA device, O_CLOEXEC: the caller closes it, or hands it to a QEMU (``vdpa_fd=``).

    Raises SpecError where *spec* has none, HostError (act ``VDPA_OPEN``) for what the host refuses.
    """
    if not isinstance(spec.source, VdpaSource):
        raise SpecError("has no vDPA device", attribute="type", value=spec.type, expected="vdpa")
    path = spec.source.dev
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        code = error.errno or 0
        raise host_error(code, act="VDPA_OPEN", call="open", ifname=None, queue=None, subject=path) from None
