"""The rules of QEMU's bridge helper: that one and ours on the same files, by the same user, with the same outcome."""

import json
import sys

import pytest
from conftest import ROOT, link_names, need
from drop import housed, run

from vhostnet.others import bridge as bridges
from vhostnet.others.bridge_helper import find_helper

pytestmark = [pytest.mark.tap, pytest.mark.slow, pytest.mark.usefixtures("net")]

BESIDE = [sys.executable, "-W", "error", str(ROOT / "tests" / "others" / "beside.py")]
GIVEN, DENIED, UNUSABLE, REFUSED = "given", "denied", "unusable", "refused"
ALLOWED = "allow br0\n"
FD = "--fd={fd}"


def rules(text, more=None, **how):
    return {"files": {"bridge.conf": text, **({} if more is None else {"more": more})}, **how}


def asked(*words, text="allow all\n", **how):
    return rules(text, words=words, **how)


INCLUDED = "include /etc/qemu/more\n"
CASES = {
    # what it says
    "allowed": (GIVEN, rules(ALLOWED)),
    "all": (GIVEN, rules("allow all\n")),
    "of nobody": (DENIED, rules("")),
    "another": (DENIED, rules("allow br1\n")),
    "a longer name": (DENIED, rules("allow br00\n")),
    "denied": (DENIED, rules("deny br0\n")),
    "denied and all allowed": (DENIED, rules("allow all\ndeny br0\n")),
    "all allowed, and denied before": (DENIED, rules("deny br0\nallow all\n")),
    "all denied": (DENIED, rules("deny all\nallow br0\n")),
    "all denied afterwards": (DENIED, rules("allow br0\ndeny all\n")),
    "another denied": (GIVEN, rules("allow all\ndeny br1\n")),
    "no file": (UNUSABLE, {"files": {}}),
    "a file of root's": (UNUSABLE, rules(ALLOWED, mode=0o600)),
    "a file of root's, for root": (GIVEN, rules(ALLOWED, mode=0o600, root=True)),
    "for root": (DENIED, rules("deny br0\n", root=True)),
    # how it is written
    "a comment": (GIVEN, rules("# deny all\n  # deny all\n\n \t\n" + ALLOWED)),
    "a comment behind it": (DENIED, rules("allow br0 # it\n")),
    "no end": (GIVEN, rules("allow br0")),
    "a tab": (GIVEN, rules("allow\tbr0\n")),
    "a tab and a space": (UNUSABLE, rules("allow\t br0\n")),
    "spaces": (GIVEN, rules(" \t allow \t br0 \t \n")),
    "of DOS": (GIVEN, rules("allow br0\r\n")),
    "a vertical tab": (UNUSABLE, rules("\vallow br0\n")),
    "a NUL": (GIVEN, rules("allow br0\0x\n")),
    "a NUL in front": (DENIED, rules("\0allow br0\n")),
    "two names": (DENIED, rules("allow br0 br1\n")),
    "no name": (DENIED, rules("allow \n")),
    "nothing behind it": (UNUSABLE, rules("allow br0\nallow\n")),
    "in capitals": (UNUSABLE, rules("Allow br0\n")),
    "ALL": (DENIED, rules("allow ALL\n")),
    "nonsense": (UNUSABLE, rules("allow br0\nnonsense here\n")),
    "15 bytes": (GIVEN, rules("allow 0123456789abcde\nallow br0\n")),
    "16 bytes": (UNUSABLE, rules("allow 0123456789abcdef\nallow br0\n")),
    "not UTF-8": (GIVEN, rules("allow \xff\nallow br0\n")),
    "a line that is one yet": (GIVEN, rules("#" + 4093 * "x" + "\nallow br0\n")),
    "a line that is two": (GIVEN, rules("#" + 4094 * "x" + "allow br0\n")),
    # what it includes
    "included": (GIVEN, rules(INCLUDED, ALLOWED, group=4711)),
    "included, and not to be read": (DENIED, rules(INCLUDED, ALLOWED)),
    "included, and not there": (GIVEN, rules("include /none\n" + ALLOWED)),
    "included, for root": (GIVEN, rules(INCLUDED, ALLOWED, root=True)),
    "denied there": (DENIED, rules(ALLOWED + INCLUDED, "deny br0\n", group=4711)),
    "denied where it cannot be read": (GIVEN, rules(ALLOWED + INCLUDED, "deny br0\n")),
    "malformed there": (GIVEN, rules(INCLUDED, "allow br0\nnonsense\ndeny br0\n", group=4711)),
    "malformed before it": (DENIED, rules(INCLUDED, "nonsense\nallow br0\n", group=4711)),
    "malformed here": (UNUSABLE, rules(INCLUDED + "nonsense\n", ALLOWED, group=4711)),
    "a directory": (GIVEN, rules("include /etc/qemu\n" + ALLOWED)),
    "a path with spaces": (GIVEN, rules("include /no where\n" + ALLOWED)),
    "twice": (GIVEN, rules(INCLUDED + INCLUDED, ALLOWED, group=4711)),
    # what is asked for
    "without vnet_hdr": (GIVEN, asked("--br=br0", FD)),
    "in another order": (GIVEN, asked(FD, "--br=br0", "--use-vnet")),
    "the last one counts": (GIVEN, asked("--br=br1", "--fd=99", "--br=br0", FD)),
    "no such bridge": (REFUSED, asked("--br=br7", FD)),
    "no bridge": (REFUSED, asked("--br=lo", FD)),
    "a name that is none": (REFUSED, asked("--br=", FD)),
    "a name of 16 bytes": (REFUSED, asked("--br=0123456789abcdef", FD)),
    "nothing": (REFUSED, asked()),
    "no --br": (REFUSED, asked(FD)),
    "no --fd": (REFUSED, asked("--br=br0")),
    "another word": (REFUSED, asked("--br=br0", FD, "more")),
    "another option": (REFUSED, asked("--br=br0", FD, "--netns=x")),
    "a closed fd": (REFUSED, asked("--br=br0", "--fd=99")),
    "a fd that is no socket": (REFUSED, asked("--br=br0", "--fd=0")),
    "a fd that is no number": (REFUSED, asked("--br=br0", "--fd=x")),
    "a fd below 0": (REFUSED, asked("--br=br0", "--fd=-1")),
    "no privilege": (REFUSED, rules(ALLOWED, powerless=True)),
    "no privilege, and denied": (DENIED, rules("deny br0\n", powerless=True)),
}


