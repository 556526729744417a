"""The C core refuses every malformed Program with EINVAL before its first system call: one defect at a time."""

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TESTS, need

from vhostnet.program.parts import Op, TunFlag

BIG = 2**32 - 1  # a -1 that became unsigned
UNTOUCHED = -7
TAP = int(TunFlag.TAP | TunFlag.NO_PI)
OPTIONAL, NO_FLAG = 1, 4


def sound():
    """A Program without a defect, and all it points to: a new NIC on a bridge and one that is held, two queues each."""
    from vhostnet._vhostnet import ffi

    made = SimpleNamespace(ffi=ffi, path=ffi.new("char[]", b"/nowhere/at/all"))
    made.fds = ffi.new("int32_t[]", [UNTOUCHED] * 8)
    made.nics = ffi.new("struct vn_nic[2]")
    for number, nic in enumerate(made.nics):
        nic.name, nic.alias, nic.wish = b"new", b"mark", b"wish"
        nic.tap_path = nic.vhost_path = made.path
        nic.queues, nic.tun_flags, nic.bridge = 2, TAP, -1
        nic.tap_fds, nic.vhost_fds = made.fds + 4 * number, made.fds + 4 * number + 2
    made.new, made.held = made.nics[0], made.nics[1]
    made.new.bridge = 0
    made.held.held, made.held.n_tap, made.held.n_vhost, made.held.ifindex = 1, 2, 2, 1
    made.bridges = ffi.new("struct vn_bridge[]", [{"name": b"br0", "ifindex": 1}])
    made.bridge = made.bridges[0]
    ordered(made, [(Op.TAP_OPEN, 0), (Op.VHOST_OPEN, 0, OPTIONAL), (Op.LINK, 0), (Op.UP, 0), (Op.ATTACH, 1)])
    return made


def ordered(made, acts):
    """Give it these acts, each (op, row) or (op, row, flags)."""
    made.acts = made.ffi.new("struct vn_act[]", [tuple(map(int, act)) for act in acts])
    made.first, made.last = made.acts[0], made.acts[len(acts) - 1]
    sizes = 2, len(acts), 1
    made.program = made.ffi.new("struct vn_program *", (made.nics, made.acts, made.bridges, *sizes))


# Where the defect is, and its value.
FIELDS = [
    ("program", "nics", None),
    ("program", "acts", None),
    ("program", "bridges", None),
    ("program", "n_nics", 0),
    ("program", "n_nics", BIG),
    ("program", "n_acts", 0),
    ("program", "n_acts", BIG),
    ("program", "n_bridges", 0),  # and yet a NIC joins the first of them
    ("program", "n_bridges", BIG),
    ("bridge", "name", b"b" * 16),
    ("bridge", "ifindex", 2**31),
    *[(row, "name", value) for row in ("new", "held") for value in (b"", b"n" * 16)],
    *[(row, "wish", b"w" * 16) for row in ("new", "held")],
    *[(row, "alias", b"a" * 128) for row in ("new", "held")],
    *[(row, "queues", value) for row in ("new", "held") for value in (0, 257, BIG)],
    *[(row, "bridge", value) for row in ("new", "held") for value in (-2, -(2**31), 1, 2**31 - 1)],
    *[(row, path, None) for row in ("new", "held") for path in ("tap_path", "vhost_path", "tap_fds", "vhost_fds")],
    *[("new", "tun_flags", value) for value in (0, 0x0001, TAP | TunFlag.EXCL, TAP | 0x10000, BIG - TunFlag.EXCL)],
    *[("held", "n_tap", value) for value in (0, 3, BIG)],
    *[("held", "n_vhost", value) for value in (3, BIG)],
    *[("held", "ifindex", value) for value in (-1, -(2**31))],
    ("new", "adopted", 1),  # the acts make it
    ("new", "macvtap", 1),
    *[(row, "parent", b"p" * 16) for row in ("new", "held")],
    *[("direct", field, value) for field, value in (("macvtap", 0), ("parent", b""), ("set_mac", 0), ("adopted", 1))],
    *[("direct", "tun_flags", value) for value in (0, TAP | TunFlag.EXCL)],
    ("new", "held", 1),  # the acts are for a new one, which has no fds
    ("held", "held", 0),
    *[("persisted", field, value) for field in ("owner", "group") for value in (-2, -(2**63), 2**32 - 1, 2**63 - 1)],
    *[(row, field, 1) for row in ("new", "held") for field in ("rate", "ceil", "burst", "ceil_burst", "quantum")],
    *[
        (row, field, 1) for row in ("new", "held") for field in ("police_rate", "police_burst")
    ],  # one without the others
    *[
        ("limited", field, 0)
        for field in ("rate", "ceil", "burst", "ceil_burst", "quantum", "police_rate", "police_burst")
    ],
    *[(row, "n_vlans", value) for row in ("new", "held") for value in (1, 1025, BIG)],  # and there are none
    *[(act, "op", value) for act in ("first", "last") for value in (len(Op), BIG)],
    *[(act, "nic", value) for act in ("first", "last") for value in (2, BIG)],
    *[(act, "flags", value) for act in ("first", "last") for value in (OPTIONAL, NO_FLAG, 2**31)],
]

