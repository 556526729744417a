"""Runs a module of bench where a stock udevd may listen: under tools/with-udevd, here or in another Debian."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.libvirtd import ONCE

ROOT = Path(__file__).resolve().parent.parent
WITH_UDEVD = str(ROOT / "tools" / "with-udevd")
# Installed, since that is what is measured; and the C core beside the sources too, for python -m bench.
EACH_TIME = """\
python3 -m venv /opt/vhostnet
VHOSTNET_BUILD=native /opt/vhostnet/bin/pip install --quiet --disable-pip-version-check . >&2
cp /opt/vhostnet/lib/python3.*/site-packages/vhostnet/*.so vhostnet/
exec tools/with-udevd /opt/vhostnet/bin/python -m "$@"
"""


def possible() -> bool:
    """It takes root: whatever is missing is said on stderr."""
    return not subprocess.run([WITH_UDEVD, "true"]).returncode


def run_module(module: str, arguments: Sequence[str], suite: str = "") -> Any:
    """The JSON that *module* prints; in the Debian *suite*, with its libvirt and QEMU, where one is named."""
    command = [WITH_UDEVD, sys.executable, "-m", module, *arguments]
    if suite:
        elsewhere = [str(ROOT / "tools" / "inside"), suite, "--once", ONCE, "--"]
        command = [*elsewhere, "sh", "-euc", EACH_TIME, "sh", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])
