"""Texts in, one score per artifact out: one pass over views, windows and encoder for all artifacts.

Knows no threshold and no action: those are policy. Primitives: `Judge.judge`, `threshold`, `evidence`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from classifier import conformal, language, ngrams
from classifier.additions import Added, Veto
from classifier.artifact import Artifact
from classifier.encoder import Encoder
from classifier.evidence import evidence as evidence
from classifier.fusion import Fusion, decided_by
from classifier.matching import Matcher, Targets
from classifier.retrieval import ItemWords, nearest
from classifier.views import views
from classifier.windows import cover, inner

# So many windows that ask for something forgotten are no question any more; who gets this many must act on it.
MOST_ASKED = 128
# Of short windows inside others so many are encoded, those whose words say most.
MOST_CLOSER = 8
# Characters of a window from which on it is encoded only if some language is in it.
SURELY_ENCODED = 160


@dataclass(frozen=True)
class Score:
    """How strongly some texts ask for what one artifact is to forget, and where.

    score: fused probability, the maximum over texts, views and windows. text, view, window: where it stands
    (number of the text, name of the view, raw characters). lexical, head, cosine: the components there;
    lexical and head are logits. decided_by: "lexical", "semantic" or "both". text_scores: each text's own
    maximum. asked: for the best window, and for every other that reached the level asked about, the numbers of
    the forget items most likely meant, best first; the best window first, at most MOST_ASKED. tokens_seen of
    the tokens_present word pieces were judged, in this many `windows`. group: of the deciding text, see
    `conformal.GROUPS`.
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
    tokens_seen: int
    tokens_present: int
    windows: int
    group: str = "short"

    @property
    def nearest(self) -> tuple[int, ...]:
        """The forget items that the best window most likely means, best first."""
        return self.asked[0] if self.asked else ()


@dataclass(frozen=True)
class _Place:
    text: int
    view: str
    span: tuple[int, int]
    row: int
    closer: bool = False


@dataclass(frozen=True)
class _Reading:
    """All windows of some texts; equal ones share a row of `distinct`."""

    places: list[_Place]
    distinct: list[str]
    seen: int
    present: int


@dataclass(frozen=True)
class ScoredRows:
    """probability: (N,); components: (N, 4) raw, of the fit; cosines: (N, R + A) to the index rows of the fit and
    those added; by_added: (N,) whether an added item decided."""

    probability: NDArray[np.float64]
    components: NDArray[np.float64]
    cosines: NDArray[np.float32]
    by_added: NDArray[np.bool_]

    def and_also(self, other: ScoredRows) -> ScoredRows:
        """The rows of both."""
        mine, theirs = vars(self), vars(other)
        return ScoredRows(**{name: np.concatenate([mine[name], theirs[name]]) for name in mine})


