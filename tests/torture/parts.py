"""The parts by name, in the order they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.torture.bridge_race import bridge_race
from tests.torture.close_race import close_race
from tests.torture.crashes import crashes
from tests.torture.forked import forked
from tests.torture.group_deletes import group_deletes
from tests.torture.kit import Outcome
from tests.torture.name_race import name_race
from tests.torture.rename_race import rename_race
from tests.torture.soak import soak
from tests.torture.strangers import strangers


@dataclass(frozen=True)
class Part:
    """``function()`` is the part with the numbers that count; ``function(**small)`` the one of every test run."""

    name: str
    function: Callable[..., Outcome]
    small: Mapping[str, int]

    def run(self) -> Outcome:
        return self.function()

    def run_small(self) -> Outcome:
        return self.function(**self.small)


PARTS = (
    Part("name race", name_race, {"processes": 4, "rounds": 2}),
    Part("rename race", rename_race, {"creations": 64, "rate": 1}),
    Part("group deletes", group_deletes, {"processes": 2, "rounds": 2}),
    Part("close race", close_race, {"rounds": 4}),
    Part("strangers", strangers, {"rounds": 8}),
    Part("forks", forked, {"rounds": 1}),
    Part("bridge race", bridge_race, {"rounds": 3}),
    Part("crashes", crashes, {}),
    Part("soak", soak, {"cycles": 1000}),
)
