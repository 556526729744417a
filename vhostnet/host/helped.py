"""NICs for who has no CAP_NET_ADMIN: QEMU's bridge helper makes the TAP, as it does for libvirt's session mode."""

from __future__ import annotations

import contextlib
import errno
import warnings
from collections.abc import Sequence
from typing import Final

from vhostnet.engines import Engine, NicResult, Result, get_mac, get_name, keep_mac, runs_of
from vhostnet.errors import HostError, VhostnetWarning, host_error
from vhostnet.events import told
from vhostnet.host.nic import Nic
from vhostnet.host.reasons import describe, refusal
from vhostnet.others.bridge_helper import HelperRefused, find_helper, helped_tap
from vhostnet.process.files import close_fd
from vhostnet.process.forks import under_way
from vhostnet.program.parts import Fds, Link, held_row
from vhostnet.program.plan import plan_helped
from vhostnet.spec.interface import DEFAULT_TAP, VNET_HDR_MODELS, InterfaceSpec, VhostPolicy
from vhostnet.spec.mac import tap_mac

_NAME: Final = "qemu-bridge-helper"


def open_helped(
    engine: Engine, specs: Sequence[InterfaceSpec], vhost: VhostPolicy | None, refused: HostError
) -> list[Nic]:
    """The NICs of *specs*, all or none: up, on their bridges, and gone with their fds.

    Raises *refused*, which is what this process was told when it made them itself, with why the helper is no way out
    either; or the HostError of vhost-net.
    """
    with contextlib.ExitStack() as made:
        nics = [made.enter_context(_open(engine, spec, vhost, refused)) for spec in specs]
        made.pop_all()
    return nics


def _open(engine: Engine, spec: InterfaceSpec, vhost: VhostPolicy | None, refused: HostError) -> Nic:
    path = find_helper()
    bridge = describe(engine, [spec.bridge]).get(spec.bridge) if spec.bridge else None
    why = _unfit(spec, bridge) or ("" if path else f"{_NAME}, a part of QEMU, is not here")
    if why or not path or not spec.bridge:
        raise _explained(refused, why)
    try:
        fd = helped_tap(path, spec.bridge, vnet_hdr=spec.model in VNET_HDR_MODELS)
    except HelperRefused as error:
        raise _explained(refused, str(error)) from None
    with under_way:  # until the Nic owns it
        try:
            return _nic(engine, spec, vhost, fd)
        except BaseException:
            close_fd(fd)
            raise


def _unfit(spec: InterfaceSpec, bridge: Link | None) -> str:
    """What is asked for that the helper does not give, and nobody can set without the capability."""
    if bridge is None:
        return f"{_NAME} makes NICs on a bridge only"
    asked = {
        f"{spec.queues} queues": spec.queues > 1,
        "isolated": spec.isolated,
        "vlan": spec.vlan,
        "macTableManager": spec.mac_table_manager == "libvirt",
        "coalesce": spec.rx_frames,
        "bandwidth": spec.bandwidth,
        "a virtualport": spec.virtualport,
        f"the device {spec.tap_path}": spec.tap_path != DEFAULT_TAP,
        f"an MTU of {spec.mtu}, where {bridge.name} has {bridge.mtu}": spec.mtu not in (None, bridge.mtu),
    }
    wish = next((wish for wish, is_asked in asked.items() if is_asked), "")
    return wish and f"{_NAME} makes NICs of one queue and no settings, and this is to have {wish}"


def _explained(refused: HostError, why: str) -> HostError:
    refused.remedy = f"{refused.remedy}; without it, {why}"
    return refused


def _nic(engine: Engine, spec: InterfaceSpec, vhost: VhostPolicy | None, fd: int) -> Nic:
    """What owns the TAP's fd. The kernel has it give itself its MAC: that takes no capability."""
    ifname = get_name(fd)
    link = describe(engine, [ifname]).get(ifname)
    if link is None or link.mac != get_mac(fd):  # renamed, or its name is another's by now
        raise host_error(errno.ESTALE, act="TAP_OPEN", call="TUNGETIFF", ifname=ifname, queue=None)
    keep_mac(fd, tap_mac(spec.mac))
    if spec.ifname:
        warnings.warn(f"{spec.ifname}: {_NAME} has called it {ifname}", VhostnetWarning, stacklevel=2)
    row = held_row(ifname, link.ifindex, Fds((fd,), ()))._replace(mtu=link.mtu, up=True)
    program = plan_helped(row, spec, vhost)
    result = Result((NicResult(row.ifindex, row.mtu, row.fds),), ())
    if program.acts:
        result = told(engine, program, engine.run)
    if result.failures:
        raise refusal(program, result.failures[0])
    return Nic(spec, engine, *runs_of(program, result))
