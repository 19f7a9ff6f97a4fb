"""Scores windows for one artifact, given their n-gram scores and embeddings. Knows no text, view or cache.

`judge.py` decides which windows get here, and turns their scores into one score for each text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.artifact import Artifact
from lethe.classifier.changed_items import AddedItems, RemovedItemVeto
from lethe.classifier.fusion import Fusion
from lethe.classifier.index import similarity
from lethe.classifier.index.ivf import CellIndex
from lethe.classifier.index.nearest_items import ForgetTextWords, ItemWords, rank_items, rank_items_of_rows
from lethe.classifier.index.similarity import ForgetTextMatcher, ForgetTexts, TextWords
from lethe.classifier.names.evidence import NAME_SCORE, NameEvidence

# Windows that are searched for together where the index has cells: they are compared with the union of their
# candidates, so more windows mean fewer calls but more comparisons. Bounds memory. Chosen, not measured.
WINDOWS_SEARCHED_AT_ONCE = 16

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ScoredWindows:
    """Scores of N windows.

    probability: (N,) the windows' scores.
    components: (N, 4) the fit's raw component scores, see `artifact.COMPONENTS`.
    by_added: (N,) whether an item added after the fit has the highest probability.
    by_name: (N,) whether a name of a subject decides.
    cosines[i]: cosine of window i to each compared index row of the fit, followed by each added index row.
    compared[i]: (K,) which index rows of the fit window i was compared with; None means all.
    """

    probability: NDArray[np.float64]
    components: NDArray[np.float64]
    by_added: NDArray[np.bool_]
    cosines: Sequence[NDArray[np.float32]]
    compared: Sequence[Integers | None]
    by_name: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def __post_init__(self) -> None:
        if len(self.by_name) != len(self.probability):
            object.__setattr__(self, "by_name", np.zeros(len(self.probability), dtype=bool))

    def with_names(
        self, numbers: Integers, named: Mapping[int, Sequence[NameEvidence]], allowed: NDArray[np.bool_]
    ) -> ScoredWindows:
        """The scores, at least NAME_SCORE where a window's names decide, with its words and meaning.

        numbers: (N,) the windows' numbers; named: window number → evidence; allowed: (N,) windows on the allowlist.
        """
        by_name = np.array([
            not allowed[i] and any(float(self.cosines[i].max()) >= e.minimum_cosine for e in named.get(number, ()))
            for i, number in enumerate(numbers.tolist())
        ])  # fmt: skip
        return replace(
            self,
            probability=np.where(by_name, np.maximum(self.probability, NAME_SCORE), self.probability),
            by_name=by_name,
        )


@dataclass(frozen=True)
class _Candidates:
    """The index rows that windows are compared with: their numbers (None: all), embeddings, and a matcher."""

    rows: Integers | None
    index: NDArray[np.float32]
    matcher: ForgetTextMatcher


class ArtifactScorer:
    """One artifact, ready to score windows."""

    def __init__(self, artifact: Artifact, matcher: ForgetTextMatcher) -> None:
        """matcher: matches the fit's forget texts by their discriminative words."""
        arrays = artifact.arrays
        self._embedding_weights = arrays["head"]
        centre, scale, weight = arrays["fusion"]
        self.fusion = Fusion(centre, scale, weight, float(arrays["intercept"][0]))
        self._forget_texts = ForgetTexts.from_arrays(arrays, "targets")
        self._index = arrays["index"]
        self._index_items: NDArray[np.int32] = arrays["index_items"]
        self._added = AddedItems(arrays)
        self._veto = RemovedItemVeto(artifact)
        # Artifacts made by POST /admin/forget are copies of the seed artifact: all its fitted items are removed, and
        # only added items count. The comparison with removed items is skipped, because one prompt may be scored for
        # many such artifacts.
        self._only_added = bool(self._veto.removed.all())
        self._search: CellIndex | None = None
        if "cell_starts" in arrays and not self._only_added:
            self._search = CellIndex(arrays, matcher, self._veto.removed)
            self._forget_text_words = ForgetTextWords(self._forget_texts, ForgetTexts.from_arrays(arrays, "added"))
            return
        self._item_words = ItemWords(artifact.items)
        self._row_items = np.concatenate([self._index_items, self._added.items])
        if not self._only_added:
            self._all = _Candidates(None, self._index.astype(np.float32), ForgetTextMatcher(self._forget_texts))

    def score_windows(
        self,
        texts: Sequence[str],
        words: TextWords,
        lexical: NDArray[np.float64],
        vectors: NDArray[np.float32],
        allowed: NDArray[np.bool_],
    ) -> ScoredWindows:
        """Score N windows, given as texts with their distinct words, word and character scores, and embeddings.

        lexical: (N, 2); vectors: (N, D). allowed: (N,) which windows are on the allowlist: they stay unflagged by items
        of the fit, but not by items added later.
        """
        if self._only_added:
            return self._score_added_only(words, lexical, vectors)
        if not self._search:
            return self._score_against(self._all, texts, words, lexical, vectors, allowed)
        parts = []
        for start in range(0, len(texts), WINDOWS_SEARCHED_AT_ONCE):
            windows = slice(start, start + WINDOWS_SEARCHED_AT_ONCE)
            part_words = similarity.words_of_texts(words, windows)
            near = self._search.candidates(vectors[windows], part_words)
            candidates = _Candidates(
                near, self._index[near].astype(np.float32), ForgetTextMatcher(self._forget_texts.take(near))
            )
            parts.append(
                self._score_against(
                    candidates, texts[windows], part_words, lexical[windows], vectors[windows], allowed[windows]
                )
            )
        return ScoredWindows(
            np.concatenate([part.probability for part in parts]),
            np.concatenate([part.components for part in parts]),
            np.concatenate([part.by_added for part in parts]),
            [cosines for part in parts for cosines in part.cosines],
            [rows for part in parts for rows in part.compared],
        )

    def _score_against(
        self,
        candidates: _Candidates,
        texts: Sequence[str],
        words: TextWords,
        lexical: NDArray[np.float64],
        vectors: NDArray[np.float32],
        allowed: NDArray[np.bool_],
    ) -> ScoredWindows:
        cosines = vectors @ candidates.index.T
        match = candidates.matcher.best_similarity(words, cosines)
        components = np.column_stack([lexical, vectors @ self._embedding_weights, match]).astype(np.float64)
        vetoed = self._veto.vetoed_texts(texts, cosines, candidates.rows)
        fitted = np.where(allowed | vetoed, 0.0, self.fusion.probability(components))
        added_cosines = self._added.cosines(vectors)
        added = self._added.probability(words, added_cosines)
        removed = self._veto.removed
        cosines[:, removed if candidates.rows is None else removed[candidates.rows]] = -1.0
        # Not np.fmax, which would drop NaN: a NaN score counts as flagged.
        probability = np.maximum(fitted, added)
        all_cosines = list(np.hstack([cosines, added_cosines]))
        return ScoredWindows(probability, components, added > fitted, all_cosines, [candidates.rows] * len(texts))

    def _score_added_only(
        self, words: TextWords, lexical: NDArray[np.float64], vectors: NDArray[np.float32]
    ) -> ScoredWindows:
        count = len(vectors)
        added_cosines = self._added.cosines(vectors)
        added = self._added.probability(words, added_cosines)
        components = np.column_stack([lexical, vectors @ self._embedding_weights, np.zeros(count)]).astype(np.float64)
        removed_cosines = np.full((count, len(self._index_items)), -1.0, dtype=np.float32)
        cosines = list(np.hstack([removed_cosines, added_cosines]))
        return ScoredWindows(added, components, np.ones(count, dtype=bool), cosines, [None] * count)

    def nearest_items(self, text: str, cosines: NDArray[np.float32], compared: Integers | None) -> tuple[int, ...]:
        """Numbers of the items that a window most likely asks for, best first; see `ScoredWindows`."""
        if compared is None:
            return rank_items(cosines, self._row_items, self._item_words.overlap(text))
        overlap = self._forget_text_words.overlap(text, compared)
        items = np.concatenate([self._index_items[compared], self._added.items])
        # Index rows of removed items have a cosine of -1.
        live = ~(cosines <= -1.0)
        return rank_items_of_rows(cosines[live], items[live], overlap[live])
