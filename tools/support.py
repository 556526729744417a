"""support.py [--check]: what becomes of every element of libvirt's <interface>, from the tables that it is read by.

Writes the tables of docs/libvirt.md, between their marks; with --check it says whether they are as they should be.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vhostnet.spec.interface import TAP_TYPES, TAPLESS_TYPES
from vhostnet.text import elements, networks, tapless

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "libvirt.md"

# Where we do otherwise than libvirt, or what it does differs from one to the next; and why.
OTHERWISE: Final = {
    "interface": "what a network is is the caller's to tell ([below](#networks)): there is no daemon to ask. "
    "trustGuestRxFilters lets all multicast into a macvtap from the first; libvirt follows what its guest asks for, "
    "and the guest's MAC, by QEMU's events",
    "model": "none given is virtio, with a warning; libvirt's is rtl8139 on x86",
    "source": "of type direct the parent is left as it is, up or down (libvirt brings it up); in mode passthrough the "
    "kernel puts its MAC back when the macvtap goes, and no file is needed for that. macTableManager is heeded for "
    "type bridge, too, where libvirt heeds that of a network alone; with 'libvirt' the forwarding entry is static, and "
    "so stands before the port is up. A portgroup that the network does not have is an error; libvirt ignores it",
    "target": "a macvtap is named as a TAP is. A generated name (`vnet7`) is given anew, from a counter that begins "
    "anywhere. managed='no': what the last one left in the TAP (offloads, vnet_hdr) is reset, and its qdisc stays, "
    "where libvirt gives it noqueue; a TAP with multi_queue serves one queue, too; a macvtap's node is /dev/tap and "
    "its ifindex, as libvirt has it",
    "driver": "a QEMU that is started is asked for 256 of tx_queue_size on a TAP, with a warning: those from 8.1 on "
    "refuse more. In a domain that is not kvm vhost-net is not used, as in libvirt, and a warning says so",
    "backend": "the paths may not lead into /proc, or up. With type='passt' (types user and vhostuser) passt is not "
    "started: whoever runs the VM does, and [gives its socket](qemu.md#passt). logFile, hostname, fqdn and "
    "`<source dev=>` are for them, too, and a warning says so",
    "ip": "of type user, and with passt of vhostuser; with passt it is checked, and for whoever starts that",
    "portForward": "with passt it is checked, and for whoever starts that: a warning says so. An address is written in "
    "full, where libvirt takes 1.2 for 1.0.0.2",
    "bandwidth": "it stands before the NIC is up; libvirt makes it after, by running tc. Its fw filter is left out: it "
    "leads what is marked 1 to a class that is not there, and so to the one that all goes to. Where only what a TAP's "
    "guest sends, or a macvtap's gets, is limited, or an average is 0, the root is noqueue, and not 256 qdiscs or "
    "fq_codel. SFQ's quantum is the MTU that is asked for; libvirt's is that of before. managed='no' is an error; "
    "libvirt shapes that TAP. On Open vSwitch it is told to the switch, as by libvirt "
    "([more](slow.md#their-bandwidth)), and more than 4294967 kB/s is an error; the switch up to 3.1 makes another "
    "number of it",
    "bandwidth/inbound": "a floor is for every protocol, and out of the network's average ([more](order.md#a-floor)); "
    "libvirt's is for IPv4, and where there is a peak out of that. A burst of more than 274 s is an error; in libvirt "
    "it becomes another. A kernel without SFQ leaves the NIC a plain FIFO; in libvirt it does not start. On Open "
    "vSwitch the average is the most where no peak is given; with libvirt the TAP's nominal speed is",
    "bandwidth/outbound": "an average of 0 is an error; libvirt makes a policer of it that drops nothing. A burst "
    "of more than 274 s is an error; in libvirt it becomes another. On Open vSwitch one that is not given is a "
    "second's, as elsewhere; with libvirt it is the switch's own, 8000 kbit",
    "link": "no argument tells QEMU: a warning has the QMP command that does, and `Nic.update()` returns it",
    "mtu": "set before the port joins, so that the bridge's does not follow it; libvirt sets it after. Of "
    "type vhostuser libvirt up to 12.8 reads it, and then does not start the domain. With passt whoever starts that "
    "tells it, too (`--mtu`)",
    "port": "in the message that brings the port up; libvirt writes it to sysfs after it has joined",
    "vlan": "an error on a bridge that does not filter; libvirt has it for a Linux bridge since 11.0, and says nothing "
    "of such a one",
    "coalesce/rx/frames": "the kernel makes 64 of more; so it does for libvirt",
    "downscript": "run while the TAP is still there; libvirt runs it when it has gone",
    "script": "with CAP_NET_ADMIN alone, where libvirt's has all of root's; within 60 s, and with the MTU set; an "
    "absolute path, or a name to look for in $PATH",
    "source/ip": "(of type ethernet) set when the TAP is up; libvirt does so when the guest's CPUs start. A family "
    "that is none is an error; libvirt passes over it",
    "source/route": "one without an address leads everywhere, as in libvirt 12.8; 11.3 refuses it. A netmask with a "
    "hole is an error; libvirt says so when the guest's CPUs are to start",
    "vlan/tag": "0 and 4095 are Open vSwitch's alone: for a Linux bridge an error when the NIC is planned, where the "
    "kernel would refuse it; libvirt finds out when it starts the domain. One id twice is an error; libvirt reads it",
    "virtualport": "one transaction for a batch. A port of that name that is not ours is an error; libvirt takes one "
    "that is on the bridge. A native VLAN alone is the only one of its trunk; libvirt's has all others, too. Beside "
    "libvirt's columns stands our mark, and the TAP has noqueue, where libvirt leaves it 256 qdiscs if it has queues. "
    "Of another type on a Linux bridge libvirt leaves the NIC on none, and here it is an error. One that is empty is "
    "none; libvirt refuses it",
    "alias": "one that libvirt would ignore is a warning, with strict an error",
    "address": "none given is left to QEMU (in `exec`, beside what the command line has); libvirt gives every device "
    "its place",
}


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Element, what is read of it, what is ignored with a warning, and what is refused with what to do instead."""
    for path in sorted(_paths()):
        taken = sorted(every_read().get(path, ()))
        ignored = [name for where, name in elements.WITHOUT_EFFECT if where == path]
        for (where, name), why in elements.IGNORED_ATTRIBUTES.items():
            if where == path:
                ignored.append(f"{name} ({why})" if name in taken else name)
        if path in elements.IGNORED_ELEMENTS:
            but = ", and for any other ignored" if path in every_read() else ""
            ignored = [f"{elements.IGNORED_ELEMENTS[path]}{but}"]
        refused = [f"{name}: {way}" for (where, name), way in elements.UNSUPPORTED_ATTRIBUTES.items() if where == path]
        if path in elements.UNSUPPORTED_ELEMENTS:
            refused = [elements.UNSUPPORTED_ELEMENTS[path]]
        if path == "virtualport":
            refused = [f"type {kind}: {way}" for kind, way in elements.UNSUPPORTED_PORTS.items()]
        if path == "virtualport/parameters":
            taken = [name for name in taken if name not in elements.OTHER_PARAMETERS]
            refused = [f"{', '.join(elements.OTHER_PARAMETERS)}: they are for other types"]
        yield path, ", ".join(taken), ", ".join(sorted(ignored)), "; ".join(refused)


