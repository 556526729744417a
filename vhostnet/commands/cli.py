"""The command line: argparse, and each command a few lines over the library."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import vhostnet
from vhostnet import (
    EngineUnavailable,
    NameBusy,
    NotPermitted,
    SpecError,
    Unsupported,
    VhostnetError,
    VhostUnavailable,
)
from vhostnet.commands.options import (
    BROKER,
    FDS,
    HELPER,
    NETNS,
    POLICY,
    Parser,
    broker_options,
    dialect_options,
    helper_options,
    making_options,
    number_or_name,
    opening_options,
    passt_options,
    reading_options,
)
from vhostnet.commands.shared import UsageError, await_udev, check_used_up, next_of, opening, specs_of
from vhostnet.commands.showing import (
    check_json,
    cost_line,
    error_json,
    nic_json,
    nic_line,
    program_json,
    to_json,
    warnings_shown,
)
from vhostnet.process.netns import call_inside

OK, REFUSED, USAGE, BAD_SPEC, NOT_PERMITTED, BUSY, CANNOT = range(7)

EXIT_CODES = """exit codes: 0 done, 1 the kernel refused, 2 usage, 3 bad XML or spec, 4 not permitted, 5 name busy,
6 this host cannot (no tun, no vhost-net); a QEMU that refused is 1, too"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command: list[str] = []
    if "exec" in arguments[:1] and "--" in arguments:  # what follows belongs to the command that is run
        split = arguments.index("--")
        arguments, command = arguments[:split], arguments[split + 1 :]
    options = parser().parse_args(arguments)
    options.command_line = command
    with warnings_shown():
        try:
            return int(options.run(options))
        except (VhostnetError, UsageError) as error:
            print(to_json(error_json(error), default=str) if options.json else f"vhostnet: {error}", file=sys.stderr)
            return exit_code(error)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read us has enough
            return OK
        except KeyboardInterrupt:
            return 128 + signal.SIGINT


def exit_code(error: BaseException) -> int:
    """What the shell gets for *error*."""
    for kind, code in (
        (UsageError, USAGE),
        (SpecError, BAD_SPEC),
        (NotPermitted, NOT_PERMITTED),
        (NameBusy, BUSY),
        ((Unsupported, VhostUnavailable, EngineUnavailable), CANNOT),
    ):
        if isinstance(error, kind):
            return code
    return REFUSED


# --- the commands ----------------------------------------------------------------------------------------


def _argv(options: argparse.Namespace) -> int:
    specs = vhostnet.assign_machine(specs_of([options.file], options))
    if len(specs) > 1 and (options.alias or options.addr):
        raise UsageError(f"--alias and --addr are for one NIC, and {options.file} has {len(specs)}: --nic picks one")
    given = {name: iter(getattr(options, name)) for name in ("tap_fds", "vhost_fds", "vdpa_fd", "passt_socket")}
    argv = [
        word
        for spec in specs
        for word in vhostnet.qemu_argv(
            spec,
            **next_of(spec, given),
            alias=options.alias,
            bus=options.bus if spec.pci or len(specs) == 1 else None,
            addr=options.addr,
            dialect=options.dialect or "classic",
        )
    ]
    check_used_up(given)
    print(to_json(argv) if options.json else shlex.join(argv))
    return OK


def _plan(options: argparse.Namespace) -> int:
    specs = vhostnet.assign_machine(specs_of(options.files, options))
    made = [spec for spec in specs if spec.tap]
    program = vhostnet.plan_nics(made, **opening(options))
    cost = vhostnet.cost(program)
    left = vhostnet.limits(program, engine=options.engine, netns=options.netns)
    notes = vhostnet.effects(specs, program, engine=options.engine, netns=options.netns)
    if options.json:
        print(to_json({**program_json(program), "cost": cost._asdict(), "left": left._asdict(), "notes": notes}))
    else:
        print(program, cost_line(cost, left), *(f"note: {note}" for note in notes), sep="\n")
    return OK


def _exec(options: argparse.Namespace) -> int:
    from vhostnet.commands import running

    return running.run(options)


def _plug(options: argparse.Namespace) -> int:
    from vhostnet.commands import plugging

    return plugging.plug(options)


def _unplug(options: argparse.Namespace) -> int:
    from vhostnet.commands import plugging

    return plugging.unplug(options)


def _serve(options: argparse.Namespace) -> int:
    from vhostnet.commands import serving

    return serving.serve(options)


def _status(options: argparse.Namespace) -> int:
    from vhostnet.commands import serving

    return serving.status(options)


def _doctor_there(options: argparse.Namespace) -> int:
    return call_inside(options.netns, _doctor, options)


