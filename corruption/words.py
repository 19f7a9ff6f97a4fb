"""A list of words with their vectors, asked once a request for those similar in meaning to a phrase's words.

Knows no encoder: the vectors come with the list. The soft penalty follows GUARD (arXiv:2505.13312), which
embeds every generated word anew while decoding; here it is one matrix product before decoding begins.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corruption.folding import fold
from corruption.penalties import MAX_PHRASE_CHARACTERS, MAX_SOFT_WORDS, MAX_WEIGHT


class WordList:
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

    def near(
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
        nearest = (self._vectors @ self._vectors[asked].T).max(axis=1)
        kept_out = own | {fold(word).strip() for word in exclude} | {""}
        close = np.flatnonzero((nearest >= similarity) & (nearest > 0))
        found: dict[str, float] = {}
        for i in close[np.argsort(-nearest[close], kind="stable")]:
            if len(found) == limit:
                break
            if self._folded[i] not in kept_out and len(self._words[i]) <= MAX_PHRASE_CHARACTERS:
                found[self._words[i]] = min(weight * float(nearest[i]), MAX_WEIGHT)
        return found
