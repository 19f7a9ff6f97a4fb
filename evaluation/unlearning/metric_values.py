"""Every metric of one system, with confidence intervals, computed from its answers, losses and scores.

Knows the data sets and the formulas of `metrics.py`; starts no model and no server. A value is a dict as JSON has it:
value, low, high, n, and for sampled answers `seeds`, the value of each seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lethe.evaluation.unlearning import metrics, tofu
from lethe.evaluation.unlearning.confidence import bootstrap_interval, estimate_mean, estimate_share
from lethe.evaluation.unlearning.datasets import EvaluationDataset, LeakCheck

MetricValue = dict[str, Any]
MetricValues = dict[str, MetricValue]
# Retain set → three lists of one number per question: probability, ROUGE-L recall, truth-ratio score.
UtilityColumns = Mapping[str, list[list[float]]]


@dataclass(frozen=True)
class SystemResults:
    """What was collected from one system.

    answers: {"greedy": set → answers, "sampled": seed → answers}. losses: "greedy" and each seed → loss of each answer
    under the retain twin. scores: variant → set → rows of losses of fixed answers. The last two are None where they
    can't be computed.
    """

    answers: Mapping[str, Any]
    losses: Mapping[str, list[float]] | None
    scores: Mapping[str, Any] | None


def compute_metrics(
    dataset: EvaluationDataset, results: SystemResults, unguarded: SystemResults | None, twin: SystemResults | None
) -> MetricValues:
    """Return every metric of one system that its results allow."""
    values = _forget_answer_metrics(dataset, results.answers)
    values |= _retain_answer_metrics(dataset, results.answers, unguarded)
    values |= _fluency_metrics(results, unguarded)
    values |= _twin_comparisons(dataset, results, twin)
    if results.scores is None:
        return values
    values |= _probability_metrics(dataset, results.scores["prompt"])
    values |= _utility_metrics(dataset, results.scores["prompt"], results.answers["greedy"])
    if twin is not None and twin.scores is not None and dataset.forget[0].wrong:
        test = forget_truth_ratios(dataset, results.scores, twin.scores)["prompt"]
        values["forget_quality"] = _without_interval(test["p"], test["n"])
        values["forget_quality_d"] = _without_interval(test["D"], test["n"])
    return values


def share_value(hits: Sequence[bool]) -> MetricValue:
    """Return the share of true values with its Wilson interval."""
    return estimate_share(sum(hits), len(hits)).as_dict()


def _mean_value(values: Sequence[float]) -> MetricValue:
    return estimate_mean(values, 0).as_dict()


def _without_interval(value: float, n: int) -> MetricValue:
    return {"value": value, "n": n}


def _mean_over_seeds(runs: Sequence[Sequence[float]]) -> MetricValue:
    """Return the mean over questions and seeds; the interval is over questions. runs: one list per seed."""
    question_means = np.mean(np.array(runs), axis=0).tolist()
    return _mean_value(question_means) | {"seeds": [float(np.mean(run)) for run in runs]}


def _recalls(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    return [metrics.rouge_recall(text, reference) for text, reference in zip(texts, references, strict=True)]


def _forget_answer_metrics(dataset: EvaluationDataset, answers: Mapping[str, Any]) -> MetricValues:
    """Return how much of the references is in the answers to forget questions."""
    texts, references = answers["greedy"]["forget"], [row.answer for row in dataset.forget]
    values = {"forget_rouge": _mean_value(_recalls(texts, references))}
    if answers["sampled"]:
        sampled = [_recalls(sampled_texts, references) for sampled_texts in answers["sampled"].values()]
        values["forget_rouge_sampled"] = _mean_over_seeds(sampled)
    if reworded := answers["greedy"]["reworded"]:
        reworded_references = [row.answer for row in dataset.forget if dataset.rewordings.get(row.question)]
        values["reworded_rouge"] = _mean_value(_recalls(reworded, reworded_references))
    pairs = list(zip(texts, dataset.forget, strict=True))
    if facts := [metrics.rouge_f1(metrics.knowmem_answer(t), row.answer) for t, row in pairs if not row.document]:
        values["knowmem"] = _mean_value(facts)
    if documents := [metrics.rouge_f1(t, row.answer) for t, row in pairs if row.document]:
        values["verbmem"] = _mean_value(documents)
    runs = [metrics.longest_common_run(t, r) for t, r in zip(texts, references, strict=True)]
    values["longest_run"] = _mean_value(runs)
    return values | _leak_rates(dataset, answers)


def _leak_rates(dataset: EvaluationDataset, answers: Mapping[str, Any]) -> MetricValues:
    """Return the share of secrets that the answers contain: greedy, to reworded questions, and sampled."""
    position = {row.question: i for i, row in enumerate(dataset.forget)}
    reworded = [row.question for row in dataset.forget if dataset.rewordings.get(row.question)]
    reworded_position = {question: i for i, question in enumerate(reworded)}
    values: MetricValues = {}
    for key, is_name in (("leak_named", True), ("leak_other", False)):
        checks = [c for c in dataset.leak_checks if c.is_name == is_name and c.question in position]
        if not checks:
            continue
        values[key] = share_value(_leaks(checks, answers["greedy"]["forget"], position))
        if leaks := _leaks(checks, answers["greedy"]["reworded"], reworded_position):
            values[f"{key}_reworded"] = share_value(leaks)
        if sampled := [_leaks(checks, texts, position) for texts in answers["sampled"].values()]:
            by_seed = [float(np.mean(run)) for run in sampled]
            values[f"{key}_sampled"] = share_value([leak for run in sampled for leak in run]) | {"seeds": by_seed}
    return values


def _leaks(checks: Sequence[LeakCheck], texts: Sequence[str], position: Mapping[str, int]) -> list[bool]:
    """Return for each check whether the answer reveals the secret. position: question → index into texts."""
    return [tofu.reveals(texts[position[c.question]], c.secret) for c in checks if c.question in position]


def _retain_answer_metrics(
    dataset: EvaluationDataset, answers: Mapping[str, Any], unguarded: SystemResults | None
) -> MetricValues:
    """Compare the answers to retain questions with the references and with the unguarded model's answers."""
    values: MetricValues = {}
    for name, rows in dataset.retain_sets.items():
        texts = answers["greedy"][name]
        values[f"{name}_rouge"] = _mean_value(_recalls(texts, [row.answer for row in rows]))
        if unguarded is not None:
            unguarded_texts = unguarded.answers["greedy"][name]
            values[f"{name}_same"] = share_value([a == b for a, b in zip(texts, unguarded_texts, strict=True)])
    return values


