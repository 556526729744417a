"""What a broker does for its clients: each method of its interface, and calls that wait made one Program."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from vhostnet import engines
from vhostnet.broker.accounts import Accounts, marked_links, queues_of
from vhostnet.broker.connection import Call
from vhostnet.broker.errors import INTERFACE, packed_error, refusal_of
from vhostnet.broker.metrics import exposition
from vhostnet.broker.policy import Policy
from vhostnet.broker.queues import nic_of, nics_of, open_vhosts
from vhostnet.broker.wishes import Wish, grouped, read_wish
from vhostnet.errors import HostError, PolicyRefused, SpecError, VhostnetError
from vhostnet.handover.fields import spec_of
from vhostnet.handover.proof import told_of
from vhostnet.host.closing import close_later, close_nics
from vhostnet.host.lasting import delete_nics
from vhostnet.host.marks import Mark, read_mark
from vhostnet.host.nic import Nic
from vhostnet.host.opening import make_nics
from vhostnet.host.pool import NicPool
from vhostnet.qemu.argv import fitted, qemu_argv
from vhostnet.slow import ovsdb
from vhostnet.version import __version__

SWEEP: Final = 5.0  # seconds between looks for ports that are left
SERVICE: Final = "org.varlink.service"
_FIRST: Final = 3  # the number that a reply's first fd has in a program that is started with them
_log: Final = logging.getLogger("vhostnet.broker")


class Service:
    """The methods. One thread calls; what the kernel takes long for is done in the background.

    *post* has that thread do something soon; *clients* says how many connections there are, by uid.
    """

    def __init__(
        self,
        policy: Policy,
        post: Callable[[Callable[[], None]], None],
        clients: Callable[[], Mapping[int, int]],
        *,
        engine: str = "auto",
    ) -> None:
        self.policy = policy
        self._post: Final = post
        self._clients: Final = clients
        self._engine: Final = engines.select(engine)
        self._accounts: Final = Accounts()
        self._since: Final = time.monotonic()
        self._plugs = ovsdb.is_there()  # some may be of a broker before this one
        self._swept = 0.0
        self.calls = self.refused = self.made = self.programs = self.deleted = 0

    def serve(self, calls: Sequence[Call]) -> None:
        """Answer them, or have them answered. Those that ask for NICs are made one Program, where that can be."""
        wishes: list[Wish] = []
        for call in calls:
            self.calls += 1
            try:
                if call.method == _OPEN:
                    wishes += self._wish(call)
                elif call.method in _METHODS:
                    _METHODS[call.method](self, call)
                else:
                    _fail_unknown(call)
            except Exception as error:
                self._fail(call, error)
        for group in grouped(wishes):
            self._make(group)

    def given(self, nics: Sequence[Nic], sent: bool) -> None:
        """They are on their way to a client; or it has gone, and they go."""
        if not sent:
            close_nics(nics, wait=False)
            return
        for nic in nics:
            nic.leave_to_other()

    def tick(self) -> None:
        """Now and then: a client that was killed may have left a port of Open vSwitch, which outlives its NIC."""
        if self._plugs and time.monotonic() - self._swept > SWEEP:
            self._swept = time.monotonic()
            threading.Thread(target=_sweep, name="vhostnet-broker-sweep").start()

    def forget(self, kept: Mapping[str, Any]) -> None:
        """A connection has ended, and this is what it had."""
        if "pool" in kept:
            threading.Thread(target=kept["pool"].close, name="vhostnet-broker-pool").start()

    def _fail(self, call: Call, error: Exception) -> None:
        """Whatever goes wrong is the call's answer, and nobody else's trouble."""
        if isinstance(error, VhostnetError):
            self.refused += 1
            call.fail(*packed_error(error))
            return
        _log.error("%s of %s", call.method, call.peer, exc_info=error)
        if not call.answered:
            call.fail(*packed_error(HostError(errno.EIO, "the broker failed at this call: its log has why")))

    # --- making NICs ---

    def _wish(self, call: Call) -> list[Wish]:
        wish = read_wish(call, self.policy)
        if len(wish.specs) > 1 and not call.more:
            call.fail(f"{SERVICE}.ExpectedMore")
            return []
        self._plugs = self._plugs or any(spec.virtualport for spec in wish.specs)
        self._accounts.check(call.peer, wish.rule, len(wish.specs), wish.queues)
        self._accounts.add(call.peer.uid, len(wish.specs), wish.queues)
        return [wish]

    def _make(self, group: Sequence[Wish]) -> None:
        """One Program for all of them; one for each where it says nothing of the single one."""
        specs = [spec for wish in group for spec in wish.specs]
        makers = tuple([wish.call.peer.maker for wish in group for _ in wish.specs])
        how = group[0].how._replace(makers=makers, keep=len(group) > 1 or group[0].keep)
        self.programs += 1
        try:
            made: Sequence[Nic | HostError] = make_nics(self._engine, specs, how)
        except VhostnetError as error:
            if len(group) > 1:
                for wish in group:
                    self._make([wish])
            else:
                self._refuse(group[0], error)
            return
        start = 0
        for wish in group:
            self._give(wish, made[start : start + len(wish.specs)])
            start += len(wish.specs)

    def _give(self, wish: Wish, made: Sequence[Nic | HostError]) -> None:
        refused = next((one for one in made if isinstance(one, HostError)), None)
        if refused and not wish.keep:
            close_nics([one for one in made if isinstance(one, Nic)], wait=False)
            self._refuse(wish, refused)
            return
        for number, (one, spec) in enumerate(zip(made, wish.specs, strict=True), 1):
            more = number < len(made)
            if isinstance(one, HostError):
                self._accounts.add(wish.call.peer.uid, -1, -spec.queues)
                wish.call.reply({"refused": refusal_of(one)}, more=more)
            else:
                self.made += 1
                wish.call.reply({"nic": _told(wish.call, one)}, nic=one, more=more)

    def _refuse(self, wish: Wish, error: VhostnetError) -> None:
        self._accounts.add(wish.call.peer.uid, -len(wish.specs), -wish.queues)
        self.refused += 1
        wish.call.fail(*packed_error(error))

    # --- NICs that are there ---

    def _close(self, call: Call) -> None:
        specs = call.parameters.get("specs") or [{}] * len(call.fds)
        if not isinstance(specs, list) or len(specs) != len(call.fds):
            raise SpecError(
                "is not allowed", attribute="specs", value=specs, expected="one for each fd, or none at all"
            )
        known = [None if fields == {} else spec_of(fields) for fields in specs]
        nics = nics_of(self._engine, call.fds, call.peer.uid, known)
        self.deleted += len(nics)
        close_later(nics, lambda: self._post(lambda: call.reply({})))

    def _update(self, call: Call) -> None:
        was, spec = spec_of(call.fields("was")), spec_of(call.fields("spec"))
        self.policy.check(call.peer, [was, spec])
        nic = nic_of(self._engine, call.fd(), call.peer.uid, was, up=call.flag("up", True))
        try:
            nic.update(spec)
        finally:
            nic.leave_to_other()
        call.reply({"mtu": nic.mtu})

    def _set_up(self, call: Call) -> None:
        spec, up = spec_of(call.fields("spec")), call.flag("up", True)
        self.policy.check(call.peer, [spec])
        nic = nic_of(self._engine, call.fd(), call.peer.uid, spec, up=not up)
        try:
            (nic.up if up else nic.down)()
        finally:
            nic.leave_to_other()
        call.reply({})

    def _open_vhost(self, call: Call) -> None:
        path, count = call.text("path"), call.number("count")
        rule = self.policy.check(call.peer, [])
        if path not in rule.devices or not 0 < count <= rule.queues:
            problem = f"rule {rule.name!r} allows {rule.queues} queues of {', '.join(rule.devices)}"
            raise PolicyRefused(f"{problem}, not {count} of {path}", rule=rule.name)
        call.reply({}, fds=open_vhosts(path, count))

    def _list(self, call: Call) -> None:
        uid = call.peer.uid
        call.reply({"nics": [_found(link, mark) for link, mark in marked_links() if uid in (0, mark.uid)]})

    # --- pools ---

    def _make_pool(self, call: Call) -> None:
        shape, size = spec_of(call.fields("spec")), call.number("size")
        kept = call.connection.kept
        if "pool" in kept:
            raise SpecError("is the second of this connection", attribute="pool", expected="one")
        rule = self.policy.check(call.peer, [shape])
        self._accounts.check(call.peer, rule, size, size * shape.queues)
        more = {name: call.parameters[name] for name in ("low", "max_age") if call.parameters.get(name) is not None}
        kept["pool"] = NicPool(shape, size=size, engine=self._engine.name, maker=call.peer.maker, **more)
        self._accounts.add(call.peer.uid, size, size * shape.queues)
        call.reply({})

    def _take(self, call: Call) -> None:
        pool = _pool(call)
        fields = call.parameters.get("spec")
        spec = None if fields is None else spec_of(call.fields("spec"))
        rule = self.policy.check(call.peer, [pool.shape if spec is None else spec])
        self._accounts.check(call.peer, rule, 1, pool.shape.queues)
        nic = pool.take(spec, rename=call.flag("rename", False))
        self._accounts.add(call.peer.uid, 1, pool.shape.queues)
        self.made += 1
        call.reply({"nic": told_of(nic)}, nic=nic)

    def _get_pool(self, call: Call) -> None:
        stats = _pool(call).stats
        call.reply({"pool": {**stats._asdict(), "error": str(stats.error) if stats.error else None}})

    # --- the broker itself ---

    def status(self, uid: int) -> dict[str, Any]:
        """What it is doing, and has done, as GetStatus answers it: of other users root alone is told."""
        clients, held = self._clients(), self._accounts.total
        names = ("calls", "refused", "made", "programs", "deleted")
        users = [
            {"uid": user, **self._accounts.of(user)._asdict(), "clients": clients.get(user, 0)}
            for user in sorted({*clients, *held})
            if uid in (0, user)
        ]
        return {
            "version": __version__,
            "seconds": time.monotonic() - self._since,
            "policy": self.policy.path,
            "rules": len(self.policy.rules),
            "clients": sum(clients.values()),
            **{name: getattr(self, name) for name in names},
            "users": users,
        }

    def _get_status(self, call: Call) -> None:
        call.reply(self.status(call.peer.uid))

    def _get_metrics(self, call: Call) -> None:
        call.reply({"text": exposition(self.status(call.peer.uid))})

    def _get_info(self, call: Call) -> None:
        url = "https://pypi.org/project/vhostnet/"
        about = {"vendor": "vhostnet", "product": "vhostnet serve", "version": __version__, "url": url}
        call.reply({**about, "interfaces": [SERVICE, INTERFACE]})

    def _get_description(self, call: Call) -> None:
        name = call.text("interface")
        if name not in (SERVICE, INTERFACE):
            call.fail(f"{SERVICE}.InterfaceNotFound", {"interface": name})
        else:
            call.reply({"description": description(name)})


_OPEN: Final = f"{INTERFACE}.Open"
_METHODS: Final[dict[str, Callable[[Service, Call], None]]] = {
    f"{INTERFACE}.Close": Service._close,
    f"{INTERFACE}.Update": Service._update,
    f"{INTERFACE}.SetUp": Service._set_up,
    f"{INTERFACE}.OpenVhost": Service._open_vhost,
    f"{INTERFACE}.List": Service._list,
    f"{INTERFACE}.MakePool": Service._make_pool,
    f"{INTERFACE}.Take": Service._take,
    f"{INTERFACE}.GetPool": Service._get_pool,
    f"{INTERFACE}.GetStatus": Service._get_status,
    f"{INTERFACE}.GetMetrics": Service._get_metrics,
    f"{SERVICE}.GetInfo": Service._get_info,
    f"{SERVICE}.GetInterfaceDescription": Service._get_description,
}


@cache
def description(interface: str) -> str:
    """In Varlink's language."""
    return (Path(__file__).parent / f"{interface}.varlink").read_text()


