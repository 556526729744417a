"""Spans: a run and its acts, as OpenTelemetry's own SDK has them in the end."""

import asyncio

import pytest
from conftest import BRIDGE
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.semconv._incubating.attributes.network_attributes import NETWORK_INTERFACE_NAME
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.trace import StatusCode

import vhostnet
from vhostnet import InterfaceSpec, aio, on_event
from vhostnet.observe.otel import Spans

pytestmark = [pytest.mark.tap, pytest.mark.usefixtures("bridge", "no_leaks")]


def spec(**fields):
    return InterfaceSpec(bridge=BRIDGE, vhost="off", **fields)


class Traced:
    def __init__(self, **how):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **how)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def runs(self):
        """Each with its acts."""
        spans = self.exporter.get_finished_spans()
        of_runs = [span for span in spans if span.name == "vhostnet run"]
        return [(run, [span for span in spans if span.parent == run.context]) for run in of_runs]


@pytest.fixture
def traced():
    found = Traced()
    with on_event(Spans(found.provider)):
        yield found
    found.provider.shutdown()


def test_a_run_and_its_acts(engine, traced):
    events = []
    with on_event(events.append), vhostnet.open_nic(spec(queues=2), engine=engine) as nic:
        pass
    (run, acts), (closed, none) = traced.runs()
    assert [act.name for act in acts] == ["TAP_OPEN", "QDISC", "LINK", "UP"]
    assert run.attributes == {"vhostnet.engine": engine, "vhostnet.nics": 1}
    assert [dict(act.attributes) for act in acts] == [{NETWORK_INTERFACE_NAME: nic.ifname}] * 4
    assert [(act.start_time, act.end_time - act.start_time) for act in acts] == [
        (act.started, act.ns) for act in events[0].acts
    ]
    assert run.start_time == events[0].started == acts[0].start_time
    assert acts[-1].end_time <= run.end_time == events[0].started + events[0].ns
    assert {span.status.status_code for span in (run, *acts)} == {StatusCode.UNSET}
    assert (run.instrumentation_scope.name, run.instrumentation_scope.version) == ("vhostnet", vhostnet.__version__)
    assert none == []
    assert closed.end_time - closed.start_time == events[1].ns


def test_what_was_refused(engine, traced):
    with pytest.raises(vhostnet.NameBusy):
        vhostnet.open_nic(spec(ifname=BRIDGE), engine=engine)
    ((run, (act,)),) = traced.runs()
    assert act.attributes[ERROR_TYPE] == run.attributes[ERROR_TYPE] == "EBUSY"
    assert (act.attributes["vhostnet.call"], act.attributes["vhostnet.queue"]) == ("TUNSETIFF", 0)
    assert act.status.status_code == run.status.status_code == StatusCode.ERROR
    assert (act.status.description, run.status.description) == ("TUNSETIFF: EBUSY", "TAP_OPEN: TUNSETIFF: EBUSY")


def test_an_optional_act_that_was_refused(engine, traced):
    vhostnet.open_nic(InterfaceSpec(bridge=BRIDGE, vhost="auto", vhost_path="/dev/null"), engine=engine).close()
    run, acts = traced.runs()[0]
    assert run.status.status_code == StatusCode.UNSET
    assert [act.name for act in acts if act.status.status_code == StatusCode.ERROR] == ["VHOST_OPEN"]


@pytest.mark.parametrize("netns", [None, "/proc/thread-self/ns/net"])
def test_its_parent_is_the_callers_span(engine, traced, netns):
    """Also where a thread of its own makes it."""
    tracer = traced.provider.get_tracer("a test")
    with tracer.start_as_current_span("a VM starts") as around:
        nic = vhostnet.open_nic(spec(), engine=engine, netns=netns)
    nic.close()
    opened, closed = (run for run, _ in traced.runs())
    assert opened.parent == around.get_span_context()
    assert closed.parent is None


def test_its_parent_is_the_tasks_span(engine, traced):
    """Of asyncio, where an executor's thread makes it."""

    async def start(name):
        with traced.provider.get_tracer("a test").start_as_current_span(name) as around:
            nic = await aio.open_nic(spec(), engine=engine)
            await aio.close_nics([nic])
        return around.get_span_context()

    async def both():
        return await asyncio.gather(start("a VM starts"), start("another"))

    parents = asyncio.run(both())
    assert sorted(run.parent.span_id for run, _ in traced.runs()) == sorted(2 * [parent.span_id for parent in parents])


def test_what_is_not_sampled(engine):
    traced = Traced(sampler=ALWAYS_OFF)
    with on_event(Spans(traced.provider)):
        vhostnet.open_nic(spec(), engine=engine).close()
    assert traced.exporter.get_finished_spans() == ()
