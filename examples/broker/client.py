"""A QEMU on a NIC that a broker makes, by a user without privileges: examples/broker/client.py BRIDGE [SOCKET]

It is told what to do on standard input: type help.
"""

import subprocess
import sys

import vhostnet

bridge, *socket = sys.argv[1:]
spec = vhostnet.InterfaceSpec(bridge=bridge, queues=4)
with vhostnet.connect(*socket) as net, net.open_nic(spec, vhost="auto") as nic:
    print(nic, "vhost-net:", nic.vhost.why or "on", flush=True)
    qemu = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-monitor", "stdio"]
    subprocess.run([*qemu, *nic.qemu_argv()], pass_fds=nic.fds, check=True)
