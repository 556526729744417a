"""A real Open vSwitch of one's own: ovsdb-server and ovs-vswitchd in this network namespace, whose bridges are in user
space (datapath_type=netdev), with directories of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
PROGRAMS = ("ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl")


def missing() -> str | None:
    """Why there can be none here."""
    path = os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin"
    absent = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    return f"no {', '.join(absent)} in PATH: Debian's openvswitch-switch" if absent else None


class Switch:
    """It, by ovs-vsctl, and its processes, in the network namespace *netns* of ip-netns(8).

    Its *datapath* is its own process (netdev) or the kernel's (system).
    """

    def __init__(self, directory: Path, netns: str = "", datapath: str = "netdev") -> None:
        self.directory = directory
        self.datapath = datapath
        self.where = ["ip", "netns", "exec", netns] if netns else []
        self.environment = {
            **os.environ,
            "PATH": os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin",
            **dict.fromkeys(("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"), str(directory)),
        }
        self.database: subprocess.Popen[bytes] | None = None
        self.daemon: subprocess.Popen[bytes] | None = None

    def start_database(self) -> None:
        conf = self.directory / "conf.db"
        if not conf.exists():
            self._run("ovsdb-tool", "create", str(conf), SCHEMA)
        place = self.directory / "db.sock"
        place.unlink(missing_ok=True)
        self.database = self._start("ovsdb-server", str(conf), f"--remote=punix:{place}", "--no-chdir")
        _await(lambda: _listens(place))
        self.vsctl("--no-wait", "init")

    def start_daemon(self) -> None:
        alone = ["--disable-system", "--disable-system-route"] if self.datapath == "netdev" else []
        self.daemon = self._start("ovs-vswitchd", "--no-chdir", *alone)
        self.vsctl("list", "Open_vSwitch")

    def restart_daemon(self) -> None:
        """Until the new one has done all that the database says."""
        self.stop(self.daemon)
        self.start_daemon()
        self.await_daemon()

    def await_daemon(self) -> None:
        """Until it has done all that the database says by now."""
        self.vsctl("set", "Open_vSwitch", ".", f"external_ids:awaited={time.monotonic_ns()}")

    def vsctl(self, *arguments: str) -> str:
        """What ovs-vsctl says."""
        database = f"--db=unix:{self.directory}/db.sock"
        return self._run("ovs-vsctl", database, "--timeout=20", *arguments)

    def add_bridge(self, name: str) -> None:
        self.vsctl("add-br", name, "--", "set", "Bridge", name, f"datapath_type={self.datapath}")

    def delete_bridge(self, name: str) -> None:
        self.vsctl("del-br", name)

    def ports(self, bridge: str) -> list[str]:
        return self.vsctl("list-ports", bridge).split()

    def row(self, table: str, name: str) -> dict[str, Any]:
        """Its columns, as Python has them."""
        return self._rows(table, name)[0]

    def queueing(self) -> list[dict[str, Any]]:
        """What there is in the tables in which rows stay that nothing leads to."""
        return self._rows("QoS") + self._rows("Queue")

    def queueing_of(self, port: str) -> list[dict[str, Any]]:
        """Of it: what it leads to, and the queues of that."""
        rows = {row["_uuid"]: row for row in self.queueing()}
        first = rows.get(str(self.row("Port", port)["qos"]))
        return [first, *(rows[uuid] for _, uuid in first["queues"].values())] if first else []

    def _rows(self, table: str, *names: str) -> list[dict[str, Any]]:
        found = json.loads(self.vsctl("--format=json", "list", table, *names))
        return [
            {key: _plain(value) for key, value in zip(found["headings"], row, strict=True)} for row in found["data"]
        ]

    def seen(self, name: str) -> dict[str, Any]:
        """The interface, once ovs-vswitchd has looked at it."""
        _await(lambda: self.row("Interface", name)["ifindex"])
        return self.row("Interface", name)

    def stop(self, process: subprocess.Popen[bytes] | None) -> None:
        """End it, even where it was stopped."""
        if process and process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(20)

    def _start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.directory / f"{program}.log").open("ab")
        with log:
            return subprocess.Popen([*self.where, program, *arguments], env=self.environment, stdout=log, stderr=log)

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


def _plain(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    kind, inside = value
    return dict(inside) if kind == "map" else [_plain(one) for one in inside] if kind == "set" else inside


def _listens(place: Path) -> bool:
    """A socket is there before anybody listens on it."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(place)) == 0


def _await(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.005)


@contextlib.contextmanager
def switch(*bridges: str, netns: str = "", place: str = "", datapath: str = "netdev") -> Iterator[Switch]:
    """With these bridges; OVS_RUNDIR says where it is: at this *place*, or at one of its own."""
    before = os.environ.get("OVS_RUNDIR")
    there = contextlib.nullcontext(place) if place else tempfile.TemporaryDirectory(prefix="vhostnet-ovs-")
    with there as directory:
        made = Switch(Path(directory), netns, datapath)
        os.environ["OVS_RUNDIR"] = directory
        try:
            made.start_database()
            made.start_daemon()
            for bridge in bridges:
                made.add_bridge(bridge)
            yield made
            if datapath == "system":  # the kernel's outlives its daemon
                for bridge in bridges:
                    made.delete_bridge(bridge)
        finally:
            made.stop(made.daemon)
            made.stop(made.database)
            os.environ.pop("OVS_RUNDIR")
            if before:
                os.environ["OVS_RUNDIR"] = before
