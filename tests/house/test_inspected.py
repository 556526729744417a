"""What is wrong with a wheel, tools/inspected.py says: each defect planted in one that has no other."""

import base64
import hashlib
import platform
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow

MACHINE = platform.machine()
BRANCHES = {"x86_64": "-fcf-protection", "aarch64": "-mbranch-protection=standard"}.get(MACHINE)
# Without startup files: where they are not marked for branch protection, nothing linked with them is.
FLAGS = ["-O2", "-fPIC", "-shared", "-nostartfiles", "-fvisibility=hidden", "-fstack-protector-strong"]
FLAGS += [flag for flag in (BRANCHES, "-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack") if flag]
CORE = """
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#define DOOR __attribute__((visibility("default")))
DOOR int PyInit__vhostnet(const char *text) { char room[64]; strcpy(room, text); return room[1] + room[63]; }
"""
FILES = {"vhostnet/__init__.py": b"", "vhostnet-1.dist-info/METADATA": b"Name: vhostnet\n"}
NAME = f"vhostnet-1-cp310-abi3-manylinux2014_{MACHINE}.manylinux_2_17_{MACHINE}.whl"


def line(name, data):
    return f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')},{len(data)}\n"


def wheel(where, *flags, more="", name=NAME, record=lambda text: text):
    """Of a core of CORE and *more*, by FLAGS and *flags*; *record* makes of RECORD what is to be there."""
    core = where / "core.so"
    command = ["cc", *FLAGS, "-xc", "-", "-o", core, "-Wl,--no-as-needed", *flags]
    subprocess.run(command, input=CORE + more, text=True, check=True)
    files = {**FILES, "vhostnet/_vhostnet.abi3.so": core.read_bytes()}
    text = "".join(line(*file) for file in files.items()) + "vhostnet-1.dist-info/RECORD,,\n"
    with zipfile.ZipFile(where / name, "w") as archive:
        for file, data in {**files, "vhostnet-1.dist-info/RECORD": record(text).encode()}.items():
            archive.writestr(file, data)
    return where / name


def inspected(path):
    command = [sys.executable, ROOT / "tools" / "inspected.py", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.partition(": ")[2].strip()


def test_nothing_is_wrong_with_one_that_is_right(tmp_path):
    code, said = inspected(wheel(tmp_path))
    assert (code, "NO:" in said) == (0, False), said


OTHER = "aarch64" if MACHINE == "x86_64" else "x86_64"
DEFECTS = {
    "it exports ['PyInit__vhostnet', 'more']": {"more": "DOOR int more(void) { return 0; }"},
    "no BIND_NOW": {"flags": ["-Wl,-z,lazy"]},
    "no RELRO": {"flags": ["-Wl,-z,norelro"]},
    "writable code: ['PT_GNU_STACK']": {"flags": ["-Wl,-z,execstack"]},
    "no stack protector": {"flags": ["-fno-stack-protector"]},
    "it needs glibc 2.": {"more": "DOOR double PyInit(int fd) { struct stat s; return fstat(fd, &s); }"},
    "it needs ['libc.so.6', 'libm.so.6']": {"flags": ["-lm"]},
    "it looks for libraries by a path": {"flags": ["-Wl,-rpath,$ORIGIN"]},
    "it knows where it was built: /root/src/core.c": {"more": 'const char *volatile here = "/root/src/core.c";'},
    "it is for EM_": {"name": NAME.replace(MACHINE, OTHER)},
    "its name is none of ours": {"name": f"vhostnet-1-cp310-abi3-linux_{MACHINE}.whl"},
    "RECORD is wrong about vhostnet/__init__.py": {
        "record": lambda text: text.replace("/__init__.py,", "/__init__.py,x")
    },
    "RECORD has other files: ['vhostnet/__init__.py']": {"record": lambda text: text.partition("\n")[2]},
}
if BRANCHES:
    DEFECTS["not marked for"] = {"flags": [f"{BRANCHES.partition('=')[0]}=none"]}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found(tmp_path, defect):
    planted = dict(DEFECTS[defect])
    code, said = inspected(wheel(tmp_path, *planted.pop("flags", ()), **planted))
    assert (code, f"NO: {defect}" in said) == (1, True), said
