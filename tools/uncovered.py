"""uncovered.py SOURCE LEAST [FUNCTION...]: how much of SOURCE was run, and the lines that were not.

Gcov's JSON is stdin. The functions named do not count. Exit code 1 for less than LEAST per cent.
"""

import json
import sys
from pathlib import Path


def main(source: str, least: str, *exempt: str) -> int:
    lines = counts(source, frozenset(exempt))
    text = Path(source).read_text().splitlines()
    missed = [number for number, count in sorted(lines.items()) if not count]
    for number in missed:
        print(f"{source}:{number}: {text[number - 1].strip()}")
    percent = 100 * (1 - len(missed) / len(lines))
    print(f"{source}: {len(lines)} lines, {len(missed)} missed, {percent:.1f}%")
    return int(percent < float(least))


def counts(source: str, exempt: frozenset[str]) -> dict[int, int]:
    """How often each line was run."""
    (file,) = (file for file in json.load(sys.stdin)["files"] if file["file"] == source)
    return {line["line_number"]: line["count"] for line in file["lines"] if line.get("function_name") not in exempt}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
