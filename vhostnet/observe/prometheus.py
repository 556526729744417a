"""Runs as Prometheus metrics (extra ``vhostnet[prometheus]``): ``vhostnet.on_event(Metrics())``."""

from __future__ import annotations

import errno
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from vhostnet.events import Event
from vhostnet.program.parts import Op

# From a netlink message to a round of deletions on a busy host.
BUCKETS: Final = tuple(digits * 10**power for power in range(-6, 0) for digits in (1, 2.5, 5)) + (1.0, 2.5, 5.0, 10.0)


class Metrics:
    """A listener that counts in *registry*. The names differ from the broker's own, which counts calls, not runs.

    Raises ValueError where the registry has them already, as prometheus_client does: a listener is enough for all NICs
    of a process. There are no gauges, so that prometheus_client's multiprocess mode adds its processes up.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"vhostnet_engine_{name}", what, labels, registry=registry)

        def histogram(name: str, what: str, *labels: str) -> Histogram:
            return Histogram(f"vhostnet_engine_{name}", what, labels, registry=registry, buckets=BUCKETS)

        self._runs = counter("runs", "Runs of Programs.", "engine", "outcome")
        self._made = counter("nics_made", "NICs that runs made.")
        self._deleted = counter("nics_deleted", "NICs that runs deleted.")
        self._closed = counter("nics_closed", "NICs whose fds were closed.")
        self._refused = counter("acts_refused", "Acts that the host refused.", "act", "errno")
        self._run_seconds = histogram("run_seconds", "How long runs took.", "engine")
        self._act_seconds = histogram("act_seconds", "How long acts took.", "act")

    def __call__(self, event: Event) -> None:
        for act in event.acts:
            self._act_seconds.labels(act.act).observe(act.ns / 1e9)
            if act.refused:
                self._refused.labels(act.act, errno.errorcode.get(act.errno, str(act.errno))).inc()
            elif act.act == Op.DELETE.name and not act.errno:
                self._deleted.inc()
        rows, nics = event.program.nics, event.result.nics  # no nics where all was undone
        if event.program.acts:
            there = zip(rows, nics, strict=False)
            self._made.inc(sum(made is not None and row.held is None and not row.adopted for row, made in there))
        else:
            self._closed.inc(len(nics))
        self._runs.labels(event.engine, "refused" if event.failure else "done").inc()
        self._run_seconds.labels(event.engine).observe(event.ns / 1e9)
