"""Start many QEMUs, each on a NIC of a pool, and take them all down again: examples/fleet.py BRIDGE [COUNT]"""

import json
import statistics
import subprocess
import sys
import time

import vhostnet

bridge, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 100
QEMU = [
    *("qemu-system-x86_64", "-S", "-accel", "tcg,tb-size=1", "-m", "1", "-nodefaults", "-no-user-config"),
    *("-display", "none", "-qmp", "stdio"),
]


def start(nic):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([*QEMU, *nic.qemu_argv()], pass_fds=nic.fds, **pipes)


def await_answer(vm):
    """QMP's greeting."""
    if "QMP" not in json.loads(vm.stdout.readline() or "{}"):
        raise RuntimeError(f"QEMU ended: exit code {vm.wait()}")


def summary(times):
    worst = sorted(times)[len(times) * 99 // 100]
    return f"median {statistics.median(times) * 1000:.2f} ms, p99 {worst * 1000:.2f} ms"


shape = vhostnet.InterfaceSpec(bridge=bridge, queues=2, vhost="auto")
nics, vms, taking, answering = [], [], [], []
with vhostnet.NicPool(shape, size=32) as pool:
    pool.fill()
    try:
        for number in range(count):
            began = time.perf_counter()
            nics.append(pool.take())
            taken = time.perf_counter()
            vms.append(start(nics[-1]))
            await_answer(vms[-1])
            taking.append(taken - began)
            answering.append(time.perf_counter() - taken)
            print(f"{number:3} {nics[-1].ifname}: NIC {taking[-1] * 1000:.2f} ms, QEMU {answering[-1] * 1000:.1f} ms")
        print(f"NIC taken: {summary(taking)}; QEMU answers: {summary(answering)}")
    finally:
        began = time.perf_counter()
        for vm in vms:
            vm.kill()
        for vm in vms:
            vm.communicate()  # until it has ended; and our ends of its pipes are closed
        ended = time.perf_counter()
        # We had the fds as well, so no NIC went with its QEMU, after a wait for the kernel each: all go in one round.
        vhostnet.close_nics(nics)
        gone = time.perf_counter()
        print(f"{len(vms)} QEMUs ended: {(ended - began) * 1000:.0f} ms; NICs gone: {(gone - ended) * 1000:.0f} ms")
