"""Hashed word 1-2-grams and character 3-5-grams as sparse rows. Pure numpy; knows no weights.

The hashes are fixed functions of the text, so rows are the same in every process and on every machine. A text's
n-grams are hashed once, whatever number of windows is cut out of it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

BUCKETS = 1 << 18
CHARACTER_SIZES = (3, 4, 5)
# Of the kinds of n-grams, single words and pairs come first, then characters by size.
WORD_KINDS = 2
# So many n-grams are sorted at once: bounds memory.
AT_ONCE = 1 << 20

WORD = re.compile(r"[^\W_]+")
_WORD_OR_END = re.compile(rf"{WORD.pattern}|\n")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIXER = np.uint64(0xD6E8FEB86659FD93)
_BITS = BUCKETS.bit_length() - 1
_HALF, _REST = np.uint64(29), np.uint64(64 - _BITS)
_WIDE = _BITS + 1
# How many n-grams of each kind begin less between two places than there are words, or characters with a blank less.
_SHORTER = np.array([0, -1, *(2 - size for size in CHARACTER_SIZES)])
_IS_CHARACTER = np.arange(len(_SHORTER)) >= WORD_KINDS

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
        filled = (self.starts[1:] > self.starts[:-1]).nonzero()[0]
        if len(filled):
            products = self.values[:, None] * weights[self.buckets].astype(np.float32, copy=False)
            out[filled] = np.add.reduceat(products, self.starts[filled], axis=0)
        return out


class Document:
    """Units (words, or whole texts) one after another, and the n-grams of any runs of them.

    A run is given as the numbers of its first unit and of the one after its last.
    """

    def __init__(self, units: Sequence[str]) -> None:
        words, starts = _words(units)
        joined = f" {' '.join(words)} "
        coded = joined.encode("utf-8", "surrogatepass").split()
        hashes = [zlib.crc32(word) for word in coded]
        # A checksum goes on where the one of the word before it ended.
        pairs = [zlib.crc32(b" " + after, before) for before, after in zip(hashes, coded[1:], strict=False)]
        self._singles = np.array(hashes, dtype=np.int64) & (BUCKETS - 1)
        # All kinds of n-grams, one after another, those of characters at BUCKETS + bucket.
        kinds = [self._singles, np.array(pairs, dtype=np.int64) & (BUCKETS - 1), *_character_buckets(joined)]
        self._grams = np.concatenate(kinds)
        self._kinds = np.array([0, *accumulate(map(len, kinds[:-1]))])
        self._starts = np.array(starts)
        # Before each unit and after the last: how many words stand there, and where in `joined` the next blank does.
        blanks = np.array([0, *accumulate(len(word) + 1 for word in words)])
        self._places = np.empty((len(starts), len(kinds)), dtype=np.int64)
        self._places[:, :WORD_KINDS] = self._starts[:, None]
        self._places[:, WORD_KINDS:] = blanks[self._starts][:, None]

    def word_rows(self, first: Integers, last: Integers) -> Rows:
        """Word 1-2-grams of each run, log-counted, rows of unit length."""
        return _rows(self._grams, *(edge[:, :WORD_KINDS] for edge in self._edges(first, last)))

    def character_rows(self, first: Integers, last: Integers) -> Rows:
        """Character 3-5-grams of each run (words joined by one blank), rows of unit length."""
        rows = _rows(self._grams, *(edge[:, WORD_KINDS:] for edge in self._edges(first, last)))
        return Rows(rows.starts, rows.buckets - BUCKETS, rows.values)

    def joint_rows(self, first: Integers, last: Integers) -> Rows:
        """Both at once: row 2i has the words of run i, row 2i + 1 its characters, the latter at BUCKETS + bucket."""
        return _rows(self._grams, *self._edges(first, last), parted=True)

    def _edges(self, first: Integers, last: Integers) -> tuple[Integers, Integers]:
        """(N, kinds) where the n-grams of each kind of each run begin and end in `_grams`."""
        begin = self._places[first] + self._kinds
        end = self._places[last] + (self._kinds + _SHORTER)
        return begin, np.maximum(begin, end, out=end)

    def distinct(self, first: Integers, last: Integers) -> tuple[Integers, Integers]:
        """(run, word bucket) of every distinct word of each run, sorted."""
        a, b = self._starts[first], self._starts[last]
        keys = _distinct(_keys(self._singles, a[:, None], b[:, None], np.arange(len(a))[:, None]))
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


def _words(units: Sequence[str]) -> tuple[list[str], list[int]]:
    """The words of all units, and how many stand before each unit and after the last."""
    if any("\n" in unit for unit in units):
        units = [unit.replace("\n", " ") for unit in units]
    # One cut through all: a line break, which is in no word, ends a unit.
    found = _WORD_OR_END.findall("".join(f"{unit}\n" for unit in units).casefold())
    ends = [i for i, word in enumerate(found) if word == "\n"]
    return [word for word in found if word != "\n"], [0, *(end - unit for unit, end in enumerate(ends))]


def _each(texts: Sequence[str]) -> tuple[Integers, Integers]:
    numbers = np.arange(len(texts) + 1)
    return numbers[:-1], numbers[1:]


def _character_buckets(joined: str) -> list[Integers]:
    """For each size, BUCKETS + the bucket of the n-gram that begins at each character."""
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    hashed = np.zeros(len(codes), dtype=np.uint64)
    found = []
    for size in range(1, max(CHARACTER_SIZES) + 1):
        hashed = hashed[: max(len(codes) - size + 1, 0)] ^ codes[size - 1 :]
        hashed *= _MULTIPLIER
        hashed ^= hashed >> _HALF
        if size in CHARACTER_SIZES:
            buckets = hashed ^ np.uint64(size)
            buckets *= _MIXER
            buckets >>= _REST
            found.append(buckets.view(np.int64))
            found[-1] += BUCKETS
    return found


def _keys(grams: Integers, first: Integers, last: Integers, row: Integers) -> Integers:
    """Row number and bucket, as one number, of each n-gram between `first` and `last` (..., of one shape)."""
    first, sizes = first.ravel(), (last - first).ravel()
    total = sizes.cumsum()
    at = (first - total + sizes).repeat(sizes)
    at += np.arange(len(at))
    keys = (row << _WIDE).ravel().repeat(sizes)
    keys += grams[at]
    return keys


def _distinct(keys: Integers) -> Integers:
    """Sorted, each once."""
    keys.sort()
    return keys[_new(keys)]


def _new(keys: Integers) -> NDArray[np.bool_]:
    """Which of some sorted numbers differ from the one before."""
    new = np.empty(len(keys), dtype=bool)
    new[:1] = True
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    return new


def _rows(grams: Integers, first: Integers, last: Integers, *, parted: bool = False) -> Rows:
    """A row for each run, or two if words and characters are `parted`. first, last: (N, kinds)."""
    parts = 2 if parted else 1
    row = parts * np.arange(len(first))[:, None] + parted * _IS_CHARACTER[-first.shape[1] :]
    made = []
    for a, b in _chunks((last - first).sum(axis=1)):
        keys = _keys(grams, first[a:b], last[a:b], row[a:b])
        made.append(_counted(parts * a, parts * b, keys))
    if len(made) == 1:
        return made[0]
    starts = np.cumsum(np.concatenate([[0], *(np.diff(rows.starts) for rows in made)])).astype(np.int64)
    empty = Rows(starts, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))
    return Rows(
        starts,
        np.concatenate([rows.buckets for rows in [empty, *made]]),
        np.concatenate([rows.values for rows in [empty, *made]]),
    )


def _chunks(sizes: Integers) -> list[tuple[int, int]]:
    """Ranges of runs that hold about AT_ONCE n-grams each."""
    total = sizes.cumsum()
    if not len(sizes) or total[-1] <= AT_ONCE:
        return [(0, len(sizes))]
    cuts = np.searchsorted(total, np.arange(AT_ONCE, total[-1] + 1, AT_ONCE)) + 1
    edges = np.unique(np.concatenate([[0], cuts, [len(sizes)]]))
    return [(int(a), int(b)) for a, b in zip(edges, edges[1:], strict=False)]


def _counted(first: int, last: int, keys: Integers) -> Rows:
    """Rows first..last, of unit length, each n-gram weighing 1 + log of how often it stands there."""
    keys.sort()
    at = _new(keys).nonzero()[0]
    distinct = keys[at]
    at[:-1] -= at[1:]
    at[-1:] -= len(keys)
    values = np.log(-at)
    values += 1
    row = distinct >> _WIDE
    row -= first
    square = np.bincount(row, weights=values * values, minlength=last - first)
    values /= np.maximum(np.sqrt(square), 1e-12)[row]
    starts = row.searchsorted(np.arange(last - first + 1))
    distinct &= (1 << _WIDE) - 1
    return Rows(starts, distinct, values.astype(np.float32))
