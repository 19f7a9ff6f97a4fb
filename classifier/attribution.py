"""Evidence spans: the words of a text that make the lexical models flag it, and the names and numbers around them.

Spans are characters of the raw text, so callers need no view. Knows no score and no action.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from lethe.classifier.artifact import Artifact
from lethe.classifier.index import similarity
from lethe.classifier.text import ngrams
from lethe.classifier.text.confusables import normalise_text
from lethe.classifier.text.views import text_views
from lethe.classifier.text.vocabulary import FUNCTION_WORDS

# Evidence spans of a text at most. Chosen: more would corrupt most of a prompt.
MAX_SPANS = 32
# A word is strong when its weight is at least this share of the highest weight of a word in the text ... Chosen, not
# measured.
MIN_STRONG_SHARE = 0.35
# ... and at least this logit: single n-grams of words that no forget item has carry less. Chosen, not measured.
MIN_STRONG_WEIGHT = 0.5
# Weight of an added item's rarest word; less rare ones carry less, in proportion to their idf. About what the strongest
# words of a fit carry. Chosen, not measured.
ADDED_WORD_WEIGHT = 3.0
# Characters between a name and a strong word up to which the name belongs to the evidence: about a sentence. Chosen,
# not measured.
MAX_NAME_DISTANCE = 120
# Characters before a word in which the end of a sentence is looked for: quotes and blanks may stand between.
SENTENCE_END_REACH = 8

_TOKEN = re.compile(r"[^\W_]+(?:(?!['’]s\b)['’.\-/&+][^\W_]+)*\+?")
_QUOTED = re.compile(r"\"[^\"\n]{1,120}\"|“[^”\n]{1,120}”|«[^»\n]{1,120}»|(?<!\w)['‘][^'’\n]{2,120}['’](?!\w)")
_SENTENCE_END = re.compile(r"[.?!:\n]\s*$")
# Characters between two spans of one name, date or title.
_SPAN_JOINT = re.compile(r"[\s\-–'’.,/&]{0,3}")
# Function words that are names when capitalised inside a sentence: a month and a first name.
_NO_NAMES = FUNCTION_WORDS - {"may", "will"}

Span = tuple[int, int]


def evidence_spans(artifact: Artifact, text: str, *, limit: int = MAX_SPANS) -> tuple[Span, ...]:
    """Spans (start, end) of raw `text`, disjoint and in order; of more than `limit`, the strongest.

    They hold the words with the largest positive weight, and the names, numbers and quoted titles around them. ()
    when no word is strong. Raises ValueError for a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"limit {limit} is below 1")
    strong = _strong_words(artifact, text)
    starts = sorted(start for start, _ in strong)
    near = [span for span in _name_spans(text) if _distance(span, starts) <= MAX_NAME_DISTANCE]
    spans = list(_merge_spans([*strong, *near], text))
    weight = dict.fromkeys(spans, 0.0)
    ends = [end for _, end in spans]
    for (_, end), word_weight in strong.items():
        weight[spans[bisect_left(ends, end)]] += word_weight
    strongest = sorted(spans, key=lambda span: (-weight[span], span))[:limit]
    return tuple(sorted(strongest))


def _strong_words(artifact: Artifact, text: str) -> dict[Span, float]:
    """Raw spans of the strong words of all views, with their weights; of decoded words, the whole encoded run."""
    words = list(_words_of_views(text, artifact))
    distinct = list(dict.fromkeys(word for word, _ in words if word not in FUNCTION_WORDS))
    weights = dict(zip(distinct, _word_weights(artifact, distinct), strict=True))
    min_weight = max(MIN_STRONG_SHARE * max(weights.values(), default=0.0), MIN_STRONG_WEIGHT)
    strong: dict[Span, float] = {}
    for word, span in words:
        if weights.get(word, 0.0) >= min_weight:
            strong[span] = max(strong.get(span, 0.0), weights[word])
    return strong


def _words_of_views(text: str, artifact: Artifact) -> Iterator[tuple[str, Span]]:
    """Every normalised word, and the words that only further views have, with their raw spans."""
    normal, offsets = normalise_text(text)
    for match in ngrams.WORD.finditer(normal):
        start, end = match.span()
        yield match[0], (int(offsets[start]), max(int(offsets[end]), int(offsets[end - 1]) + 1))

    def is_known(word: str) -> bool:
        return bool(artifact.known_buckets[ngrams.word_bucket(word)])

    for view in text_views(text, artifact.prompt_words, is_known, artifact.name_pairs):
        if view.name not in ("raw", "normalised"):
            for match in ngrams.WORD.finditer(view.text):
                if view.changed[match.start() : match.end()].any():
                    yield match[0].casefold(), view.raw_span(*match.span())


def _word_weights(artifact: Artifact, distinct: Sequence[str]) -> list[float]:
    """The logit that the word and the character model give for each word alone."""
    word = ngrams.word_rows(distinct).dot(artifact.arrays["word_weights"])
    character = ngrams.character_rows(distinct).dot(artifact.arrays["character_weights"])
    trained = [float(a + b) for a, b in zip(word, character, strict=True)]
    # The models weren't trained on added items: a word of theirs carries as much as it is rare.
    added = set(artifact.arrays["added_buckets"].tolist())
    if not added:
        return trained
    idf = similarity.idf(artifact.arrays["documents"])
    buckets = [ngrams.word_bucket(w) for w in distinct]
    return [
        max(weight, ADDED_WORD_WEIGHT * float(idf[bucket] / idf.max())) if bucket in added else weight
        for weight, bucket in zip(trained, buckets, strict=True)
    ]


def _name_spans(text: str) -> Iterator[Span]:
    """Quoted titles, words with digits, and capitalised words that don't begin a sentence."""
    for match in _QUOTED.finditer(text):
        yield match.span()
    for match in _TOKEN.finditer(text):
        word = match[0]
        before = max(match.start() - SENTENCE_END_REACH, 0)
        begins_sentence = match.start() == 0 or bool(_SENTENCE_END.search(text, before, match.start()))
        is_capitalised = word[0].isupper() and word.casefold() not in _NO_NAMES
        if any(c.isdigit() for c in word) or (is_capitalised and not begins_sentence):
            yield match.span()


def _distance(span: Span, starts: Sequence[int]) -> int:
    """Characters between the start of a span and the nearest of some sorted positions."""
    at = bisect_left(starts, span[0])
    near = [abs(starts[i] - span[0]) for i in (at - 1, at) if 0 <= i < len(starts)]
    return min(near, default=MAX_NAME_DISTANCE + 1)


def _merge_spans(spans: Iterable[Span], text: str) -> Iterator[Span]:
    """Spans in order; those that overlap, or have only blanks and punctuation between them, as one."""
    current: Span | None = None
    for start, end in sorted(spans):
        if current and (start <= current[1] or _SPAN_JOINT.fullmatch(text, current[1], start)):
            current = current[0], max(current[1], end)
        else:
            if current:
                yield current
            current = start, end
    if current:
        yield current
