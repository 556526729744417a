"""What a broker does aside, on a thread of its own, since the kernel waits there: NICs that are to go are deleted, all
that have gathered in one round.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from vhostnet.host.closing import close_nics
from vhostnet.host.nic import Nic
from vhostnet.host.pool import NicPool


class _Job(NamedTuple):
    nics: Sequence[Nic]
    then: Callable[[], None] | None
    pool: NicPool | None = None


class Janitor:
    """Any thread may ask it. What is to be done *then* it gives to *post*."""

    def __init__(self, post: Callable[[Callable[[], None]], None]) -> None:
        self._post: Final = post
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: Final = threading.Thread(target=self._work, name="vhostnet-broker-janitor")
        self._thread.start()

    def delete(self, nics: Sequence[Nic], then: Callable[[], None] | None = None) -> None:
        """Take them away; when they are gone *then* is posted."""
        self._jobs.put(_Job(nics, then))

    def close_pool(self, pool: NicPool) -> None:
        """And what is parked in it."""
        self._jobs.put(_Job((), None, pool))

    def close(self) -> None:
        """When everything is done."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        going = True
        while going:
            waiting = [self._jobs.get()]
            while not self._jobs.empty():
                waiting.append(self._jobs.get())
            going = None not in waiting
            jobs = [job for job in waiting if job]
            close_nics([nic for job in jobs for nic in job.nics])
            for job in jobs:
                if job.pool:
                    job.pool.close()
                if job.then:
                    self._post(job.then)
