"""The sorted list of forbidden phrases."""

from __future__ import annotations

import pytest

from lethe.corruption.phrases.normalize import fold
from lethe.corruption.phrases.phrase_list import ForbiddenPhrases
from lethe.corruption.phrases.stream_filter import AnswerFilter, FilterRule


def test_the_number_of_cached_nodes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lethe.corruption.phrases.phrase_list.MAX_CACHED_NODES", 20)
    phrases = ForbiddenPhrases([f"{first}{second} quill" for first in "abcdefgh" for second in "abcdefgh"])
    answer_filter = AnswerFilter([FilterRule("p", phrases)])
    for second in "abcdefgh":
        assert answer_filter.new_matcher().whole(f"x {second}a quill y") == "x "
        assert phrases._num_cached < 20 + 64


def test_equal_folded_phrases_count_once_and_empty_ones_never() -> None:
    assert len(ForbiddenPhrases(["…", "", "Zorin Quill", "ZORIN-QUILL"])) == 1
    assert fold("ZORIN-QUILL") == "zorin quill"
