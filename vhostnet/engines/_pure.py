"""The pure engine: the same acts by fcntl, socket and struct. For hosts without a compiler, and as the C core's twin.

Where the C core returns -errno, this raises OSError with the kernel call in ``filename``; ``_Run`` is the
one place that catches it.
"""

from __future__ import annotations

import contextlib
import errno
import struct
import time
from collections.abc import Callable, Sequence

from vhostnet.engines import _uapi as uapi
from vhostnet.engines._acts import ACTS, Nic, Running
from vhostnet.engines._calls import ioctl, keep_mac, open_device, refusal
from vhostnet.engines._links import Bridge, ask_vlans, describe, look_up_parent
from vhostnet.engines._protocol import ActResult, NicResult, Result, failures_of
from vhostnet.engines._removal import DELETE_BATCH, Doomed, claim, close_fds, delete_links, netns_of
from vhostnet.engines._rtnetlink import NL_BATCH, NL_DISPENSABLE, NL_MESSAGE, NL_SEND, Netlink, error_of
from vhostnet.engines._tc import bandwidth_call, bandwidth_messages, bandwidth_room
from vhostnet.process.files import close_fd, fits
from vhostnet.program.parts import Fds, Link, Op
from vhostnet.program.program import Program, fds_needed


class _Run:
    """One execution of a Program."""

    def __init__(self, program: Program) -> None:
        self.nics = [Nic(row) for row in program.nics]
        self.acts = [Running(number, act) for number, act in enumerate(program.acts)]
        self.keep = program.keep
        self.needed = fds_needed(program)
        self.queued: list[Running] = []  # they wait for the next flush
        self.batch = 0  # how many of their kind may
        self.undo: ActResult | None = None  # what was refused first while NICs that failed were deleted

    def execute(self) -> None:
        try:
            self.netlink = Netlink()
        except OSError as error:
            self.acts[0].refuse(error)
            for nic in self.nics:
                nic.failed = True
            return
        if any(running.act.op == Op.TC for running in self.acts):
            self.netlink.ask_for_words()  # what it lacks for that a kernel says in words alone: there is one errno
        try:
            ready = self._check_files() and self._find_bridges() and self._find_parents() and self._find_vlans()
            ready = ready and self._claim_held()
            done = ready and all(map(self._step, self.acts)) and self._flush() and self._keep_macs()
            self._unmake(every=not done)
        except BaseException:
            self._unmake(every=True)
            raise
        finally:
            self.netlink.close()

    def _unmake(self, *, every: bool) -> None:
        """Delete what this run made of the NICs that failed: by the group, and by closing what it could not have."""
        failed = [nic for nic in self.nics if nic.failed or every]
        # Of those that are held, what this run opened: vhost-net fds of one that had none.
        held = [nic for nic in failed if nic.row.held and not nic.row.held.vhost]
        close_fds([Doomed([], nic.vhost_fds, 0) for nic in held])
        close_fds([nic.doomed() for nic in failed if nic.row.adopted and not nic.row.held])
        failed = [nic for nic in failed if not (nic.row.held or nic.row.adopted)]
        for first in range(0, len(failed), DELETE_BATCH):
            doomed = [nic.doomed() for nic in failed[first : first + DELETE_BATCH]]
            delete_links(self.netlink, doomed, held=False)
            for d, nic in zip(doomed, failed[first:], strict=False):
                if d.error and d.ifindex and not self.undo:
                    self.undo = ActResult(d.error, d.call, None, 0)
                if d.error and nic.row.persist and nic.tap_fds and not nic.row.macvtap:  # or its link would stay
                    with contextlib.suppress(OSError):
                        ioctl(nic.tap_fds[0], uapi.TUNSETPERSIST, 0, "TUNSETPERSIST")
                d.error = 0  # so that it is closed
            close_fds(doomed)

    def _check_files(self) -> bool:
        """Whether all that must be opened fits under RLIMIT_NOFILE, before the first of it is."""
        if self.keep or not self.needed or fits(self.needed):
            return True
        return self._refuse(self.acts[0], refusal(errno.EMFILE, "RLIMIT_NOFILE"))

    def _find_bridges(self) -> bool:
        """Every bridge that is only named, and room on it for every NIC, before anything is made."""
        found: dict[str, Bridge] = {}
        for number, nic in enumerate(self.nics):
            name = nic.row.bridge
            if not name or nic.master:
                continue
            try:
                if name not in found:
                    found[name] = Bridge(self.netlink.fileno(), name)
                nic.master = found[name].ifindex
                nic.mtu = nic.mtu or found[name].mtu
                if not nic.row.held:
                    found[name].add_port()
            except OSError as error:
                if not self._blame(Op.LINK, number, error):
                    return False
        return True

    def _find_parents(self) -> bool:
        """Every link that a macvtap is to be on, before anything is made."""
        for running in self.acts:
            nic = self.nics[running.act.nic]
            if running.act.op != Op.MACVTAP or not nic.row.macvtap:
                continue
            try:
                nic.parent, nic.mtu = look_up_parent(self.netlink.fileno(), nic.row.macvtap.parent)
            except OSError as error:
                if not self._refuse(running, error):
                    return False
        return True

    def _find_vlans(self) -> bool:
        """That the bridges of NICs that are to be in VLANs heed them: else a port has all frames of all VLANs."""
        found: dict[int, int | OSError] = {}
        for number, nic in enumerate(self.nics):
            if not nic.row.port.vlans or not nic.row.bridge or nic.failed:
                continue
            try:
                if nic.master not in found:
                    found[nic.master] = ask_vlans(self.netlink, nic.master)
            except OSError as error:
                found[nic.master] = error
            asked = found[nic.master]
            if isinstance(asked, int):
                nic.default_vid = asked
            elif not self._blame(Op.VLAN_ADD, number, asked):
                return False
        return True

    def _blame(self, op: Op, nic: int, error: OSError) -> bool:
        """A bridge that will not do is one act's to report."""
        blamed = (running for running in self.acts if (running.act.op, running.act.nic) == (op, nic))
        return self._refuse(next(blamed, self.acts[0]), error)

    def _claim_held(self) -> bool:
        """Every held NIC that is to be changed by its ifindex, before that is done: that it is ours, here.

        A caller may be in another network namespace by now, or somebody may have deleted or moved the TAP.
        """
        here: tuple[int, int] | None = None
        for running in self.acts:
            nic = self.nics[running.act.nic]
            if not nic.row.held or nic.failed or ACTS[running.act.op][1] != NL_BATCH:
                continue
            try:
                here = here or netns_of(self.netlink.fileno(), uapi.SIOCGSKNS)
                if not claim(self.netlink, nic.doomed(), here):
                    raise refusal(errno.EBADFD, "TUNGETIFF")
            except OSError as error:
                if not self._refuse(running, error):
                    return False
        return True

    def _keep_macs(self) -> bool:
        for running in self.acts:
            nic = self.nics[running.act.nic]
            if running.act.op != Op.LINK or running.errno or nic.failed or nic.row.held or not nic.row.mac:
                continue
            try:
                keep_mac(nic.tap_fds[0], nic.row.mac)
            except OSError as error:
                if not self._refuse(running, error):
                    return False
        return True

    def _refuse(self, running: Running, error: OSError) -> bool:
        """An act was refused: True when the run goes on without this NIC."""
        running.refuse(error)
        self.nics[running.act.nic].failed = True
        return self.keep

    def _step(self, running: Running) -> bool:
        function, batch = ACTS[running.act.op]
        full = batch != self.batch or running.act.barrier or len(self.queued) == batch
        full = full or self.netlink.queued + self._messages(running) > NL_BATCH
        full = full or self.netlink.size + self._room(running) > NL_SEND
        if full and not self._flush():
            return False
        nic = self.nics[running.act.nic]
        if nic.failed:
            running.errno = running.errno or errno.ECANCELED
            return True
        before, started = self.netlink.queued, time.monotonic_ns()
        try:
            function(self.netlink, nic, running)
        except OSError as error:
            running.refuse(error)
            return running.act.optional or self._refuse(running, error)
        finally:
            running.ns = time.monotonic_ns() - started
        if batch:
            running.pending = max(1, self.netlink.queued - before)
            self.queued.append(running)
            self.batch = batch
        return True

    def _room(self, running: Running) -> int:
        """The most that its messages take."""
        row = self.nics[running.act.nic].row
        if running.act.op == Op.TC:
            return bandwidth_room(row.shaping, row.held is not None)
        vlans = row.port.vlans if running.act.op == Op.VLAN_ADD else ()
        return max(NL_MESSAGE, uapi.NLMSGHDR.size + uapi.IFINFOMSG.size + uapi.RTATTR.size * (1 + 2 * len(vlans)))

    def _messages(self, running: Running) -> int:
        row = self.nics[running.act.nic].row
        return bandwidth_messages(row.shaping, row.held is not None) if running.act.op == Op.TC else 1

    def _flush(self) -> bool:
        """Do what was put together since the last flush; each act has its share of the time."""
        if not self.queued:
            return True
        queued, self.queued = self.queued, []
        started = time.monotonic_ns()
        if self.batch == DELETE_BATCH:
            self._delete(queued)
        else:
            self._send(queued)
        each = (time.monotonic_ns() - started) // len(queued)
        on = True
        for running in queued:
            running.ns += each
            if running.errno:
                on = self._refuse(running, OSError(running.errno, "", running.call)) and on
        return on

    def _send(self, queued: list[Running]) -> None:
        lost: OSError | None = None
        try:
            self.netlink.exchange(self._answer)
        except OSError as error:
            lost = error
        for running in queued:
            if running.pending and lost:
                running.refuse(lost)

    def _answer(self, tag: int, kind: int, body: bytes) -> int:
        running = self.acts[tag & ~NL_DISPENSABLE]
        if kind != uapi.NLMSG_ERROR:
            return 0
        code = error_of(body)
        if tag & NL_DISPENSABLE and code in (errno.ENOENT, errno.EINVAL):
            code = 0
        if code:
            self._refuse_message(running, code, body)
        elif running.pending:
            running.pending -= 1
        return 1

    def _refuse_message(self, running: Running, code: int, body: bytes) -> None:
        """One of an act's messages is refused, and so is the act; the first that is says why."""
        if not running.pending:
            return
        if running.act.op == Op.TC:
            running.call, running.said = bandwidth_call(body), self.netlink.words(body)
        running.errno, running.pending = code, 0

    def _delete(self, queued: list[Running]) -> None:
        doomed = [self.nics[running.act.nic].doomed() for running in queued]
        delete_links(self.netlink, doomed, held=True)
        close_fds(doomed)
        for running, d in zip(queued, doomed, strict=True):
            running.errno, running.call = d.error, d.call


