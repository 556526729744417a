"""The sdist, the wheel, and an installation with and without a compiler."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections import defaultdict

import pytest
from conftest import ROOT, need

pytestmark = pytest.mark.slow


def build(out, *what, **environment):
    """Build from a copy of what git has, as a release would; no network is needed."""
    source = out / "source"
    if not source.exists():
        source.mkdir(parents=True)
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        archive = subprocess.run(
            ["tar", "c", "--null", "-T", "-"], cwd=ROOT, input=files, capture_output=True, check=True
        )
        subprocess.run(["tar", "x", "-C", source], input=archive.stdout, check=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, *what, source]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def installed(wheel, where):
    """The wheel alone in a directory of its own; what it needs is this interpreter's."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", where, wheel]
    subprocess.run(command, check=True)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(where), sysconfig.get_path("purelib")])}


ENGINE = "import vhostnet; print(vhostnet.__file__); print(vhostnet.select_engine().name)"


def engine_of(env, tmp_path):
    command = [sys.executable, "-S", "-c", ENGINE]  # -S: an editable installation's finder would step in
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    file, name = done.stdout.split()
    assert file.startswith(str(tmp_path))
    return name


def test_the_wheel_comes_from_the_sdist_and_has_everything(tmp_path):
    need("native")
    done = build(tmp_path, VHOSTNET_BUILD="native")
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp310-abi3-linux" in wheel.name
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {
        *(f"src/{path.name}" for path in (ROOT / "src").glob("*.[ch]")),
        "src/build_core.py",
        "examples/seed.xml",
        "tests/host/test_nic.py",
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    data = {name.partition(".data/data/")[2] for name in names}
    assert names >= {"vhostnet/_vhostnet.abi3.so", "vhostnet/py.typed", "vhostnet/engines/_pure.py"}
    assert data >= {
        "share/man/man1/vhostnet.1",
        "share/bash-completion/completions/vhostnet",
        "share/zsh/site-functions/_vhostnet",
    }
    assert not [name for name in names if name.startswith(("tests", "bench", "src"))]
    env = installed(wheel, tmp_path / "site")
    assert engine_of(env, tmp_path) == "native"
    manual = (tmp_path / "site/share/man/man1/vhostnet.1").read_text()
    for command in ("argv", "plan", "exec", "doctor", "demo", "helper"):
        assert command in manual
    for command in ("vhostnet", "vhostnet-helper"):
        assert os.access(tmp_path / "site" / "bin" / command, os.X_OK)


def test_without_a_compiler_it_installs_and_goes_on_pure(tmp_path):
    done = build(tmp_path, "--wheel", CC="/bin/false")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" in done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert engine_of(installed(wheel, tmp_path / "site"), tmp_path) == "pure"


def test_a_native_build_without_a_compiler_is_an_error(tmp_path):
    done = build(tmp_path, "--wheel", CC="/bin/false", VHOSTNET_BUILD="native")
    assert done.returncode != 0
    assert not list(tmp_path.glob("*.whl"))


def test_a_pure_build_has_no_core_and_runs_anywhere(tmp_path):
    done = build(tmp_path, "--wheel", CC="/bin/false", VHOSTNET_BUILD="pure")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-any" in wheel.name


def test_a_build_that_is_none_is_refused(tmp_path):
    assert "VHOSTNET_BUILD='rust'" in build(tmp_path, "--wheel", VHOSTNET_BUILD="rust").stderr


def of_the_core(*command):
    """What a tool says of the core that was built."""
    need("native")
    import vhostnet._vhostnet

    return subprocess.run(
        [*command, vhostnet._vhostnet.__file__], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_the_core_exports_its_door_alone():
    assert [line.split()[-1] for line in of_the_core("nm", "-D", "--defined-only")] == ["PyInit__vhostnet"]


def test_the_cores_tables_of_addresses_are_read_only_before_it_runs():
    assert any("(FLAGS)" in line and "BIND_NOW" in line for line in of_the_core("readelf", "-dW"))
    assert "GNU_RELRO" in segments()


def test_nothing_of_the_core_is_writable_and_code():
    flags = segments()
    assert {"LOAD", "GNU_STACK"} <= set(flags)
    assert [kind for kind, each in flags.items() for flag in each if {"W", "E"} <= set(flag)] == []


def segments():
    """By type, the flags of every segment: R, W, E."""
    found = defaultdict(list)
    for line in of_the_core("readelf", "-lW"):
        if match := re.fullmatch(r" +([A-Z_]+) +(?:0x[0-9a-f]+ +){5}([RWE ]{3}) .*", line):
            found[match[1]].append(match[2])
    return found


def test_an_overflow_on_the_cores_stack_is_noticed():
    assert "__stack_chk_fail" in {line.split()[-1].partition("@")[0] for line in of_the_core("nm", "-D")}
