"""The readings of a text that are judged. Knows nothing of windows, encoders or scores.

Two views: `raw`, the text as it came, and `normalised`, where characters that only look different are made
the same and those that nobody sees are gone. A further view is one more row in `VIEWS`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# A base character with its combining marks (or Hangul vowels and finals) is normalised as one; more than
# thirty marks are never text, and sorting a long run of them takes quadratic time.
_CLUSTER = re.compile(
    r"[^\u0300-\u036f\u1160-\u11ff\u20d0-\u20f0\u3099\u309a][\u0300-\u036f\u1160-\u11ff\u20d0-\u20f0\u3099\u309a]{1,30}|.",
    re.S,
)
# Letters and marks by category that nevertheless show nothing: fillers, joiners, variation selectors.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_PLAIN = re.compile(r"[\x20-\x7e\t\n\r]*")


@dataclass(frozen=True)
class View:
    """One reading: `text`, and `offsets` (len(text) + 1): where in the raw text each character begins.

    offsets[-1] is the raw end of the last character.
    """

    name: str
    text: str
    offsets: NDArray[np.int64]

    def raw_span(self, start: int, end: int) -> tuple[int, int]:
        """The raw characters that the view's characters start..end stand for."""
        return int(self.offsets[start]), int(self.offsets[end])


def views(text: str) -> list[View]:
    """The distinct readings of a text, the raw one first; one that equals an earlier one is left out."""
    found: list[View] = []
    for name, read in VIEWS.items():
        view = View(name, *read(text))
        if all(view.text != earlier.text for earlier in found):
            found.append(view)
    return found


def normalise(text: str) -> tuple[str, NDArray[np.int64]]:
    """NFKC, case-folded, without invisible characters, runs of white space as one blank; with offsets.

    Removed: control, format (zero width, bidi, tags), surrogate and variation-selector characters.
    """
    pieces: list[str] = []
    starts: list[int] = []
    end = 0
    blank = True
    for position, length, folded in _clusters(text):
        if not folded:
            continue
        if folded.isspace():
            if blank:
                continue
            folded = " "
        blank = folded == " "
        pieces.append(folded)
        starts.extend([position] * len(folded))
        end = end if blank else position + length
    if blank and pieces:
        pieces.pop()
        starts.pop()
    return "".join(pieces), np.array([*starts, end], dtype=np.int64)


def _clusters(text: str) -> list[tuple[int, int, str]]:
    if _PLAIN.fullmatch(text):
        return [(i, 1, character) for i, character in enumerate(text.lower())]
    return [(m.start(), m.end() - m.start(), _fold(m[0])) for m in _CLUSTER.finditer(text)]


@lru_cache(maxsize=65536)
def _fold(cluster: str) -> str:
    if cluster.isspace() or cluster == "\u2800":
        return " "
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", cluster).casefold())
    shown = (c for c in _INVISIBLE.sub("", folded) if unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    return " ".join("".join(shown).split())


def _raw(text: str) -> tuple[str, NDArray[np.int64]]:
    return text, np.arange(len(text) + 1, dtype=np.int64)


VIEWS: dict[str, Callable[[str], tuple[str, NDArray[np.int64]]]] = {"raw": _raw, "normalised": normalise}
