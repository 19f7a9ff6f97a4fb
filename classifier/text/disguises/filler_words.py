"""Words with filler words between: one, two or three after each word of the text. Knows no view; returns edits.

Such a text has hardly any pair of neighbouring words that language has. The pairs are those of the background prompts
(`language_model.py`). Work is linear in the text's length.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.text import language_model
from lethe.classifier.text.confusables import TextEdit
from lethe.classifier.text.disguises.records import keep_words
from lethe.classifier.text.vocabulary import FUNCTION_WORDS

# Words of a span at least, and neighbouring pairs that are looked at together. Chosen: about six words of text with two
# fillers each.
MIN_WORDS = 18
# Common pairs among that many, at most, for a span to be suspicious. In questions about a third of the pairs are
# common, so this many of 17 are common in few spans.
MAX_COMMON_PAIRS = 2
# Words from one word of the text to the next, at most. Chosen: three fillers.
MAX_STEP = 4
# How much more of the words of the text than of the fillers must be expected ones, as shares. Chosen: function words
# alone make up 0.4 of ordinary text.
MIN_SHARE_DIFFERENCE = 0.45
# The square of that difference, times the words of the text, at least. Chosen: as a test of a difference in shares, so
# that a dozen words need more of a difference than fifty.
MIN_EVIDENCE = 3.0
# Share of the words of the text that may be function words. Chosen: every second word of ordinary text may be one by
# chance; then the words between carry the text.
MAX_FUNCTION_SHARE = 0.7
# Share of the words in one place that one filler has where it is always the same. Chosen: no word of ordinary text
# stands at every third place.
MIN_REPEATED_SHARE = 0.6

_WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")


def remove_fillers(text: str, vocabulary: frozenset[str] = frozenset()) -> list[TextEdit]:
    """Remove the fillers from spans where every second, third or fourth word is text.

    vocabulary: words, lower case, that are expected in the text, beside function words.
    """
    matches = list(_WORD.finditer(text))
    if len(matches) < MIN_WORDS:
        return []
    words = [match[0].casefold() for match in matches]
    edits: list[TextEdit] = []
    for first, last in _suspicious_spans(words):
        kept = _words_of_text(words[first:last], vocabulary)
        if kept is None:
            continue
        spans = [matches[first + i].span() for i in np.flatnonzero(kept)]
        edits += keep_words(text, spans)
    return edits


def _suspicious_spans(words: Sequence[str]) -> list[tuple[int, int]]:
    """Return the ranges of words with hardly any common pair of neighbours, or with one word at every second to fourth
    place; disjoint and in order."""
    pairs = language_model.common_pairs()
    common = np.array([pair in pairs for pair in zip(words, words[1:], strict=False)])
    total = np.concatenate([[0], np.cumsum(common)])
    size = MIN_WORDS - 1
    spans: list[tuple[int, int]] = []
    suspicious = total[size:] - total[:-size] <= MAX_COMMON_PAIRS
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(word, len(numbers)) for word in words])
    for step in range(2, MAX_STEP + 1):
        repeated = np.concatenate([[0], np.cumsum(codes[step:] == codes[:-step])])
        enough = MIN_REPEATED_SHARE * (MIN_WORDS // step - 1)
        suspicious |= repeated[MIN_WORDS - step :] - repeated[: step - MIN_WORDS] >= enough
    for first in np.flatnonzero(suspicious).tolist():
        if spans and first <= spans[-1][1]:
            spans[-1] = spans[-1][0], first + MIN_WORDS
        else:
            spans.append((first, first + MIN_WORDS))
    return spans


def _words_of_text(words: Sequence[str], vocabulary: frozenset[str]) -> NDArray[np.bool_] | None:
    """Return which words of a span aren't fillers; None where it has none."""
    is_expected = np.array([word in FUNCTION_WORDS or word in vocabulary for word in words])
    is_function = np.array([word in FUNCTION_WORDS for word in words])
    best, kept = 0.0, None
    for step in range(2, MAX_STEP + 1):
        for place in range(step):
            at_place = np.arange(len(words)) % step == place
            difference = float(is_expected[at_place].mean() - is_expected[~at_place].mean())
            function_share = is_function[at_place].mean()
            if (
                function_share <= MAX_FUNCTION_SHARE
                and difference >= max(best, MIN_SHARE_DIFFERENCE)
                and difference**2 * at_place.sum() >= MIN_EVIDENCE
            ):
                best, kept = difference, at_place
    for step in range(2, MAX_STEP + 1) if kept is None else ():
        repeated = [place for place in range(step) if _is_repeated(words[place::step])]
        if len(repeated) == step - 1:
            return ~np.isin(np.arange(len(words)) % step, repeated)
    return kept


def _is_repeated(column: Sequence[str]) -> bool:
    return Counter(column).most_common(1)[0][1] >= MIN_REPEATED_SHARE * len(column)
