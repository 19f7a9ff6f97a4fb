"""Texts in, one score per artifact out: one pass over views, windows and encoder for all artifacts.

A cascade: words first (`classifier/prefilter.py`), and an encoder where they leave a doubt. Knows no threshold and no
action: those are policy. Primitives: `Judge.judge`, `threshold`, `evidence`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lethe.classifier import conformal
from lethe.classifier.artifact import Artifact
from lethe.classifier.attribution import evidence as evidence
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.lru import Recent
from lethe.classifier.fusion import Fusion, decided_by
from lethe.classifier.index import similarity
from lethe.classifier.index.ivf import Search
from lethe.classifier.index.nearest_items import ItemWords, TargetWords, nearest, nearest_of
from lethe.classifier.index.similarity import Matcher, RowWords, Targets
from lethe.classifier.prefilter import Gate, Passed
from lethe.classifier.text import language_model, ngrams
from lethe.classifier.text.segments import Place, Reading, read
from lethe.classifier.training.incremental import Added, Veto

# So many windows that ask for something forgotten are no question any more; who gets this many must act on it.
MOST_ASKED = 128
# Characters of a window from which on it is encoded only if some language is in it.
SURELY_ENCODED = 160
# Texts of which is remembered what they scored; most take a few hundred bytes, and those that take more than some
# thousand (many artifacts, many windows that ask for something) are not kept.
TEXTS_KEPT = 8192
MOST_SCORES_KEPT = 4
MOST_ASKED_KEPT = 8
LEVELS_KEPT = 64
# Rows of a text that are searched for together, where not all index rows are compared: bounds memory.
ROWS_SEARCHED = 16
# So many artifacts are made ready before the first request asks for them.
MADE_READY = 32

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """How strongly some texts ask for what one artifact is to forget, and where.

    score: fused probability, the maximum over texts, views and windows. text, view, window: where it stands
    (number of the text, name of the view, raw characters). lexical, head, cosine: the components there;
    lexical and head are logits. decided_by: "lexical", "semantic" or "both". text_scores: each text's own
    maximum; 0 where its words alone decided. asked: for the best window, and for every other that reached the level
    asked about, the numbers of the forget items most likely meant, best first; the best window first, at most
    MOST_ASKED. characters_seen of the characters_present (white space apart) were judged, in this many `windows`.
    group: of the deciding text, see `conformal.GROUPS`.
    """

    score: float
    text: int
    view: str
    window: tuple[int, int]
    lexical: float
    head: float
    cosine: float
    decided_by: str
    text_scores: tuple[float, ...]
    asked: tuple[tuple[int, ...], ...]
    characters_seen: int
    characters_present: int
    windows: int
    group: str = "short"

    @property
    def nearest(self) -> tuple[int, ...]:
        """The forget items that the best window most likely means, best first."""
        return self.asked[0] if self.asked else ()


@dataclass(frozen=True)
class _Heard:
    """What one text scored: a Score for each artifact that looked at it closer, and how much of it was read.

    levels: those that were asked about.
    """

    levels: Mapping[str, float]
    scores: Mapping[str, Score]
    windows: int
    seen: int
    present: int

    @property
    def is_small(self) -> bool:
        asked = sum(len(score.asked) for score in self.scores.values())
        return len(self.scores) <= MOST_SCORES_KEPT and asked <= MOST_ASKED_KEPT


@dataclass(frozen=True)
class ScoredRows:
    """probability: (N,); components: (N, 4) raw, of the fit; by_added: (N,) whether an added item decided. cosines: for
    each row, those to the index rows of the fit that it was compared with, and to all that were added; compared: (K,)
    the numbers of the former, None for all."""

    probability: NDArray[np.float64]
    components: NDArray[np.float64]
    by_added: NDArray[np.bool_]
    cosines: Sequence[NDArray[np.float32]]
    compared: Sequence[Integers | None]


@dataclass(frozen=True)
class _Compared:
    """What rows are compared with: the index rows of those numbers (None: all), their embeddings, and a matcher."""

    rows: Integers | None
    index: NDArray[np.float32]
    matcher: Matcher


class Scorer:
    """One artifact, ready to score rows."""

    def __init__(self, artifact: Artifact, matcher: Matcher) -> None:
        """matcher: of the fit's targets, with the words that tell something."""
        arrays = artifact.arrays
        self.head = arrays["head"]
        centre, scale, weight = arrays["fusion"]
        self.fusion = Fusion(centre, scale, weight, float(arrays["intercept"][0]))
        self._targets = Targets.of(arrays, "targets")
        self._index = arrays["index"]
        self._index_items: NDArray[np.int32] = arrays["index_items"]
        self._added = Added(arrays)
        self._veto = Veto(artifact)
        # Of an artifact that was made by adding alone, nothing is left of the fit to compare with. Very many of those
        # may have a word in common, and then one prompt is scored for them all.
        self._added_alone = bool(self._veto.removed.all())
        self._search: Search | None = None
        if "cell_starts" in arrays and not self._added_alone:
            self._search = Search(arrays, matcher, self._veto.removed)
            self._target_words = TargetWords(self._targets, Targets.of(arrays, "added"))
            return
        self._item_words = ItemWords(artifact.items)
        self._row_items = np.concatenate([self._index_items, self._added.items])
        if not self._added_alone:
            self._all = _Compared(None, self._index.astype(np.float32), Matcher(self._targets))

    def rows(
        self,
        texts: Sequence[str],
        words: RowWords,
        lexical: NDArray[np.float64],
        vectors: NDArray[np.float32],
        retained: NDArray[np.bool_],
    ) -> ScoredRows:
        """Scores of N rows, given as texts with their distinct words, word and character scores, and embeddings.

        retained: (N,) which rows must stay unflagged by what was fitted; items that were added count there too.
        """
        if self._added_alone:
            return self._compare_added(words, lexical, vectors)
        if not self._search:
            return self._compare(self._all, texts, words, lexical, vectors, retained)
        found = []
        for start in range(0, len(texts), ROWS_SEARCHED):
            rows = slice(start, start + ROWS_SEARCHED)
            part = similarity.some_words(words, rows)
            near = self._search.candidates(vectors[rows], part)
            some = _Compared(near, self._index[near].astype(np.float32), Matcher(self._targets.some(near)))
            found.append(self._compare(some, texts[rows], part, lexical[rows], vectors[rows], retained[rows]))
        return ScoredRows(
            np.concatenate([part.probability for part in found]),
            np.concatenate([part.components for part in found]),
            np.concatenate([part.by_added for part in found]),
            [cosines for part in found for cosines in part.cosines],
            [rows for part in found for rows in part.compared],
        )

    def _compare(
        self,
        some: _Compared,
        texts: Sequence[str],
        words: RowWords,
        lexical: NDArray[np.float64],
        vectors: NDArray[np.float32],
        retained: NDArray[np.bool_],
    ) -> ScoredRows:
        cosines = vectors @ some.index.T
        match = some.matcher.best(words, cosines)
        components = np.column_stack([lexical, vectors @ self.head, match]).astype(np.float64)
        vetoed = self._veto(texts, cosines, some.rows)
        fitted = np.where(retained | vetoed, 0.0, self.fusion.probability(components))
        near = self._added.cosines(vectors)
        added = self._added.probability(words, near)
        cosines[:, self._veto.removed if some.rows is None else self._veto.removed[some.rows]] = -1.0
        # Not np.fmax: a score that is no number has to stay one.
        probability = np.maximum(fitted, added)
        by = added > fitted
        return ScoredRows(probability, components, by, list(np.hstack([cosines, near])), [some.rows] * len(texts))

    def _compare_added(self, words: RowWords, lexical: NDArray[np.float64], vectors: NDArray[np.float32]) -> ScoredRows:
        count = len(vectors)
        near = self._added.cosines(vectors)
        added = self._added.probability(words, near)
        components = np.column_stack([lexical, vectors @ self.head, np.zeros(count)]).astype(np.float64)
        gone = np.full((count, len(self._index_items)), -1.0, dtype=np.float32)
        cosines = list(np.hstack([gone, near]))
        return ScoredRows(added, components, np.ones(count, dtype=bool), cosines, [None] * count)

    def asked(self, text: str, cosines: NDArray[np.float32], compared: Integers | None) -> tuple[int, ...]:
        """The items that a row most likely means, best first."""
        if compared is None:
            return nearest(cosines, self._row_items, self._item_words.overlap(text))
        overlap = self._target_words.overlap(text, compared)
        items = np.concatenate([self._index_items[compared], self._added.items])
        there = ~(cosines <= -1.0)
        return nearest_of(cosines[there], items[there], overlap[there])


