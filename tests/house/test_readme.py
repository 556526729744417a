"""What README says is printed is printed, its commands are there, and so is what pages link to."""

import re
import subprocess
import sys

import pytest
from conftest import BRIDGE, ROOT

README = (ROOT / "README.md").read_text()


def run(*arguments, **how):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False, **how)


def test_there_is_something_to_run():
    assert "make demo" in README
    assert "make test" in README


@pytest.mark.tap
@pytest.mark.slow
def test_the_pool_example_runs(bridge):
    done = run("-W", "error", "examples/pool.py", BRIDGE, "4")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("<Nic vnp") == 2


@pytest.mark.tap
@pytest.mark.slow
def test_the_plan_is_the_plan(bridge):
    (shown,) = re.findall(r"```text\n(0  TAP_OPEN.*?)```", README, re.DOTALL)
    done = run("-m", "vhostnet", "plan", "examples/seed.xml")
    # what is left of fds, memory and ports is the host's
    assert re.sub(r"\(\d+\)", "(7)", no_limits(done.stdout)) == no_limits(shown)


def no_limits(text):
    return re.sub(r" of \d+ ", " of N ", text)


@pytest.mark.parametrize("command", re.findall(r"^vhostnet (\w+) .*#", README, re.MULTILINE))
def test_the_commands_are_there(command):
    done = run("-m", "vhostnet", command, "--help")
    assert command in done.stdout


FOLDERS = ("bench", "examples")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
PAGES += [*(ROOT / folder / "README.md" for folder in FOLDERS)]
PAGES += sorted((ROOT / "docs").glob("*.md"))
LINKS = [(page, link) for page in PAGES for link in sorted(set(re.findall(r"\]\(([^)#:]+)\)", page.read_text())))]


@pytest.mark.parametrize(("page", "link"), LINKS, ids=[f"{page.relative_to(ROOT)}-{link}" for page, link in LINKS])
def test_the_links_lead_somewhere(page, link):
    assert (page.parent / link).exists()
