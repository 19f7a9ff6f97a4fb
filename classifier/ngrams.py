"""Hashed word 1-2-grams and character 3-5-grams as sparse rows. Pure numpy; knows no weights.

The hashes are fixed functions of the text, so rows are the same in every process and on every machine.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BUCKETS = 1 << 18
CHARACTER_SIZES = (3, 4, 5)

WORD = re.compile(r"[^\W_]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIXER = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class Rows:
    """Sparse rows: row i holds `values[k]` at bucket `buckets[k]` for starts[i] <= k < starts[i + 1]."""

    starts: NDArray[np.int64]
    buckets: NDArray[np.int64]
    values: NDArray[np.float32]

    def dot(self, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N,) the inner product of each row with `weights` (BUCKETS,)."""
        row = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        products = self.values * weights[self.buckets]
        return np.bincount(row, weights=products, minlength=len(self.starts) - 1).astype(np.float64)


def word_rows(texts: Sequence[str]) -> Rows:
    """Word 1-2-grams of each case-folded text, log-counted, rows of unit length."""
    return _rows([_word_buckets(text) for text in texts])


def character_rows(texts: Sequence[str]) -> Rows:
    """Character 3-5-grams (words joined by one space) of each case-folded text, rows of unit length."""
    return _rows([_character_buckets(text) for text in texts])


def words(text: str) -> list[str]:
    """The case-folded words of a text: runs of letters and digits."""
    return [match.casefold() for match in WORD.findall(text)]


def word_bucket(word: str) -> int:
    """The bucket of a word, or of two words joined by a space."""
    return zlib.crc32(word.encode("utf-8", "surrogatepass")) & (BUCKETS - 1)


def _word_buckets(text: str) -> NDArray[np.int64]:
    found = words(text)
    pairs = [f"{a} {b}" for a, b in zip(found, found[1:], strict=False)]
    return np.array([word_bucket(gram) for gram in found + pairs], dtype=np.int64)


def _character_buckets(text: str) -> NDArray[np.int64]:
    joined = f" {' '.join(words(text))} "
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    grams = []
    for size in CHARACTER_SIZES:
        if len(codes) < size:
            break
        hashed = np.full(len(codes) - size + 1, size, dtype=np.uint64)
        for offset in range(size):
            hashed = (hashed ^ codes[offset : len(codes) - size + 1 + offset]) * _MULTIPLIER
            hashed ^= hashed >> np.uint64(29)
        grams.append((hashed * _MIXER) >> np.uint64(64 - 18))
    return np.concatenate(grams).astype(np.int64) if grams else np.zeros(0, dtype=np.int64)


def _rows(per_text: list[NDArray[np.int64]]) -> Rows:
    buckets, values = [], []
    for found in per_text:
        distinct, counts = np.unique(found, return_counts=True)
        weights = 1 + np.log(counts)
        buckets.append(distinct)
        values.append((weights / max(np.sqrt((weights**2).sum()), 1e-12)).astype(np.float32))
    starts = np.concatenate([[0], np.cumsum([len(b) for b in buckets])]).astype(np.int64)
    if not buckets:
        return Rows(starts, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))
    return Rows(starts, np.concatenate(buckets), np.concatenate(values))