class Judge:
    """Scores texts for several artifacts at once. Safe to call from several threads."""

    def __init__(self, artifacts: Mapping[str, Artifact], encoder: Encoder) -> None:
        """Raises ValueError naming both encoders when an artifact was fitted with another one."""
        for name, artifact in artifacts.items():
            if artifact.manifest.encoder_hash != encoder.hash:
                raise ValueError(
                    f"artifact {name!r} was fitted with encoder {artifact.manifest.encoder_name!r} "
                    f"({artifact.manifest.encoder_hash[:12]}); this is {encoder.name!r} ({encoder.hash[:12]})"
                )
        self._artifacts = dict(artifacts)
        self._gate = Gate(artifacts)
        few = artifacts if len(artifacts) <= MADE_READY else {}
        self._scorers = {name: Scorer(artifact, self._gate.matcher(name)) for name, artifact in few.items()}
        self._encoder = encoder
        self._vocabulary = _interned(frozenset[str]().union(*(found.prompt_words for found in artifacts.values())))
        self._familiar = np.ones(ngrams.BUCKETS, dtype=bool)
        for artifact in artifacts.values():
            self._familiar &= artifact.familiar
        self._recent: Recent[_Heard] = Recent(TEXTS_KEPT)
        self._levels: dict[frozenset[tuple[str, float]], Mapping[str, float]] = {}
        self._last_levels: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})

    def _is_familiar(self, word: str) -> bool:
        return bool(self._familiar[ngrams.word_bucket(word)])

    def judge(self, texts: Sequence[str], *, levels: Mapping[str, float] | None = None) -> dict[str, Score]:
        """One Score per artifact. Texts without a word score 0; work is linear in the texts' length.

        levels: artifact → the score from which a window's own forget items are wanted (Score.asked).
        """
        levels = self._one_of(levels or {})
        heard = {text: self._recent.get(text) for text in texts}
        new = [text for text, known in heard.items() if known is None or known.levels != levels]
        for text, known in zip(new, self._listen(new, levels), strict=True):
            heard[text] = known
            if known.is_small:
                self._recent.put(text, known)
        return self._joined([part for text in texts if (part := heard[text])], levels)

    def forget(self) -> None:
        """Keep nothing of what was judged lately."""
        self._recent.clear()

    def _one_of(self, levels: Mapping[str, float]) -> Mapping[str, float]:
        """Equal levels as one object, which what is remembered can share."""
        given, one = self._last_levels
        if levels is not given:
            key = frozenset(levels.items())
            if len(self._levels) >= LEVELS_KEPT:
                self._levels.clear()
            one = self._levels.setdefault(key, dict(levels))
            self._last_levels = levels, one
        return one

    def recall(self, texts: Sequence[str], *, levels: Mapping[str, float] | None = None) -> dict[str, Score] | None:
        """As `judge`, if all of the texts were judged lately; None otherwise. Takes no time worth a thread."""
        levels = levels or {}
        parts = []
        for text in texts:
            known = self._recent.get(text)
            if known is None or known.levels != levels:
                return None
            parts.append(known)
        return self._joined(parts, levels)

    def _joined(self, parts: Sequence[_Heard], levels: Mapping[str, float]) -> dict[str, Score]:
        scores = dict.fromkeys(self._artifacts, _nothing(parts))
        for name in dict.fromkeys(name for part in parts for name in part.scores):
            scores[name] = _together(name, parts, scores[name], levels.get(name))
        return scores

    def _listen(self, texts: Sequence[str], levels: Mapping[str, float]) -> list[_Heard]:
        """What each text scores by itself."""
        readings = [read(text, self._encoder, self._vocabulary, self._is_familiar) for text in texts]
        passed = [self._gate.passed(reading) if reading.places else {} for reading in readings]
        # What several texts, or several artifacts, look at is encoded once.
        looked = [_Looked(reading, found) for reading, found in zip(readings, passed, strict=True)]
        windows = list(dict.fromkeys(text for part in looked for text in part.texts))
        vectors = encode(windows, self._encoder)
        number = {text: i for i, text in enumerate(windows)}
        heard = []
        for reading, found, part in zip(readings, passed, looked, strict=True):
            scores = {}
            for name, rows in found.items():
                chosen = np.searchsorted(part.rows, rows.rows)
                row_texts = [part.texts[i] for i in chosen]
                near = vectors[[number[text] for text in row_texts]]
                scorer = self._scorer(name)
                words = reading.document.distinct(reading.first[rows.rows], reading.last[rows.rows])
                scored = scorer.rows(row_texts, words, rows.lexical, near, rows.retained)
                scores[name] = _score(scorer, reading, rows.rows, row_texts, scored, levels.get(name))
            heard.append(_Heard(levels, scores, len(reading.places), reading.seen, reading.present))
        return heard

    def _scorer(self, name: str) -> Scorer:
        # Of many artifacts most are asked for rarely.
        if name not in self._scorers:
            self._scorers[name] = Scorer(self._artifacts[name], self._gate.matcher(name))
        return self._scorers[name]


