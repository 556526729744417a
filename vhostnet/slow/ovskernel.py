"""What of a bandwidth that Open vSwitch was told stands in the kernel.

ovs-vswitchd says nowhere but in its log what the kernel refused it: no HTB, no policer. A NIC would be there without a
limit that it was to have; so the kernel is asked for it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Final

from vhostnet.engines import _uapi as uapi
from vhostnet.engines._rtnetlink import Netlink
from vhostnet.program.parts import NicRow
from vhostnet.slow.listing import RTM_GETTCLASS, RTM_GETTFILTER, listed

# Seconds. Whenever anything is new in the switch ovs-vswitchd takes policers away and makes them anew: for some
# microseconds there is none.
PATIENCE: Final = 1.0
_LOOK_AGAIN: Final = 0.01
_QUEUE_0: Final = 1 << 16 | 1  # the class 1:1 of an HTB; those of mq are :1 and on
_INGRESS: Final = 0xFFFF << 16


def unlimited(rows: Sequence[NicRow]) -> dict[str, str]:
    """Name -> what is missing, of those that have not all of their limits."""
    asked = [row for row in rows if row.rooted or row.policed]
    if not asked:
        return {}
    until = time.monotonic() + PATIENCE
    with closing(Netlink()) as netlink:
        while True:
            missing = {row.ifname: what for row in asked if (what := _missing(netlink, row))}
            if not missing or time.monotonic() > until:
                return missing
            time.sleep(_LOOK_AGAIN)


def _missing(netlink: Netlink, row: NicRow) -> str:
    if row.rooted:
        classes = listed(netlink, RTM_GETTCLASS, uapi.RTM_NEWTCLASS, uapi.TCMSG.pack(0, row.ifindex, 0, 0, 0))
        if not any(uapi.TCMSG.unpack_from(body)[2] == _QUEUE_0 for body in classes):
            return "ovs-vswitchd has made no HTB of what it gets"
    if row.policed:
        asked = uapi.TCMSG.pack(socket.AF_UNSPEC, row.ifindex, 0, _INGRESS, 0)
        if not listed(netlink, RTM_GETTFILTER, uapi.RTM_NEWTFILTER, asked):
            return "ovs-vswitchd has made no policer of what it sends"
    return ""
