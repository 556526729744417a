"""Imports point down: each room may import from the floors below its own, and from no other."""

import ast
import statistics
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "vhostnet"

# From the ground up. A module may import those of the lines before its own.
FLOORS = (
    {"vhostnet.errors", "vhostnet.values"},
    {"vhostnet.mac", "vhostnet.files", "vhostnet.forks", "vhostnet.udev", "vhostnet.settling"},
    {"vhostnet.netns"},
    {"vhostnet.spec"},
    {"vhostnet.elements", "vhostnet.machines", "vhostnet.document"},
    {"vhostnet.parse", "vhostnet.qemu", "vhostnet.command", "vhostnet.plan"},
    {"vhostnet.cost"},
    {"vhostnet._vhostnet", "vhostnet.engines._uapi", "vhostnet.engines._protocol"},
    {"vhostnet.engines._calls", "vhostnet.holders"},
    {"vhostnet.engines._rtnetlink"},
    {"vhostnet.engines._removal", "vhostnet.engines._links"},
    {"vhostnet.engines._acts"},
    {"vhostnet.engines._native", "vhostnet.engines._pure"},
    {"vhostnet.engines", "vhostnet.bridge"},
    {"vhostnet.marks", "vhostnet.reasons"},
    {"vhostnet.nic"},
    {"vhostnet.closing", "vhostnet.survey"},
    {"vhostnet.host", "vhostnet.others"},
    {"vhostnet.pool"},
    {"vhostnet.surroundings"},
    {"vhostnet.doctor", "vhostnet.demo"},
    {"vhostnet"},
    {"vhostnet.cli"},
    {"vhostnet.__main__"},
)
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}
MODULES = {
    ".".join(("vhostnet", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(path: Path) -> set[str]:
    """Every module of ours that *path* imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = names & FLOOR.keys()
            found |= ours | ({str(node.module)} if names - ours else set())
    return {name for name in found if name.partition(".")[0] == "vhostnet"}


def test_every_module_has_a_floor():
    assert set(MODULES) == set(FLOOR) - {"vhostnet._vhostnet"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module):
    upward = {name for name in imports(MODULES[module]) if FLOOR[name] >= FLOOR[module]}
    assert not upward


def test_only_document_reads_xml():
    users = {module for module, path in MODULES.items() if any(name.startswith("xml") for name in every_import(path))}
    assert users == {"vhostnet.document"}


def test_only_bridge_uses_pyroute2():
    users = {m for m, path in MODULES.items() if "pyroute2" in {n.partition(".")[0] for n in third_party(path)}}
    assert users == {"vhostnet.bridge"}


def every_import(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
    return found


def third_party(path: Path) -> set[str]:
    return {name for name in every_import(path) if name.partition(".")[0] not in sys.stdlib_module_names}


def test_functions_fit_on_a_screen():
    sizes = {
        f"{module}:{node.name}": node.end_lineno - node.lineno + 1
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: size for name, size in sizes.items() if size > 60} == {}


def test_c_functions_are_small():
    """Median of ten lines, sixty at the most: between a brace in the first column and the next one that closes."""
    lines = (PACKAGE.parent / "src" / "_vhostnet.c").read_text().splitlines()
    sizes, start = [], None
    for number, line in enumerate(lines):
        if line == "{":
            start = number
        elif line == "}" and start is not None:
            sizes.append(number - start - 1)
            start = None
    assert len(sizes) > 40
    assert max(sizes) <= 60
    assert statistics.median(sizes) <= 10
