from __future__ import annotations

import pytest

from lethe.classifier.text.disguises.pig_latin import decode_pig_latin
from tests.classifier.text.test_confusables import apply_edits

VOCABULARY = frozenset({"orvan", "teldric"})


@pytest.mark.parametrize(
    "text",
    [
        "Erewhay idday ethay eeperkay Orvanway Eldrictay owgray upway?",
        "Erewhay idday ethay eeperkay Orvanay Eldrictay owgray upay?",
        "Erewhay idday ethay eeperkay Orvanyay Eldrictay owgray upyay?",
        "ere-whay id-day e-thay eeper-kay orvan-way eldric-tay ow-gray up-way?",
    ],
)
def test_words_in_pig_latin_are_decoded(text: str) -> None:
    plain = apply_edits(text, decode_pig_latin(text, VOCABULARY))
    assert "keeper orvan teldric grow up" in plain


@pytest.mark.parametrize(
    "text",
    [
        "On Monday, Wednesday and Friday. On Tuesday and Thursday, and on Sunday.",
        "They say we may stay and play all day today, away from the bay.",
        "Ray Kay Fay May Jay",
        "",
    ],
)
def test_ordinary_words_that_end_alike_stay(text: str) -> None:
    assert decode_pig_latin(text, VOCABULARY) == []
