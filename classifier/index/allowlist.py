"""Requests that must stay unflagged: word for word what the retain file holds. Knows no model and no score.

Capitals, white space and punctuation make no difference. Held by digest. They speak for themselves alone: whatever
stands around such a request is judged as ever, and so is the whole of them together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.artifact import DIGEST_BYTES
from lethe.classifier.text.segments import Reading

_ASCII_WORD = re.compile(r"[a-z0-9+#]+")

Flags = NDArray[np.bool_]


def wording(text: str) -> str:
    """What of a text makes it the same request or another one: letters with their marks, digits, "+" and "#"."""
    text = text.casefold()
    if text.isascii():
        return " ".join(_ASCII_WORD.findall(text))
    kept = (c if c.isalnum() or c in "+#" or category(c)[0] == "M" else " " for c in text)
    return " ".join("".join(kept).split())


def digests(texts: Sequence[str], besides: Sequence[str] = ()) -> NDArray[np.uint8]:
    """(N, DIGEST_BYTES) of the wordings of texts, each once, sorted; without empty ones and those of `besides`."""
    others = {wording(text) for text in besides}
    found = {_digest(words) for text in texts if (words := wording(text)) and words not in others}
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
            if not inside[row] and _digest(wording(reading.text(int(row)))) in self._kept:
                inside |= (reading.first >= first) & (reading.last <= last)
        return inside


def _digest(words: str) -> bytes:
    # As in `Recent`, collisions can't be made on purpose.
    return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
