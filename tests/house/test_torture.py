"""The torture's code runs, with small numbers; the numbers that count are for ``make torture``."""

import pytest
from conftest import open_fds

from tests.torture.parts import PARTS

pytestmark = [pytest.mark.tap, pytest.mark.slow, pytest.mark.usefixtures("net")]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_promise_is_kept(part):
    before = open_fds()
    _, broken = part.run_small()
    assert broken == []
    assert open_fds() == before
