"""What is done for a NIC besides the kernel acts on its TAP: scripts, Open vSwitch, addresses, what its bridge keeps.

``run()`` is for whoever runs Programs, and one without slow acts goes straight to its engine; ``end()`` is for whoever
takes NICs away.
"""

from collections.abc import Sequence
from functools import partial

from vhostnet.engines import Engine, Result
from vhostnet.events import told
from vhostnet.program.parts import NOTHING_SLOW, NicRow
from vhostnet.program.program import Program


def run(engine: Engine, program: Program) -> Result:
    """As ``engine.run(program)``, and the slow acts of it in their places; whoever listens hears of it as one run."""
    if not program.slow:
        return told(engine, program, engine.run)
    from vhostnet.slow.executor import execute  # plain NICs need none of it

    return told(engine, program, partial(execute, engine))


def end(engine: Engine, held: Sequence[NicRow]) -> None:
    """What these NICs would leave behind ends: downscripts run, ports of Open vSwitch go, addresses of links that stay.

    What is refused is logged, and everything else is done.
    """
    rows = [row for row in held if row.slow != NOTHING_SLOW]
    if rows:
        from vhostnet.slow.ending import end_all

        end_all(engine, rows)
