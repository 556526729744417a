"""Metrics, as Prometheus' own parser reads them."""

import os
import subprocess
import sys
from urllib.request import urlopen

import pytest
from brokers import serving
from conftest import BRIDGE, ROOT
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import vhostnet
from vhostnet import InterfaceSpec, on_event
from vhostnet.broker import metrics
from vhostnet.observe.prometheus import BUCKETS, Metrics
from vhostnet.process.netns import call_aside, unshare_net

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("bridge", "no_leaks")]


def spec(**fields):
    return InterfaceSpec(bridge=BRIDGE, vhost="off", **fields)


def read(text):
    """Sample -> value; and that all have help and a type."""
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation and family.type in ("counter", "histogram", "gauge") for family in families)
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


@pytest.fixture
def registry():
    found = CollectorRegistry()
    with on_event(Metrics(found)):
        yield found


def test_what_is_counted(engine, registry):
    events = []
    with on_event(events.append):
        nics = vhostnet.open_nics([spec(), spec(), spec()], engine=engine)
        nics.pop().close()
        vhostnet.close_nics(nics)
        with pytest.raises(vhostnet.NameBusy):
            vhostnet.open_nic(spec(ifname=BRIDGE), engine=engine)
    found = read(generate_latest(registry).decode())
    counted = {key: value for key, value in found.items() if key[0].endswith("_total")}
    assert counted == {
        ("vhostnet_engine_runs_total", ("engine", engine), ("outcome", "done")): 3,
        ("vhostnet_engine_runs_total", ("engine", engine), ("outcome", "refused")): 1,
        ("vhostnet_engine_nics_made_total",): 3,
        ("vhostnet_engine_nics_deleted_total",): 2,
        ("vhostnet_engine_nics_closed_total",): 1,
        ("vhostnet_engine_acts_refused_total", ("act", "TAP_OPEN"), ("errno", "EBUSY")): 1,
    }
    assert found["vhostnet_engine_run_seconds_count", ("engine", engine)] == 4
    total = sum(event.ns for event in events) / 1e9
    assert found["vhostnet_engine_run_seconds_sum", ("engine", engine)] == pytest.approx(total)
    ups = [act.ns / 1e9 for event in events for act in event.acts if act.act == "UP"]
    assert found["vhostnet_engine_act_seconds_count", ("act", "UP")] == len(ups) == 3
    assert found["vhostnet_engine_act_seconds_sum", ("act", "UP")] == pytest.approx(sum(ups))


def test_what_is_taken_and_changed_is_not_made(engine, registry):
    with vhostnet.NicPool(spec(), size=1, low=0, engine=engine) as pool:
        pool.fill()
        with pool.take() as nic:
            nic.down()
    assert read(generate_latest(registry).decode())[("vhostnet_engine_nics_made_total",)] == pool.stats.made


def test_what_is_elsewhere_is_not_refused(engine, registry):
    nics = vhostnet.open_nics([spec(), spec()], engine=engine)
    call_aside(lambda: (unshare_net(), vhostnet.close_nics(nics)))
    found = read(generate_latest(registry).decode())
    assert found[("vhostnet_engine_nics_deleted_total",)] == 2
    assert not [key for key in found if "refused" in str(key)]


def test_the_buckets_hold_what_there_is(engine, registry):
    """The first is below an act, the last above a run."""
    vhostnet.close_nics(vhostnet.open_nics([spec() for _ in range(16)], engine=engine))
    found = read(generate_latest(registry).decode())
    acts = [value for key, value in found.items() if key[0] == "vhostnet_engine_act_seconds_bucket"]
    least = found["vhostnet_engine_act_seconds_bucket", ("act", "TAP_OPEN"), ("le", "1e-06")]
    assert (least, max(acts)) == (0, 16)
    assert found["vhostnet_engine_run_seconds_bucket", ("engine", engine), ("le", "10.0")] == 2
    assert tuple(sorted(BUCKETS)) == BUCKETS


def test_a_registry_has_them_once(registry):
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        Metrics(registry)
    Metrics(CollectorRegistry())


def test_they_are_none_of_the_brokers():
    """One Prometheus may read both of one process."""
    of_broker = {name for _, name, *_ in metrics._METRICS} | {name for _, name, _ in metrics._OF_USERS}
    registry = CollectorRegistry()
    Metrics(registry)
    ours = {f"{family.name}_total" if family.type == "counter" else family.name for family in registry.collect()}
    assert len(ours) == 7
    assert not ours & of_broker


def test_a_broker_whose_runs_are_counted(engine):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    policy = f'[[rule]]\nname = "tests"\nusers = [{os.getuid()}]\nbridges = ["{BRIDGE}"]\n'
    with serving(policy, "--engine", engine, by=["examples/broker/metered.py"]) as broker:
        with vhostnet.connect(broker.path) as client:
            client.open_nic(spec()).close()
        with urlopen("http://127.0.0.1:9100/metrics", timeout=30) as answer:
            found = read(answer.read().decode())
    assert found[("vhostnet_engine_nics_made_total",)] == 1
    assert found["vhostnet_engine_runs_total", ("engine", engine), ("outcome", "done")] >= 1


WORKER = """
import sys, vhostnet
from vhostnet.observe.prometheus import Metrics
vhostnet.on_event(Metrics())
vhostnet.close_nics(vhostnet.open_nics([vhostnet.InterfaceSpec(bridge=sys.argv[1], vhost="off")]))
"""
READER = """
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


@pytest.mark.slow
def test_processes_are_added_up(tmp_path):
    """prometheus_client's multiprocess mode, as gunicorn's workers use it."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "VHOSTNET_ENGINE": "pure"}

    def run(code):
        command = [sys.executable, "-c", code, BRIDGE]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    for _ in range(3):
        run(WORKER)
    found = read(run(READER))
    assert found[("vhostnet_engine_nics_made_total",)] == found[("vhostnet_engine_nics_deleted_total",)] == 3
    assert found["vhostnet_engine_run_seconds_count", ("engine", "pure")] == 6
