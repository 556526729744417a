"""A broker's sockets: who has connected, who is ready, who is too slow. One thread, which waits in one place.

A turn reads what has come, of each client one call, has the service answer them all, and writes what can be written. No
client is waited for: each is bounded in how much it may have on its way, and in how long that may take.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from vhostnet.broker.connection import Call, Connection
from vhostnet.broker.peer import Peer, peer_of
from vhostnet.broker.policy import read_policy
from vhostnet.broker.service import Service
from vhostnet.errors import HandoverError, PolicyRefused, SpecError
from vhostnet.process.files import allowed_files

MAX_HALF: Final = 64 * 2**20  # bytes of calls that are not whole, of all clients together
STRANGERS: Final = 4  # connections of a user that no rule is for: to be told so
_TICK: Final = 1.0  # seconds between looks at who is late
_BACKLOG: Final = 1024
_log: Final = logging.getLogger("vhostnet.broker")


class Server:
    """Serves on *listeners*, which listen and are its own from now on, what the policy at *path* allows.

    ``run()`` returns after ``stop()``; ``reload()`` reads the policy again, and where that is none keeps the one it
    had. Both may be called by a signal handler, and by any thread.
    """

    def __init__(self, listeners: Sequence[socket.socket], path: str, *, engine: str = "auto") -> None:
        """Raises SpecError, OSError: for the policy; HostError."""
        policy = read_policy(path)
        self._path: Final = path
        self._listeners: Final = {sock.fileno(): sock for sock in listeners}
        self._connections: dict[int, Connection] = {}
        self._clients: Counter[int] = Counter()  # by uid
        self._posted: deque[Callable[[], None]] = deque()
        self._wakeup: Final = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll: Final = select.epoll()
        self._watched: dict[int, int] = {}
        self._next: list[Call] = []  # that came with others which are answered
        self._most: Final = max(16, min(8192, allowed_files() // 4))
        self._running = True
        self._lock: Final = threading.RLock()  # a signal handler may post
        self._closed = False
        self.service: Final = Service(policy, self.post, lambda: self._clients, engine=engine)
        self._epoll.register(self._wakeup, select.EPOLLIN)
        for fd, sock in self._listeners.items():
            sock.setblocking(False)
            self._epoll.register(fd, select.EPOLLIN)

    def post(self, what: Callable[[], None]) -> None:
        """Have it done by the thread that runs, soon; by nobody where that has ended."""
        with self._lock:
            if not self._closed:
                self._posted.append(what)
                os.eventfd_write(self._wakeup, 1)

    def stop(self) -> None:
        """End ``run()``."""
        self.post(self._stop)

    def _stop(self) -> None:
        self._running = False

    def reload(self) -> None:
        """Read the policy again: it holds for the next call of each client."""
        self.post(self._reload)

    def _reload(self) -> None:
        try:
            policy = read_policy(self._path)
        except (SpecError, OSError) as error:
            _log.error("the policy stays as it was: %s", error)
        else:
            self.service.policy = policy
            _log.info("policy %s: %d rules", self._path, len(policy.rules))

    def run(self) -> None:
        """Until ``stop()``. What is not a client's by then goes."""
        ticked = time.monotonic()
        while self._running:
            self._turn(self._epoll.poll(0 if self._next else _TICK))
            if time.monotonic() - ticked > _TICK:
                ticked = time.monotonic()
                self._drop_late()
                self.service.tick()
        self.close()

    def close(self) -> None:
        """Every connection and listener."""
        for connection in list(self._connections.values()):
            self._drop(connection)
        for sock in self._listeners.values():
            sock.close()
        self._epoll.close()
        with self._lock:
            self._closed = True
            os.close(self._wakeup)

    # --- a turn ---

    def _turn(self, events: Sequence[tuple[int, int]]) -> None:
        calls: list[Call] = []
        touched: dict[int, Connection] = {}
        for fd, event in events:
            if fd == self._wakeup:
                os.eventfd_read(self._wakeup)
            elif fd in self._listeners:
                self._accept(self._listeners[fd])
            elif connection := self._connections.get(fd):
                touched[fd] = connection
                calls += self._hear(connection, event)
        touched |= self._do_posted()
        calls += self._next
        self.service.serve(calls)
        touched |= {call.connection.sock.fileno(): call.connection for call in calls if not call.connection.closed}
        self._next = [call for connection in touched.values() if (call := self._write(connection))]
        for connection in touched.values():
            self._watch(connection)

    def _do_posted(self) -> dict[int, Connection]:
        """Whose answers are ready by that: all with a call may be."""
        if not self._posted:
            return {}
        waiting = {fd: connection for fd, connection in self._connections.items() if connection.call}
        while self._posted:
            self._posted.popleft()()
        return waiting

    def _hear(self, connection: Connection, event: int) -> list[Call]:
        try:
            if event & select.EPOLLIN and connection.reads:
                call = connection.read()
                return [call] if call else []
            if event & (select.EPOLLHUP | select.EPOLLERR):
                raise HandoverError("the client has gone")
        except BlockingIOError:
            pass
        except (HandoverError, OSError) as error:
            _log.debug("%s: %s", connection.peer, error)
            self._drop(connection)
        return []

    def _write(self, connection: Connection) -> Call | None:
        """Send what is ready; the call that was waiting for that."""
        if connection.closed:
            return None
        try:
            connection.write()
        except OSError as error:
            _log.debug("%s: %s", connection.peer, error)
            self._drop(connection)
            return None
        return connection.next_call()

    def _watch(self, connection: Connection) -> None:
        if connection.closed:
            return
        fd = connection.sock.fileno()
        wanted = (select.EPOLLIN if connection.reads else 0) | (select.EPOLLOUT if connection.writes else 0)
        if self._watched[fd] != wanted:
            self._epoll.modify(fd, wanted)
            self._watched[fd] = wanted

    # --- who is there ---

    def _accept(self, listener: socket.socket) -> None:
        """All that wait; one too many is closed at once."""
        while True:
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # no more files: those that are there go on
                _log.warning("no client is taken: %s", error)
                return
            try:
                sock.setblocking(False)
                peer = peer_of(sock)
            except OSError:
                sock.close()
                continue
            if len(self._connections) >= self._most or self._clients[peer.uid] >= self._allowed(peer):
                _log.warning("%s has too many connections: %d", peer, self._clients[peer.uid])
                sock.close()
                continue
            fd = sock.fileno()
            self._connections[fd] = Connection(sock, peer, self.service.given)
            self._clients[peer.uid] += 1
            self._watched[fd] = select.EPOLLIN
            self._epoll.register(fd, select.EPOLLIN)

    def _allowed(self, peer: Peer) -> int:
        """Connections of its user's."""
        try:
            return max(rule.clients for rule in self.service.policy.rules_for(peer))
        except PolicyRefused:
            return STRANGERS

    def _drop(self, connection: Connection) -> None:
        if connection.closed:
            return
        fd = connection.sock.fileno()
        self._epoll.unregister(fd)
        del self._connections[fd], self._watched[fd]
        self._clients[connection.peer.uid] -= 1
        connection.close()
        self.service.forget(connection.kept)

    def _drop_late(self) -> None:
        """Who holds up its own call or reply; and whoever says the longest halves, where they are too much together."""
        for connection in list(self._connections.values()):
            if connection.late:
                _log.warning("%s is too slow", connection.peer)
                self._drop(connection)
        by_size = sorted(self._connections.values(), key=lambda connection: connection.half)
        while by_size and sum(connection.half for connection in by_size) > MAX_HALF:
            _log.warning("%s says too much at a time", by_size[-1].peer)
            self._drop(by_size.pop())


def listening(path: str, mode: int = 0o666) -> socket.socket:
    """A socket at *path*, made anew where nobody listens. Raises OSError; HandoverError where somebody does."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if _served(path):
            raise HandoverError(f"somebody serves at {path} already")
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with suppress(FileNotFoundError):
            os.unlink(path)
        sock.bind(path)
        os.chmod(path, mode)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _served(path: str) -> bool:
    """Somebody listens there, at once or when those who wait have had their turn."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


def passed_listeners() -> list[socket.socket]:
    """Those that systemd has passed to this process (sd_listen_fds(3)), but for what is stored of NICs."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    found = []
    for fd in range(3, 3 + int(os.environ.get("LISTEN_FDS", "0"))):
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        found.append(sock)
    return found
