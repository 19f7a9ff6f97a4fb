"""Texts in, one score per artifact out: one pass over views, windows and encoder for all artifacts.

A cascade: the words of a window decide first (`prefilter.py`); the encoder runs only where they leave a doubt
(`scorer.py`). Knows no action; `threshold` turns an artifact's calibration into a number, and policies use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lethe.classifier import conformal
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.lru import TextLRU
from lethe.classifier.fusion import deciding_components
from lethe.classifier.prefilter import Prefilter, SelectedRows
from lethe.classifier.scorer import ArtifactScorer, ScoredRows
from lethe.classifier.text import language_model, ngrams
from lethe.classifier.text.segments import TextSegments, WindowPlace, segment_text

# Flagged windows of one request whose forget items are reported. A request with this many is no question about a few
# items: the guard then acts on all items of the artifact. A choice.
MAX_FLAGGED_WINDOWS = 128
# Characters from which a window is encoded only if it contains some language: in shorter ones the language model is
# unreliable, and encoding is cheap. A choice.
MIN_LANGUAGE_CHARACTERS = 160
# Texts whose scores are cached; most take a few hundred bytes, so about 4 MB. Texts with more scores or more reported
# windows than the following take kilobytes and are not cached.
CACHED_TEXTS = 8192
MAX_CACHED_SCORES = 4
MAX_CACHED_WINDOWS = 8
# Different sets of thresholds that are kept as shared objects: there is one for each set of policies in use.
CACHED_THRESHOLDS = 64
# With more artifacts than this, each one's scorer is built at its first request: building takes milliseconds, and most
# of many artifacts are rarely needed. A choice.
MAX_PREPARED_ARTIFACTS = 32


@dataclass(frozen=True)
class Score:
    """How likely some texts ask for the forget items of one artifact, and where.

    score: fused probability, the maximum over texts, views and windows. text, view, window: its place (number of the
    text, name of the view, raw characters). lexical, head, cosine: the components there; lexical and head are logits.
    decided_by: "lexical", "semantic" or "both". text_scores: each text's own maximum; 0 where its words alone decided.
    window_items: for the best window, and for every other window that reached the threshold, the numbers of the
    forget items most likely asked for, best first; at most MAX_FLAGGED_WINDOWS windows, the best one first.
    characters_seen: of the characters_present (without white space), those in one of this many `windows`. group: of
    the deciding text, see `conformal.GROUPS`.
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
    window_items: tuple[tuple[int, ...], ...]
    characters_seen: int
    characters_present: int
    windows: int
    group: str = "short"

    @property
    def nearest(self) -> tuple[int, ...]:
        """The forget items that the best window most likely asks for, best first."""
        return self.window_items[0] if self.window_items else ()


