"""Frames of guests: said into a NIC, and heard from it."""

import os
import select
import threading
import time

import vhostnet

MARK = b"\x88\xb5vhostnet"  # an EtherType for experiments, so that nobody else's frames are counted
BROADCAST = "ff:ff:ff:ff:ff:ff"
PATIENCE = 20  # seconds for a frame that is wanted


def frame(to, sender, tag=None):
    octets = bytes.fromhex((to + sender).replace(":", ""))
    return (octets + (b"\x81\x00" + tag.to_bytes(2, "big") if tag else b"") + MARK).ljust(64, b"\0")


def said(nic, to, tag=None):
    """The guest sends a frame."""
    os.write(nic.tap_fds[0], frame(to, nic.spec.mac, tag))


def heard(nic, wanted=0):
    """The frames that have come to the guest, strangers' aside: as many as are wanted, or those of a moment."""
    found = []
    while select.select([nic.tap_fds[0]], [], [], PATIENCE if len(found) < wanted else 0.05)[0]:
        got = os.read(nic.tap_fds[0], 2048)
        if MARK in got:
            found.append(got)
    return found


def check_heard(other, spec):
    """What another port, of that *spec*, says comes to it."""
    with vhostnet.open_nic(spec) as nic:
        said(nic, BROADCAST)
        assert len(heard(other, 1)) == 1


class Talker:
    """Writes into every queue of every NIC but one from the moment that it is there, as its guest might."""

    def __init__(self, words, besides):
        self._words, self._over = words, False
        self.sent = 0
        self._besides = set(map(str, besides.tap_fds))
        self._thread = threading.Thread(target=self._talk)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over = True
        self._thread.join()

    def until_heard(self):
        """It has said something since."""
        before, deadline = self.sent, time.monotonic() + 5
        while self.sent == before:
            assert time.monotonic() < deadline
            time.sleep(0.0005)

    def _talk(self):
        while not self._over:
            for name in set(os.listdir("/proc/self/fd")) - self._besides:
                try:
                    if os.readlink(f"/proc/self/fd/{name}") == "/dev/net/tun":
                        os.write(int(name), self._words)
                        self.sent += 1
                except OSError:  # not up, or gone
                    continue
