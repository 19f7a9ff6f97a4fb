"""Hashed word 1-2-grams and character 3-5-grams as sparse rows. Pure numpy; knows no weights.

The hashes are fixed functions of the text, so rows are the same in every process and on every machine. A text's
n-grams are hashed once, however many windows it is split into.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

# Hash buckets of the words' n-grams, and as many for the characters'; a power of two. Part of the artifact format.
# Chosen: a fit has tens of thousands of distinct n-grams, so few share a bucket.
BUCKETS = 1 << 18
# Lengths of the character n-grams. Chosen: the usual range for short texts.
CHARACTER_SIZES = (3, 4, 5)
# Kinds of word n-grams: single words and pairs. They come before the characters' kinds, which are ordered by size.
WORD_KINDS = 2
# N-grams that are sorted in one batch: bounds memory to tens of MB.
BATCH_NGRAMS = 1 << 20

WORD = re.compile(r"[^\W_]+")
_WORD_OR_LINE_BREAK = re.compile(rf"{WORD.pattern}|\n")
# Multiplier of the rolling hash: 2^64 divided by the golden ratio (Fibonacci hashing, Knuth).
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
# Multiplier of the final mixing step: an odd 64-bit constant with well spread bits.
_MIXER = np.uint64(0xD6E8FEB86659FD93)
# Bits of a bucket number.
_BUCKET_BITS = BUCKETS.bit_length() - 1
# Right shift (bits) of the rolling hash: mixes the upper half into the lower one.
_MIX_SHIFT = np.uint64(29)
# Right shift (bits) that leaves the topmost bits as the bucket number.
_BUCKET_SHIFT = np.uint64(64 - _BUCKET_BITS)
# Bits of a bucket number where characters follow the words, at BUCKETS + bucket.
_JOINT_BITS = _BUCKET_BITS + 1
# For each kind of n-gram: how many more begin in a range of words, or of their characters with one blank more, than
# there are words or characters. A range of W words has W single words and W - 1 pairs, and so on.
_EXTRA_NGRAMS = np.array([0, -1, *(2 - size for size in CHARACTER_SIZES)])
_IS_CHARACTER_KIND = np.arange(len(_EXTRA_NGRAMS)) >= WORD_KINDS

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class NgramRows:
    """Sparse rows: row i holds `values[k]` at bucket `buckets[k]` for starts[i] <= k < starts[i + 1]."""

    starts: Integers
    buckets: Integers
    values: NDArray[np.float32]

    def dot(self, weights: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return (N, K) the inner products of the rows with the columns of `weights` (buckets, K); (N,) for
        (buckets,)."""
        if weights.ndim == 1:
            return self.dot(weights[:, None])[:, 0]
        out = np.zeros((len(self.starts) - 1, weights.shape[1]))
        # `reduceat` gives an empty row the next row's first value, so empty rows are left out.
        filled = (self.starts[1:] > self.starts[:-1]).nonzero()[0]
        if len(filled):
            products = self.values[:, None] * weights[self.buckets].astype(np.float32, copy=False)
            out[filled] = np.add.reduceat(products, self.starts[filled], axis=0)
        return out


