"""NICs to another process: it owns them once it has said that it takes them, and not before.

The two ends agree whatever dies when, since a message on a Unix socket is in the queue of the other end before
sendmsg() returns. The sender's NICs pass with the receiver's "taken". A sender that will not wait for it shuts its
reading end down, so that no "taken" can come any more, and looks whether one has: else it says "kept". A receiver
whose "taken" is refused (EPIPE) reads on: after "kept" they are the sender's; without, the sender is no more.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence

from vhostnet.errors import HandoverError, VhostnetError
from vhostnet.handover.proof import proven, told_of
from vhostnet.handover.wire import Channel
from vhostnet.host.nic import Nic
from vhostnet.process.files import close_fd
from vhostnet.process.forks import under_way

TIMEOUT = 10.0  # seconds


def send_nics(sock: socket.socket, nics: Sequence[Nic], *, timeout: float = TIMEOUT) -> None:
    """Give these NICs, all or none, to who calls ``recv_nics()`` at the other end of *sock*, a Unix stream socket.

    Returns when that has them and has seen that they are what is said of them; here they are closed then, and live on.
    Nothing of what they have is ended (ports of Open vSwitch, downscripts, addresses): that is the receiver's to do.
    One message may take *timeout* seconds. Raises HandoverError, a ConnectionError, where the other end refuses them,
    says nothing or is gone, and then they are this process's as before; NicClosed. The socket is not to be used again
    when that failed.
    """
    for nic in nics:
        nic.settle()
    channel = Channel(sock, timeout)
    try:
        answer = _offer(channel, nics)
    except BaseException as error:  # a KeyboardInterrupt, too: who owns them must be known
        if _keeps(channel):
            raise _told(error) from None
        _leave(nics)
        if not isinstance(error, OSError):
            raise
    else:
        if answer:
            raise HandoverError(f"the other end did not take them: {answer}")
        _leave(nics)
        with contextlib.suppress(OSError):
            channel.hear()  # for who uses the socket again
    finally:
        channel.close()


def _leave(nics: Sequence[Nic]) -> None:
    with under_way:
        for nic in nics:
            nic.leave_to_other()


def _told(error: BaseException) -> BaseException:
    if isinstance(error, OSError) and not isinstance(error, VhostnetError):
        return HandoverError(f"the other end did not take them: {error}")
    return error


def _offer(channel: Channel, nics: Sequence[Nic]) -> str:
    """ "" when they are taken, else why not."""
    channel.send({"nics": len(nics)})
    for nic in nics:
        fds = nic.copies()
        try:
            channel.send(told_of(nic), (*fds.tap, *fds.vhost, *nic.home_fds))
        finally:
            for fd in (*fds.tap, *fds.vhost):
                close_fd(fd)
    return _answer(channel)


def _answer(channel: Channel) -> str:
    said = channel.overhear()
    if said is None:
        raise ConnectionResetError("it has gone")
    return "" if said.get("taken") is True else str(said.get("refused", said))


def _keeps(channel: Channel) -> bool:
    """From now on nobody can take them; False where somebody has."""
    with contextlib.suppress(OSError):
        channel.sock.shutdown(socket.SHUT_RD)
    with contextlib.suppress(OSError):
        if not _answer(channel):
            return False
    with contextlib.suppress(OSError):
        channel.send({"kept": True})
    return True


def recv_nics(sock: socket.socket, *, timeout: float = TIMEOUT) -> list[Nic]:
    """The NICs that the other end of *sock* gives by ``send_nics()``, this process's from then on.

    The kernel is asked what each fd is: the queues of that TAP, in one network namespace, the link of that ifindex, MAC
    and mark; vhost-net with the features QEMU needs. Raises HandoverError where something is not as it was said, or the
    sender keeps them or says no more, and then nothing is left of them here; SpecError for a spec that cannot be meant.
    """
    channel = Channel(sock, timeout)
    with contextlib.ExitStack() as taken:
        taken.callback(channel.close)
        try:
            nics = _take_in(channel, taken)
        except VhostnetError as error:
            with contextlib.suppress(OSError):
                channel.send({"refused": str(error)})
            raise
        except OSError as error:
            raise HandoverError(f"they did not come: {error}") from None
        _take(channel)
        taken.pop_all()
    channel.close()
    return nics


def _take_in(channel: Channel, taken: contextlib.ExitStack) -> list[Nic]:
    """As Nics, which *taken* leaves to the sender where they are not taken after all."""
    head = channel.hear()
    if head is None:
        raise HandoverError("the other end has gone")
    count = head.get("nics")
    if type(count) is not int:
        raise HandoverError(f"the other end gives no NICs: {head!r:.64}")
    nics: list[Nic] = []
    for _ in range(count):
        message = channel.receive()
        if message is None:
            raise HandoverError(f"the other end has gone, {len(nics)} of {count} NICs on its way")
        try:
            nic = proven(message.said, message.fds)
        except BaseException:
            for fd in message.fds:
                close_fd(fd)
            raise
        taken.callback(nic.leave_to_other)
        nics.append(nic)
    return nics


def _take(channel: Channel) -> None:
    """They are ours when this returns. Raises HandoverError where the sender keeps them."""
    try:
        channel.send({"taken": True})
    except TimeoutError as error:
        raise HandoverError(str(error)) from None
    except OSError:
        if not _has_gone(channel):
            raise HandoverError("the other end keeps them") from None


def _has_gone(channel: Channel) -> bool:
    """The sender has ended without a word: nobody else has them. One that keeps them says so, or will."""
    try:
        while (said := channel.hear()) is not None:
            if said.get("kept"):
                return False
    except TimeoutError:
        return False
    except OSError:
        return True
    return True
