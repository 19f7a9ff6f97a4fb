"""Words spelt with digits and signs instead of letters ("leetspeak"). Knows no view; returns edits."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import product

from lethe.classifier.text import language_model
from lethe.classifier.text.confusables import TextEdit

# Digits and signs under the letters that they stand for.
_DIGITS = {
    "4": "a", "@": "a", "3": "e", "€": "e", "1": "i", "!": "i", "|": "i", "0": "o", "5": "s", "$": "s", "§": "s",
    "7": "t", "+": "t", "†": "t", "8": "b", "9": "g", "6": "g", "2": "z", "£": "l", "¢": "c", "¥": "y",
}  # fmt: skip
# Strokes ("1", "!", "|") may be an i or an l.
_WITH_I = str.maketrans(_DIGITS)
_WITH_L = str.maketrans({**_DIGITS, "1": "l", "!": "l", "|": "l"})
_STROKES = "1!|"
_LEET_TOKEN = re.compile(rf"[A-Za-z{re.escape(''.join(_DIGITS))}]{{2,40}}")
_DIGIT_INSIDE = re.compile(r"[A-Za-z][^A-Za-z]+[A-Za-z]")
# Words that are certainly leetspeak, from which on doubtful ones are decoded too. Chosen: one or two may be model
# numbers.
MIN_LEET_WORDS = 3
# Strokes of a word up to which all combinations of i and l are looked up in the vocabulary: at most 2^4 of them.
MAX_STROKES = 4
# How much cheaper (−ln p) the word with l must be than the word with i to be preferred. Chosen: near ties
# go to i, the commoner letter.
MIN_L_SAVING = 1.5
# Highest cost (−ln p, a letter) of an unknown word that may be a name. English costs about 2.5, random letters 4.
MAX_LETTER_COST = 3.4


def decode_leet(text: str, vocabulary: frozenset[str] = frozenset()) -> list[TextEdit]:
    """Replace words spelt with digits and signs by the words in letters, lower case.

    A word counts where a digit stands between letters, or where its letters are a known word (a common one, or one of
    `vocabulary`, which is lower case). Where several words count, doubtful ones are replaced too.
    """
    certain: list[TextEdit] = []
    doubtful: list[TextEdit] = []
    for match in _LEET_TOKEN.finditer(text):
        token, start = match[0].rstrip("!|+"), match.start()
        if token.isalpha() or len(token) < 2:
            continue
        plain = _to_letters(token, vocabulary)
        has_letters = any(c.isalpha() for c in token)
        is_known = plain in language_model.common_words() or plain in vocabulary
        if has_letters and (is_known or (_DIGIT_INSIDE.search(token) and _may_be_word(plain))):
            certain.append((start, start + len(token), plain))
        elif has_letters or is_known:
            doubtful.append((start, start + len(token), plain))
    return sorted(certain + doubtful) if len(certain) >= MIN_LEET_WORDS else certain


def _may_be_word(plain: str) -> bool:
    if len(plain) > language_model.MAX_WORD_LETTERS:
        return False
    cost = float(language_model.cumulative_costs(f"{plain} ")[-1])
    return cost <= MAX_LETTER_COST * (len(plain) + 1)


@lru_cache(maxsize=65536)
def _to_letters(token: str, vocabulary: frozenset[str]) -> str:
    """Return the token in letters, lower case.

    A stroke is read as i, unless reading it as l gives a known word or a much likelier one. In words of the
    vocabulary each stroke may be either.
    """
    with_i, with_l = token.translate(_WITH_I).lower(), token.translate(_WITH_L).lower()
    strokes = sum(token.count(sign) for sign in _STROKES)
    if 0 < strokes <= MAX_STROKES:
        choices = (_WITH_I[ord(c)] + _WITH_L[ord(c)] if c in _STROKES else c.translate(_WITH_I) for c in token.lower())
        for word in map("".join, product(*(dict.fromkeys(choice) for choice in choices))):
            if word in vocabulary:
                return word
    if with_i in vocabulary:
        return with_i
    known = language_model.common_words()
    if with_i in known or with_l in known:
        return with_i if with_i in known else with_l
    costs = [float(language_model.cumulative_costs(f"{word} ")[-1]) for word in (with_i, with_l)]
    return with_l if costs[1] < costs[0] - MIN_L_SAVING else with_i
