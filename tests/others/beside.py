"""QEMU's bridge helper and ours beside each other: a script, for root in a mount namespace with an /etc to write to.

Cases come in, in JSON, and what the two made of each goes out; or with a number, so many files of rules that nobody
would write, and for each that one's verdict and ours.
"""

import array
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

from vhostnet.others.bridge_acl import PATH, AclRefused, check_acl
from vhostnet.others.bridge_helper import find_helper

NOBODY, GROUP = 65534, 4711
DENIED, UNUSABLE = "access denied by acl file", "failed to parse default acl file"
REAL = find_helper()
PLAIN = "/etc/qemu/plain-helper"  # the same without privilege
OURS = [sys.executable, "-m", "vhostnet", "helper"]
FLAGS = ("type", "pi", "vnet_hdr", "multi_queue", "persist")  # of a TAP
TOLD = {"capture_output": True, "text": True, "errors": "replace"}
AMBIENT = ["--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin"]


def who(case, *capabilities):
    """The words before a command of who may nothing, but by these."""
    if case.get("root"):
        return []
    ids = [
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        f"--groups={case['group']}" if "group" in case else "--clear-groups",
    ]
    return ["setpriv", *ids, *capabilities]


def commands(case):
    if case.get("powerless"):
        return [*who(case), PLAIN], [*who(case), *OURS]
    return [*who(case), REAL], [*who(case, *AMBIENT), *OURS]


def write(case):
    for name, text in case["files"].items():
        path = Path("/etc/qemu", name)
        path.write_bytes(text.encode("latin-1"))
        os.chown(path, 0, GROUP)
        path.chmod(case.get("mode", 0o644) if name == "bridge.conf" else 0o640)


def tried(command, case):
    """What whoever runs it sees of it, and of the NIC."""
    ours, its = socket.socketpair()
    with ours, its:
        words = case.get("words", ["--use-vnet", "--br=br0", "--fd={fd}"])
        words = [word.format(fd=its.fileno()) for word in words]
        done = subprocess.run([*command, *words], pass_fds=[its.fileno()], stdin=subprocess.DEVNULL, **TOLD)
        its.close()
        message, ancillary, _, _ = ours.recvmsg(16, 1024)
        received = array.array("i", b"".join(data for _, _, data in ancillary))
        seen = {
            "code": done.returncode,
            "message": message.hex(),
            "fds": len(received),
            "nics": nics(),
            "denied": DENIED in done.stderr,
            "unusable": UNUSABLE in done.stderr,
            "silent": done.stderr == done.stdout == "",
        }
        for fd in received:
            os.close(fd)
    return {**seen, "left": nics()}, done.stderr


def nics():
    """What a guest or a bridge would notice of them."""
    shown = subprocess.run(
        ["ip", "-j", "-d", "link", "show", "type", "tun"], capture_output=True, text=True, check=True
    )
    return [
        {
            "named": link["ifname"].rstrip("0123456789"),
            "up": "UP" in link["flags"],
            "first octet": link["address"][:2],
            **{key: link.get(key) for key in ("mtu", "master")},
            **{
                key: link["linkinfo"]["info_data"].get(key)
                for key in ("type", "pi", "vnet_hdr", "multi_queue", "persist")
            },
        }
        for link in json.loads(shown.stdout or "[]")
        if link
    ]


def table(cases):
    shutil.copyfile(REAL, PLAIN)
    Path(PLAIN).chmod(0o755)
    for case in cases:
        Path(PATH).unlink(missing_ok=True)
        write(case)
        real, ours = commands(case)
        yield [*tried(real, case), *tried(ours, case)]


# --- rules that nobody would write -----------------------------------------------------------------------

PIECES = (
    *(b"allow br0", b"deny br0", b"allow all", b"deny all", b"allow br1", b"include /etc/qemu/more", b"include /none"),
    *(
        b"allow",
        b"deny",
        b"include",
        b"br0",
        b"all",
        b"#",
        b" ",
        b"  ",
        b"\t",
        b"\n",
        b"\n",
        b"\n",
        b"\r",
        b"\f",
        b"\v",
    ),
    *(b"\0", b"x", b"\xff", b"0123456789abcde", b"0123456789abcdef", b"#" * 4090, b" " * 4085, b"\xc2\xa0"),
)


def rules(number):
    dice = random.Random(number)
    return b"".join(dice.choice(PIECES) for _ in range(dice.randint(1, 9)))


def verdicts(count):
    """File of rules, that one's verdict, ours; on a bridge that is not there, for whoever is let go on to look."""
    warnings.simplefilter("ignore")
    for number in range(count):
        text, more = rules(2 * number), rules(2 * number + 1)
        Path(PATH).write_bytes(text)
        Path("/etc/qemu/more").write_bytes(more.replace(b"include /etc/qemu/more", b"include /none"))
        told = subprocess.run([REAL, "--br=br0", "--fd=0"], **TOLD).stderr
        try:
            said = "go on" if check_acl("br0") is None else ""
        except AclRefused as error:
            said = str(error)
        yield [text.decode("latin-1"), more.decode("latin-1"), verdict(told), verdict(said)]


def verdict(said):
    return DENIED if DENIED in said else UNUSABLE if UNUSABLE in said else "allowed"


if __name__ == "__main__":
    found = verdicts(int(sys.argv[1])) if sys.argv[1:] else table(json.load(sys.stdin))
    json.dump(list(found), sys.stdout)
