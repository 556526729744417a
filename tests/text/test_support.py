"""docs/libvirt.md says what the parser does."""

import subprocess
import sys

from conftest import ROOT

from vhostnet.text import elements

PAGE = (ROOT / "docs" / "libvirt.md").read_text()


def test_its_tables_are_those_that_the_parser_reads_by():
    done = subprocess.run([sys.executable, ROOT / "tools" / "support.py", "--check"], check=False)
    assert done.returncode == 0, "make them anew: tools/support.py"


def test_every_element_has_a_row():
    for path in (*elements.KNOWN, *elements.IGNORED_ELEMENTS, *elements.UNSUPPORTED_ELEMENTS, "address", "vlan/tag"):
        assert f"| `{path}` |" in PAGE
