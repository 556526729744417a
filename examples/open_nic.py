"""Open the NIC of an XML file, and run a QEMU on it: examples/open_nic.py nic.xml"""

import subprocess
import sys
from pathlib import Path

import vhostnet

spec = vhostnet.parse_interface(Path(sys.argv[1]).read_bytes())
print(vhostnet.plan_nics([spec], vhost="auto"))
with vhostnet.open_nic(spec, vhost="auto") as nic:
    print(nic, "vhost-net:", nic.vhost.why or "on")
    qemu = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-monitor", "stdio"]
    subprocess.run([*qemu, *nic.qemu_argv()], pass_fds=nic.fds, check=True)
