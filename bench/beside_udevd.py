"""Runs a module of bench where a stock udevd may listen: under tools/with-udevd, here or in another Debian."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WITH_UDEVD = str(ROOT / "tools" / "with-udevd")
PACKAGES = (
    "libvirt-daemon-system libvirt-clients libvirt-daemon-driver-qemu qemu-system-x86 dbus iproute2 udev "
    "python3-venv python3-dev gcc libc6-dev linux-libc-dev"
)
ONCE = f"""\
apt-get -qq update
apt-get -qq install -y --no-install-recommends {PACKAGES}
apt-get -qq clean
rm -f /etc/libvirt/qemu/networks/autostart/default.xml
cat >>/etc/libvirt/qemu.conf <<'END'
security_driver = "none"
user = "root"
group = "root"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
END
"""
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
