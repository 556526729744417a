"""The benchmark still runs, checks what it measures, and reports."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from bench import report


@pytest.mark.tap
@pytest.mark.slow
def test_a_smoke_run(tmp_path):
    output = tmp_path / "result.json"
    command = [sys.executable, "-m", "bench.run", "--rounds-percent", "4", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=100)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["host"]["kernel"]
    for contestants in result["ns_per_nic"].values():
        assert set(contestants) == {"floor", "native", "pure"}
        assert all(min(taken) > 0 for taken in contestants.values())
    assert "x floor" in done.stdout


def test_percentiles():
    values = list(range(1, 101))
    assert [report.percentile(values, percent) for percent in (50, 95, 99)] == [51, 96, 100]
    assert report.percentile([7], 99) == 7