class NgramDocument:
    """A list of units (words, or whole texts), and the n-grams of any ranges of them.

    A range is given by the numbers of its first unit and of the one after its last.
    """

    def __init__(self, units: Sequence[str]) -> None:
        words, starts = _split_units_into_words(units)
        joined = f" {' '.join(words)} "
        encoded = joined.encode("utf-8", "surrogatepass").split()
        word_hashes = [zlib.crc32(word) for word in encoded]
        # The checksum of a pair continues that of its first word.
        pair_hashes = [
            zlib.crc32(b" " + after, before) for before, after in zip(word_hashes, encoded[1:], strict=False)
        ]
        self._single_words = np.array(word_hashes, dtype=np.int64) & (BUCKETS - 1)
        # All kinds of n-grams, one after another; those of characters at BUCKETS + bucket.
        kinds = [
            self._single_words,
            np.array(pair_hashes, dtype=np.int64) & (BUCKETS - 1),
            *_character_buckets(joined),
        ]
        self._grams = np.concatenate(kinds)
        self._kind_starts = np.array([0, *accumulate(map(len, kinds[:-1]))])
        self._unit_starts = np.array(starts)
        # Before each unit and after the last: the number of words so far, and the place of the next blank in `joined`.
        blanks = np.array([0, *accumulate(len(word) + 1 for word in words)])
        self._positions = np.empty((len(starts), len(kinds)), dtype=np.int64)
        self._positions[:, :WORD_KINDS] = self._unit_starts[:, None]
        self._positions[:, WORD_KINDS:] = blanks[self._unit_starts][:, None]

    def word_rows(self, first: Integers, last: Integers) -> NgramRows:
        """Return the word 1-2-grams of each range, log-counted, as rows of unit length."""
        return _ngram_rows(self._grams, *(edge[:, :WORD_KINDS] for edge in self._gram_ranges(first, last)))

    def character_rows(self, first: Integers, last: Integers) -> NgramRows:
        """Return the character 3-5-grams of each range (words joined by one blank), as rows of unit length."""
        rows = _ngram_rows(self._grams, *(edge[:, WORD_KINDS:] for edge in self._gram_ranges(first, last)))
        return NgramRows(rows.starts, rows.buckets - BUCKETS, rows.values)

    def joint_rows(self, first: Integers, last: Integers) -> NgramRows:
        """Return both at once: row 2i has the words of range i, row 2i + 1 its characters at BUCKETS + bucket."""
        return _ngram_rows(self._grams, *self._gram_ranges(first, last), separate=True)

    def _gram_ranges(self, first: Integers, last: Integers) -> tuple[Integers, Integers]:
        """Return (N, kinds) where the n-grams of each kind of each range begin and end in `_grams`."""
        begin = self._positions[first] + self._kind_starts
        end = self._positions[last] + (self._kind_starts + _EXTRA_NGRAMS)
        return begin, np.maximum(begin, end, out=end)

    def distinct_words(self, first: Integers, last: Integers) -> tuple[Integers, Integers]:
        """Return (range number, word bucket) of every distinct word of each range, sorted."""
        a, b = self._unit_starts[first], self._unit_starts[last]
        keys = _gram_keys(self._single_words, a[:, None], b[:, None], np.arange(len(a))[:, None])
        keys.sort()
        keys = keys[_differs_from_previous(keys)]
        return keys >> _JOINT_BITS, keys & (BUCKETS - 1)


def word_rows(texts: Sequence[str]) -> NgramRows:
    """Return the word 1-2-grams of each case-folded text, log-counted, as rows of unit length."""
    numbers = np.arange(len(texts) + 1)
    return NgramDocument(texts).word_rows(numbers[:-1], numbers[1:])


def character_rows(texts: Sequence[str]) -> NgramRows:
    """Return the character 3-5-grams (words joined by one blank) of each case-folded text, as rows of unit length."""
    numbers = np.arange(len(texts) + 1)
    return NgramDocument(texts).character_rows(numbers[:-1], numbers[1:])


def split_words(text: str) -> list[str]:
    """Return the case-folded words of a text: runs of letters and digits."""
    return WORD.findall(text.casefold())


def word_bucket(word: str) -> int:
    """Return the bucket of a case-folded word, or of two words joined by a blank: CRC-32 modulo BUCKETS."""
    return zlib.crc32(word.encode("utf-8", "surrogatepass")) & (BUCKETS - 1)


