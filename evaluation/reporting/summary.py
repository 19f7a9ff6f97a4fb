"""The summary of an evaluation in a few sentences: what was forgotten, what it cost, what leaked. Pure.

Every sentence is made from the report's numbers and names the system that they belong to; what wasn't measured isn't
mentioned. Knows the JSON of `lethe evaluate`, no page and no plot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lethe.evaluation.reporting.number_format import (
    as_interval,
    finite_number,
    format_interval,
    format_number,
    format_percent,
    format_short,
)

HEADINGS = {"forgotten": "What was forgotten", "cost": "What it cost", "leaked": "What leaked"}
# Systems for comparison: how the model is, and how it should be.
REFERENCES = ("unguarded", "twin")
# Systems that need no guard; all others are variants of the policy.
BASELINES = (*REFERENCES, "refusal", "prompt")
# The system that is the policy as configured.
AS_CONFIGURED = "policy"
# Metrics in the summary, so that it stays short.
MAX_FORGET_METRICS = 3
MAX_LEAK_METRICS = 4
# Names of equally good systems in one sentence; of more, the first two and the number of the others.
MAX_NAMES = 3

Json = Mapping[str, Any]


def best_systems(metric: Json, systems: Sequence[Json]) -> set[str]:
    """Return the keys of the systems with the best value of a metric, without the unguarded model and the twin.

    For "near_twin" the best value is the closest to the twin's; without a twin none is best. Equal values are all best.
    """
    rated = {system["key"]: value for system in systems if (value := _value(system, metric)) is not None}
    better = metric.get("better")
    if better == "near_twin":
        twin = rated.get("twin", math.nan)
        rated = {key: abs(value - twin) for key, value in rated.items()}
    elif better == "higher":
        rated = {key: -value for key, value in rated.items()}
    elif better != "lower":
        return set()
    rated = {key: value for key, value in rated.items() if key not in REFERENCES and not math.isnan(value)}
    return {key for key, value in rated.items() if value == min(rated.values())}


def summarize(report: Json) -> dict[str, list[str]]:
    """Return heading key (see HEADINGS) → sentences."""
    return {
        "forgotten": list(_forgotten_sentences(report)),
        "cost": list(_cost_sentences(report)),
        "leaked": list(_leak_sentences(report)),
    }


def _forgotten_sentences(report: Json) -> Iterator[str]:
    yield from _flagged_sentence(report, "forget", "Flagged")
    # Of several metrics with one definition (greedy, sampled), the first.
    metrics: dict[str, Json] = {}
    for metric in _metrics_of(report, forget=True):
        if metric.get("better") in ("near_twin", "higher") and not _is_leak_metric(metric):
            metrics.setdefault(_definition(report, metric), metric)
    for metric in list(metrics.values())[:MAX_FORGET_METRICS]:
        yield from _comparison_sentence(report, metric)
    yield from _truth_ratio_sentences(report)
    steps = [(step.get("requests"), _rate(step, "recall")) for step in report.get("sequential") or ()]
    measured = [(requests, rate) for requests, rate in steps if rate is not None]
    if len(measured) > 1:
        (first, first_rate), (last, last_rate) = measured[0], measured[-1]
        yield (
            f"After {last} successive forget requests, {format_percent(last_rate)} of the forget questions are "
            f"flagged; after {first}, {format_percent(first_rate)}."
        )


def _truth_ratio_sentences(report: Json) -> Iterator[str]:
    """Yield, for each variant, the system whose truth ratios are closest to the twin's."""
    distances: dict[str, list[tuple[float, Json]]] = {}
    for system in _guarded(report):
        for variant, ratios in truth_ratio_variants(system).items():
            if (distance := finite_number(ratios.get("D"))) is not None:
                distances.setdefault(variant, []).append((distance, system))
    unguarded = next((one for one in report.get("ways") or () if one["key"] == "unguarded"), {})
    for variant, candidates in distances.items():
        distance, system = min(candidates, key=lambda pair: pair[0])
        p = finite_number(truth_ratio_variants(system)[variant].get("p"))
        unguarded_distance = finite_number(truth_ratio_variants(unguarded).get(variant, {}).get("D"))
        yield (
            f"Truth ratios ({variant}) are closest to the retain twin's for {_label(system)}: "
            f"D {format_short(distance)}"
            + ("" if p is None else f", p {format_short(p)}")
            + ("." if unguarded_distance is None else f"; unguarded model D {format_short(unguarded_distance)}.")
        )


def _cost_sentences(report: Json) -> Iterator[str]:
    yield from _flagged_sentence(report, "other", "Flagged by mistake")
    unguarded = next((one for one in report.get("ways") or () if one["key"] == "unguarded"), None)
    losses = []
    metrics = [metric for metric in _metrics_of(report, forget=False) if metric.get("better") == "higher"]
    for metric in metrics if unguarded else ():
        for system in _guarded(report):
            before, after = _value(unguarded, metric), _value(system, metric)
            if before is not None and after is not None:
                losses.append((before - after, metric, system, before, after))
    if losses:
        loss, metric, system, before, after = max(losses, key=lambda one: one[0])
        form = metric.get("format")
        if loss > 0:
            yield (
                f"The largest loss on retain questions: {_metric_name(metric)} is {format_number(after, form)} for "
                f"{_label(system)}, and {format_number(before, form)} for the unguarded model."
            )
        else:
            yield "No metric on retain questions is worse than the unguarded model's, for any guarded system."
    seconds = [value for step in report.get("sequential") or () if (value := _rate(step, "fit_s")) is not None]
    if seconds:
        yield f"Fitting a forget request took at most {format_short(max(seconds))} s."


