"""Perturbations of the letters inside words: doubled, left out, masked or in another order.

Each perturbation is a pure function (text, rng) → text. Knows no classifier.
"""

from __future__ import annotations

import re
from random import Random

from lethe.evaluation.attacks.unicode_perturbations import Perturbation

_WORD = re.compile(r"[^\W\d_]+")
_VOWELS = re.compile(r"[aeiouAEIOU]")
_MASKS = "-*_#"


def doubled_letters(text: str, rng: Random) -> str:
    """Every letter twice."""
    return re.sub(r"[^\W\d_]", lambda match: match[0] * 2, text)


def stretched_letters(text: str, rng: Random) -> str:
    """Every letter one to three times."""
    return re.sub(r"[^\W\d_]", lambda match: match[0] * rng.randint(1, 3), text)


def _change_names(text: str, change: Perturbation, rng: Random) -> str:
    """Change the capitalised words after the first one; all longer words if there are none."""
    names = [match for match in _WORD.finditer(text) if match.start() and match[0][0].isupper() and len(match[0]) > 1]
    spans = {match.span() for match in names or [m for m in _WORD.finditer(text) if len(m[0]) > 4]}
    return _WORD.sub(lambda match: change(match[0], rng) if match.span() in spans else match[0], text)


def masked_names(text: str, rng: Random) -> str:
    """Names by their first letter, with a sign for each other one."""
    mask = rng.choice(_MASKS)
    return _change_names(text, lambda word, _: word[0] + mask * (len(word) - 1), rng)


def masked_vowels(text: str, rng: Random) -> str:
    """A sign for each vowel inside a name."""
    mask = rng.choice("*#")
    return _change_names(text, lambda word, _: word[0] + _VOWELS.sub(mask, word[1:]), rng)


def masked_letters(text: str, rng: Random) -> str:
    """A sign for one or two letters of each name."""

    def mask_some(word: str, rng: Random) -> str:
        hidden = rng.sample(range(1, len(word)), min(len(word) - 1, rng.randint(1, 2)))
        return "".join("*" if i in hidden else c for i, c in enumerate(word))

    return _change_names(text, mask_some, rng)


def names_without_vowels(text: str, rng: Random) -> str:
    """Names without their vowels."""
    return _change_names(text, lambda word, _: _without_vowels(word), rng)


def without_vowels(text: str, rng: Random) -> str:
    """All words without their vowels."""
    return _WORD.sub(lambda match: _without_vowels(match[0]), text)


def _without_vowels(word: str) -> str:
    return word[0] + _VOWELS.sub("", word[1:])


def scrambled_letters(text: str, rng: Random) -> str:
    """The letters inside each word in another order; the first and the last one stay."""
    return _WORD.sub(lambda match: _scramble(match[0], rng), text)


def _scramble(word: str, rng: Random) -> str:
    inner = list(word[1:-1])
    if len(set(inner)) < 2:
        return word
    while "".join(inner) == word[1:-1]:
        rng.shuffle(inner)
    return word[0] + "".join(inner) + word[-1]


DISGUISED_WORDS: dict[str, Perturbation] = {
    "doubled-letters": doubled_letters,
    "stretched-letters": stretched_letters,
    "masked-names": masked_names,
    "masked-vowels": masked_vowels,
    "masked-letters": masked_letters,
    "names-without-vowels": names_without_vowels,
    "without-vowels": without_vowels,
    "scrambled-letters": scrambled_letters,
}
