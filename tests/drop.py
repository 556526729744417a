"""Commands under a user that is not root, with the capabilities that are named and no other."""

from __future__ import annotations

import shlex
import stat
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 65534

# In a mount namespace of its own: the machine's device nodes, and who may use them, are nobody's business.
DEVICES = """set -e
mount -t tmpfs -o mode=755 none /dev/net
mknod -m {mode} /dev/net/tun c 10 200
mknod -m {mode} /dev/net/vhost-net c 10 238
{uncover}
exec "$@"
"""


def dropped(*capabilities: str, mode: str = "666") -> list[str]:
    """The words before a command; /dev/net/tun and /dev/net/vhost-net have *mode* there."""
    script = DEVICES.format(mode=mode, uncover="\n".join(_uncover([sys.base_prefix, sys.prefix, str(ROOT)])))
    kept = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    sets = [f"--{which}={kept}" for which in ("inh-caps", "ambient-caps", "bounding-set")]
    who = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    return ["unshare", "--mount", "sh", "-c", script, "sh", "setpriv", *who, *sets]


# QEMU's bridge helper as a distribution would have it, and its rules; both in the mount namespace alone.
HELPER = """
mkdir -p /dev/net/helper
cp -a /etc /dev/net/etc && mkdir -p /dev/net/etc/qemu
printf '%s' {rules} >/dev/net/etc/qemu/bridge.conf
cp {helper} /dev/net/helper/qemu-bridge-helper
{privilege} /dev/net/helper/qemu-bridge-helper
mount --bind /dev/net/helper {directory}
mount --bind /dev/net/etc /etc
"""


def housed(helper: str, rules: str, *, privilege: str = "chmod 4755") -> list[str]:
    """The words before a command that finds *helper* and *rules* there, and may write to that /etc."""
    named = {"rules": shlex.quote(rules), "helper": helper, "privilege": privilege, "directory": Path(helper).parent}
    uncover = "\n".join(_uncover([sys.base_prefix, sys.prefix, str(ROOT)])) + HELPER.format(**named)
    return ["unshare", "--mount", "sh", "-c", DEVICES.format(mode="666", uncover=uncover), "sh"]


def helped(helper: str, rules: str, *, privilege: str = "chmod 4755") -> list[str]:
    """The words before a command that has no capability, but *helper*, with *rules*; ``dropped()`` may have none of it,
    since there nobody gains a privilege.
    """
    who = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"]
    return [*housed(helper, rules, privilege=privilege), "setpriv", *who]


def _uncover(paths: list[str]) -> list[str]:
    """What makes *paths* readable whose way there is closed to others, such as /root: it is covered, and they stay."""
    ways = {path: way for path in paths if (way := _closed(Path(path)))}
    stash = {path: f"/mnt/{number}" for number, path in enumerate(ways)}
    return [
        *(["mount -t tmpfs -o mode=755 none /mnt"] if ways else []),
        *(f"mkdir {place} && mount --bind {shlex.quote(path)} {place}" for path, place in stash.items()),
        *(f"mount -t tmpfs -o mode=755 none {shlex.quote(way)}" for way in sorted(set(ways.values()))),
        *(f"mkdir -p {shlex.quote(path)} && mount --bind {place} {shlex.quote(path)}" for path, place in stash.items()),
    ]


def _closed(path: Path) -> str | None:
    """The topmost directory on the way to *path* that others may not search."""
    for directory in reversed([path, *path.parents]):
        if not directory.stat().st_mode & stat.S_IXOTH:
            return str(directory)
    return None


def run(*command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=100, cwd="/")
