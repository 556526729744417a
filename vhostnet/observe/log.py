"""What runs do, in the log: ``vhostnet.on_event(log_event)``."""

from __future__ import annotations

import errno
import logging
from typing import Any, Final

from vhostnet.events import DoneAct, Event

logger: Final = logging.getLogger("vhostnet")


def log_event(event: Event) -> None:
    """A listener. Records of logger ``vhostnet``: each act at DEBUG, each that was refused at WARNING, the run at INFO.

    What they say they have as attributes, too (``extra``), for whoever logs fields: of an act ``ifname``, ``act``,
    ``errno``, ``call``, ``queue``, ``microseconds``; of a run ``engine``, ``nics``, ``acts``, ``refused``,
    ``microseconds``.
    """
    if not logger.isEnabledFor(logging.WARNING):
        return
    done = refused = 0
    for act in event.acts:
        done += 1
        refused += act.refused
        level = logging.WARNING if act.refused else logging.DEBUG
        if logger.isEnabledFor(level):
            logger.log(level, "%s", _act_text(act), extra=_act_fields(act))
    names = [row.ifname for row in event.program.nics]
    fields = {
        "engine": event.engine,
        "nics": len(names),
        "acts": done,
        "refused": refused,
        "microseconds": event.ns / 1000,
    }
    what = f"{done} act{'s' * (done != 1)}, {refused} refused" if event.program.acts else "closed"
    who = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    logger.info("%s: %s in %.0f us (%s)", who, what, event.ns / 1000, event.engine, extra=fields)


def _act_fields(act: DoneAct) -> dict[str, Any]:
    return {
        "ifname": act.ifname,
        "act": act.act,
        "errno": act.errno,
        "call": act.call,
        "queue": act.queue,
        "microseconds": act.ns / 1000,
    }


def _act_text(act: DoneAct) -> str:
    text = f"{act.act} {act.ifname}"
    if act.queue is not None:
        text += f" queue {act.queue}"
    if not act.errno:
        return f"{text}: {act.ns / 1000:.1f} us"
    code = errno.errorcode.get(act.errno, act.errno)
    words = f" ({act.said})" if act.said else ""
    without = "; the run goes on" if act.optional else ""
    return f"{text}: {act.call}: {code}{words}{without}"
