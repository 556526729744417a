"""What the parts share: namespaces, processes that start at the same moment, and what the kernel says of links."""

from __future__ import annotations

import multiprocessing
import os
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from vhostnet import InterfaceSpec
from vhostnet.engines import _uapi as uapi
from vhostnet.engines._rtnetlink import attributes
from vhostnet.others import bridge
from vhostnet.process import netns

Outcome = tuple[str, list[str]]  # the figures, and the promises that were broken

BRIDGE = "torture0"
ENGINES = ("native", "pure")
PATIENCE = 60.0  # seconds until what should have happened never will
SO_RCVBUFFORCE = 33


def fresh_namespace() -> None:
    """A network namespace of this part's own, with its bridge."""
    netns.unshare_net()
    bridge.make_bridge(BRIDGE)


def spec(**fields: Any) -> InterfaceSpec:
    return InterfaceSpec(**{"bridge": BRIDGE, "vhost": "off", **fields})


class Promises:
    """Those that were broken, each said once and counted."""

    def __init__(self) -> None:
        self._broken: Counter[str] = Counter()

    def __call__(self, kept: object, what: str) -> None:
        if not kept:
            self._broken[what] += 1

    @property
    def count(self) -> int:
        return sum(self._broken.values())

    @property
    def broken(self) -> list[str]:
        return [f"{what} ({count} times)" if count > 1 else what for what, count in self._broken.items()]


# --- this process --------------------------------------------------------------------------------------------


