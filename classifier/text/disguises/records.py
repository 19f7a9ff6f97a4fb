"""Text written as records, one word or two in each: markup elements, links, JSON, rows of a table or of a log.

In such a text the signs between the words repeat with a fixed period. Words that are the same in most records (tags,
keys, levels) belong to the format; the words that differ are read in their order. Knows no view; returns edits. Work
is linear in the text's length.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.text.confusables import TextEdit

# Records in a row from which on a text counts as written in records. Chosen: fewer are ordinary lists and markup.
MIN_RECORDS = 5
# Words of one record, with those of its format, at most. Chosen: log lines have about ten.
MAX_PERIOD = 14
# Share of the records that may have the same word in one place for the place to hold text. Above that, the word belongs
# to the format. Chosen: in a question of twelve words, no word stands more than three times.
MAX_COMMON_SHARE = 0.45
# Different words in one place, as a share of the records, from which on it holds text. Chosen: levels of a log and
# names of workers are a handful.
MIN_DISTINCT_SHARE = 0.4
# Words of text in a record, on average, at most. Chosen: with more, the text can be read as it stands.
MAX_WORDS_OF_TEXT = 2
# Share of a run's separators that must be the same as one period before. Chosen: interruptions are few.
MIN_EQUAL_SHARE = 0.7
# Share of the separators of a run that must be signs of a format. Chosen: sentences in a list have one for each.
MIN_SIGN_SHARE = 0.3
# Records that a run may be interrupted by. Chosen: a word with a blank, a bracket or a comma of its own spoils one or
# two.
MAX_INTERRUPTION = 2

# A word, with hyphens, apostrophes and full stops inside (double names, possessives, initials).
_WORD = re.compile(r"(?<![^\W_])[^\W\d_]+(?:['’\-][^\W\d_]+)*(?![^\W_])")
# Anything with a digit inside counts as a number; numbers differ from record to record.
_NUMBER = re.compile(r"(?<![^\W_])(?=[^\W_]*[0-9])[^\W_]+")
# Punctuation of the text itself, before a sign of the format.
_PUNCTUATION = re.compile(r"^(?:[?!.]+|[,;:]+(?=[^\w\s]))(?=.)", re.S)
# What stands between the words of ordinary text.
_ORDINARY = re.compile(r"_|[ \n]*[\"'“”‘’(]?[,.;:?!]?[\"'“”‘’)]?[ \n]*")
# Without several of these a text has no format: brackets, quotes, other signs between words, or numbers.
_FORMAT_SIGN = re.compile(r"[^\w\s.,?!'’\-]|[0-9_\t]")


def read_records(text: str) -> list[TextEdit]:
    """Replace the format around the words of records by single blanks."""
    if sum(1 for _ in islice(_FORMAT_SIGN.finditer(text), MIN_RECORDS - 1)) < MIN_RECORDS - 1:
        return []
    words = [match for match in _WORD.finditer(text)]
    if len(words) < MIN_RECORDS:
        return []
    gaps = _separators(text, [match.span() for match in words])
    edits: list[TextEdit] = []
    for first, last, period in _periodic_runs(gaps):
        texts = _text_words([match[0].casefold() for match in words[first:last]], period)
        if texts is None:
            continue
        kept = [words[first + i].span() for i in np.flatnonzero(texts)]
        edits += keep_words(text, kept)
    return edits


def keep_words(text: str, words: Sequence[tuple[int, int]]) -> list[TextEdit]:
    """Return the edits that leave one blank between some words, given by their spans, and nothing else.

    Each edit takes the first letter of the word after the gap with it, so that the word counts as changed.
    """
    gaps = ((end, start) for (_, end), (start, _) in zip(words, words[1:], strict=False) if text[end:start] != " ")
    return [(end, start + 1, f" {text[start]}") for end, start in gaps]


def _separators(text: str, words: Sequence[tuple[int, int]]) -> list[str]:
    """Return what stands between each word and the next, with numbers as 0 and without the text's own punctuation."""
    spans = zip(words, words[1:], strict=False)
    return [_PUNCTUATION.sub("", _NUMBER.sub("0", text[end:start])) for (_, end), (start, _) in spans]


def _periodic_runs(separators: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return runs of words whose separators repeat: number of the first word, of the one after the last, period.

    Runs don't overlap; shorter periods come first. Separators of ordinary text alone are no format.
    """
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(separator, len(numbers)) for separator in separators], dtype=np.int64)
    counts = Counter(separators)
    signs = {separator for separator in counts if not _ORDINARY.fullmatch(separator)}
    if all(counts[sign] < MIN_RECORDS - 1 for sign in signs):
        return []
    is_sign = np.array([separator in signs for separator in separators])
    free = np.ones(len(codes) + 1, dtype=bool)
    runs: list[tuple[int, int, int]] = []
    for period in range(1, MAX_PERIOD + 1):
        if len(codes) < (MIN_RECORDS - 1) * period:
            break
        for first, last in _equal_runs(codes, period):
            if is_sign[first:last].mean() >= MIN_SIGN_SHARE and free[first : last + 1].all():
                free[first : last + 1] = False
                runs.append((first, last + 1, period))
    return sorted(runs)


def _equal_runs(codes: NDArray[np.int64], period: int) -> list[tuple[int, int]]:
    """Return the ranges of separators that repeat with a period for MIN_RECORDS records, short interruptions within."""
    equal = codes[period:] == codes[:-period]
    if np.count_nonzero(equal) < (MIN_RECORDS - 2) * period * MIN_EQUAL_SHARE:
        return []
    equal_before = np.concatenate([[0], np.cumsum(equal)])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], equal, [False]]).astype(np.int8)))
    ranges: list[tuple[int, int]] = []
    for start, end in edges.reshape(-1, 2).tolist():
        if end - start < period:
            continue
        if ranges and start - ranges[-1][1] <= MAX_INTERRUPTION * period:
            ranges[-1] = ranges[-1][0], end
        else:
            ranges.append((start, end))
    return [
        (start, end + period)
        for start, end in ranges
        if end - start >= (MIN_RECORDS - 2) * period
        and equal_before[end] - equal_before[start] >= MIN_EQUAL_SHARE * (end - start)
    ]


def _text_words(words: Sequence[str], period: int) -> NDArray[np.bool_] | None:
    """Return which words of a run of records hold text; None if none does, or too many of a record."""
    counts = Counter(words)
    records = len(words) / period
    is_text = np.array([counts[word] <= max(MAX_COMMON_SHARE * records, 2) for word in words])
    for place in range(period):
        column = words[place::period]
        if len(set(column)) < MIN_DISTINCT_SHARE * len(column):
            is_text[place::period] = False
    return is_text if 0 < is_text.sum() <= MAX_WORDS_OF_TEXT * records else None
