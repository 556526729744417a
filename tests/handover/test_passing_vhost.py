"""vhost-net's fds to another process."""

import pytest
from conftest import BRIDGE
from test_passing import both

import vhostnet

pytestmark = pytest.mark.vhost


def test_with_vhost_net(engine, bridge, no_leaks):
    (got,) = both(
        [vhostnet.open_nic(vhostnet.InterfaceSpec(bridge=BRIDGE, queues=256, vhost="require"), engine=engine)]
    )
    assert got.vhost
    assert len(got.vhost_fds) == 256
    got.reset_queues()
    got.close()
