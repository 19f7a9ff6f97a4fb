"""The first stage of the cascade: which windows need the encoder, by their words alone, for all artifacts at once.

A window is *inner* if it is a short window inside another one, else *outer*. An outer window is encoded if its words
give at least the artifact's prefilter threshold of evidence (array `gate`; a little more for long windows, see
MARGINS). The fit sets the threshold below the evidence of every held-out rewording of the forget prompts
(`training/calibration.py`). Of the inner windows, at most MAX_INNER_WINDOWS are encoded: those with the most evidence.
Windows on the allowlist are not encoded. Whatever is not encoded scores 0.

Artifacts with documents have no threshold, since a question about a document may share no word with it: all outer
windows are encoded. For items that were added after the fit, outer windows with one of their discriminative words are
encoded as well, on the allowlist or not; if an added item has no such word, all outer windows are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.artifact import Artifact
from lethe.classifier.index import similarity
from lethe.classifier.index.allowlist import Allowlist
from lethe.classifier.index.similarity import ForgetTextMatcher, ForgetTexts
from lethe.classifier.text.ngrams import BUCKETS, NgramDocument, word_bucket
from lethe.classifier.text.segments import TextSegments
from lethe.classifier.text.vocabulary import FUNCTION_WORDS
from lethe.classifier.text.windows import INNER_UNITS, NARROW_UNITS

# Log-odds (natural log units) that all rare words of a forget item together add to a window's evidence. Measured: 4
# instead of 2 leaves 8 of 35 windows of an 8,000-token prompt to encode (docs/benchmarks/2026-11-21-judging.md).
SHARED_WORDS_WEIGHT = 4.0
# Words that carry a smaller share of an item's idf are not discriminative. Chosen: of an item with 33 equally rare
# words each still counts.
MIN_IDF_SHARE = 0.03
# Longer windows share rare words with some item by chance, and any request in them is in a shorter window, too: the
# threshold rises with the length. These are lengths in units (words) ...
MARGIN_LENGTHS = (INNER_UNITS, NARROW_UNITS, NARROW_UNITS + 1)
# ... and the log-odds by which the threshold is higher at them, linear in between. Measured on 1,220 questions: no
# flagged one was lost, and a third of the windows was left to encode (docs/benchmarks/2026-11-21-judging.md).
MARGINS = (0.0, 0.75, 1.25)
_MARGIN_BY_LENGTH = np.interp(np.arange(MARGIN_LENGTHS[-1] + 1), MARGIN_LENGTHS, MARGINS)
# A word of an added item is discriminative from this idf on, as a share of the highest idf. Chosen: half as rare (on
# a log scale) as a word that occurs nowhere else.
MIN_DISCRIMINATIVE_IDF = 0.5
# Maximum number of inner windows (short ones inside other windows) to encode per text, those with the most evidence:
# bounds the work for a text that repeats a forget item's words. Chosen, not measured.
MAX_INNER_WINDOWS = 8
# Windows whose lexical scores are computed at a time: bounds memory.
WINDOWS_AT_ONCE = 256
# Products of n-grams and weights (float32) that are computed at a time: bounds memory to 16 MiB.
PRODUCTS_AT_ONCE = 1 << 22

_FUNCTION_WORD_BUCKETS = [word_bucket(word) for word in sorted(FUNCTION_WORDS)]

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SelectedWindows:
    """The windows of a text that one artifact needs encoded.

    numbers: (n,) the windows' numbers, rising. lexical: (n, 2) their raw word and character components. allowed: (n,)
    which of them are on the artifact's allowlist (`index/allowlist.py`).
    """

    numbers: Integers
    lexical: Floats
    allowed: NDArray[np.bool_]


class _FitGroup:
    """Artifacts of one fit: with equal models, forget texts and allowlist."""

    def __init__(self, artifact: Artifact) -> None:
        arrays = artifact.arrays
        centre, scale, weight = arrays["fusion"][:, :2]
        self._slope, self._centre = weight / scale, float((centre * weight / scale).sum())
        self._threshold = float(arrays["gate"][0])
        self.matcher = ForgetTextMatcher(ForgetTexts.from_arrays(arrays, "targets"), min_idf_share=MIN_IDF_SHARE)
        # The items' words, of all artifacts in the group, where the items are so many that hashes alone collide.
        self.vocabulary: set[str] | None = set() if "cell_starts" in arrays else None
        self.allowlist = Allowlist(arrays["retained"])

    def contributions(self, lexical: Floats) -> Floats:
        """(N,) log-odds contribution of the words, given both lexical components (N, 2)."""
        return np.asarray(lexical @ self._slope - self._centre)

    def select(self, contributions: Floats, segments: TextSegments) -> NDArray[np.bool_]:
        """(N,) which outer windows need the encoder: all whose evidence isn't surely below the threshold.

        The evidence is the contribution of the words plus SHARED_WORDS_WEIGHT times the largest share of a forget
        text's rare words in the window. That share is computed only where it can decide.
        """
        threshold = self._threshold + length_margin(segments.last - segments.first)
        # `not <` in place of `>=`: a NaN score counts as flagged, so the window must be encoded.
        selected = ~(contributions < threshold)
        undecided = np.flatnonzero(~selected & segments.outer & (contributions >= threshold - SHARED_WORDS_WEIGHT))
        if len(undecided):
            if self.vocabulary is None:
                words = segments.document.distinct_words(segments.first[undecided], segments.last[undecided])
            else:
                texts = [segments.text(int(window)) for window in undecided]
                words = similarity.hashed_known_words(texts, self.vocabulary)
            shared = self.matcher.max_shared_idf(words, len(undecided))
            selected[undecided] = contributions[undecided] + SHARED_WORDS_WEIGHT * shared >= threshold[undecided]
        return selected & segments.outer


class Prefilter:
    """The first stage for several artifacts."""

    def __init__(self, artifacts: Mapping[str, Artifact]) -> None:
        self._groups: list[_FitGroup] = []
        self._group_of: dict[str, int] = {}
        # For each group, its artifacts that still have items of the fit.
        self._members: list[list[str]] = []
        group_numbers: dict[bytes, int] = {}
        columns: list[NDArray[np.float16]] = []
        # Hashed word → the artifacts that have it as a discriminative word of an added item.
        self._discriminative: dict[int, list[str]] = {}
        # Artifacts that have an added item without a discriminative word.
        self._always: list[str] = []
        for name, artifact in artifacts.items():
            number = group_numbers.setdefault(artifact.prefilter_digest, len(group_numbers))
            if number == len(self._groups):
                self._groups.append(_FitGroup(artifact))
                self._members.append([])
                columns.append(np.concatenate([artifact.arrays[f"{kind}_weights"] for kind in ("word", "character")]))
            self._group_of[name] = number
            if (vocabulary := self._groups[number].vocabulary) is not None:
                vocabulary |= artifact.prompt_words
            if not np.isin(artifact.arrays["index_items"], artifact.arrays["removed_items"]).all():
                self._members[number].append(name)
            if "discriminative_words" not in artifact.derived:
                artifact.derived["discriminative_words"] = discriminative_words(artifact)
            words = artifact.derived["discriminative_words"]
            if words is None:
                self._always.append(name)
            for word in words or ():
                self._discriminative.setdefault(word, []).append(name)
        self._weights = np.stack(columns, axis=1) if columns else np.zeros((2 * BUCKETS, 0), dtype=np.float16)

    def matcher(self, name: str) -> ForgetTextMatcher:
        """The matcher of one artifact's fit: its forget texts with their discriminative words."""
        return self._groups[self._group_of[name]].matcher

    def select_windows(
        self, segments: TextSegments, named: Mapping[str, Collection[int]] | None = None
    ) -> dict[str, SelectedWindows]:
        """For each artifact that needs some windows of a text encoded, these windows; all other artifacts score 0.

        named: artifact → the windows with names of its subjects, which are encoded as well.
        """
        named = named or {}
        lexical = self._lexical_scores(segments.document, segments.first, segments.last)
        selected: dict[str, SelectedWindows] = {}
        by_added: dict[str, NDArray[np.bool_]] = dict.fromkeys(self._always, segments.outer)
        for name, windows in self._windows_with_discriminative_words(segments).items():
            by_added.setdefault(name, windows)
        groups_with_added = {self._group_of[name] for name in by_added}
        named_groups = {self._group_of[name] for name in named}
        for number, group in enumerate(self._groups):
            if not self._members[number] and number not in groups_with_added | named_groups:
                continue
            contributions = group.contributions(lexical[:, number])
            by_fit = group.select(contributions, segments)
            inner = np.where(segments.outer, -np.inf, contributions)
            if not by_fit.any() and not (inner > 0).any() and number not in groups_with_added | named_groups:
                continue
            allowed = group.allowlist.matching_windows(segments)
            by_fit[_strongest_windows(np.where(allowed, -np.inf, inner))] = True
            by_fit &= ~allowed
            if by_fit.any():
                windows_of_fit = _selected_windows(by_fit, lexical[:, number], allowed)
                selected |= dict.fromkeys(self._members[number], windows_of_fit)
            if number in groups_with_added:
                for name, windows in by_added.items():
                    if self._group_of[name] == number:
                        selected[name] = _selected_windows(by_fit | windows, lexical[:, number], allowed)
            for name, windows_of_name in named.items():
                if self._group_of[name] == number:
                    by_name = np.zeros(len(allowed), dtype=bool)
                    by_name[list(windows_of_name)] = True
                    # A retained request with a name passes, unless an added item's words select the window.
                    also = by_name & ~allowed | by_added.get(name, np.zeros_like(allowed)) | by_fit
                    if also.any():
                        selected[name] = _selected_windows(also, lexical[:, number], allowed)
        return selected

    def _lexical_scores(self, document: NgramDocument, first: Integers, last: Integers) -> Floats:
        """(N, groups, 2) raw word and character components of the windows first..last."""
        count = self._weights.shape[1]
        out = np.empty((len(first), count, 2))
        for start in range(0, len(first), WINDOWS_AT_ONCE):
            windows = slice(start, start + WINDOWS_AT_ONCE)
            rows = document.joint_rows(first[windows], last[windows])
            step = max(PRODUCTS_AT_ONCE // max(len(rows.buckets), 1), 1)
            for i in range(0, count, step):
                scores = rows.dot(self._weights[:, i : i + step])
                out[windows, i : i + step, 0], out[windows, i : i + step, 1] = scores[::2], scores[1::2]
        return out

    def _windows_with_discriminative_words(self, segments: TextSegments) -> dict[str, NDArray[np.bool_]]:
        """Artifact → (N,) which outer windows hold a discriminative word of one of its added items, if any do."""
        if not self._discriminative:
            return {}
        outer = np.flatnonzero(segments.outer)
        window, words = segments.document.distinct_words(segments.first[outer], segments.last[outer])
        windows: dict[str, NDArray[np.bool_]] = {}
        for word in dict.fromkeys(words.tolist()):
            for name in self._discriminative.get(word, ()):
                if name not in windows:
                    windows[name] = np.zeros(len(segments.outer), dtype=bool)
                windows[name][outer[window[words == word]]] = True
        return windows


def length_margin(units: Integers) -> Floats:
    """(N,) log-odds by which the threshold is higher for windows with these numbers of units (words): see MARGINS."""
    return np.asarray(_MARGIN_BY_LENGTH[np.minimum(units, MARGIN_LENGTHS[-1])])


def discriminative_words(artifact: Artifact) -> frozenset[int] | None:
    """The hashed words by which requests for added items are found; None where some item has no such word."""
    arrays = artifact.arrays
    if not len(arrays["added_items"]):
        return frozenset()
    if any(artifact.items[i].text for i in set(arrays["added_items"].tolist())):
        return None
    idf = similarity.idf(arrays["documents"])
    is_rare = idf[arrays["added_buckets"]] >= MIN_DISCRIMINATIVE_IDF * idf.max()
    is_discriminative = is_rare & ~np.isin(arrays["added_buckets"], _FUNCTION_WORD_BUCKETS)
    added_row = np.repeat(np.arange(len(arrays["added_items"])), np.diff(arrays["added_starts"]))
    if len(np.unique(added_row[is_discriminative])) < len(arrays["added_items"]):
        return None
    return frozenset(arrays["added_buckets"][is_discriminative].tolist())


def _selected_windows(mask: NDArray[np.bool_], lexical: Floats, allowed: NDArray[np.bool_]) -> SelectedWindows:
    numbers = np.flatnonzero(mask)
    return SelectedWindows(numbers, lexical[numbers], allowed[numbers])


def _strongest_windows(contributions: Floats) -> Integers:
    """At most MAX_INNER_WINDOWS windows with a positive contribution, the highest first."""
    # `not <=` in place of `>`: a NaN score counts as flagged, so the window must be encoded.
    positive = np.flatnonzero(~(contributions <= 0))
    order = positive[np.argsort(-contributions[positive], kind="stable")]
    # Of equal contributions one: a repeated sentence must not take all places.
    order = order[np.diff(contributions[order], prepend=np.inf) != 0]
    return np.asarray(order[:MAX_INNER_WINDOWS])
