"""Text folding."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from lethe.corruption.phrases.normalize import fold


@given(st.text(), st.text())
def test_folded_pieces_join_to_the_folded_whole(one: str, other: str) -> None:
    assert fold(one + other) == re.sub(" +", " ", fold(one) + fold(other))


@given(st.text())
def test_a_folded_text_has_lower_case_and_single_spaces(text: str) -> None:
    folded = fold(text)
    assert "  " not in folded
    assert folded == folded.casefold()


def test_variants_of_a_spelling_fold_to_the_same_text() -> None:
    spellings = ["Night’s  Café", "NIGHT'S\tCAFE", "night`s cafe\u0301", "Night-s\u00a0Ca\u00adfé"]
    assert {fold(spelling) for spelling in spellings} == {"night s cafe"}


def test_letters_of_unspaced_scripts_are_separate_words() -> None:
    assert fold("a東京b") == "a 東 京 b"
