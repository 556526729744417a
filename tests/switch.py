"""The least that a vhost-user switch can be: QEMU starts on it, and what it asks is noted."""

import socket
import struct
import threading
import time
from contextlib import contextmanager, suppress

# The requests of QEMU's docs/interop/vhost-user.rst that are answered, and by what.
VERSION_1, PROTOCOL_FEATURES, MULTI_QUEUE, MTU = 1 << 32, 1 << 30, 1 << 22, 1 << 3
ANSWERS = {
    1: VERSION_1 | PROTOCOL_FEATURES | MULTI_QUEUE | MTU,  # GET_FEATURES
    15: 1,  # GET_PROTOCOL_FEATURES: more queues than one
    17: 4,  # GET_QUEUE_NUM
}
SET_VRING_CALL = 13
HEADER = struct.Struct("=III")  # request, flags, size of what follows
REPLY = 0x5


def serve(connection, asked):
    """One QEMU: until it is gone, each request is noted."""
    with connection, suppress(ConnectionError):
        while len(header := connection.recv(HEADER.size)) == HEADER.size:
            request, _, size = HEADER.unpack(header)
            payload = connection.recv(size, socket.MSG_WAITALL) if size else b""
            asked.append((request, payload))
            if request in ANSWERS:
                connection.sendall(HEADER.pack(request, REPLY, 8) + struct.pack("=Q", ANSWERS[request]))


@contextmanager
def switch(path):
    """It listens there, for one QEMU."""
    asked = []

    def listen():
        with suppress(OSError):  # it never came
            serve(listener.accept()[0], asked)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(30)


@contextmanager
def caller(path):
    """It goes to a QEMU that listens there, as soon as one does."""
    over = threading.Event()

    def call():
        connection = socket.socket(socket.AF_UNIX)
        while connection.connect_ex(path):
            if over.is_set():
                return connection.close()
            time.sleep(0.01)
        return serve(connection, [])

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)