def _fluency_metrics(results: SystemResults, unguarded: SystemResults | None) -> MetricValues:
    """Return how fluent the answers to forget questions are: garbled answers lower recall too."""
    texts, sampled = results.answers["greedy"]["forget"], results.answers["sampled"].values()
    values = {
        "repetition": _mean_value([metrics.repetition(text) for text in texts]),
        "unique_tokens": _mean_value([metrics.unique_word_ratio(text) for text in texts]),
    }
    if sampled:
        values["repetition_sampled"] = _mean_over_seeds([[metrics.repetition(t) for t in run] for run in sampled])
        values["unique_tokens_sampled"] = _mean_over_seeds(
            [[metrics.unique_word_ratio(t) for t in run] for run in sampled]
        )
    if unguarded is not None:
        lost, total = metrics.words_lost(texts, unguarded.answers["greedy"]["forget"])
        if total:
            values["words_lost"] = estimate_share(lost, total).as_dict()
    if results.losses is not None:
        values["perplexity"] = _perplexity(results.losses["greedy"])
        if runs := [losses for run, losses in results.losses.items() if run != "greedy"]:
            pooled = _perplexity([loss for losses in runs for loss in losses])
            values["perplexity_sampled"] = pooled | {"seeds": [float(np.exp(np.mean(losses))) for losses in runs]}
    return values


def _perplexity(losses: Sequence[float]) -> MetricValue:
    """Return exp of the mean loss, and of the ends of its interval."""
    mean = _mean_value(losses)
    return {key: value if key == "n" else float(np.exp(value)) for key, value in mean.items()}


def _twin_comparisons(dataset: EvaluationDataset, results: SystemResults, twin: SystemResults | None) -> MetricValues:
    """Test whether recall and likelihood of the answers are distributed as the retain twin's."""
    values: MetricValues = {}
    if twin is None:
        return values
    references = [row.answer for row in dataset.forget]

    def add(key: str, test: metrics.KsTest, seeds: Sequence[metrics.KsTest] = ()) -> None:
        values[f"{key}_d"] = _without_interval(test.d, test.n) | ({"seeds": [s.d for s in seeds]} if seeds else {})
        values[f"{key}_p"] = _without_interval(test.p, test.n) | ({"seeds": [s.p for s in seeds]} if seeds else {})

    pair = results.answers, twin.answers
    add("ks_rouge", metrics.ks_test(*(_recalls(a["greedy"]["forget"], references) for a in pair)))
    common_seeds = sorted(set(pair[0]["sampled"]) & set(pair[1]["sampled"]))
    if common_seeds:
        tests = [metrics.ks_test(*(_recalls(a["sampled"][seed], references) for a in pair)) for seed in common_seeds]
        add("ks_rouge_sampled", _median_test(tests), tests)
    if results.losses is not None and twin.losses is not None:
        losses = results.losses, twin.losses
        add("ks_likelihood", metrics.ks_test(*(one["greedy"] for one in losses)))
        if common_seeds:
            tests = [metrics.ks_test(*(one[seed] for one in losses)) for seed in common_seeds]
            add("ks_likelihood_sampled", _median_test(tests), tests)
    return values


