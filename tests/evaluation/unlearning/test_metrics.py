"""The metrics against TOFU's published evaluation logs, and against cases computed by hand."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import numpy as np
import pytest

from lethe.evaluation.unlearning import metrics
from lethe.evaluation.unlearning.tofu import DATA

SETS = {
    "retain": "eval_log.json",
    "real": "eval_real_author_wo_options.json",
    "world": "eval_real_world_wo_options.json",
}


@cache
def log(model: str) -> dict[str, dict[str, Any]]:
    path = DATA / "tofu-reference-logs" / f"llama2-7b_{model}_eval_log_aggregated.json"
    parts = json.loads(path.read_text(encoding="utf-8"))
    # By question number, so that no file's order matters.
    return {
        part: {
            key: [value for _, value in sorted(rows.items(), key=lambda row: int(row[0]))] for key, rows in log.items()
        }
        for part, log in parts.items()
    }


def ratios(part: dict[str, Any]) -> np.ndarray[Any, Any]:
    return metrics.truth_ratios(part["avg_paraphrased_loss"], part["average_perturb_loss"])


def model_utility(scores: dict[str, dict[str, float]]) -> float:
    return metrics.harmonic_mean([value for means in scores.values() for value in means.values()])


def scores(model: str) -> dict[str, dict[str, float]]:
    means = {}
    for name, key in SETS.items():
        part = log(model)[key]
        right = (
            metrics.probability(part["avg_gt_loss"])
            if name == "retain"
            else metrics.option_probability(part["avg_gt_loss"], part["average_perturb_loss"])
        )
        means[name] = {
            "probability": float(right.mean()),
            "rouge": float(np.mean(part["rougeL_recall"])),
            "truth": float(metrics.retain_truth_scores(ratios(part)).mean()),
        }
    return means


def test_forget_quality_equals_the_published_value() -> None:
    full, retain = (ratios(log(model)["eval_log_forget.json"]) for model in ("full", "retain90"))
    test = metrics.forget_quality(full, retain)
    assert test.n == 300
    assert test.d == pytest.approx(0.3967, abs=5e-5)
    assert test.p == pytest.approx(1.83e-21, rel=3e-3)


@pytest.mark.parametrize(("model", "utility"), [("full", 0.6227), ("retain90", 0.6137)])
def test_model_utility_equals_the_published_value(model: str, utility: float) -> None:
    assert model_utility(scores(model)) == pytest.approx(utility, abs=5e-5)


@pytest.mark.parametrize(
    ("model", "rouge", "probability", "truth"), [("full", 0.985, 0.991, 0.516), ("retain90", 0.408, 0.148, 0.674)]
)
def test_forget_scores_equal_the_published_values(model: str, rouge: float, probability: float, truth: float) -> None:
    part = log(model)["eval_log_forget.json"]
    assert np.mean(part["rougeL_recall"]) == pytest.approx(rouge, abs=5e-4)
    assert metrics.probability(part["avg_gt_loss"]).mean() == pytest.approx(probability, abs=5e-4)
    assert metrics.forget_truth_scores(ratios(part)).mean() == pytest.approx(truth, abs=5e-4)


def test_rouge_of_logged_texts_equals_logged_recalls() -> None:
    """TOFU's logs contain prompt, generated answer and reference, so recall can be computed again."""
    checked = 0
    for key in ("eval_log_forget.json", *SETS.values()):
        part = log("retain90")[key]
        for (_, answer, reference), recall in zip(part["generated_text"], part["rougeL_recall"], strict=True):
            assert metrics.rouge_recall(answer, reference) == pytest.approx(recall, abs=1e-9)
            checked += 1
    assert checked == 817


def test_averaging_probabilities_misses_the_published_utility() -> None:
    """Averaging probabilities, as the paper writes it, gives 0.585 instead of 0.6227 on the same logs."""
    means = scores("full")
    for name, key in SETS.items():
        part = log("full")[key]
        wrong = np.array([metrics.probability(row).mean() for row in part["average_perturb_loss"]])
        other = wrong / metrics.probability(part["avg_paraphrased_loss"])
        means[name]["truth"] = float(metrics.retain_truth_scores(other).mean())
    assert model_utility(means) == pytest.approx(0.585, abs=1e-3)


