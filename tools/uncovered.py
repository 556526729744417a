"""uncovered.py LEAST [FUNCTION...]: how much of the C core was run, and the lines that were not.

Gcov's JSON, one document a file, is stdin. The functions named do not count. Exit code 1 for less than LEAST per cent.
"""

import json
import sys
from pathlib import Path

ROOMS = {str(path) for path in Path("src").glob("*.c")} - {"src/module.c"}  # which is cffi's


def main(least: str, *exempt: str) -> int:
    rooms = {file["file"]: file["lines"] for line in sys.stdin for file in json.loads(line)["files"]}
    assert rooms.keys() >= ROOMS, ROOMS - rooms.keys()
    every = missed = 0
    for room in sorted(ROOMS):
        text = Path(room).read_text().splitlines()
        counted = [line for line in rooms[room] if line.get("function_name") not in exempt]
        every += len(counted)
        for number in sorted(line["line_number"] for line in counted if not line["count"]):
            print(f"{room}:{number}: {text[number - 1].strip()}")
            missed += 1
    percent = 100 * (1 - missed / every)
    print(f"the C core: {every} lines, {missed} missed, {percent:.1f}%")
    return int(percent < float(least))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
