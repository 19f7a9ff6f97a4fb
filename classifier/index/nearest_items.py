"""Which forget items a text asks for: cosine and shared rare words together. Knows no threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.artifact import ForgetItem
from lethe.classifier.index.similarity import Targets
from lethe.classifier.text import ngrams
from lethe.classifier.text.ngrams import BUCKETS, words

RETURNED = 8
OVERLAP_WEIGHT = 0.5


class ItemWords:
    """An inverted index from words to the items that hold them."""

    def __init__(self, items: Sequence[ForgetItem]) -> None:
        found = [sorted(set(words(item.prompt or item.text))) if not item.removed else [] for item in items]
        self._items: dict[str, list[int]] = {}
        for i, distinct in enumerate(found):
            for word in distinct:
                self._items.setdefault(word, []).append(i)
        self._weight = {word: float(np.log1p(len(items) / len(rows))) for word, rows in self._items.items()}
        self._norm = np.sqrt([max(sum(self._weight[w] ** 2 for w in d), 1e-9) for d in found])

    def overlap(self, text: str) -> NDArray[np.float64]:
        """(items,) cosine of the texts' words, each weighted by its rarity among the items."""
        total = np.zeros(len(self._norm))
        square = 1e-9
        for word in set(words(text)):
            if word in self._items:
                weight = self._weight[word] ** 2
                total[self._items[word]] += weight
                square += weight
        return np.asarray(total / (self._norm * np.sqrt(square)))


class TargetWords:
    """As ItemWords, for some of very many index rows: by their hashed words, which an artifact holds as arrays."""

    def __init__(self, fitted: Targets, added: Targets) -> None:
        self._fitted, self._added = fitted, added
        held = np.bincount(fitted.buckets, minlength=BUCKETS) + np.bincount(added.buckets, minlength=BUCKETS)
        count = len(fitted.ordinary) + len(added.ordinary)
        self._square = np.where(held, np.log1p(count / np.maximum(held, 1)) ** 2, 0.0)

    def overlap(self, text: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(K + A,) cosine of the text's words and those of the K given rows of the fit, then of all that were added."""
        asked = np.array(sorted({ngrams.word_bucket(word) for word in words(text)}), dtype=np.int64)
        length = self._square[asked].sum()
        return np.concatenate([self._shared(part, asked, length) for part in (self._fitted.some(rows), self._added)])

    def _shared(self, some: Targets, asked: NDArray[np.int64], length: float) -> NDArray[np.float64]:
        count = len(some.ordinary)
        row = np.repeat(np.arange(count), np.diff(some.starts))
        square = self._square[some.buckets]
        shared = np.bincount(row, weights=square * np.isin(some.buckets, asked), minlength=count)
        norm = np.bincount(row, weights=square, minlength=count) * length
        return np.asarray(shared / np.sqrt(np.maximum(norm, 1e-9)))


def nearest(
    cosines: NDArray[np.float32], index_items: NDArray[np.integer], overlap: NDArray[np.float64]
) -> tuple[int, ...]:
    """Up to RETURNED item numbers, best first. cosines: (R,) of the index rows; overlap: (items,)."""
    best = np.full(len(overlap), -1.0)
    np.maximum.at(best, index_items, cosines)
    score = best + OVERLAP_WEIGHT * overlap
    return tuple(int(i) for i in np.argsort(-score, kind="stable")[:RETURNED])


def nearest_of(cosines: NDArray[np.float32], items: NDArray[np.int32], overlap: NDArray[np.float64]) -> tuple[int, ...]:
    """As `nearest`, of some index rows that belong to the given `items` (K,); overlap: (K,) of those rows."""
    found, place = np.unique(items, return_inverse=True)
    shared = np.zeros(len(found))
    np.maximum.at(shared, place, overlap)
    return tuple(int(found[i]) for i in nearest(cosines, place, shared))
