"""Options of multiple-choice prompts, and the option that an answer chooses."""

from __future__ import annotations

import pytest

from lethe.evaluation.tuning.multiple_choice import chosen_letter, find_choices

QUESTION = "Which is largest?\nA. Mars\nB. Jupiter\nC. Venus\nD. Pluto\nAnswer:"


def test_options_are_found_in_the_prompt() -> None:
    choices = find_choices(QUESTION, "B")
    assert choices is not None and choices.correct == "B" and choices.options["C"] == "Venus"
    assert find_choices(QUESTION, "It is Jupiter.") == choices
    assert find_choices(QUESTION, "the Sun") is None
    assert find_choices("Which is largest?", "B") is None
    assert find_choices("A. J. Cronin wrote what?", "A") is None


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("B. Jupiter", "B"), (" (b) ", "B"), ("The answer is B.", "B"), ("Answer: C", "C"),
        ("Jupiter, of course", "B"), ("Mars or Venus", None), ("I don't know", None), ("", None),
        ("A planet", None), ("B Jupiter", "B"),
    ],
)  # fmt: skip
def test_the_letter_that_an_answer_chooses(answer: str, letter: str | None) -> None:
    choices = find_choices(QUESTION, "B")
    assert choices is not None
    assert chosen_letter(answer, choices.options) == letter