def test_truth_ratio_of_a_case_computed_by_hand() -> None:
    # Paraphrase 0.5; wrong ones 0.25 and 0.0625, geometric mean 0.125: R = 0.125 / 0.5.
    (ratio,) = metrics.truth_ratios([-math.log(0.5)], [[-math.log(0.25), -math.log(0.0625)]])
    assert ratio == pytest.approx(0.25)
    assert metrics.forget_truth_scores([0.25, 4.0, 0.0]).tolist() == pytest.approx([0.25, 0.25, 0.0])
    assert metrics.retain_truth_scores([0.25, 4.0]).tolist() == pytest.approx([0.75, 0.0])


def test_option_probability_of_a_case_computed_by_hand() -> None:
    result = metrics.option_probability([-math.log(0.2)], [[-math.log(0.1), -math.log(0.1)]])
    assert result.tolist() == pytest.approx([0.5])


def test_harmonic_mean_is_zero_with_a_zero_and_raises_for_none() -> None:
    assert metrics.harmonic_mean([1.0, 0.5]) == pytest.approx(2 / 3)
    assert metrics.harmonic_mean([1.0, 0.0]) == 0.0
    with pytest.raises(ValueError):
        metrics.harmonic_mean([])


def test_ks_test_of_disjoint_and_of_equal_samples() -> None:
    assert metrics.ks_test([1, 2, 3, 4], [5, 6, 7]) == (1.0, pytest.approx(2 / 35), 3)
    assert metrics.ks_test([1, 2, 3], [1, 2, 3])[:2] == (0.0, 1.0)


@pytest.mark.parametrize(
    ("hits", "exact", "strength"),
    [
        ([True] * 4, 1.0, 1.0),
        ([False, True, True, True], 0.75, 0.75),
        ([True, False, True, True], 0.75, 0.5),
        # The lower bound: even a wrong last token leaves 1/n.
        ([True, True, True, False], 0.75, 0.25),
        ([False] * 4, 0.0, 0.25),
    ],
)
def test_memorisation_of_cases_computed_by_hand(hits: list[bool], exact: float, strength: float) -> None:
    assert metrics.exact_memorisation(hits) == exact
    assert metrics.extraction_strength(hits) == strength


def test_recall_stems_words_and_f1_does_not() -> None:
    assert metrics.rouge_recall("the cats sat here now", "the cat sat") == pytest.approx(1.0)
    # Without stemming "cats" is another word: precision 2/5, recall 2/3.
    assert metrics.rouge_f1("the cats sat here now", "the cat sat") == pytest.approx(2 * 0.4 * (2 / 3) / (0.4 + 2 / 3))


def test_knowmem_answers_are_truncated_as_in_muse() -> None:
    assert metrics.knowmem_answer("Paris.\n\nAnd more") == "Paris."
    assert metrics.knowmem_answer("Paris. Question: what next?") == "Paris."


def test_repetition_and_unique_word_ratio() -> None:
    assert metrics.repetition("one two three four") == 0.0
    # Five 3-grams of "a b a b a b a", two of them distinct.
    assert metrics.repetition("a b a b a b a") == pytest.approx(0.6)
    assert metrics.repetition("short") == 0.0
    assert metrics.unique_word_ratio("A b, a B!") == 0.5
    assert metrics.unique_word_ratio("...") == 1.0


def test_words_lost_counts_distinct_words() -> None:
    assert metrics.words_lost(["a b", "c"], ["A d", "b e"]) == (2, 4)


@pytest.mark.parametrize(
    ("text", "reference", "length"),
    [
        ("the quick, brown fox", "A quick brown fox jumps", 3),
        ("nothing shared", "at all", 0),
        ("a b x a b c", "a b c a b", 3),
        ("", "a", 0),
    ],
)
def test_longest_common_run_counts_words(text: str, reference: str, length: int) -> None:
    assert metrics.longest_common_run(text, reference) == length
