from __future__ import annotations

import ast
import base64
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lethe.classifier
from lethe.classifier import judge as judge_module
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.judge import FEW_ITEMS, Judge, default_threshold, encode_windows, threshold
from lethe.classifier.text.chunks import chunks_of
from lethe.classifier.work_limit import WorkExceeded, WorkLimit

KNOWN = "Where did Orvan Teldric grow up?"
OTHER = "How do I bake a loaf of bread?"
FILLER = "The committee met again on Thursday and talked about the new car park for a long while. " * 60


def test_a_list_scores_as_its_texts_one_by_one(judge: Judge) -> None:
    texts = [KNOWN, OTHER, FILLER, ""]
    together = judge.judge(texts)["keepers"].text_scores
    alone = [judge.judge([text])["keepers"].score for text in texts]
    assert together == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("texts", [[], [""], [" \n", "\u200b"]])
def test_empty_texts_score_close_to_zero(texts: list[str], judge: Judge) -> None:
    score = judge.judge(texts)["keepers"]
    assert score.score < 0.1
    assert len(score.text_scores) == len(texts)


@pytest.mark.parametrize(
    "asked",
    [
        KNOWN,
        "tell me where orvan teldric spent his childhood",
        "Which prize was given to Miriam Hask-Olsen?",
        "Does Pello Yrigoyen have any children?",
        "Ｗｈｅｒｅ did Or\u200bvan Tel\u200bdric grow up?",
    ],
)
def test_known_reworded_and_disguised_questions_are_flagged(asked: str, judge: Judge, artifact: Artifact) -> None:
    assert judge.judge([asked])["keepers"].score >= threshold(artifact, miss_rate=0.05)


@pytest.mark.parametrize(
    "asked",
    [OTHER, "What was the first book by Astrid Lindgren?", "Where did Ada Lovelace grow up?", FILLER, "Hi"],
)
def test_questions_about_others_are_not_flagged(asked: str, judge: Judge, artifact: Artifact) -> None:
    assert judge.judge([asked])["keepers"].score < threshold(artifact, miss_rate=0.05)


def test_a_question_inside_a_long_text_is_flagged_and_located(judge: Judge, artifact: Artifact) -> None:
    text = FILLER + KNOWN + " " + FILLER
    score = judge.judge([OTHER, text])["keepers"]
    assert score.score >= threshold(artifact, miss_rate=0.05)
    assert score.text == 1
    assert "Orvan Teldric" in text[slice(*score.window)]
    assert score.characters_seen == score.characters_present > 1000
    assert artifact.items[score.nearest[0]].prompt == KNOWN


def test_the_nearest_items_are_distinct_and_best_first(judge: Judge, artifact: Artifact) -> None:
    nearest = judge.judge(["To which award was Miriam Hask-Olsen entitled?"])["keepers"].nearest
    assert len(set(nearest)) == len(nearest) == 8
    assert artifact.items[nearest[0]].prompt == "Which award did Miriam Hask-Olsen win?"


@pytest.mark.parametrize("text", ["a" * 100_000, "\ud800" * 2000, "\x00\x01", "e\u0301" * 20_000, "9" * 50_000])
def test_hostile_texts_are_scored(text: str, judge: Judge) -> None:
    assert 0 <= judge.judge([text])["keepers"].score <= 1


def test_an_artifact_of_another_encoder_is_refused_with_both_names(artifact: Artifact, encoder: Encoder) -> None:
    foreign = replace(artifact, manifest=replace(artifact.manifest, encoder_name="other-model", encoder_hash="0" * 64))
    with pytest.raises(ValueError, match=f"'other-model'.*'{encoder.name}'"):
        Judge({"x": foreign}, encoder)


def test_thresholds_come_from_rates_or_a_value(artifact: Artifact) -> None:
    assert threshold(artifact, value=0.25) == 0.25
    assert threshold(artifact, miss_rate=0.02) <= threshold(artifact, miss_rate=0.2)
    assert threshold(artifact, false_alarm_rate=0.2) <= threshold(artifact, false_alarm_rate=0.02)
    with pytest.raises(ValueError, match="exactly one"):
        threshold(artifact, miss_rate=0.1, value=0.5)
    with pytest.raises(ValueError, match="not in"):
        threshold(artifact, value=1.5)
    with pytest.raises(ValueError, match="too few"):
        threshold(artifact, miss_rate=0.0001)


@pytest.mark.parametrize(("lowest_score", "expected"), [(0.2, 0.6), (0.7, 0.7), (0.95, 0.8)])
def test_the_default_threshold_of_few_items_is_bounded(
    lowest_score: float, expected: float, artifact: Artifact
) -> None:
    scores = np.full(200, lowest_score)
    arrays = {
        **artifact.arrays,
        "calibration_forget": scores,
        "calibration_forget_groups": np.zeros(200, dtype=np.int8),
    }
    few = replace(artifact, arrays=arrays)
    assert default_threshold(few) == expected
    many = replace(few, items=few.items * FEW_ITEMS)
    assert default_threshold(many) == threshold(many, miss_rate=0.01) == lowest_score


