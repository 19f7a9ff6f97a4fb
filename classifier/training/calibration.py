"""From held-out component scores to a fused probability, calibration arrays, and the prefilter's threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.classifier import conformal, fusion, prefilter
from lethe.classifier.fusion import Fusion
from lethe.classifier.index import similarity
from lethe.classifier.text import ngrams
from lethe.classifier.training import logistic_regression
from lethe.classifier.training.rows import Corpus, TrainingRow

# L2 penalty on the distance of the fusion's weights from `fusion.PRIOR`, per unit of mean log-loss. Chosen: with the
# demo's 10,000 held-out rows, weights move where the rows are clear, and stay near the prior where they aren't.
FUSION_PENALTY = 0.05
# Smallest standard deviation of a component: avoids dividing by zero where all scores are equal.
MIN_SCALE = 1e-6
# Miss rates at which the manifest reports held-out rates, where the calibration set is large enough. The demo's
# policies use the first.
REPORTED_MISS_RATES = (0.005, 0.01, 0.02)
# Log-odds (natural log units) by which the prefilter's threshold is below the lowest calibrating text: people's own
# rewordings share less with the prompt than rule-made ones. Measured: 93.6 % of other prompts need no encoder then, for
# 2 of 10,000 paraphrases that are missed (docs/benchmarks/2026-11-21-judging.md).
PREFILTER_MARGIN = 0.75
# A retain request with a higher held-out probability is not put on the allowlist: it surely asks for a forget item.
# Chosen: well above any threshold in use.
MAX_ALLOWLIST_PROBABILITY = 0.9

CALIBRATION = (
    "calibration set: held-out scores; forget = rule-made rewordings of the forget prompts, some inside other "
    "sentences, scored by models that weren't trained on that rewording (the prompt itself is known to them); "
    "other = retain and background prompts, scored by models that weren't trained on them nor on their neighbours "
    "in the file. The promise is about such rewordings of these items, on the average over the items"
)
CALIBRATION_OF_SAMPLE = (
    "calibration set: held-out scores; forget = rule-made rewordings of {} of the forget prompts, drawn at random, "
    "some inside other sentences, scored by models that weren't trained on any rewording of that prompt{}; other = "
    "retain and background prompts, scored by models that weren't trained on them nor on their neighbours in the file. "
    "The promise is about such rewordings of the items, on the average over the items"
)

Vector = NDArray[np.float64]


def fit_fusion(rows: Sequence[TrainingRow], components: Vector) -> Fusion:
    """The fusion of held-out components (N, 4): standardised with both classes weighted equally, then logistic."""
    labels = np.array([row.forget for row in rows])
    weights = np.array([row.weight for row in rows])
    balance = np.where(labels, weights / weights[labels].sum(), weights / weights[~labels].sum()) / 2
    centre = balance @ components
    scale = np.sqrt(balance @ (components - centre) ** 2) + MIN_SCALE
    x = (components - centre) / scale
    weight, intercept = logistic_regression.fit_logistic(
        x, labels, weights, penalty=FUSION_PENALTY, prior=np.array(fusion.PRIOR)
    )
    return Fusion(centre, scale, np.maximum(weight, 0), intercept)


def calibration_arrays(rows: Sequence[TrainingRow], probability: Vector) -> dict[str, NDArray[Any]]:
    """The arrays `calibration_*`: each text's highest held-out probability, its group and its item.

    rows: chunks of texts, with their probabilities (N,). Scores rise within each array.
    """
    texts: dict[int, tuple[float, TrainingRow]] = {}
    for p, row in zip(probability.tolist(), rows, strict=True):
        before = texts.get(row.source)
        texts[row.source] = (max(p, before[0]) if before else p, row)
    arrays: dict[str, NDArray[Any]] = {}
    for name, forget in (("calibration_forget", True), ("calibration_other", False)):
        ranked = sorted(((p, row) for p, row in texts.values() if row.forget == forget), key=lambda pair: pair[0])
        arrays[name] = np.array([p for p, _ in ranked])
        arrays[f"{name}_groups"] = np.array([row.group for _, row in ranked], dtype=np.int8)
        if forget:
            arrays[f"{name}_items"] = np.array([row.item for _, row in ranked], dtype=np.int32)
    return arrays


def allowed_requests(rows: Sequence[TrainingRow], probability: Vector) -> list[str]:
    """The retain requests for the allowlist: all whose held-out probability is low enough.

    rows: calibrating rows, with their probabilities (N,). A retain file is often made of past requests, and some of
    those may ask for a forget item in other words.
    """
    highest = _highest_by_text(rows, probability)
    return [row.text for row in rows if row.retained and highest[row.source] < MAX_ALLOWLIST_PROBABILITY]


def prefilter_scores(
    data: Corpus,
    fused: Fusion,
    targets: similarity.ForgetTexts,
    rows: Sequence[TrainingRow],
    components: Vector,
    *,
    has_cells: bool,
) -> dict[int, float]:
    """The prefilter's score of each calibrating forget text: that of its highest chunk, after the length margin.

    rows: calibrating forget rows, with held-out components (n, 4). The score is the log-odds contribution of the words
    plus the weighted share of rare words in common with a forget text: see `prefilter.py`.
    """
    texts = [row.text for row in rows]
    if has_cells:
        known = {word for item in data.items for word in ngrams.split_words(item.prompt)}
        words = similarity.hashed_known_words(texts, known)
    else:
        words = similarity.hashed_words(texts)
    matcher = similarity.ForgetTextMatcher(targets, min_idf_share=prefilter.MIN_IDF_SHARE)
    shared = matcher.max_shared_idf(words, len(rows))
    scores = fused.contributions(components)[:, :2].sum(axis=1) + prefilter.SHARED_WORDS_WEIGHT * shared
    scores -= prefilter.length_margin(np.array([len(text.split()) for text in texts]))
    return _highest_by_text(rows, scores)


def prefilter_threshold(
    data: Corpus,
    fused: Fusion,
    targets: similarity.ForgetTexts,
    rows: Sequence[TrainingRow],
    components: Vector,
    *,
    has_cells: bool,
) -> float:
    """The lowest prefilter score at which a window is encoded: PREFILTER_MARGIN below every calibrating text.

    Minus infinity for artifacts with documents: a question about a document may share no word with it. Parameters:
    see `prefilter_scores`.
    """
    if any(item.text for item in data.items):
        return -np.inf
    scores = prefilter_scores(data, fused, targets, rows, components, has_cells=has_cells)
    return min(scores.values()) - PREFILTER_MARGIN


def describe_calibration(data: Corpus) -> str:
    """What the calibration set is, and what it promises, for the manifest."""
    if data.reworded_items == len(data.items):
        return CALIBRATION
    unlearned = "" if data.learned_items == len(data.items) else ", nor on the prompt itself"
    return CALIBRATION_OF_SAMPLE.format(data.reworded_items, unlearned)


def measure_held_out(arrays: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """AUC, and the miss and false-alarm rates at REPORTED_MISS_RATES with 95 % Wilson intervals, all held out."""
    positive, negative = arrays["calibration_forget"], arrays["calibration_other"]
    below = np.searchsorted(positive, negative, side="left") + np.searchsorted(positive, negative, side="right")
    measured = {"held_out_auc": 1 - float(below.mean()) / (2 * len(positive))}
    for rate in REPORTED_MISS_RATES:
        try:
            threshold = conformal.threshold_by_group(
                conformal.threshold_for_miss_rate, positive, arrays["calibration_forget_groups"], rate, min
            )
        except ValueError:
            continue
        at = f"at_miss_rate_{rate}"
        measured[f"threshold_{at}"] = threshold
        for what, name, flagged in (
            ("missed", "calibration_forget", False),
            ("false_alarms", "calibration_other", True),
        ):
            hits, count = int(((arrays[name] >= threshold) == flagged).sum()), len(arrays[name])
            low, high = conformal.wilson_interval(hits, count)
            measured |= {f"{what}_{at}": hits / count, f"{what}_{at}_low": low, f"{what}_{at}_high": high}
    return measured


def _highest_by_text(rows: Sequence[TrainingRow], values: Vector) -> dict[int, float]:
    """The highest value of each text's rows, by the text's number (`TrainingRow.source`)."""
    highest: dict[int, float] = {}
    for row, value in zip(rows, values.tolist(), strict=True):
        highest[row.source] = max(value, highest.get(row.source, -np.inf))
    return highest
