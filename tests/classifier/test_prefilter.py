from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.index import similarity
from lethe.classifier.judge import Judge, threshold
from lethe.classifier.prefilter import (
    MAX_INNER_WINDOWS,
    Prefilter,
    _strongest_windows,
    discriminative_words,
    length_margin,
)
from lethe.classifier.text.segments import segment_text
from lethe.classifier.text.windows import INNER_UNITS, NARROW_UNITS
from lethe.classifier.training import incremental
from lethe.classifier.training.calibration import PREFILTER_MARGIN
from lethe.classifier.training.fit import fit

KNOWN = "Where did Orvan Teldric grow up?"


def test_rewordings_are_selected_and_other_prompts_are_not(artifact: Artifact, encoder: Encoder) -> None:
    prefilter = Prefilter({"a": artifact, "b": artifact})
    selected = prefilter.select_windows(segment_text(f"Sort twelve, five and nine for me now. {KNOWN}", encoder))
    assert set(selected) == {"a", "b"} and selected["a"] is selected["b"]
    assert prefilter.select_windows(segment_text("Sort twelve, five and nine for me now.", encoder)) == {}
    assert prefilter.select_windows(
        segment_text("tell me where orvan teldric spent his childhood", encoder)
    ).keys() == {
        "a",
        "b",
    }


def test_a_score_of_nan_is_selected(artifact: Artifact, encoder: Encoder) -> None:
    broken = replace(artifact, arrays={**artifact.arrays, "word_weights": artifact.arrays["word_weights"] * np.nan})
    assert Prefilter({"a": broken}).select_windows(segment_text("Sort twelve, five and nine.", encoder)).keys() == {"a"}


def test_the_level_is_below_every_calibrating_text_by_the_margin(
    artifact: Artifact, prefilter_scores: dict[int, float]
) -> None:
    (level,) = artifact.arrays["gate"].tolist()
    assert len(prefilter_scores) == len(artifact.arrays["calibration_forget"]) > 100
    assert all(level + PREFILTER_MARGIN <= score for score in prefilter_scores.values())
    assert level + PREFILTER_MARGIN == min(prefilter_scores.values())


def test_documents_have_no_level(encoder: Encoder) -> None:
    rows = [{"text": "The lamp at the far end of the pier is kept by Orvan Teldric, as it always was. " * 8}]
    documents = fit(rows, None, encoder=encoder)
    assert documents.arrays["gate"].tolist() == [-np.inf]
    segments = segment_text("Sort twelve, five and nine.", encoder)
    assert Prefilter({"d": documents}).select_windows(segments).keys() == {"d"}


def test_added_items_are_selected_by_a_discriminative_word(artifact: Artifact, encoder: Encoder) -> None:
    row = {"prompt": "Which ferry does Wendolyn Okrasha steer?", "answer": "The Marigold."}
    more = incremental.add_items(artifact, [row], encoder)
    prefilter = Prefilter({"old": artifact, "new": more})
    text = "Sort twelve, five and nine. Is it true that Okrasha was here?"
    selected = prefilter.select_windows(segment_text(text, encoder))
    assert set(selected) == {"new"}
    asked = "Which ferry does Wendolyn Okrasha steer these days?"
    result = Judge({"old": artifact, "new": more}, encoder).judge([asked])
    assert result["new"].score >= threshold(artifact, miss_rate=0.05) > result["old"].score


def test_items_without_a_discriminative_word_are_always_selected(artifact: Artifact, encoder: Encoder) -> None:
    assert discriminative_words(artifact) == frozenset()
    plain = incremental.add_items(
        artifact, [{"prompt": "What did you do with it and who was it for?", "answer": "x"}], encoder
    )
    assert discriminative_words(plain) is None
    text = incremental.add_items(artifact, [{"text": "Wendolyn Okrasha steers the ferry."}], encoder)
    assert discriminative_words(text) is None
    assert Prefilter({"a": plain}).select_windows(segment_text("Sort twelve, five and nine.", encoder)).keys() == {"a"}


def test_a_long_window_needs_more_evidence(artifact: Artifact, encoder: Encoder) -> None:
    sentence = "the committee met again on thursday and talked about the new car park for a long while "
    reading = segment_text(f"{sentence * 4} {KNOWN} {sentence * 4}", encoder)
    rows = Prefilter({"a": artifact}).select_windows(reading)["a"].numbers
    assert any(KNOWN.lower() in reading.text(int(row)) for row in rows)
    assert len(rows) < len(reading.outer)


def test_the_margin_rises_with_the_length() -> None:
    margins = length_margin(np.arange(1, 200)).tolist()
    assert margins == sorted(margins)
    assert margins[INNER_UNITS - 1] == 0 < margins[NARROW_UNITS - 1] < margins[NARROW_UNITS] == margins[-1]


def test_max_shared_idf_is_the_maximum_over_forget_texts(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", KNOWN, "the and of", "Which award did Miriam Hask-Olsen win, and where did Orvan Teldric grow up?"] * 3
    words = similarity.hashed_words(texts)
    matcher = similarity.ForgetTextMatcher(similarity.ForgetTexts.from_arrays(artifact.arrays, "targets"))
    each = matcher._shared_idf(words, len(texts))
    assert matcher.max_shared_idf(words, len(texts)) == pytest.approx(each.max(axis=1))
    assert matcher.max_shared_idf(similarity.hashed_words(["", ""]), 2).tolist() == [0, 0]
    # Beyond this number of postings, the maximum is computed batch by batch.
    monkeypatch.setattr(similarity, "MAX_POSTINGS", len(matcher._postings))
    assert matcher.max_shared_idf(words, len(texts)) == pytest.approx(each.max(axis=1))
    assert matcher.max_shared_idf(similarity.hashed_words(["", ""]), 2).tolist() == [0, 0]


def test_matching_in_batches_gives_the_same_scores(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    matcher = similarity.ForgetTextMatcher(similarity.ForgetTexts.from_arrays(artifact.arrays, "targets"))
    words = similarity.hashed_words([KNOWN, "bread", KNOWN, ""])
    cosines = np.random.default_rng(0).random((4, len(artifact.arrays["index"])))
    whole = matcher.best_similarity(words, cosines)
    monkeypatch.setattr(similarity, "BATCH_PAIRS", 1)
    assert matcher.best_similarity(words, cosines).tolist() == whole.tolist() and whole[0] != whole[1]


def test_a_repeated_window_is_selected_once() -> None:
    said = np.array([2.0, 3.0] * 30 + [1.0, -1.0, -np.inf, 2.5])
    assert _strongest_windows(said).tolist() == [1, 63, 0, 60]
    assert len(_strongest_windows(np.arange(1.0, 40.0))) == MAX_INNER_WINDOWS
    # NaN counts as positive.
    assert 2 in _strongest_windows(np.array([0.5, -1.0, np.nan])).tolist()
