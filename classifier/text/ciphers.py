"""Letters exchanged for others by a fixed rule, or in the wrong order: found by what language looks like.

Knows no view; gives edits. Every word is tried under every shift of the alphabet (rot13 is one of them), the
mirrored alphabet, and each of them backwards; a run of words keeps one rule, since a change of rule costs.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from string import ascii_lowercase, ascii_uppercase

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.text import language_model
from lethe.classifier.text.confusables import Edit
from lethe.classifier.text.language_model import EDGE, LETTERS

# What a change of rule costs, in nats: as much as a few letters tell.
CHANGE = 14.0
# A run of words must gain so many nats by its rule, to be read by it.
GAIN = 18.0
# And so much of its letters must stand in known words then.
KNOWN_SHARE = 0.3
# What a word is worth that only a rule makes a known one of, in nats a letter; shorter words are so by chance.
KNOWN_WORTH = 1.5
SHORTEST_KNOWN = 4
# Text is looked at only around stretches of this many characters that cost more a letter than language does.
STRETCH = 24
STRANGE = 3.0
AROUND = 60
LONGEST = 32
# So many pairs of letters are looked up at once: bounds memory.
AT_ONCE = 1 << 18

_LETTERS = re.compile(rf"[A-Za-z]{{1,{LONGEST}}}")


@cache
def _alphabets() -> NDArray[np.int64]:
    """(27, 27) what each letter stands for under each rule: 26 shifts, and the mirrored alphabet; EDGE stays."""
    letters = np.arange(LETTERS)
    rules = [(letters + shift) % LETTERS for shift in range(LETTERS)] + [letters[::-1]]
    return np.column_stack([np.stack(rules), np.full(len(rules), EDGE)])


@cache
def _tables() -> NDArray[np.float32]:
    """(54, 27 * 27) nats of each pair of letters as written: under each rule, then each rule backwards."""
    forward = [language_model.pairs()[np.ix_(rule, rule)] for rule in _alphabets()]
    return np.stack([table.ravel() for table in [*forward, *(t.T for t in forward)]]).astype(np.float32)


@lru_cache(maxsize=2)  # the three readings ask for the same text, one after another
def deciphered(text: str, vocabulary: frozenset[str] = frozenset()) -> list[tuple[int, int, int]]:
    """(start, end, rule) of each run of words that reads as language by a rule other than 0, as it stands.

    vocabulary: words that are known besides those of ordinary prompts, in small letters; a text of names is no
    language otherwise.
    """
    found: list[tuple[int, int, int]] = []
    for start, end in strange(text, vocabulary):
        found += [(start + a, start + b, rule) for a, b, rule in _runs(text[start:end], vocabulary)]
    return found


def shifted(text: str, vocabulary: frozenset[str] = frozenset()) -> list[Edit]:
    """Runs under a shifted or mirrored alphabet, in plain letters."""
    backwards = len(_alphabets())
    return [(a, b, _plain(text[a:b], rule)) for a, b, rule in deciphered(text, vocabulary) if rule < backwards]


def reversed_(text: str, vocabulary: frozenset[str] = frozenset()) -> list[Edit]:
    """Runs that were written backwards, forwards; letters as their rule says."""
    backwards = len(_alphabets())
    found = deciphered(text, vocabulary)
    return [(a, b, _plain(text[a:b], rule - backwards)[::-1]) for a, b, rule in found if rule >= backwards]


def mirrored(text: str, vocabulary: frozenset[str] = frozenset()) -> list[Edit]:
    """Runs whose words were written backwards, each by itself."""
    backwards = len(_alphabets())
    edits: list[Edit] = []
    for start, end, rule in deciphered(text, vocabulary):
        if rule >= backwards:
            plain = _plain(text[start:end], rule - backwards)
            edits += [(start + m.start(), start + m.end(), m[0][::-1]) for m in re.finditer(r"\S+", plain)]
    return edits


def _plain(text: str, rule: int) -> str:
    return text.translate(_exchanged(rule))


@cache
def _exchanged(rule: int) -> dict[int, int]:
    small = "".join(chr(ord("a") + code) for code in _alphabets()[rule][:LETTERS])
    return str.maketrans(ascii_lowercase + ascii_uppercase, small + small.upper())


def strange(text: str, vocabulary: frozenset[str]) -> list[tuple[int, int]]:
    """Stretches that cost more than language does or hold words known by a usual rule only, and what is around."""
    costs = language_model.costs(text)
    at = np.flatnonzero(costs)
    size = min(STRETCH, len(at))
    if not size:
        return []
    total = np.concatenate([[0.0], np.cumsum(costs[at])])
    dear = np.flatnonzero((total[size:] - total[:-size]) / size > STRANGE)
    marked = [(int(at[first]), int(at[first + size - 1])) for first in dear]
    marked += [(start, end) for start, end, _ in _known_by_rule(text, vocabulary)]
    spans: list[tuple[int, int]] = []
    for first, last in sorted(marked):
        start, end = max(first - AROUND, 0), min(last + AROUND, len(text))
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    return spans


@cache
def _usual() -> tuple[int, ...]:
    """The rules that people use: rot13 and the mirrored alphabet, and those and plain letters backwards."""
    backwards = len(_alphabets())
    return (LETTERS // 2, LETTERS, backwards, backwards + LETTERS // 2, backwards + LETTERS)


def _known_by_rule(text: str, vocabulary: frozenset[str]) -> list[tuple[int, int, int]]:
    """(start, end, rule) of words that are none as they stand, and known ones by a usual rule."""
    known = language_model.words()
    rules: dict[str, list[int]] = {}
    for written in dict.fromkeys(_LETTERS.findall(text)):
        word = written.lower()
        if len(word) >= SHORTEST_KNOWN and word not in known and word not in vocabulary:
            found = [rule for rule, plain in _under_usual(word) if plain in known or plain in vocabulary]
            if found:
                rules[written] = found
    if not rules:
        return []
    return [(*match.span(), rule) for match in _LETTERS.finditer(text) for rule in rules.get(match[0], ())]


@lru_cache(maxsize=1 << 12)
def _under_usual(word: str) -> tuple[tuple[int, str], ...]:
    """A word in small letters under each usual rule."""
    backwards = len(_alphabets())
    plain = {rule: _plain(word, rule) if rule else word for rule in {rule % backwards for rule in _usual()}}
    return tuple((rule, plain[rule] if rule < backwards else plain[rule - backwards][::-1]) for rule in _usual())


def _runs(text: str, vocabulary: frozenset[str]) -> list[tuple[int, int, int]]:
    """The likeliest rule for each word (Viterbi), as runs of words of one rule other than "as it stands"."""
    words = [match.span() for match in _LETTERS.finditer(text)]
    if not words:
        return []
    costs = _word_costs(text, words)
    number = {span: i for i, span in enumerate(words)}
    for start, end, rule in _known_by_rule(text, vocabulary):
        costs[number[start, end], rule] -= KNOWN_WORTH * (end - start)
    best = costs[0].copy()
    cheapest = np.zeros(len(words), dtype=np.int64)
    stays = np.zeros(costs.shape, dtype=bool)
    for i in range(1, len(words)):
        cheapest[i] = best.argmin()
        change = best[cheapest[i]] + CHANGE
        stays[i] = best <= change
        best = np.minimum(best, change) + costs[i]
    rules = np.zeros(len(words), dtype=np.int64)
    rules[-1] = best.argmin()
    for i in range(len(words) - 1, 0, -1):
        rules[i - 1] = rules[i] if stays[i, rules[i]] else cheapest[i]
    found = []
    cuts = [0, *(np.flatnonzero(np.diff(rules)) + 1).tolist(), len(words)]
    for first, last in zip(cuts, cuts[1:], strict=False):
        rule = int(rules[first])
        if rule and (costs[first:last, 0] - costs[first:last, rule]).sum() >= GAIN:
            start, end = words[first][0], words[last - 1][1]
            backwards = rule >= len(_alphabets())
            plain = _plain(text[start:end], rule % len(_alphabets()))
            if (
                language_model.known_share(_LETTERS.findall(plain[::-1] if backwards else plain), vocabulary)
                >= KNOWN_SHARE
            ):
                found.append((start, end, rule))
    return found


def _word_costs(text: str, words: list[tuple[int, int]]) -> NDArray[np.float32]:
    """(words, rules) nats of each word under each rule."""
    codes = language_model.codes(f" {text} ")
    pairs = codes[:-1] * (LETTERS + 1) + codes[1:]
    starts = np.array([start for start, _ in words])
    ends = np.array([end for _, end in words]) + 1
    tables = _tables()
    out = np.empty((len(words), len(tables)), dtype=np.float32)
    most = max(AT_ONCE // len(pairs), 1)
    for first in range(0, len(tables), most):
        rules = tables[first : first + most]
        total = np.zeros((len(rules), len(pairs) + 1))
        np.cumsum(rules[:, pairs], axis=1, out=total[:, 1:])
        out[:, first : first + most] = (total[:, ends] - total[:, starts]).T
    return out
