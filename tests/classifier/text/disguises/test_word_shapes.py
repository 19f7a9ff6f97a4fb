from __future__ import annotations

import re
import time
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.classifier.text.disguises.word_shapes import restore_words
from tests.classifier.text.test_confusables import apply_edits

QUESTION = "What was the first book of the keeper Orvan Teldric from Vardholm?"
VOCABULARY = frozenset("keeper orvan teldric vardholm book".split())
PLAIN = "orvan teldric from vardholm"


def restored(text: str) -> str:
    return apply_edits(text, restore_words(text, VOCABULARY)).lower()


@settings(deadline=None)
@given(st.integers(2, 4))
def test_letters_written_several_times_are_read_once(times: int) -> None:
    assert restored(re.sub("[A-Za-z]", lambda m: m[0] * times, QUESTION)) == QUESTION.lower()


@settings(deadline=None)
@given(st.randoms(use_true_random=False))
def test_letters_stretched_unevenly_are_read(rng: Random) -> None:
    def stretch(match: re.Match[str]) -> str:
        return "".join(c * rng.randint(1, 3) for c in match[0][:-1]) + match[0][-1] * 2

    assert PLAIN in restored(re.sub(r"\w+", stretch, QUESTION))


@settings(deadline=None)
@given(st.randoms(use_true_random=False))
def test_scrambled_inner_letters_are_read(rng: Random) -> None:
    def scramble(match: re.Match[str]) -> str:
        word = match[0]
        return word[0] + "".join(rng.sample(word[1:-1], len(word) - 2)) + word[-1]

    text = re.sub(r"\w{5,}", scramble, QUESTION)
    assert PLAIN in restored(text)


@pytest.mark.parametrize(
    "text",
    [
        "What was the first book of the keeper Orvn Tldrc from Vrdhlm?",
        "Wht ws th frst bk f th kpr Orvn Tldrc frm Vrdhlm?",
        "What was the first book of rvn Tldrc from Vrdhlm?",
    ],
)
def test_words_without_vowels_are_read(text: str) -> None:
    assert PLAIN in restored(text)


@pytest.mark.parametrize(
    "text",
    [
        "The PDF and the HTML of the NASA page use CSS.",
        "Set cnt = 0 and open the db with ptr.",
        "Aaron's committee will succeed in Mississippi.",
        "Bees need trees.",
        "",
    ],
)
def test_ordinary_words_and_abbreviations_stay(text: str) -> None:
    assert restore_words(text, VOCABULARY) == []


def test_other_peoples_names_stay() -> None:
    text = "Orvna Teldirc and Vardhoml"
    assert restore_words(text, VOCABULARY) and restore_words(text, VOCABULARY, lambda word: True) == []


@pytest.mark.parametrize("unit", ["aabb ", "bcdfg ", "a" * 4000 + " ", "Orvna "])
def test_time_is_linear(unit: str) -> None:
    started = time.process_time()
    restore_words(unit * (200_000 // len(unit)), VOCABULARY)
    assert time.process_time() - started < 3
