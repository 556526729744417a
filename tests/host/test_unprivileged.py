"""Without privileges: a user namespace of one's own where the host allows it, and what to do where it does not."""

import subprocess
import sys

import pytest
from conftest import ROOT, link_names

pytestmark = [pytest.mark.tap, pytest.mark.slow, pytest.mark.usefixtures("net")]

# What an unprivileged user is who may open /dev/net/tun: root's files, but no capability. (But for setfcap: the kernel
# lets uid 0, and only it, be mapped only by those who have it.)
POWERLESS = ["setpriv", "--bounding-set=-all,+setfcap", "--inh-caps=-all"]
DEMO = [sys.executable, "-m", "vhostnet", "demo", "--nics", "2"]


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, cwd=ROOT)


def test_demo_in_a_user_namespace_of_its_own():
    before = link_names()
    done = run(*POWERLESS, *DEMO)
    assert done.returncode == 0, done.stderr
    assert "numqueues 8" in done.stdout
    assert link_names() == before


def test_the_tests_in_a_user_namespace_of_their_own():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/host/test_nic.py"]
    done = run(*POWERLESS, *command, "-k", "test_the_seed_is_what_libvirt or test_the_bridges_mtu")
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


def test_where_user_namespaces_are_not_allowed_it_says_what_to_do(tmp_path):
    """In a chroot the kernel gives nobody a user namespace."""
    script = f'mount --rbind / {tmp_path} && cd {tmp_path} && exec chroot . "$@"'
    inside = ["sh", "-c", f'cd {ROOT}; exec "$@"', "sh", *POWERLESS, *DEMO]
    done = run("unshare", "--mount", "sh", "-c", script, "sh", *inside)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "run it as root" in done.stderr
