from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from lethe.evaluation.attacks.suffix_search import SEARCHES, Answer, by_decisions, by_scores

TEXT = "secret"
WORDS = ["tea", "rain", "bread", "secret"]
FINDS = [search.find for search in SEARCHES]


def diluted(text: str) -> Answer:
    """A detector that looks at the share of one word: the kind that suffixes get around."""
    words = text.split()
    score = words.count(TEXT) / len(words)
    return Answer(score >= 0.1, score)


def counting(ask: Callable[[str], Answer]) -> tuple[Callable[[str], Answer], list[str]]:
    asked: list[str] = []

    def asking(text: str) -> Answer:
        asked.append(text)
        return ask(text)

    return asking, asked


@pytest.mark.parametrize("find", FINDS)
@pytest.mark.parametrize("budget", [1, 2, 3, 9, 40])
def test_no_search_asks_more_than_its_budget(find, budget: int) -> None:  # type: ignore[no-untyped-def]
    ask, asked = counting(lambda text: Answer(True, 0.9))
    found = find(TEXT, ask, WORDS, Random(0), budget)
    assert (found.flipped, found.queries, len(asked)) == (False, budget, budget)
    assert asked[0] == TEXT


@pytest.mark.parametrize("find", FINDS)
def test_a_detector_that_dilutes_is_flipped_with_the_text_kept(find) -> None:  # type: ignore[no-untyped-def]
    ask, asked = counting(diluted)
    found = find(TEXT, ask, ["tea", "rain"], Random(1), 200)
    assert found.flipped and found.queries == len(asked) and found.text == asked[-1]
    assert TEXT in found.text.split() and not diluted(found.text).flagged


@pytest.mark.parametrize("find", FINDS)
def test_what_passes_anyway_costs_one_question(find) -> None:  # type: ignore[no-untyped-def]
    found = find(TEXT, lambda text: Answer(False, 0.0), WORDS, Random(0), 50)
    assert (found.flipped, found.queries, found.text) == (True, 1, TEXT)


def test_the_greedy_search_keeps_only_what_lowers_the_score() -> None:
    # 64 words are needed; without keeping the best of each round no single addition would do.
    ask, asked = counting(lambda text: Answer(len(text.split()) < 64, 1 / len(text.split())))
    found = by_scores(TEXT, ask, ["tea"], Random(0), 400)
    assert found.flipped and len(found.text.split()) >= 64

    def rising(text: str) -> Answer:
        return Answer(True, float(len(text.split())))

    assert by_scores(TEXT, rising, ["tea"], Random(0), 40).text == TEXT


def test_the_blind_search_looks_at_no_score() -> None:
    class Blind(Answer):
        @property
        def score(self) -> float:  # type: ignore[override]
            raise AssertionError("a score was read")

        def __init__(self) -> None:
            object.__setattr__(self, "flagged", True)

    ask, asked = counting(lambda text: Blind())
    by_decisions(TEXT, ask, WORDS, Random(0), 30)
    lengths = [len(text.split()) for text in asked]
    assert max(lengths) > 40 and lengths == sorted(lengths)


@pytest.mark.parametrize("find", FINDS)
def test_searches_are_repeatable(find) -> None:  # type: ignore[no-untyped-def]
    assert find(TEXT, diluted, WORDS, Random(4), 30) == find(TEXT, diluted, WORDS, Random(4), 30)
