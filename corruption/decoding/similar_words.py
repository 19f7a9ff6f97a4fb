"""A list of words with their vectors, asked once a request for those similar in meaning to a phrase's words.

Knows no encoder: the vectors come with the list. The soft penalty follows GUARD (arXiv:2505.13312), which
embeds every generated word anew while decoding; here it is one matrix product before decoding begins, and none
for words that were asked about before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.corruption.bounded import ByteCache
from lethe.corruption.decoding.spec import MAX_PHRASE_CHARACTERS, MAX_SOFT_WORDS, MAX_WEIGHT
from lethe.corruption.phrases.normalize import fold

# Of a word that was asked about it is remembered which words are alike, a few hundred bytes in most cases.
MAX_SIMILARITY_CACHE_BYTES = 16 * 2**20


class WordVectors:
    """W words with unit vectors, made ready once: folded, and in single precision.

    words: (W,) folded or not; vectors: (W, D), any float dtype. Raises ValueError when W differs.
    """

    def __init__(self, words: Sequence[str], vectors: NDArray[np.floating[Any]]) -> None:
        if len(words) != len(vectors):
            raise ValueError(f"{len(words)} words but {len(vectors)} vectors")
        self._words = tuple(words)
        self._folded = tuple(fold(word).strip() for word in words)
        self._place = {word: i for i, word in enumerate(self._folded)}
        # numpy multiplies half precision without BLAS, a hundred times slower.
        self._vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._known: ByteCache[tuple[NDArray[np.intp], NDArray[np.float32]]] = ByteCache(
            MAX_SIMILARITY_CACHE_BYTES, lambda found: found[0].nbytes + found[1].nbytes
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
        """Words similar in meaning to the phrases' words, with the logits to subtract: weight × cosine.

        phrase_words that are not on the list are skipped. Neither they nor the words of `exclude` are in
        the result, which holds the `limit` most similar with cosine >= similarity, the most similar first.
        """
        own = {fold(word).strip() for word in phrase_words}
        asked = [self._place[word] for word in own if word in self._place]
        if not asked:
            return {}
        nearest = np.zeros(len(self._words), dtype=np.float32)
        for alike, cosines in self._alike(asked, similarity):
            nearest[alike] = np.maximum(nearest[alike], cosines)
        kept_out = own | {fold(word).strip() for word in exclude} | {""}
        close = np.flatnonzero(nearest > 0)
        found: dict[str, float] = {}
        for i in close[np.argsort(-nearest[close], kind="stable")]:
            if len(found) == limit:
                break
            if self._folded[i] not in kept_out and len(self._words[i]) <= MAX_PHRASE_CHARACTERS:
                found[self._words[i]] = min(weight * float(nearest[i]), MAX_WEIGHT)
        return found

    def _alike(self, asked: Sequence[int], similarity: float) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        """For each word the words with a positive cosine of at least `similarity`, and the cosines."""
        missing = []
        for word in asked:
            known = self._known.get((word, similarity))
            if known is None:
                missing.append(word)
            else:
                yield known
        if not missing:
            return
        for word, cosines in zip(missing, self._vectors[missing] @ self._vectors.T, strict=True):
            alike = np.flatnonzero((cosines >= similarity) & (cosines > 0))
            self._known.put((word, similarity), (alike, cosines[alike]))
            yield alike, cosines[alike]
