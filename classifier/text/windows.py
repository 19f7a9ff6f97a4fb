"""Overlapping windows that cover a text entirely, at two scales. Knows no view and no score.

Wide windows (up to the encoder's limit) see what spans several sentences. Narrow windows (a sentence, or a few short
ones) see a question inside other text, undiluted. Together they cover every character that isn't white space.
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

# Most units of a narrow window. Chosen: a long sentence, in which a question still shows in the embedding.
NARROW_UNITS = 40
# Fewest units of a narrow window; shorter sentences are joined to the next. Chosen: shorter ones say too little.
MIN_NARROW_UNITS = 6
# Changed units in a row that get a window of their own. Chosen: one or two words are no question.
MIN_CHANGED_UNITS = 3
# Units between quotation marks that get a window of their own (a value in JSON, a string, quoted speech). Chosen
# likewise.
MIN_QUOTED_UNITS = 3
# Units of an inner window. Chosen: a question of usual length.
INNER_UNITS = 14
# Sizes of inner windows and the steps between them, in units; the second pair is for windows that hardly exceed the
# first size. Chosen: neighbours overlap by 70 %.
INNER_SIZES_AND_STEPS = ((INNER_UNITS, 4), (10, 3))
# Characters of a unit at most; longer runs without blanks are read in parts. Chosen: tokenizers replace longer words
# by their token for unknown words.
UNIT_CHARACTERS = 64
# Word pieces of the encoder's limit that stay free. Chosen: a text cut out of another one may be tokenised a little
# differently.
SPARE_PIECES = 8
# A wide window overlaps the next by one part in this many. Chosen: a sentence across the edge is whole in one of them.
WIDE_OVERLAP = 4
# The same for narrow windows, which hold little more than one sentence.
NARROW_OVERLAP = 2

_UNIT = re.compile(rf"\S{{1,{UNIT_CHARACTERS}}}")
_QUOTE = re.compile(r"""["“”„«»`]([^"“”„«»`]{12,})(?=["“”„«»`])""")
_QUOTE_MARK = re.compile('["“”„«»`]')
_SENTENCE_ENDS = frozenset(".?!。？！…")
_CLOSING_MARKS = "\"'”’»)]*_"


# The numbers of a range's first unit and of the one after its last.
UnitRange = tuple[int, int]


@dataclass(frozen=True)
class WindowCover:
    """The windows of one text, as ranges of its units (runs without blanks; long ones in parts).

    units: their texts. covered_characters: how many of the units' `total_characters` lie in a window.
    """

    source: str
    units: Sequence[str]
    windows: tuple[UnitRange, ...]
    covered_characters: int
    total_characters: int

    @cached_property
    def unit_spans(self) -> Sequence[tuple[int, int]]:
        """The characters of each unit; computed on demand, since few callers need them."""
        return _unit_spans(self.source)

    def text(self, window: UnitRange) -> str:
        """Return the text of a window that is scored: its units with one blank between."""
        return " ".join(self.units[slice(*window)])

    def span(self, window: UnitRange) -> tuple[int, int]:
        """Return the characters of the text that a window covers."""
        return self.unit_spans[window[0]][0], self.unit_spans[window[1] - 1][1]

    def inner_windows(self, window: UnitRange) -> list[UnitRange]:
        """Return short windows inside a narrow one, where other words could outweigh a question; else none."""
        first, last = window
        for size, step in INNER_SIZES_AND_STEPS:
            if size + step <= last - first <= NARROW_UNITS:
                return [(a, a + size) for a in [*range(first, last - size, step), last - size]]
        return []


def cover_with_windows(
    text: str,
    encoder: Encoder,
    *,
    narrow: bool = True,
    changed: NDArray[np.bool_] | None = None,
) -> WindowCover:
    """Cover `text` with wide and, if `narrow`, narrow windows; white space has none. Work is linear.

    changed: (len(text),) bool. If given, only windows with a changed character are made, and a run of changed units
    has windows of its own.
    """
    units = _split_units(text)
    if not units:
        return WindowCover(text, units, (), 0, 0)
    sizes = [len(unit) for unit in units]
    limit = encoder.limit - SPARE_PIECES
    # A tokenizer makes at most one piece of each ASCII character and of the blank before a unit, so a short text needs
    # no tokenizer.
    is_short = text.isascii() and sum(sizes) + len(units) <= limit
    pieces_before = list(accumulate(sizes if is_short else encoder.piece_counts(units), initial=0))
    windows = _slices(0, len(units), pieces_before, len(units), limit, overlap=WIDE_OVERLAP)
    if narrow and len(units) > MIN_NARROW_UNITS:
        for first, last in (*_sentences(text, units), *_quotes(text, len(units))):
            windows += _slices(first, last, pieces_before, NARROW_UNITS, limit, overlap=NARROW_OVERLAP)
    if changed is not None:
        changed_before = np.concatenate([[0], np.cumsum(changed)])
        starts, ends = np.array(_unit_spans(text)).T
        unit_changed = changed_before[ends] > changed_before[starts]
        for first, last in _changed_ranges(unit_changed):
            windows += _slices(first, last, pieces_before, NARROW_UNITS, limit, overlap=NARROW_OVERLAP)
        changed_units_before = np.concatenate([[0], np.cumsum(unit_changed)]).tolist()
        windows = [(a, b) for a, b in windows if changed_units_before[b] > changed_units_before[a]]
    is_covered = bytearray(len(units))
    for a, b in windows:
        is_covered[a:b] = b"\1" * (b - a)
    return WindowCover(text, units, tuple(dict.fromkeys(windows)), sum(compress(sizes, is_covered)), sum(sizes))


def _split_units(text: str) -> list[str]:
    units = text.split()
    return units if len(max(units, key=len, default="")) <= UNIT_CHARACTERS else _UNIT.findall(text)


@lru_cache(maxsize=2)  # one text's spans are needed up to three times, one after another
def _unit_spans(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in _UNIT.finditer(text)]


def _quotes(text: str, count: int) -> list[UnitRange]:
    """Return the ranges of units between neighbouring quotation marks, of any kind, without one that is all the text.

    count: the number of the text's units.
    """
    quotes = [match.span(1) for match in _QUOTE.finditer(text)] if _QUOTE_MARK.search(text) else []
    if not quotes:
        return []
    starts = [start for start, _ in _unit_spans(text)]
    ranges = ((bisect_right(starts, start) - 1, bisect_left(starts, end)) for start, end in quotes)
    return [(first, last) for first, last in ranges if MIN_QUOTED_UNITS <= last - first < count]


def _changed_ranges(unit_changed: NDArray[np.bool_]) -> list[UnitRange]:
    """Return the ranges of units where several changed ones lie together; gaps of one unit don't part them."""
    at = np.flatnonzero(unit_changed)
    groups = np.split(at, np.flatnonzero(np.diff(at) > 2) + 1) if len(at) else []
    return [(int(group[0]), int(group[-1]) + 1) for group in groups if len(group) >= MIN_CHANGED_UNITS]


