"""The engines' contract: one protocol, one table of numbers, one choice."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import need

import vhostnet
from vhostnet import engines
from vhostnet.engines import CALLS, Engine, _uapi
from vhostnet.engines._protocol import MAX_SAID
from vhostnet.program.parts import SLOW, Act, Fds, Macvtap, NicRow, Op, Shaping, TunFlag
from vhostnet.program.program import Program


@pytest.mark.parametrize("verb", ["run", "close", "describe", "features"])
def test_the_contract_is_kept(engine, verb):
    chosen = engines.select(engine)
    assert chosen.name == engine
    declared = inspect.signature(getattr(Engine, verb)).parameters.values()
    kept = inspect.signature(getattr(type(chosen), verb)).parameters.values()
    assert [(p.name, p.kind) for p in declared] == [(p.name, p.kind) for p in kept]


@pytest.fixture
def lib():
    need("native")
    from vhostnet._vhostnet import lib

    return lib


PURE_NUMBERS = [name for name, value in vars(_uapi).items() if name[0].isupper() and isinstance(value, int)]


def test_the_pure_table_is_whole():
    assert len(PURE_NUMBERS) > 35


@pytest.mark.parametrize("name", PURE_NUMBERS)
def test_the_pure_numbers_are_the_compilers(lib, name):
    assert getattr(_uapi, name) == getattr(lib, name)


def test_the_plans_flags_are_the_compilers(lib):
    for flag in TunFlag:
        name = {"EXCL": "IFF_TUN_EXCL"}.get(flag.name, f"IFF_{flag.name}")
        assert flag == getattr(lib, name)


def test_acts_and_calls_have_the_cores_numbers(lib):
    hot = [op for op in Op if op < SLOW]
    for op in hot:
        assert op == getattr(lib, f"VN_{op.name}")
    assert (len(hot), MAX_SAID) == (lib.VN_ACTS, lib.VN_SAID - 1)
    assert len([name for name in dir(lib) if name.startswith("VN_CALL_")]) == len(CALLS)
    for number, call in enumerate(CALLS[1:], 1):
        assert number == getattr(lib, f"VN_CALL_{call.upper()}")


@pytest.mark.parametrize(
    ("struct", "layout"),
    [
        ("ifreq", "IFREQ_FLAGS"),
        ("ifreq", "IFREQ_INDEX"),
        ("ifreq", "IFREQ_DATA"),
        ("ifreq", "IFREQ_MAC"),
        ("ethtool_drvinfo", "DRVINFO"),
        ("nlmsghdr", "NLMSGHDR"),
        ("ifinfomsg", "IFINFOMSG"),
        ("tcmsg", "TCMSG"),
        ("tc_ratespec", "TC_RATESPEC"),
        ("tc_htb_glob", "TC_HTB_GLOB"),
        ("tc_htb_opt", "TC_HTB_OPT"),
        ("tc_sfq_qopt_v1", "TC_SFQ_QOPT"),
        ("tc_police", "TC_POLICE"),
        ("tc_u32_sel", "TC_U32_SEL"),
        ("tc_u32_key", "TC_U32_KEY"),
        ("ndmsg", "NDMSG"),
        ("ethtool_coalesce", "COALESCE"),
        ("bridge_vlan_info", "VLAN_INFO"),
        ("vhost_vring_state", "VRING_STATE"),
        ("vhost_vring_addr", "VRING_ADDR"),
    ],
)
def test_the_pure_layouts_have_the_compilers_sizes(lib, struct, layout):
    from vhostnet._vhostnet import ffi

    assert getattr(_uapi, layout).size == ffi.sizeof(f"struct {struct}")


ROW = NicRow("vn0", 1, 0x1002, "/dev/net/tun", "/dev/vhost-net")


def test_an_empty_program_does_nothing(engine):
    assert engines.select(engine).run(Program((), ())) == ((), (), (), None)


@pytest.mark.parametrize(
    ("row", "act"),
    [
        (ROW._replace(queues=0), 0),
        (ROW._replace(queues=257), 0),
        (ROW._replace(ifname="a234567890123456"), 0),
        (ROW._replace(ifname="a" * 40), 0),
        (ROW._replace(ifname=""), 0),
        (ROW, 1),
        (ROW, -1),
        (ROW._replace(alias="a" * 128), 0),
        (ROW._replace(wish="a" * 16), 0),
        (ROW._replace(held=Fds((), ())), 0),
        (ROW._replace(held=Fds((), ()), macvtap=Macvtap()), 0),  # which can be deleted, and nothing else
        (ROW._replace(macvtap=Macvtap("p" * 16)), 0),
        (ROW._replace(held=Fds((3, 4), ())), 0),
        (ROW._replace(shaping=Shaping(1)), 0),  # one number without the others
        (ROW._replace(shaping=Shaping(1, 1, 1, 1, 0)), 0),
        (ROW._replace(shaping=Shaping(police_rate=1)), 0),
        (ROW._replace(shaping=Shaping(2**64, 1, 1, 1, 1)), 0),
        (ROW._replace(shaping=Shaping(1, 1, 2**32, 1, 1)), 0),
        (ROW._replace(shaping=Shaping(police_burst=2**32, police_rate=1)), 0),
        (ROW._replace(shaping=Shaping(police_burst=-1, police_rate=1)), 0),
    ],
)
def test_a_malformed_program_cannot_be_made(row, act):
    with pytest.raises(ValueError):
        Program((row,), (Act(Op.LINK, act),))


@pytest.mark.parametrize("op", [Op.TAP_OPEN, Op.VHOST_OPEN, Op.SELFTEST, Op.ATTACH, Op.DELETE])
def test_some_acts_are_for_held_nics_and_some_for_new_ones(op):
    new, bare, whole = ROW, ROW._replace(held=Fds((3,), ())), ROW._replace(held=Fds((3,), (4,)))
    right = {Op.ATTACH: [bare, whole], Op.DELETE: [bare, whole], Op.VHOST_OPEN: [new, bare]}.get(op, [new])
    for row in (new, bare, whole):
        if row in right:
            assert Program((row,), (Act(op, 0),))
        else:
            with pytest.raises(ValueError, match=f"{op.name} is not for a NIC that is"):
                Program((row,), (Act(op, 0),))


def test_some_acts_are_for_macvtaps_and_some_for_taps():
    direct = ROW._replace(macvtap=Macvtap("p0", 2), mac=bytes(6))
    assert Program((direct,), (Act(Op.MACVTAP, 0), Act(Op.QDISC, 0), Act(Op.UP, 0)))
    for row, op in ((ROW, Op.MACVTAP), *((direct, op) for op in (Op.TAP_OPEN, Op.COALESCE))):
        with pytest.raises(ValueError, match=f"{op.name}"):
            Program((row,), (Act(op, 0),))


def test_native_is_what_one_gets(monkeypatch):
    need("native")
    monkeypatch.delenv("VHOSTNET_ENGINE", raising=False)
    assert engines.select().name == engines.select("auto").name == "native"


def test_the_environment_decides_for_auto_only(monkeypatch):
    monkeypatch.setenv("VHOSTNET_ENGINE", "pure")
    assert engines.select().name == "pure"
    need("native")
    assert engines.select("native").name == "native"


def test_a_name_that_is_none_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="'rust'"):
        engines.select("rust")
    monkeypatch.setenv("VHOSTNET_ENGINE", "fast")
    with pytest.raises(ValueError, match="'fast'"):
        engines.select()


WITHOUT_CORE = """
import sys, logging
logging.basicConfig(format="%(message)s")
sys.modules["vhostnet._vhostnet"] = None
import vhostnet
print(vhostnet.select_engine().name)
try:
    vhostnet.select_engine("native")
except vhostnet.EngineUnavailable as error:
    print("refused", error.name)
"""


def test_without_the_core_the_pure_engine_goes_on_and_says_so():
    done = subprocess.run([sys.executable, "-c", WITHOUT_CORE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pure", "refused", "vhostnet._vhostnet"]
    assert "the pure engine goes on" in done.stderr


def test_importing_takes_neither_pyroute2_nor_an_xml_parser_nor_the_core():
    wanted = "('pyroute2', 'pyexpat', 'cffi')"
    code = f"import sys, vhostnet; print(*(m for m in sys.modules if m.partition('.')[0] in {wanted}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.slow  # a process each
def test_every_module_imports_alone():
    package = Path(vhostnet.__file__).parent
    for path in sorted(package.rglob("[a-z]*.py")):
        module = ".".join(("vhostnet", *path.relative_to(package).with_suffix("").parts))
        command = [sys.executable, "-W", "error", "-c", f"import {module}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), module


def test_the_public_names_are_there():
    assert [name for name in vhostnet.__all__ if not hasattr(vhostnet, name)] == []
    assert sorted(vhostnet.__all__) == vhostnet.__all__
