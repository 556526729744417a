"""The benchmark still runs, checks what it measures, and reports."""

import itertools
import json
import subprocess
import sys

import pytest
from conftest import ROOT

import vhostnet
from bench import figures, libvirt, macs, report
from bench.cases import CASES, WORLD_CASES, WORLDS
from bench.macs import BARE, STOCK


@pytest.mark.tap
@pytest.mark.udev
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_smoke_run(tmp_path):
    output = tmp_path / "result.json"
    command = [sys.executable, "-m", "bench.run", "--quick", "--rounds-percent", "1", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["host"]["kernel"]
    assert set(result["ns"]) >= {case.name for case in CASES if case.quick}
    for case in CASES:
        if case.quick:
            assert tuple(result["ns"][case.name]) == case.who
            assert all(min(taken) > 0 for taken in result["ns"][case.name].values())
    for case in WORLD_CASES:
        for world in WORLDS if case.quick else ():
            assert tuple(result["ns"][f"{case.name}, {world}"]) == case.who
    alone = result["ns"]["8q x 64, udevd here"]["native"]
    assert min(result["ns"]["8q x 64, udevd here, settled"]["native"]) > min(alone)
    assert min(result["ns"]["8q x 64, udevd here, udevd's CPU"]["native"]) > 10**6  # ns a NIC: it was really there
    assert set(result["bytes"]["8q"]) == {"noqueue", "default"}  # all of the machine's: whoever runs beside changes it
    assert "x the first" in done.stdout
    assert done.stdout.count("kept  ") + done.stdout.count("MISSED") > 10


def test_every_limit_is_of_something_that_is_measured():
    who = {case.name: case.who for case in CASES}
    who |= {f"{case.name}, {world}": case.who for case in WORLD_CASES for world in WORLDS}
    for limit in report.LIMITS:
        assert limit.one[1] in who[limit.one[0]]
        assert limit.other[1] in who[limit.other[0]]
    assert {case for case, _ in report.BUSY} <= set(who)


def test_the_names_of_cases_differ():
    assert len({case.name for case in CASES}) == len(CASES)
    assert len({case.name for case in WORLD_CASES}) == len(WORLD_CASES)


def test_a_limit_that_is_missed_says_so():
    times = {case.name: {name: [1000] for name in case.who} for case in CASES}
    times["the seed's XML"] = {"parse + plan + argv": [10**6]}
    times["a fresh process"] = {"import vhostnet": [10**7]}
    lines = report.verdicts({"ns": times, "bytes": {"8q": {"noqueue": 2**18, "default": 2**23}}}).splitlines()
    missed = [line for line in lines if line.startswith("MISSED")]
    assert any("parse + plan + argv: 1000.00 us" in line for line in missed)
    assert any("1.00 times native, at least 8" in line for line in missed)
    assert any(line.startswith("kept") and "1.00 times floor, at most 1.1" in line for line in lines)


def test_percentiles():
    values = list(range(1, 101))
    assert [report.percentile(values, percent) for percent in (50, 95, 99)] == [51, 96, 100]
    assert report.percentile([7], 99) == 7


# --- whose MACs NICs have when udev is done ----------------------------------------------------------------


@pytest.mark.udev
@pytest.mark.slow
def test_a_small_count_of_macs(tmp_path):
    output = tmp_path / "macs.json"
    command = [sys.executable, "-m", "bench.macs", "--nics", "200", "--batches", "1", "16", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=100)
    assert done.returncode in (0, 1), done.stderr
    result = json.loads(output.read_text())
    assert sum(one["nics"] for one in result["counts"]) >= 200
    rows = {(one["who"], one["batch"], one["queues"], one["busy"]) for one in result["counts"]}
    assert rows == set(itertools.product(("native", "pure"), (1, 16), (1, 8), (0, 2)))
    assert [one for one in result["counts"] if one["wrong"]] == []
    assert macs.moves(result)[STOCK] == 0


SABOTAGE = """
import json, subprocess, sys, threading
sys.path.append(sys.argv[1])
from bench import macs
from bench.contestants import Library

class Saboteur(Library):
    def act(self, asked):
        nics = super().act(asked)
        for thread in threading.enumerate():
            if thread.name == "vhostnet-udev":  # it would put them right
                thread.join(30)
        for number, nic in enumerate(nics):
            subprocess.run(["ip", "link", "set", nic.ifname, "address", f"02:00:00:00:00:0{number}"], check=True)
        return nics

print(json.dumps(macs.count({"saboteur": Saboteur("native")}, (2,), 1)))
"""


@pytest.mark.udev
@pytest.mark.slow
def test_the_count_of_macs_can_fail():
    """One NIC on each bridge gets another MAC: all are seen, and that the bridge without one of its own follows."""
    command = [ROOT / "tools" / "with-udevd", sys.executable, "-c", SABOTAGE, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [(one["nics"], one["wrong"], one["still"]) for one in result["counts"]] == [(2, 2, 2)] * 4
    moved = macs.moves(result)
    assert moved[STOCK] == 0
    assert moved[BARE] >= 8  # there and back; and now and then where a late worker of udev's moved it


# --- the documents -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", figures.PAGES, ids=lambda page: page.name)
def test_the_tables_of_the_documents_are_those_of_the_kept_results(page):
    text = page.read_text()
    assert figures.filled(text, figures.kept()) == text, "make figures"


def test_what_one_more_nic_takes():
    ms = {"virsh create, 8q": (100, 180), "virsh create, 8q, returned": (300, 340), "qemu, user": (50, 58)}
    ns = {
        f"{kind.partition(', returned')[0]}, {nics}{', returned' * kind.endswith('returned')}": [taken * 10**6]
        for kind, both in ms.items()
        for nics, taken in zip((1, 9), both, strict=True)
    }
    assert libvirt.rows({"ns": {"no udevd": ns}}, "no udevd") == [
        ("virsh create, 8q", 100, 180, 10),
        ("virsh create, 8q, returned", 300, 340, 5),
        ("qemu, user", 50, 58, 1),
    ]


@pytest.mark.parametrize("start", [start for start in libvirt.STARTS if start.queues], ids=str)
def test_libvirt_and_exec_read_the_same_domain(start):
    specs = vhostnet.parse_domain(start.xml())
    assert [(spec.queues, spec.vhost) for spec in specs] == [(start.queues, "off")] * start.nics
