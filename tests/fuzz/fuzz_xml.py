"""Any bytes at all: a spec or a SpecError, and from a spec arguments that read back as what it says.

python tests/fuzz/fuzz_xml.py CORPUS... -dict=tests/fuzz/xml.dict
"""

import re
import sys
import warnings
from pathlib import Path
from xml.sax.saxutils import quoteattr

import atheris

sys.path.append(str(Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(include=["vhostnet"]):
    import vhostnet
    import vhostnet.program.plan
    import vhostnet.qemu.argv
    import vhostnet.spec.interface
    import vhostnet.spec.network
    import vhostnet.text.networks
    import vhostnet.text.parse
    import vhostnet.text.plug

import expected
from qemuopts import parse_argv

UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
FEATURES = vhostnet.program.rows.Features(0xFFFF, True)


def check_arguments(spec: vhostnet.InterfaceSpec, alias: str) -> None:
    fds = {}
    if spec.tap:
        fds["tap_fds"] = list(range(3, 3 + spec.queues))
        fds["vhost_fds"] = list(range(300, 300 + spec.queues)) if spec.virtio else []
    elif spec.type == "vdpa":
        fds["vdpa_fd"] = 3
    elif spec.passt:
        fds["passt_socket"] = "/run/a,b=c"
    for dialect in vhostnet.qemu.argv.DIALECTS:
        argv = vhostnet.qemu_argv(spec, **fds, alias=alias, dialect=dialect)
        assert parse_argv(argv) == expected.all_of(spec, **fds, alias=alias, dialect=dialect), argv
        assert not UNSEEN.search("".join(argv)), argv
        assert ID.fullmatch(str(parse_argv(argv)[-1]["id"])), argv


NIC = "<interface type='network'><model type='virtio'/><source network='n'{}/></interface>"


def check_network(data: bytes) -> None:
    """A NIC of each of its groups, and one that names none."""
    network = vhostnet.parse_network(data)
    for group in ("", *(f" portgroup={quoteattr(group.name)}" for group in network.portgroups)):
        try:
            spec = vhostnet.parse_interface(NIC.format(group), networks={"n": network})
        except vhostnet.SpecError as error:
            assert str(error).isprintable(), error
        else:
            assert spec.bridge == network.bridge
            check_arguments(spec, "net0")


def check(data: bytes) -> None:
    if b"<network" in data:
        check_network(data)
        return
    specs = vhostnet.parse_any(data)
    for spec, alias in zip(specs, vhostnet.assign_aliases(specs), strict=True):
        check_arguments(spec, alias)
    made = [spec for spec in specs if spec.tap]
    program = vhostnet.program.plan.plan(made, [f"vn{number}" for number in range(len(made))], FEATURES)
    assert not UNSEEN.search(str(program).replace("\n", "")), program


def one_input(data: bytes) -> None:
    try:
        check(data)
    except vhostnet.SpecError as error:
        assert str(error).isprintable(), error


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
