"""What real libvirt and we are both asked: NICs in domains of ours.

A case more is a line more, in the table ``taken`` or in ``refused``; their networks are in ``networks``. PAIRS are
made: every two values of every two settings come together in one of them, as far as libvirt has them together.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

BRIDGE, FILTERING = "br0", "br1"  # the second heeds VLANs, where the kernel can
SWITCHED = "ovs0"  # Open vSwitch's
SCRIPTS = "/run/judged"
SOURCES = {"bridge": f"<source bridge='{BRIDGE}'/>", "network": "<source network='lan'/>"}
ROM = "/run/nic.rom"


class Nic(NamedTuple):
    """One <interface>, by its name here; its own attributes come first in what is ``inside``."""

    name: str
    machine: str
    type: str
    inside: str = ""

    def xml(self, n: int) -> str:
        """As the NIC number *n* of its domain, a tag a line."""
        inside = self.inside.replace("{n}", str(n)).replace("{slot}", f"0x{n + 4:02x}").replace("> <", ">\n<")
        attributes, tag, rest = inside.partition("<")
        inside = tag + rest
        lines = [f"<interface type='{self.type}' {attributes}".rstrip() + ">"]
        if "<mac" not in inside:
            lines.append(f"<mac address='52:54:00:00:00:{n:02x}'/>")
        if self.type in SOURCES and "<source" not in inside:
            lines.append(SOURCES[self.type])
        return "\n".join((*lines, *inside.splitlines(), "</interface>"))


# --- domains ---------------------------------------------------------------------------------------------


class Machine(NamedTuple):
    """What a domain is besides its NICs.

    Its guest ``runs`` where libvirt does things no sooner; the bridges of its NICs heed VLANs (``filtering``), its NICs
    have bandwidth (``shaped``).
    """

    arch: str
    machine: str
    memory: str = ""
    boot: str = ""
    runs: bool = False
    filtering: bool = False
    shaped: bool = False


MACHINES = {
    "pc": Machine("x86_64", "pc"),
    "q35": Machine("x86_64", "q35"),
    "virt": Machine("aarch64", "virt"),
    "s390x": Machine("s390x", "s390-ccw-virtio"),
    "pseries": Machine("ppc64", "pseries"),
    "shared": Machine("x86_64", "pc", "<source type='memfd'/><access mode='shared'/>"),
    "booting": Machine("x86_64", "pc", boot="<boot dev='hd'/><boot dev='network'/>"),
    "runs": Machine("x86_64", "pc", runs=True),
    "shaped": Machine("x86_64", "pc", shaped=True),
    "limited": Machine("x86_64", "pc", runs=True, shaped=True),
    "vlan": Machine("x86_64", "pc", filtering=True),
    "table": Machine("x86_64", "pc", runs=True, filtering=True),
    "alone": Machine("x86_64", "pc"),
}
MOST = 16  # NICs of a domain: PCI bus 0 has room for them
UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"  # of every domain: there is one at a time


def machine_of(domain: str) -> Machine:
    """A domain is called by it."""
    return MACHINES[domain.partition("-")[0]]


def domain(name: str, machine: Machine, interfaces: list[str]) -> str:
    """The XML of one with these NICs."""
    return f"""\