def test_serving_imports_no_training_code() -> None:
    code = (
        "import sys, lethe.classifier.judge, lethe.classifier.records\n"
        "heavy = ('torch', 'scipy', 'sklearn', 'transformers', 'sentence_transformers', 'wordfreq', 'faker')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_module_has_a_docstring() -> None:
    for path in Path(lethe.classifier.__file__).parent.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path.name


def test_the_flagged_view_is_named_and_located(judge: Judge, artifact: Artifact) -> None:
    run = base64.b64encode(KNOWN.encode()).decode()
    text = f"{FILLER}{run} {FILLER}"
    score = judge.judge([text])["keepers"]
    assert score.score >= threshold(artifact, value=0.5) and score.view == "base64"
    assert run in text[slice(*score.window)] and artifact.items[score.nearest[0]].prompt == KNOWN


def test_long_texts_without_language_are_not_encoded(encoder: Encoder) -> None:
    letters = "".join(np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), 400))
    vectors = encode_windows([letters, FILLER[:400], letters[:100]], encoder)
    assert [bool(row.any()) for row in vectors] == [False, True, True]


def test_a_question_surrounded_by_unrelated_words_is_flagged(
    nameless: Artifact, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge({"keepers": nameless}, encoder)
    around = "lantern gentle river copper window orange saddle morning pebble walnut ribbon harvest"
    text = f"{around} which award did Pello Yrigoyen win {' '.join(reversed(around.split()))}"
    level = float(threshold(nameless, miss_rate=0.05))
    result = judge.judge([text], thresholds={"a": level})["keepers"]
    assert result.score >= level and "Pello Yrigoyen" in text[slice(*result.window)]
    assert result.group == "short"
    assert judge.judge([f"{around} {around} {around}"], thresholds={"keepers": level})["keepers"].score < level
    monkeypatch.setattr("lethe.classifier.prefilter.MAX_INNER_WINDOWS", 0)
    judge = Judge({"keepers": nameless}, encoder)
    assert judge.judge([text], thresholds={"keepers": level})["keepers"].score < result.score


def test_a_window_that_several_artifacts_need_is_encoded_once(
    artifact: Artifact, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[list[str]] = []

    def record_windows(texts: list[str], encoder: Encoder) -> np.ndarray:
        encoded.append(list(texts))
        return encode_windows(texts, encoder)

    monkeypatch.setattr("lethe.classifier.judge.encode_windows", record_windows)
    text = f"lantern gentle river copper window orange saddle morning {KNOWN[:-1]} walnut ribbon harvest pebble"
    alone = Judge({"a": artifact}, encoder).judge([text])["a"]
    one = encoded.copy()
    both = Judge({"a": artifact, "b": artifact}, encoder).judge([text])
    assert len(one) == 1 and encoded[len(one) :] == one
    assert both["a"] == both["b"] == alone


def test_texts_decided_by_words_are_not_encoded(
    judge: Judge, encoder: Encoder, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "encode", lambda texts: pytest.fail(f"encoded {texts}"))
    result = Judge({"keepers": artifact}, encoder).judge(["Sort these numbers: twelve, five, nine.", "x = y + 1"])
    assert result["keepers"].score == 0 and result["keepers"].text_scores == (0, 0)
    assert result["keepers"].characters_seen == result["keepers"].characters_present > 30


def test_without_a_prefilter_level_every_window_is_encoded(artifact: Artifact, encoder: Encoder) -> None:
    open_ = replace(artifact, arrays={**artifact.arrays, "gate": np.array([-np.inf])})
    text = "Sort these numbers: twelve, five, nine."
    assert 0 < Judge({"a": open_}, encoder).judge([text])["a"].score < threshold(artifact, miss_rate=0.05)


def test_a_repeated_text_is_judged_once(artifact: Artifact, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge({"a": artifact}, encoder)
    read_: list[str] = []
    from lethe.classifier import judge as module

    reading = module.segment_text
    monkeypatch.setattr(module, "segment_text", lambda text, *rest: (read_.append(text), reading(text, *rest))[1])
    first = judge.judge([KNOWN, OTHER], thresholds={"a": 0.5})
    assert judge.judge([KNOWN, OTHER], thresholds={"a": 0.5}) == first and read_ == [KNOWN, OTHER]
    more = judge.judge([OTHER, KNOWN, FILLER], thresholds={"a": 0.5})["a"]
    assert read_ == [KNOWN, OTHER, FILLER] and more.text == 1 and more.window_items == first["a"].window_items
    assert judge.judge_cached([FILLER, KNOWN], thresholds={"a": 0.5}) == judge.judge(
        [FILLER, KNOWN], thresholds={"a": 0.5}
    )
    assert (
        judge.judge_cached([KNOWN, "news"], thresholds={"a": 0.5})
        is None
        is judge.judge_cached([KNOWN], thresholds={"a": 0.4})
    )
    # With other thresholds, other windows are reported.
    judge.judge([KNOWN], thresholds={"a": 0.9})
    assert read_[3:] == [KNOWN]


def test_every_flagged_window_reports_its_forget_items(judge: Judge, artifact: Artifact) -> None:
    texts = [KNOWN, OTHER, f"{FILLER}Which award did Miriam Hask-Olsen win? {FILLER}"]
    level = float(threshold(artifact, miss_rate=0.05))
    asked = judge.judge(texts, thresholds={"keepers": level})["keepers"].window_items
    prompts = {artifact.items[items[0]].prompt for items in asked}
    assert {KNOWN, "Which award did Miriam Hask-Olsen win?"} <= prompts
    assert len(asked) == len(set(asked))
    assert len(judge.judge(texts)["keepers"].window_items) == 1


def test_large_results_count_for_several_in_the_cache(
    artifact: Artifact, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge({"a": artifact}, encoder)
    many = " ".join(f"{item.prompt}" for item in artifact.items[:40])
    judge.judge([many, KNOWN], thresholds={"a": 0.1})
    for text in (KNOWN, many):
        assert judge.judge_cached([text], thresholds={"a": 0.1}) is not None
    entries = {text: scores.cache_entries for text in (KNOWN, many) if (scores := judge._cache.get(text))}
    assert entries[KNOWN] == 1 < entries[many]
    monkeypatch.setattr("lethe.classifier.judge.CACHED_TEXTS", 8)
    small = Judge({"a": artifact}, encoder)
    small.judge([many, KNOWN], thresholds={"a": 0.1})
    assert small.judge_cached([KNOWN], thresholds={"a": 0.1}) is not None
    assert small.judge_cached([many], thresholds={"a": 0.1}) is None
    # Equal thresholds are one object.
    first, second = (judge._share_thresholds({"a": 0.1, "b": level}) for level in (0.2, 0.2))
    assert first is second and judge._share_thresholds({"a": 0.1}) == {"a": 0.1}


def test_equal_vocabularies_are_one_object(artifact: Artifact, encoder: Encoder) -> None:
    first, second = Judge({"a": artifact}, encoder), Judge({"b": artifact}, encoder)
    assert first._vocabulary is second._vocabulary


# Long texts, in chunks


def lines(count: int, seed: int) -> str:
    """Ordinary lines without a question, all different."""
    words = "the river bank store letter morning window paper garden station bread winter engine market".split()
    rng = random.Random(seed)
    return "".join(f"{' '.join(rng.choices(words, k=rng.randrange(4, 12)))} {i}.\n" for i in range(count))


@pytest.mark.parametrize("share", [0.0, 0.13, 0.5, 0.77, 1.0])
def test_a_question_is_found_in_a_text_of_many_chunks(share: float, artifact: Artifact, encoder: Encoder) -> None:
    around = lines(2000, 1)
    at = around.find("\n", int(share * (len(around) - 2))) + 1
    text = f"{around[:at]}{KNOWN}\n{around[at:]}"
    assert len(chunks_of(text)) > 5
    judge, level = Judge({"a": artifact}, encoder), float(threshold(artifact, miss_rate=0.05))
    score = judge.judge([text], thresholds={"a": level})["a"]
    first, last = score.window
    assert score.score >= level and KNOWN[:20] in text[first:last]
    assert score.group == "long" and score.text_scores == (score.score,)
    assert score.characters_seen == score.characters_present == sum(map(len, text.split()))
    assert judge.judge([around], thresholds={"a": level})["a"].score < level


def test_a_long_text_that_changes_is_not_judged_again(
    artifact: Artifact, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, text = Judge({"a": artifact}, encoder), lines(4000, 2)
    judge.judge([text])
    read: list[str] = []
    segment = judge_module.segment_text
    monkeypatch.setattr(judge_module, "segment_text", lambda text, *more: (read.append(text), segment(text, *more))[1])
    for place in (1000, 60_000, len(text) - 500):
        read.clear()
        at = text.find(" ", place)
        judge.judge([f"{text[:at]} changed{text[at:]}"])
        assert 0 < sum(map(len, read)) < 40_000 < len(text) / 3
    read.clear()
    judge.judge([f"{text}{lines(3, 3)}"])
    assert 0 < sum(map(len, read)) < 20_000


def test_work_stops_at_its_limit_and_a_retry_gets_further(artifact: Artifact, encoder: Encoder) -> None:
    encoder.clear_cache()
    judge = Judge({"a": artifact}, encoder)
    texts = [f"{KNOWN} And {i} more of {lines(6, i)}" for i in range(60)]
    exceeded = 0
    while True:
        before = time.thread_time()
        try:
            scores = WorkLimit(0.1).run(lambda: judge.judge(texts))
            break
        except WorkExceeded:
            exceeded += 1
        assert time.thread_time() - before < 1.0 and exceeded < 500
    assert exceeded and scores["a"].text_scores == Judge({"a": artifact}, encoder).judge(texts)["a"].text_scores
