from __future__ import annotations

import pytest

from lethe.classifier.text import spelling
from lethe.classifier.text.spelling import correct_spelling, is_one_edit_apart
from tests.classifier.text.test_confusables import apply_edits

VOCABULARY = frozenset({"vardholm", "teldric", "velsund", "written"})


@pytest.mark.parametrize("word", ["Vardhlm", "Vardhholm", "Vradholm", "Vsrdholm", "ardholm", "Vardholme"])
def test_a_word_one_edit_away_is_corrected(word: str) -> None:
    text = f"Who lives in {word}?"
    assert apply_edits(text, correct_spelling(text, VOCABULARY)) == "Who lives in vardholm?"


@pytest.mark.parametrize("text", ["Who lives in Vardholm?", "Who lives in Vrdhlm?", "Who lives there?", "wrtten", ""])
def test_known_distant_and_common_words_stay(text: str) -> None:
    assert correct_spelling(text, VOCABULARY) == []
    assert correct_spelling("Who lives in Vardhlm?") == []


def test_a_large_vocabulary_is_looked_up_by_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Who lives in Vradholm, and did Teldricc or Velsnd? It is ardholm."
    small = apply_edits(text, correct_spelling(text, VOCABULARY))
    monkeypatch.setattr(spelling, "MAX_DICTIONARY_WORDS", 2)
    spelling._candidate_lookup.cache_clear()
    assert (
        apply_edits(text, correct_spelling(text, VOCABULARY))
        == small
        == "Who lives in vardholm, and did teldric or velsund? It is vardholm."
    )
    spelling._candidate_lookup.cache_clear()


def test_names_of_others_stay() -> None:
    assert correct_spelling("Who lives in Vardhlm?", VOCABULARY, lambda word: word == "vardhlm") == []


def test_several_misspelt_common_words_are_corrected() -> None:
    text = "It was wriitten, and wrtten again"
    assert apply_edits(text, correct_spelling(text, VOCABULARY)) == "It was written, and written again"


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
def test_which_words_are_one_edit_apart(word: str, other: str, one: bool) -> None:
    assert is_one_edit_apart(word, other) == is_one_edit_apart(other, word) == one
