"""Words that were taken apart, put together again. Knows no view; gives edits.

Letters with blanks or signs between, words with marks or tags inside, and text whose word gaps are gone or in
the wrong places.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate

import numpy as np

from lethe.classifier.text import language_model
from lethe.classifier.text.confusables import Edit

SINGLES = 4
# A run of letters that is as long as this is rarely one word.
GAPLESS = 22
# So many tokens are looked at together to tell whether their gaps are in the wrong places.
FRAGMENTS = 8
FRAGMENT_LENGTH = 4.5
KNOWN_SHARE = 0.5
STRANGE_SHARE = 0.35
GAPLESS_WORDS = 4
GAPLESS_SHARE = 0.5
# And so many of them are no words; of ordinary text, only names and rare words are none.
STRANGE_TOKENS = 4
# Fragments become at most this many words each.
FEWER = 0.75
# Letters of a word that is familiar.
LONGEST_NAME = 10
# So many strange compounds so near to each other are no coincidence.
NEAR_CHAINS, NEAR = 3, 240

_SINGLES = re.compile(rf"(?<![^\W_])[^\W_](?:[\W_]{{1,6}}[^\W_](?![^\W_])){{{SINGLES - 1},}}")
_GAP = re.compile(r"[\W_]+")
_TAG = re.compile(
    r"(?<=[^\W_])(?:<{1,2}[^<>\s][^<>]{0,199}>{1,2}|\[/?[A-Za-z]{1,8}\]|[\u00ad\u200b-\u200f\u2060\ufeff]){1,16}"
    r"(?=[^\W_])"
)
_TAG_SIGN = re.compile("[>\\]\u00ad\u200b-\u200f\u2060\ufeff]")
_MARK_SIGN = re.compile("[*_~`]")
# Emphasis that begins, or ends, inside a word. Single underscores join the names of programs.
_MARK = r"\*{1,3}|__|~~|`"
_EMPHASES = (
    re.compile(rf"(?<=[^\W_])({_MARK})(?=[^\W_])[^\s*_~`]*(\1)"),
    re.compile(rf"({_MARK})[^\W_][^\s*_~`]*(\1)(?=[^\W_])"),
)
_CHAIN = re.compile(r"(?<![^\W_])[^\W_]++(?:(?!['’](?:s|t|d|m|ll|re|ve)\b)(?:[^\w\s]|_){1,6}[^\W_]++)+")
# Signs that join no words in ordinary text.
_ODD_GAP = re.compile(r"[^\w\s\-–'’.,/&+:@]|_")
_PIECE = re.compile(r"[^\W_]+")
_TOKEN = re.compile(r"[^\W\d_]+")
_LONG_RUN = re.compile(rf"[A-Za-z]{{{GAPLESS}}}")
_RUN = re.compile(r"[A-Za-z]{8,}")
_CAPITAL = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_PART = re.compile(rf"{_CAPITAL.pattern}|[0-9]+|[^\W_A-Za-z0-9]+")


def unmarked(text: str) -> list[Edit]:
    """Tags, special tokens and marks of emphasis inside words, gone."""
    spans = {match.span() for match in _TAG.finditer(text)} if _TAG_SIGN.search(text) else set()
    if _MARK_SIGN.search(text):
        spans.update(match.span(mark) for form in _EMPHASES for match in form.finditer(text) for mark in (1, 2))
    edits: list[Edit] = []
    for start, end in sorted(spans):
        if not edits or start >= edits[-1][1]:
            edits.append((start, end, ""))
    return edits


def spaced(
    text: str, vocabulary: frozenset[str] = frozenset(), familiar: Callable[[str], bool] = lambda word: False
) -> list[Edit]:
    """Single letters with the same sign or blank between, as words; a wider gap parts words.

    Where no gap is wider, what comes out is cut into known words (`vocabulary` as in `segmented`). familiar: see
    `mistyped.repaired`; such a word stays whole.
    """
    edits: list[Edit] = []
    for match in _SINGLES.finditer(text):
        run, start = match[0], match.start()
        letters = sum(map(str.isalpha, run))
        if letters < max(SINGLES, 0.6 * len(_GAP.sub("", run))):
            continue
        for a, b in _spelt(run):
            if b - a > 1:
                edits.append((start + a, start + b, " ".join(_cut(_GAP.sub("", run[a:b]), vocabulary, familiar))))
    return edits


def _cut(joined: str, vocabulary: frozenset[str], familiar: Callable[[str], bool]) -> list[str]:
    """A run of letters and digits as the words that it may be made of; as it is, where few of those are known."""
    word = joined.casefold()
    # `familiar` may be wrong; a whole question without gaps must not be taken for somebody's name.
    if word in vocabulary or word in language_model.words() or (len(word) <= LONGEST_NAME and familiar(word)):
        return [joined]
    cut = [word for part in _PART.findall(joined) for word in _words(part, vocabulary)]
    return cut if language_model.known_share(cut, vocabulary) >= KNOWN_SHARE else [joined]


def _words(part: str, vocabulary: frozenset[str]) -> list[str]:
    small = part.lower()
    if not small.isascii() or not small.isalpha() or small in vocabulary or small in language_model.words():
        return [part]
    return language_model.segmented(small, vocabulary)


def _spelt(run: str) -> Iterator[tuple[int, int]]:
    gaps = list(_GAP.finditer(run))
    usual = Counter(gap[0] for gap in gaps).most_common(1)[0][0]
    start = 0
    for gap in gaps:
        if len(gap[0]) > len(usual) or (any(map(str.isspace, gap[0])) and not any(map(str.isspace, usual))):
            yield start, gap.start()
            start = gap.end()
    yield start, len(run)


def bridged(text: str) -> list[Edit]:
    """Words with signs inside, without them: where half of the pieces are no words by themselves.

    One such word counts if it has three pieces or signs that join no words; of others there must be a few.
    """
    chains = [(match, sure) for match in _CHAIN.finditer(text) if (sure := _taken_apart(match[0])) is not None]
    starts = np.array([match.start() for match, _ in chains])
    near = np.searchsorted(starts, starts + NEAR, side="right") - np.searchsorted(starts, starts - NEAR)
    edits: list[Edit] = []
    for (match, sure), around in zip(chains, near.tolist(), strict=True):
        if sure or around >= NEAR_CHAINS:
            edits += [(match.start() + gap.start(), match.start() + gap.end(), "") for gap in _GAP.finditer(match[0])]
    return edits


def _taken_apart(chain: str) -> bool | None:
    """Whether a chain of pieces is a word that was taken apart for sure (True), perhaps, or not (None)."""
    known = language_model.words()
    pieces = [piece for piece in _PIECE.findall(chain) if piece.isalpha()]
    single = sum(len(piece) == 1 for piece in pieces)
    # A capitalised part is that of a double name.
    strange = sum(len(p) > 1 and not p.istitle() and p.casefold() not in known for p in pieces[1:])
    strange += bool(pieces) and len(pieces[0]) > 1 and pieces[0].casefold() not in known
    # One letter by itself is an initial, or the e of e-mail.
    strange += single if single > 1 else 0
    if not strange or 2 * strange < len(pieces) or sum(map(len, pieces)) < SINGLES:
        return None
    if len(pieces) == 2 and pieces[1].istitle() and not single:
        return None
    return len(pieces) > 2 or bool(_ODD_GAP.search(chain))


def segmented(text: str, vocabulary: frozenset[str] = frozenset()) -> list[Edit]:
    """Runs of letters without gaps, and runs of fragments, cut into words where known words come out.

    vocabulary: words that are known besides those of ordinary prompts, in small letters.
    """
    edits = [(start, end, " ".join(cut)) for start, end, cut in _gapless(text, vocabulary)]
    taken = [(start, end) for start, end, _ in edits]
    for start, end in _fragments(text):
        letters = "".join(c for c in text[start:end] if c.isalnum())
        cut = language_model.segmented(letters.lower(), vocabulary)
        fewer = len(cut) <= FEWER * len(text[start:end].split())
        known = language_model.known_share(cut, vocabulary) >= KNOWN_SHARE
        if fewer and known and all(b <= start or end <= a for a, b in taken):
            edits.append((start, end, " ".join(cut)))
    return sorted(edits)


def _gapless(text: str, vocabulary: frozenset[str]) -> list[tuple[int, int, list[str]]]:
    """Runs of letters, with the words that they become. Where there is a long one, shorter ones count too."""
    found: list[tuple[int, int, list[str]]] = []
    if not _LONG_RUN.search(text):
        return found
    for match in _RUN.finditer(text):
        # Capitals inside begin words.
        cut = [word for part in _CAPITAL.findall(match[0]) for word in _words(part, vocabulary)]
        if len(cut) > 1 and language_model.known_share(cut, vocabulary) >= GAPLESS_SHARE:
            found.append((*match.span(), cut))
    long = any(end - start >= GAPLESS and len(cut) >= GAPLESS_WORDS for start, end, cut in found)
    return found if long else []


def _fragments(text: str) -> list[tuple[int, int]]:
    """Where tokens are short and mostly no words: their gaps may be in the wrong places."""
    tokens = _TOKEN.findall(text)
    known = language_model.words()
    sizes = [0 if token.casefold() in known else len(token) for token in tokens]
    strange = list(accumulate(map(bool, sizes), initial=0))
    if strange[-1] < STRANGE_TOKENS:
        return []
    unknown = list(accumulate(sizes, initial=0))
    total = list(accumulate(map(len, tokens), initial=0))
    found: list[tuple[int, int]] = []
    for first in range(len(tokens) - FRAGMENTS + 1):
        last = first + FRAGMENTS
        if strange[last] - strange[first] < STRANGE_TOKENS:
            continue
        letters = total[last] - total[first]
        if unknown[last] - unknown[first] > STRANGE_SHARE * letters and letters <= FRAGMENT_LENGTH * FRAGMENTS:
            if found and first <= found[-1][1]:
                found[-1] = found[-1][0], last
            else:
                found.append((first, last))
    spans = [match.span() for match in _TOKEN.finditer(text)] if found else []
    return [(spans[first][0], spans[last - 1][1]) for first, last in found]
