"""Scores windows for one artifact, given their n-gram scores and embeddings. Knows no text, view or cache.

`judge.py` decides which windows get here, and turns their scores into one score for each text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.artifact import Artifact
from lethe.classifier.changed_items import AddedItems, RemovedItemVeto
from lethe.classifier.fusion import Fusion
from lethe.classifier.index import similarity
from lethe.classifier.index.ivf import CellIndex
from lethe.classifier.index.nearest_items import ItemWords, TargetWords, rank_items, rank_items_of_rows
from lethe.classifier.index.similarity import ForgetTargets, RowWords, TargetMatcher

# Windows that are searched for together where the index has cells: they are compared with the union of their
# candidates, so more windows mean fewer calls but more comparisons. Bounds memory; a choice.
WINDOWS_SEARCHED_AT_ONCE = 16

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ScoredRows:
    """Scores of N rows (windows).

    probability: (N,); components: (N, 4) raw, of the fit (`artifact.COMPONENTS`); by_added: (N,) whether an item added
    after the fit has the highest probability. cosines: for each row, those to the index rows of the fit that it was
    compared with, then to all that were added; compared: the numbers of the former (K,), None for all.
    """

    probability: NDArray[np.float64]
    components: NDArray[np.float64]
    by_added: NDArray[np.bool_]
    cosines: Sequence[NDArray[np.float32]]
    compared: Sequence[Integers | None]


@dataclass(frozen=True)
class _Candidates:
    """The index rows that windows are compared with: their numbers (None: all), embeddings, and a matcher."""

    rows: Integers | None
    index: NDArray[np.float32]
    matcher: TargetMatcher


class ArtifactScorer:
    """One artifact, ready to score rows."""

    def __init__(self, artifact: Artifact, matcher: TargetMatcher) -> None:
        """matcher: of the fit's targets, with their discriminative words."""
        arrays = artifact.arrays
        self.head = arrays["head"]
        centre, scale, weight = arrays["fusion"]
        self.fusion = Fusion(centre, scale, weight, float(arrays["intercept"][0]))
        self._targets = ForgetTargets.from_arrays(arrays, "targets")
        self._index = arrays["index"]
        self._index_items: NDArray[np.int32] = arrays["index_items"]
        self._added = AddedItems(arrays)
        self._veto = RemovedItemVeto(artifact)
        # Forgetting on request makes artifacts whose fitted items are all removed. Many of them may flag the same
        # discriminative word, and then one prompt is scored for all of them: comparing with the fit is left out.
        self._only_added = bool(self._veto.removed.all())
        self._search: CellIndex | None = None
        if "cell_starts" in arrays and not self._only_added:
            self._search = CellIndex(arrays, matcher, self._veto.removed)
            self._target_words = TargetWords(self._targets, ForgetTargets.from_arrays(arrays, "added"))
            return
        self._item_words = ItemWords(artifact.items)
        self._row_items = np.concatenate([self._index_items, self._added.items])
        if not self._only_added:
            self._all = _Candidates(None, self._index.astype(np.float32), TargetMatcher(self._targets))

    def score_rows(
        self,
        texts: Sequence[str],
        words: RowWords,
        lexical: NDArray[np.float64],
        vectors: NDArray[np.float32],
        allowed: NDArray[np.bool_],
    ) -> ScoredRows:
        """Scores of N rows, given as texts with their distinct words, word and character scores, and embeddings.

        lexical: (N, 2); vectors: (N, D). allowed: (N,) which rows are on the allowlist: they stay unflagged by items
        of the fit, but not by items added later.
        """
        if self._only_added:
            return self._score_added_only(words, lexical, vectors)
        if not self._search:
            return self._score_against(self._all, texts, words, lexical, vectors, allowed)
        parts = []
        for start in range(0, len(texts), WINDOWS_SEARCHED_AT_ONCE):
            rows = slice(start, start + WINDOWS_SEARCHED_AT_ONCE)
            part_words = similarity.words_of_rows(words, rows)
            near = self._search.candidates(vectors[rows], part_words)
            candidates = _Candidates(
                near, self._index[near].astype(np.float32), TargetMatcher(self._targets.take(near))
            )
            parts.append(
                self._score_against(candidates, texts[rows], part_words, lexical[rows], vectors[rows], allowed[rows])
            )
        return ScoredRows(
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
        words: RowWords,
        lexical: NDArray[np.float64],
        vectors: NDArray[np.float32],
        allowed: NDArray[np.bool_],
    ) -> ScoredRows:
        cosines = vectors @ candidates.index.T
        match = candidates.matcher.best_similarity(words, cosines)
        components = np.column_stack([lexical, vectors @ self.head, match]).astype(np.float64)
        vetoed = self._veto.vetoed_rows(texts, cosines, candidates.rows)
        fitted = np.where(allowed | vetoed, 0.0, self.fusion.probability(components))
        added_cosines = self._added.cosines(vectors)
        added = self._added.probability(words, added_cosines)
        removed = self._veto.removed
        cosines[:, removed if candidates.rows is None else removed[candidates.rows]] = -1.0
        # Not np.fmax, which would drop NaN: a score of NaN counts as flagged.
        probability = np.maximum(fitted, added)
        all_cosines = list(np.hstack([cosines, added_cosines]))
        return ScoredRows(probability, components, added > fitted, all_cosines, [candidates.rows] * len(texts))

    def _score_added_only(
        self, words: RowWords, lexical: NDArray[np.float64], vectors: NDArray[np.float32]
    ) -> ScoredRows:
        count = len(vectors)
        added_cosines = self._added.cosines(vectors)
        added = self._added.probability(words, added_cosines)
        components = np.column_stack([lexical, vectors @ self.head, np.zeros(count)]).astype(np.float64)
        removed_cosines = np.full((count, len(self._index_items)), -1.0, dtype=np.float32)
        cosines = list(np.hstack([removed_cosines, added_cosines]))
        return ScoredRows(added, components, np.ones(count, dtype=bool), cosines, [None] * count)

    def nearest_items(self, text: str, cosines: NDArray[np.float32], compared: Integers | None) -> tuple[int, ...]:
        """Numbers of the items that a row most likely asks for, best first. cosines, compared: see `ScoredRows`."""
        if compared is None:
            return rank_items(cosines, self._row_items, self._item_words.overlap(text))
        overlap = self._target_words.overlap(text, compared)
        items = np.concatenate([self._index_items[compared], self._added.items])
        # Rows of removed items have a cosine of -1.
        live = ~(cosines <= -1.0)
        return rank_items_of_rows(cosines[live], items[live], overlap[live])
