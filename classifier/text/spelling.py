"""Mistyped words of a vocabulary, as they should be. Knows no view; gives edits.

A word that no ordinary prompt holds, one slip away from one of the vocabulary (a letter lost, doubled, exchanged or
in its neighbour's place), is taken for that one. Found by the words' forms with one letter less, as SymSpell does
(Garbe, 2012), so that work is linear in the text.
"""

from __future__ import annotations

import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np

from lethe.classifier.text import language_model
from lethe.classifier.text.confusables import Edit

# Shorter words have too many neighbours.
SHORTEST = 4
LONGEST = 32
FEW = 2
# Of more words a dictionary of forms takes too much memory.
MOST_LISTED = 1 << 15

_WORD = re.compile(r"[^\W_]+")


def repaired(
    text: str, vocabulary: frozenset[str] = frozenset(), familiar: Callable[[str], bool] = lambda word: False
) -> list[Edit]:
    """Words that no vocabulary holds, as the word of `vocabulary` (in small letters) that they nearly are.

    familiar: whether a word, in small letters, is spelt so for other reasons: it is somebody else's name.
    """
    if not vocabulary:
        return []
    known, near = language_model.words(), _neighbours(vocabulary)
    meant: dict[str, str] = {}
    for written in dict.fromkeys(_WORD.findall(text)):
        word = written.casefold()
        if SHORTEST <= len(word) <= LONGEST and word not in known and word not in vocabulary:
            found = {other for other in near(word) if one_slip(word, other)}
            if found and not familiar(word):
                meant[written] = min(found, key=lambda other: (abs(len(other) - len(word)), other))
    if not meant:
        return []
    edits = [(*match.span(), meant[match[0]]) for match in _WORD.finditer(text) if match[0] in meant]
    # One slip in an ordinary word is no reason to read a text once more.
    return edits if len(edits) >= FEW or any(plain not in known for plain in meant.values()) else []


def one_slip(word: str, other: str) -> bool:
    """Whether two different words are one lost, added or exchanged letter, or two exchanged neighbours apart."""
    if len(word) > len(other):
        word, other = other, word
    same = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), len(word))
    if len(word) < len(other):
        return word[same:] == other[same + 1 :]
    rest, others = word[same:], other[same:]
    return rest[1:] == others[1:] or (rest[:2] == others[1::-1] and rest[2:] == others[2:])


@lru_cache(maxsize=8)
def _neighbours(vocabulary: frozenset[str]) -> Callable[[str], Iterable[str]]:
    """What finds the words that share a form with another one, among those of `vocabulary`."""
    words = sorted(word for word in vocabulary if SHORTEST <= len(word) <= LONGEST)
    if len(words) > MOST_LISTED:
        return _Hashed(words)
    found: defaultdict[str, list[str]] = defaultdict(list)
    for word in words:
        for form in _shorter(word):
            found[form].append(word)
    near = {form: tuple(others) for form, others in found.items()}
    return lambda word: [other for form in near.keys() & _shorter(word) for other in near[form]]


class _Hashed:
    """The words of a large vocabulary by the hashes of their forms: 12 bytes a form, where a dictionary takes 200."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        hashes, owners = array("q"), array("i")
        for number, word in enumerate(words):
            for form in _shorter(word):
                hashes.append(hash(form))
                owners.append(number)
        forms = np.frombuffer(hashes, dtype=np.int64)
        order = np.argsort(forms, kind="stable")
        self._forms, self._owners = forms[order], np.frombuffer(owners, dtype=np.int32)[order]

    def __call__(self, word: str) -> Iterable[str]:
        forms = np.array([hash(form) for form in _shorter(word)], dtype=np.int64)
        first, last = (np.searchsorted(self._forms, forms, side=side) for side in ("left", "right"))
        for start, end in zip(first.tolist(), last.tolist(), strict=True):
            yield from (self._words[i] for i in self._owners[start:end].tolist())


def _shorter(word: str) -> set[str]:
    """A word, and it without one of its letters."""
    return {word, *[word[:i] + word[i + 1 :] for i in range(len(word))]}
