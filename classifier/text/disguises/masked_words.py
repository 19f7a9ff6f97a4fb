"""Words with signs for some of their letters (`Edw*rd P*tr*ck`, `H--- A----`), filled in.

A word that shows enough letters is looked up in a vocabulary. One that shows little more than its first letter is read
only beside another part of the same name. Knows no view; returns edits. Work is linear in the text's length.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache

from lethe.classifier.text import language_model
from lethe.classifier.text.confusables import TextEdit
from lethe.classifier.text.vocabulary import FUNCTION_WORDS

# Letters of the longest word that is looked up. Chosen: longer ones are data.
MAX_LETTERS = 40
# Letters that a word must show to be looked up by itself. Chosen: two letters and a length fit too many words.
MIN_SHOWN_LETTERS = 3
# Candidates for one masked word that are read, at most. Chosen: with more, the mask shows too little.
MAX_CANDIDATES = 6
# Pairs of names that are kept, at most, about 200 bytes each. Chosen: bounds memory for large forget sets; among more,
# first letters and lengths say little.
MAX_NAME_PAIRS = 20_000

_SIGNS = "*#•█_"
# A word that begins with a letter: signs between its letters, or two signs and more at its end. A single hyphen is
# spelling.
_MASKED = re.compile(
    rf"(?<![\w{_SIGNS}])(?<!--)[^\W\d_]{{1,{MAX_LETTERS}}}+(?:"
    rf"(?:(?:[{_SIGNS}]{{1,{MAX_LETTERS}}}+|-{{2,{MAX_LETTERS}}}+)[^\W\d_]{{1,{MAX_LETTERS}}}+){{1,8}}+"
    rf"(?:[{_SIGNS}]{{1,{MAX_LETTERS}}}+|-{{2,{MAX_LETTERS}}}+)?+"
    rf"|(?:[{_SIGNS}]{{2,{MAX_LETTERS}}}+|-{{2,{MAX_LETTERS}}}+))(?![\w{_SIGNS}])"
)
_SIGN_RUN = re.compile(rf"[{_SIGNS}\-]+")
_SIGN = re.compile(rf"[{_SIGNS}]|--")
# The word beside a masked one.
_BEFORE = re.compile(rf"([^\W\d_]{{1,{MAX_LETTERS}}})[ \-]\Z")
_AFTER = re.compile(rf"[ \-]([^\W\d_]{{1,{MAX_LETTERS}}})(?![\w{_SIGNS}])")
_CAPITALISED_PAIR = re.compile(r"(?=\b([A-Z][^\W\d_]{1,40})[ \-]([A-Z][^\W\d_]{1,40})\b)")

Pairs = frozenset[tuple[str, str]]


def name_pairs(texts: Iterable[str]) -> Pairs:
    """Return the pairs of neighbouring capitalised words, lower case, of which one is rare; at most MAX_NAME_PAIRS."""
    pairs: set[tuple[str, str]] = set()
    for text in texts:
        for match in _CAPITALISED_PAIR.finditer(text):
            pair = match[1].casefold(), match[2].casefold()
            if not language_model.common_words().issuperset(pair) and FUNCTION_WORDS.isdisjoint(pair):
                pairs.add(pair)
        if len(pairs) >= MAX_NAME_PAIRS:
            break
    return frozenset(pairs)


def fill_masks(text: str, vocabulary: frozenset[str] = frozenset(), pairs: Pairs = frozenset()) -> list[TextEdit]:
    """Replace words with signs for letters by the words that they may stand for.

    vocabulary: the words to look for, lower case. pairs: neighbouring parts of names, lower case, of which one may show
    its first letter and its length only.
    """
    if not _SIGN.search(text):
        return []
    matches = list(_MASKED.finditer(text))
    names: dict[int, str] = {}
    for i, match in enumerate(matches):
        start, end = match.span()
        before, after = _BEFORE.search(text, max(start - MAX_LETTERS - 1, 0), start), _AFTER.match(text, end)
        if i and text[matches[i - 1].end() : start] in (" ", "-"):
            for first, second in _matching_pairs(matches[i - 1][0].casefold(), match[0].casefold(), pairs):
                names[i - 1], names[i] = first, second
        for _, second in _matching_pairs(before[1].casefold(), match[0].casefold(), pairs) if before else ():
            names[i] = second
        for first, _ in _matching_pairs(match[0].casefold(), after[1].casefold(), pairs) if after else ():
            names[i] = first
    edits: list[TextEdit] = []
    for i, match in enumerate(matches):
        plain = names.get(i) or " ".join(_candidates(match[0].casefold(), vocabulary))
        if plain:
            edits.append((*match.span(), plain))
    return edits


@lru_cache(maxsize=4096)
def _matching_pairs(first: str, second: str, pairs: Pairs) -> tuple[tuple[str, str], ...]:
    """Return the pairs that two neighbouring words may be, one of them masked; () if too many."""
    forms = _pattern(first), _pattern(second)
    near = _pairs_by_letters(pairs).get((first[0], second[0]), ())
    matching = tuple(pair for pair in near if forms[0].fullmatch(pair[0]) and forms[1].fullmatch(pair[1]))
    return matching if len(matching) <= MAX_CANDIDATES else ()


@lru_cache(maxsize=4096)
def _candidates(masked: str, vocabulary: frozenset[str]) -> tuple[str, ...]:
    """Return the rare words of a vocabulary that a masked word may be, else the common ones; () if too many."""
    if sum(map(str.isalpha, masked)) < MIN_SHOWN_LETTERS:
        return ()
    words = _by_first_letter(vocabulary).get(masked[0], ())
    for form in (_pattern(masked), _pattern(masked, any_length=True)):
        matching = [word for word in words if form.fullmatch(word)]
        rare = [word for word in matching if word not in language_model.common_words()]
        if matching:
            return tuple(sorted(rare or matching)) if len(rare or matching) <= MAX_CANDIDATES else ()
    return ()


def _pattern(masked: str, any_length: bool = False) -> re.Pattern[str]:
    """Return what a masked word may be: one letter for each sign, or one letter and more for each run of signs."""
    letters = (lambda run: r"\w{1,12}") if any_length else (lambda run: rf"\w{{{len(run[0])}}}")
    return re.compile(_SIGN_RUN.sub(letters, masked))


@lru_cache(maxsize=8)
def _pairs_by_letters(pairs: Pairs) -> dict[tuple[str, str], tuple[tuple[str, str], ...]]:
    grouped: defaultdict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for pair in sorted(pairs):
        grouped[pair[0][0], pair[1][0]].append(pair)
    return {letters: tuple(near) for letters, near in grouped.items()}


@lru_cache(maxsize=8)
def _by_first_letter(vocabulary: frozenset[str]) -> dict[str, tuple[str, ...]]:
    grouped: defaultdict[str, list[str]] = defaultdict(list)
    for word in vocabulary:
        if 1 < len(word) <= MAX_LETTERS and word.isalpha():
            grouped[word[0]].append(word)
    return {letter: tuple(words) for letter, words in grouped.items()}
