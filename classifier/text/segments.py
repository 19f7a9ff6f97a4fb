"""All windows of all views of a text. Equal windows have one number and are scored once. Knows no weights."""

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
from lethe.classifier.text.disguises.masked_words import Pairs
from lethe.classifier.text.ngrams import NgramDocument
from lethe.classifier.text.views import View, text_views
from lethe.classifier.text.windows import UnitRange, WindowCover, cover_with_windows


class WindowPlace(NamedTuple):
    """A window and where it is: the number of its view, its units there, the number that it shares with equal windows.

    inner: whether it is an inner window, inside another one (`WindowCover.inner_windows`).
    """

    view_index: int
    units: UnitRange
    window: int
    inner: bool = False


@dataclass
class TextSegments:
    """The windows of all views of one text; windows with equal units share a number.

    first, last: (N,) each window's range of units in `document`.
    outer: (N,) which windows aren't inner ones.
    covered_characters: non-space characters of the raw text that lie in a window.
    total_characters: all non-space characters of the raw text.
    """

    places: list[WindowPlace]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    outer: NDArray[np.bool_]
    document: NgramDocument
    covered_characters: int
    total_characters: int
    _units: list[str] = field(repr=False)
    _views: list[tuple[View, WindowCover]] = field(repr=False)

    @property
    def units(self) -> Sequence[str]:
        """The units of all views: what `first` and `last` count."""
        return self._units

    def text(self, window: int) -> str:
        """Return the text of the window with this number: its units with one blank between."""
        return " ".join(self._units[self.first[window] : self.last[window]])

    def view_name(self, place: WindowPlace) -> str:
        """Return the name of the view that a window belongs to."""
        return self._views[place.view_index][0].name

    def raw_span(self, place: WindowPlace) -> tuple[int, int]:
        """Return the characters of the raw text that a window covers."""
        view, cover = self._views[place.view_index]
        return view.raw_span(*cover.span(place.units))


def segment_text(
    text: str,
    encoder: Encoder,
    vocabulary: frozenset[str] = frozenset(),
    is_known_word: Callable[[str], bool] = lambda word: False,
    name_pairs: Pairs = frozenset(),
) -> TextSegments:
    """Return every window of every view of a text, and the inner windows of those.

    vocabulary, is_known_word, name_pairs: see `text_views`.
    """
    views: list[tuple[View, WindowCover]] = []
    units = _SharedUnits()
    outer_numbers: dict[UnitRange, int] = {}
    inner_numbers: dict[UnitRange, int] = {}
    # View number, units in the view, units in `units`, whether it is an inner window.
    windows: list[tuple[int, UnitRange, UnitRange, bool]] = []
    covered_characters = total_characters = 0
    for view in text_views(text, vocabulary, is_known_word, name_pairs):
        # An encoder that ignores case sees the same text twice.
        if view.name == "normalised" and len(view.text) == len(text) and view.text == encoder.fold_case(text):
            continue
        cover = cover_with_windows(view.text, encoder, changed=None if view.is_new_throughout else view.changed)
        view_index = len(views)
        views.append((view, cover))
        if view.name == "raw":
            covered_characters, total_characters = cover.covered_characters, cover.total_characters
        # No unit holds a line break.
        folded_units = encoder.fold_case("\n".join(cover.units)).split("\n")
        shifts = units.add(folded_units, cover.windows)
        for window, shift in zip(cover.windows, shifts, strict=True):
            shared = shift + window[0], shift + window[1]
            outer_numbers.setdefault(shared, len(outer_numbers))
            windows.append((view_index, window, shared, False))
            for inner in cover.inner_windows(window):
                shared = shift + inner[0], shift + inner[1]
                inner_numbers.setdefault(shared, len(inner_numbers))
                windows.append((view_index, inner, shared, True))
    ranges = np.array([*outer_numbers, *inner_numbers], dtype=np.int64).reshape(-1, 2)
    places = [
        WindowPlace(
            view_index,
            window,
            len(outer_numbers) + inner_numbers[shared] if is_inner else outer_numbers[shared],
            is_inner,
        )
        for view_index, window, shared, is_inner in windows
    ]
    return TextSegments(
        places,
        ranges[:, 0],
        ranges[:, 1],
        np.arange(len(ranges)) < len(outer_numbers),
        NgramDocument(units.all),
        covered_characters,
        total_characters,
        units.all,
        views,
    )


class _SharedUnits:
    """The units of all views in one list; units that an earlier view has at the same place are added once."""

    def __init__(self) -> None:
        self.all: list[str] = []
        # Each view's units, and the ranges of them that were added, in order: first, last, and the shift from their
        # numbers in the view to those in `all`.
        self._views: list[tuple[list[str], list[tuple[int, int, int]]]] = []

    def add(self, view_units: list[str], windows: Sequence[UnitRange]) -> list[int]:
        """Add the units of a view's windows; return for each window the shift from the view's numbers to `all`."""
        shifts: dict[UnitRange, int] = {}
        for earlier_units, ranges in self._views:
            if len(earlier_units) == len(view_units):
                different_before = list(accumulate(map(ne, view_units, earlier_units), initial=0))
                for first, last in windows:
                    if different_before[first] == different_before[last] and (first, last) not in shifts:
                        begin, end, shift = ranges[max(bisect_right(ranges, first, key=itemgetter(0)) - 1, 0)]
                        if begin <= first and last <= end:
                            shifts[first, last] = shift
        added: list[tuple[int, int, int]] = []
        for first, last in sorted(window for window in windows if window not in shifts):
            begin, end, shift = added.pop() if added and first < added[-1][1] else (first, first, len(self.all) - first)
            self.all += view_units[end:last]
            added.append((begin, max(end, last), shift))
            shifts[first, last] = shift
        if added:
            self._views.append((view_units, added))
        return [shifts[window] for window in windows]
