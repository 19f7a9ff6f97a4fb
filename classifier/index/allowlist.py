"""The allowlist: requests of the retain file, which must stay unflagged when a prompt repeats them word for word.

Case, white space and punctuation make no difference. Only digests are stored. An allowlisted request exempts itself
alone: text around it is judged as usual, and so is the whole of both. Knows no model and no score.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.artifact import DIGEST_BYTES
from lethe.classifier.text.segments import TextSegments

_ASCII_WORD = re.compile(r"[a-z0-9+#]+")

Flags = NDArray[np.bool_]


def canonical_wording(text: str) -> str:
    """Return what makes two texts the same request: letters with their marks, digits, "+" and "#", case-folded."""
    text = text.casefold()
    if text.isascii():
        return " ".join(_ASCII_WORD.findall(text))
    characters = (c if c.isalnum() or c in "+#" or category(c)[0] == "M" else " " for c in text)
    return " ".join("".join(characters).split())


def wording_digests(texts: Sequence[str], exclude: Sequence[str] = ()) -> NDArray[np.uint8]:
    """Return (N, DIGEST_BYTES) the distinct digests of the texts' wordings, sorted.

    Empty wordings and those of the texts in `exclude` are left out.
    """
    excluded = {canonical_wording(text) for text in exclude}
    digests = {_digest(wording) for text in texts if (wording := canonical_wording(text)) and wording not in excluded}
    return np.frombuffer(b"".join(sorted(digests)), dtype=np.uint8).reshape(-1, DIGEST_BYTES)


class Allowlist:
    """A set of allowlisted requests that can be found among the windows of a text."""

    def __init__(self, digests: NDArray[np.uint8]) -> None:
        """digests: as `wording_digests` returns them."""
        self._digests = {row.tobytes() for row in digests}

    def matching_windows(self, segments: TextSegments) -> Flags:
        """Return (N,) which windows are an allowlisted request, or lie inside a window that is one."""
        matching = np.zeros(len(segments.outer), dtype=bool)
        if not self._digests:
            return matching
        for window in np.flatnonzero(segments.outer):
            first, last = int(segments.first[window]), int(segments.last[window])
            if not matching[window] and _digest(canonical_wording(segments.text(int(window)))) in self._digests:
                matching |= (segments.first >= first) & (segments.last <= last)
        return matching


def _digest(wording: str) -> bytes:
    # A cryptographic hash, so that nobody can write a prompt that collides with an allowlisted request.
    return hashlib.blake2b(wording.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