# Acts that are not for such a row, or for which it is too early or too late.
ORDERS = [
    *[[(op, 1)] for op in (Op.TAP_OPEN, Op.VHOST_OPEN, Op.SELFTEST)],
    *[[(Op.TAP_OPEN, 0), (op, 0)] for op in (Op.ATTACH, Op.DELETE, Op.DOWN, Op.UNFDB, Op.TAP_OPEN)],
    *[[(op, 0)] for op in Op if op not in (Op.TAP_OPEN, Op.VHOST_OPEN)],
    *[[(op, 1)] for op in (Op.ADOPT, Op.MACVTAP)],
    # It has nothing of that.
    *[[(Op.TAP_OPEN, 0), (op, 0)] for op in (Op.VLAN_ADD, Op.VLAN_DEL, Op.FDB, Op.TC, Op.PERSIST)],
    [(Op.UNFDB, 1)],
    [(Op.PERSIST, 1)],
    [(Op.VHOST_OPEN, 0), (Op.TAP_OPEN, 0), (Op.VHOST_OPEN, 0)],
    *[
        [(Op.DELETE, 1), (op, 1)]
        for op in (Op.DELETE, Op.ATTACH, Op.QDISC, Op.LINK, Op.TC, Op.UP, Op.DOWN, Op.ALTNAME, Op.RENAME)
    ],
]


def with_field(where, field, value):
    made = sound()
    if where == "direct":
        made.direct = macvtap(made)
        ordered(made, [(Op.MACVTAP, 0), (Op.UP, 0)])
    if where == "persisted":
        made.persisted = made.new
        made.new.persist, made.new.owner, made.new.group = 1, -1, -1
        ordered(made, [(Op.TAP_OPEN, 0), (Op.PERSIST, 0)])
    if where == "limited":
        made.limited = made.new
        for each in ("rate", "ceil", "burst", "ceil_burst", "quantum", "police_rate", "police_burst"):
            setattr(made.new, each, 1)
        ordered(made, [(Op.TAP_OPEN, 0), (Op.TC, 0)])
    setattr(getattr(made, where), field, made.ffi.NULL if value is None else value)
    return made


def with_acts(acts):
    made = sound()
    ordered(made, acts)
    return made


def without(what, acts):
    """Names that may be empty, but not here."""
    made = with_acts(acts)
    if what == "wish":
        made.held.wish = b""
    else:
        made.bridge.name, made.bridge.ifindex = b"", 0
    return made


def in_vlans(*vids):
    """The new NIC, and its first VLAN is the defect."""
    made = sound()
    made.vlans = made.ffi.new("struct vn_vlan[]", [(0, vid) for vid in vids])
    made.new.vlans, made.new.n_vlans = made.vlans, len(vids)
    return made


def with_a_port(op):
    """Of no bridge."""
    made = in_vlans(1)
    made.new.set_fdb, made.new.bridge = 1, -1
    ordered(made, [(Op.TAP_OPEN, 0), (op, 0)])
    return made


def adopted(op):
    """It is not ours to change."""
    made = sound()
    made.new.adopted = 1
    ordered(made, [(Op.ADOPT, 0), (op, 0)])
    return made


def macvtap(made):
    """The new NIC is one, on a link."""
    made.new.macvtap, made.new.parent, made.new.set_mac, made.new.bridge = 1, b"p0", 1, -1
    return made.new


def of_a_macvtap(op):
    made = sound()
    macvtap(made).persist = 1
    made.new.owner = made.new.group = -1
    ordered(made, [(op, 0)] if op in (Op.TAP_OPEN, Op.ADOPT) else [(Op.MACVTAP, 0), (op, 0)])
    return made


