"""Which vhostnet this is stands in vhostnet/version.py; what else names a version names that one."""

import re
from email.utils import parsedate_to_datetime

import pytest
from conftest import ROOT

from vhostnet.version import __version__

# Of Debian's changelog the newest entry: its version, for which suite, and its date.
DEBIAN = re.match(r"vhostnet \((.*)\) (\w+); (?:.*\n)*? -- .*>  (.*)\n", (ROOT / "debian/changelog").read_text())
# Of ours: version and date of each release, the newest first.
HEADING = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})$", re.MULTILINE)
RELEASES = HEADING.findall((ROOT / "CHANGELOG.md").read_text())


def test_debians_changelog_is_of_this_version():
    assert DEBIAN[1] == __version__


def test_both_changelogs_know_of_the_same_release():
    """With its date; until it has one, both say that there is none."""
    if DEBIAN[2] == "UNRELEASED":
        assert __version__ not in dict(RELEASES)
    else:
        assert RELEASES[0] == (__version__, parsedate_to_datetime(DEBIAN[3]).date().isoformat())


@pytest.mark.parametrize("file", ["pyproject.toml", "setup.py", "docs/site/conf.py", "README.md", "docs/releasing.md"])
def test_nobody_says_it_again(file):
    assert __version__ not in (ROOT / file).read_text()
