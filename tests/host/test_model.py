"""Both engines through the same history, each in a network namespace of its own, against a model of what must be there.

After every step: the same result or the same error, the same links with the same facts, nothing that the model does not
know, and as many open fds as the NICs have queues.
"""

import json
import os
import subprocess
from dataclasses import dataclass

import pytest
from conftest import need, open_fds
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import vhostnet
from vhostnet import InterfaceSpec
from vhostnet.process import netns
from vhostnet.removal import close_here

pytestmark = [pytest.mark.tap, pytest.mark.slow, pytest.mark.usefixtures("net")]

ENGINES = ("native", "pure")
NAMES = ("a0", "a1", "a2", "a3", "a4")
BRIDGE = "br0"
PICK = st.integers(0, 11)
# A name, whether on the bridge, queues, and whether by a path that is no TUN/TAP device.
WISHES = st.tuples(st.sampled_from(NAMES), st.booleans(), st.integers(1, 3), st.sampled_from([False] * 7 + [True]))
BATCHES = st.one_of(
    st.lists(WISHES, min_size=2, max_size=4, unique_by=lambda wish: wish[0]),
    st.lists(WISHES, min_size=2, max_size=3),
)


def fresh_namespace():
    """An fd of one with a bridge in it; this thread stays there, which is of no matter."""
    netns.unshare_net()
    subprocess.run(["ip", "link", "add", BRIDGE, "up", "type", "bridge"], check=True)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def ip(*words):
    subprocess.run(["ip", "link", *words], check=True, close_fds=False)


def links():
    """Name -> (kind, up, MTU, qdisc, master, MAC), as ``ip`` says it."""
    said = subprocess.run(
        ["ip", "-j", "-d", "link"], capture_output=True, text=True, check=True, close_fds=False
    ).stdout
    return {
        link["ifname"]: (
            link.get("linkinfo", {}).get("info_kind"),
            "UP" in link["flags"],
            link["mtu"],
            link["qdisc"],
            link.get("master"),
            link["address"],
        )
        for link in json.loads(said)
    }


def told(error):
    """What an error says, but for the words."""
    if isinstance(error, vhostnet.HostError):
        return type(error).__name__, error.errno, error.act, error.call, error.ifname, error.queue
    return type(error).__name__, getattr(error, "attribute", None)


def has_nics(machine):
    return machine.keys_of(vhostnet.Nic)


@dataclass
class Known:
    """A NIC as it must be: ``name`` None when its link was deleted by somebody, ``bridge`` when it is a port."""

    name: str | None
    queues: int
    bridge: bool
    mtu: int
    mac: str