class PureEngine:
    """Programs by the standard library alone."""

    name = "pure"

    def run(self, program: Program) -> Result:
        if not program.acts:
            return Result((), ())
        run = _Run(program)
        run.execute()
        results = tuple(
            ActResult(a.errno, a.call if a.errno else "", a.queue if a.errno else None, a.ns, a.said) for a in run.acts
        )
        failures = failures_of(program, results)
        if failures and not program.keep:
            return Result((), results, failures[:1], run.undo)
        nics = (
            None if nic.failed else NicResult(nic.ifindex, nic.mtu, Fds(tuple(nic.tap_fds), tuple(nic.vhost_fds)))
            for nic in run.nics
        )
        return Result(tuple(nics), results, failures, run.undo)

    def ready(self, program: Program) -> Callable[[bytes], Result]:
        (row,) = program.nics
        return lambda mac: self.run(Program((row._replace(mac=mac),), program.acts))

    def close(self, held: Sequence[Fds]) -> None:
        close_fds([Doomed(list(fds.tap), list(fds.vhost), 0) for fds in held])

    def describe(self, names: Sequence[str]) -> dict[str, Link]:
        netlink = Netlink()
        try:
            return describe(netlink, names)
        finally:
            netlink.close()

    def features(self, tap_path: str) -> int:
        fd = open_device(tap_path)
        word = bytearray(4)
        try:
            ioctl(fd, uapi.TUNGETFEATURES, word, "TUNGETFEATURES")
        finally:
            close_fd(fd)
        return int(struct.unpack("=I", word)[0])
