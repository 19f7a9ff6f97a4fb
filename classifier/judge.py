"""Texts in, one score per artifact out: one pass over views, windows and encoder for all artifacts.

A cascade: a cheap check of words first drops windows that give too little evidence for any forget item
(`prefilter.py`); all others are encoded and scored (`scorer.py`). Knows no policy and no action: `threshold` computes
the score from which a policy flags.
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
from lethe.classifier.names.matcher import NameMatcher
from lethe.classifier.names.named_windows import named_windows
from lethe.classifier.prefilter import Prefilter, SelectedWindows
from lethe.classifier.scorer import ArtifactScorer, ScoredWindows
from lethe.classifier.text import language_model, ngrams
from lethe.classifier.text.chunks import Chunk, chunks_of
from lethe.classifier.text.segments import TextSegments, WindowPlace, segment_text
from lethe.classifier.work_limit import check_work

# Miss rate of the default threshold. Chosen: few prompts are missed, and the smallest calibration sets suffice.
DEFAULT_MISS_RATE = 0.01
# Items below which the default threshold is bounded. Chosen, not measured.
FEW_ITEMS = 100
# The lowest and the highest default threshold of few items. Chosen with the development half of
# `benchmarks/requests.py`: names decide about most prompts, and below 0.6 the rest flags more neighbours than prompts
# about the subject.
DEFAULT_THRESHOLDS = (0.6, 0.8)
# The lowest default threshold where only facts are to be forgotten: the words of a name alone score high. Chosen
# likewise.
FACTS_THRESHOLD = 0.95
# Flagged windows of one request whose forget items are reported. A request with this many asks for more items than one
# answer can be guarded against: the steps that need the items (`penalize`, and the output filter with `when: flagged`)
# then fail, and the policy's `on_failure` decides (`TooManyItems` in `server/guard/forget_answers.py`). Chosen, not
# measured.
MAX_FLAGGED_WINDOWS = 128
# Characters from which a window is encoded only if it contains some language: in shorter ones the language model is
# unreliable, and encoding is cheap. Chosen, not measured.
MIN_LANGUAGE_CHARACTERS = 160
# Texts whose scores are cached; most take a few hundred bytes, so about 4 MB together.
CACHED_TEXTS = 8192
# A text with Scores for this many artifacts, or this many reported windows, takes about as much memory as two other
# texts, and counts as two in the cache; and so on. Measured with the demo's artifact.
SCORES_PER_ENTRY, WINDOWS_PER_ENTRY = 4, 8
# Different sets of thresholds that are kept as shared objects: there is one for each set of policies in use.
CACHED_THRESHOLDS = 64
# With more artifacts than this, each one's scorer is built at its first request: building takes milliseconds, and most
# of many artifacts are rarely needed. Chosen, not measured.
MAX_PREPARED_ARTIFACTS = 32


@dataclass(frozen=True)
class Score:
    """How likely some texts ask for the forget items of one artifact, and where.

    score: fused probability, the maximum over texts, views and windows.
    text, view, window: where that is: number of the text, name of the view, raw characters.
    words_logit: the sum of the word and character models' logits in that window.
    embedding_logit: the logit of the linear model over the window's embedding.
    cosine: the highest cosine of the window's embedding to an item's.
    decided_by: which components contributed most: "lexical" (words and characters), "semantic" (embedding and match)
      or "both"; always "both" where an item added after the fit has the highest probability; "name" where a name of
      a subject decides, whatever the components say.
    text_scores: each text's own maximum; 0 for a text of which the prefilter dropped all windows.
    window_items: the numbers of the forget items that the best window most likely asks for, best first; then the same
      for each other flagged window; at most MAX_FLAGGED_WINDOWS windows.
    characters_seen: non-space characters that lie in a window.
    characters_present: all non-space characters.
    windows: number of windows.
    group: calibration group of the deciding text, see `conformal.GROUPS`.
    """

    score: float
    text: int
    view: str
    window: tuple[int, int]
    words_logit: float
    embedding_logit: float
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

    thresholds: those that the caller gave. characters_seen, characters_present: see Score.
    """

    thresholds: Mapping[str, float]
    scores: Mapping[str, Score]
    windows: int
    characters_seen: int
    characters_present: int

    @property
    def cache_entries(self) -> int:
        """For how many ordinary texts these scores count in the cache."""
        windows = sum(len(score.window_items) for score in self.scores.values())
        return 1 + len(self.scores) // SCORES_PER_ENTRY + windows // WINDOWS_PER_ENTRY


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
        self._name_pairs = frozenset[tuple[str, str]]().union(*(artifact.name_pairs for artifact in artifacts.values()))
        self._known_buckets = np.ones(ngrams.BUCKETS, dtype=bool)
        # Artifacts of one fit share the array, so that a thousand of them are one.
        for artifact in {id(artifact.arrays["documents"]): artifact for artifact in artifacts.values()}.values():
            self._known_buckets &= artifact.known_buckets
        self._subjects = {name: artifact.subjects for name, artifact in artifacts.items()}
        self._names = NameMatcher(self._subjects)
        self._cache: TextLRU[_TextScores] = TextLRU(CACHED_TEXTS, lambda scores: scores.cache_entries)
        self._shared_thresholds: dict[frozenset[tuple[str, float]], Mapping[str, float]] = {}
        self._last_thresholds: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})

    def _is_known_word(self, word: str) -> bool:
        return bool(self._known_buckets[ngrams.word_bucket(word)])

    def judge(self, texts: Sequence[str], *, thresholds: Mapping[str, float] | None = None) -> dict[str, Score]:
        """One Score for each artifact. Texts without a word score 0; work is linear in the texts' length.

        thresholds: artifact → the score from which a window's forget items are reported (Score.window_items).
        The texts are judged in their order, and long ones in chunks; the scores of each are cached at once.
        Raises WorkExceeded or WorkCancelled where a limit is in force (`classifier/work_limit.py`): no text is passed
        over.
        """
        thresholds = self._share_thresholds(thresholds or {})
        scored = {text: self._scores_of(text, thresholds) for text in dict.fromkeys(texts)}
        return self._combine([scored[text] for text in texts], thresholds)

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

    def _scores_of(self, text: str, thresholds: Mapping[str, float]) -> _TextScores:
        """The scores of one text by itself, from the cache if it has them."""
        known = self._cache.get(text)
        if known is not None and known.thresholds == thresholds:
            return known
        check_work()
        chunks = chunks_of(text)
        if len(chunks) == 1:
            scores = self._score_one_text(text, thresholds)
        else:
            parts = [self._scores_of(chunk.text, thresholds) for chunk in chunks]
            scores = _combine_chunks(text, chunks, parts, thresholds)
        self._cache.put(text, scores)
        return scores

    def _score_one_text(self, text: str, thresholds: Mapping[str, float]) -> _TextScores:
        segments = segment_text(text, self._encoder, self._vocabulary, self._is_known_word, self._name_pairs)
        check_work()
        named = named_windows(segments, self._names, self._subjects) if segments.places else {}
        selected = self._prefilter.select_windows(segments, named) if segments.places else {}
        # A window that several artifacts need is encoded once.
        union = _WindowUnion(segments, selected)
        windows = list(dict.fromkeys(union.texts))
        vectors = encode_windows(windows, self._encoder)
        number = {text: i for i, text in enumerate(windows)}
        scores = {}
        for name, windows_of_name in selected.items():
            check_work()
            numbers = windows_of_name.numbers
            window_texts = [union.texts[i] for i in np.searchsorted(union.numbers, numbers)]
            window_vectors = vectors[[number[text] for text in window_texts]]
            scorer = self._scorer(name)
            words = segments.document.distinct_words(segments.first[numbers], segments.last[numbers])
            scored = scorer.score_windows(
                window_texts, words, windows_of_name.lexical, window_vectors, windows_of_name.allowed
            )
            if name in named:
                scored = scored.with_names(numbers, named[name], windows_of_name.allowed)
            scores[name] = _artifact_score(scorer, segments, numbers, window_texts, scored, thresholds.get(name))
        return _TextScores(
            thresholds, scores, len(segments.places), segments.covered_characters, segments.total_characters
        )

    def _scorer(self, name: str) -> ArtifactScorer:
        if name not in self._scorers:
            self._scorers[name] = ArtifactScorer(self._artifacts[name], self._prefilter.matcher(name))
        return self._scorers[name]


