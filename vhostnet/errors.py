"""The exception tree, and the one table that turns an errno into what it means here.

VhostnetError
+-- SpecError (ValueError)        what was asked cannot be meant
+-- NicClosed (ValueError)        a Nic that no longer owns its fds was used
+-- PoolClosed (ValueError)       likewise a NicPool
+-- HandoverError (ConnectionError)  NICs that did not pass from one process to another
+-- EngineUnavailable (ImportError)
+-- QemuRefused                   what a QEMU that runs refused: command, error_class, alias, remedy
+-- QemuGone (ConnectionError)    it ended, or closed its monitor
+-- HostError (OSError)           what the host refused: errno, act, call, ifname, queue, remedy
    +-- NotPermitted (PermissionError)
    |   +-- PolicyRefused                  rule
    +-- NameBusy                           holders
    |   +-- FlagMismatch                   asked, found
    +-- ResourceExhausted                  needed, allowed
    +-- NoSuchBridge    +-- NotABridge     +-- BridgeFull      +-- NoSuchLink
    +-- QueueLimit      +-- DeviceGone     +-- VhostUnavailable
    +-- Unsupported
"""

import errno as _errno
import os
from typing import NamedTuple


class VhostnetError(Exception):
    """Root of everything this package raises on purpose; never raised itself."""


class VhostnetWarning(UserWarning):
    """What was asked is legal, but libvirt, the kernel or QEMU will not give all of it."""


class NicClosed(VhostnetError, ValueError):
    """The Nic was closed or its fds were given away; it has nothing left to act on."""


class EngineUnavailable(VhostnetError, ImportError):
    """The engine that was asked for by name cannot be loaded here."""


class PoolClosed(VhostnetError, ValueError):
    """The NicPool was closed, or this process is a forked child and the pool its parent's."""


class HandoverError(VhostnetError, ConnectionError):
    """NICs did not pass to another process, or what came is not what was said: whoever had them has them still."""


