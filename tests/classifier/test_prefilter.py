from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.index import similarity
from lethe.classifier.judge import Judge, threshold
from lethe.classifier.prefilter import MOST_CLOSER, Gate, _strongest, margin, telling_words
from lethe.classifier.text.segments import read
from lethe.classifier.text.windows import INNER_UNITS, NARROW_UNITS
from lethe.classifier.training import incremental
from lethe.classifier.training.fit import GATE_MARGIN, fit

KNOWN = "Where did Orvan Teldric grow up?"


def test_rewordings_pass_and_others_do_not(artifact: Artifact, encoder: Encoder) -> None:
    gate = Gate({"a": artifact, "b": artifact})
    passed = gate.passed(read(f"Sort twelve, five and nine for me now. {KNOWN}", encoder))
    assert set(passed) == {"a", "b"} and passed["a"] is passed["b"]
    assert gate.passed(read("Sort twelve, five and nine for me now.", encoder)) == {}
    assert gate.passed(read("tell me where orvan teldric spent his childhood", encoder)).keys() == {"a", "b"}


def test_a_score_that_is_no_number_passes(artifact: Artifact, encoder: Encoder) -> None:
    broken = replace(artifact, arrays={**artifact.arrays, "word_weights": artifact.arrays["word_weights"] * np.nan})
    assert Gate({"a": broken}).passed(read("Sort twelve, five and nine.", encoder)).keys() == {"a"}


def test_the_level_lies_below_every_calibrating_text_and_documents_have_none(
    artifact: Artifact, encoder: Encoder
) -> None:
    assert np.isfinite(artifact.arrays["gate"]).all() and GATE_MARGIN > 0
    rows = [{"text": "The lamp at the far end of the pier is kept by Orvan Teldric, as it always was. " * 8}]
    documents = fit(rows * 1, None, encoder=encoder)
    assert documents.arrays["gate"].tolist() == [-np.inf]
    assert Gate({"d": documents}).passed(read("Sort twelve, five and nine.", encoder)).keys() == {"d"}


def test_added_items_pass_by_a_telling_word_and_only_theirs(artifact: Artifact, encoder: Encoder) -> None:
    row = {"prompt": "Which ferry does Wendolyn Okrasha steer?", "answer": "The Marigold."}
    more = incremental.add(artifact, [row], encoder)
    gate = Gate({"old": artifact, "new": more})
    text = "Sort twelve, five and nine. Is it true that Okrasha was here?"
    passed = gate.passed(read(text, encoder))
    assert set(passed) == {"new"}
    asked = "Which ferry does Wendolyn Okrasha steer these days?"
    found = Judge({"old": artifact, "new": more}, encoder).judge([asked])
    assert found["new"].score >= threshold(artifact, miss_rate=0.05) > found["old"].score


def test_items_without_a_telling_word_and_documents_are_always_looked_for(artifact: Artifact, encoder: Encoder) -> None:
    assert telling_words(artifact) == frozenset()
    plain = incremental.add(
        artifact, [{"prompt": "What did you do with it and who was it for?", "answer": "x"}], encoder
    )
    assert telling_words(plain) is None
    text = incremental.add(artifact, [{"text": "Wendolyn Okrasha steers the ferry."}], encoder)
    assert telling_words(text) is None
    assert Gate({"a": plain}).passed(read("Sort twelve, five and nine.", encoder)).keys() == {"a"}


def test_a_long_window_has_to_say_more(artifact: Artifact, encoder: Encoder) -> None:
    sentence = "the committee met again on thursday and talked about the new car park for a long while "
    reading = read(f"{sentence * 4} {KNOWN} {sentence * 4}", encoder)
    rows = Gate({"a": artifact}).passed(reading)["a"].rows
    assert any(KNOWN.lower() in reading.text(int(row)) for row in rows)
    assert len(rows) < len(reading.own)


def test_longer_windows_have_to_say_more() -> None:
    wanted = margin(np.arange(1, 200)).tolist()
    assert wanted == sorted(wanted)
    assert wanted[INNER_UNITS - 1] == 0 < wanted[NARROW_UNITS - 1] < wanted[NARROW_UNITS] == wanted[-1]


def test_what_is_shared_most_is_what_is_shared_with_each(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", KNOWN, "the and of", "Which award did Miriam Hask-Olsen win, and where did Orvan Teldric grow up?"] * 3
    words = similarity.row_words(texts)
    matcher = similarity.Matcher(similarity.Targets.of(artifact.arrays, "targets"))
    each = matcher._overlap(words, len(texts))
    assert matcher.most_shared(words, len(texts)) == pytest.approx(each.max(axis=1))
    assert matcher.most_shared(similarity.row_words(["", ""]), 2).tolist() == [0, 0]
    # Of more rows not all that they might share is added up.
    monkeypatch.setattr(similarity, "MOST_LISTED", len(matcher._row))
    assert matcher.most_shared(words, len(texts)) == pytest.approx(each.max(axis=1))
    assert matcher.most_shared(similarity.row_words(["", ""]), 2).tolist() == [0, 0]


def test_rows_are_matched_some_at_a_time(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    matcher = similarity.Matcher(similarity.Targets.of(artifact.arrays, "targets"))
    words = similarity.row_words([KNOWN, "bread", KNOWN, ""])
    cosines = np.random.default_rng(0).random((4, len(artifact.arrays["index"])))
    whole = matcher.best(words, cosines)
    monkeypatch.setattr(similarity, "AT_ONCE", 1)
    assert matcher.best(words, cosines).tolist() == whole.tolist() and whole[0] != whole[1]


def test_what_is_repeated_is_looked_at_closer_once() -> None:
    said = np.array([2.0, 3.0] * 30 + [1.0, -1.0, -np.inf, 2.5])
    assert _strongest(said).tolist() == [1, 63, 0, 60]
    assert len(_strongest(np.arange(1.0, 40.0))) == MOST_CLOSER
    # What is no number speaks.
    assert 2 in _strongest(np.array([0.5, -1.0, np.nan])).tolist()
