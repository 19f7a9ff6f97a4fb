"""The metrics' names, order and number formats, and the table that `lethe evaluate` prints.

Knows the report's JSON; computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lethe.evaluation.unlearning.metric_values import MetricValue

# A missing value.
MISSING = "–"


@dataclass(frozen=True)
class MetricSpec:
    """One metric of the report.

    definition: a key of `metrics.DEFINITIONS`. better: "lower", "higher" or "near_twin". set: what it is measured on.
    format: "percent", "0.0e", or zeros that stand for digits.
    """

    key: str
    label: str
    definition: str
    better: str
    set: str
    format: str = "0.000"

    def as_dict(self) -> dict[str, str]:
        """Return the JSON form that the report holds."""
        return {key: getattr(self, key) for key in ("key", "label", "better", "set", "format")}


def _forget(key: str, label: str, definition: str, better: str, format: str = "0.000") -> MetricSpec:
    return MetricSpec(key, label, definition, better, "forget", format)


def _retain(name: str, label: str) -> tuple[MetricSpec, ...]:
    probability = "probability" if name == "retain" else "option_probability"
    return (
        MetricSpec(f"{name}_rouge", f"ROUGE-L recall, {label}", "rouge", "higher", name),
        MetricSpec(f"{name}_probability", f"probability, {label}", probability, "higher", name),
        MetricSpec(f"{name}_truth", f"truth-ratio score, {label}", "truth_ratio", "higher", name),
        MetricSpec(f"{name}_same", f"same answer as unguarded, {label}", "same", "higher", name, "percent"),
    )


# In the order of the printed table. A label that begins with "…" continues the one before it.
METRICS = (
    _forget("forget_rouge", "ROUGE-L recall", "rouge", "near_twin"),
    _forget("forget_rouge_sampled", "ROUGE-L recall, sampled", "rouge", "near_twin"),
    _forget("reworded_rouge", "ROUGE-L recall, reworded questions", "rouge", "near_twin"),
    _forget("knowmem", "KnowMem F1", "knowmem", "near_twin"),
    _forget("verbmem", "VerbMem F1", "verbmem", "near_twin"),
    _forget("forget_probability", "probability", "probability", "near_twin"),
    _forget("forget_truth", "truth-ratio score", "truth_ratio", "near_twin"),
    _forget("forget_quality_d", "forget quality, D", "forget_quality", "lower"),
    _forget("forget_quality", "forget quality, p", "forget_quality", "higher", "0.0e"),
    _forget("ks_rouge_d", "recall against twin, D", "ks_rouge", "lower"),
    _forget("ks_rouge_p", "recall against twin, p", "ks_rouge", "higher", "0.0e"),
    _forget("ks_rouge_sampled_d", "recall against twin, sampled, D", "ks_rouge", "lower"),
    _forget("ks_rouge_sampled_p", "recall against twin, sampled, p", "ks_rouge", "higher", "0.0e"),
    _forget("ks_likelihood_d", "likelihood against twin, D", "ks_likelihood", "lower"),
    _forget("ks_likelihood_p", "likelihood against twin, p", "ks_likelihood", "higher", "0.0e"),
    _forget("ks_likelihood_sampled_d", "likelihood against twin, sampled, D", "ks_likelihood", "lower"),
    _forget("ks_likelihood_sampled_p", "likelihood against twin, sampled, p", "ks_likelihood", "higher", "0.0e"),
    _forget("exact_memorisation", "exact memorisation", "exact_memorisation", "near_twin"),
    _forget("extraction_strength", "extraction strength", "extraction_strength", "near_twin"),
    _forget("longest_run", "longest shared run, words", "longest_run", "near_twin", "0.0"),
    _forget("leak_named", "names, titles, numbers, dates leaked", "leak", "lower", "percent"),
    _forget("leak_named_sampled", "… sampled, streamed", "leak", "lower", "percent"),
    _forget("leak_named_reworded", "… reworded questions", "leak", "lower", "percent"),
    _forget("leak_other", "other secrets leaked", "leak", "near_twin", "percent"),
    _forget("leak_other_sampled", "… sampled, streamed", "leak", "near_twin", "percent"),
    _forget("leak_other_reworded", "… reworded questions", "leak", "near_twin", "percent"),
    _forget("perplexity", "perplexity under the twin", "perplexity", "near_twin", "0.0"),
    _forget("perplexity_sampled", "perplexity under the twin, sampled", "perplexity", "near_twin", "0.0"),
    _forget("repetition", "repetition", "repetition", "lower"),
    _forget("repetition_sampled", "repetition, sampled", "repetition", "lower"),
    _forget("unique_tokens", "distinct-word ratio", "unique_tokens", "higher"),
    _forget("unique_tokens_sampled", "distinct-word ratio, sampled", "unique_tokens", "higher"),
    _forget("words_lost", "distinct words lost", "words_lost", "near_twin", "percent"),
    MetricSpec("model_utility", "model utility", "model_utility", "higher", "all retain sets"),
    *_retain("retain", "retain"),
    *_retain("real_authors", "real authors"),
    *_retain("world_facts", "world facts"),
)

_FORMATS: dict[str, Callable[[float], str]] = {
    "percent": lambda value: f"{100 * value:.2f}%",
    "0.0e": lambda value: f"{value:.1e}",
    "0.0": lambda value: f"{value:.1f}",
    "0.000": lambda value: f"{value:.3f}",
}


def format_table(report: Mapping[str, Any]) -> str:
    """Return the report as text: metrics in rows, systems in columns, then the share that the policy flags."""
    columns = report["ways"]
    label_width = max([len(m["label"]) for m in report["metrics"]] + [38]) + 2
    cell_width = max([len(system["key"]) for system in columns] + [22]) + 2

    def line(label: str, cells: list[str]) -> str:
        return label.ljust(label_width) + "".join(cell.rjust(cell_width) for cell in cells)

    lines = [line("", [system["key"] for system in columns])]
    for metric in report["metrics"]:
        values = [system["values"].get(metric["key"]) for system in columns]
        lines.append(line(metric["label"], [format_value(value, metric["format"]) for value in values]))
    variants = [(system.get("truth_ratio") or {}).get("prompt+answer") or {} for system in columns]
    if any("D" in variant for variant in variants):
        distances = [f"{variant['D']:.3f}" if "D" in variant else MISSING for variant in variants]
        lines.append(line("forget quality, D, answer corrupted too", distances))
    lines.append("")
    for name, one in report["detection"]["sets"].items():
        cell = format_value(one["flagged"], "percent")
        lines.append(line(f"flagged, {name}", [cell]) + f"  n = {one['flagged']['n']}")
    return "\n".join([*lines, "", *report["meta"]["notes"]])


def format_value(value: MetricValue | None, format: str) -> str:
    """Return a value with its interval in a metric's format, or MISSING."""
    if value is None:
        return MISSING
    write = _FORMATS.get(format, _FORMATS["0.000"])
    text = write(value["value"])
    if "low" in value:
        text += f" [{write(value['low'])}, {write(value['high'])}]"
    return text