def _split_units_into_words(units: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the words of all units, and the number of words before each unit and after the last."""
    if any("\n" in unit for unit in units):
        units = [unit.replace("\n", " ") for unit in units]
    # All units are split in one pass: a line break, which no word contains, ends a unit.
    tokens = _WORD_OR_LINE_BREAK.findall("".join(f"{unit}\n" for unit in units).casefold())
    ends = [i for i, token in enumerate(tokens) if token == "\n"]
    return [token for token in tokens if token != "\n"], [0, *(end - unit for unit, end in enumerate(ends))]


def _character_buckets(joined: str) -> list[Integers]:
    """Return for each size BUCKETS + the bucket of the n-gram that begins at each character."""
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    hashes = np.zeros(len(codes), dtype=np.uint64)
    buckets_by_size = []
    for size in range(1, max(CHARACTER_SIZES) + 1):
        hashes = hashes[: max(len(codes) - size + 1, 0)] ^ codes[size - 1 :]
        hashes *= _MULTIPLIER
        hashes ^= hashes >> _MIX_SHIFT
        if size in CHARACTER_SIZES:
            mixed = hashes ^ np.uint64(size)
            mixed *= _MIXER
            mixed >>= _BUCKET_SHIFT
            buckets = mixed.view(np.int64)
            buckets += BUCKETS
            buckets_by_size.append(buckets)
    return buckets_by_size


def _gram_keys(grams: Integers, first: Integers, last: Integers, row: Integers) -> Integers:
    """Return row number and bucket, as one integer, of each n-gram between `first` and `last` (..., of one shape)."""
    first, sizes = first.ravel(), (last - first).ravel()
    total = sizes.cumsum()
    at = (first - total + sizes).repeat(sizes)
    at += np.arange(len(at))
    keys = (row << _JOINT_BITS).ravel().repeat(sizes)
    keys += grams[at]
    return keys


def _differs_from_previous(values: Integers) -> NDArray[np.bool_]:
    """Return (len(values),) which values differ from the one before; the first one does."""
    differs = np.empty(len(values), dtype=bool)
    differs[:1] = True
    np.not_equal(values[1:], values[:-1], out=differs[1:])
    return differs


def _ngram_rows(grams: Integers, first: Integers, last: Integers, *, separate: bool = False) -> NgramRows:
    """Return a row for each range, or two if words and characters are `separate`. first, last: (N, kinds)."""
    parts = 2 if separate else 1
    row = parts * np.arange(len(first))[:, None] + separate * _IS_CHARACTER_KIND[-first.shape[1] :]
    batches = []
    for a, b in _batches((last - first).sum(axis=1)):
        keys = _gram_keys(grams, first[a:b], last[a:b], row[a:b])
        batches.append(_weighted_rows(parts * a, parts * b, keys))
    if len(batches) == 1:
        return batches[0]
    starts = np.cumsum(np.concatenate([[0], *(np.diff(rows.starts) for rows in batches)])).astype(np.int64)
    empty = NgramRows(starts, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))
    return NgramRows(
        starts,
        np.concatenate([rows.buckets for rows in [empty, *batches]]),
        np.concatenate([rows.values for rows in [empty, *batches]]),
    )


def _batches(sizes: Integers) -> list[tuple[int, int]]:
    """Return slices of the ranges that hold about BATCH_NGRAMS n-grams each. sizes: n-grams of each range."""
    total = sizes.cumsum()
    if not len(sizes) or total[-1] <= BATCH_NGRAMS:
        return [(0, len(sizes))]
    edges = np.searchsorted(total, np.arange(BATCH_NGRAMS, total[-1] + 1, BATCH_NGRAMS)) + 1
    edges = np.unique(np.concatenate([[0], edges, [len(sizes)]]))
    return [(int(a), int(b)) for a, b in zip(edges, edges[1:], strict=False)]


def _weighted_rows(first: int, last: int, keys: Integers) -> NgramRows:
    """Return the rows first to last, in which an n-gram that occurs n times weighs 1 + ln n, scaled to unit length."""
    keys.sort()
    at = _differs_from_previous(keys).nonzero()[0]
    distinct = keys[at]
    # Minus the count of each distinct key, computed in place.
    at[:-1] -= at[1:]
    at[-1:] -= len(keys)
    values = np.log(-at)
    values += 1
    row = distinct >> _JOINT_BITS
    row -= first
    square = np.bincount(row, weights=values * values, minlength=last - first)
    values /= np.maximum(np.sqrt(square), 1e-12)[row]
    starts = row.searchsorted(np.arange(last - first + 1))
    distinct &= (1 << _JOINT_BITS) - 1
    return NgramRows(starts, distinct, values.astype(np.float32))
