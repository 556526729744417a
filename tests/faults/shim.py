"""The preloaded shim (shim.c): which call fails, how, and which calls there were."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from vhostnet.engines import _uapi

_T = TypeVar("_T")

# shim.c's numbers, by the name an error gives the call.
_NAMES: Final = (
    *("open", "socket", "bind", "getsockname", "ioctl", "send", "recv", "fstat", "stat", "mmap", "close"),
    *("getrlimit", "thread", "setsockopt", "mknod", "unlink", "connect"),
)
_IOCTLS: Final = {
    getattr(_uapi, name) & 0xFFFFFFFF: name for name in dir(_uapi) if name.startswith(("TUN", "SIOC", "VHOST_"))
} | {0x5421: "FIONBIO"}  # a timeout of Python's


class Kind(IntEnum):
    """What becomes of a call."""

    FAIL = 0
    KILL = 1
    TAMPER = 2


class Tamper(IntEnum):
    """What becomes of an answer."""

    SHORT = 0
    TRUNCATED = 1
    OTHER_SEQ = 2
    OTHER_PORT = 3
    FOREIGN = 4
    GARBAGE = 5
    POSITIVE = 6
    LONG = 7
    TWICE = 8
    SWAPPED = 9


class Fault(NamedTuple):
    """The call of that index, from 0, fails with errno *value*, or is tampered with so, or is the end."""

    index: int
    value: int = 0
    kind: Kind = Kind.FAIL


class _Fault(ctypes.Structure):
    _fields_ = (("index", ctypes.c_uint32), ("kind", ctypes.c_uint32), ("value", ctypes.c_int32))


class _Call(ctypes.Structure):
    _fields_ = (("what", ctypes.c_uint32), ("detail", ctypes.c_uint32))


def preload() -> None:
    """Start this program anew with the shim in it, once."""
    if "vhostnet-shim" in os.environ.get("LD_PRELOAD", ""):
        return
    made = Path(tempfile.mkdtemp()) / "vhostnet-shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(["cc", "-std=gnu11", "-O2", "-shared", "-fPIC", "-o", made, source, "-ldl"], check=True)
    os.environ["LD_PRELOAD"] = str(made)
    os.execv(sys.executable, sys.orig_argv)


def forget() -> None:
    """Delete the shim's file: it is loaded. Children that are not forked do without."""
    made = Path(os.environ.pop("LD_PRELOAD"))
    global _shim
    _shim = ctypes.CDLL(str(made))
    made.unlink()
    made.parent.rmdir()


_shim: ctypes.CDLL


def watched(function: Callable[[], _T], *faults: Fault) -> tuple[_T, list[str]]:
    """What *function* returns while *faults* happen, and the kernel calls that this thread made."""
    table = (_Fault * max(1, len(faults)))(*[_Fault(fault.index, fault.kind, fault.value) for fault in faults])
    calls = ctypes.POINTER(_Call)()
    _shim.shim_arm(table, len(faults))
    try:
        result = function()
    finally:
        count = _shim.shim_disarm(ctypes.byref(calls))
    return result, _names(calls[:count])


def _names(calls: Sequence[_Call]) -> list[str]:
    return [_IOCTLS[call.detail] if _NAMES[call.what] == "ioctl" else _NAMES[call.what] for call in calls]
