from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from lethe.evaluation.attacks.suffix_search import SEARCHES, DetectorDecision, search_by_decision, search_by_score

TEXT = "secret"
WORDS = ["tea", "rain", "bread", "secret"]
SEARCH_FUNCTIONS = [search.search for search in SEARCHES]


def diluted(text: str) -> DetectorDecision:
    """A detector that scores the share of one word in the text: added words lower the score."""
    words = text.split()
    score = words.count(TEXT) / len(words)
    return DetectorDecision(score >= 0.1, score)


def counting(detect: Callable[[str], DetectorDecision]) -> tuple[Callable[[str], DetectorDecision], list[str]]:
    queries: list[str] = []

    def detect_and_record(text: str) -> DetectorDecision:
        queries.append(text)
        return detect(text)

    return detect_and_record, queries


@pytest.mark.parametrize("search", SEARCH_FUNCTIONS)
@pytest.mark.parametrize("budget", [1, 2, 3, 9, 40])
def test_no_search_makes_more_queries_than_its_budget(search, budget: int) -> None:  # type: ignore[no-untyped-def]
    detect, queries = counting(lambda text: DetectorDecision(True, 0.9))
    result = search(TEXT, detect, WORDS, Random(0), budget)
    assert (result.flipped, result.queries, len(queries)) == (False, budget, budget)
    assert queries[0] == TEXT


@pytest.mark.parametrize("search", SEARCH_FUNCTIONS)
def test_a_detector_that_can_be_diluted_is_flipped(search) -> None:  # type: ignore[no-untyped-def]
    detect, queries = counting(diluted)
    result = search(TEXT, detect, ["tea", "rain"], Random(1), 200)
    assert result.flipped and result.queries == len(queries) and result.text == queries[-1]
    assert TEXT in result.text.split() and not diluted(result.text).flagged


@pytest.mark.parametrize("search", SEARCH_FUNCTIONS)
def test_a_text_that_passes_anyway_costs_one_query(search) -> None:  # type: ignore[no-untyped-def]
    result = search(TEXT, lambda text: DetectorDecision(False, 0.0), WORDS, Random(0), 50)
    assert (result.flipped, result.queries, result.text) == (True, 1, TEXT)


def test_the_greedy_search_keeps_only_additions_that_lower_the_score() -> None:
    # 64 words are needed, more than one addition has: the search must keep the best addition of each round.
    detect, queries = counting(lambda text: DetectorDecision(len(text.split()) < 64, 1 / len(text.split())))
    result = search_by_score(TEXT, detect, ["tea"], Random(0), 400)
    assert result.flipped and len(result.text.split()) >= 64

    def rising(text: str) -> DetectorDecision:
        return DetectorDecision(True, float(len(text.split())))

    assert search_by_score(TEXT, rising, ["tea"], Random(0), 40).text == TEXT


def test_the_random_search_reads_no_score() -> None:
    class Blind(DetectorDecision):
        @property
        def score(self) -> float:  # type: ignore[override]
            raise AssertionError("a score was read")

        def __init__(self) -> None:
            object.__setattr__(self, "flagged", True)

    detect, queries = counting(lambda text: Blind())
    search_by_decision(TEXT, detect, WORDS, Random(0), 30)
    lengths = [len(text.split()) for text in queries]
    assert max(lengths) > 40 and lengths == sorted(lengths)


@pytest.mark.parametrize("search", SEARCH_FUNCTIONS)
def test_searches_are_repeatable(search) -> None:  # type: ignore[no-untyped-def]
    assert search(TEXT, diluted, WORDS, Random(4), 30) == search(TEXT, diluted, WORDS, Random(4), 30)
