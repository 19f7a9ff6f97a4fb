"""From forget and retain records to an artifact. Imports scipy; serving never imports this file.

Word, character and embedding models are logistic regressions. What is fused and calibrated are held-out
scores only: see `classifier/training/rows.py` for what is left out of what.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.classifier import conformal, fusion, prefilter, records
from lethe.classifier.artifact import Artifact, ForgetItem, Manifest
from lethe.classifier.encoder import cache
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.fusion import Fusion
from lethe.classifier.index import allowlist, ivf, similarity
from lethe.classifier.records import Record
from lethe.classifier.text import ngrams, vocabulary
from lethe.classifier.training import logistic_regression
from lethe.classifier.training import rows as corpus
from lethe.classifier.training.rows import Corpus, Row

WORD_PENALTY = 1e-4
CHARACTER_PENALTY = 1e-4
HEAD_PENALTY = 1e-3
FUSION_PENALTY = 0.05
REPORTED_MISS_RATES = (0.005, 0.01, 0.02)
SAME_MEANING = 0.75
SAME_AT_MOST = 0.02
HARD_FROM = 0.3
HARD_WEIGHT = 4.0
COUNTER_MOST = 4096
# More cosines than this aren't kept, but computed when they are asked for.
COSINES_KEPT = 1 << 28
# So many index texts are encoded, and so many index rows are compared, at once: bounds memory.
ENCODED_AT_ONCE = 1 << 14
INDEX_AT_ONCE = 2048
# Nats by which requests in people's own words may say less than the least telling rewording by rule.
GATE_MARGIN = 0.75
# A retain request that others' models find so likely to ask for something forgotten is judged like any other.
EXEMPT_BELOW = 0.9

CALIBRATION = (
    "calibration set: held-out scores; forget = rule-made rewordings of the forget prompts, some inside other "
    "sentences, scored by models that weren't trained on that rewording (the prompt itself is known to them); "
    "other = retain and background prompts, scored by models that weren't trained on them nor on their neighbours "
    "in the file. The promise is about such rewordings of these items, on the average over the items"
)

CALIBRATION_DRAWN = (
    "calibration set: held-out scores; forget = rule-made rewordings of {} of the forget prompts, drawn at random, "
    "some inside other sentences, scored by models that weren't trained on any rewording of that prompt{}; other = "
    "retain and background prompts, scored by models that weren't trained on them nor on their neighbours in the file. "
    "The promise is about such rewordings of the items, on the average over the items"
)

Progress = Callable[[str, int, int], None]
Vector = NDArray[np.float64]


def fit(
    forget: Sequence[Record],
    retain: Sequence[Record] | None,
    *,
    encoder: Encoder,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Artifact:
    """Learn to tell requests for the `forget` rows from others; the shipped background is always "other".

    `progress` is called with (stage, done, total). Deterministic for equal rows, encoder and seed. Raises
    ValueError for an empty forget list and malformed rows.
    """
    if not forget:
        raise ValueError("nothing to forget: no rows")
    forget = [records.check(row, f"forget row {i}") for i, row in enumerate(forget, start=1)]
    retain = [records.check(row, f"retain row {i}") for i, row in enumerate(retain or (), start=1)]
    data = corpus.build(forget, retain, encoder, np.random.default_rng(seed))
    index = _index(encoder, data.index_texts, progress)
    cells: dict[str, NDArray[Any]] = {}
    if len(index) > ivf.CELLS_FROM:
        order, cells["cell_starts"], cells["cell_centres"] = ivf.arranged(index, np.random.default_rng(seed))
        texts, owners = [data.index_texts[i] for i in order], [data.index_items[i] for i in order]
        index, data = index[order], replace(data, index_texts=tuple(texts), index_items=tuple(owners))
    features = _Features(data, encoder, index, cells, progress)
    progress("models", 0, corpus.FOLDS + 1)
    words, counts = vocabulary.collect(*_word_texts(data.items, retain))
    vectors = _encode(encoder, words, "words", progress).astype(np.float16)
    folds = corpus.folds(data.rows)
    held = np.zeros((len(data.rows), 4))
    for fold in range(corpus.FOLDS):
        held[folds == fold, :3] = features.scores(features.train(folds != fold), folds == fold)
        held[folds == fold, 3] = features.match(folds != fold, folds == fold)
        progress("models", fold + 1, corpus.FOLDS + 1)
    final = features.train(np.ones(len(folds), dtype=bool))
    progress("models", corpus.FOLDS + 1, corpus.FOLDS + 1)
    fusing = [i for i, row in enumerate(data.rows) if (row.calibrates or row.decoy) and features.kept[i]]
    fused = _fuse([data.rows[i] for i in fusing], held[fusing])
    calibrating = [i for i in fusing if data.rows[i].calibrates]
    chosen, components = [data.rows[i] for i in calibrating], held[calibrating]
    probability = fused.probability(components)
    calibration = _calibration(chosen, probability)
    positive, negative = calibration["calibration_forget"], calibration["calibration_other"]
    logits = fused.logit(held[fusing])
    other = ~features.labels[fusing]
    known = features.labels[fusing] & (features.weights[fusing] > 0)
    level = similarity.levels((held[fusing, 3][other], logits[other]), (held[fusing, 3][known], logits[known]))
    exempt = allowlist.digests(_exempt(chosen, probability), besides=[item.prompt or item.text for item in data.items])
    asking = [i for i in calibrating if data.rows[i].forget]
    everything = np.ones(len(folds), dtype=bool)
    targets = features.targets(everything)
    arrays: dict[str, NDArray[Any]] = {
        "word_weights": final[0],
        "character_weights": final[1],
        "head": final[2],
        "index": index,
        "index_items": np.array(data.index_items, dtype=np.int32),
        "fusion": np.stack([fused.centre, fused.scale, fused.weight]),
        "intercept": np.array([fused.intercept]),
        **calibration,
        "targets_ordinary": targets.ordinary,
        "targets_starts": targets.starts,
        "targets_buckets": targets.buckets,
        "targets_shares": targets.shares,
        "counter": features.counter(everything),
        "documents": features.documents,
        "levels": np.stack([level.matches, level.logits]),
        "retained": exempt,
        "gate": np.array([_gate(data, fused, targets, asking, held[asking], many=bool(cells))]),
        "added_index": np.zeros((0, encoder.width), dtype=np.int16),
        "added_items": np.zeros(0, dtype=np.int32),
        "added_ordinary": np.zeros(0),
        "added_starts": np.zeros(1, dtype=np.int64),
        "added_buckets": np.zeros(0, dtype=np.int32),
        "added_shares": np.zeros(0, dtype=np.float32),
        "removed_items": np.zeros(0, dtype=np.int32),
        "word_vectors": vectors,
        "word_counts": np.array(counts, dtype=np.int32),
        **cells,
    }
    manifest = Manifest(
        encoder_name=encoder.name,
        encoder_hash=encoder.hash,
        encoder_width=encoder.width,
        data_hash=hashlib.sha256(json.dumps([forget, retain]).encode()).hexdigest(),
        seed=seed,
        counts={
            "forget_items": len(data.items),
            "retain_rows": data.retain_rows,
            "retain_rows_that_are_forget_rows": data.conflicts,
            "retain_rows_exempt": len(exempt),
            "background_prompts": len(corpus.background()),
            "calibration_forget": len(positive),
            "calibration_other": len(negative),
        },
        calibration=_calibration_set(data),
        measured=_measure(calibration),
    )
    return Artifact(manifest, arrays, data.items, words)


class _Features:
    """The rows of a corpus as matrices, and models trained on some of them."""

    def __init__(
        self,
        data: Corpus,
        encoder: Encoder,
        index: NDArray[np.float16],
        cells: Mapping[str, NDArray[Any]],
        progress: Progress,
    ) -> None:
        """cells: how the index is laid out, where it is searched (`classifier/index/ivf.py`); empty otherwise."""
        self._texts = [row.text for row in data.rows]
        self._index = index if cells else index.astype(np.float32)
        self.labels = np.array([row.forget for row in data.rows])
        self.encoded = np.array([row.encoded for row in data.rows])
        self.word: Any = logistic_regression.matrix(ngrams.word_rows(self._texts))
        self.character: Any = logistic_regression.matrix(ngrams.character_rows(self._texts))
        self.vectors = _row_vectors(data.rows, encoder, progress).astype(np.float64)
        self._whole: NDArray[np.float32] | None = None
        if len(data.rows) * len(index) <= COSINES_KEPT:
            self._whole = self.vectors.astype(np.float32) @ self._index.T
            self._highest = self._whole.max(axis=1)
        else:
            # Of forget rows nobody asks.
            self._highest = np.zeros(len(data.rows), dtype=np.float32)
            self._highest[~self.labels] = _highest_cosines(self.vectors[~self.labels], self._index)
        cosine = self._highest
        general = np.array([row.general for row in data.rows])
        # What the background shares with the forget set by chance is no counter-example.
        # By rank too: to some encoders everything is alike.
        same = max(SAME_MEANING, float(np.quantile(cosine[general], 1 - SAME_AT_MOST)))
        self.kept = ~(general & (cosine > same))
        # Hard negatives: the nearer a counter-example is, the more it weighs.
        hard = np.where(self.labels, 0.0, np.clip((cosine - HARD_FROM) / (1 - HARD_FROM), 0, 1))
        self.weights = np.array([row.weight for row in data.rows]) * (1 + HARD_WEIGHT * hard)
        occurring = [row.calibrates and not row.wrapped and not row.forget for row in data.rows]
        self._counters = np.array(occurring) & self.kept
        asked = [text for text, occurs in zip(self._texts, self._counters, strict=True) if occurs]
        self.documents = similarity.count_documents([*asked, *data.index_texts])
        counter = self.counter(np.ones(len(data.rows), dtype=bool))
        self._targets = similarity.targets(data.index_texts, self._index, counter, self.documents)
        self._search: ivf.Search | None = None
        if cells:
            arrays = {**cells, "index": index, "targets_ordinary": self._targets.ordinary}
            telling = similarity.Matcher(self._targets, least=prefilter.LEAST_SHARE)
            self._search = ivf.Search(arrays, telling, np.zeros(len(index), dtype=bool))

    def counter(self, use: NDArray[np.bool_]) -> NDArray[np.float16]:
        """Embeddings of the counter-examples among the rows `use`, at most COUNTER_MOST, the nearest first."""
        rows = np.flatnonzero(self._counters & use)
        nearest = rows[np.argsort(-self._highest[rows], kind="stable")[:COUNTER_MOST]]
        return self.vectors[nearest].astype(np.float16)

    def targets(self, use: NDArray[np.bool_]) -> similarity.Targets:
        """The index rows, made ready against the counter-examples among the rows `use`."""
        return replace(self._targets, ordinary=similarity.ordinary(self._index, self.counter(use)))

    def match(self, use: NDArray[np.bool_], rows: NDArray[np.bool_]) -> Vector:
        """(n,) match scores of the chosen rows, by targets that know only the rows `use`; answers match nothing."""
        targets, words = self.targets(use), similarity.row_words([self._texts[i] for i in np.flatnonzero(rows)])
        if self._whole is not None:
            return similarity.Matcher(targets).best(words, self._whole[rows])
        vectors = self.vectors[rows].astype(np.float32)
        found = np.zeros(len(vectors))
        # Rows that are searched for have nothing in common; others are compared with everything anyway.
        every = None if self._search else similarity.Matcher(targets)
        step = 1 if self._search else max(COSINES_KEPT // len(self._index) // 4, 1)
        for start in range(0, len(vectors), step):
            part = slice(start, min(start + step, len(vectors)))
            some = similarity.some_words(words, part)
            if self._search:
                near = self._search.candidates(vectors[part], some)
                matcher, index = similarity.Matcher(targets.some(near)), self._index[near].astype(np.float32)
            else:
                assert every
                matcher, index = every, self._index.astype(np.float32, copy=False)
            found[part] = matcher.best(some, vectors[part] @ index.T)
        return found

    def train(self, use: NDArray[np.bool_]) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.float32]]:
        """Weights of the word, the character and the embedding model, trained on the rows `use`."""
        use = use & self.kept
        encoded = use & self.encoded
        parts = []
        for x, rows, penalty in (
            (self.word, use, WORD_PENALTY),
            (self.character, use, CHARACTER_PENALTY),
            (self.vectors, encoded, HEAD_PENALTY),
        ):
            parts.append(
                logistic_regression.logistic(x[rows], self.labels[rows], self.weights[rows], penalty=penalty)[0]
            )
        # Rounded before anything is calibrated on them, so that a loaded artifact scores as a fresh one.
        return parts[0].astype(np.float16), parts[1].astype(np.float16), parts[2].astype(np.float32)

    def scores(self, models: tuple[NDArray[Any], ...], rows: NDArray[np.bool_]) -> Vector:
        """(n, 3) raw scores of the chosen rows."""
        matrices = (self.word, self.character, self.vectors)
        return np.column_stack([x[rows] @ w.astype(np.float64) for x, w in zip(matrices, models, strict=True)])


def _row_vectors(rows: Sequence[Row], encoder: Encoder, progress: Progress) -> NDArray[np.float32]:
    """(N, D) embeddings; zeros for rows that have none. What every fit shares comes from the cache."""
    vectors = np.zeros((len(rows), encoder.width), dtype=np.float32)
    shared = [i for i, row in enumerate(rows) if row.encoded and row.shared]
    own = [i for i, row in enumerate(rows) if row.encoded and not row.shared]

    def report(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(stage, done, total)

    vectors[shared] = cache.embeddings([rows[i].text for i in shared], encoder, report("background"))
    vectors[own] = encoder.encode([rows[i].text for i in own], report("prompts"))
    return vectors


def _index(encoder: Encoder, texts: Sequence[str], progress: Progress) -> NDArray[np.float16]:
    """(R, D) embeddings of the index texts, some at a time: the tokenizer takes kilobytes for each."""
    vectors = np.zeros((len(texts), encoder.width), dtype=np.float16)
    for start in range(0, len(texts), ENCODED_AT_ONCE):

        def report(done: int, _: int, start: int = start) -> None:
            progress("index", start + done, len(texts))

        vectors[start : start + ENCODED_AT_ONCE] = encoder.encode(texts[start : start + ENCODED_AT_ONCE], report)
    return vectors


def _highest_cosines(vectors: Vector, index: NDArray[np.floating]) -> NDArray[np.float32]:
    """(N,) of each unit row, the highest cosine to the rows of an index that is too large for all cosines at once."""
    rows, highest = vectors.astype(np.float32), np.full(len(vectors), -1.0, dtype=np.float32)
    for start in range(0, len(index), INDEX_AT_ONCE):
        part = index[start : start + INDEX_AT_ONCE].astype(np.float32)
        np.maximum(highest, (rows @ part.T).max(axis=1), out=highest)
    return highest


def _encode(encoder: Encoder, texts: Sequence[str], stage: str, progress: Progress) -> NDArray[np.float32]:
    return encoder.encode(texts, lambda done, total: progress(stage, done, total))


def _fuse(rows: Sequence[Row], components: Vector) -> Fusion:
    labels = np.array([row.forget for row in rows])
    weights = np.array([row.weight for row in rows])
    balance = np.where(labels, weights / weights[labels].sum(), weights / weights[~labels].sum()) / 2
    centre = balance @ components
    scale = np.sqrt(balance @ (components - centre) ** 2) + 1e-6
    x = (components - centre) / scale
    weight, intercept = logistic_regression.logistic(
        x, labels, weights, penalty=FUSION_PENALTY, prior=np.array(fusion.PRIOR)
    )
    return Fusion(centre, scale, np.maximum(weight, 0), intercept)


def _calibration(rows: Sequence[Row], probability: Vector) -> dict[str, NDArray[Any]]:
    """Held-out scores of the texts that the rows are windows of: each text's highest, its group and its item."""
    texts: dict[int, tuple[float, Row]] = {}
    for p, row in zip(probability.tolist(), rows, strict=True):
        known = texts.get(row.source)
        texts[row.source] = (max(p, known[0]) if known else p, row)
    arrays: dict[str, NDArray[Any]] = {}
    for name, forget in (("calibration_forget", True), ("calibration_other", False)):
        found = sorted(((p, row) for p, row in texts.values() if row.forget == forget), key=lambda pair: pair[0])
        arrays[name] = np.array([p for p, _ in found])
        arrays[f"{name}_groups"] = np.array([row.group for _, row in found], dtype=np.int8)
        if forget:
            arrays[f"{name}_items"] = np.array([row.item for _, row in found], dtype=np.int32)
    return arrays


