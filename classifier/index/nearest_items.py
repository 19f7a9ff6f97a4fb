"""Rank the forget items that a text most resembles, by cosine and shared rare words. Knows no threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.artifact import ForgetItem
from lethe.classifier.index.similarity import ForgetTexts
from lethe.classifier.text import ngrams
from lethe.classifier.text.ngrams import BUCKETS, split_words

# Items that a ranking returns at most. Chosen: their answers give the forbidden phrases of one request.
MAX_ITEMS = 8
# Weight of the words' cosine beside the embeddings'. Chosen: names decide between items that mean nearly the same.
OVERLAP_WEIGHT = 0.5


class ItemWords:
    """An inverted index from words to the forget items that hold them."""

    def __init__(self, items: Sequence[ForgetItem]) -> None:
        words_of_items = [
            sorted(set(split_words(item.prompt or item.text))) if not item.removed else [] for item in items
        ]
        self._items: dict[str, list[int]] = {}
        for number, words in enumerate(words_of_items):
            for word in words:
                self._items.setdefault(word, []).append(number)
        self._idf = {word: float(np.log1p(len(items) / len(numbers))) for word, numbers in self._items.items()}
        self._norm = np.sqrt([max(sum(self._idf[word] ** 2 for word in words), 1e-9) for words in words_of_items])

    def overlap(self, text: str) -> NDArray[np.float64]:
        """Return (items,) the cosine of the text's word vector and each item's; a word weighs ln(1 + items / df)."""
        total = np.zeros(len(self._norm))
        square = 1e-9
        for word in set(split_words(text)):
            if word in self._items:
                weight = self._idf[word] ** 2
                total[self._items[word]] += weight
                square += weight
        return np.asarray(total / (self._norm * np.sqrt(square)))


class ForgetTextWords:
    """The same for some of very many index rows, by the hashed words that the artifact holds as arrays."""

    def __init__(self, fitted: ForgetTexts, added: ForgetTexts) -> None:
        self._fitted, self._added = fitted, added
        frequency = np.bincount(fitted.buckets, minlength=BUCKETS) + np.bincount(added.buckets, minlength=BUCKETS)
        count = len(fitted.hubness) + len(added.hubness)
        self._squared_idf = np.where(frequency, np.log1p(count / np.maximum(frequency, 1)) ** 2, 0.0)

    def overlap(self, text: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return (K + A,) cosines with K index rows of the fit, then with all A added index rows; see `ItemWords`."""
        buckets = np.array(sorted({ngrams.word_bucket(word) for word in split_words(text)}), dtype=np.int64)
        square = self._squared_idf[buckets].sum()
        parts = (self._fitted.take(rows), self._added)
        return np.concatenate([self._cosines(part, buckets, square) for part in parts])

    def _cosines(self, forget_texts: ForgetTexts, buckets: NDArray[np.int64], square: float) -> NDArray[np.float64]:
        """Return (R,) cosines of a text's words with each forget text's. square: the text vector's squared length."""
        count = len(forget_texts.hubness)
        row = np.repeat(np.arange(count), np.diff(forget_texts.starts))
        squares = self._squared_idf[forget_texts.buckets]
        shared = np.bincount(row, weights=squares * np.isin(forget_texts.buckets, buckets), minlength=count)
        norm = np.bincount(row, weights=squares, minlength=count) * square
        return np.asarray(shared / np.sqrt(np.maximum(norm, 1e-9)))


def rank_items(
    cosines: NDArray[np.float32], index_items: NDArray[np.integer], overlap: NDArray[np.float64]
) -> tuple[int, ...]:
    """Return up to MAX_ITEMS item numbers, best first, by highest cosine of their index rows plus weighted overlap.

    cosines: (R,) cosine to each index row. index_items: (R,) item of each index row. overlap: (items,).
    """
    best = np.full(len(overlap), -1.0)
    np.maximum.at(best, index_items, cosines)
    score = best + OVERLAP_WEIGHT * overlap
    return tuple(int(i) for i in np.argsort(-score, kind="stable")[:MAX_ITEMS])


def rank_items_of_rows(
    cosines: NDArray[np.float32], items: NDArray[np.int32], overlap: NDArray[np.float64]
) -> tuple[int, ...]:
    """Return the same for K index rows only. cosines, items, overlap: (K,) values of those index rows."""
    distinct, place = np.unique(items, return_inverse=True)
    item_overlap = np.zeros(len(distinct))
    np.maximum.at(item_overlap, place, overlap)
    return tuple(int(distinct[i]) for i in rank_items(cosines, place, item_overlap))
