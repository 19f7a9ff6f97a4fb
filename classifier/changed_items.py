"""How items that were added to, or removed from, an artifact after its fit are scored. Knows no threshold.

An added item has index rows of its own, matched by `classifier/index/similarity.py`; removing it again changes no other
score, to the bit. A fitted item can be removed too: its text is deleted, but its embedding and hashed words stay and
veto requests that ask for nothing else (`RemovedItemVeto`), since the models that were trained with it stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.artifact import Artifact
from lethe.classifier.index.match_calibration import MatchCalibration
from lethe.classifier.index.similarity import ForgetTextMatcher, ForgetTexts, TextWords
from lethe.classifier.text import ngrams

# Embeddings of added items are rounded to this grid, 1/32768: then all products add up exactly (384 products below 2^30
# in float64), so a cosine is the same whatever other cosines are computed in the same call.
GRID = 1 << 15
# How much higher the match with an added item must be than with a fitted one, as a match score. Each added item is one
# more that other prompts may resemble by chance, and scores must not depend on how many are added later. Chosen, not
# measured.
ADDED_MATCH_MARGIN = 0.05
# A veto needs at least this cosine to the removed item. Chosen: about what a close rewording has.
MIN_VETO_COSINE = 0.85
# ... and no remaining item of whose other words' idf this share or more is in the request. Chosen, not measured.
OTHER_ITEM_SHARE = 0.3
# Sums in another order may differ by rounding: the preselection uses this much of the share.
ROUNDING_TOLERANCE = 0.999
# Index rows that are compared at a time: bounds memory.
ROWS_AT_ONCE = 1 << 14


class AddedItems:
    """The added items of an artifact, ready to match windows."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.items: NDArray[np.int32] = arrays["added_items"]
        self._index = arrays["added_index"].astype(np.float64)
        self._matcher = ForgetTextMatcher(ForgetTexts.from_arrays(arrays, "added"))
        self._calibration = MatchCalibration(*arrays["levels"])

    def cosines(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, A) cosines of unit vectors (N, D) to the added index rows."""
        exact = np.rint(vectors.astype(np.float64) * GRID) @ self._index.T
        return np.asarray(exact / (GRID * (GRID - 1)), dtype=np.float32)

    def probability(self, words: TextWords, cosines: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N,) the highest probability over the added items; zeros when there are none. words: of each window."""
        if not len(self.items):
            return np.zeros(len(cosines))
        return self._calibration.probability(self._matcher.best_similarity(words, cosines) - ADDED_MATCH_MARGIN)


def added_index_rows(vectors: NDArray[np.float32]) -> NDArray[np.int16]:
    """(A, D) unit vectors on the grid, as the array `added_index` holds them."""
    return np.rint(vectors.astype(np.float64) * (GRID - 1)).astype(np.int16)


class RemovedItemVeto:
    """Which texts ask only for items of the fit that were removed. removed: (R,) index rows of removed items."""

    def __init__(self, artifact: Artifact) -> None:
        arrays = artifact.arrays
        self._owner: NDArray[np.int32] = arrays["index_items"]
        self.removed: NDArray[np.bool_] = np.isin(self._owner, arrays["removed_items"])
        self._forget_texts = ForgetTexts.from_arrays(arrays, "targets")

    def vetoed_texts(
        self, texts: Sequence[str], cosines: NDArray[np.float32], compared: NDArray[np.int64] | None
    ) -> NDArray[np.bool_]:
        """(N,) whether each text is vetoed. cosines: (N, K) to the index rows `compared` (None: all)."""
        vetoed = np.zeros(len(texts), dtype=bool)
        if not self.removed.any():
            return vetoed
        nearest = cosines.argmax(axis=1)
        nearest = nearest if compared is None else compared[nearest]
        for i in np.flatnonzero(self.removed[nearest] & (cosines.max(axis=1) >= MIN_VETO_COSINE)):
            vetoed[i] = not self._asks_for_remaining(texts[i], int(self._owner[nearest[i]]))
        return vetoed

    def _asks_for_remaining(self, text: str, removed_item: int) -> bool:
        """Whether the words that the removed item doesn't explain ask for a remaining item."""
        rows = np.flatnonzero(self._owner == removed_item)
        explained = np.concatenate([self._forget_texts.words_of(row) for row in rows])
        unexplained = {ngrams.word_bucket(word) for word in ngrams.split_words(text)} - set(explained.tolist())
        if not unexplained:
            return False
        words = np.array(sorted(unexplained))
        for row in self._candidate_rows(words, explained):
            buckets, shares = self._forget_texts.words_of(row), self._forget_texts.idf_share_of(row)
            other = ~np.isin(buckets, explained)
            total = float(shares[other].sum())
            present = float(shares[other & np.isin(buckets, words)].sum())
            if present > 0 and present >= OTHER_ITEM_SHARE * total:
                return True
        return False

    def _candidate_rows(self, words: NDArray[np.int64], explained: NDArray[np.int32]) -> Iterator[int]:
        """The remaining index rows of whose idf, the explained words apart, about OTHER_ITEM_SHARE is among `words`."""
        holding = self._remaining_rows_with(words)
        for start in range(0, len(holding), ROWS_AT_ONCE):
            rows = holding[start : start + ROWS_AT_ONCE]
            part = self._forget_texts.take(rows)
            row = np.repeat(np.arange(len(rows)), np.diff(part.starts))
            others = part.idf_share * ~np.isin(part.buckets, explained)
            total = np.bincount(row, weights=others, minlength=len(rows))
            present = np.bincount(row, weights=others * np.isin(part.buckets, words), minlength=len(rows))
            yield from rows[(present > 0) & (present >= ROUNDING_TOLERANCE * OTHER_ITEM_SHARE * total)].tolist()

    def _remaining_rows_with(self, words: NDArray[np.int64]) -> NDArray[np.int64]:
        """The remaining index rows that hold any of some hashed words."""
        is_wanted = np.zeros(ngrams.BUCKETS, dtype=bool)
        is_wanted[words] = True
        at = np.flatnonzero(is_wanted[self._forget_texts.buckets])
        rows = np.unique(np.searchsorted(self._forget_texts.starts, at, side="right") - 1)
        return rows[~self.removed[rows]]
