"""The content words of a fit's texts, for penalties on words of similar meaning. Knows no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lethe.classifier.text.ngrams import words

MOST_WORDS = 12_000
SHORTEST = 3
# Function words carry no fact; everything else may.
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


def collect(forget: Iterable[str], other: Iterable[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Content words, and how often each stands in the `other` texts (0 = only in forget texts).

    At most MOST_WORDS: the forget texts' words first, then the others, each from the most frequent on.
    """
    secret = Counter(word for text in forget for word in words(text) if _carries(word))
    common = Counter(word for text in other for word in words(text) if _carries(word))
    ordered = [word for word, _ in sorted(secret.items(), key=lambda pair: (-pair[1], pair[0]))]
    ordered += [w for w, _ in sorted(common.items(), key=lambda pair: (-pair[1], pair[0])) if w not in secret]
    kept = ordered[:MOST_WORDS]
    return tuple(kept), tuple(common[word] for word in kept)


def _carries(word: str) -> bool:
    return SHORTEST <= len(word) <= 40 and word not in FUNCTION_WORDS