<domain type='qemu'>
<name>{name}</name>
<uuid>{UUID}</uuid>
<memory unit='MiB'>128</memory>
<memoryBacking>{machine.memory}</memoryBacking>
<os><type arch='{machine.arch}' machine='{machine.machine}'>hvm</type>{machine.boot}</os>
<devices>
<emulator>/usr/bin/qemu-system-{machine.arch}</emulator>
<memballoon model='none'/>
{chr(10).join(interfaces)}
</devices>
</domain>
"""


# --- made: every two values of every two settings --------------------------------------------------------

SWITCH = ("", "on", "off")
DRIVER = {
    "name": ("", "qemu", "vhost"),
    "queues": ("", "1", "2", "8"),
    "rx_queue_size": ("", "256", "1024"),
    "tx_queue_size": ("", "256"),
    "txmode": ("", "iothread", "timer"),
    **dict.fromkeys(("ioeventfd", "event_idx", "iommu", "ats", "packed", "page_per_vq"), SWITCH),
    **dict.fromkeys(("rss", "rss_hash_report"), SWITCH),
}
HOST = dict.fromkeys(("csum", "gso", "tso4", "tso6", "ecn", "ufo", "mrg_rxbuf"), SWITCH)
GUEST = dict.fromkeys(("csum", "tso4", "tso6", "ecn", "ufo"), SWITCH)
FRAMES = "<coalesce><rx><frames max='{}'/></rx></coalesce>"
PLACE = "<address type='pci' domain='0x0000' bus='0x00' slot='{slot}' function='0x0'"
ELEMENTS = {
    "target": ("", "<target dev='tap-{n}'/>", "<target dev='vnet{n}'/>"),
    "backend": ("", "<backend tap='/dev/net/tun' vhost='/dev/vhost-net'/>"),
    "tune": ("", "<tune><sndbuf>1600</sndbuf></tune>", "<tune><sndbuf>0</sndbuf></tune>"),
    "mtu": ("", "<mtu size='1400'/>", "<mtu size='9000'/>"),
    "coalesce": ("", FRAMES.format(7), FRAMES.format(100)),
    "port": ("", "<port isolated='yes'/>", "<port isolated='no'/>"),
    "link": ("", "<link state='up'/>", "<link state='down'/>"),
    "alias": ("", "<alias name='ua-nic-{n}'/>"),
    "boot": ("", "<boot order='1{n}'/>"),
    "rom": ("", "<rom bar='on'/>", "<rom bar='off'/>", "<rom enabled='no'/>", f"<rom file='{ROM}'/>"),
    "acpi": ("", "<acpi index='1{n}'/>"),
    "address": ("", f"{PLACE}/>", f"{PLACE} multifunction='on'/>", f"{PLACE} multifunction='off'/>"),
}
SETTINGS = {
    "machine": ("pc", "q35", "virt"),
    "type": ("bridge", "network", "ethernet"),
    "model": ("virtio", "virtio-transitional", "virtio-non-transitional"),
    **ELEMENTS,
    **{f"driver {name}": values for name, values in DRIVER.items()},
    **{f"host {name}": values for name, values in HOST.items()},
    **{f"guest {name}": values for name, values in GUEST.items()},
}
Setting = tuple[str, str]


def together(one: Setting, other: Setting) -> bool:
    """Whether libvirt and QEMU have them in one NIC."""
    both = {one, other}
    if ("type", "ethernet") in both:
        return not any(name in ("coalesce", "port") and value for name, value in both)
    if ("driver iommu", "on") in both:  # which a device that can be legacy does not have
        return not both & {("model", "virtio"), ("model", "virtio-transitional")}
    return True


def made() -> Iterator[dict[str, str]]:
    """NICs, until every two values of every two settings were in one."""
    every = [[(name, value) for value in values] for name, values in SETTINGS.items()]
    left = {
        frozenset(pair)
        for ones, others in combinations(every, 2)
        for pair in ((one, other) for one in ones for other in others)
        if together(*pair)
    }
    while left:
        nic = sorted(min(left, key=sorted))
        for values in every:
            if values[0][0] not in dict(nic):
                possible = [value for value in values if all(together(value, chosen) for chosen in nic)]
                nic.append(max(possible, key=lambda value: sum({value, chosen} in left for chosen in nic)))
        left -= {frozenset(pair) for pair in combinations(nic, 2)}
        yield dict(nic)


def pair(number: int, settings: dict[str, str]) -> Nic:
    """One of those as a Nic."""

    def attributes(kind: str) -> str:
        told = ((name.removeprefix(kind), value) for name, value in settings.items() if name.startswith(kind) and value)
        return "".join(f" {name}='{value}'" for name, value in told)

    parts = [f"<model type='{settings['model']}'/>", *(settings[name] for name in ELEMENTS if settings[name])]
    halves = f"<host{attributes('host ')}/> <guest{attributes('guest ')}/>"
    parts.append(f"<driver{attributes('driver ')}> {halves} </driver>")
    return Nic(f"pair-{number}", settings["machine"], settings["type"], " ".join(parts))


# --- and told --------------------------------------------------------------------------------------------


class Refused(NamedTuple):
    """A NIC that neither takes, and the element that is to blame."""

    nic: Nic
    element: str


def _rows(name: str, columns: int) -> Iterator[list[str]]:
    for line in (Path(__file__).parent / name).read_text().splitlines():
        if line and not line.startswith("#"):
            yield line.split(None, columns - 1)


def network(name: str, inside: str) -> str:
    """The XML of one, a tag a line."""
    return f"<network>\n<name>{name}</name>\n{inside}\n</network>".replace("> <", ">\n<")


def _networks() -> Iterator[tuple[str, str]]:
    for name, inside in _rows("networks", 2):
        yield name, network(name, inside)


def _refused() -> Iterator[Refused]:
    seen = Counter[str]()
    for element, *row in _rows("refused", 3):
        yield Refused(Nic(f"{element}-{seen[element]}", "shared", *row), element)
        seen[element] += 1


def _domains() -> Iterator[tuple[str, list[Nic]]]:
    for machine in MACHINES:
        every = [nic for nic in NICS if nic.machine == machine]
        most = 1 if machine == "alone" else MOST
        yield from ((f"{machine}-{first}", every[first : first + most]) for first in range(0, len(every), most))


PAIRS = [pair(number, settings) for number, settings in enumerate(made())]
NETWORKS = dict(_networks())
REFUSED_NETWORKS = [(element, network("refused", inside)) for element, inside in _rows("networks-refused", 2)]
NICS = [*PAIRS, *(Nic(*row) for row in _rows("taken", 4))]
DOMAINS = dict(_domains())
REFUSED = list(_refused())
