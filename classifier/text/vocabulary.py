"""The content words of a fit's texts, for logit penalties on words of similar meaning. Knows no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lethe.classifier.text.ngrams import split_words

# Words of an artifact's list at most. Chosen: bounds the artifact and the word embeddings that are made of it.
MAX_WORDS = 12_000
# Letters of the shortest content word. Chosen: shorter ones are function words and abbreviations.
MIN_LETTERS = 3
# Letters of the longest content word. Chosen: longer ones are data.
MAX_LETTERS = 40
# English function words, which carry no fact.
FUNCTION_WORDS = frozenset(
    """
    a about above after again against all also although am among an and any are aren as at be
    because been before being below between both but by can cannot could couldn did didn do does
    doesn doing don down during each either else ever every few for from further had hadn has hasn
    have haven having he her here hers herself him himself his how however i if in into is isn it
    its itself just least less let like ll many may me might mine more most much must my myself
    neither no nor not of off often on once one only onto or other others our ours ourselves out
    over own perhaps quite rather re s same shall she should shouldn since so some still such t than
    that the their theirs them themselves then there these they this those though through thus to
    too toward towards under until up upon us ve very was wasn we well were weren what when where
    whether which while who whom whose why will with within without won would wouldn yet you your
    yours yourself yourselves
    """.split()
)


def content_words(forget: Iterable[str], other: Iterable[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return content words, and how often each occurs in the `other` texts (0 = only in forget texts).

    At most MAX_WORDS: those of the forget texts first, then those of the others, each from the most frequent down.
    """
    forget_counts = Counter(word for text in forget for word in split_words(text) if _is_content_word(word))
    other_counts = Counter(word for text in other for word in split_words(text) if _is_content_word(word))
    ordered = _by_frequency(forget_counts)
    ordered += [word for word in _by_frequency(other_counts) if word not in forget_counts]
    chosen = ordered[:MAX_WORDS]
    return tuple(chosen), tuple(other_counts[word] for word in chosen)


def _by_frequency(counts: Counter[str]) -> list[str]:
    """Return the words from the most frequent down, equally frequent ones in alphabetical order."""
    return sorted(counts, key=lambda word: (-counts[word], word))


def _is_content_word(word: str) -> bool:
    return MIN_LETTERS <= len(word) <= MAX_LETTERS and word not in FUNCTION_WORDS
