"""Words similar in meaning to the words of forbidden phrases, for the soft penalty.

It knows no encoder: the vectors come with the word list. The soft penalty follows GUARD (arXiv:2505.13312), which
embeds every generated word while decoding. Here it is one matrix product before decoding starts, and none for words
whose neighbours are cached.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.corruption.byte_cache import ByteCache
from lethe.corruption.decoding.spec import MAX_PHRASE_CHARACTERS, MAX_SOFT_WORDS, MAX_WEIGHT
from lethe.corruption.phrases.normalize import fold

# Bytes of cached neighbours, a few hundred for most words: a choice, room for tens of thousands of words.
MAX_SIMILARITY_CACHE_BYTES = 16 * 2**20


class WordVectors:
    """W words with unit vectors, prepared once: folded, and in single precision."""

    def __init__(self, words: Sequence[str], vectors: NDArray[np.floating[Any]]) -> None:
        """words: (W,), folded or not. vectors: (W, D), any float dtype. Raises ValueError when W differs."""
        if len(words) != len(vectors):
            raise ValueError(f"{len(words)} words but {len(vectors)} vectors")
        self._words = tuple(words)
        self._folded = tuple(fold(word).strip() for word in words)
        self._row_of = {word: i for i, word in enumerate(self._folded)}
        # numpy multiplies half precision without BLAS, a hundred times slower.
        self._vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._cache: ByteCache[tuple[NDArray[np.intp], NDArray[np.float32]]] = ByteCache(
            MAX_SIMILARITY_CACHE_BYTES, lambda entry: entry[0].nbytes + entry[1].nbytes
        )

    def most_similar(
        self,
        phrase_words: Collection[str],
        *,
        similarity: float,
        weight: float,
        exclude: Collection[str] = (),
        limit: int = MAX_SOFT_WORDS,
    ) -> dict[str, float]:
        """Return words similar to the phrases' words, with the logits to subtract: weight × cosine.

        The result holds the `limit` most similar words with cosine >= similarity, the most similar first, without
        phrase_words themselves and without `exclude`. phrase_words that are not on the list are skipped.
        """
        folded_words = {fold(word).strip() for word in phrase_words}
        rows = [self._row_of[word] for word in folded_words if word in self._row_of]
        if not rows:
            return {}
        best = np.zeros(len(self._words), dtype=np.float32)
        for neighbours, cosines in self._neighbours(rows, similarity):
            best[neighbours] = np.maximum(best[neighbours], cosines)
        excluded = folded_words | {fold(word).strip() for word in exclude} | {""}
        candidates = np.flatnonzero(best > 0)
        weights: dict[str, float] = {}
        for i in candidates[np.argsort(-best[candidates], kind="stable")]:
            if len(weights) == limit:
                break
            if self._folded[i] not in excluded and len(self._words[i]) <= MAX_PHRASE_CHARACTERS:
                weights[self._words[i]] = min(weight * float(best[i]), MAX_WEIGHT)
        return weights

    def _neighbours(
        self, rows: Sequence[int], similarity: float
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        """For each row: the rows with a positive cosine of at least `similarity`, and the cosines."""
        missing = []
        for row in rows:
            cached = self._cache.get((row, similarity))
            if cached is None:
                missing.append(row)
            else:
                yield cached
        if not missing:
            return
        for row, cosines in zip(missing, self._vectors[missing] @ self._vectors.T, strict=True):
            similar = np.flatnonzero((cosines >= similarity) & (cosines > 0))
            self._cache.put((row, similarity), (similar, cosines[similar]))
            yield similar, cosines[similar]
