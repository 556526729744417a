"""A broker whose runs Prometheus can read at 127.0.0.1:9100, too: examples/broker/metered.py --policy FILE ...

The arguments are those of ``vhostnet serve``; it takes ``vhostnet[prometheus]``.
"""

import sys

from prometheus_client import start_http_server

import vhostnet
from vhostnet.commands.cli import main
from vhostnet.observe.prometheus import Metrics

vhostnet.on_event(Metrics())
start_http_server(9100, "127.0.0.1")
sys.exit(main(["serve", *sys.argv[1:]]))
