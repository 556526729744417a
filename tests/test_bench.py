"""The benchmark still runs, checks what it measures, and reports."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from bench import report
from bench.cases import CASES


@pytest.mark.tap
@pytest.mark.slow
def test_a_smoke_run(tmp_path):
    output = tmp_path / "result.json"
    command = [sys.executable, "-m", "bench.run", "--quick", "--rounds-percent", "1", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=100)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["host"]["kernel"]
    assert set(result["ns"]) >= {case.name for case in CASES if case.quick}
    for case in CASES:
        if case.quick:
            assert tuple(result["ns"][case.name]) == case.who
            assert all(min(taken) > 0 for taken in result["ns"][case.name].values())
    assert result["bytes"]["8q"]["default"] > 5 * result["bytes"]["8q"]["noqueue"] > 0
    assert "x the first" in done.stdout
    assert done.stdout.count("kept  ") + done.stdout.count("MISSED") > 10


def test_every_limit_is_of_something_that_is_measured():
    who = {case.name: case.who for case in CASES}
    for limit in report.LIMITS:
        assert limit.one[1] in who[limit.one[0]]
        assert limit.other[1] in who[limit.other[0]]
    assert {case for case, _ in report.BUSY} <= set(who)


def test_the_names_of_cases_differ():
    assert len({case.name for case in CASES}) == len(CASES)


def test_a_limit_that_is_missed_says_so():
    times = {case.name: {name: [1000] for name in case.who} for case in CASES}
    times["the seed's XML"] = {"parse + plan + argv": [10**6]}
    times["a fresh process"] = {"import vhostnet": [10**7]}
    lines = report.verdicts({"ns": times, "bytes": {"8q": {"noqueue": 2**18, "default": 2**23}}}).splitlines()
    missed = [line for line in lines if line.startswith("MISSED")]
    assert any("parse + plan + argv: 1000.00 us" in line for line in missed)
    assert any("1.00 times native, at least 8" in line for line in missed)
    assert any(line.startswith("kept") and "1.00 times floor, at most 1.25" in line for line in lines)


def test_percentiles():
    values = list(range(1, 101))
    assert [report.percentile(values, percent) for percent in (50, 95, 99)] == [51, 96, 100]
    assert report.percentile([7], 99) == 7
