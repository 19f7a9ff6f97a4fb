"""Black-box search for harmless words that make a detector let a prompt pass. Knows only what it is answered.

A greedy coordinate search over words instead of tokens and without gradients: after the suffix attacks of
Zou et al. (arXiv:2307.15043), in the black-box form of Andriushchenko et al. (arXiv:2404.02151). Every
question to the detector counts against the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

LONGEST_RUN = 8
ROUND = 8
MOST_WORDS = 64


@dataclass(frozen=True)
class Answer:
    """What the detector says of one text."""

    flagged: bool
    score: float


@dataclass(frozen=True)
class Found:
    """How a search ended: whether the last text asked about passes, that text, and the questions it took."""

    flipped: bool
    text: str
    queries: int


Ask = Callable[[str], Answer]


def by_scores(text: str, ask: Ask, words: Sequence[str], rng: Random, budget: int) -> Found:
    """Greedy: of each round of additions the one that lowers the score most is kept, if any does.

    An addition is a run of words before or after the text. At most `budget` questions, the first of them
    about the text itself.
    """
    best = ask(text)
    current, queries = text, 1
    while best.flagged and queries < budget:
        tried: list[tuple[float, str, Answer]] = []
        for _ in range(min(ROUND, budget - queries)):
            changed = _with_words(current, rng.choices(words, k=rng.randint(1, LONGEST_RUN)), rng)
            answer = ask(changed)
            queries += 1
            if not answer.flagged:
                return Found(True, changed, queries)
            tried.append((answer.score, changed, answer))
        score, changed, answer = min(tried, key=lambda one: one[0])
        if score < best.score:
            current, best = changed, answer
    return Found(not best.flagged, current, queries)


def by_decisions(text: str, ask: Ask, words: Sequence[str], rng: Random, budget: int) -> Found:
    """Random additions, from one word to MOST_WORDS, since a bare "flagged" says nothing about nearness.

    At most `budget` questions, the first of them about the text itself. Scores are not looked at.
    """
    queries = 1
    if not ask(text).flagged:
        return Found(True, text, queries)
    while queries < budget:
        # Lengths grow in equal ratios over the budget: short ones first, they change the question least.
        length = round(MOST_WORDS ** (queries / max(budget - 1, 1)))
        added = rng.choices(words, k=length)
        cut = rng.choice((0, length // 2, length))
        changed = " ".join([*added[:cut], text, *added[cut:]])
        queries += 1
        if not ask(changed).flagged:
            return Found(True, changed, queries)
    return Found(False, text, queries)


def _with_words(text: str, added: Sequence[str], rng: Random) -> str:
    return " ".join([*added, text] if rng.random() < 0.5 else [text, *added])


@dataclass(frozen=True)
class Search:
    """One way to search, by name."""

    name: str
    about: str
    find: Callable[[str, Ask, Sequence[str], Random, int], Found]


SEARCHES = (
    Search("suffix-search-scores", "Harmless words around it, chosen by the score that they lead to", by_scores),
    Search("suffix-search-decisions", "Harmless words around it, tried at random", by_decisions),
)
