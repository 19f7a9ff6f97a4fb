"""Overlapping windows that cover a text entirely, at two scales. Knows no view and no score.

Wide windows (up to what the encoder reads) see what is said across sentences; narrow ones (a sentence, or a
few short ones) see a question that is buried in other text, undiluted. Together they cover every character
that isn't white space, so nothing is scanned in part.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, compress, pairwise

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.encoder.encoder import Encoder

NARROW_UNITS = 40
SHORTEST_UNITS = 6
SHORTEST_STRETCH = 3
# What stands in quotes (a value in JSON, a string in a program, what somebody says) is a text of its own.
SHORTEST_QUOTE = 3
# A closer look is taken at so many units at a time, every few units: at fewer in windows that are hardly longer.
INNER_UNITS = 14
INNER = ((INNER_UNITS, 4), (10, 3))
# A run without blanks is read in parts of this length: tokenizers replace longer words by "unknown".
UNIT_CHARACTERS = 64
# Pieces kept free, since a text cut out of another may be split a little differently.
SLACK = 8

_UNIT = re.compile(rf"\S{{1,{UNIT_CHARACTERS}}}")
_QUOTE = re.compile(r"""["“”„«»`]([^"“”„«»`]{12,})(?=["“”„«»`])""")
_QUOTE_MARK = re.compile('["“”„«»`]')
_SENTENCE_ENDS = frozenset(".?!。？！…")
_CLOSING = "\"'”’»)]*_"


# Runs of units: the number of the first, and of the one after the last.
Run = tuple[int, int]


@dataclass(frozen=True)
class Cover:
    """The windows of one text, as runs of its units (runs without blanks, long ones in parts).

    units: their texts. seen: so many of the units' `present` characters lie in a window.
    """

    whole: str
    units: Sequence[str]
    windows: tuple[Run, ...]
    seen: int
    present: int

    @cached_property
    def spans(self) -> Sequence[tuple[int, int]]:
        """The characters of each unit. Few ask."""
        return _spans(self.whole)

    def text(self, window: Run) -> str:
        """What of a window is scored: its units with a blank between."""
        return " ".join(self.units[slice(*window)])

    def span(self, window: Run) -> tuple[int, int]:
        """The characters of the text that a window covers."""
        return self.spans[window[0]][0], self.spans[window[1] - 1][1]

    def inner(self, window: Run) -> list[Run]:
        """Short windows inside a narrow one, where words around a question could outweigh it; none in other windows."""
        first, last = window
        for size, step in INNER:
            if size + step <= last - first <= NARROW_UNITS:
                return [(a, a + size) for a in [*range(first, last - size, step), last - size]]
        return []


def cover(
    text: str,
    encoder: Encoder,
    *,
    narrow: bool = True,
    changed: NDArray[np.bool_] | None = None,
) -> Cover:
    """Windows over `text`, wide and (if asked) narrow; none for white space. Work is linear in its length.

    changed: (len(text),) which characters matter. Only windows that hold some are made, and a run of words
    that matter has windows of its own.
    """
    units = _units(text)
    if not units:
        return Cover(text, units, (), 0, 0)
    sizes = [len(unit) for unit in units]
    limit = encoder.limit - SLACK
    # A tokenizer is asked only where the limit could matter: at most it makes a piece of each ASCII character, and of
    # the blank before a unit.
    short = text.isascii() and sum(sizes) + len(units) <= limit
    total = list(accumulate(sizes if short else encoder.piece_counts(units), initial=0))
    ranges = _slices(0, len(units), total, len(units), limit, keep=4)
    if narrow and len(units) > SHORTEST_UNITS:
        for first, last in (*_sentences(text, units), *_quotes(text, len(units))):
            ranges += _slices(first, last, total, NARROW_UNITS, limit, keep=2)
    if changed is not None:
        matters = np.concatenate([[0], np.cumsum(changed)])
        starts, ends = np.array(_spans(text)).T
        within = matters[ends] > matters[starts]
        for first, last in _stretches(within):
            ranges += _slices(first, last, total, NARROW_UNITS, limit, keep=2)
        so_far = np.concatenate([[0], np.cumsum(within)]).tolist()
        ranges = [(a, b) for a, b in ranges if so_far[b] > so_far[a]]
    inside = bytearray(len(units))
    for a, b in ranges:
        inside[a:b] = b"\1" * (b - a)
    return Cover(text, units, tuple(dict.fromkeys(ranges)), sum(compress(sizes, inside)), sum(sizes))


def _units(text: str) -> list[str]:
    units = text.split()
    return units if len(max(units, key=len, default="")) <= UNIT_CHARACTERS else _UNIT.findall(text)


@lru_cache(maxsize=2)  # one text's are asked for up to three times, one after another
def _spans(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in _UNIT.finditer(text)]


def _quotes(text: str, count: int) -> list[tuple[int, int]]:
    """Ranges of units between marks of quotation, whichever marks belong together; what is all the text isn't one."""
    quotes = [match.span(1) for match in _QUOTE.finditer(text)] if _QUOTE_MARK.search(text) else []
    if not quotes:
        return []
    starts = [start for start, _ in _spans(text)]
    found = ((bisect_right(starts, start) - 1, bisect_left(starts, end)) for start, end in quotes)
    return [(first, last) for first, last in found if SHORTEST_QUOTE <= last - first < count]


def _stretches(within: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Ranges of units that matter, where a few lie together; short gaps don't part them."""
    at = np.flatnonzero(within)
    groups = np.split(at, np.flatnonzero(np.diff(at) > 2) + 1) if len(at) else []
    return [(int(group[0]), int(group[-1]) + 1) for group in groups if len(group) >= SHORTEST_STRETCH]


def _slices(
    first: int,
    last: int,
    total: Sequence[int],
    most_units: int,
    limit: int,
    *,
    keep: int,
) -> list[tuple[int, int]]:
    """Ranges of units that cover first..last; each within both bounds, overlapping by one part in `keep`."""
    if last - first <= most_units and total[last] - total[first] <= limit:
        return [(first, last)]
    found = []
    start = first
    while True:
        end = bisect_right(total, total[start] + limit) - 1
        end = min(max(end, start + 1), start + most_units, last)
        found.append((start, end))
        if end == last:
            return found
        start = max(end - max((end - start) // keep, 1), start + 1)


def _sentences(text: str, units: Sequence[str]) -> list[tuple[int, int]]:
    """Ranges of units that end with a sentence or a line; one of very few words is joined to the next."""
    ends = [i for i, unit in enumerate(units, 1) if unit.rstrip(_CLOSING)[-1:] in _SENTENCE_ENDS]
    if "\n" in text:
        ends = sorted({*ends, *accumulate(len(_units(line)) for line in text.split("\n"))})
    cuts = [0]
    for end in ends:
        if end - cuts[-1] >= SHORTEST_UNITS and end < len(units):
            cuts.append(end)
    if len(cuts) > 1 and len(units) - cuts[-1] < SHORTEST_UNITS:
        cuts.pop()
    return list(pairwise([*cuts, len(units)]))