@lru_cache(maxsize=8)
def _interned(vocabulary: frozenset[str]) -> frozenset[str]:
    """Equal vocabularies as one object: tables made for one are looked up by it, and comparing all words takes time."""
    return vocabulary


class _Looked:
    """The rows of a reading that any artifact looks at, and their texts."""

    def __init__(self, reading: Reading, passed: Mapping[str, Passed]) -> None:
        rows = [found.rows for found in passed.values()]
        self.rows = np.unique(np.concatenate(rows)) if rows else np.zeros(0, dtype=np.int64)
        self.texts = [reading.text(int(row)) for row in self.rows]


def encode(texts: Sequence[str], encoder: Encoder) -> NDArray[np.float32]:
    """(N, D) embeddings; zero for a long text that no language is in, which the n-grams judge alone.

    Encoding is most of the work. Random letters and encoded pictures have several times the word pieces of
    language, and mean nothing to an encoder.
    """
    vectors = np.zeros((len(texts), encoder.width), dtype=np.float32)
    if not texts:
        return vectors
    rows = [i for i, text in enumerate(texts) if len(text) < SURELY_ENCODED or language_model.readable(text)]
    vectors[rows] = encoder.encode_again([texts[i] for i in rows])
    return vectors


def threshold(
    artifact: Artifact,
    *,
    miss_rate: float | None = None,
    false_alarm_rate: float | None = None,
    value: float | None = None,
) -> float:
    """The score from which a prompt counts as flagged; exactly one of the three must be given.

    miss_rate, false_alarm_rate: conformal, from the artifact's calibration scores. value: itself, if in
    [0, 1]. Raises ValueError, also when the calibration set is too small for the rate.
    """
    if [miss_rate, false_alarm_rate, value].count(None) != 2:
        raise ValueError("a threshold needs exactly one of miss_rate, false_alarm_rate and value")
    if miss_rate is not None:
        scores, groups = artifact.arrays["calibration_forget"], artifact.arrays["calibration_forget_groups"]
        return conformal.by_group(conformal.for_miss_rate, scores, groups, miss_rate, min)
    if false_alarm_rate is not None:
        scores, groups = artifact.arrays["calibration_other"], artifact.arrays["calibration_other_groups"]
        return conformal.by_group(conformal.for_false_alarm_rate, scores, groups, false_alarm_rate, max)
    assert value is not None
    if not 0 <= value <= 1:
        raise ValueError(f"threshold {value} is not in [0, 1]")
    return value


