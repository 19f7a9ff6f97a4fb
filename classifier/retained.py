"""Requests that must stay unflagged: word for word what the retain file holds. Knows no model and no score.

Held by digest. They speak for themselves alone: whatever stands around such a request is judged as ever, and so is
the whole of them together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from classifier import ngrams
from classifier.artifact import DIGEST_BYTES
from classifier.reading import Reading

Flags = NDArray[np.bool_]


def digests(texts: Sequence[str]) -> NDArray[np.uint8]:
    """(N, DIGEST_BYTES) of the words of texts, each once, sorted; texts without a word are left out."""
    found = {_digest(words) for text in texts if (words := ngrams.words(text))}
    return np.frombuffer(b"".join(sorted(found)), dtype=np.uint8).reshape(-1, DIGEST_BYTES)


class Retained:
    """Retained requests, ready to be found among the rows of a reading."""

    def __init__(self, kept: NDArray[np.uint8]) -> None:
        """kept: as `digests` makes them."""
        self._kept = {row.tobytes() for row in kept}

    def within(self, reading: Reading) -> Flags:
        """(N,) which rows are a retained request, or lie inside a window that is one."""
        inside = np.zeros(len(reading.own), dtype=bool)
        if not self._kept:
            return inside
        for row in np.flatnonzero(reading.own):
            first, last = int(reading.first[row]), int(reading.last[row])
            if not inside[row] and _digest(reading.document.words(first, last)) in self._kept:
                inside |= (reading.first >= first) & (reading.last <= last)
        return inside


def _digest(words: Sequence[str]) -> bytes:
    # As in `Recent`, collisions can't be made on purpose.
    joined = " ".join(words).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=DIGEST_BYTES).digest()
