"""Whether letters look like language: pairs of letters, and words, counted in the shipped background prompts.

Knows no view and no score. The statistics are English; they only decide which further readings of a text are
worth the time, never what is flagged.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LETTERS = 26
# Index of everything that is no letter a-z: the edge of a word.
EDGE = LETTERS
# What a word costs that was never counted, in nats, before its letters; and what any word costs.
UNKNOWN = 5.0
LONGEST_WORD = 20
SHORT_WORD_COUNT = 8
# A word of a vocabulary that is asked about: as rare as the rarest that were counted, in nats.
RARE = 10.0
SHORTEST_NAME = 2
# Of more words the ends take too much memory.
MOST_LISTED = 1 << 15
# A unit without blanks that is longer than this is no word of any language written with blanks.
LONGEST_UNIT = 32
# Nats a letter: language has about 2.5, random letters 4 and more.
LIKELY = 3.2
READABLE_LEAST = 3
READABLE_SHARE = 0.1

_WORD = re.compile(r"[a-z]+")
_CODES = bytes((i | 0x20) - ord("a") if chr(i).isalpha() and i < 0x80 else EDGE for i in range(256))
_BACKGROUND = Path(__file__).parents[1] / "background" / "prompts.jsonl"


@cache
def _counts() -> Counter[str]:
    lines = _BACKGROUND.read_text(encoding="utf-8").splitlines()
    return Counter(word for line in lines for word in _WORD.findall(json.loads(line)["prompt"].casefold()))


@cache
def words() -> frozenset[str]:
    """The words that ordinary prompts hold more than once; of single letters only "a" and "i"."""
    return frozenset(w for w, count in _counts().items() if (count > 1 and len(w) > 1) or w in ("a", "i"))


@cache
def pairs() -> NDArray[np.float64]:
    """(27, 27) nats of the second letter after the first, row and column EDGE the ends of a word."""
    table = np.full((LETTERS + 1, LETTERS + 1), 0.5)
    for word, count in _counts().items():
        found = codes(f" {word} ")
        np.add.at(table, (found[:-1], found[1:]), 1 + np.log(count))
    return np.asarray(-np.log(table / table.sum(axis=1, keepdims=True)))


def codes(text: str) -> NDArray[np.int64]:
    """0-25 for each letter a-z of either case, EDGE for all else; one a character."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii").translate(_CODES), dtype=np.uint8).astype(np.int64)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    letters = (points | 0x20) - ord("a")
    return np.where((points < 0x80) & (letters < LETTERS), letters, EDGE).astype(np.int64)


def costs(text: str) -> NDArray[np.float64]:
    """(len(text),) nats of each character after the one before it; 0 where neither is a letter."""
    found = codes(f" {text}")
    return np.asarray(_pair_costs()[found[:-1] * (LETTERS + 1) + found[1:]])


@cache
def _pair_costs() -> NDArray[np.float64]:
    table = pairs().copy()
    # Between two that are no letters nothing is told.
    table[EDGE, EDGE] = 0.0
    return table.ravel()


def nats(text: str) -> NDArray[np.float64]:
    """(len(text) + 1,) running sum of `costs`."""
    return np.concatenate([[0.0], np.cumsum(costs(text))])


def readable(text: str) -> bool:
    """Whether some of a text may be language: a few units of it are words by length, script and letters.

    Digits, codes, hashes and random letters aren't; text in any script but Latin is.
    """
    units = text.split()
    total = nats(text)
    at = found = size = 0
    for unit in units:
        at = text.index(unit, at)
        at, start = at + len(unit), at
        if len(unit) <= LONGEST_UNIT and _word_like(unit, float(total[at] - total[start])):
            found, size = found + 1, size + len(unit)
    return found >= min(READABLE_LEAST, len(units)) and size >= READABLE_SHARE * len(text)


def _word_like(unit: str, cost: float) -> bool:
    if not unit.isascii():
        return True
    letters = sum(map(str.isalpha, unit))
    return letters >= 0.6 * len(unit) and cost <= LIKELY * (letters + 1)


def segmented(run: str, vocabulary: frozenset[str] = frozenset()) -> list[str]:
    """A run of letters a-z cut into the likeliest words; those of `vocabulary` are known too, and rare.

    Work is linear in the run's length.
    """
    table, unknown_ending = _endings(vocabulary)
    letters = costs(run).tolist()
    # What the best cut up to each letter costs, where its last piece begins, and whether that is a known word.
    best, begins, known = [0.0], [0], [True]
    for end in range(1, len(run) + 1):
        # Unknown words are cut as rarely as can be: one more letter of one costs what the pair costs.
        least, begin = best[-1] + letters[end - 1] + (UNKNOWN if known[-1] else 0.0), end - 1
        found = False
        for start in range(end - 1, max(end - LONGEST_WORD, 0) - 1, -1):
            cost = table.get(run[start:end], unknown_ending)
            if cost < 0:
                break
            cost += best[start]
            if cost < least or (cost == least and start < begin):
                least, begin, found = cost, start, True
        best.append(least)
        begins.append(begin)
        known.append(found)
    pieces: list[str] = []
    end, unknown = len(run), ""
    while end:
        start = begins[end]
        if known[end]:
            pieces += [unknown] if unknown else []
            pieces.append(run[start:end])
            unknown = ""
        else:
            unknown = run[start:end] + unknown
        end = start
    return [*([unknown] if unknown else []), *pieces[::-1]]


@lru_cache(maxsize=8)
def _endings(vocabulary: frozenset[str]) -> tuple[dict[str, float], float]:
    """What known words cost, and infinity for what is only the end of one; and what all else costs: -1, where a search
    for the words that end at one place can stop, or infinity if the ends of so many words aren't listed."""
    names = {word: RARE for word in vocabulary if SHORTEST_NAME <= len(word) <= LONGEST_WORD}
    words = {**names, **_unigrams()}
    if len(words) > MOST_LISTED:
        return words, math.inf
    ends = {word[at:] for word in words for at in range(1, len(word))}
    return {**dict.fromkeys(ends, math.inf), **words}, -1.0


@cache
def _unigrams() -> dict[str, float]:
    """Nats of a word. Short rare ones would take the letters of every name, so they don't count."""
    counts = {word: _counts()[word] for word in words() if len(word) > 3 or _counts()[word] >= SHORT_WORD_COUNT}
    total = sum(counts.values())
    return {word: float(np.log(total / count)) for word, count in counts.items()}


def known_share(found: Sequence[str], vocabulary: Collection[str] = ()) -> float:
    """Share of the letters of some words that stand in known ones, `vocabulary` included."""
    letters = sum(map(len, found))
    return (
        sum(len(w) for w in found if w.casefold() in words() or w.casefold() in vocabulary) / letters
        if letters
        else 0.0
    )
