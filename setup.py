"""What pyproject.toml cannot say: the C core, the abi3 tag, and the man page and completions made at build time."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.build import build

MADE = Path("build/share")
BUILD = os.environ.get("VHOSTNET_BUILD", "auto")
if BUILD not in ("auto", "native", "pure"):
    raise SystemExit(f"VHOSTNET_BUILD={BUILD!r}: expected auto, native or pure")
MAKERS = {
    "vhostnet.1": [
        *("-c", "from argparse_manpage.cli import main; main()"),
        *("--module", "vhostnet.commands.cli", "--function", "parser"),
        *("--prog", "vhostnet", "--project-name", "vhostnet", "--manual-title", "vhostnet"),
        *("--description", "libvirt interface XML in, an open NIC and QEMU arguments out"),
    ],
    "vhostnet": ["-m", "shtab", "--shell", "bash", "vhostnet.commands.cli.parser"],
    "_vhostnet": ["-m", "shtab", "--shell", "zsh", "vhostnet.commands.cli.parser"],
}


class BuildDocs(Command):
    """The man page by argparse-manpage, the completions by shtab, both from the one argparse parser."""

    user_options: ClassVar[list[tuple[str, str, str]]] = []
    description = "make the man page and the shell completions"

    def initialize_options(self) -> None: ...

    def finalize_options(self) -> None: ...

    def run(self) -> None:
        MADE.mkdir(parents=True, exist_ok=True)
        for name, command in MAKERS.items():
            env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
            made = subprocess.run([sys.executable, *command], env=env, check=True, stdout=subprocess.PIPE).stdout
            if not made.strip():
                raise SystemExit(f"nothing was made for {name}: {command}")
            (MADE / name).write_bytes(made)


class BuildAll(build):
    sub_commands: ClassVar = [("build_docs", None), *build.sub_commands]


options = {}
if BUILD != "pure" and not sysconfig.get_config_var("Py_GIL_DISABLED"):
    options["bdist_wheel"] = {"py_limited_api": "cp310"}

setup(
    cffi_modules=[] if BUILD == "pure" else ["src/build_core.py:ffibuilder"],
    cmdclass={"build": BuildAll, "build_docs": BuildDocs},
    options=options,
    data_files=[
        ("share/man/man1", [str(MADE / "vhostnet.1")]),
        ("share/bash-completion/completions", [str(MADE / "vhostnet")]),
        ("share/zsh/site-functions", [str(MADE / "_vhostnet")]),
    ],
)
