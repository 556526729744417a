"""The two engines and the choice between them.

An engine executes a Program and answers the questions a Program is planned from; it decides nothing.
``native`` is the C core, one call a batch and without the GIL; ``pure`` the same acts by fcntl, socket and
struct. Results, errors and the calls they name are the same.
"""

from __future__ import annotations

import os
from functools import cache

from vhostnet.engines._calls import get_mac, get_name, get_name_and_flags, is_detached, keep_mac, netns_of_tap
from vhostnet.engines._protocol import CALLS, ActResult, Engine, Failure, NicResult, Result, Run, runs_of
from vhostnet.errors import EngineUnavailable

__all__ = [
    "CALLS",
    "ENGINES",
    "ActResult",
    "Engine",
    "Failure",
    "NicResult",
    "Result",
    "Run",
    "get_mac",
    "get_name",
    "get_name_and_flags",
    "is_detached",
    "is_vhost_owned",
    "keep_mac",
    "netns_of_tap",
    "open_vhost",
    "prove_vhost",
    "runs_of",
    "select",
]

ENGINES = ("native", "pure")


def select(name: str = "auto") -> Engine:
    """The engine called *name*; ``auto`` is native where it was built, and ``VHOSTNET_ENGINE`` decides before that.

    Raises EngineUnavailable when the one asked for by name is not there, ValueError for a name that is none.
    """
    if name == "auto":
        name = os.environ.get("VHOSTNET_ENGINE") or "auto"
    return _load(name)


def is_vhost_owned(fd: int) -> bool:
    """Some process runs its queues by that vhost-net fd (VHOST_SET_OWNER). Raises OSError where it is none."""
    from vhostnet.engines import _vhost  # with what who opens NICs does not need

    return _vhost.is_owned(fd)


def open_vhost(path: str) -> int:
    """A vhost-net fd (O_CLOEXEC, the caller's), proven. Raises OSError, its ``filename`` the call that refused."""
    from vhostnet.engines import _vhost

    fd = _vhost.open_vhost(path)
    try:
        _vhost.prove_vhost(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def prove_vhost(fd: int) -> None:
    """Raises OSError where it is not vhost-net, or lacks what QEMU needs; whoever has it for its own has it still."""
    from vhostnet.engines import _vhost

    _vhost.prove_vhost(fd)


@cache
def _load(name: str) -> Engine:
    if name not in ("auto", *ENGINES):
        raise ValueError(f"engine {name!r}: expected auto, native or pure")
    if name == "pure":
        from vhostnet.engines import _pure

        return _pure.PureEngine()
    try:
        from vhostnet.engines import _native
    except ImportError as error:
        if error.name not in ("vhostnet._vhostnet", "_cffi_backend"):
            raise
        why = f"the native engine is not there ({error}); build it with a C compiler: VHOSTNET_BUILD=native pip install"
        if name == "native":
            raise EngineUnavailable(why, name=error.name) from None
        import logging  # takes longer to import than this package

        logging.getLogger("vhostnet").warning("%s; the pure engine goes on", why)
        return _load("pure")
    return _native.NativeEngine()
