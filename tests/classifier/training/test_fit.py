from __future__ import annotations

import numpy as np
import pytest

from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.records import Record
from lethe.classifier.training import fit, logistic_regression, paraphrase, stages
from lethe.classifier.training import rows as corpus


def test_an_empty_forget_list_and_malformed_rows_are_refused(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="nothing to forget"):
        fit.fit([], None, encoder=encoder)
    with pytest.raises(ValueError, match="retain row 1: 'answer' is empty"):
        fit.fit([{"text": "t"}], [{"prompt": "p", "answer": ""}], encoder=encoder)


def test_documents_alone_can_be_forgotten(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    few = corpus.background_prompts()[::40]
    monkeypatch.setattr(corpus, "background_prompts", lambda: few)
    monkeypatch.setattr(corpus, "REWORDINGS_TOTAL", 24)
    monkeypatch.setattr(corpus, "DECOYS", 20)
    monkeypatch.setattr(corpus, "WRAPPED_ROWS", 10)
    reported: set[str] = set()
    text = "Brynja Solheim kept the Karvik light for thirty years. She wrote down every ship that passed it."
    artifact = fit.fit([{"text": text}], None, encoder=encoder, progress=lambda s, done, total: reported.add(s))
    # Of a part of the background, other rewordings are drawn than those whose embeddings are shipped.
    assert reported - {stages.EMBED_BACKGROUND} == {
        stages.EMBED_FORGET, stages.EMBED_TRAINING, stages.EMBED_WORDS, stages.TRAIN_MODELS
    }  # fmt: skip
    assert artifact.items[0].text == text
    assert "brynja" in artifact.words and artifact.word_counts[artifact.words.index("brynja")] == 0


def test_the_manifest_describes_the_calibration_set(artifact: Artifact) -> None:
    assert "rewordings" in artifact.manifest.calibration
    assert artifact.manifest.counts["calibration_forget"] == len(artifact.arrays["calibration_forget"])
    assert "forget items" in artifact.manifest.summary
    assert artifact.manifest.measured["held_out_auc"] > 0.95


def test_words_have_unit_vectors_and_counts(artifact: Artifact) -> None:
    assert artifact.word_vectors.shape[0] == len(artifact.words) == len(artifact.word_counts)
    assert np.allclose(np.linalg.norm(artifact.word_vectors.astype(np.float32), axis=1), 1, atol=1e-2)
    assert "vardholm" in artifact.words and "the" not in artifact.words


def test_models_are_not_trained_on_rewordings_that_they_score(encoder: Encoder, forget: list[Record]) -> None:
    data = corpus.build_corpus(forget[:4], [], encoder, np.random.default_rng(0))
    rewordings = [row for row in data.rows if row.forget and row.calibrates]
    assert {row.fold for row in rewordings} == set(range(corpus.FOLDS))
    prompts = {f["prompt"] for f in forget[:4]}
    # A window of a wrapped prompt may be the prompt itself: scored, not trained on.
    assert all(row.fold == corpus.ALWAYS or row.wrapped for row in data.rows if row.text in prompts)
    assert all(row.fold != corpus.ALWAYS for row in data.rows if not row.forget)


def test_a_retain_row_that_is_a_forget_row_is_left_out(encoder: Encoder, forget: list[Record]) -> None:
    data = corpus.build_corpus(forget[:2], [forget[0], forget[3]], encoder, np.random.default_rng(0))
    assert (data.conflicts, data.retain_rows) == (1, 1)


def test_rewordings_are_distinct_deterministic_and_keep_names(rng: np.random.Generator) -> None:
    text = "What does Miriam Hask-Olsen collect on the island in 1961?"
    rewordings = paraphrase.reword(text, 20, rng)
    assert len(set(rewordings)) == 20 and text not in rewordings
    assert rewordings == paraphrase.reword(text, 20, np.random.default_rng(0))
    assert sum("1961" in variant for variant in rewordings) >= 15


def test_the_solution_has_a_gradient_of_zero(rng: np.random.Generator) -> None:
    x = rng.normal(size=(80, 3))
    labels = x @ [1.0, -2.0, 0.0] + rng.normal(size=80) > 0
    weight, intercept = logistic_regression.fit_logistic(x, labels, np.ones(80), penalty=0.1)
    share = np.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum())
    residual = share * (labels - 1 / (1 + np.exp(-(x @ weight + intercept))))
    assert np.allclose(x.T @ residual, 0.1 * weight, atol=1e-4)
    assert abs(residual.sum()) < 1e-4