def _slices(
    first: int,
    last: int,
    pieces_before: Sequence[int],
    max_units: int,
    max_pieces: int,
    *,
    overlap: int,
) -> list[UnitRange]:
    """Return ranges that cover the units first to last, each within both limits; see WIDE_OVERLAP for `overlap`."""
    if last - first <= max_units and pieces_before[last] - pieces_before[first] <= max_pieces:
        return [(first, last)]
    ranges = []
    start = first
    while True:
        end = bisect_right(pieces_before, pieces_before[start] + max_pieces) - 1
        end = min(max(end, start + 1), start + max_units, last)
        ranges.append((start, end))
        if end == last:
            return ranges
        start = max(end - max((end - start) // overlap, 1), start + 1)


def _sentences(text: str, units: Sequence[str]) -> list[UnitRange]:
    """Return the ranges of units that end with a sentence or a line; very short ones are joined to the next."""
    ends = [i for i, unit in enumerate(units, 1) if unit.rstrip(_CLOSING_MARKS)[-1:] in _SENTENCE_ENDS]
    if "\n" in text:
        ends = sorted({*ends, *accumulate(len(_split_units(line)) for line in text.split("\n"))})
    edges = [0]
    for end in ends:
        if end - edges[-1] >= MIN_NARROW_UNITS and end < len(units):
            edges.append(end)
    if len(edges) > 1 and len(units) - edges[-1] < MIN_NARROW_UNITS:
        edges.pop()
    return list(pairwise([*edges, len(units)]))


def text_chunks(text: str, encoder: Encoder) -> list[str]:
    """The windows of a text, as requests are cut into them; the whole text first when the encoder can read it."""
    cover = cover_with_windows(text, encoder)
    return [cover.text(window) for window in cover.windows]
