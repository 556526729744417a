"""A command in network and mount namespaces of its own, with a /run of its own, where named namespaces are files."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = 'mount --make-rprivate / && mount -t tmpfs run /run && mount -t sysfs sysfs /sys && {setup} && exec "$@"'


def apart(*words: str, setup: str = "true", stdin: str = "") -> subprocess.CompletedProcess[str]:
    """What came of *words*, after the shell's *setup*."""
    command = ["unshare", "--net", "--mount", "sh", "-c", SCRIPT.format(setup=setup), "sh", *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
