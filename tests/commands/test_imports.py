"""What is not imported: a program that opens a NIC and becomes QEMU has little time for anything else.

By what is there at the end, and not by a clock. Without site: an editable install's finder imports much itself.
"""

import subprocess
import sys

import pytest
from conftest import ROOT
from test_cli import PLAIN

NEVER = {"asyncio", "cffi", "json", "logging", "pathlib", "pyroute2", "shutil", "subprocess", "tempfile", "uuid"}
LATER = "commands.demo commands.doctor host.effects host.helped host.pool host.survey qemu.vdpa others.bridge "
LATER += "commands.helper others.bridge_acl others.bridge_helper others.surroundings spec.network spec.sources "
LATER += "text.networks text.plug text.tapless"
OURS = {f"vhostnet.{name}" for name in LATER.split()}
HELPER = {"vhostnet.commands.helper", "vhostnet.others.bridge_acl"}
HERE = f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}; "


def imported(code, stdin=""):
    command = [sys.executable, "-S", "-c", f"{HERE}{code}"]
    return set(subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout.split())


def test_importing_it():
    found = imported("import vhostnet; print(*sys.modules)")
    assert "vhostnet.host.opening" in found
    assert not found & (NEVER | OURS | {"argparse", "dataclasses", "inspect", "pyexpat", "vhostnet.engines._pure"})


BECOMES_NOTHING = """
import os
os.execvp = lambda *_: (print(*sys.modules, flush=True), os._exit(0))
from vhostnet.commands.cli import main
main(["exec", "-", "--", "qemu-system-x86_64"])
"""


@pytest.mark.tap
def test_exec(bridge):
    found = imported(BECOMES_NOTHING, PLAIN)
    assert {"argparse", "pyexpat", "vhostnet.qemu.command"} <= found
    assert not found & (NEVER | OURS)
    if sys.version_info < (3, 14):  # from then on argparse takes them itself, for its colours
        assert not found & {"dataclasses", "inspect"}


@pytest.mark.tap
def test_a_nic_for_who_runs_the_helper():
    code = "import socket; from vhostnet.__main__ import _helper; a, b = socket.socketpair(); "
    code += "_helper(['--br=none', f'--fd={b.fileno()}'], 'helper'); print(*sys.modules)"
    found = imported(code)
    assert {"argparse", "socket"} | HELPER <= found
    assert not found & (NEVER | OURS - HELPER | {"vhostnet.commands.cli"})


def test_named_tuples_are_annotated_with_types():
    """For text (as by 'from __future__ import annotations') typing starts the compiler: that takes a millisecond."""
    code = "import vhostnet.commands.cli, typing; print(*(f'{m.__name__}.{k}' for m in list(sys.modules.values()) "
    code += "if m.__name__.startswith('vhostnet') for k, v in vars(m).items() if isinstance(v, type) and "
    code += "hasattr(v, '_fields') and any(isinstance(a, typing.ForwardRef) for a in v.__annotations__.values())))"
    assert imported(code) == set()


def test_what_comes_later_is_there_when_it_is_asked_for():
    import vhostnet

    assert vhostnet.NicPool.__module__ == "vhostnet.host.pool"
    assert set(vhostnet.__all__) <= set(dir(vhostnet))
    assert all(hasattr(vhostnet, name) for name in vhostnet.__all__)
    with pytest.raises(AttributeError, match="NicPoool"):
        vhostnet.NicPoool  # noqa: B018
