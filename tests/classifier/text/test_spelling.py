from __future__ import annotations

import pytest

from lethe.classifier.text import spelling
from lethe.classifier.text.spelling import one_slip, repaired
from tests.classifier.text.test_confusables import made

VOCABULARY = frozenset({"vardholm", "teldric", "velsund", "written"})


@pytest.mark.parametrize("word", ["Vardhlm", "Vardhholm", "Vradholm", "Vsrdholm", "ardholm", "Vardholme"])
def test_a_word_one_slip_away_is_taken_for_the_one_that_is_known(word: str) -> None:
    text = f"Who lives in {word}?"
    assert made(text, repaired(text, VOCABULARY)) == "Who lives in vardholm?"


@pytest.mark.parametrize("text", ["Who lives in Vardholm?", "Who lives in Vrdhlm?", "Who lives there?", "wrtten", ""])
def test_what_is_known_or_too_far_away_or_ordinary_stays(text: str) -> None:
    assert repaired(text, VOCABULARY) == []
    assert repaired("Who lives in Vardhlm?") == []


def test_a_large_vocabulary_is_looked_up_by_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Who lives in Vradholm, and did Teldricc or Velsnd? It is ardholm."
    few = made(text, repaired(text, VOCABULARY))
    monkeypatch.setattr(spelling, "MOST_LISTED", 2)
    spelling._neighbours.cache_clear()
    assert (
        made(text, repaired(text, VOCABULARY))
        == few
        == "Who lives in vardholm, and did teldric or velsund? It is vardholm."
    )
    spelling._neighbours.cache_clear()


def test_somebody_elses_name_stays() -> None:
    assert repaired("Who lives in Vardhlm?", VOCABULARY, lambda word: word == "vardhlm") == []


def test_several_slips_in_ordinary_words_count_together() -> None:
    text = "It was wriitten, and wrtten again"
    assert made(text, repaired(text, VOCABULARY)) == "It was written, and written again"


@pytest.mark.parametrize(
    ("word", "other", "one"),
    [
        ("abcd", "abd", True),
        ("abcd", "abxcd", True),
        ("abcd", "abxd", True),
        ("abcd", "acbd", True),
        ("abcd", "bcde", False),
        ("abcd", "adcb", False),
        ("abcd", "badc", False),
        ("abcd", "ab", False),
        ("abcd", "abcdef", False),
    ],
)
def test_what_one_slip_is(word: str, other: str, one: bool) -> None:
    assert one_slip(word, other) == one_slip(other, word) == one