def _paths() -> set[str]:
    tables = (elements.IGNORED_ATTRIBUTES, elements.WITHOUT_EFFECT, elements.UNSUPPORTED_ATTRIBUTES)
    named = {path for table in tables for path, _ in table}
    return named | set(every_read()) | set(elements.IGNORED_ELEMENTS) | set(elements.UNSUPPORTED_ELEMENTS)


def every_read() -> dict[str, set[str]]:
    """Element -> the attributes that are read of it, for whatever type."""
    found: dict[str, set[str]] = {}
    ours = elements.KNOWN, elements.VLAN, elements.VIRTUALPORT, elements.HOST_IPS, elements.BANDWIDTH
    others = *tapless.OWN.values(), *tapless.PASST.values(), elements.PORT_FORWARD
    maps: list[Mapping[str, Mapping[str, Any]]] = [*ours, *others]
    for known in maps:
        for path, attributes in known.items():
            found.setdefault(path, set()).update(attributes)
    found["tune/sndbuf"].add("(its text)")
    found["address"] = {f"type='{kind}'" for kind in elements.ADDRESSES}
    found["address/zpci"] = set(elements.ZPCI[1])
    return found


def element_table() -> str:
    lines = ["| element | read | ignored, with a warning | refused, and what to do instead | otherwise than libvirt |"]
    lines.append("|---|---|---|---|---|")
    for path, taken, ignored, refused in rows():
        cells = [f"`{path}`", taken, ignored, refused, OTHERWISE.get(path, "")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# What becomes of each element of a <network>, beside what is read of it.
GIVES: Final = {
    "name": "what `<source network=>` calls it",
    "forward": "nat, route, open or none: its NICs are on the bridge that libvirt makes for it; bridge: on one that is "
    "there. With devices instead of a bridge they are of type direct, each on the one that fewest of its document are "
    "on (libvirt counts those of all its domains). With mode hostdev they would be of type hostdev, which is refused",
    "bridge": "the NIC's. One that is not named yet (`virbr%d`) is an error: a running network's document has the name",
    "mtu": "nothing to do: the bridge has it, and the NIC has the bridge's; the guest is not told, as with libvirt",
    "port": "for a NIC that does not say itself; a group cannot say it",
    "vlan": "for a NIC that does not say itself, nor its group; refused where libvirt refuses it, with modes nat, "
    "route, open, none, vepa and private; with devices in mode bridge, too, which libvirt reads",
    "virtualport": "merged with the NIC's own and its group's, and where they differ an error: of type openvswitch, "
    "with mode bridge",
    "portgroup": "of a NIC that names it, and the default one of those that name none: its vlan, its bandwidth "
    "(with devices an error, as in libvirt; libvirt up to 11.3 refuses it on a bridge that it has not made, too), and "
    "its virtualport, which may leave the type to the network",
}


def network_table() -> str:
    lines = ["| element | read | what a NIC has of it |", "|---|---|---|"]
    for path, known in networks.READ.items():
        read = ", ".join(sorted(name for name, reader in known.items() if reader))
        if path in GIVES:
            lines.append(f"| `{path}` | {read or '(its text)'} | {GIVES[path]} |")
    for path, read in (("vlan", "trunk, tag"), ("virtualport", "type, parameters"), ("portgroup", "name, default")):
        lines.append(f"| `{path}` | {read} | {GIVES[path]} |")
    others = ", ".join(f"`{path}`" for path in networks.MAKERS)
    nothing = "nothing: they are the business of whoever makes the bridge; a NIC's floor is out of its bandwidth"
    lines.append(f"| {others} | | {nothing} |")
    return "\n".join(lines)


def type_table() -> str:
    lines = ["| type | |", "|---|---|"]
    lines += [f"| {kind} | {'a macvtap' if kind == 'direct' else 'a TAP'} |" for kind in TAP_TYPES]
    lines += [f"| {kind} | QEMU's arguments alone |" for kind in TAPLESS_TYPES]
    lines += [f"| {kind} | refused: {way} |" for kind, way in elements.UNSUPPORTED_TYPES.items()]
    return "\n".join(lines)


def page(text: str) -> str:
    """*text* with the tables of today."""
    for name, table in (("types", type_table()), ("elements", element_table()), ("networks", network_table())):
        head, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition(f"<!-- /{name} -->")
        text = f"{head}{mark}{table}\n{end}{tail}"
    return text


def main() -> int:
    there = PAGE.read_text()
    if "--check" in sys.argv[1:]:
        return int(page(there) != there)
    PAGE.write_text(page(there))
    return 0


if __name__ == "__main__":
    sys.exit(main())
