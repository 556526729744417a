"""Every Python block of README and of docs/ runs, as it stands there.

It has a network with the bridges that the pages name, and a ``/run`` of its own: with a QEMU at ``/run/vm.qmp``, or a
broker, where it speaks of one.
"""

import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext

import pytest
from brokers import POLICY, serving, until
from conftest import BRIDGE, ROOT, link_names
from machine import Q35, inventory, running

from vhostnet.others.bridge import make_bridge

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {
    f"{page.stem}-{number}": code
    for page in PAGES
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
}
MONITOR, BROKER = "/run/vm.qmp", "/run/vhostnet/broker"
# A monitor's socket, a broker's (empty: none), and the command.
RUN = f"""
mount -t tmpfs none /run
mkdir {os.path.dirname(BROKER)}
[ -z "$1" ] || ln -s "$1" {MONITOR}
[ -z "$2" ] || ln -s "$2" {BROKER}
shift 2
exec "$@"
"""
# A QEMU that a block starts does what its stdin tells it: to end.
QEMU = f'#!/bin/sh\nexec {shutil.which("qemu-system-x86_64")} "$@" -qmp stdio\n'
# What the blocks leave Python to close, and what is said of the XML this project was created for.
WARNINGS = "error,ignore:unclosed file,ignore:unclosed <socket,ignore:tx_queue_size=1024"
TALK = '{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n'


def test_there_are_some():
    assert {"README-0", "README-1"} < BLOCKS.keys()


@pytest.fixture
def bridges(net):
    for name in (BRIDGE, "br0"):
        make_bridge(name)


@pytest.mark.tap
@pytest.mark.qemu
@pytest.mark.parametrize("block", BLOCKS)
def test_it_runs(block, bridges, tmp_path):
    code = BLOCKS[block]
    before = link_names()
    with (
        running(*Q35) if MONITOR in code else nullcontext() as machine,
        serving(POLICY.replace(BRIDGE, "br0")) if "vhostnet.connect(" in code else nullcontext() as broker,
    ):
        inside = machine and inventory(machine)
        done = run(code, machine.socket if machine else "", broker.path if broker else "", tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert ('"return"' in done.stdout) == ("qemu-system-x86_64" in code)
        assert (machine and inventory(machine)) == inside
        until(lambda: link_names() == before)


def run(code, monitor, broker, directory):
    """With ``--again``: a block that can become itself anew does so, once."""
    script, qemu = directory / "block.py", directory / "qemu-system-x86_64"
    script.write_text(code)
    qemu.write_text(QEMU)
    qemu.chmod(0o755)
    env = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}", "PYTHONWARNINGS": WARNINGS}
    command = ["unshare", "--mount", "sh", "-ec", RUN, "sh", monitor, broker, sys.executable, str(script), "--again"]
    return subprocess.run(
        command, input=TALK, capture_output=True, text=True, timeout=100, cwd=ROOT, env=env, check=False
    )
