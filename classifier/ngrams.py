"""Hashed word 1-2-grams and character 3-5-grams as sparse rows. Pure numpy; knows no weights.

The hashes are fixed functions of the text, so rows are the same in every process and on every machine. A text's
n-grams are hashed once, whatever number of windows is cut out of it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

BUCKETS = 1 << 18
CHARACTER_SIZES = (3, 4, 5)
# So many n-grams are sorted at once: bounds memory.
AT_ONCE = 1 << 20

WORD = re.compile(r"[^\W_]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIXER = np.uint64(0xD6E8FEB86659FD93)
_BITS = BUCKETS.bit_length() - 1
_WIDE = _BITS + 1
_NONE = np.zeros(0, dtype=np.int64)

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Sparse rows: row i holds `values[k]` at bucket `buckets[k]` for starts[i] <= k < starts[i + 1]."""

    starts: Integers
    buckets: Integers
    values: NDArray[np.float32]

    def dot(self, weights: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N, K) the inner product of each row with each column of `weights` (buckets, K); (N,) for (buckets,)."""
        if weights.ndim == 1:
            return self.dot(weights[:, None])[:, 0]
        out = np.zeros((len(self.starts) - 1, weights.shape[1]))
        # A sum over nothing would be the next row's first number.
        filled = np.flatnonzero(np.diff(self.starts))
        if len(filled):
            products = self.values[:, None] * weights[self.buckets].astype(np.float32, copy=False)
            out[filled] = np.add.reduceat(products, self.starts[filled], axis=0)
        return out


@dataclass(frozen=True)
class _Part:
    """Of `row` r, what stands in `buckets` from first to last, each moved by `shift`."""

    buckets: Integers
    row: Integers
    first: Integers
    last: Integers
    shift: int = 0

    def moved(self, odd: int, shift: int) -> _Part:
        return _Part(self.buckets, 2 * self.row + odd, self.first, self.last, shift)

    @cached_property
    def sizes(self) -> Integers:
        return np.asarray(np.maximum(self.last - self.first, 0))

    def keys(self) -> Integers:
        """Row number and bucket as one number."""
        sizes = self.sizes
        total = np.cumsum(sizes)
        at = np.arange(total[-1] if len(total) else 0) + np.repeat(self.first - total + sizes, sizes)
        return np.asarray(np.repeat((self.row << _WIDE) + self.shift, sizes) + self.buckets[at])

    def between(self, a: int, b: int) -> _Part:
        """Of those rows only a to b."""
        if len(self.row) and a <= self.row[0] and self.row[-1] < b:
            return self
        chosen = slice(*np.searchsorted(self.row, [a, b]))
        return _Part(self.buckets, self.row[chosen], self.first[chosen], self.last[chosen], self.shift)


class Document:
    """Units (words, or whole texts) one after another, and the n-grams of any runs of them.

    A run is given as the numbers of its first unit and of the one after its last.
    """

    def __init__(self, units: Sequence[str]) -> None:
        self._words: list[str] = []
        starts = [0]
        for unit in units:
            self._words += WORD.findall(unit.casefold())
            starts.append(len(self._words))
        self._starts = np.array(starts, dtype=np.int64)
        self._singles = np.array([word_bucket(word) for word in self._words], dtype=np.int64)
        self._pairs = np.array(
            [word_bucket(f"{a} {b}") for a, b in zip(self._words, self._words[1:], strict=False)], dtype=np.int64
        )
        lengths = np.array([len(word) for word in self._words], dtype=np.int64)
        # Where each word begins in the words joined by blanks, one blank before the first and after the last.
        self._ends = np.cumsum(lengths + 1)
        self._begins = self._ends - lengths
        self._grams = _character_buckets(f" {' '.join(self._words)} ")

    def word_rows(self, first: Integers, last: Integers) -> Rows:
        """Word 1-2-grams of each run, log-counted, rows of unit length."""
        return _rows(len(first), self._word_parts(first, last))

    def character_rows(self, first: Integers, last: Integers) -> Rows:
        """Character 3-5-grams of each run (words joined by one blank), rows of unit length."""
        return _rows(len(first), self._character_parts(first, last))

    def joint_rows(self, first: Integers, last: Integers) -> Rows:
        """Both at once: row 2i has the words of run i, row 2i + 1 its characters, the latter at BUCKETS + bucket."""
        parts = [part.moved(0, 0) for part in self._word_parts(first, last)]
        parts += [part.moved(1, BUCKETS) for part in self._character_parts(first, last)]
        return _rows(2 * len(first), parts)

    def _word_parts(self, first: Integers, last: Integers) -> list[_Part]:
        a, b = self._starts[first], self._starts[last]
        row = np.arange(len(a))
        return [_Part(self._singles, row, a, b), _Part(self._pairs, row, a, b - 1)]

    def _character_parts(self, first: Integers, last: Integers) -> list[_Part]:
        a, b = self._starts[first], self._starts[last]
        row = np.arange(len(a))
        if not len(self._words):
            return []
        some = b > a
        begin = np.where(some, self._begins[np.minimum(a, len(self._begins) - 1)] - 1, 0)
        end = np.where(some, self._ends[b - 1] + 1, 0)
        return [_Part(grams, row, begin, end - size + 1) for size, grams in self._grams]

    def distinct(self, first: Integers, last: Integers) -> tuple[Integers, Integers]:
        """(run, word bucket) of every distinct word of each run, sorted."""
        a, b = self._starts[first], self._starts[last]
        keys = np.unique(_Part(self._singles, np.arange(len(a)), a, b).keys())
        return keys >> _WIDE, keys & (BUCKETS - 1)


def word_rows(texts: Sequence[str]) -> Rows:
    """Word 1-2-grams of each case-folded text, log-counted, rows of unit length."""
    return Document(texts).word_rows(*_each(texts))


def character_rows(texts: Sequence[str]) -> Rows:
    """Character 3-5-grams (words joined by one space) of each case-folded text, rows of unit length."""
    return Document(texts).character_rows(*_each(texts))


def words(text: str) -> list[str]:
    """The case-folded words of a text: runs of letters and digits."""
    return WORD.findall(text.casefold())


def word_bucket(word: str) -> int:
    """The bucket of a word, or of two words joined by a space."""
    return zlib.crc32(word.encode("utf-8", "surrogatepass")) & (BUCKETS - 1)


def _each(texts: Sequence[str]) -> tuple[Integers, Integers]:
    numbers = np.arange(len(texts) + 1)
    return numbers[:-1], numbers[1:]


def _character_buckets(joined: str) -> list[tuple[int, Integers]]:
    """For each size, the bucket of the n-gram that begins at each character."""
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    found = []
    hashed = np.zeros(len(codes), dtype=np.uint64)
    for size in range(1, max(CHARACTER_SIZES) + 1):
        if size > len(codes):
            break
        hashed = (hashed[: len(codes) - size + 1] ^ codes[size - 1 :]) * _MULTIPLIER
        hashed ^= hashed >> np.uint64(29)
        if size in CHARACTER_SIZES:
            found.append((size, (((hashed ^ np.uint64(size)) * _MIXER) >> np.uint64(64 - _BITS)).view(np.int64)))
    return found


def _rows(count: int, parts: Sequence[_Part]) -> Rows:
    made = [
        _counted(a, b, np.concatenate([_NONE, *(part.between(a, b).keys() for part in parts)]))
        for a, b in _chunks(count, parts)
    ]
    if len(made) == 1:
        return made[0]
    starts = np.cumsum(np.concatenate([[0], *(np.diff(rows.starts) for rows in made)])).astype(np.int64)
    empty = Rows(starts, _NONE, np.zeros(0, dtype=np.float32))
    return Rows(
        starts,
        np.concatenate([rows.buckets for rows in [empty, *made]]),
        np.concatenate([rows.values for rows in [empty, *made]]),
    )


def _chunks(count: int, parts: Sequence[_Part]) -> list[tuple[int, int]]:
    """Ranges of rows that hold about AT_ONCE n-grams each."""
    if sum(int(part.sizes.sum()) for part in parts) <= AT_ONCE:
        return [(0, count)]
    sizes = np.zeros(count, dtype=np.int64)
    for part in parts:
        sizes[part.row] += part.sizes
    total = np.cumsum(sizes)
    cuts = np.searchsorted(total, np.arange(AT_ONCE, total[-1] + 1, AT_ONCE)) + 1
    edges = np.unique(np.concatenate([[0], cuts, [count]]))
    return [(int(a), int(b)) for a, b in zip(edges, edges[1:], strict=False)]


def _counted(first: int, last: int, keys: Integers) -> Rows:
    """Rows first..last, of unit length, each n-gram weighing 1 + log of how often it stands there."""
    keys.sort()
    new = np.empty(len(keys), dtype=bool)
    new[:1] = True
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    at = np.flatnonzero(new)
    distinct = keys[at]
    values = 1 + np.log(np.diff(at, append=len(keys)))
    row = (distinct >> _WIDE) - first
    square = np.bincount(row, weights=values * values, minlength=last - first)
    values /= np.maximum(np.sqrt(square), 1e-12)[row]
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=last - first))]).astype(np.int64)
    return Rows(starts, distinct & ((1 << _WIDE) - 1), values.astype(np.float32))
