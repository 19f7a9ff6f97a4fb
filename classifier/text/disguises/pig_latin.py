"""Pig latin: words whose first consonants stand at their end, with "ay". Knows no view; returns edits.

Words that begin with a vowel end in "way", "yay", "hay" or "ay". Work is linear in the text's length.
"""

from __future__ import annotations

import re

from lethe.classifier.text import language_model
from lethe.classifier.text.confusables import TextEdit

# Words in pig latin in a row from which on they are decoded. Chosen: ordinary text hardly has three such words in a
# row (say, may, day, today, away, play).
MIN_WORDS = 4
# Other words that may stand between them. Chosen: names and short words that were left as they are.
MAX_OTHER_WORDS = 1
# Share of the decoded letters that must belong to known words. Chosen as for the letter ciphers.
MIN_KNOWN_SHARE = 0.3
# Consonants that may begin a word ("schl").
MAX_CONSONANTS = 4
# Letters of the longest word that is decoded. Chosen: longer ones are data.
MAX_LETTERS = 40

_WORD = re.compile(r"[A-Za-z]+(?:['’\-][bcdfghjklmnpqrstvwxyzBCDFGHJKLMNPQRSTVWXYZ]{0,5}[aA][yY]\b)?")
_ENDING = "ay"


def decode_pig_latin(text: str, vocabulary: frozenset[str] = frozenset()) -> list[TextEdit]:
    """Decode runs of words in pig latin. vocabulary: known words besides the common ones, lower case."""
    if text.count(_ENDING) + text.count(_ENDING.upper()) < MIN_WORDS:
        return []
    words = list(_WORD.finditer(text))
    encoded = [i for i, match in enumerate(words) if _is_encoded(match[0])]
    runs: list[list[int]] = []
    for i in encoded:
        if runs and i - runs[-1][-1] <= MAX_OTHER_WORDS + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    edits: list[TextEdit] = []
    for run in runs:
        if len(run) >= MIN_WORDS:
            decoded = [(*words[i].span(), _decode(words[i][0], vocabulary)) for i in run]
            plain = [word for _, _, word in decoded]
            edits += decoded if language_model.known_letter_share(plain, vocabulary) >= MIN_KNOWN_SHARE else []
    return edits


def _is_encoded(word: str) -> bool:
    return 2 < len(word) <= MAX_LETTERS and word[-2:].lower() == _ENDING


def _decode(word: str, vocabulary: frozenset[str]) -> str:
    """Return the known word that a word in pig latin may be, else the likeliest by its letters."""
    letters = "".join(filter(str.isalpha, word.lower()))[: -len(_ENDING)]
    candidates = [letters[-k:] + letters[:-k] for k in range(1, MAX_CONSONANTS + 1) if _begins(letters, k)]
    candidates += [letters[:-1]] if letters[-1:] in ("w", "y", "h") and len(letters) > 1 else []
    candidates.append(letters)
    known = language_model.common_words()
    for is_known in (known.__contains__, vocabulary.__contains__):
        for candidate in candidates:
            if is_known(candidate):
                return candidate
    return min(candidates, key=_cost)


def _begins(letters: str, count: int) -> bool:
    """Whether the last `count` letters can begin a word: consonants, or "qu"."""
    moved = letters[-count:]
    return count < len(letters) and (not set("aeiou") & set(moved) or moved.endswith("qu"))


def _cost(word: str) -> float:
    return float(language_model.cumulative_costs(f"{word} ")[-1])
