"""TAPs for VMMs that take a name and no fds, owned by the user whom the VMM runs as:

examples/by_name.py make firecracker|cloud-hypervisor BRIDGE OWNER [QUEUES]     prints the VMM's part of it
examples/by_name.py delete NAME...
"""

import json
import sys

import vhostnet


def firecracker(nic):
    """A part of its --config-file, and each element what PUT /network-interfaces/eth0 takes.

    https://github.com/firecracker-microvm/firecracker/blob/main/docs/network-setup.md, which says: no multi-queue.
    """
    interface = {"iface_id": "eth0", "guest_mac": nic.spec.mac, "host_dev_name": nic.ifname}
    return json.dumps({"network-interfaces": [interface]}, indent=2)


def cloud_hypervisor(nic):
    """Its num_queues counts both directions: each of the TAP's queues is a pair.

    https://github.com/cloud-hypervisor/cloud-hypervisor/blob/main/docs/networking.md
    """
    return f"--net tap={nic.ifname},mac={nic.spec.mac},num_queues={2 * nic.spec.queues}"


VMMS = {"firecracker": firecracker, "cloud-hypervisor": cloud_hypervisor}


def make(vmm, bridge, owner, queues="1"):
    if vmm == "firecracker" and queues != "1":
        sys.exit("Firecracker has NICs of one queue only")
    # The VMM opens /dev/vhost-net itself, if it has a use for it.
    spec = vhostnet.InterfaceSpec(bridge=bridge, queues=int(queues), vhost="off")
    with vhostnet.open_nic(spec, persist=True, owner=owner) as nic:
        print(VMMS[vmm](nic))


def delete(*names):
    vhostnet.delete_nics(names)


{"make": make, "delete": delete}[sys.argv[1]](*sys.argv[2:])
