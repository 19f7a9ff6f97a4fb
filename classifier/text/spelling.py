"""Misspelt words of a vocabulary, corrected. Knows no view; returns edits.

A word that isn't common and is one edit away from a word of the vocabulary (a letter lost, added or exchanged, or two
neighbours exchanged) is taken for that word. Candidates are looked up by the forms that a word has without one of its
letters, as SymSpell does (W. Garbe, 2012), so that work is linear in the text.
"""

from __future__ import annotations

import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np

from lethe.classifier.text import language_model
from lethe.classifier.text.confusables import TextEdit

# Letters of the shortest word that is corrected. Chosen: shorter words have too many neighbours.
MIN_LETTERS = 4
# Letters of the longest word that is corrected. Chosen: longer ones are data.
MAX_LETTERS = 32
# Corrections to common words that a text needs to be judged once more. Chosen: one misspelt common word changes little.
MIN_COMMON_CORRECTIONS = 2
# Vocabulary words up to which their forms are kept in a dictionary, about 200 bytes a form; then 12 bytes as hashes.
MAX_DICTIONARY_WORDS = 1 << 15

_WORD = re.compile(r"[^\W_]+")


def correct_spelling(
    text: str, vocabulary: frozenset[str] = frozenset(), is_known_word: Callable[[str], bool] = lambda word: False
) -> list[TextEdit]:
    """Replace words that are neither common nor in `vocabulary` (lower case) by the vocabulary word one edit away.

    is_known_word: whether a lower-case word is right as it stands: it occurs in the texts of every fit, and is mostly
    somebody else's name.
    """
    if not vocabulary:
        return []
    common, candidates = language_model.common_words(), _candidate_lookup(vocabulary)
    corrections: dict[str, str] = {}
    for written in dict.fromkeys(_WORD.findall(text)):
        word = written.casefold()
        if MIN_LETTERS <= len(word) <= MAX_LETTERS and word not in common and word not in vocabulary:
            matches = {candidate for candidate in candidates(word) if is_one_edit_apart(word, candidate)}
            if matches and not is_known_word(word):
                corrections[written] = min(matches, key=lambda match: (abs(len(match) - len(word)), match))
    if not corrections:
        return []
    edits = [(*match.span(), corrections[match[0]]) for match in _WORD.finditer(text) if match[0] in corrections]
    has_rare = any(correction not in common for correction in corrections.values())
    return edits if has_rare or len(edits) >= MIN_COMMON_CORRECTIONS else []


def is_one_edit_apart(word: str, other: str) -> bool:
    """Whether the optimal string alignment distance of two different words is 1.

    One edit: a letter is lost, added or exchanged, or two neighbouring letters are exchanged.
    """
    if len(word) > len(other):
        word, other = other, word
    same = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), len(word))
    if len(word) < len(other):
        return word[same:] == other[same + 1 :]
    tail, other_tail = word[same:], other[same:]
    return tail[1:] == other_tail[1:] or (tail[:2] == other_tail[1::-1] and tail[2:] == other_tail[2:])


@lru_cache(maxsize=8)
def _candidate_lookup(vocabulary: frozenset[str]) -> Callable[[str], Iterable[str]]:
    """Return a function from a word to the vocabulary words that share a form with it."""
    words = sorted(word for word in vocabulary if MIN_LETTERS <= len(word) <= MAX_LETTERS)
    if len(words) > MAX_DICTIONARY_WORDS:
        return _HashedForms(words)
    by_form: defaultdict[str, list[str]] = defaultdict(list)
    for word in words:
        for form in _deletion_forms(word):
            by_form[form].append(word)
    frozen = {form: tuple(words) for form, words in by_form.items()}
    return lambda word: [candidate for form in frozen.keys() & _deletion_forms(word) for candidate in frozen[form]]


class _HashedForms:
    """The same lookup for a large vocabulary, by hashes of the forms: 12 bytes a form instead of about 200."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        hashes, owners = array("q"), array("i")
        for number, word in enumerate(words):
            for form in _deletion_forms(word):
                hashes.append(hash(form))
                owners.append(number)
        forms = np.frombuffer(hashes, dtype=np.int64)
        order = np.argsort(forms, kind="stable")
        self._forms, self._owners = forms[order], np.frombuffer(owners, dtype=np.int32)[order]

    def __call__(self, word: str) -> Iterable[str]:
        forms = np.array([hash(form) for form in _deletion_forms(word)], dtype=np.int64)
        first, last = (np.searchsorted(self._forms, forms, side=side) for side in ("left", "right"))
        for start, end in zip(first.tolist(), last.tolist(), strict=True):
            yield from (self._words[i] for i in self._owners[start:end].tolist())


def _deletion_forms(word: str) -> set[str]:
    """Return a word, and the word without each one of its letters."""
    return {word, *[word[:i] + word[i + 1 :] for i in range(len(word))]}