@dataclass(frozen=True)
class _TextScores:
    """The scores of one text: a Score for each artifact whose prefilter selected a window, and counts.

    thresholds: those that were given. characters_seen, characters_present: see Score.
    """

    thresholds: Mapping[str, float]
    scores: Mapping[str, Score]
    windows: int
    characters_seen: int
    characters_present: int

    @property
    def is_small(self) -> bool:
        windows = sum(len(score.window_items) for score in self.scores.values())
        return len(self.scores) <= MAX_CACHED_SCORES and windows <= MAX_CACHED_WINDOWS


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
        self._prefilter = Prefilter(artifacts)
        prepared = artifacts if len(artifacts) <= MAX_PREPARED_ARTIFACTS else {}
        self._scorers = {
            name: ArtifactScorer(artifact, self._prefilter.matcher(name)) for name, artifact in prepared.items()
        }
        self._encoder = encoder
        words = frozenset[str]().union(*(artifact.prompt_words for artifact in artifacts.values()))
        self._vocabulary = _shared_vocabulary(words)
        self._known_buckets = np.ones(ngrams.BUCKETS, dtype=bool)
        for artifact in artifacts.values():
            self._known_buckets &= artifact.known_buckets
        self._cache: TextLRU[_TextScores] = TextLRU(CACHED_TEXTS)
        self._shared_thresholds: dict[frozenset[tuple[str, float]], Mapping[str, float]] = {}
        self._last_thresholds: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})

    def _is_known_word(self, word: str) -> bool:
        return bool(self._known_buckets[ngrams.word_bucket(word)])

    def judge(self, texts: Sequence[str], *, thresholds: Mapping[str, float] | None = None) -> dict[str, Score]:
        """One Score for each artifact. Texts without a word score 0; work is linear in the texts' length.

        thresholds: artifact → the score from which a window's forget items are reported (Score.window_items).
        """
        thresholds = self._share_thresholds(thresholds or {})
        scored = {text: self._cache.get(text) for text in texts}
        new = [text for text, known in scored.items() if known is None or known.thresholds != thresholds]
        for text, text_scores in zip(new, self._score_texts(new, thresholds), strict=True):
            scored[text] = text_scores
            if text_scores.is_small:
                self._cache.put(text, text_scores)
        return self._combine([known for text in texts if (known := scored[text])], thresholds)

    def judge_cached(
        self, texts: Sequence[str], *, thresholds: Mapping[str, float] | None = None
    ) -> dict[str, Score] | None:
        """As `judge`, if all texts are in the cache; None otherwise. Takes microseconds, so it needs no thread."""
        thresholds = thresholds or {}
        parts = []
        for text in texts:
            known = self._cache.get(text)
            if known is None or known.thresholds != thresholds:
                return None
            parts.append(known)
        return self._combine(parts, thresholds)

    def clear_cache(self) -> None:
        """Drop all cached scores."""
        self._cache.clear()

    def _share_thresholds(self, thresholds: Mapping[str, float]) -> Mapping[str, float]:
        """One object for equal thresholds, which cached scores can share."""
        given, shared = self._last_thresholds
        if thresholds is not given:
            key = frozenset(thresholds.items())
            if len(self._shared_thresholds) >= CACHED_THRESHOLDS:
                self._shared_thresholds.clear()
            shared = self._shared_thresholds.setdefault(key, dict(thresholds))
            self._last_thresholds = thresholds, shared
        return shared

    def _combine(self, parts: Sequence[_TextScores], thresholds: Mapping[str, float]) -> dict[str, Score]:
        """One Score for each artifact, of several texts."""
        scores = dict.fromkeys(self._artifacts, _zero_score(parts))
        for name in dict.fromkeys(name for part in parts for name in part.scores):
            scores[name] = _combine_texts(name, parts, scores[name], thresholds.get(name))
        return scores

    def _score_texts(self, texts: Sequence[str], thresholds: Mapping[str, float]) -> list[_TextScores]:
        """The scores of each text by itself."""
        segmented = [segment_text(text, self._encoder, self._vocabulary, self._is_known_word) for text in texts]
        selected = [self._prefilter.select_rows(segments) if segments.places else {} for segments in segmented]
        # A window that several texts have, or several artifacts need, is encoded once.
        unions = [_RowUnion(segments, by_name) for segments, by_name in zip(segmented, selected, strict=True)]
        windows = list(dict.fromkeys(text for union in unions for text in union.texts))
        vectors = encode_windows(windows, self._encoder)
        number = {text: i for i, text in enumerate(windows)}
        results = []
        for segments, by_name, union in zip(segmented, selected, unions, strict=True):
            scores = {}
            for name, rows in by_name.items():
                row_texts = [union.texts[i] for i in np.searchsorted(union.rows, rows.rows)]
                row_vectors = vectors[[number[text] for text in row_texts]]
                scorer = self._scorer(name)
                words = segments.document.distinct_words(segments.first[rows.rows], segments.last[rows.rows])
                scored = scorer.score_rows(row_texts, words, rows.lexical, row_vectors, rows.allowed)
                scores[name] = _score_text(scorer, segments, rows.rows, row_texts, scored, thresholds.get(name))
            results.append(
                _TextScores(
                    thresholds, scores, len(segments.places), segments.covered_characters, segments.total_characters
                )
            )
        return results

    def _scorer(self, name: str) -> ArtifactScorer:
        if name not in self._scorers:
            self._scorers[name] = ArtifactScorer(self._artifacts[name], self._prefilter.matcher(name))
        return self._scorers[name]


@lru_cache(maxsize=8)
def _shared_vocabulary(vocabulary: frozenset[str]) -> frozenset[str]:
    """One object for equal vocabularies: tables made for one are found by it, and comparing all words takes time."""
    return vocabulary


class _RowUnion:
    """The rows of a text that any artifact's prefilter selected, rising, and their texts."""

    def __init__(self, segments: TextSegments, selected: Mapping[str, SelectedRows]) -> None:
        rows = [selection.rows for selection in selected.values()]
        self.rows = np.unique(np.concatenate(rows)) if rows else np.zeros(0, dtype=np.int64)
        self.texts = [segments.text(int(row)) for row in self.rows]


def encode_windows(texts: Sequence[str], encoder: Encoder) -> NDArray[np.float32]:
    """(N, D) embeddings; zero for a long text without any language, which the n-grams judge alone.

    Encoding is most of the work. Random letters and encoded pictures have several times the word pieces of language,
    and their embeddings mean nothing.
    """
    vectors = np.zeros((len(texts), encoder.width), dtype=np.float32)
    if not texts:
        return vectors
    rows = [
        i for i, text in enumerate(texts) if len(text) < MIN_LANGUAGE_CHARACTERS or language_model.is_readable(text)
    ]
    vectors[rows] = encoder.encode_cached([texts[i] for i in rows])
    return vectors