@lru_cache(maxsize=8)
def _shared_vocabulary(vocabulary: frozenset[str]) -> frozenset[str]:
    """One object for equal vocabularies: tables made for one are found by it, and comparing all words takes time."""
    return vocabulary


class _WindowUnion:
    """The windows of a text that any artifact's prefilter selected: numbers, rising, and texts."""

    def __init__(self, segments: TextSegments, selected: Mapping[str, SelectedWindows]) -> None:
        numbers = [selection.numbers for selection in selected.values()]
        self.numbers = np.unique(np.concatenate(numbers)) if numbers else np.zeros(0, dtype=np.int64)
        self.texts = [segments.text(int(number)) for number in self.numbers]


def encode_windows(texts: Sequence[str], encoder: Encoder) -> NDArray[np.float32]:
    """(N, D) embeddings; zero for a long text without any language, which the n-grams judge alone.

    Encoding is most of the work. Random letters and encoded pictures have several times the word pieces of language,
    and their embeddings mean nothing.
    """
    vectors = np.zeros((len(texts), encoder.width), dtype=np.float32)
    if not texts:
        return vectors
    readable = [
        i for i, text in enumerate(texts) if len(text) < MIN_LANGUAGE_CHARACTERS or language_model.is_readable(text)
    ]
    vectors[readable] = encoder.encode_cached([texts[i] for i in readable])
    return vectors