def _score(
    scorer: Scorer,
    reading: Reading,
    rows: NDArray[np.int64],
    texts: Sequence[str],
    scored: ScoredRows,
    level: float | None,
) -> Score:
    """Of one text, by the rows that were looked at."""
    probability, components = scored.probability, scored.components
    # A score that is no number is the highest: it counts as reached.
    order = np.nan_to_num(probability, nan=np.inf)
    number = {int(row): i for i, row in enumerate(rows)}
    best = max((p for p in reading.places if p.row in number), key=lambda place: order[number[place.row]])
    row = number[best.row]
    contributions = scorer.fusion.contributions(components[row : row + 1])[0]
    # Not `>=`: a score that is no number has reached every level.
    reached = [] if level is None else [int(i) for i in np.argsort(-order) if not probability[i] < level]
    asking = dict.fromkeys([row, *reached[:MOST_ASKED]])
    asked = [scorer.asked(texts[i], scored.cosines[i], scored.compared[i]) for i in asking]
    return Score(
        score=float(probability[row]),
        text=0,
        view=reading.view(best),
        window=reading.span(best),
        lexical=float(components[row, 0] + components[row, 1]),
        head=float(components[row, 2]),
        cosine=float(scored.cosines[row].max()),
        decided_by="both" if scored.by_added[row] else decided_by(contributions.tolist()),
        text_scores=(float(probability[row]),),
        asked=tuple(asked)[:MOST_ASKED],
        characters_seen=reading.seen,
        characters_present=reading.present,
        windows=len(reading.places),
        group=_group(reading, best),
    )


