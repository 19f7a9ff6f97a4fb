"""Stop words."""

from __future__ import annotations

from lethe.corruption.phrases.normalize import fold
from lethe.corruption.phrases.stopwords import STOP_WORDS


def test_stop_words_are_folded() -> None:
    assert all(fold(word) == word for word in STOP_WORDS)
    assert {"yes", "no", "the"} <= STOP_WORDS