def _doctor(options: argparse.Namespace) -> int:
    from vhostnet.commands import doctor

    checks = []
    for check in _examine(options, doctor):
        checks.append(check)
        if not options.json:
            remedy = f"  -> {check.remedy}" if check.remedy else ""
            print(f"{check.state:<4}  {check.name:<12}  {check.detail}{remedy}", flush=True)
    if options.json:
        print(to_json([check_json(check) for check in checks], default=str))
    failed = [check for check in checks if check.state == "fail"]
    return exit_code(failed[0].error or VhostnetError()) if failed else OK


def _examine(options: argparse.Namespace, doctor: Any) -> Iterator[Any]:
    yield from doctor.examine()
    if options.files:
        try:
            specs = vhostnet.assign_machine(specs_of(options.files, options))
        except SpecError as error:
            yield doctor.Check("file", "fail", str(error), "", error)
        else:
            yield from doctor.examine_specs(specs)


def _create(options: argparse.Namespace) -> int:
    specs = [spec for spec in specs_of(options.files, options) if spec.tap and spec.managed is not False]
    how = {name: getattr(options, name) for name in ("engine", "netns", "qdisc", "owner", "group")}
    nics = vhostnet.open_nics(specs, vhost="off", persist=True, **how)
    await_udev(nics)
    shown = [{"ifname": nic.ifname, "ifindex": nic.ifindex, "mac": nic.mac, "mtu": nic.mtu} for nic in nics]
    vhostnet.close_nics(nics)
    print(to_json(shown) if options.json else "\n".join(nic["ifname"] for nic in shown))
    return OK


def _delete(options: argparse.Namespace) -> int:
    vhostnet.delete_nics(options.names, engine=options.engine, netns=options.netns)
    return OK


def _list(options: argparse.Namespace) -> int:
    found = vhostnet.list_nics(netns=options.netns)
    if options.json:
        print(to_json([nic_json(nic) for nic in found]))
    else:
        for nic in found:
            print(nic_line(nic))
    return OK


def _helper(options: argparse.Namespace) -> int:
    from vhostnet.commands import helper

    return helper.run(options)


def _demo(options: argparse.Namespace) -> int:
    from vhostnet.commands import demo

    return demo.main(nics=options.nics)


