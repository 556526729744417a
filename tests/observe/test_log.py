"""log_event(): runs as records of logger vhostnet, with fields."""

import errno
import json
import logging

import pytest
from brokers import serving
from conftest import BRIDGE

import vhostnet
from vhostnet import InterfaceSpec, on_event
from vhostnet.observe.log import log_event
from vhostnet.process.netns import call_aside, unshare_net

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("bridge", "no_leaks")]


def spec(**fields):
    return InterfaceSpec(bridge=BRIDGE, vhost="off", **fields)


class Fields(logging.Handler):
    """What a structured logger writes: all that is no attribute of every record."""

    COMMON = logging.makeLogRecord({}).__dict__.keys()

    def __init__(self):
        super().__init__()
        self.written = []

    def emit(self, record):
        extra = {name: value for name, value in vars(record).items() if name not in self.COMMON}
        self.written.append((record.levelname, record.getMessage(), json.loads(json.dumps(extra))))


@pytest.fixture
def written(request):
    logger, handler = logging.getLogger("vhostnet"), Fields()
    logger.addHandler(handler)
    logger.setLevel(getattr(request, "param", "DEBUG"))
    with on_event(log_event):
        yield handler.written
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def test_a_run(engine, written):
    with vhostnet.open_nic(spec(queues=2), engine=engine) as nic:
        *acts, (level, text, fields) = list(written)
    assert [level for level, *_ in acts] == ["DEBUG"] * 4
    assert acts[0][1].startswith(f"TAP_OPEN {nic.ifname}: ")
    microseconds = [timing.ns / 1000 for timing in nic.timings]
    assert [act["microseconds"] for *_, act in acts] == microseconds
    assert acts[3][2] == {
        "ifname": nic.ifname,
        "act": "UP",
        "errno": 0,
        "call": "",
        "queue": None,
        "microseconds": microseconds[3],
    }
    assert (level, text.partition(" in ")[0]) == ("INFO", f"{nic.ifname}: 4 acts, 0 refused")
    assert fields.pop("microseconds") > sum(microseconds)
    assert fields == {"engine": engine, "nics": 1, "acts": 4, "refused": 0}
    assert written[-1][1].startswith(f"{nic.ifname}: closed in ")


@pytest.mark.parametrize("written", ["INFO"], indirect=True)
def test_a_refused_act_is_a_warning(engine, written):
    with pytest.raises(vhostnet.NameBusy):
        vhostnet.open_nic(spec(ifname=BRIDGE), engine=engine)
    (level, text, fields), run = written
    assert (level, text) == ("WARNING", f"TAP_OPEN {BRIDGE} queue 0: TUNSETIFF: EBUSY")
    assert fields.pop("microseconds") > 0
    assert fields == {"ifname": BRIDGE, "act": "TAP_OPEN", "errno": errno.EBUSY, "call": "TUNSETIFF", "queue": 0}
    assert (run[0], run[2]["refused"]) == ("INFO", 1)


def test_what_is_elsewhere_is_no_warning(engine, written):
    """Of NICs in another network namespace: they are looked for here first."""
    nics = vhostnet.open_nics([spec(), spec()], engine=engine)
    call_aside(lambda: (unshare_net(), vhostnet.close_nics(nics)))
    deleted = [(level, fields["errno"]) for level, _, fields in written if fields.get("act") == "DELETE"]
    assert deleted == [("DEBUG", errno.EXDEV)] * 2 + [("DEBUG", 0)] * 2


@pytest.mark.parametrize("written", ["ERROR"], indirect=True)
def test_it_says_nothing_where_nothing_is_to_be_said(engine, written):
    with pytest.raises(vhostnet.NameBusy):
        vhostnet.open_nic(spec(ifname=BRIDGE), engine=engine)
    assert written == []


@pytest.mark.slow
def test_a_broker_that_is_verbose_logs_its_acts(capfd):
    with serving(f'[[rule]]\nusers = [0]\nbridges = ["{BRIDGE}"]\n', "-v") as broker:
        with vhostnet.connect(broker.path) as client:
            (nic,) = client.open_nics([spec()])
            nic.close()
    said = capfd.readouterr().err
    assert f"TAP_OPEN {nic.ifname}: " in said
    assert f"{nic.ifname}: 4 acts, 0 refused in " in said
