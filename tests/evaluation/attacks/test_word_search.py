from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.evaluation.attacks.suffix_search import DetectorDecision
from lethe.evaluation.attacks.word_search import MIN_WORDS, WORD_SEARCHES

QUESTION = "Which award did the keeper Orvan Teldric win for his books?"
WORDS = ["tea", "rain", "bread", "chair", "green", "hat"]
SEARCH_FUNCTIONS = [search.search for search in WORD_SEARCHES]


def by_word(weights: dict[str, float]):  # type: ignore[no-untyped-def]
    def detect(text: str) -> DetectorDecision:
        queries.append(text)
        score = sum(weights.get(word.strip("?"), 0.0) for word in text.split())
        return DetectorDecision(score >= 1, score)

    queries: list[str] = []
    return detect, queries


@pytest.mark.parametrize("search", SEARCH_FUNCTIONS)
def test_the_words_that_give_most_evidence_go_first(search) -> None:  # type: ignore[no-untyped-def]
    detect, queries = by_word({"Teldric": 0.7, "award": 0.6, "Orvan": 0.3, "books": 0.2})
    result = search(QUESTION, detect, WORDS, Random(0), 60)
    assert result.flipped and result.queries == len(queries) and result.text == queries[-1]
    assert "Orvan" in result.text and "Teldric" not in result.text


@pytest.mark.parametrize("search", SEARCH_FUNCTIONS)
def test_a_detector_that_needs_one_name_only_is_not_flipped(search) -> None:  # type: ignore[no-untyped-def]
    detect, queries = by_word({"Teldric": 1.0, "Orvan": 1.0})
    result = search(QUESTION, detect, WORDS, Random(0), 500)
    assert not result.flipped and len(queries) < 200


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["who", "is", "Orvan", "Teldric", "the", "book", "of"]), min_size=1, max_size=12),
    st.integers(1, 40),
    st.floats(0, 2),
    st.randoms(use_true_random=False),
)
def test_no_search_exceeds_its_budget_or_loses_the_subject(
    words: list[str], budget: int, weight: float, rng: Random
) -> None:
    for search in SEARCH_FUNCTIONS:
        detect, queries = by_word({"Orvan": weight, "book": 0.5})
        result = search(" ".join(words), detect, WORDS, rng, budget)
        assert result.queries == len(queries) <= budget
        names = [word for word in words[1:] if word[0].isupper()]
        if result.queries > 1:
            assert len(result.text.split()) >= min(MIN_WORDS, len(words))
            assert not names or set(names) & set(result.text.split())
