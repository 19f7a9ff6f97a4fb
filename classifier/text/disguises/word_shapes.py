"""Words that lost their shape but keep enough letters to be read: doubled or scrambled letters, vowels left out.

A word that isn't known is looked up by what such a disguise leaves of it: its letters without repeats, its first and
last letter with the sorted ones between, or its consonants. Known words are common ones and those of a vocabulary.
Knows no view; returns edits. Work is linear in the text's length.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from itertools import groupby
from math import gcd

from lethe.classifier.text import language_model
from lethe.classifier.text.confusables import TextEdit
from lethe.classifier.text.vocabulary import FUNCTION_WORDS

# Letters of the longest word that is looked up. Chosen: longer ones are data.
MAX_LETTERS = 64
# Letters of the shortest word whose inner letters can be in another order.
MIN_SCRAMBLED_LETTERS = 4
# Consonants from which on a word without vowels is looked up.
MIN_CONSONANTS = 2
# Consonants from which on one such word is enough, with a capital and without. Chosen: short abbreviations have the
# consonants of some word by chance.
MIN_SURE_CONSONANTS, MIN_SURE_LOWER_CONSONANTS = 3, 4
# Words restored to common words that a text needs to be judged once more, and their share of its words. Chosen: few of
# them are abbreviations and rare words.
MIN_COMMON_RESTORED, MIN_COMMON_SHARE = 3, 0.3

_WORD = re.compile(r"[^\W\d_]+")
_VOWEL = re.compile("[aeiou]")
_VOWEL_OR_Y = re.compile("[aeiouy]")

WordTest = Callable[[str], bool]


def restore_words(
    text: str, vocabulary: frozenset[str] = frozenset(), is_known_word: WordTest = lambda word: False
) -> list[TextEdit]:
    """Replace unknown words by the known word with the same letters, consonants, or letters without repeats.

    vocabulary: known words besides the common ones, lower case. is_known_word: whether a lower-case word is right as it
    stands, since it is somebody else's name.
    """
    known = language_model.common_words()
    restored: dict[str, str] = {}
    for written in dict.fromkeys(_WORD.findall(text)):
        word = written.casefold()
        if 1 < len(word) <= MAX_LETTERS and word not in known and word not in vocabulary and word not in FUNCTION_WORDS:
            plain = _restored(written, word, vocabulary)
            if plain is not None and plain != word and not is_known_word(word):
                restored[written] = plain
    if not restored:
        return []
    words = [match for match in _WORD.finditer(text)]
    edits = [(*match.span(), restored[match[0]]) for match in words if match[0] in restored]
    rare = [written for written, plain in restored.items() if plain in vocabulary and plain not in known]
    sure = [written for written in rare if _has_vowel(written) or len(written) >= _min_sure_letters(written)]
    is_sure = len(sure) > 1 or any(written[0].isupper() for written in sure)
    is_common = len(restored) >= MIN_COMMON_RESTORED and len(edits) >= MIN_COMMON_SHARE * len(words)
    return edits if is_sure or is_common else []


def _min_sure_letters(written: str) -> int:
    return MIN_SURE_CONSONANTS if written[0].isupper() else MIN_SURE_LOWER_CONSONANTS


def _has_vowel(word: str) -> bool:
    return bool(_VOWEL.search(word.casefold()[1:]))


def _restored(written: str, word: str, vocabulary: frozenset[str]) -> str | None:
    """Return the known word that `written` (`word` in lower case) stands for, or its letters without doubling."""
    runs = [(letter, len(list(group))) for letter, group in groupby(word)]
    times = gcd(*(length for _, length in runs))
    if times > 1 and len(runs) > 1:
        return "".join(letter * (length // times) for letter, length in runs)
    by_key = _tables(vocabulary)
    candidates: Sequence[str] = ()
    capitalised = written[0].isupper()
    if len(runs) < len(word):
        candidates = by_key["runs"].get("".join(letter for letter, _ in runs), ())
    if not candidates and len(word) >= MIN_SCRAMBLED_LETTERS:
        candidates = by_key["inner"].get(_inner_key(word), ())
    if not candidates and not _has_vowel(word) and not written.isupper() and len(word) >= MIN_CONSONANTS:
        candidates = by_key["consonants"].get(word, ())
        # Consonants alone fit a common word and a name: both are read.
        readings = [min(part, key=lambda word: _rank(word, capitalised)) for part in _by_frequency(candidates) if part]
        return " ".join(readings[:1] if capitalised else readings) or None
    if not candidates:
        return None
    return min(candidates, key=lambda candidate: _rank(candidate, capitalised))


def _by_frequency(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the common words among some, and the others."""
    known = language_model.common_words()
    return [word for word in words if word in known], [word for word in words if word not in known]


def _rank(word: str, capitalised: bool) -> tuple[bool, int, str]:
    """Sort names first where a word is capitalised, and common words from the most frequent down."""
    count = language_model.word_count(word)
    return (count > 1) == capitalised, -count, word


def _inner_key(word: str) -> str:
    return word[0] + "".join(sorted(word[1:-1])) + word[-1]


@lru_cache(maxsize=8)
def _tables(vocabulary: frozenset[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return kind of disguise → what it leaves of a word → the known words of which it leaves that."""
    tables: dict[str, dict[str, tuple[str, ...]]] = {}
    for kind, common in _common_tables().items():
        new = _group_by_key(kind, (word for word in vocabulary if word not in language_model.common_words()))
        tables[kind] = {**common, **{key: (*words, *common.get(key, ())) for key, words in new.items()}}
    return tables


@cache
def _common_tables() -> dict[str, dict[str, tuple[str, ...]]]:
    words = [*language_model.common_words(), *FUNCTION_WORDS - language_model.common_words()]
    return {kind: _group_by_key(kind, words) for kind in ("runs", "inner", "consonants")}


def _group_by_key(kind: str, words: Iterable[str]) -> dict[str, tuple[str, ...]]:
    grouped: defaultdict[str, list[str]] = defaultdict(list)
    for word in words:
        if 1 < len(word) <= MAX_LETTERS and word.isalpha():
            for key in dict.fromkeys(_keys(kind, word)):
                grouped[key].append(word)
    return {key: tuple(words) for key, words in grouped.items()}


def _keys(kind: str, word: str) -> list[str]:
    """Return what a disguise may leave of a word."""
    if kind == "runs":
        return ["".join(letter for letter, _ in groupby(word))]
    if kind == "inner":
        return [_inner_key(word)] if len(word) >= MIN_SCRAMBLED_LETTERS else []
    # The first letter stays, or all vowels go; y may count as one.
    left = [word[0] + vowels.sub("", word[1:]) for vowels in (_VOWEL, _VOWEL_OR_Y)]
    left += [key for vowels in (_VOWEL, _VOWEL_OR_Y) if len(key := vowels.sub("", word)) > MIN_CONSONANTS]
    return [key for key in left if key != word and len(key) >= MIN_CONSONANTS]
