"""Which words of a text made the lexical models point to the forget set, and what they name.

Knows no score and no action. Spans are characters of the raw text: whoever acts on them needs no view.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from lethe.classifier.artifact import Artifact
from lethe.classifier.index import similarity
from lethe.classifier.text import ngrams
from lethe.classifier.text.confusables import normalise
from lethe.classifier.text.views import views
from lethe.classifier.text.vocabulary import FUNCTION_WORDS

MOST_SPANS = 32
# A word stands out when it carries this share of what the strongest word of the text carries ...
SHARE = 0.35
# ... and at least this much: what one feature carries in an undecided model stays below.
FLOOR = 0.5
ADDED_WEIGHT = 3.0
# A name belongs to the evidence when it is at most this many characters away from a word that stands out.
NEAR = 120

_TOKEN = re.compile(r"[^\W_]+(?:(?!['’]s\b)['’.\-/&+][^\W_]+)*\+?")
_QUOTED = re.compile(r"\"[^\"\n]{1,120}\"|“[^”\n]{1,120}”|«[^»\n]{1,120}»|(?<!\w)['‘][^'’\n]{2,120}['’](?!\w)")
_SENTENCE_END = re.compile(r"[.?!:\n]\s*$")
# What may stand between two spans that are one name, date or title.
_JOINT = re.compile(r"[\s\-–'’.,/&]{0,3}")
# With a capital inside a sentence these two are a month and a man.
_NO_NAMES = FUNCTION_WORDS - {"may", "will"}

Span = tuple[int, int]


def evidence(artifact: Artifact, text: str, *, limit: int = MOST_SPANS) -> tuple[Span, ...]:
    """Spans (start, end) of raw `text`, disjoint and in order, at most the `limit` strongest.

    They hold the words with the largest positive weight, and the names, numbers and quoted titles around
    them. () when no word stands out. Raises ValueError for a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"limit {limit} is below 1")
    strong = _strong_words(artifact, text)
    starts = sorted(start for start, _ in strong)
    near = [span for span in _named(text) if _distance(span, starts) <= NEAR]
    spans = list(_joined([*strong, *near], text))
    weight = dict.fromkeys(spans, 0.0)
    ends = [end for _, end in spans]
    for (_, end), carried in strong.items():
        weight[spans[bisect_left(ends, end)]] += carried
    strongest = sorted(spans, key=lambda span: (-weight[span], span))[:limit]
    return tuple(sorted(strongest))


def _strong_words(artifact: Artifact, text: str) -> dict[Span, float]:
    """Raw spans of the words that stand out in some view, and what each carries; of decoded ones, the whole run."""
    found = list(_words(text, artifact))
    distinct = list(dict.fromkeys(word for word, _ in found if word not in FUNCTION_WORDS))
    carried = dict(zip(distinct, _carried(artifact, distinct), strict=True))
    least = max(SHARE * max(carried.values(), default=0.0), FLOOR)
    strong: dict[Span, float] = {}
    for word, span in found:
        if carried.get(word, 0.0) >= least:
            strong[span] = max(strong.get(span, 0.0), carried[word])
    return strong


def _words(text: str, artifact: Artifact) -> Iterator[tuple[str, Span]]:
    """Every word as it is normalised, and those that only further views have, with their raw spans."""
    normal, offsets = normalise(text)
    for match in ngrams.WORD.finditer(normal):
        start, end = match.span()
        yield match[0], (int(offsets[start]), max(int(offsets[end]), int(offsets[end - 1]) + 1))
    for view in views(text, artifact.prompt_words, lambda word: bool(artifact.familiar[ngrams.word_bucket(word)])):
        if view.name not in ("raw", "normalised"):
            for match in ngrams.WORD.finditer(view.text):
                if view.changed[match.start() : match.end()].any():
                    yield match[0].casefold(), view.raw_span(*match.span())


def _carried(artifact: Artifact, distinct: Sequence[str]) -> list[float]:
    """What the word and the character model give for each word alone."""
    word = ngrams.word_rows(distinct).dot(artifact.arrays["word_weights"])
    character = ngrams.character_rows(distinct).dot(artifact.arrays["character_weights"])
    trained = [float(a + b) for a, b in zip(word, character, strict=True)]
    # Added items have no weights: a word of theirs carries as much as it is rare.
    added = set(artifact.arrays["added_buckets"].tolist())
    if not added:
        return trained
    rare = similarity.rarity(artifact.arrays["documents"])
    buckets = [ngrams.word_bucket(w) for w in distinct]
    return [
        max(t, ADDED_WEIGHT * float(rare[b] / rare.max())) if b in added else t
        for t, b in zip(trained, buckets, strict=True)
    ]


def _named(text: str) -> Iterator[Span]:
    """Quoted titles, words with digits, and capitalised words that don't merely begin a sentence."""
    for match in _QUOTED.finditer(text):
        yield match.span()
    for match in _TOKEN.finditer(text):
        word = match[0]
        opens = match.start() == 0 or bool(_SENTENCE_END.search(text, max(match.start() - 8, 0), match.start()))
        capital = word[0].isupper() and word.casefold() not in _NO_NAMES
        if any(c.isdigit() for c in word) or (capital and not opens):
            yield match.span()


def _distance(span: Span, starts: Sequence[int]) -> int:
    """Characters between a span and the nearest of some sorted positions."""
    at = bisect_left(starts, span[0])
    near = [abs(starts[i] - span[0]) for i in (at - 1, at) if 0 <= i < len(starts)]
    return min(near, default=NEAR + 1)


def _joined(spans: Iterable[Span], text: str) -> Iterator[Span]:
    """Overlapping spans, and those with hardly anything between, as one."""
    current: Span | None = None
    for start, end in sorted(spans):
        if current and (start <= current[1] or _JOINT.fullmatch(text, current[1], start)):
            current = current[0], max(current[1], end)
        else:
            if current:
                yield current
            current = start, end
    if current:
        yield current