def _group(reading: Reading, best: Place) -> str:
    """The group (`conformal.GROUPS`) of the text that decided."""
    if reading.view(best) not in ("raw", "normalised"):
        return "disguised"
    windows = sum(reading.view(p) == "raw" and not p.closer for p in reading.places)
    return "short" if windows == 1 else "long"


def _nothing(parts: Sequence[_Heard]) -> Score:
    """Of texts whose words alone say that they ask for nothing forgotten."""
    seen, present = sum(part.seen for part in parts), sum(part.present for part in parts)
    windows = sum(part.windows for part in parts)
    return Score(
        0.0, 0, "raw", (0, 0), 0.0, 0.0, 0.0, "lexical", (0.0,) * len(parts), (), seen, present, windows
    )  # fmt: skip


def _together(name: str, parts: Sequence[_Heard], nothing: Score, level: float | None) -> Score:
    """The scores of several texts as one."""
    scores = [part.scores.get(name, nothing) for part in parts]
    values = [score.score for score in scores]
    order = np.nan_to_num(values, nan=np.inf)
    ranked = sorted(range(len(parts)), key=lambda i: -order[i])
    best = ranked[0]
    also = [i for i in ranked[1:] if level is not None and not values[i] < level]
    asked = dict.fromkeys(items for i in (best, *also) for items in scores[i].asked)
    return replace(
        scores[best],
        text=best,
        text_scores=tuple(values),
        asked=tuple(asked)[:MOST_ASKED],
        characters_seen=nothing.characters_seen,
        characters_present=nothing.characters_present,
        windows=nothing.windows,
    )
