"""Runs as OpenTelemetry spans (extra ``vhostnet[otel]``): ``vhostnet.on_event(Spans())``."""

from __future__ import annotations

import errno
from typing import Final

from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode, TracerProvider
from opentelemetry.util.types import AttributeValue

from vhostnet.events import DoneAct, Event
from vhostnet.version import __version__


class Spans:
    """A listener: a span ``vhostnet run`` for each run, a child of whatever span its caller is in, and in it one for
    each act, by the act's name.

    *provider* is the application's own by default. Times are those of the run; where an act began, see ``Event.acts``.
    A run that was refused has status ERROR, and so has each act that was, with the errno's name as ``error.type``.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer: Final = trace.get_tracer("vhostnet", __version__, provider)

    def __call__(self, event: Event) -> None:
        attributes: dict[str, AttributeValue] = {
            "vhostnet.engine": event.engine,
            "vhostnet.nics": len(event.program.nics),
        }
        run = self._tracer.start_span("vhostnet run", attributes=attributes, start_time=event.started)
        if run.is_recording():
            around = trace.set_span_in_context(run)
            for act in event.acts:
                span = self._tracer.start_span(act.act, around, attributes=_attributes(act), start_time=act.started)
                if act.refused:
                    _fail(span, act, f"{act.call}: {act.said}" if act.said else act.call)
                span.end(act.started + act.ns)
            if event.failure:
                _fail(run, event.failure, f"{event.failure.act}: {event.failure.call}")
        run.end(event.started + event.ns)


def _attributes(act: DoneAct) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {"network.interface.name": act.ifname}
    if act.queue is not None:
        found["vhostnet.queue"] = act.queue
    if act.call:
        found["vhostnet.call"] = act.call
    return found


def _fail(span: Span, act: DoneAct, why: str) -> None:
    name = errno.errorcode.get(act.errno, str(act.errno))
    span.set_attribute("error.type", name)
    span.set_status(Status(StatusCode.ERROR, f"{why}: {name}"))