class _Grams:
    """Texts and their n-grams."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.word, self.character = ngrams.word_rows(texts), ngrams.character_rows(texts)

    def part(self, rows: NDArray[np.int64]) -> _Grams:
        return _Grams([self.texts[i] for i in rows])


class Scorer:
    """One artifact, ready to score rows."""

    def __init__(self, artifact: Artifact) -> None:
        arrays = artifact.arrays
        self.word = arrays["word_weights"].astype(np.float32)
        self.character = arrays["character_weights"].astype(np.float32)
        self.head = arrays["head"]
        self.index = arrays["index"].astype(np.float32)
        self.index_items = arrays["index_items"]
        centre, scale, weight = arrays["fusion"]
        self.fusion = Fusion(centre, scale, weight, float(arrays["intercept"][0]))
        self.item_words = ItemWords(artifact.items)
        names = ("ordinary", "starts", "buckets", "shares")
        self._matcher = Matcher(Targets(*(arrays[f"targets_{name}"] for name in names)))
        self._added = Added(arrays)
        self._veto = Veto(artifact)
        self._row_items = np.concatenate([self.index_items, self._added.items])

    def promising(self, grams: _Grams) -> NDArray[np.int64]:
        """At most MOST_CLOSER rows whose words alone speak for a forget request, the strongest first."""
        lexical = np.stack([grams.word.dot(self.word), grams.character.dot(self.character)], axis=1)
        given = self.fusion.contributions(np.pad(lexical, ((0, 0), (0, 2))))[:, :2].sum(axis=1)
        strongest = np.argsort(-given, kind="stable")[:MOST_CLOSER]
        return np.asarray(strongest[~(given[strongest] <= 0)], dtype=np.int64)

    def rows(self, grams: _Grams, vectors: NDArray[np.float32]) -> ScoredRows:
        """Scores of N rows, given as texts with their n-grams, and as embeddings."""
        texts = grams.texts
        cosines = vectors @ self.index.T
        match = self._matcher.best(texts, cosines)
        parts = [grams.word.dot(self.word), grams.character.dot(self.character), vectors @ self.head, match]
        components = np.stack(parts, axis=1).astype(np.float64)
        fitted = np.where(self._veto(texts, cosines), 0.0, self.fusion.probability(components))
        near = self._added.cosines(vectors)
        added = self._added.probability(texts, near)
        cosines[:, self._veto.removed] = -1.0
        # Not np.fmax: a score that is no number has to stay one.
        return ScoredRows(np.maximum(fitted, added), components, np.hstack([cosines, near]), added > fitted)

    def asked(self, text: str, cosines: NDArray[np.float32]) -> tuple[int, ...]:
        """The items that a row most likely means, best first."""
        return nearest(cosines, self._row_items, self.item_words.overlap(text))


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
        self._scorers = {name: Scorer(artifact) for name, artifact in artifacts.items()}
        self._encoder = encoder
        self._vocabulary = frozenset[str]().union(*(artifact.prompt_words for artifact in artifacts.values()))
        self._familiar = np.ones(ngrams.BUCKETS, dtype=bool)
        for artifact in artifacts.values():
            self._familiar &= artifact.familiar

    def _is_familiar(self, word: str) -> bool:
        return bool(self._familiar[ngrams.word_bucket(word)])

    def judge(self, texts: Sequence[str], *, levels: Mapping[str, float] | None = None) -> dict[str, Score]:
        """One Score per artifact. Texts without a word score 0; work is linear in the texts' length.

        levels: artifact → the score from which a window's own forget items are wanted (Score.asked).
        """
        reading, closer = read(texts, self._encoder, self._vocabulary, self._is_familiar)
        if not reading.places:
            return {name: _nothing(len(texts)) for name in self._scorers}
        grams = _Grams(reading.distinct)
        vectors = encode(reading.distinct, self._encoder)
        inside = _Grams(closer.distinct)
        chosen = {name: scorer.promising(inside) for name, scorer in self._scorers.items()}
        # What several artifacts look at closer is encoded once.
        union = np.unique(np.concatenate(list(chosen.values()))) if chosen else np.zeros(0, dtype=np.int64)
        inner_vectors = encode(inside.part(union).texts, self._encoder)
        scores = {}
        for name, scorer in self._scorers.items():
            scored, seen = scorer.rows(grams, vectors), reading
            if len(rows := chosen[name]):
                seen = _together(reading, closer, rows)
                near = inner_vectors[np.searchsorted(union, rows)]
                scored = scored.and_also(scorer.rows(inside.part(rows), near))
            scores[name] = _score(scorer, seen, len(texts), scored, (levels or {}).get(name))
        return scores


def encode(texts: Sequence[str], encoder: Encoder) -> NDArray[np.float32]:
    """(N, D) embeddings; zero for a long text that no language is in, which the n-grams judge alone.

    Encoding is most of the work. Random letters and encoded pictures have several times the word pieces of
    language, and mean nothing to an encoder.
    """
    vectors = np.zeros((len(texts), encoder.width), dtype=np.float32)
    rows = [i for i, text in enumerate(texts) if len(text) < SURELY_ENCODED or language.readable(text)]
    vectors[rows] = encoder.encode([texts[i] for i in rows])
    return vectors


def read(
    texts: Sequence[str],
    encoder: Encoder,
    vocabulary: frozenset[str] = frozenset(),
    familiar: Callable[[str], bool] = lambda word: False,
) -> tuple[_Reading, _Reading]:
    """Every window of every view of the texts; and shorter windows inside those, for a closer look."""
    places: list[_Place] = []
    rows: dict[str, int] = {}
    inner_places: list[_Place] = []
    inner_rows: dict[str, int] = {}
    seen = present = 0
    for number, text in enumerate(texts):
        for view in views(text, vocabulary, familiar):
            covered = cover(view.text, encoder, changed=None if view.whole else view.changed)
            if view.name == "raw":
                seen, present = seen + covered.seen, present + covered.present
            for window in covered.windows:
                row = rows.setdefault(encoder.folded(window.text), len(rows))
                places.append(_Place(number, view.name, view.raw_span(window.start, window.end), row))
                for part in inner(view.text, window):
                    row = inner_rows.setdefault(encoder.folded(part.text), len(inner_rows))
                    inner_places.append(_Place(number, view.name, view.raw_span(part.start, part.end), row, True))
    return _Reading(places, list(rows), seen, present), _Reading(inner_places, list(inner_rows), 0, 0)


def _together(reading: _Reading, closer: _Reading, chosen: NDArray[np.int64]) -> _Reading:
    """A reading and the chosen rows of the closer look at it."""
    first = len(reading.distinct)
    number = {int(row): first + i for i, row in enumerate(chosen)}
    places = [replace(place, row=number[place.row]) for place in closer.places if place.row in number]
    distinct = [closer.distinct[i] for i in chosen]
    return replace(reading, places=[*reading.places, *places], distinct=[*reading.distinct, *distinct])


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
    reading: _Reading,
    texts: int,
    scored: ScoredRows,
    level: float | None,
) -> Score:
    probability, components = scored.probability, scored.components
    # A score that is no number is the highest: it counts as reached.
    order = np.nan_to_num(probability, nan=np.inf)
    maxima, highest = [0.0] * texts, [-1.0] * texts
    for place in reading.places:
        if order[place.row] > highest[place.text]:
            maxima[place.text], highest[place.text] = float(probability[place.row]), order[place.row]
    best = max(reading.places, key=lambda place: order[place.row])
    row = best.row
    contributions = scorer.fusion.contributions(components[row : row + 1])[0]
    # Not `>=`: a score that is no number has reached every level.
    rows = [] if level is None else [int(i) for i in np.argsort(-order) if not probability[i] < level]
    asked = (scorer.asked(reading.distinct[i], scored.cosines[i]) for i in dict.fromkeys([row, *rows[:MOST_ASKED]]))
    return Score(
        score=float(probability[row]),
        text=best.text,
        view=best.view,
        window=best.span,
        lexical=float(components[row, 0] + components[row, 1]),
        head=float(components[row, 2]),
        cosine=float(scored.cosines[row].max()),
        decided_by="both" if scored.by_added[row] else decided_by(contributions.tolist()),
        text_scores=tuple(maxima),
        asked=tuple(asked)[:MOST_ASKED],
        tokens_seen=reading.seen,
        tokens_present=reading.present,
        windows=len(reading.places),
        group=_group(reading, best),
    )


def _group(reading: _Reading, best: _Place) -> str:
    """The group (`conformal.GROUPS`) of the text that decided."""
    if best.view not in ("raw", "normalised"):
        return "disguised"
    windows = sum(p.text == best.text and p.view == "raw" and not p.closer for p in reading.places)
    return "short" if windows == 1 else "long"


def _nothing(texts: int) -> Score:
    return Score(0.0, 0, "raw", (0, 0), 0.0, 0.0, 0.0, "lexical", (0.0,) * texts, (), 0, 0, 0)
