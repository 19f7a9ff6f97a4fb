"""A small language model: costs of letter pairs and of words, counted in the shipped background prompts.

A cost is a negative log-probability, −ln p: a lower cost means a likelier text. The statistics are English. They
decide which further views of a text are worth making and which windows are worth encoding; they never decide what is
flagged. Knows no view and no score.
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

# Letters of the Latin alphabet; their codes are 0–25.
LETTERS = 26
# The code of every other character: the edge of a word.
WORD_EDGE = LETTERS
# Cost (−ln p) of a word that was never counted, before the cost of its letters. Chosen: above most words' cost.
UNKNOWN_WORD_COST = 5.0
# Letters of the longest word that the splitter looks up. Chosen: English has hardly any longer one.
MAX_WORD_LETTERS = 20
# Occurrences that a word of up to three letters needs to count when text is split. Chosen: rarer ones (abbreviations)
# would be cut out of every name.
MIN_SHORT_WORD_COUNT = 8
# Cost (−ln p) of a vocabulary word. Chosen: about that of the rarest words that were counted.
VOCABULARY_WORD_COST = 10.0
# Letters of the shortest vocabulary word that the splitter looks up. Chosen: single letters would match everywhere.
MIN_VOCABULARY_WORD = 2
# Words up to which their endings are listed too, to stop a search early. Chosen: more take too much memory.
MAX_WORDS_WITH_ENDINGS = 1 << 15
# Characters of the longest unit (a run without blanks) that may be a word. Chosen: languages written with blanks have
# hardly any longer one.
MAX_UNIT_CHARACTERS = 32
# Highest cost (−ln p) a letter of a word. English costs about 2.5, random letters 4 and more; chosen between the two.
MAX_LETTER_COST = 3.2
# Units of a text that must look like words for the text to be readable; all of them if it has fewer. Chosen: one or
# two may do so by chance.
MIN_READABLE_UNITS = 3
# Share of a text's characters that these units must have. Chosen: low, for text next to code or encoded data.
MIN_READABLE_SHARE = 0.1
# Share of a unit's characters that must be letters. Chosen: a word with punctuation has more, a code less.
MIN_LETTER_SHARE = 0.6

_WORD = re.compile(r"[a-z]+")
# The letter code of each byte of ASCII text.
_CODES = bytes((i | 0x20) - ord("a") if chr(i).isalpha() and i < 0x80 else WORD_EDGE for i in range(256))
_BACKGROUND = Path(__file__).parents[1] / "background" / "prompts.jsonl"


@cache
def _word_counts() -> Counter[str]:
    lines = _BACKGROUND.read_text(encoding="utf-8").splitlines()
    return Counter(word for line in lines for word in _WORD.findall(json.loads(line)["prompt"].casefold()))


@cache
def common_words() -> frozenset[str]:
    """Return the words that occur more than once in the background prompts; of single letters only "a" and "i"."""
    return frozenset(w for w, count in _word_counts().items() if (count > 1 and len(w) > 1) or w in ("a", "i"))


def word_count(word: str) -> int:
    """Return how often a lower-case word occurs in the background prompts."""
    return _word_counts()[word]


@cache
def common_pairs() -> frozenset[tuple[str, str]]:
    """Return the pairs of neighbouring words in the background prompts, lower case."""
    texts = (json.loads(line)["prompt"].casefold() for line in _BACKGROUND.read_text(encoding="utf-8").splitlines())
    return frozenset(pair for words in map(_WORD.findall, texts) for pair in zip(words, words[1:], strict=False))


@cache
def letter_pair_costs() -> NDArray[np.float64]:
    """Return (27, 27) costs −ln p(second | first) of letter pairs; row and column WORD_EDGE are the ends of a word.

    p is estimated from counts that start at 0.5 and grow by 1 + ln n for each word that occurs n times.
    """
    table = np.full((LETTERS + 1, LETTERS + 1), 0.5)
    for word, count in _word_counts().items():
        codes = letter_codes(f" {word} ")
        np.add.at(table, (codes[:-1], codes[1:]), 1 + np.log(count))
    return np.asarray(-np.log(table / table.sum(axis=1, keepdims=True)))


def letter_codes(text: str) -> NDArray[np.int64]:
    """Return (len(text),) codes: 0–25 for each letter a–z of either case, WORD_EDGE for every other character."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii").translate(_CODES), dtype=np.uint8).astype(np.int64)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    letters = (points | 0x20) - ord("a")
    return np.where((points < 0x80) & (letters < LETTERS), letters, WORD_EDGE).astype(np.int64)


def character_costs(text: str) -> NDArray[np.float64]:
    """Return (len(text),) the cost of each character after the one before it; 0 where neither is a letter."""
    codes = letter_codes(f" {text}")
    return np.asarray(_flat_pair_costs()[codes[:-1] * (LETTERS + 1) + codes[1:]])


