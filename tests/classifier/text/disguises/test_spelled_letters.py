from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.classifier.text.disguises.spelled_letters import decode_braille, decode_spelling_alphabet
from tests.classifier.text.test_confusables import apply_edits

SPELLED = ["Oscar Romeo Victor Alfa November", "Tango Echo Lima Delta Romeo India Charlie"]
CELLS = dict(zip("abcdefghijklmnopqrstuvwxyz", "⠁⠃⠉⠙⠑⠋⠛⠓⠊⠚⠅⠇⠍⠝⠕⠏⠟⠗⠎⠞⠥⠧⠺⠭⠽⠵", strict=True))


@pytest.mark.parametrize("between", [" / ", ". ", "\n", " | ", "   ", " space "])
@pytest.mark.parametrize("inside", [" ", "-", ", "])
def test_words_of_a_spelling_alphabet_are_read(between: str, inside: str) -> None:
    text = "Who was " + between.join(word.replace(" ", inside) for word in SPELLED) + "?"
    assert apply_edits(text, decode_spelling_alphabet(text)) == "Who was orvan teldric?"


def test_letters_without_word_gaps_are_split() -> None:
    text = " ".join(SPELLED)
    assert apply_edits(text, decode_spelling_alphabet(text, frozenset({"orvan", "teldric"}))) == "orvan teldric"


@pytest.mark.parametrize("text", ["Hotel Golf in India", "Romeo met Juliet in November, said Mike.", "echo 1"])
def test_a_few_such_words_stay(text: str) -> None:
    assert decode_spelling_alphabet(text) == []


@settings(deadline=None)
@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=3))
def test_braille_is_read(word: str) -> None:
    cells = "".join(map(CELLS.__getitem__, word))
    assert apply_edits(f"Say {cells} now", decode_braille(f"Say {cells} now")) == f"Say {word} now"


def test_braille_has_blanks_capitals_and_digits() -> None:
    text = "⠠⠕⠗⠧⠁⠝⠀⠼⠁⠊⠛⠁⠂⠀⠽⠑⠎"
    assert apply_edits(text, decode_braille(text)) == "orvan 1971, yes"