def _highest(rows: Sequence[Row], values: Vector) -> dict[int, float]:
    """Of each text that the rows are windows of, the highest value."""
    found: dict[int, float] = {}
    for row, value in zip(rows, values.tolist(), strict=True):
        found[row.source] = max(value, found.get(row.source, -np.inf))
    return found


def _exempt(rows: Sequence[Row], probability: Vector) -> list[str]:
    """The retain requests that are never flagged as they stand: all but those that surely ask for what is forgotten.

    rows: those that calibrate, with held-out probabilities. Retain files are often made of what was asked before, and
    that may be what is to be forgotten, in other words.
    """
    highest = _highest(rows, probability)
    return [row.text for row in rows if row.retained and highest[row.source] < EXEMPT_BELOW]


def _gate(
    data: Corpus,
    fused: Fusion,
    targets: similarity.Targets,
    asking: Sequence[int],
    components: Vector,
    *,
    many: bool,
) -> float:
    """What the words of a window must say at least, for an encoder to be asked (`classifier/prefilter.py`).

    asking: the forget rows that calibrate, with their held-out components. Each text of theirs passes with one of its
    windows, and by a margin.
    """
    if any(item.text for item in data.items):
        return -np.inf
    texts = [data.rows[i].text for i in asking]
    if many:
        known = {word for item in data.items for word in ngrams.words(item.prompt)}
        words = similarity.known_words(texts, known)
    else:
        words = similarity.row_words(texts)
    shared = similarity.Matcher(targets, least=prefilter.LEAST_SHARE).most_shared(words, len(asking))
    said = fused.contributions(components)[:, :2].sum(axis=1) + prefilter.SHARED_WEIGHT * shared
    said -= prefilter.margin(np.array([len(text.split()) for text in texts]))
    return min(_highest([data.rows[i] for i in asking], said).values()) - GATE_MARGIN


