"""The newest results into docs/: JSON, plots, and the tables of performance.md and README.md.

python -m bench.figures  (make figures)

A table stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``, and is made of nothing but the JSON in docs/: who edits
one by hand loses it at the next run, and a test says so before.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.cases import CASES, ENGINES, HERE, OTHERS, WORLD_CASES
from bench.tables import TABLES, Results

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = (DOCS / "performance.md", ROOT / "README.md")
ENOUGH = 20_000  # NICs of our engines whose MACs were counted


def main() -> int:
    """Take what is newest and whole; what there is none of stays as it is."""
    for name, result in (("performance", _run()), ("macs", _counts()), ("libvirt", next(_results("libvirt-*"), None))):
        if result:
            (DOCS / f"{name}.json").write_text(json.dumps(result) + "\n")
    results = kept()
    for page in PAGES:
        page.write_text(filled(page.read_text(), results))
    from bench import plots  # only who draws needs matplotlib

    plots.draw_all(results["performance"], DOCS / "plots")
    return 0


def kept() -> Results:
    """The results that the documents speak of."""
    return {name: json.loads((DOCS / f"{name}.json").read_text()) for name in ("performance", "macs", "libvirt")}


def filled(page: str, results: Results) -> str:
    """The page with its tables made anew."""

    def table(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n{TABLES[found[1]](results)}\n<!-- /{found[1]} -->"

    return re.sub(r"<!-- ([a-z-]+) -->\n.*?<!-- /\1 -->", table, page, flags=re.DOTALL)


def _results(pattern: str) -> Iterator[Any]:
    """The newest first."""
    files = (ROOT / "bench" / "results").glob(f"{pattern}.json")
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        yield json.loads(file.read_text())


def _run() -> Any:
    tables = {case.name for case in CASES} | {f"{case.name}, {HERE}" for case in WORLD_CASES}
    return next((result for result in _results("[0-9]*") if tables <= result["ns"].keys()), None)


def _counts() -> list[Any]:
    """Of each Debian's udevd the last count of our NICs, if of enough, and the last of the others'."""
    whole: dict[str, Callable[[Any], bool]] = {
        "ours": lambda result: _who(result) == set(ENGINES) and sum(one["nics"] for one in result["counts"]) >= ENOUGH,
        "others": lambda result: _who(result) == set(OTHERS),
    }
    found: dict[tuple[str, str], Any] = {}
    for result in _results("macs-*"):
        for whose, is_whole in whole.items():
            if is_whole(result):
                found.setdefault((whose, result["host"]["udevd"]), result)
    return [found[key] for key in sorted(found, reverse=True)]


def _who(result: Any) -> set[str]:
    return {count["who"] for count in result["counts"]}


if __name__ == "__main__":
    sys.exit(main())