def default_threshold(artifact: Artifact) -> float:
    """The score from which a policy without a threshold of its own flags.

    That for DEFAULT_MISS_RATE; of few items (FEW_ITEMS), within DEFAULT_THRESHOLDS, since the rate's threshold then
    says more about the rewordings that are made by rule than about people's. Where only facts are to be forgotten, at
    least FACTS_THRESHOLD.
    """
    wanted = threshold(artifact, miss_rate=DEFAULT_MISS_RATE)
    if artifact.subjects and all(subject.scope == "facts" for subject in artifact.subjects):
        return max(wanted, FACTS_THRESHOLD)
    lowest, highest = DEFAULT_THRESHOLDS if len(artifact.live_items) < FEW_ITEMS else (0.0, 1.0)
    return min(max(wanted, lowest), highest)


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


def _artifact_score(
    scorer: ArtifactScorer,
    segments: TextSegments,
    numbers: NDArray[np.int64],
    texts: Sequence[str],
    scored: ScoredWindows,
    threshold: float | None,
) -> Score:
    """The Score of one text for one artifact, from its scored windows: their numbers, texts and scores."""
    probability, components = scored.probability, scored.components
    # Highest, since a NaN score counts as flagged.
    order = np.nan_to_num(probability, nan=np.inf)
    index_of = {int(number): i for i, number in enumerate(numbers)}
    scored_places = (place for place in segments.places if place.window in index_of)
    best = max(scored_places, key=lambda place: order[index_of[place.window]])
    best_index = index_of[best.window]
    contributions = scorer.fusion.contributions(components[best_index : best_index + 1])[0]
    # `not <` in place of `>=`: a NaN score counts as flagged.
    flagged = [] if threshold is None else [int(i) for i in np.argsort(-order) if not probability[i] < threshold]
    reported = dict.fromkeys([best_index, *flagged[:MAX_FLAGGED_WINDOWS]])
    items = [scorer.nearest_items(texts[i], scored.cosines[i], scored.compared[i]) for i in reported]
    return Score(
        score=float(probability[best_index]),
        text=0,
        view=segments.view_name(best),
        window=segments.raw_span(best),
        words_logit=float(components[best_index, 0] + components[best_index, 1]),
        embedding_logit=float(components[best_index, 2]),
        cosine=float(scored.cosines[best_index].max()),
        decided_by=_decided_by(scored, best_index, contributions.tolist()),
        text_scores=(float(probability[best_index]),),
        window_items=tuple(items)[:MAX_FLAGGED_WINDOWS],
        characters_seen=segments.covered_characters,
        characters_present=segments.total_characters,
        windows=len(segments.places),
        group=_group_of(segments, best),
    )


def _decided_by(scored: ScoredWindows, window: int, contributions: Sequence[float]) -> str:
    if scored.by_name[window]:
        return "name"
    return "both" if scored.by_added[window] else deciding_components(contributions)


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
        words_logit=0.0,
        embedding_logit=0.0,
        cosine=0.0,
        decided_by="lexical",
        text_scores=(0.0,) * len(parts),
        window_items=(),
        characters_seen=sum(part.characters_seen for part in parts),
        characters_present=sum(part.characters_present for part in parts),
        windows=sum(part.windows for part in parts),
    )


def _combine_texts(name: str, parts: Sequence[_TextScores], zero: Score, threshold: float | None) -> Score:
    """The Scores of several texts for one artifact as one."""
    scores = [part.scores.get(name, zero) for part in parts]
    values = [score.score for score in scores]
    order = np.nan_to_num(values, nan=np.inf)
    ranked = sorted(range(len(parts)), key=lambda i: -order[i])
    best = ranked[0]
    # `not <` in place of `>=`: a NaN score counts as flagged.
    also_flagged = [i for i in ranked[1:] if threshold is not None and not values[i] < threshold]
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


def _combine_chunks(
    text: str, chunks: Sequence[Chunk], parts: Sequence[_TextScores], thresholds: Mapping[str, float]
) -> _TextScores:
    """The scores of a text of several chunks."""
    scores = {}
    for name in dict.fromkeys(name for part in parts for name in part.scores):
        combined = _combine_texts(name, parts, _zero_score(parts), thresholds.get(name))
        start = chunks[combined.text].start
        scores[name] = replace(
            combined,
            text=0,
            window=(combined.window[0] + start, combined.window[1] + start),
            text_scores=(combined.score,),
            group="long" if combined.group == "short" else combined.group,
        )
    # Chunks overlap: their characters are counted once.
    present = sum(map(len, text.split()))
    unseen = sum(part.characters_present - part.characters_seen for part in parts)
    return _TextScores(thresholds, scores, sum(part.windows for part in parts), max(present - unseen, 0), present)