def _calibration_set(data: Corpus) -> str:
    if data.reworded == len(data.items):
        return CALIBRATION
    return CALIBRATION_DRAWN.format(
        data.reworded, "" if data.known == len(data.items) else ", nor on the prompt itself"
    )


def _measure(arrays: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Held-out rates at the thresholds of REPORTED_MISS_RATES that can be promised, with 95 % intervals."""
    positive, negative = arrays["calibration_forget"], arrays["calibration_other"]
    below = np.searchsorted(positive, negative, side="left") + np.searchsorted(positive, negative, side="right")
    measured = {"held_out_auc": 1 - float(below.mean()) / (2 * len(positive))}
    for rate in REPORTED_MISS_RATES:
        try:
            found = conformal.by_group(
                conformal.for_miss_rate, positive, arrays["calibration_forget_groups"], rate, min
            )
        except ValueError:
            continue
        at = f"at_miss_rate_{rate}"
        measured[f"threshold_{at}"] = found
        for what, name, flagged in (
            ("missed", "calibration_forget", False),
            ("false_alarms", "calibration_other", True),
        ):
            hits, count = int(((arrays[name] >= found) == flagged).sum()), len(arrays[name])
            low, high = conformal.wilson(hits, count)
            measured |= {f"{what}_{at}": hits / count, f"{what}_{at}_low": low, f"{what}_{at}_high": high}
    return measured


def _word_texts(items: Sequence[ForgetItem], retain: Sequence[Record]) -> tuple[list[str], list[str]]:
    forget = [item.answer or item.text for item in items]
    return forget, [r.get("answer") or r["text"] for r in retain] + list(corpus.background())