@pytest.fixture(scope="module", autouse=True)
def _helper():
    need("setpriv")
    need("helper")


@pytest.fixture
def beside(net):
    """Runs the script, in a network with a bridge."""
    bridges.make_bridge("br0", mtu=1400)

    def answer(*words, cases=None):
        done = run(*housed(find_helper(), ALLOWED), *BESIDE, *words, stdin=json.dumps(cases))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    before = link_names()
    yield answer
    assert link_names() == before


def test_the_same_outcome_in_every_case(beside):
    answers = beside(cases=[case for _, case in CASES.values()])
    for (name, (expected, _)), (real, told, ours, said) in zip(CASES.items(), answers, strict=True):
        assert real == {**ours, "silent": real["silent"]}, f"{name}: {told!r}, and we: {said!r}"
        assert outcome(real) == expected, f"{name}: {told}"
        assert real["left"] == [], name
        assert real["nics"] == [] or real["nics"][0]["mtu"] == 1400, name
        assert "Traceback" not in said, said
        assert ours["silent"] or said.startswith(("vhostnet", "usage: vhostnet helper")), said


def outcome(seen):
    if seen["code"] == 0:
        assert (seen["message"], seen["fds"], len(seen["nics"])) == ("00", 1, 1)
        return GIVEN
    assert (seen["code"], seen["message"], seen["fds"], seen["nics"]) == (1, "", 0, [])
    return DENIED if seen["denied"] else UNUSABLE if seen["unusable"] else REFUSED


def test_the_same_verdict_on_whatever_is_written(beside):
    answers = beside("600")
    assert [answer for answer in answers if answer[2] != answer[3]] == []
    assert len({answer[2] for answer in answers}) == 3
