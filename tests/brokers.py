"""A broker that runs, as a process of its own, and clients of it that may make no NIC themselves."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from conftest import BRIDGE, ROOT
from drop import NOBODY, dropped

POLICY = f"""
[[rule]]
name = "tests"
users = [0, {NOBODY}]
bridges = ["{BRIDGE}", "gone0"]
vlans = [7, "100-199"]
ifnames = ["vm-*", "veni_*"]
macs = ["52:54:00", "20:90:6f"]
nics = 3000
queues = 30000
clients = 3000
"""


class Serving:
    """Its process, its socket and its policy's file."""

    def __init__(self, process, path, policy):
        self.process = process
        self.path = path
        self.policy = policy

    def fds(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def memory(self):
        """Of its own, in KiB (VmRSS)."""
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


@contextmanager
def serving(text=POLICY, *options, directory=None, env=None, by=("-m", "vhostnet", "serve")):
    """``vhostnet serve`` in this network namespace; in the end it is told to go, and says so by its exit code.

    In a *directory* of one's own it is the next one at the same socket.
    """
    with tempfile.TemporaryDirectory() as fresh:
        os.chmod(fresh, 0o755)  # for all users to connect
        with _serving(Path(directory or fresh), text, options, env, by) as found:
            yield found


@contextmanager
def _serving(directory, text, options, env, by):
    path, policy = str(directory / "broker"), directory / "policy.toml"
    policy.write_text(text)
    command = [sys.executable, *by, "--socket", path, "--policy", str(policy), *options]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **(env or {})}) as process:
        try:
            await_socket(path, process)
            yield Serving(process, path, policy)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=60) == 0
        finally:
            process.kill()


def await_socket(path, process):
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline and process.poll() is None, "no broker serves"
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except OSError:
                time.sleep(0.01)
            else:
                return


def powerless(script, *arguments, **how):
    """A Python that is nobody, without a capability: what it printed."""
    command = [*dropped(), sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, cwd="/", **how)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come to be"
        time.sleep(0.01)