# --- the parser ------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The whole command line; the man page and the shell completions are made from it."""
    top = Parser(
        prog="vhostnet",
        description="libvirt <interface> XML in; an open multi-queue NIC and QEMU's arguments for it out.",
        epilog=EXIT_CODES,
    )
    top.add_argument("--version", action="version", version=f"vhostnet {vhostnet.__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    reading, making, dialect, passt = reading_options(), making_options(), dialect_options(), passt_options()
    opening, broker = opening_options(making), broker_options()

    argv = commands.add_parser(
        "argv", parents=[reading, dialect, passt], help="print QEMU's arguments for fds you have"
    )
    argv.add_argument("file", metavar="FILE", help="an <interface> or a <domain>; - reads standard input")
    for name, kind, metavar, what in FDS:
        argv.add_argument(name, type=kind, action="append", default=[], metavar=metavar, help=what)
    argv.add_argument("--alias", metavar="ID", help="the device's id (default: the XML's, or net0)")
    argv.add_argument("--bus", help="the PCI bus, such as pci.0")
    argv.add_argument("--addr", help="the PCI slot, such as 0x7")
    argv.set_defaults(run=_argv)

    plan = commands.add_parser(
        "plan", parents=[reading, opening], help="print every kernel act, in order, and what it costs; touch nothing"
    )
    plan.add_argument("files", metavar="FILE", nargs="+", help="an <interface> or a <domain>; - reads standard input")
    plan.set_defaults(run=_plan)

    run = commands.add_parser(
        "exec",
        parents=[reading, opening, dialect, passt, broker],
        help="open the NICs, append their arguments to a command and become it (or wait for it, where something of "
        "theirs would be left behind: a port of Open vSwitch, a downscript)",
        usage="vhostnet exec [options] FILE... -- COMMAND [ARGUMENT...]",
    )
    run.add_argument("files", metavar="FILE", nargs="+", help="an <interface> or a <domain>; - reads standard input")
    run.add_argument("--bus", help="the PCI bus of every NIC, such as pcie.0, instead of its <address>")
    run.set_defaults(run=_exec)

    _add_plugging(commands, reading, opening, passt, broker)

    doctor = commands.add_parser(
        "doctor", parents=[reading], help="say what this host can do, and why a file would fail"
    )
    doctor.add_argument("files", metavar="FILE", nargs="*", help="an <interface> or a <domain>; - reads standard input")
    doctor.add_argument("-n", "--netns", metavar="NETNS", help=f"look at {NETNS}")
    doctor.set_defaults(run=_doctor_there)

    _add_lasting(commands, reading, making)
    _add_broker(commands)

    helping = commands.add_parser("helper", parents=[helper_options()], help=HELPER)
    helping.set_defaults(run=_helper, json=False)

    demo = commands.add_parser("demo", help="the whole job, in a network namespace of its own")
    demo.add_argument("--nics", type=int, default=64, metavar="N", help="how many to time (default: 64)")
    demo.set_defaults(run=_demo, json=False)
    return top


def _add_broker(commands: Any) -> None:
    serve = commands.add_parser("serve", help="be a broker: make NICs for users who may make none, as a policy has it")
    serve.add_argument("--socket", default=BROKER, metavar="PATH", help=f"where (default: systemd's, or {BROKER})")
    serve.add_argument("--policy", default=POLICY, metavar="FILE", help=f"who may have what, TOML (default: {POLICY})")
    serve.add_argument("--check", action="store_true", help="read the policy, say what it is, and serve nobody")
    serve.add_argument("--engine", choices=("auto", "native", "pure"), default="auto", help="default: auto")
    serve.add_argument("-v", "--verbose", action="store_true", help="log each connection's end and each act, too")
    serve.add_argument("-j", "--json", action="store_true", help="the checked rules as JSON, errors too")
    serve.set_defaults(run=_serve)

    status = commands.add_parser("status", help="say what a broker does, and for whom")
    status.add_argument("socket", nargs="?", default=BROKER, metavar="SOCKET", help=f"its socket (default: {BROKER})")
    status.add_argument("-j", "--json", action="store_true", help="JSON out, errors on stderr too")
    status.add_argument("--metrics", action="store_true", help="as Prometheus reads it (a textfile, or an exporter's)")
    status.set_defaults(run=_status)


SOCKET = "QEMU's QMP socket: -qmp unix:PATH,server=on,wait=off"


def _add_plugging(commands: Any, *parents: Parser) -> None:
    plug = commands.add_parser("plug", parents=parents, help="open NICs and plug them into a QEMU that runs")
    plug.add_argument("socket", metavar="SOCKET", help=SOCKET)
    plug.add_argument("files", metavar="FILE", nargs="+", help="an <interface> or a <domain>; - reads standard input")
    plug.add_argument("--alias", metavar="ID", help="the device's id (default: the XML's, or a netN that is free)")
    plug.add_argument("--bus", help="the PCI bus, on q35 a pcie-root-port that is free")
    plug.add_argument("--addr", help="the PCI slot, such as 0x7")
    plug.set_defaults(run=_plug)

    unplug = commands.add_parser("unplug", help="unplug NICs from a QEMU that runs, when its guest lets go of them")
    unplug.add_argument("socket", metavar="SOCKET", help=SOCKET)
    unplug.add_argument("aliases", metavar="ID", nargs="+", help="the device's id, as plug printed it")
    unplug.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="of each guest (default: 30)")
    unplug.add_argument("-j", "--json", action="store_true", help="errors as JSON")
    unplug.set_defaults(run=_unplug)


def _add_lasting(commands: Any, reading: Parser, making: Parser) -> None:
    """The commands about NICs that are there when the command has ended."""
    listing = commands.add_parser("list", help="say which NICs here are ours, who made them and who has them open")
    listing.add_argument("-j", "--json", action="store_true", help="JSON out, errors on stderr too")
    listing.add_argument("-n", "--netns", metavar="NETNS", help=f"those of {NETNS}")
    listing.set_defaults(run=_list)

    create = commands.add_parser(
        "create", parents=[reading, making], help="make NICs that stay when nobody has them open, and print their names"
    )
    create.add_argument("files", metavar="FILE", nargs="+", help="an <interface> or a <domain>; - reads standard input")
    create.add_argument(
        "--owner", type=number_or_name, metavar="USER", help="who may open them without privileges: name or uid"
    )
    create.add_argument("--group", type=number_or_name, metavar="GROUP", help="those in it may, too: name or gid")
    create.set_defaults(run=_create)

    delete = commands.add_parser("delete", help="delete NICs of ours that nobody has open, all of them or none")
    delete.add_argument("names", metavar="NAME", nargs="+", help="as vhostnet list has it")
    delete.add_argument("-j", "--json", action="store_true", help="errors as JSON")
    delete.add_argument("--engine", choices=("auto", "native", "pure"), default="auto", help="default: auto")
    delete.add_argument("-n", "--netns", metavar="NETNS", help=f"those of {NETNS}")
    delete.set_defaults(run=_delete)