def _fail_unknown(call: Call) -> None:
    interface = call.method.rpartition(".")[0]
    if interface in (SERVICE, INTERFACE):
        call.fail(f"{SERVICE}.MethodNotFound", {"method": call.method})
    else:
        call.fail(f"{SERVICE}.InterfaceNotFound", {"interface": interface})


def _sweep() -> None:
    """Take away the ports of a broker's NICs that have gone."""
    try:
        marked = [(port.name, read_mark(port.mark)) for port in ovsdb.list_ports() if not port.open]
        left = [name for name, mark in marked if mark and mark.uid is not None]
        delete_nics(left)
    except OSError as error:
        _log.warning("ports of Open vSwitch that are left: %s", error)


def _pool(call: Call) -> NicPool:
    pool = call.connection.kept.get("pool")
    if not isinstance(pool, NicPool):
        raise SpecError("is missing", attribute="pool", expected="MakePool on this connection before")
    return pool


def _told(call: Call, nic: Nic) -> dict[str, Any]:
    """Of its spec only what the client cannot know: it has sent the others itself."""
    told = told_of(nic, spec="xml" in call.parameters)
    if call.flag("argv", False):
        tap = range(_FIRST, _FIRST + told["tap"])
        vhost = range(tap.stop, tap.stop + told["vhost"])
        told["argv"] = qemu_argv(fitted(nic.spec), tap_fds=list(tap), vhost_fds=list(vhost))
    return told


def _found(link: Any, mark: Mark) -> dict[str, Any]:
    attached, detached = queues_of(link)
    info = link.get("linkinfo")
    return {
        "ifname": link.get("ifname"),
        "ifindex": link["index"],
        "kind": info.get("kind") if info else "",
        "up": bool(link["flags"] & 1),
        "attached": attached,
        "detached": detached,
        "mark": mark.text,
        "made_by": mark.pid,
        "maker_lives": mark.maker_lives,
        "parked": mark.parked,
    }
