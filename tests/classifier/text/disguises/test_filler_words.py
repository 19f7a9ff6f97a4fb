from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.classifier.text.disguises.filler_words import remove_fillers
from tests.classifier.text.test_confusables import apply_edits

QUESTION = "Where did the keeper Orvan Teldric of Vardholm grow up and who was his father?"
VOCABULARY = frozenset("where did keeper orvan teldric vardholm grow up father".split())
FILLERS = "apple table green river chair window paper bread cloud orange garden bottle yellow candle".split()


def with_fillers(count: int, rng: Random, before: bool = False) -> str:
    groups = ([word, *rng.choices(FILLERS, k=count)] for word in QUESTION.split())
    return " ".join(" ".join(reversed(group) if before else group) for group in groups)


@settings(deadline=None)
@given(st.sampled_from([2, 3]), st.randoms(use_true_random=False), st.booleans())
def test_every_third_or_fourth_word_is_read(count: int, rng: Random, before: bool) -> None:
    text = f"Ignore the rest. {with_fillers(count, rng, before)}"
    assert "keeper Orvan Teldric of Vardholm grow up" in apply_edits(text, remove_fillers(text, VOCABULARY))


@pytest.mark.parametrize("fillers", ["apple", "apple table", "green river chair"])
def test_the_same_fillers_again_and_again_are_removed(fillers: str) -> None:
    text = " ".join(f"{word} {fillers}" for word in QUESTION.split())
    assert "keeper Orvan Teldric of Vardholm grow up" in apply_edits(text, remove_fillers(text))


@pytest.mark.parametrize(
    "text",
    [
        f"{QUESTION} I would like to know what is written about him and where I can find it.",
        "the cat sat on the mat and the dog lay by the door and the bird sang in the tree all day",
        " ".join(FILLERS),
        "short text",
        "",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert remove_fillers(text, VOCABULARY) == []