class BothEngines(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.namespaces = {engine: fresh_namespace() for engine in ENGINES}
        self.nics = {engine: {} for engine in ENGINES}  # key -> Nic, or the fds that were detached from one
        self.known = {}  # key -> Known
        self.strangers = set()
        self.bridge_mtu = 1500  # None when there is no bridge
        self.keys = iter(range(1, 10_000))
        self.fds = len(open_fds())
        self.opened = self.refused = 0  # NICs that were asked for

    # --- doing the same twice ---

    def both(self, function):
        """What came of *function* for each engine in its namespace; it must be the same."""
        outcomes = [
            netns.call_inside(self.namespaces[engine], lambda e=engine: self.tried(function, e)) for engine in ENGINES
        ]
        assert outcomes[0] == outcomes[1]
        return outcomes[0]

    def tried(self, function, engine):
        try:
            return function(engine)
        except vhostnet.VhostnetError as error:
            return told(error)

    def outside(self, *words):
        """``ip link`` in both namespaces: somebody else's doing."""
        self.both(lambda engine: ip(*words))

    def keys_of(self, kind):
        return [key for key, nic in self.nics["native"].items() if isinstance(nic, kind)]

    def picked(self, pick, kind=vhostnet.Nic):
        keys = self.keys_of(kind)
        return keys[pick % len(keys)]

    def taken(self):
        return {known.name for known in self.known.values()} | self.strangers

    # --- opening ---

    def open(self, wishes, on_error):
        keys = [next(self.keys) for _ in wishes]
        specs = [self.spec(key, *wish) for key, wish in zip(keys, wishes, strict=True)]

        def work(engine):
            made = vhostnet.open_nics(specs, engine=engine, on_error=on_error)
            self.nics[engine].update(
                (key, nic) for key, nic in zip(keys, made, strict=True) if isinstance(nic, vhostnet.Nic)
            )
            return [told(nic) if isinstance(nic, Exception) else (nic.ifname, nic.mtu, len(nic.fds)) for nic in made]

        outcome = self.both(work)
        before = len(self.known)
        self.expect(keys, specs, wishes, on_error, outcome)
        self.opened += len(self.known) - before
        self.refused += len(wishes) - (len(self.known) - before)

    def spec(self, key, name, bridge, queues, bad_path):
        kind = {"type": "bridge", "bridge": BRIDGE} if bridge else {"type": "ethernet"}
        path = {"tap_path": "/dev/null"} if bad_path else {}
        return InterfaceSpec(
            ifname=name, queues=queues, vhost="off", mac=f"52:54:00:00:00:{key & 0xFF:02x}", **kind, **path
        )

    def expect(self, keys, specs, wishes, on_error, outcome):
        """That what was opened is what could be, and that the model knows it from here on."""
        names = [name for name, *_ in wishes]
        possible = [
            name not in self.taken() and not bad_path and not (bridge and self.bridge_mtu is None)
            for name, bridge, _, bad_path in wishes
        ]
        if len(set(names)) < len(names):
            assert outcome == ("SpecError", "ifname")
        elif on_error == "undo" and not all(possible):
            assert isinstance(outcome, tuple)
        else:
            assert [len(result) == 3 for result in outcome] == possible
            for key, spec, there in zip(keys, specs, possible, strict=True):
                if there:
                    mtu = self.bridge_mtu if spec.bridge else 1500
                    mac = "fe" + spec.mac[2:]
                    self.known[key] = Known(spec.ifname, spec.queues, spec.bridge is not None, mtu, mac)

    @initialize(wishes=BATCHES)
    def open_the_first(self, wishes):
        self.open(wishes, "keep")

    @rule(wish=WISHES)
    def open_one(self, wish):
        self.open([wish], "undo")

    @rule(wishes=BATCHES, on_error=st.sampled_from(["undo", "keep"]))
    def open_some(self, wishes, on_error):
        self.open(wishes, on_error)

    # --- closing ---

    @precondition(has_nics)
    @rule(pick=PICK)
    def close(self, pick):
        key = self.picked(pick)
        self.both(lambda engine: self.nics[engine][key].close())
        self.both(lambda engine: self.nics[engine].pop(key).close())  # the second time it is nothing
        del self.known[key]

    @precondition(has_nics)
    @rule(picks=st.lists(PICK, min_size=1, max_size=2))
    def close_nics(self, picks):
        keys = {self.picked(pick) for pick in picks}
        self.both(lambda engine: vhostnet.close_nics([self.nics[engine].pop(key) for key in sorted(keys)]))
        for key in keys:
            del self.known[key]

    @precondition(has_nics)
    @rule(pick=PICK)
    def detach(self, pick):
        key = self.picked(pick)
        assert self.both(lambda engine: self.give_away(engine, key)) == ("NicClosed", None)

    def give_away(self, engine, key):
        nic = self.nics[engine][key]
        self.nics[engine][key] = nic.detach()
        nic.reset_queues()

    @precondition(lambda self: self.keys_of(vhostnet.Fds))
    @rule(pick=PICK)
    def close_what_was_detached(self, pick):
        key = self.picked(pick, vhostnet.Fds)
        self.both(lambda engine: close_here(self.nics[engine].pop(key)))
        del self.known[key]

    @precondition(has_nics)
    @rule(pick=PICK)
    def reset_queues(self, pick):
        key = self.picked(pick)
        outcome = self.both(lambda engine: self.nics[engine][key].reset_queues())
        gone = self.known[key].name is None and self.known[key].queues > 1
        assert outcome is None if not gone else outcome[0] == "DeviceGone"

    # --- what others do ---

    @rule(name=st.sampled_from(NAMES))
    def somebody_takes_a_name(self, name):
        if name not in self.taken():
            self.outside("add", name, "type", "bridge")
            self.strangers.add(name)

    @precondition(lambda self: self.known or self.strangers)
    @rule(name=st.sampled_from(NAMES))
    def somebody_deletes_a_link(self, name):
        if name in self.taken():
            self.outside("del", name)
            self.strangers.discard(name)
            for known in self.known.values():
                known.name = None if known.name == name else known.name

    @precondition(lambda self: self.known)
    @rule(name=st.sampled_from(NAMES), other=st.sampled_from((*NAMES, "other")))
    def somebody_renames_a_nic(self, name, other):
        renamed = [known for known in self.known.values() if known.name == name]
        if renamed and other not in self.taken():
            self.outside("set", name, "down")
            self.outside("set", name, "name", other)
            self.outside("set", other, "up")
            renamed[0].name = other

    @precondition(lambda self: self.bridge_mtu is not None)
    @rule()
    def the_bridge_goes(self):
        self.outside("del", BRIDGE)
        self.bridge_mtu = None
        for known in self.known.values():
            known.bridge = False

    @precondition(lambda self: self.bridge_mtu is None)
    @rule()
    def the_bridge_comes_back(self):
        self.outside("add", BRIDGE, "up", "type", "bridge")
        self.bridge_mtu = 1500

    @precondition(lambda self: self.bridge_mtu is not None)
    @rule(mtu=st.sampled_from([1280, 1500, 4000]))
    def the_bridge_gets_another_mtu(self, mtu):
        self.outside("set", BRIDGE, "mtu", str(mtu))
        self.bridge_mtu = mtu

    # --- what must hold ---

    @invariant()
    def there_is_what_must_be_and_nothing_else(self):
        found = self.both(lambda engine: self.facts())
        wanted = {
            known.name: ("tun", True, known.mtu, "noqueue", BRIDGE if known.bridge else None, known.mac)
            for known in self.known.values()
            if known.name
        }
        assert {name: facts for name, facts in found.items() if name in wanted} == wanted
        others = {"lo", *self.strangers} | ({BRIDGE} if self.bridge_mtu is not None else set())
        assert set(found) == set(wanted) | others

    def facts(self):
        """Without the MACs that the kernel makes up."""
        return {name: facts if facts[0] == "tun" else facts[:1] for name, facts in links().items()}

    @invariant()
    def the_fds_add_up(self):
        queues = sum(known.queues for known in self.known.values())
        assert len(open_fds()) == self.fds + len(ENGINES) * queues

    def teardown(self):
        for engine in ENGINES:
            for nic in self.nics[engine].values():
                if isinstance(nic, vhostnet.Fds):
                    close_here(nic)
            vhostnet.close_nics(nic for nic in self.nics[engine].values() if isinstance(nic, vhostnet.Nic))
            os.close(self.namespaces[engine])


def test_both_engines_do_as_the_model_says():
    """The same histories every time: derandomized."""
    need("native")
    histories = []

    def history():
        histories.append(BothEngines())
        return histories[-1]

    run_state_machine_as_test(
        history,
        settings=settings(
            max_examples=20,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],  # to shrink a history takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
    # Every step asserts what must hold; that there was something to hold of:
    assert len(histories) >= 20
    assert sum(history.opened for history in histories) > 30
    assert sum(history.refused for history in histories) > 30
