"""Which forget items a text asks for: cosine and shared rare words together. Knows no threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from classifier.artifact import ForgetItem
from classifier.ngrams import words

RETURNED = 8
OVERLAP_WEIGHT = 0.5


class ItemWords:
    """An inverted index from words to the items that hold them."""

    def __init__(self, items: Sequence[ForgetItem]) -> None:
        found = [sorted(set(words(item.prompt or item.text))) for item in items]
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


def nearest(
    cosines: NDArray[np.float32], index_items: NDArray[np.int32], overlap: NDArray[np.float64]
) -> tuple[int, ...]:
    """Up to RETURNED item numbers, best first. cosines: (R,) of the index rows; overlap: (items,)."""
    best = np.full(len(overlap), -1.0)
    np.maximum.at(best, index_items, cosines)
    score = best + OVERLAP_WEIGHT * overlap
    return tuple(int(i) for i in np.argsort(-score, kind="stable")[:RETURNED])
