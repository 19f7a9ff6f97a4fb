"""The prompts of one half, and the phrases that their references forbid."""

from __future__ import annotations

from lethe.evaluation.tuning.candidate import PromptHalf
from lethe.evaluation.tuning.split import TuningItem


def test_a_half_tests_answers_for_its_own_forbidden_phrases() -> None:
    class Words:
        def count(self, word: str) -> int:
            return 100 if word.islower() else 0

    half = PromptHalf([TuningItem("Who wrote it?", "Pia Kovac wrote 'The Violin'.", 0)], Words())  # type: ignore[arg-type]
    (contains,) = half.contains_forbidden
    assert (
        contains("It was Pia Kovac.")
        and contains("the  VIOLIN, perhaps")
        and not contains("I don't know who wrote it.")
    )
    assert half.choices == [None]