def threshold(
    artifact: Artifact,
    *,
    miss_rate: float | None = None,
    false_alarm_rate: float | None = None,
    value: float | None = None,
) -> float:
    """The score from which a prompt is flagged; exactly one of the three must be given.

    miss_rate, false_alarm_rate: conformal, from the artifact's calibration scores. value: itself, if in [0, 1].
    Raises ValueError, also when the calibration set is too small for the rate.
    """
    if [miss_rate, false_alarm_rate, value].count(None) != 2:
        raise ValueError("a threshold needs exactly one of miss_rate, false_alarm_rate and value")
    if miss_rate is not None:
        scores, groups = artifact.arrays["calibration_forget"], artifact.arrays["calibration_forget_groups"]
        return conformal.threshold_by_group(conformal.threshold_for_miss_rate, scores, groups, miss_rate, min)
    if false_alarm_rate is not None:
        scores, groups = artifact.arrays["calibration_other"], artifact.arrays["calibration_other_groups"]
        find = conformal.threshold_for_false_alarm_rate
        return conformal.threshold_by_group(find, scores, groups, false_alarm_rate, max)
    assert value is not None
    if not 0 <= value <= 1:
        raise ValueError(f"threshold {value} is not in [0, 1]")
    return value


def _score_text(
    scorer: ArtifactScorer,
    segments: TextSegments,
    rows: NDArray[np.int64],
    texts: Sequence[str],
    scored: ScoredRows,
    level: float | None,
) -> Score:
    """The Score of one text for one artifact, from the rows that were scored. level: the threshold, if any."""
    probability, components = scored.probability, scored.components
    # NaN ranks highest: it counts as flagged.
    order = np.nan_to_num(probability, nan=np.inf)
    number = {int(row): i for i, row in enumerate(rows)}
    best = max((p for p in segments.places if p.row in number), key=lambda place: order[number[place.row]])
    row = number[best.row]
    contributions = scorer.fusion.contributions(components[row : row + 1])[0]
    # Not `>=`: NaN has reached every threshold.
    flagged = [] if level is None else [int(i) for i in np.argsort(-order) if not probability[i] < level]
    reported = dict.fromkeys([row, *flagged[:MAX_FLAGGED_WINDOWS]])
    items = [scorer.nearest_items(texts[i], scored.cosines[i], scored.compared[i]) for i in reported]
    return Score(
        score=float(probability[row]),
        text=0,
        view=segments.view_name(best),
        window=segments.raw_span(best),
        lexical=float(components[row, 0] + components[row, 1]),
        head=float(components[row, 2]),
        cosine=float(scored.cosines[row].max()),
        decided_by="both" if scored.by_added[row] else deciding_components(contributions.tolist()),
        text_scores=(float(probability[row]),),
        window_items=tuple(items)[:MAX_FLAGGED_WINDOWS],
        characters_seen=segments.covered_characters,
        characters_present=segments.total_characters,
        windows=len(segments.places),
        group=_group_of(segments, best),
    )


def _group_of(segments: TextSegments, best: WindowPlace) -> str:
    """The group (`conformal.GROUPS`) of a text by its best window."""
    if segments.view_name(best) not in ("raw", "normalised"):
        return "disguised"
    windows = sum(segments.view_name(p) == "raw" and not p.inner for p in segments.places)
    return "short" if windows == 1 else "long"


def _zero_score(parts: Sequence[_TextScores]) -> Score:
    """The Score of texts of which the prefilter selected no window."""
    return Score(
        score=0.0,
        text=0,
        view="raw",
        window=(0, 0),
        lexical=0.0,
        head=0.0,
        cosine=0.0,
        decided_by="lexical",
        text_scores=(0.0,) * len(parts),
        window_items=(),
        characters_seen=sum(part.characters_seen for part in parts),
        characters_present=sum(part.characters_present for part in parts),
        windows=sum(part.windows for part in parts),
    )


def _combine_texts(name: str, parts: Sequence[_TextScores], zero: Score, level: float | None) -> Score:
    """The Scores of several texts for one artifact as one. level: the threshold, if any."""
    scores = [part.scores.get(name, zero) for part in parts]
    values = [score.score for score in scores]
    order = np.nan_to_num(values, nan=np.inf)
    ranked = sorted(range(len(parts)), key=lambda i: -order[i])
    best = ranked[0]
    also_flagged = [i for i in ranked[1:] if level is not None and not values[i] < level]
    items = dict.fromkeys(items for i in (best, *also_flagged) for items in scores[i].window_items)
    return replace(
        scores[best],
        text=best,
        text_scores=tuple(values),
        window_items=tuple(items)[:MAX_FLAGGED_WINDOWS],
        characters_seen=zero.characters_seen,
        characters_present=zero.characters_present,
        windows=zero.windows,
    )