def without_queues(op):
    """A macvtap that is held by its mark alone: it can be deleted."""
    made = sound()
    made.held.macvtap, made.held.n_tap, made.held.n_vhost = 1, 0, 0
    ordered(made, [(op, 1)])
    return made


def without_a_program():
    made = sound()
    made.program = made.ffi.NULL
    return made


NOT_MACVTAPS = (Op.TAP_OPEN, Op.ADOPT, Op.COALESCE, Op.PERSIST)
MALFORMED = {
    "no program": without_a_program,
    **{
        f"{where}.{field} = {value!r}": lambda f=(where, field, value): with_field(*f) for where, field, value in FIELDS
    },
    **{" ".join(f"{act[0].name}({act[1]})" for act in acts): lambda a=acts: with_acts(a) for acts in ORDERS},
    "ALTNAME to nothing": lambda: without("wish", [(Op.ALTNAME, 1)]),
    "RENAME to nothing": lambda: without("wish", [(Op.RENAME, 1)]),
    "a bridge of no name": lambda: without("bridge", [(Op.TAP_OPEN, 0)]),
    **{f"VLANs {vids}": lambda v=vids: in_vlans(*v) for vids in ((0,), (4095,), (1, 65535))},
    **{f"{op.name} of an adopted one": lambda o=op: adopted(o) for op in Op if op not in (Op.VHOST_OPEN, Op.SELFTEST)},
    **{f"{op.name} of a macvtap": lambda o=op: of_a_macvtap(o) for op in NOT_MACVTAPS},
    **{f"{op.name} without queues": lambda o=op: without_queues(o) for op in Op if op != Op.DELETE},
    **{f"{op.name} without a bridge": lambda o=op: with_a_port(o) for op in (Op.VLAN_ADD, Op.VLAN_DEL, Op.FDB)},
}


def refusal(made):
    from vhostnet._vhostnet import lib

    return -lib.vn_run(made.program)


def test_there_are_many_and_each_is_another():
    assert len(MALFORMED) == len(FIELDS) + len(ORDERS) + 10 + 2 * len(Op) - 3 + len(NOT_MACVTAPS) >= 100


@pytest.mark.parametrize("defect", MALFORMED)
def test_it_is_refused_and_nothing_is_touched(defect):
    need("native")
    made = MALFORMED[defect]()
    assert refusal(made) == errno.EINVAL
    assert list(made.fds) == [UNTOUCHED] * 8
    assert [act.error for act in made.acts] == [0] * len(made.acts)


def test_without_a_defect_it_runs_as_far_as_its_path():
    need("native")
    assert refusal(sound()) == errno.ENOENT


def test_a_macvtap_without_a_defect_runs_as_far_as_its_parent():
    need("native")
    made = sound()
    macvtap(made).parent = b"no-such-link"
    ordered(made, [(Op.MACVTAP, 0), (Op.UP, 0)])
    assert refusal(made) == errno.ENODEV


def test_a_link_is_not_looked_up_by_a_name_without_an_end():
    need("native")
    from vhostnet._vhostnet import ffi, lib

    links = ffi.new("struct vn_link[2]", [{"name": b"lo"}, {"name": b"n" * 16}])
    assert lib.vn_describe(links, 2, ffi.new("uint32_t *")) == -errno.EINVAL


TRACED = """
import os, sys
sys.path[:0] = sys.argv[1:]
import test_validator
cases = [make() for make in test_validator.MALFORMED.values()]
sound = test_validator.sound()
os.access("/malformed", os.F_OK)
refusals = [test_validator.refusal(made) for made in cases]
os.access("/sound", os.F_OK)
refusals.append(test_validator.refusal(sound))
os.access("/end", os.F_OK)
print(*refusals)
"""


@pytest.mark.slow
def test_none_of_them_makes_a_system_call(tmp_path):
    need("native")
    need("strace")
    trace = tmp_path / "trace"
    command = ["strace", "-qq", "-o", trace, sys.executable, "-c", TRACED, Path(__file__).parent, TESTS]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == [str(errno.EINVAL)] * len(MALFORMED) + [str(errno.ENOENT)]
    lines = trace.read_text().splitlines()
    first, second, end = (next(n for n, line in enumerate(lines) if f'"/{what}"' in line) for what in MARKS)
    assert calls(lines[first + 1 : second]) <= {"brk", "mmap", "munmap"}  # the allocator's
    assert "socket" in calls(lines[second + 1 : end])


MARKS = ("malformed", "sound", "end")


def calls(lines):
    return {line.partition("(")[0] for line in lines}
