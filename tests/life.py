"""The life of NICs, step by step: what a child does under a test's privileges or system-call filter.

life.py ENGINE VHOST [STEP...]      VHOST is off, or the path of a vhost-net device
"""

import gc
import os
import sys
import threading
import time
import warnings

import vhostnet

BRIDGE = "br0"


class Life:
    """Each public method is a step, on one engine; it leaves nothing behind."""

    def __init__(self, engine, vhost):
        self.how = {"engine": engine, "selftest": vhost != "off"}
        self.engine = engine
        self.vhost = {"vhost": "off"} if vhost == "off" else {"vhost": "require", "vhost_path": vhost}

    def wish(self, **fields):
        return vhostnet.InterfaceSpec(**{"bridge": BRIDGE, "queues": 2, **self.vhost, **fields})

    def open_nic(self):
        with vhostnet.open_nic(self.wish(), **self.how) as nic:
            assert len(nic.tap_fds) == 2

    def open_nics(self):
        nics = vhostnet.open_nics([self.wish() for _ in range(3)], **self.how)
        vhostnet.close_nics(nics)

    def open_nics_keep(self):
        """One is refused, since its name is taken."""
        nics = vhostnet.open_nics([self.wish(), self.wish(ifname=BRIDGE)], on_error="keep", **self.how)
        assert isinstance(nics[1], vhostnet.HostError)
        nics[0].close()

    def undo(self):
        """The last one is refused, and the others go with it."""
        try:
            vhostnet.open_nics([self.wish(), self.wish(), self.wish(ifname=BRIDGE)], **self.how)
        except (vhostnet.NameBusy, vhostnet.FlagMismatch):
            return
        raise AssertionError("it was not refused")

    def close_in_the_background(self):
        vhostnet.close_nics(vhostnet.open_nics([self.wish(), self.wish()], **self.how), wait=False)
        join()

    def drop(self):
        """Nobody closes it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            vhostnet.open_nic(self.wish(), **self.how)
            gc.collect()

    def reset_queues(self):
        """A queue that its QEMU left detached is attached again."""
        import fcntl

        from vhostnet.engines import _uapi

        with vhostnet.open_nic(self.wish(), **self.how) as nic:
            fcntl.ioctl(nic.tap_fds[1], _uapi.TUNSETQUEUE, _uapi.IFREQ_FLAGS.pack(b"", 0x0400))
            nic.reset_queues()

    def settle(self):
        """Until a udevd, where one listens, is done with it."""
        with vhostnet.open_nic(self.wish(), **self.how) as nic:
            assert nic.settle(60)

    def pool(self):
        with vhostnet.NicPool(self.wish(), size=3, low=0, engine=self.engine) as pool:
            pool.fill()
            pool.give_back(pool.take(self.wish(ifname="life-alt")))
            join("vhostnet-close")
            pool.take(self.wish(ifname="life-new"), rename=True).close()
        join()

    def bandwidth(self):
        """A limit of what it gets, and another."""
        limits = [vhostnet.Bandwidth(vhostnet.Rate(rate)) for rate in (1000, 7)]
        spec, other = (self.wish(mac="52:54:00:00:00:01", bandwidth=limit) for limit in limits)
        with vhostnet.open_nic(spec, **self.how) as nic:
            nic.update(other)

    def plan(self):
        program = vhostnet.plan_nics([self.wish()], engine=self.engine)
        assert vhostnet.limits(program, engine=self.engine).fds > 0

    def macvtap(self):
        """On the bridge, which is a link like any other to it."""
        wish = {"type": "direct", "bridge": None, "source": vhostnet.DirectSource(BRIDGE)}
        with vhostnet.open_nic(self.wish(**wish), **self.how) as nic:
            assert len(nic.tap_fds) == 2
        vhostnet.close_nics(vhostnet.open_nics([self.wish(**wish), self.wish(**wish)], **self.how))

    def elsewhere(self):
        """In another network namespace, by its fd; here it is the same one, which takes the same calls."""
        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        vhostnet.open_nic(self.wish(), netns=fd, **self.how).close()
        os.close(fd)


# A macvtap takes more privileges than all else.
STEPS = [name for name, value in vars(Life).items() if callable(value) and name not in ("__init__", "wish", "macvtap")]


def join(name="vhostnet"):
    """Until the threads of this name have ended."""
    deadline = time.monotonic() + 60
    for thread in threading.enumerate():
        if thread.name.startswith(name):
            thread.join(deadline - time.monotonic())
            assert not thread.is_alive()


def live(engine, vhost, *steps):
    life = Life(engine, vhost)
    for step in steps:
        getattr(life, step)()
        print(step, flush=True)


if __name__ == "__main__":
    live(*sys.argv[1:])
