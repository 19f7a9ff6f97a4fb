"""Black-box search for harmless words that make a detector miss a prompt.

The search sees only the detector's decisions and scores; each query counts against a budget. It is a greedy coordinate
search over words, without gradients: after the suffix attacks of Zou et al. (arXiv:2307.15043), in the black-box form
of Andriushchenko et al. (arXiv:2404.02151).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

# Words added at once, at most.
MAX_ADDED_WORDS = 8
# Additions tried in a round of the greedy search, of which the best is taken.
CANDIDATES_PER_ROUND = 8
# Words that the random search adds, at most.
MAX_RANDOM_WORDS = 64


@dataclass(frozen=True)
class DetectorDecision:
    """The detector's decision on one text, and its score."""

    flagged: bool
    score: float


@dataclass(frozen=True)
class SuffixSearchResult:
    """The result of a search. flipped: whether `text` passes the detector. queries: texts the detector judged."""

    flipped: bool
    text: str
    queries: int


Detector = Callable[[str], DetectorDecision]


def search_by_score(text: str, detect: Detector, words: Sequence[str], rng: Random, budget: int) -> SuffixSearchResult:
    """Search greedily: each round keeps the addition that lowers the score most, if one does.

    An addition is 1 to MAX_ADDED_WORDS words before or after the text. Makes at most `budget` queries; the first is
    the text itself.
    """
    best = detect(text)
    current, queries = text, 1
    while best.flagged and queries < budget:
        tried: list[tuple[float, str, DetectorDecision]] = []
        for _ in range(min(CANDIDATES_PER_ROUND, budget - queries)):
            changed = _add_before_or_after(current, rng.choices(words, k=rng.randint(1, MAX_ADDED_WORDS)), rng)
            decision = detect(changed)
            queries += 1
            if not decision.flagged:
                return SuffixSearchResult(True, changed, queries)
            tried.append((decision.score, changed, decision))
        score, changed, decision = min(tried, key=lambda candidate: candidate[0])
        if score < best.score:
            current, best = changed, decision
    return SuffixSearchResult(not best.flagged, current, queries)


def search_by_decision(
    text: str, detect: Detector, words: Sequence[str], rng: Random, budget: int
) -> SuffixSearchResult:
    """Try random additions of 1 to MAX_RANDOM_WORDS words; uses the decision only, never the score.

    Makes at most `budget` queries; the first is the text itself.
    """
    queries = 1
    if not detect(text).flagged:
        return SuffixSearchResult(True, text, queries)
    while queries < budget:
        # Lengths grow geometrically over the budget: short additions first, since they change the prompt least.
        length = round(MAX_RANDOM_WORDS ** (queries / max(budget - 1, 1)))
        added = rng.choices(words, k=length)
        before = rng.choice((0, length // 2, length))
        changed = " ".join([*added[:before], text, *added[before:]])
        queries += 1
        if not detect(changed).flagged:
            return SuffixSearchResult(True, changed, queries)
    return SuffixSearchResult(False, text, queries)


def _add_before_or_after(text: str, added: Sequence[str], rng: Random) -> str:
    return " ".join([*added, text] if rng.random() < 0.5 else [text, *added])


@dataclass(frozen=True)
class SuffixSearch:
    """A named search method."""

    name: str
    about: str
    search: Callable[[str, Detector, Sequence[str], Random, int], SuffixSearchResult]


SEARCHES = (
    SuffixSearch("suffix-search-scores", "Harmless words around it, chosen by the detector's score", search_by_score),
    SuffixSearch("suffix-search-decisions", "Harmless words around it, tried at random", search_by_decision),
)
