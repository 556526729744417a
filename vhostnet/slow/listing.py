"""What the kernel has of a kind: classes and filters of a link, links."""

from __future__ import annotations

import os
from typing import Final

from vhostnet.engines import _uapi as uapi
from vhostnet.engines._rtnetlink import Netlink, error_of, malformed

RTM_GETTCLASS: Final = 42
RTM_GETTFILTER: Final = 46
_TRIES: Final = 3  # where a listing is torn


def listed(netlink: Netlink, kind: int, wanted: int, body: bytes) -> list[bytes]:
    """The bodies of the messages (*wanted*) that *kind* with this *body* is answered by; what is asked and what is told
    begin alike. Raises OSError, its ``filename`` the call.
    """
    for _ in range(_TRIES):
        found = _listed_once(netlink, kind, wanted, body)
        if not netlink.torn:
            break
    return found


def _listed_once(netlink: Netlink, kind: int, wanted: int, body: bytes) -> list[bytes]:
    found: list[bytes] = []
    least = len(body)

    def answer(tag: int, kind: int, body: bytes) -> int:  # noqa: ARG001
        if kind == uapi.NLMSG_ERROR and (code := error_of(body)):
            raise OSError(code, os.strerror(code), "recv")
        if kind == wanted:
            if len(body) < least:
                raise malformed()
            found.append(body)
        return kind in (uapi.NLMSG_DONE, uapi.NLMSG_ERROR)

    netlink.put(0, kind, uapi.NLM_F_DUMP, body)
    netlink.exchange(answer)
    return found
