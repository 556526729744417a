"""What holds for any spec and any text: arguments read back as they were meant, and no error but our own."""

import json
import re

import pytest
from conftest import SEED
from hypothesis import given, settings
from hypothesis import strategies as st

import vhostnet
from vhostnet import InterfaceSpec, PciAddress, SpecError

pytestmark = pytest.mark.filterwarnings("ignore::vhostnet.VhostnetWarning")

MAYBE = st.none() | st.booleans()
TEXT = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Zl", "Zp")), max_size=40)
SPECS = st.builds(
    InterfaceSpec,
    bridge=st.just("br0"),
    mac=st.binary(min_size=6, max_size=6).map(lambda octets: bytes([octets[0] & 0xFE | 2, *octets[1:]]).hex(":")),
    model=st.sampled_from(["virtio", "virtio-transitional", "virtio-non-transitional"]),
    queues=st.integers(1, 256),
    rx_queue_size=st.sampled_from([None, 256, 512, 1024]),
    tx_queue_size=st.sampled_from([None, 256, 512, 1024]),
    txmode=st.sampled_from([None, "iothread", "timer"]),
    event_idx=MAYBE,
    packed=MAYBE,
    rss=MAYBE,
    host_mrg_rxbuf=MAYBE,
    guest_ufo=MAYBE,
    sndbuf=st.none() | st.integers(0, 2**64 - 1),
    mtu=st.none() | st.integers(68, 65521),
    alias=st.none() | st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    address=st.none() | st.builds(PciAddress, st.integers(0, 255), st.integers(0, 31), st.integers(0, 7), MAYBE),
    boot_order=st.none() | st.integers(1, 2**31 - 1),
    rom_file=st.none() | TEXT,
    acpi_index=st.none() | st.integers(1, 16383),
)


def options(text):
    """QEMU's own reading of an option string: commas part, two commas are one, the first word may have no key."""
    parts = [part.replace("\0", ",") for part in re.split(",", text.replace(",,", "\0"))]
    return dict([("", parts[0]), *(part.split("=", 1) for part in parts[1:])])


def plain(value):
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


@given(SPECS, st.booleans())
@settings(deadline=None, max_examples=100)
def test_every_dialect_says_the_same(spec, vhost):
    tap = list(range(10, 10 + spec.queues))
    fds = {"tap_fds": tap, "vhost_fds": list(range(1000, 1000 + spec.queues)) if vhost else []}
    meant = vhostnet.qemu_properties(spec, **fds)
    as_json = vhostnet.qemu_argv(spec, **fds, dialect="json")
    assert (json.loads(as_json[1]), json.loads(as_json[3])) == meant
    for dialect in ("classic", "keyval"):
        argv = vhostnet.qemu_argv(spec, **fds, dialect=dialect)
        for properties, head, written in zip(meant, ("type", "driver"), argv[1::2], strict=True):
            wanted = {("" if key == head else key): plain(value) for key, value in properties.items()}
            assert options(written) == wanted
            assert not re.search(r"[\x00-\x1f\x7f]", written)


@given(st.text(max_size=300))
@settings(deadline=None, max_examples=300)
def test_any_text_is_a_spec_or_a_spec_error(text):
    with pytest.raises(SpecError):
        vhostnet.parse_interface(text)


@given(st.data())
@settings(deadline=None, max_examples=500)
def test_a_damaged_seed_is_a_spec_or_a_spec_error(data):
    at = data.draw(st.integers(0, len(SEED)))
    upto = data.draw(st.integers(at, min(len(SEED), at + 8)))
    text = SEED[:at] + data.draw(st.text(max_size=8)) + SEED[upto:]
    try:
        spec = vhostnet.parse_interface(text)
    except SpecError as error:
        assert str(error)
    else:
        vhostnet.qemu_argv(spec, tap_fds=range(3, 3 + spec.queues))


@given(st.sampled_from(list(InterfaceSpec.__dataclass_fields__)), st.none() | st.integers() | st.text() | st.binary())
@settings(deadline=None, max_examples=500)
def test_any_value_in_any_field_is_a_spec_or_a_spec_error(name, value):
    fields = {"bridge": "br0", name: value}
    try:
        spec = InterfaceSpec(**fields)
    except SpecError as error:
        assert name in str(error) or error.attribute != name
    else:
        assert spec == InterfaceSpec(**{**fields, "mac": spec.mac})
