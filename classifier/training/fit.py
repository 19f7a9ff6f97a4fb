"""From forget and retain records to an artifact. Imports scipy; serving never imports this file.

Word, character and embedding models are logistic regressions. They are trained once for each fold of the rows, without
it, and once on all rows. What is fused and calibrated are held-out scores only: `rows.py` says what is held out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.classifier import records
from lethe.classifier.artifact import Artifact, ForgetItem, Manifest
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.index import allowlist, ivf, match_calibration
from lethe.classifier.names.subject import Scope
from lethe.classifier.records import Record
from lethe.classifier.text import vocabulary
from lethe.classifier.training import calibration, stages
from lethe.classifier.training import rows as corpus
from lethe.classifier.training.background import word_embeddings
from lethe.classifier.training.features import Models, TrainingFeatures, embed_index, report_as
from lethe.classifier.training.rows import Corpus
from lethe.classifier.training.stages import Progress
from lethe.classifier.training.subjects import derive_subjects, given_subjects

Vector = NDArray[np.float64]


def fit(
    forget: Sequence[Record],
    retain: Sequence[Record] | None,
    *,
    encoder: Encoder,
    seed: int = 0,
    progress: Progress = stages.no_progress,
    names: Sequence[str] = (),
    scope: Scope | None = None,
) -> Artifact:
    """Learn to tell requests for the `forget` rows from others; the shipped background is always "other".

    names, scope: the subject's names, and its scope, for rows that state none.
    `progress` is called with (stage, done, total): see `stages.py`. Deterministic for equal rows, encoder and seed.
    Raises ValueError for an empty forget list and malformed rows.
    """
    if not forget:
        raise ValueError("nothing to forget: no rows")
    forget = [records.check_record(row, f"forget row {i}") for i, row in enumerate(forget, start=1)]
    retain = [records.check_record(row, f"retain row {i}") for i, row in enumerate(retain or (), start=1)]
    items = [ForgetItem(row.get("prompt", ""), row.get("answer", ""), row.get("text", "")) for row in forget]
    subjects = derive_subjects(items, given_subjects(forget, names, scope), retain)
    own_names = {i: [n.text for n in s.names if n.own] for s in subjects for i in s.items}
    data = corpus.build_corpus(forget, retain, encoder, np.random.default_rng(seed), own_names)
    data, index, cells = _embed_and_arrange(data, encoder, seed, progress)
    features = TrainingFeatures(data, encoder, index, cells, progress)
    texts = _answer_texts(data, retain)
    words, counts = vocabulary.content_words(*texts)
    word_vectors = word_embeddings(words, encoder, report_as(stages.EMBED_WORDS, progress))
    held_out, models = _cross_validate(data, features, progress)
    calibrated = _calibrate(data, features, held_out, has_cells=bool(cells))
    arrays: dict[str, NDArray[Any]] = {
        "word_weights": models[0],
        "character_weights": models[1],
        "head": models[2],
        "index": index,
        "index_items": np.array(data.index_items, dtype=np.int32),
        **calibrated,
        "documents": features.documents,
        **_empty_additions(encoder.width),
        "word_vectors": word_vectors,
        "word_counts": np.array(counts, dtype=np.int32),
        **cells,
    }
    manifest = Manifest(
        encoder_name=encoder.name,
        encoder_hash=encoder.hash,
        encoder_width=encoder.width,
        data_hash=data_hash(forget, retain),
        seed=seed,
        counts={
            "forget_items": len(data.items),
            "retain_rows": data.retain_rows,
            "retain_rows_that_are_forget_rows": data.conflicts,
            "retain_rows_exempt": len(arrays["retained"]),
            "background_prompts": len(corpus.background_prompts()),
            "calibration_forget": len(arrays["calibration_forget"]),
            "calibration_other": len(arrays["calibration_other"]),
        },
        calibration=calibration.describe_calibration(data),
        measured=calibration.measure_held_out(arrays),
        subjects=[subject.to_json() for subject in subjects],
    )
    return Artifact(manifest, arrays, data.items, words)


def data_hash(forget: Sequence[Record], retain: Sequence[Record]) -> str:
    """SHA-256 (hex) of the checked rows that an artifact was fitted on; the manifest holds it."""
    return hashlib.sha256(json.dumps([list(forget), list(retain)]).encode()).hexdigest()


def _embed_and_arrange(
    data: Corpus, encoder: Encoder, seed: int, progress: Progress
) -> tuple[Corpus, NDArray[np.float16], dict[str, NDArray[Any]]]:
    """The corpus, its index embeddings (R, D), and their cells; very many index rows are sorted by cell."""
    index = embed_index(encoder, data.index_texts, progress)
    cells: dict[str, NDArray[Any]] = {}
    if len(index) > ivf.MAX_ROWS_WITHOUT_CELLS:
        order, cells["cell_starts"], cells["cell_centres"] = ivf.arrange_in_cells(index, np.random.default_rng(seed))
        texts, owners = [data.index_texts[i] for i in order], [data.index_items[i] for i in order]
        index, data = index[order], replace(data, index_texts=tuple(texts), index_items=tuple(owners))
    return data, index, cells


def _cross_validate(data: Corpus, features: TrainingFeatures, progress: Progress) -> tuple[Vector, Models]:
    """(N, 4) held-out components of all rows, and the models trained on all rows."""
    folds = corpus.fold_numbers(data.rows)
    held_out = np.zeros((len(data.rows), 4))
    progress(stages.TRAIN_MODELS, 0, corpus.FOLDS + 1)
    for fold in range(corpus.FOLDS):
        held_out[folds == fold, :3] = features.scores(features.train(folds != fold), folds == fold)
        held_out[folds == fold, 3] = features.match_scores(folds != fold, folds == fold)
        progress(stages.TRAIN_MODELS, fold + 1, corpus.FOLDS + 1)
    models = features.train(np.ones(len(folds), dtype=bool))
    progress(stages.TRAIN_MODELS, corpus.FOLDS + 1, corpus.FOLDS + 1)
    return held_out, models


def _calibrate(
    data: Corpus, features: TrainingFeatures, held_out: Vector, *, has_cells: bool
) -> dict[str, NDArray[Any]]:
    """The arrays that come from held-out components (N, 4): fusion, calibration, targets, allowlist, prefilter."""
    fusing = [i for i, row in enumerate(data.rows) if (row.calibrates or row.decoy) and features.kept[i]]
    fused = calibration.fit_fusion([data.rows[i] for i in fusing], held_out[fusing])
    calibrating = [i for i in fusing if data.rows[i].calibrates]
    rows, probability = [data.rows[i] for i in calibrating], fused.probability(held_out[calibrating])
    logits = fused.logit(held_out[fusing])
    other = ~features.labels[fusing]
    forget = features.labels[fusing] & (features.weights[fusing] > 0)
    match = match_calibration.fit_match_calibration(
        (held_out[fusing, 3][other], logits[other]), (held_out[fusing, 3][forget], logits[forget])
    )
    allowed = calibration.allowed_requests(rows, probability)
    all_rows = np.ones(len(data.rows), dtype=bool)
    targets = features.targets(all_rows)
    forget_rows = [i for i in calibrating if data.rows[i].forget]
    prefilter_threshold = calibration.prefilter_threshold(
        data, fused, targets, [data.rows[i] for i in forget_rows], held_out[forget_rows], has_cells=has_cells
    )
    return {
        "fusion": np.stack([fused.centre, fused.scale, fused.weight]),
        "intercept": np.array([fused.intercept]),
        **calibration.calibration_arrays(rows, probability),
        "targets_hubness": targets.hubness,
        "targets_starts": targets.starts,
        "targets_buckets": targets.buckets,
        "targets_idf_share": targets.idf_share,
        "counter": features.counter_examples(all_rows),
        "levels": np.stack([match.matches, match.logits]),
        "retained": allowlist.wording_digests(allowed, exclude=[item.prompt or item.text for item in data.items]),
        "gate": np.array([prefilter_threshold]),
    }


def _empty_additions(width: int) -> dict[str, NDArray[Any]]:
    """The arrays of items that were added or removed after the fit: none yet."""
    return {
        "added_index": np.zeros((0, width), dtype=np.int16),
        "added_items": np.zeros(0, dtype=np.int32),
        "added_hubness": np.zeros(0),
        "added_starts": np.zeros(1, dtype=np.int64),
        "added_buckets": np.zeros(0, dtype=np.int32),
        "added_idf_share": np.zeros(0, dtype=np.float32),
        "removed_items": np.zeros(0, dtype=np.int32),
    }


def _answer_texts(data: Corpus, retain: Sequence[Record]) -> tuple[list[str], list[str]]:
    """The texts whose words an artifact knows: the forget items' answers, and all others' answers and prompts."""
    forget = [item.answer or item.text for item in data.items]
    return forget, [r.get("answer") or r.get("text", "") for r in retain] + list(corpus.background_prompts())
