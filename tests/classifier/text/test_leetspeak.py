from __future__ import annotations

import pytest

from lethe.classifier.text.leetspeak import decode_leet
from tests.classifier.text.test_confusables import apply_edits


def test_a_known_word_decides_which_letter_a_stroke_is() -> None:
    text = "wh0 wr0t3 7h3 b00k 1n N1k0141"
    assert apply_edits(text, decode_leet(text, frozenset({"nikoiai"}))).endswith("nikoiai")
    assert apply_edits(text, decode_leet(text, frozenset({"nikolai"}))).endswith("nikolai")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Wh0 wr0te 7he b00k 4b0ut V4rdh0lm?", "who wrote the book about vardholm?"),
        ("p@ssw0rd", "password"),
        ("wh47 15 7h3 n4m3 0f 1t", "what is the name of it"),
    ],
)
def test_digits_and_signs_become_letters(text: str, plain: str) -> None:
    assert apply_edits(text, decode_leet(text)) == plain


@pytest.mark.parametrize("text", ["the 1st of 20 mp3", "10kg at 7pm", "covid19", "05/11/1991", "3f2a9c8e7b6d5a4f3e2d"])
def test_ordinary_numbers_stay(text: str) -> None:
    assert decode_leet(text) == []