def open_fds() -> dict[int, str]:
    """Every fd, and what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that listed the directory
            continue
    return found


def tun_fds() -> list[int]:
    return [fd for fd, what in open_fds().items() if what == "/dev/net/tun"]


def link_names() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def resident() -> int:
    """KiB of memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def wait_until(true: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Whether it becomes true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


# --- other processes -----------------------------------------------------------------------------------------

_fork = multiprocessing.get_context("fork")


class Crew:
    """Processes that live for many rounds; in each they all do *work* at once, and answer.

    They wait for the gate in poll(), which wakes every one of them by the same write.
    """

    def __init__(self, count: int, work: Callable[..., Any]) -> None:
        self._gate = os.eventfd(0, os.EFD_CLOEXEC)
        self._pipes = []
        self._processes = []
        for _ in range(count):
            ours, theirs = _fork.Pipe()
            process = _fork.Process(target=self._serve, args=(theirs, work), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def _serve(self, pipe: Any, work: Callable[..., Any]) -> None:
        gate = select.poll()
        gate.register(self._gate, select.POLLIN)
        while (arguments := pipe.recv()) is not None:
            pipe.send("ready")
            gate.poll()
            try:
                pipe.send(work(*arguments))
            except BaseException as error:
                pipe.send(error)
                raise

    def each(self, *arguments: Any) -> list[Any]:
        """The answer of each, in their order."""
        for pipe in self._pipes:
            pipe.send(arguments)
        for pipe in self._pipes:
            _answer(pipe)
        os.eventfd_write(self._gate, 1)
        answers = [_answer(pipe) for pipe in self._pipes]
        os.eventfd_read(self._gate)
        return answers

    def dismiss(self) -> None:
        for pipe in self._pipes:
            with suppress(BrokenPipeError):
                pipe.send(None)
            pipe.close()
        for process in self._processes:
            _end(process)
        os.close(self._gate)


def _end(process: Any) -> None:
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()


def _answer(pipe: Any) -> Any:
    if not pipe.poll(PATIENCE):
        raise TimeoutError("a process of the crew does not answer")
    answer = pipe.recv()
    if isinstance(answer, BaseException):
        raise answer
    return answer


@contextmanager
def crew(count: int, work: Callable[..., Any]) -> Iterator[Crew]:
    made = Crew(count, work)
    try:
        yield made
    finally:
        made.dismiss()


@contextmanager
def beside(work: Callable[[Callable[[], bool]], Any]) -> Iterator[list[Any]]:
    """A process that does *work* until it is told to stop; what it returned stands in the list afterwards.

    *work* gets a function that says whether to stop. The block begins when it has been called the first time.
    """
    ours, theirs = _fork.Pipe()
    process = _fork.Process(target=_work_beside, args=(ours, theirs, work), daemon=True)
    process.start()
    theirs.close()
    answers: list[Any] = []
    try:
        _answer(ours)
        yield answers
        ours.send("stop")
        answers.append(_answer(ours))
    finally:
        ours.close()
        _end(process)


def _work_beside(ours: Any, pipe: Any, work: Callable[[Callable[[], bool]], Any]) -> None:
    ours.close()
    told = False

    def stopped() -> bool:
        nonlocal told
        if not told:
            pipe.send("begun")
            told = True
        return bool(pipe.poll())

    try:
        pipe.send(work(stopped))
    except BaseException as error:
        pipe.send(error)
        raise


# --- what the kernel says ------------------------------------------------------------------------------------


class Facts(NamedTuple):
    """What a link is, but for its name."""

    kind: str
    mac: str
    mtu: int
    master: int
    flags: int
    group: int
    qdisc: str
    alias: str


class Event(NamedTuple):
    """One message of rtnetlink: its type, and of which link it is."""

    type: int
    ifindex: int
    name: str
    facts: Facts | None


class Monitor:
    """rtnetlink's announcements of links and qdiscs, and questions on the same socket's twin."""

    LINKS, QDISCS = 1, 8  # RTMGRP_LINK, RTMGRP_TC

    def __init__(self, groups: int = LINKS) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, uapi.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        self._socket.bind((0, groups))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def events(self) -> Iterator[Event]:
        """What has been announced. OSError ENOBUFS where some of it was lost."""
        while True:
            try:
                data = self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            yield from (_event(kind, body) for kind, body in _messages(data))


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= uapi.NLMSGHDR.size:
        size, kind, *_ = uapi.NLMSGHDR.unpack_from(data)
        yield kind, data[uapi.NLMSGHDR.size : size]
        data = data[(size + 3) & ~3 :]


def _event(kind: int, body: bytes) -> Event:
    if kind not in (uapi.RTM_NEWLINK, uapi.RTM_DELLINK):  # a qdisc's: struct tcmsg has the ifindex at the same place
        return Event(kind, uapi.IFINFOMSG.unpack_from(body)[2], "", None)
    family, _, index, flags, _ = uapi.IFINFOMSG.unpack_from(body)
    found = dict(attributes(body[uapi.IFINFOMSG.size :]))
    name = found.get(uapi.IFLA_IFNAME, b"").rstrip(b"\0").decode()
    return Event(kind, index, name, _facts(found, flags) if family == socket.AF_UNSPEC else None)


IFLA_QDISC = 6


def _facts(found: dict[int, bytes], flags: int) -> Facts:
    def number(attribute: int) -> int:
        return int(struct.unpack("=I", found[attribute])[0]) if attribute in found else 0

    def text(value: bytes) -> str:
        return value.rstrip(b"\0").decode()

    info = dict(attributes(found.get(uapi.IFLA_LINKINFO, b"")))
    return Facts(
        text(info.get(uapi.IFLA_INFO_KIND, b"")),
        found.get(uapi.IFLA_ADDRESS, b"").hex(":"),
        number(uapi.IFLA_MTU),
        number(uapi.IFLA_MASTER),
        flags,
        number(uapi.IFLA_GROUP),
        text(found.get(IFLA_QDISC, b"")),
        text(found.get(uapi.IFLA_IFALIAS, b"")),
    )


def links() -> dict[int, tuple[str, Facts]]:
    """Every link: ifindex -> name and facts."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, uapi.NETLINK_ROUTE) as asking:
        body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        head = uapi.NLMSGHDR.pack(16 + len(body), uapi.RTM_GETLINK, uapi.NLM_F_REQUEST | uapi.NLM_F_DUMP, 1, 0)
        asking.send(head + body)
        found = {}
        while True:
            for kind, answer in _messages(asking.recv(1 << 16)):
                if kind == uapi.NLMSG_DONE:
                    return found
                event = _event(kind, answer)
                if event.facts:
                    found[event.ifindex] = event.name, event.facts
