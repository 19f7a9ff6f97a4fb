"""Mistyped words of a vocabulary, as they should be. Knows no view; gives edits.

A word that no ordinary prompt holds, one slip away from one of the vocabulary (a letter lost, doubled, exchanged or
in its neighbour's place), is taken for that one. Found by the words' forms with one letter less, as SymSpell does
(Garbe, 2012), so that work is linear in the text.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache

from classifier import language
from classifier.lookalikes import Edit

# Shorter words have too many neighbours.
SHORTEST = 4
LONGEST = 32
FEW = 2

_WORD = re.compile(r"[^\W_]+")


def repaired(
    text: str, vocabulary: frozenset[str] = frozenset(), familiar: Callable[[str], bool] = lambda word: False
) -> list[Edit]:
    """Words that no vocabulary holds, as the word of `vocabulary` (in small letters) that they nearly are.

    familiar: whether a word, in small letters, is spelt so for other reasons: it is somebody else's name.
    """
    if not vocabulary:
        return []
    known, near = language.words(), _neighbours(vocabulary)
    meant: dict[str, str] = {}
    for written in dict.fromkeys(_WORD.findall(text)):
        word = written.casefold()
        if SHORTEST <= len(word) <= LONGEST and word not in known and word not in vocabulary:
            forms = near.keys() & _shorter(word)
            found = {other for form in forms for other in near[form] if one_slip(word, other)}
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
def _neighbours(vocabulary: frozenset[str]) -> dict[str, Sequence[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for word in sorted(vocabulary):
        if SHORTEST <= len(word) <= LONGEST:
            for form in _shorter(word):
                found[form].append(word)
    return {form: tuple(words) for form, words in found.items()}


def _shorter(word: str) -> set[str]:
    """A word, and it without one of its letters."""
    return {word, *[word[:i] + word[i + 1 :] for i in range(len(word))]}
