"""What a command line tells QEMU of its NICs, such that two of them can be compared."""

import itertools

from qemuopts import parse_argv

import vhostnet

PARTS = ("-chardev", "-netdev", "-device")
FDS = ("fd", "fds", "vhostfd", "vhostfds")


class AnyNetwork(dict):
    """Each network is of the bridge br0, with the groups that the suite's domains name; its documents lie elsewhere."""

    def __contains__(self, name):
        return True

    def __missing__(self, name):
        groups = tuple(vhostnet.PortGroup(name=group) for group in ("bob", "sam"))
        return vhostnet.Network(name=name, forward="bridge", bridge="br0", portgroups=groups)


def nics(words):
    """Each NIC of a command line: what it is made of, by option, and for each part whether it is JSON."""
    read = [
        (pair[0], pair[1][:1] == "{", parse_argv(pair)[0]) for pair in itertools.pairwise(words) if pair[0] in PARTS
    ]
    netdevs = {told["id"]: (form, told) for option, form, told in read if option == "-netdev"}
    found = []
    for device in (told for option, _, told in read if option == "-device" and told.get("netdev") in netdevs):
        newer, netdev = netdevs[device["netdev"]]  # a chardev is never JSON, and is as new as its netdev
        ids = (device["id"], netdev["id"], netdev.get("chardev", "none"))
        its_own = (part for part in read if part[2].get("id") in ids or part[2].get("target") == device["id"])
        found.append(
            [(option, newer if option == "-chardev" else form, comparable(told)) for option, form, told in its_own]
        )
    return found


def socket_of(parts):
    """The path of the socket that a NIC's first part leads to."""
    told = parts[0][2]
    return told["addr"]["path"] if "addr" in told else told["path"]


def written(spec, first_fd, dialect, **fds):
    """One of ours likewise."""
    if spec.tap:
        fds["tap_fds"] = range(first_fd, first_fd + spec.queues)
        if spec.virtio and spec.vhost != "off":
            fds["vhost_fds"] = range(first_fd + 500, first_fd + 500 + spec.queues)
    elif spec.type == "vdpa":
        fds["vdpa_fd"] = first_fd
    (nic,) = nics(vhostnet.qemu_argv(spec, **fds, dialect=dialect))
    return nic


def comparable(told):
    """Without ids; of fds how many there are."""
    kept = {key: value for key, value in told.items() if key not in ("id", "netdev", "chardev", "vhostdev", "target")}
    return {key: value.count(":") + 1 if key in FDS else value for key, value in kept.items()}


def without(parts, names):
    return [(option, {key: told[key] for key in told if key not in names}) for option, _, told in parts]
