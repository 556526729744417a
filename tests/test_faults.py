"""Some of the fault sweep; all of it is ``make test-faults``."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

NONE_WRONG = "0 leak, 0 wrong error, 0 second error, 0 engines differ; 0 wrong in all"


def sweep(*arguments):
    """The line that sums it up."""
    command = [sys.executable, "-m", "tests.faults", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.tap
@pytest.mark.slow
@pytest.mark.parametrize("part", ["opening", "answers", "life"])
def test_whatever_is_refused_nothing_is_left_and_the_error_says_what_it_was(part):
    assert NONE_WRONG in sweep(part, "--errnos", "EIO")


@pytest.mark.vhost
@pytest.mark.tap
def test_whatever_vhost_net_refuses():
    assert NONE_WRONG in sweep("vhost", "--errnos", "EIO")
