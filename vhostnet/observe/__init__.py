"""Listeners for ``vhostnet.on_event()``: a log, spans, metrics. None is imported, or pays, unless it is asked for."""
