"""Keep NICs ready on a bridge, and time taking them: examples/pool.py BRIDGE [COUNT]"""

import sys
import time

import vhostnet

bridge, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 32
shape = vhostnet.InterfaceSpec(bridge=bridge, queues=4, vhost="auto")
with vhostnet.NicPool(shape, size=count) as pool:
    pool.fill()
    taken = []
    for _ in range(count // 2):
        started = time.perf_counter()
        taken.append(pool.take())
        print(f"{taken[-1]} in {(time.perf_counter() - started) * 1e6:.0f} us")
    print(pool.stats)
    for nic in taken:  # their VMs are gone
        pool.give_back(nic)
