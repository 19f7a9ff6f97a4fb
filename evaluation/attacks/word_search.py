"""Black-box search for a form of a question, with words left out or replaced, that a detector misses.

The question must still name its subject: at least one of its capitalised words stays. The search sees the detector's
decisions and scores; each query counts against a budget. Both are greedy: a round tries one change at each word and
keeps the one that lowers the score most, as in TextFooler (Jin et al., arXiv:1907.11932).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from random import Random

from lethe.evaluation.attacks.suffix_search import Detector, SuffixSearch, SuffixSearchResult

# Words that a question must keep at least. Chosen: with fewer, nothing is asked.
MIN_WORDS = 3
# Words that stand for anything in a question. Tried first where a word is replaced.
_PLACEHOLDERS = ("it", "one", "that", "they", "thing")
_NAME = re.compile(r"[\"'“‘(]*[A-Z]\w")

Changes = Callable[[list[str], Random], Iterator[list[str]]]


def search_by_deletion(
    text: str, detect: Detector, words: Sequence[str], rng: Random, budget: int
) -> SuffixSearchResult:
    """Leave out one word a round, the one without which the score is lowest. At most `budget` queries."""
    return _search_greedily(text, detect, lambda current, _: _without_one_word(current), rng, budget)


def search_by_replacement(
    text: str, detect: Detector, words: Sequence[str], rng: Random, budget: int
) -> SuffixSearchResult:
    """Replace one word a round by a pronoun or one of `words`. At most `budget` queries."""

    def replace_one_word(current: list[str], rng: Random) -> Iterator[list[str]]:
        for i in range(len(current)):
            yield [
                *current[:i],
                rng.choice((*_PLACEHOLDERS, *rng.sample(words, min(len(words), 5)))),
                *current[i + 1 :],
            ]

    return _search_greedily(text, detect, replace_one_word, rng, budget)


def _without_one_word(current: list[str]) -> Iterator[list[str]]:
    for i in range(len(current)):
        yield [*current[:i], *current[i + 1 :]]


def _search_greedily(text: str, detect: Detector, changes: Changes, rng: Random, budget: int) -> SuffixSearchResult:
    """Apply the change that lowers the score most, round after round; the first query is the text itself."""
    best = detect(text)
    current, queries = text.split(), 1
    names = {word for word in current[1:] if _NAME.match(word)} or set(current)
    while best.flagged and queries < budget:
        lowest, lowest_words = best, current
        for changed in changes(current, rng):
            if len(changed) < MIN_WORDS or names.isdisjoint(changed) or queries >= budget:
                continue
            decision = detect(" ".join(changed))
            queries += 1
            if not decision.flagged:
                return SuffixSearchResult(True, " ".join(changed), queries)
            if decision.score < lowest.score:
                lowest, lowest_words = decision, changed
        if lowest_words is current:
            break
        best, current = lowest, lowest_words
    return SuffixSearchResult(not best.flagged, " ".join(current), queries)


WORD_SEARCHES = (
    SuffixSearch("word-deletion", "Words left out, chosen by the detector's score; a name stays", search_by_deletion),
    SuffixSearch(
        "word-replacement", "Words replaced, chosen by the detector's score; a name stays", search_by_replacement
    ),
)
