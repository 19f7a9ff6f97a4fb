"""Everything of a text that is judged: the windows of all its views, as runs of one list of units. Knows no weights."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter, ne
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.text.ngrams import Document
from lethe.classifier.text.views import View, views
from lethe.classifier.text.windows import Cover, Run, cover


class Place(NamedTuple):
    """Where a row stands: the view and the run of its units; closer: it lies inside another window."""

    page: int
    window: Run
    row: int
    closer: bool = False


@dataclass
class Reading:
    """The windows of one text; equal ones share a row.

    first, last: (N,) each row's run among the units of `document`. own: which rows are windows of their own;
    the others only lie inside those, for a closer look. seen: so many of the `present` characters lie in a window.
    """

    places: list[Place]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    own: NDArray[np.bool_]
    document: Document
    seen: int
    present: int
    _units: list[str] = field(repr=False)
    _pages: list[tuple[View, Cover]] = field(repr=False)

    def text(self, row: int) -> str:
        """What of a row is scored."""
        return " ".join(self._units[self.first[row] : self.last[row]])

    def view(self, place: Place) -> str:
        return self._pages[place.page][0].name

    def span(self, place: Place) -> tuple[int, int]:
        """The characters of the text that a place covers."""
        view, covered = self._pages[place.page]
        return view.raw_span(*covered.span(place.window))


def read(
    text: str,
    encoder: Encoder,
    vocabulary: frozenset[str] = frozenset(),
    familiar: Callable[[str], bool] = lambda word: False,
) -> Reading:
    """Every window of every view of a text; and shorter windows inside those, for a closer look."""
    pages: list[tuple[View, Cover]] = []
    units = _Units()
    rows: dict[Run, int] = {}
    inner: dict[Run, int] = {}
    found: list[tuple[int, Run, Run, bool]] = []
    seen = present = 0
    for view in views(text, vocabulary, familiar):
        # An encoder that reads no capitals sees the same text twice.
        if view.name == "normalised" and len(view.text) == len(text) and view.text == encoder.folded(text):
            continue
        covered = cover(view.text, encoder, changed=None if view.whole else view.changed)
        page = len(pages)
        pages.append((view, covered))
        if view.name == "raw":
            seen, present = covered.seen, covered.present
        # No unit holds a line break.
        own = encoder.folded("\n".join(covered.units)).split("\n")
        shifts = units.add(own, covered.windows)
        for window, shift in zip(covered.windows, shifts, strict=True):
            run = shift + window[0], shift + window[1]
            rows.setdefault(run, len(rows))
            found.append((page, window, run, False))
            for part in covered.inner(window):
                run = shift + part[0], shift + part[1]
                inner.setdefault(run, len(inner))
                found.append((page, part, run, True))
    runs = np.array([*rows, *inner], dtype=np.int64).reshape(-1, 2)
    places = [
        Place(page, window, len(rows) + inner[run] if closer else rows[run], closer)
        for page, window, run, closer in found
    ]
    own_rows = np.arange(len(runs)) < len(rows)
    return Reading(places, runs[:, 0], runs[:, 1], own_rows, Document(units.all), seen, present, units.all, pages)


class _Units:
    """The units of all views, one after another; what an earlier view has at the same place stands there once."""

    def __init__(self) -> None:
        self.all: list[str] = []
        # Each view's units, and which ranges of them were added: (first, last, what their numbers lack to those in
        # `all`), rising.
        self._views: list[tuple[list[str], list[tuple[int, int, int]]]] = []

    def add(self, own: list[str], windows: Sequence[Run]) -> list[int]:
        """For each window of a view, what its numbers in `own` lack to those in `all`."""
        shifts: dict[Run, int] = {}
        for known, ranges in self._views:
            if len(known) == len(own):
                differ = list(accumulate(map(ne, own, known), initial=0))
                for first, last in windows:
                    if differ[first] == differ[last] and (first, last) not in shifts:
                        begin, end, shift = ranges[max(bisect_right(ranges, first, key=itemgetter(0)) - 1, 0)]
                        if begin <= first and last <= end:
                            shifts[first, last] = shift
        added: list[tuple[int, int, int]] = []
        for first, last in sorted(window for window in windows if window not in shifts):
            begin, end, shift = added.pop() if added and first < added[-1][1] else (first, first, len(self.all) - first)
            self.all += own[end:last]
            added.append((begin, max(end, last), shift))
            shifts[first, last] = shift
        if added:
            self._views.append((own, added))
        return [shifts[window] for window in windows]