def _leak_sentences(report: Json) -> Iterator[str]:
    leak_metrics = [metric for metric in _metrics_of(report, forget=True) if _is_leak_metric(metric)]
    for metric in leak_metrics[:MAX_LEAK_METRICS]:
        yield from _comparison_sentence(report, metric)
    yield from _copied_run_sentence(report)
    families = report.get("attack") or {}
    recall = {name: rate for name, one in families.items() if (rate := _rate(one, "recall")) is not None}
    if recall:
        name = min(recall, key=lambda one: recall[one])
        bounds = format_interval(as_interval(families[name]["recall"]), "percent")
        yield (
            f"The attack that evades the detector most often is {name}: {format_percent(recall[name])} flagged"
            + (f" ({bounds})." if bounds else ".")
        )


def _copied_run_sentence(report: Json) -> Iterator[str]:
    verbatim = report.get("verbatim") or {}
    longest = {}
    for system, runs in (verbatim.get("runs") or {}).items():
        if lengths := [length for run in runs if (length := finite_number(run)) is not None]:
            longest[system] = max(lengths)
    if not longest:
        return
    labels = {system["key"]: _label(system) for system in report.get("ways") or ()}
    runs = ", ".join(f"{format_short(length)} for {labels.get(key, key)}" for key, length in longest.items())
    limit = finite_number(verbatim.get("limit"))
    yield f"Longest copied run, in tokens: {runs}" + (
        "." if limit is None else f"; the limit is {format_short(limit)}."
    )


def _flagged_sentence(report: Json, kind: str, beginning: str) -> Iterator[str]:
    """Yield one sentence with the flagged share of every set of one kind, if there is any."""
    sets = (report.get("detection") or {}).get("sets") or {}
    shares = []
    for name, one in sets.items():
        rate = _rate(one, "flagged")
        if (one.get("kind") == "forget") == (kind == "forget") and rate is not None:
            count = finite_number(as_interval(one["flagged"]).get("n")) or len(one.get("scores") or ())
            shares.append(f"{name.replace('_', ' ')} {format_percent(rate)} of {count:,.0f}")
    if shares:
        yield f"{beginning}: {'; '.join(shares)}."


def _comparison_sentence(report: Json, metric: Json) -> Iterator[str]:
    """Yield the policy's value, or the best guarded system's, next to the unguarded model's and the twin's."""
    systems = {system["key"]: system for system in report.get("ways") or ()}
    guarded = _guarded(report)
    best_keys = best_systems(metric, [*guarded, *(systems[key] for key in REFERENCES if key in systems)])
    best = [system for system in guarded if system["key"] in best_keys]
    configured = systems.get(AS_CONFIGURED, {})
    chosen = [configured] if configured and _value(configured, metric) is not None else best
    if not chosen:
        return
    form = metric.get("format")
    bounds = format_interval(as_interval(chosen[0]["values"][metric["key"]]), form)
    name = _metric_name(metric)
    parts = [
        f"{name[:1].upper()}{name[1:]}: {format_number(_value(chosen[0], metric), form)} for {_names(chosen)}"
        + f" ({bounds})" * bool(bounds)
    ]
    parts += [
        f"{label} {format_number(_value(systems[key], metric), form)}"
        for key, label in (("unguarded", "unguarded model"), ("twin", "retain twin"))
        if key in systems and _value(systems[key], metric) is not None
    ]
    if best and configured not in best and chosen != best:
        parts.append(f"best {format_number(_value(best[0], metric), form)} for {_names(best)}")
    yield "; ".join(parts) + "."


def _names(systems: Sequence[Json]) -> str:
    """Return the labels of some systems, or the first two and the number of the others."""
    labels = [_label(system) for system in systems]
    if len(labels) <= MAX_NAMES:
        return " and ".join(labels)
    return f"{labels[0]}, {labels[1]} and {len(labels) - 2} others"


def truth_ratio_variants(system: Json) -> dict[str, Json]:
    """Return variant → truth ratios of a system, whether its JSON has one variant or several."""
    entry = system.get("truth_ratio") or {}
    if "D" in entry or "ratios" in entry:
        return {str(entry.get("variant", "prompt")): entry}
    return {str(variant): ratios for variant, ratios in entry.items() if ratios}


def is_forget_metric(metric: Json) -> bool:
    """Return whether a metric is measured on forget questions."""
    return str(metric.get("set", "")).startswith("forget")


def _metrics_of(report: Json, *, forget: bool) -> list[Json]:
    return [metric for metric in report.get("metrics") or () if is_forget_metric(metric) == forget]


def _is_leak_metric(metric: Json) -> bool:
    return "leak" in str(metric.get("key"))


def _guarded(report: Json) -> list[Json]:
    return [system for system in report.get("ways") or () if system["key"] not in BASELINES]


def _value(system: Json, metric: Json) -> float | None:
    return finite_number(as_interval((system.get("values") or {}).get(metric["key"])).get("value"))


def _rate(entry: Json, key: str) -> float | None:
    return finite_number(as_interval(entry.get(key)).get("value"))


def _label(system: Json) -> str:
    return str(system.get("label") or system["key"])


def _metric_name(metric: Json) -> str:
    name, group = str(metric.get("label") or metric["key"]), str(metric.get("set") or "").replace("_", " ")
    return name if not group or group.casefold() in name.casefold() else f"{name} ({group})"


def _definition(report: Json, metric: Json) -> str:
    definitions = (report.get("meta") or {}).get("definitions") or {}
    return str(definitions.get(metric["key"]) or metric["key"])
