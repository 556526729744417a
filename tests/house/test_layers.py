"""Imports point down: each wing may import from the floors below its own, and from no other."""

import ast
import graphlib
import statistics
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "vhostnet"

# From the ground up. A module imports from the wings below its own, and from its own without going in a circle.
FLOORS = (
    {"checks", "errors", "values", "version"},
    {"process"},
    {"spec"},
    {"program", "qemu", "text"},
    {"engines"},
    {"events"},
    {"slow"},
    {"others", "removal"},
    {"host"},
    {"handover"},
    {"broker"},
    {"qmp"},
    {"the public names", "aio", "observe"},
    {"commands"},
    {"__main__"},
)
FLOOR = {wing: number for number, wings in enumerate(FLOORS) for wing in wings}
OUTSIDE = {"vhostnet": "the public names", "vhostnet._vhostnet": "engines"}  # of the wings; the C core is compiled
ROOMS = sorted((ROOT / "src").glob("*.c"))  # of the C core
MODULES = {
    ".".join(("vhostnet", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def wing(module: str) -> str:
    return OUTSIDE.get(module) or module.split(".")[1]


def imports(path: Path) -> set[str]:
    """Every module of ours that *path* imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = names & (MODULES.keys() | OUTSIDE.keys())
            found |= ours | ({str(node.module)} if names - ours else set())
    return {name for name in found if name.partition(".")[0] == "vhostnet"}


def test_every_module_has_a_wing():
    assert {wing(module) for module in MODULES} == FLOOR.keys()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module):
    """Into the wings below, and on no floor from one wing to another."""
    own = wing(module)
    elsewhere = {name for name in imports(MODULES[module]) if wing(name) != own}
    assert {name for name in elsewhere if FLOOR[wing(name)] >= FLOOR[own]} == set()


def test_no_circles():
    order = graphlib.TopologicalSorter({module: imports(path) - {module} for module, path in MODULES.items()})
    assert len(list(order.static_order())) >= len(MODULES)


def test_wings_have_few_rooms():
    """One with more than eleven asks to be split."""
    rooms = Counter(wing(module) for module, path in MODULES.items() if path.name != "__init__.py")
    assert max(rooms.values()) <= 11


def test_only_document_reads_xml():
    users = {module for module, path in MODULES.items() if any(name.startswith("xml") for name in every_import(path))}
    assert users == {"vhostnet.text.document"}


def test_only_bridge_uses_pyroute2():
    users = {m for m, path in MODULES.items() if "pyroute2" in {n.partition(".")[0] for n in third_party(path)}}
    assert users == {"vhostnet.others.bridge"}


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
    lines = [line for path in ROOMS for line in path.read_text().splitlines()]
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
