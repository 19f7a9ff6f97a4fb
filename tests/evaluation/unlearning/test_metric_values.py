"""Metrics of a system over two questions, computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lethe.evaluation.unlearning.metric_values import MetricValues, SystemResults, compute_metrics
from tests.evaluation.unlearning.two_questions import DATASET, KNOWS, TWIN


def values_of(results: SystemResults = KNOWS) -> MetricValues:
    return compute_metrics(DATASET, results, KNOWS, TWIN)


def test_recall_and_leaks_of_the_forget_answers() -> None:
    values = values_of()
    assert values["forget_rouge"]["value"] == 1.0 and values["forget_rouge"]["n"] == 2
    assert values_of(TWIN)["forget_rouge"]["value"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert values["leak_named"] | {"low": 0, "high": 0} == {"value": 1.0, "low": 0, "high": 0, "n": 1}
    # One of the two sampled answers leaks, and each seed has its own value.
    assert values["leak_named_sampled"]["value"] == 0.5 and values["leak_named_sampled"]["seeds"] == [1.0, 0.0]
    assert values["leak_named_reworded"]["value"] == 1.0
    assert values_of(TWIN)["leak_named"]["value"] == 0.0
    assert values["longest_run"]["value"] == 3.5


def test_probabilities_and_the_comparison_with_the_twin() -> None:
    values = values_of()
    assert values["forget_probability"]["value"] == 1.0
    assert values_of(TWIN)["forget_probability"]["value"] == pytest.approx(0.1)
    # Truth ratios 1 and 4: the scores are 1 and 1/4.
    assert values["forget_truth"]["value"] == pytest.approx(0.625)
    assert (values["forget_quality_d"]["value"], values["forget_quality"]["value"]) == (0.0, 1.0)
    assert (values["exact_memorisation"]["value"], values["extraction_strength"]["value"]) == (0.5, 0.25)
    assert values["ks_rouge_d"]["value"] == 1.0 and values["ks_rouge_d"]["n"] == 2


def test_model_utility_is_the_harmonic_mean_of_nine_means() -> None:
    values = values_of()
    assert values["retain_probability"]["value"] == pytest.approx(0.5)
    # Right 1/2, wrong 1/4 twice.
    assert values["real_authors_probability"]["value"] == pytest.approx(0.5)
    assert values["world_facts_truth"]["value"] == pytest.approx(0.75)
    nine = [0.5, 1.0, 0.75] * 3
    assert values["model_utility"]["value"] == pytest.approx(9 / sum(1 / x for x in nine))
    assert values["retain_same"]["value"] == 1.0


def test_fluency_metrics_of_the_twin() -> None:
    values = values_of(TWIN)
    assert values["perplexity"]["value"] == pytest.approx(math.exp(2.0))
    assert values["perplexity_sampled"]["seeds"] == pytest.approx([math.exp(1.5)] * 2)
    # Of "orvan lived in vardholm wrote salt" the twin never says "vardholm" and "salt".
    assert values["words_lost"]["value"] == pytest.approx(2 / 6)


def test_metrics_without_probabilities_and_without_a_twin() -> None:
    values = compute_metrics(DATASET, replace(KNOWS, scores=None, losses=None), None, None)
    assert "forget_rouge" in values and "repetition" in values
    assert not any(key.startswith(("ks_", "forget_quality", "model_utility", "perplexity")) for key in values)


def test_sets_of_a_single_question_have_intervals_too() -> None:
    retain_sets = {name: rows[:1] for name, rows in DATASET.retain_sets.items()}
    answers = {"greedy": {**KNOWS.answers["greedy"], **{name: ["a drink"] for name in retain_sets}}, "sampled": {}}
    assert KNOWS.scores is not None
    scores = {"prompt": KNOWS.scores["prompt"] | {name: KNOWS.scores["prompt"][name][:1] for name in retain_sets}}
    one = replace(KNOWS, answers=answers, scores=scores)
    utility = compute_metrics(replace(DATASET, retain_sets=retain_sets), one, None, None)["model_utility"]
    assert utility["low"] == utility["value"] == utility["high"]