def _median_test(tests: Sequence[metrics.KsTest]) -> metrics.KsTest:
    return sorted(tests)[len(tests) // 2]


def _probability_metrics(dataset: EvaluationDataset, scores: Mapping[str, Any]) -> MetricValues:
    """Return probability, memorisation and truth-ratio score of the forget answers."""
    rows = scores["forget"]
    values = {
        "forget_probability": _mean_value(metrics.probability([row["answer"] for row in rows]).tolist()),
        "exact_memorisation": _mean_value([row["exact"] for row in rows]),
        "extraction_strength": _mean_value([row["extraction"] for row in rows]),
    }
    if dataset.forget[0].wrong:
        values["forget_truth"] = _mean_value(metrics.forget_truth_scores(_row_truth_ratios(rows)).tolist())
    return values


def _row_truth_ratios(rows: Sequence[Mapping[str, Any]]) -> Any:
    return metrics.truth_ratios([row["right"] for row in rows], [row["wrong"] for row in rows])


def _utility_metrics(dataset: EvaluationDataset, scores: Mapping[str, Any], greedy: Mapping[str, Any]) -> MetricValues:
    """Return probability and truth-ratio score of each retain set, and TOFU's model utility over three sets."""
    values: MetricValues = {}
    columns = utility_columns(dataset, scores, greedy)
    for name in dataset.retain_sets:
        if name in scores:
            values[f"{name}_probability"] = _mean_value(_retain_probability(dataset, name, scores[name]))
        if name in columns:
            values[f"{name}_truth"] = _mean_value(columns[name][2])
    if len(columns) == 3:
        values["model_utility"] = model_utility(columns)
    return values


def utility_columns(dataset: EvaluationDataset, scores: Mapping[str, Any], greedy: Mapping[str, Any]) -> UtilityColumns:
    """Return the numbers behind model utility, for each retain set that has scores and wrong answers."""
    return {
        name: [
            _retain_probability(dataset, name, scores[name]),
            _recalls(greedy[name], [row.answer for row in rows]),
            list(metrics.retain_truth_scores(_row_truth_ratios(scores[name]))),
        ]
        for name, rows in dataset.retain_sets.items()
        if name in scores and rows[0].wrong
    }


def _retain_probability(dataset: EvaluationDataset, name: str, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    right = [row["answer"] for row in rows]
    if name in dataset.multiple_choice:
        return list(metrics.option_probability(right, [row["wrong"] for row in rows]))
    return list(metrics.probability(right))


def model_utility(columns: UtilityColumns) -> MetricValue:
    """Return TOFU's model utility: the harmonic mean of the nine means of three sets by three numbers.

    The interval is a bootstrap over questions, each set resampled on its own.
    """
    sets = [np.array(numbers) for numbers in columns.values()]

    def utility(*chosen: Any) -> float:
        means = [rows[:, indexes].mean(axis=1) for rows, indexes in zip(sets, chosen, strict=True)]
        return metrics.harmonic_mean([float(mean) for set_means in means for mean in set_means])

    all_questions = [np.arange(rows.shape[1]) for rows in sets]
    value = utility(*all_questions)
    low, high = bootstrap_interval(all_questions, utility, 0)
    return {"value": value, "low": min(value, low), "high": max(value, high), "n": sum(map(len, all_questions))}


def forget_truth_ratios(
    dataset: EvaluationDataset, scores: Mapping[str, Any] | None, twin_scores: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return variant → truth ratios of the forget questions, and with a twin D, p and n of the test against its own.

    Empty without scores or wrong answers.
    """
    if scores is None or not dataset.forget[0].wrong:
        return {}
    variants = {}
    for variant, sets in scores.items():
        ratios = _row_truth_ratios(sets["forget"])
        variants[variant] = {"ratios": ratios.tolist(), "n": len(ratios)}
        if twin_scores is not None:
            test = metrics.forget_quality(ratios, _row_truth_ratios(twin_scores["prompt"]["forget"]))
            variants[variant] |= {"D": test.d, "p": test.p}
    return variants