@cache
def _flat_pair_costs() -> NDArray[np.float64]:
    table = letter_pair_costs().copy()
    # A pair without a letter says nothing about language.
    table[WORD_EDGE, WORD_EDGE] = 0.0
    return table.ravel()


def cumulative_costs(text: str) -> NDArray[np.float64]:
    """Return (len(text) + 1,) the running sum of `character_costs`, beginning with 0."""
    return np.concatenate([[0.0], np.cumsum(character_costs(text))])


def is_readable(text: str) -> bool:
    """Whether part of a text may be language: a few of its units look like words by length, script and letters.

    Digits, codes, hashes and random letters don't; text in any script but Latin does.
    """
    units = text.split()
    total = cumulative_costs(text)
    position = word_count = word_characters = 0
    for unit in units:
        start = text.index(unit, position)
        position = start + len(unit)
        if len(unit) <= MAX_UNIT_CHARACTERS and _is_word_like(unit, float(total[position] - total[start])):
            word_count, word_characters = word_count + 1, word_characters + len(unit)
    return word_count >= min(MIN_READABLE_UNITS, len(units)) and word_characters >= MIN_READABLE_SHARE * len(text)


def _is_word_like(unit: str, cost: float) -> bool:
    if not unit.isascii():
        return True
    letters = sum(map(str.isalpha, unit))
    return letters >= MIN_LETTER_SHARE * len(unit) and cost <= MAX_LETTER_COST * (letters + 1)


def split_into_words(letters: str, vocabulary: frozenset[str] = frozenset()) -> list[str]:
    """Split a run of letters a–z into the likeliest sequence of words (Viterbi search over unigram costs).

    vocabulary: further known words, which count as rare. Letters that fit no known word come out as one piece.
    Work is linear in the run's length.
    """
    table, other_cost = _word_cost_table(vocabulary)
    letter_costs = character_costs(letters).tolist()
    # For the cheapest split up to each letter: its cost, where its last piece begins, whether that is a known word.
    costs, starts, is_known = [0.0], [0], [True]
    for end in range(1, len(letters) + 1):
        # The fallback lengthens an unknown piece by one letter: it costs that letter, and a new piece the penalty.
        min_cost = costs[-1] + letter_costs[end - 1] + (UNKNOWN_WORD_COST if is_known[-1] else 0.0)
        best_start, word_found = end - 1, False
        for start in range(end - 1, max(end - MAX_WORD_LETTERS, 0) - 1, -1):
            cost = table.get(letters[start:end], other_cost)
            if cost < 0:
                break
            cost += costs[start]
            if cost < min_cost or (cost == min_cost and start < best_start):
                min_cost, best_start, word_found = cost, start, True
        costs.append(min_cost)
        starts.append(best_start)
        is_known.append(word_found)
    return _pieces(letters, starts, is_known)


def _pieces(letters: str, starts: Sequence[int], is_known: Sequence[bool]) -> list[str]:
    """Follow the split back from its end; neighbouring unknown pieces become one."""
    pieces: list[str] = []
    end, unknown = len(letters), ""
    while end:
        start = starts[end]
        if is_known[end]:
            pieces += [unknown] if unknown else []
            pieces.append(letters[start:end])
            unknown = ""
        else:
            unknown = letters[start:end] + unknown
        end = start
    return [*([unknown] if unknown else []), *pieces[::-1]]


@lru_cache(maxsize=8)
def _word_cost_table(vocabulary: frozenset[str]) -> tuple[dict[str, float], float]:
    """Return the cost of each known word, and the cost of any other string.

    A string that only ends a known word costs infinity; any other string costs −1, at which a search for the words
    that end at one place stops. With more than MAX_WORDS_WITH_ENDINGS words the endings aren't listed, and any other
    string costs infinity.
    """
    vocabulary_costs = {
        word: VOCABULARY_WORD_COST for word in vocabulary if MIN_VOCABULARY_WORD <= len(word) <= MAX_WORD_LETTERS
    }
    costs = {**vocabulary_costs, **_common_word_costs()}
    if len(costs) > MAX_WORDS_WITH_ENDINGS:
        return costs, math.inf
    endings = {word[at:] for word in costs for at in range(1, len(word))}
    return {**dict.fromkeys(endings, math.inf), **costs}, -1.0


@cache
def _common_word_costs() -> dict[str, float]:
    """Return −ln(count / total) of each common word, without rare words of up to three letters."""
    counts = {
        word: _word_counts()[word]
        for word in common_words()
        if len(word) > 3 or _word_counts()[word] >= MIN_SHORT_WORD_COUNT
    }
    total = sum(counts.values())
    return {word: float(np.log(total / count)) for word, count in counts.items()}


def known_letter_share(words: Sequence[str], vocabulary: Collection[str] = ()) -> float:
    """Return the share of the letters of `words` that belong to common words or to words of `vocabulary`."""
    letters = sum(map(len, words))
    if not letters:
        return 0.0
    known = common_words()
    return sum(len(w) for w in words if w.casefold() in known or w.casefold() in vocabulary) / letters
