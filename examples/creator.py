"""Make NICs for those who may not: examples/creator.py SOCKET BRIDGE

Who may connect to the socket sends an <interface>, and gets its NIC's fds (SCM_RIGHTS) with JSON that says how many of
them are the TAP's. The NIC is there for as long as anybody has them. The unit for it is examples/vhostnet.service.
"""

import json
import os
import socket
import sys
import warnings

import vhostnet

MAX_QUEUES = 64  # an answer carries at most 253 fds


def wish(text: bytes, bridge: str) -> vhostnet.InterfaceSpec:
    """What a client may choose: MAC, model and queues. Neither the bridge nor a path is its business."""
    asked = vhostnet.parse_interface(text)
    if not asked.tap:
        raise vhostnet.SpecError("has no TAP", attribute="type", value=asked.type, expected="type bridge")
    if asked.queues > MAX_QUEUES:
        raise vhostnet.SpecError("too many queues", value=asked.queues, expected=f"at most {MAX_QUEUES}")
    return vhostnet.InterfaceSpec(bridge=bridge, mac=asked.mac, model=asked.model, queues=asked.queues, vhost="auto")


def answer(client: socket.socket, bridge: str) -> None:
    try:
        nic = vhostnet.open_nic(wish(client.recv(1 << 16), bridge))
    except vhostnet.VhostnetError as error:
        client.send(json.dumps({"error": str(error)}).encode())
        return
    with nic:  # our fds are closed; the client has its own
        told = {"ifname": nic.ifname, "mac": nic.spec.mac, "tap": len(nic.tap_fds), "why": nic.vhost.why}
        socket.send_fds(client, [json.dumps(told).encode()], nic.fds)


def serve(path: str, bridge: str) -> None:
    if os.path.exists(path):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(path)
        server.listen()
        while True:
            client, _ = server.accept()
            with client:
                client.settimeout(5)  # who asks for nothing holds nobody up for long
                try:
                    answer(client, bridge)
                except OSError as error:
                    print(error, file=sys.stderr, flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore", vhostnet.VhostnetWarning)
    serve(*sys.argv[1:3])