class QemuRefused(VhostnetError):
    """A QEMU that runs refused a QMP command, or its guest did. What was done before that is undone.

    ``problem`` is QEMU's word (``desc``), ``error_class`` QMP's class of it (``"GenericError"``), ``command`` the one
    that was refused, ``alias`` the device's id, ``remedy`` what to do about it. ``undoing`` is what was refused while
    the rest was being undone, None as a rule.
    """

    undoing: Exception | None = None

    def __init__(
        self, problem: str, *, command: str, error_class: str = "", alias: str | None = None, remedy: str = ""
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.command = command
        self.error_class = error_class
        self.alias = alias
        self.remedy = remedy

    def __str__(self) -> str:
        nic = f" of {self.alias}" if self.alias else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        undoing = f"; while undoing it: {self.undoing}" if self.undoing else ""
        return f"QEMU, {self.command}{nic}: {self.problem}{remedy}{undoing}"


class QemuGone(VhostnetError, ConnectionError):
    """There is no QEMU behind a monitor, or no longer: whatever it had of a NIC has gone with it."""


class SpecError(VhostnetError, ValueError):
    """What was asked for cannot be meant, or is not supported.

    ``problem`` goes on from the place: "<mtu size='9'>" "is not allowed"; ``expected`` says what would be right.
    ``element`` and ``line`` are None when the value did not come from XML; ``attribute`` is then
    the name of the Python argument.
    """

    def __init__(
        self,
        problem: str,
        *,
        element: str | None = None,
        attribute: str | None = None,
        line: int | None = None,
        value: object = None,
        expected: str = "",
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.element = element
        self.attribute = attribute
        self.line = line
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        place = _place(self.element, self.attribute, self.value)
        line = f"line {self.line}: " if self.line else ""
        expected = f"; expected {self.expected}" if self.expected else ""
        return f"{line}{place}{' ' if place else ''}{self.problem}{expected}"


def _place(element: str | None, attribute: str | None, value: object) -> str:
    """``<driver queues='0'>`` or ``queues=0``; none of the three can forge a log line."""
    element, attribute = _shown(element), _shown(attribute)
    shown = "" if value is None else repr(value)
    if element and attribute:
        return f"<{element} {attribute}={shown}>"
    if element:
        return f"<{element}>{shown}"
    return f"{attribute}={shown}" if attribute and shown else attribute or ""


def _shown(name: str | None) -> str | None:
    """As it is, where it can be seen: a namespace is part of a name, and that can be any text."""
    return name if name is None or name.isprintable() else repr(name)


class HostError(VhostnetError, OSError):
    """The kernel or this host refused. Nothing of what the failed call made is left behind.

    ``errno`` is the kernel's; ``act`` the step of the Program (``"TAP_OPEN"``), ``call`` the kernel
    call inside it (``"TUNSETIFF"``), ``ifname`` the NIC, ``queue`` its queue (None where the act is
    not about one queue), ``remedy`` what to do about it. ``undoing`` is what was refused while the rest was
    being undone, None as a rule; what could not be deleted then was closed.
    """

    undoing: "HostError | None" = None

    def __init__(
        self,
        errno: int,
        problem: str = "",
        *,
        act: str | None = None,
        call: str | None = None,
        ifname: str | None = None,
        queue: int | None = None,
        remedy: str = "",
    ) -> None:
        super().__init__(errno, problem or os.strerror(errno))
        self.act = act
        self.call = call
        self.ifname = ifname
        self.queue = queue
        self.remedy = remedy

    def __str__(self) -> str:
        where = " ".join(part for part in (self.act, self.call and f"({self.call})") if part)
        nic = f" of {self.ifname}" if self.ifname else ""
        queue = f", queue {self.queue}" if self.queue is not None else ""
        what = f"{where}{nic}{queue}".strip()
        name = _errno.errorcode.get(self.errno or 0, str(self.errno))
        remedy = f"; {self.remedy}" if self.remedy else ""
        undoing = f"; while undoing it: {self.undoing}" if self.undoing else ""
        return f"{what}{': ' if what else ''}{self.strerror} ({name}){remedy}{undoing}"


class NotPermitted(HostError, PermissionError):
    """A capability or the access to a device node is missing."""


class PolicyRefused(NotPermitted):
    """A broker's policy does not allow it: ``rule`` is the name of the one that says so, None where none is for us."""

    def __init__(self, problem: str, *, rule: str | None, ifname: str | None = None) -> None:
        super().__init__(_errno.EACCES, problem, act="POLICY", ifname=ifname, remedy=_POLICY)
        self.rule = rule


class Holder(NamedTuple):
    """A process that has a TAP open."""

    pid: int
    command: str


class NameBusy(HostError):
    """The interface name is taken, by a link or by the alternative name of one.

    ``holders`` are the processes that have it open, as far as /proc tells.
    """

    holders: tuple[Holder, ...] = ()


class FlagMismatch(NameBusy):
    """A TUN or TAP device of that name exists, with other flags: ``found``, where ``asked`` was asked for."""

    asked: tuple[str, ...] = ()
    found: tuple[str, ...] = ()


class NoSuchBridge(HostError):
    """No link of the name the spec gives as its bridge."""


class NoSuchTap(HostError):
    """No link of the name of a TAP that is to be there (managed='no')."""


class NoSuchLink(HostError):
    """No link of the name that a macvtap is to be on."""


class NotABridge(HostError):
    """The link the spec names as its bridge is of another kind."""


class BridgeFull(HostError):
    """The bridge has its 1023 ports (the kernel's BR_MAX_PORTS)."""


class QueueLimit(HostError):
    """More than the kernel's 256 queues."""


class ResourceExhausted(HostError):
    """File descriptors or memory ran out.

    ``needed`` and ``allowed`` count fds, or bytes where it was memory; None where nobody tells.
    """

    needed: int | None = None
    allowed: int | None = None


class DeviceGone(HostError):
    """The TAP was deleted, or its network namespace destroyed, under us; or renamed while it was being made."""


class VhostUnavailable(HostError):
    """vhost-net was required and is not to be had."""


class Unsupported(HostError):
    """This kernel or host cannot do it at all."""


_POLICY = "ask for what is allowed, or whoever keeps the broker's policy"
_CAP = "needs CAP_NET_ADMIN in the user namespace that owns the network namespace (run as root, or grant it)"
_DEVICES = "the device is closed to this process: allow it in its device cgroup (systemd: DeviceAllow={subject} rw)"
_GONE = "the TAP was deleted or its namespace destroyed: open the NIC anew"
_RENAMED = "somebody renamed or deleted the TAP while it was made: open the NIC anew"
_NO_OVS = "start Open vSwitch (systemctl start openvswitch-switch); its socket may be elsewhere (OVS_RUNDIR=)"
_LACKS = (
    "this kernel lacks a part of it: load it (modprobe sch_htb for <inbound>, sch_ingress cls_u32 act_police for "
    "<outbound>, and of type direct the other way round), or leave <bandwidth> out"
)
_NOT_SHAPED = (
    "the kernel lacks a part of it: load it (modprobe sch_htb for <inbound>, sch_ingress act_police cls_matchall or "
    "cls_basic for <outbound>), or leave <bandwidth> out; ovs-vswitchd's log says what the kernel has said"
)
_FDS = "raise the limit on open files (ulimit -n, LimitNOFILE=); a NIC takes one fd a queue, two with vhost-net"

# (act, call or None for any, errno) -> (class, remedy); they are looked up in this order.
_MEANINGS: dict[tuple[str | None, int], tuple[type[HostError], str]] = {
    (None, _errno.EPERM): (NotPermitted, _CAP),
    (None, _errno.EACCES): (NotPermitted, "a security module (SELinux, AppArmor) forbids it: its log has the rule"),
    ("open", _errno.EPERM): (NotPermitted, _DEVICES),
    ("open", _errno.EACCES): (NotPermitted, "give this user read and write access to the device node"),
    ("socket", _errno.EAFNOSUPPORT): (Unsupported, "allow AF_NETLINK (systemd: RestrictAddressFamilies=AF_NETLINK)"),
    (None, _errno.EMFILE): (ResourceExhausted, _FDS),
    (None, _errno.ENFILE): (ResourceExhausted, "the whole system is out of files: raise fs.file-max"),
    (None, _errno.ENOMEM): (ResourceExhausted, "the kernel is out of memory for this NIC"),
    (None, _errno.ENOBUFS): (ResourceExhausted, "the kernel is out of socket buffers"),
    (None, _errno.EBADFD): (DeviceGone, _GONE),
    (None, _errno.ENODEV): (DeviceGone, _GONE),
    ("TAP_OPEN", _errno.EBUSY): (
        NameBusy,
        "the name is in use: choose another <target dev=>, or leave it out and one is generated",
    ),
    ("TAP_OPEN", _errno.EEXIST): (
        NameBusy,
        "every name of this template is taken: choose one with more room for digits",
    ),
    ("TAP_OPEN", _errno.EINVAL): (HostError, "the kernel refuses this name, or these flags: see vhostnet doctor"),
    ("TAP_OPEN", _errno.E2BIG): (QueueLimit, "the kernel gives a TAP at most 256 queues"),
    ("TAP_OPEN", _errno.ESTALE): (DeviceGone, _RENAMED),
    ("TAP_OPEN", _errno.ENOENT): (Unsupported, "no such device node: load the driver (modprobe tun)"),
    ("TAP_OPEN", _errno.ENODEV): (Unsupported, "the driver is not there: load it (modprobe tun)"),
    ("TAP_OPEN", _errno.ENXIO): (Unsupported, "the driver is not there: load it (modprobe tun)"),
    ("TAP_OPEN", _errno.ENOTTY): (Unsupported, "<backend tap=> is no TUN/TAP device; the usual one is /dev/net/tun"),
    ("VDPA_OPEN", _errno.ENOENT): (Unsupported, "no such device node: vdpa dev show says which there are"),
    ("VDPA_OPEN", _errno.EBUSY): (HostError, "another has it open: a vDPA device is for one QEMU at a time"),
    ("ADOPT", _errno.ENODEV): (NoSuchTap, "make it: ip tuntap add {subject} mode tap; or leave managed='no' out"),
    ("ADOPT", _errno.EBUSY): (NameBusy, "it has one queue, and that is in use: end who has it open"),
    ("ADOPT", _errno.EPERM): (
        NotPermitted,
        "it is another user's or group's, or nobody's: ip tuntap add {subject} mode tap user USER; or CAP_NET_ADMIN",
    ),
    ("MACVTAP", _errno.ENODEV): (NoSuchLink, "name a link that is there in <source dev=>: ip -br link"),
    ("MACVTAP", _errno.EEXIST): (
        NameBusy,
        "the name is in use: choose another <target dev=>, or leave it out and one is generated",
    ),
    ("MACVTAP", _errno.EBUSY): (
        HostError,
        "{subject} is a port of a bridge, and carries none: ip link set {subject} nomaster, or a NIC of type bridge",
    ),
    ("MACVTAP", _errno.EINVAL): (
        HostError,
        "lo carries none, and a link in mode passthrough one alone, which must be the first: name another link",
    ),
    ("MACVTAP", _errno.EOPNOTSUPP): (Unsupported, "this kernel has no macvtap: load it (modprobe macvtap)"),
    ("MACVTAP", _errno.EADDRNOTAVAIL): (HostError, "the kernel refuses this MAC as a link's address"),
    ("MACVTAP", _errno.ENODATA): (Unsupported, "the kernel did not say which device it is: see vhostnet doctor"),
    ("MACVTAP", _errno.ESTALE): (DeviceGone, "somebody deleted or moved the macvtap while it was made: open it anew"),
    ("mknod", _errno.EPERM): (NotPermitted, "its device node takes CAP_MKNOD, in the host's own user namespace"),
    ("mknod", _errno.EROFS): (HostError, "its device node needs a /dev that can be written to"),
    ("QDISC", _errno.ENOENT): (Unsupported, "this kernel has no noqueue qdisc to give: pass qdisc='default'"),
    ("LINK", _errno.EXFULL): (BridgeFull, "a Linux bridge takes at most 1023 ports: use another bridge"),
    ("LINK", _errno.EOPNOTSUPP): (NotABridge, "name a Linux bridge in <source bridge=>"),
    ("LINK", _errno.ENODEV): (NoSuchBridge, "make it: ip link add {subject} up type bridge"),
    ("LINK", _errno.EINVAL): (NoSuchBridge, "the bridge went away between the look-up and the join: make it again"),
    ("LINK", _errno.EADDRNOTAVAIL): (HostError, "the kernel refuses this MAC as a TAP's address"),
    ("UP", _errno.EADDRINUSE): (
        HostError,
        "the MAC {subject} is that of another macvtap on the same link, or of that link: choose another <mac address=>",
    ),
    ("VLAN_ADD", _errno.EOPNOTSUPP): (Unsupported, "turn it on: ip link set {subject} type bridge vlan_filtering 1"),
    ("COALESCE", _errno.EOPNOTSUPP): (Unsupported, "leave <coalesce> out: a TAP of this kernel cannot be told"),
    ("TC", _errno.ENOENT): (Unsupported, _LACKS),
    ("TC", _errno.EOPNOTSUPP): (Unsupported, _LACKS),
    ("TC", _errno.EEXIST): (HostError, "somebody else shapes this NIC: one of the two has to go (tc qdisc show)"),
    ("ALTNAME", _errno.EEXIST): (NameBusy, "the name is in use: choose another <target dev=>, or leave it out"),
    ("RENAME", _errno.EEXIST): (NameBusy, "the name is in use: choose another <target dev=>, or leave it out"),
    ("PLUG", _errno.ENOENT): (Unsupported, _NO_OVS),
    ("PLUG", _errno.ECONNREFUSED): (Unsupported, _NO_OVS),
    ("PLUG", _errno.ECONNRESET): (HostError, "it was restarted, or has failed: its log has why"),
    ("PLUG", _errno.EPIPE): (HostError, "it was restarted, or has failed: its log has why"),
    ("PLUG", _errno.EACCES): (NotPermitted, "the database's socket is open to root, as a rule"),
    ("PLUG", _errno.ENODEV): (NoSuchBridge, "make it: ovs-vsctl add-br {subject}"),
    ("PLUG", _errno.EEXIST): (
        NameBusy,
        "choose another <target dev=>; or, if nobody needs that one: ovs-vsctl del-port {subject}",
    ),
    ("PLUG", _errno.ETIMEDOUT): (HostError, "see to it that it runs: systemctl status openvswitch-switch"),
    ("PLUG", _errno.EIO): (HostError, "the switch must be in the network namespace of the NIC; its log says more"),
    ("PLUG", _errno.EOPNOTSUPP): (Unsupported, _NOT_SHAPED),
    ("REPLUG", _errno.ESTALE): (DeviceGone, "somebody took its port out: open the NIC anew"),
    ("SCRIPT", _errno.ENOENT): (HostError, "give its path in <script path=>, or have it in $PATH"),
    ("SCRIPT", _errno.EACCES): (NotPermitted, "make it executable: chmod +x"),
    ("SCRIPT", _errno.EPERM): (NotPermitted, "root must be able to give up its other capabilities (CAP_SETPCAP)"),
    ("SCRIPT", _errno.ENOEXEC): (HostError, "a script begins with #! and its interpreter"),
    ("SCRIPT", _errno.EIO): (HostError, "it has CAP_NET_ADMIN, and no other privilege of root"),
    ("SCRIPT", _errno.ETIMEDOUT): (HostError, "it has to end: what is to go on it starts in the background"),
    ("ADDRESS", _errno.EEXIST): (HostError, "it is there already"),
    ("ADDRESS", _errno.ENETUNREACH): (HostError, "the gateway must be in the network of one of the addresses"),
    ("ADDRESS", _errno.EHOSTUNREACH): (HostError, "the gateway must be in the network of one of the addresses"),
    ("FLOOR", _errno.EOPNOTSUPP): (
        Unsupported,
        "give its network one (<bandwidth><inbound average=>, which libvirt sets when it starts), or leave floor= out",
    ),
    ("FLOOR", _errno.ENOENT): (Unsupported, "this kernel lacks a part of it: modprobe cls_u32, or leave floor= out"),
    ("FLOOR", _errno.ENOSPC): (HostError, "ask for less in floor=, or give the network more in its <inbound average=>"),
    ("ATTACH", _errno.EINVAL): (DeviceGone, "these fds are not the queues of one multi-queue TAP any more"),
}

_VHOST_REMEDY = "load the driver (modprobe vhost_net), or do without: <driver name='qemu'/>, or vhost='auto'"


def host_error(
    errno: int, *, act: str, call: str | None, ifname: str | None, queue: int | None, subject: str = "", said: str = ""
) -> HostError:
    """The exception for a refused act: its class and remedy by act and errno.

    *subject* is what the act was about besides the NIC: a device's path, or a bridge's name; *said* are the kernel's
    own words.
    """
    likewise = {"ADOPT": "TAP_OPEN", "REPLUG": "PLUG", "REFLOOR": "FLOOR"}.get(act, act)
    rows = (_MEANINGS.get((key, errno)) for key in (act, call, likewise, None))
    kind, remedy = next(filter(None, rows), (HostError, ""))
    problem = os.strerror(errno)
    if act in ("VHOST_OPEN", "SELFTEST"):
        problem = vhost_problem(errno, call, subject)
        if kind not in (NotPermitted, ResourceExhausted):
            kind, remedy = VhostUnavailable, _VHOST_REMEDY
    elif call == "TUNSETIFF" and errno == _errno.EINVAL and queue:
        kind, remedy = DeviceGone, _RENAMED  # name and flags were good enough for the first one
    elif kind is NoSuchBridge and call == "RTM_NEWLINK" and errno == _errno.ENODEV:
        kind, remedy = DeviceGone, _GONE  # the bridge was found by then
    elif (kind is NoSuchBridge and errno == _errno.ENODEV) or kind in (NoSuchTap, NoSuchLink):
        problem = f"no link {subject!r} here"
    elif kind is NotABridge:
        problem = f"{subject!r} is not a Linux bridge"
    elif call == "IFLA_BR_VLAN_FILTERING":
        problem = f"bridge {subject!r} does not heed VLANs, and every port would be in all of them"
    elif call == "open":
        problem = f"{subject}: {problem}"
    elif said:
        problem = said.rstrip(".")  # the errno is the same for whatever is missing
    remedy = remedy.format(subject=subject)
    return kind(errno, problem, act=act, call=call, ifname=ifname, queue=queue, remedy=remedy)


def vhost_problem(errno: int, call: str | None, path: str) -> str:
    """Why a vhost path would not do, in words: it did not open, or it is something else."""
    if call == "VHOST_GET_FEATURES" and errno == _errno.EPROTONOSUPPORT:
        return f"{path} lacks the features MRG_RXBUF and VERSION_1"
    if call == "VHOST_GET_FEATURES":
        return f"{path} is not a vhost-net device ({os.strerror(errno)})"
    return f"{path}: {os.strerror(errno)}"
