"""The work folder: what was finished is not made twice, and what was made of something else is made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from lethe.evaluation.unlearning.collect import Plan, Work
from lethe.evaluation.unlearning.systems import WAYS


def test_a_finished_piece_is_taken_from_the_folder(tmp_path: Path) -> None:
    made = []

    def make() -> list[int]:
        made.append(1)
        return [len(made)]

    assert Work(tmp_path).piece("way/answers", ["a"], make) == [1]
    assert Work(tmp_path).piece("way/answers", ["a"], make) == [1]
    assert Work(tmp_path).piece("way/answers", ["b"], make) == [2]
    assert len(made) == 2


def test_what_broke_off_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("gone")

    with pytest.raises(ValueError, match="gone"):
        Work(tmp_path).piece("p", [], fail)
    assert Work(tmp_path).piece("p", [], lambda: {"1": (2,)}) == {"1": [2]}
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_ways_that_promise_to_keep_secrets_are_drawn_more_often() -> None:
    plan = Plan((0, 1, 2), (0, 1, 2, 3, 4), rewordings=5)
    assert plan.seeds_of(WAYS["both"]) == plan.seeds_of(WAYS["penalize"]) == (0, 1, 2, 3, 4)
    assert plan.seeds_of(WAYS["corrupt-decoy-content"]) == plan.seeds_of(WAYS["unguarded"]) == (0, 1, 2)
