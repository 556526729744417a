"""Our values are to those who use them what dataclasses would be: measured against a twin that is one."""

import copy
import dataclasses
import inspect
import pickle
import pprint

import pytest

import vhostnet
from vhostnet import CcwAddress, InterfaceSpec, MmioAddress, PciAddress, SocketSource, UsbAddress, UserSource

VALUES = [
    PciAddress(1, 2, multifunction=True),
    CcwAddress(devno=7),
    MmioAddress(),
    UsbAddress(1, "2"),
    UserSource("10.0.0.0/8"),
    SocketSource("a", 1),
    InterfaceSpec(bridge="br0", queues=3, address=PciAddress(slot=4)),
]


def twin(value):
    """The same as a plain dataclass, without its checks."""
    fields = [(f.name, f.type, dataclasses.field(default=f.default)) for f in dataclasses.fields(value)]
    made = dataclasses.make_dataclass(type(value).__qualname__, fields, frozen=True, kw_only=True)
    return made(**{f.name: getattr(value, f.name) for f in dataclasses.fields(value)})


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_they_are_what_dataclasses_are(value):
    other = dataclasses.replace(value)
    assert (other == value, other is value, hash(other) == hash(value)) == (True, False, True)
    assert repr(value) == repr(twin(value))
    assert dataclasses.asdict(value) == dataclasses.asdict(twin(value))
    assert dataclasses.is_dataclass(value)
    assert pprint.pformat(value, width=8) == repr(value)
    assert [pickle.loads(pickle.dumps(value)), copy.deepcopy(value), copy.copy(value)] == [value] * 3
    assert value != twin(value)


def test_they_say_what_they_take():
    assert str(inspect.signature(UsbAddress)) == "(bus: 'int' = 0, port: 'str' = '1') -> None"
    assert list(inspect.signature(InterfaceSpec).parameters) == [f.name for f in dataclasses.fields(InterfaceSpec)]


def test_they_differ_where_a_field_does():
    spec = VALUES[-1]
    other = dataclasses.replace(spec, queues=4)
    assert (other == spec, other.queues, other.mac) == (False, 4, spec.mac)
    assert len({spec, other, dataclasses.replace(spec)}) == 2


def test_they_are_frozen():
    for attempt in (lambda v: setattr(v, "bus", 3), lambda v: setattr(v, "new", 3), lambda v: delattr(v, "bus")):
        with pytest.raises(dataclasses.FrozenInstanceError, match="bus|new"):
            attempt(PciAddress(1))


@pytest.mark.parametrize(
    ("arguments", "named", "says"),
    [
        ((), {"bridge": "br0", "quues": 3}, "quues"),
        (("bridge",), {}, "too many"),
    ],
)
def test_arguments_that_it_does_not_take(arguments, named, says):
    with pytest.raises(TypeError, match=rf"InterfaceSpec\(\).*{says}"):
        InterfaceSpec(*arguments, **named)


def test_more_of_the_same():
    with pytest.raises(TypeError, match="too many"):
        PciAddress(1, 2, 3, None, "pci.0", None, 7)
    with pytest.raises(TypeError, match="twice"):
        PciAddress(1, bus=1)
    with pytest.raises(TypeError, match="acts, nics"):
        vhostnet.Program()


def test_a_default_that_is_made_is_made_for_each():
    assert InterfaceSpec(type="ethernet").mac != InterfaceSpec(type="ethernet").mac


def test_matching_by_place_is_for_those_that_are_made_by_place():
    match PciAddress(1, 2):
        case PciAddress(bus, slot):
            assert (bus, slot) == (1, 2)
    assert InterfaceSpec.__match_args__ == ()


def test_they_have_their_doc():
    assert "queues" in inspect.getdoc(InterfaceSpec)
