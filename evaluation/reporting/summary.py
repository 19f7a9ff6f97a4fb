"""An evaluation in a few plain sentences: what was forgotten, what it cost, what leaked. Pure.

Every sentence is made from the numbers of the report and says which way of answering they belong to; what wasn't
measured is not mentioned. Knows the JSON of `lethe evaluate`, no page and no plot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lethe.evaluation.reporting.number_format import as_interval, interval, number, percent, short, show

HEADINGS = {"forgotten": "What was forgotten", "cost": "What it cost", "leaked": "What leaked"}
# Ways that show how the model is or should be, and baselines that anybody has; all others are the guard's.
REFERENCES = ("unguarded", "twin")
BASELINES = (*REFERENCES, "refusal", "prompt")
OWN = "policy"  # the policy as it stands, where other ways change it
MOST_METRICS = 3
MOST_LEAKS = 4

Json = Mapping[str, Any]


def best(metric: Json, ways: Sequence[Json]) -> set[str]:
    """The keys of the ways with the best value of a metric, the unguarded model and the twin left out.

    Nearest to the twin counts for "near_twin", and nothing is best without a twin. Equals are all best.
    """
    rated = {way["key"]: value for way in ways if (value := _value(way, metric)) is not None}
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


def summary(report: Json) -> dict[str, list[str]]:
    """Heading key → sentences; see HEADINGS."""
    return {"forgotten": list(_forgotten(report)), "cost": list(_cost(report)), "leaked": list(_leaked(report))}


def _forgotten(report: Json) -> Iterator[str]:
    yield from _detected(report, "forget", "Flagged")
    metrics = {}
    for metric in _metrics(report, "forget"):
        if metric.get("better") in ("near_twin", "higher") and not _leaks(metric):
            metrics.setdefault(_definition(report, metric), metric)  # of several forms of one metric, the first
    for metric in list(metrics.values())[:MOST_METRICS]:
        yield from _compared(report, metric)
    yield from _truth_ratio(report)
    steps = [(step.get("requests"), _rate(step, "recall")) for step in report.get("sequential") or ()]
    told = [(requests, rate) for requests, rate in steps if rate is not None]
    if len(told) > 1:
        (first, before), (last, after) = told[0], told[-1]
        yield (
            f"After {last} forget requests one after another, {percent(after)} of what is to be forgotten is flagged; "
            f"after {first}, {percent(before)}."
        )


def _truth_ratio(report: Json) -> Iterator[str]:
    """The smallest distance between truth ratios and the twin's, for each variant."""
    gaps: dict[str, list[tuple[float, Json]]] = {}
    for way in report.get("ways") or ():
        for variant, shape in truth_ratios(way).items():
            if way["key"] not in BASELINES and (gap := number(shape.get("D"))) is not None:
                gaps.setdefault(variant, []).append((gap, way))
    for variant, found in gaps.items():
        gap, way = min(found, key=lambda pair: pair[0])
        shape = truth_ratios(way)[variant]
        bare = next((one for one in report["ways"] if one["key"] == "unguarded"), {})
        without = number(truth_ratios(bare).get(variant, {}).get("D"))
        p = number(shape.get("p"))
        yield (
            f"Truth ratios ({variant}) are nearest to the twin's with {_label(way)}: D {short(gap)}"
            + ("" if p is None else f", p {short(p)}")
            + ("." if without is None else f"; unguarded D {short(without)}.")
        )


def _cost(report: Json) -> Iterator[str]:
    yield from _detected(report, "other", "Flagged by mistake")
    bare = {way["key"]: way for way in report.get("ways") or ()}.get("unguarded")
    drops = []
    kept = [metric for metric in _metrics(report, None) if metric.get("better") == "higher"]
    for metric in kept if bare else ():
        for way in _guarded(report):
            before, after = _value(bare, metric), _value(way, metric)
            if before is not None and after is not None:
                drops.append((before - after, metric, way, before, after))
    if drops:
        drop, metric, way, before, after = max(drops, key=lambda one: one[0])
        form = metric.get("format")
        if drop > 0:
            yield (
                f"The largest loss on what was to be kept: {_name(metric)} with {_label(way)}, {show(after, form)} "
                f"after {show(before, form)} unguarded."
            )
        else:
            yield "No metric of what was to be kept is worse than the unguarded model's, in any way of guarding."
    took = [seconds for step in report.get("sequential") or () if (seconds := _rate(step, "fit_s")) is not None]
    if took:
        yield f"Fitting took at most {short(max(took))} s."


def _leaked(report: Json) -> Iterator[str]:
    for metric in [metric for metric in _metrics(report, "forget") if _leaks(metric)][:MOST_LEAKS]:
        yield from _compared(report, metric)
    verbatim = report.get("verbatim") or {}
    longest = {}
    for way, runs in (verbatim.get("runs") or {}).items():
        if lengths := [length for run in runs if (length := number(run)) is not None]:
            longest[way] = max(lengths)
    labels = {way["key"]: _label(way) for way in report.get("ways") or ()}
    if longest:
        runs = ", ".join(f"{short(length)} with {labels.get(way, way)}" for way, length in longest.items())
        limit = number(verbatim.get("limit"))
        yield f"Longest copied run, in tokens: {runs}" + (
            f"; the limit is {short(limit)}." if limit is not None else "."
        )
    families = report.get("attack") or {}
    rates = {name: rate for name, one in families.items() if (rate := _rate(one, "recall")) is not None}
    if rates:
        name = min(rates, key=lambda one: rates[one])
        bounds = interval(as_interval(families[name]["recall"]), "percent")
        yield (
            f"The attack family that gets past the detector most often is {name}: {percent(rates[name])} flagged"
            + (f" ({bounds})." if bounds else ".")
        )


def _detected(report: Json, kind: str, verb: str) -> Iterator[str]:
    """The flagged share of every set of one kind, in one sentence."""
    sets = (report.get("detection") or {}).get("sets") or {}
    told = []
    for name, one in sets.items():
        rate = _rate(one, "flagged")
        if (one.get("kind") == "forget") == (kind == "forget") and rate is not None:
            count = number(as_interval(one["flagged"]).get("n")) or len(one.get("scores") or ())
            told.append(f"{name.replace('_', ' ')} {percent(rate)} of {count:,.0f}")
    if told:
        yield f"{verb}: {'; '.join(told)}."


def _compared(report: Json, metric: Json) -> Iterator[str]:
    """The policy's own value, or the guard's best one, beside the unguarded model and the twin."""
    ways = {way["key"]: way for way in report.get("ways") or ()}
    found = best(metric, [*_guarded(report), *(ways[key] for key in REFERENCES if key in ways)])
    leading = [way for way in _guarded(report) if way["key"] in found]
    own = ways.get(OWN, {})
    chosen = [own] if own and _value(own, metric) is not None else leading
    if not chosen:
        return
    form = metric.get("format")
    bounds = interval(as_interval(chosen[0]["values"][metric["key"]]), form)
    name = _name(metric)
    told = (
        f"{name[:1].upper()}{name[1:]}: {show(_value(chosen[0], metric), form)} with {_all(chosen)}"
        + f" ({bounds})" * bool(bounds)
    )
    beside = [
        f"{show(_value(ways[key], metric), form)} {name}"
        for key, name in (("unguarded", "unguarded"), ("twin", "for the retain twin"))
        if key in ways and _value(ways[key], metric) is not None
    ]
    if leading and own not in leading and chosen != leading:
        beside.append(f"best {show(_value(leading[0], metric), form)} with {_all(leading)}")
    yield "; ".join([told, *beside]) + "."


def _all(ways: Sequence[Json]) -> str:
    """The names of some ways; of many, the first two and how many more."""
    names = [_label(way) for way in ways]
    return " and ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]} and {len(names) - 2} others"


def truth_ratios(way: Json) -> dict[str, Json]:
    """Variant → truth ratios of a way, whether it has one variant or several."""
    given = way.get("truth_ratio") or {}
    if "D" in given or "ratios" in given:
        return {str(given.get("variant", "prompt")): given}
    return {str(variant): shape for variant, shape in given.items() if shape}


def _metrics(report: Json, wanted: str | None) -> list[Json]:
    """The metrics on forget sets, or with None those on all other sets."""
    return [one for one in report.get("metrics") or () if is_forget(one) == (wanted == "forget")]


def is_forget(metric: Json) -> bool:
    """Whether a metric is taken on what is to be forgotten."""
    return str(metric.get("set", "")).startswith("forget")


def _leaks(metric: Json) -> bool:
    return "leak" in str(metric.get("key"))


def _guarded(report: Json) -> list[Json]:
    return [way for way in report.get("ways") or () if way["key"] not in BASELINES]


def _value(way: Json, metric: Json) -> float | None:
    return number(as_interval((way.get("values") or {}).get(metric["key"])).get("value"))


def _rate(entry: Json, key: str) -> float | None:
    return number(as_interval(entry.get(key)).get("value"))


def _label(way: Json) -> str:
    return str(way.get("label") or way["key"])


def _name(metric: Json) -> str:
    name, group = str(metric.get("label") or metric["key"]), str(metric.get("set") or "").replace("_", " ")
    return name if not group or group.casefold() in name.casefold() else f"{name} ({group})"


def _definition(report: Json, metric: Json) -> str:
    definitions = (report.get("meta") or {}).get("definitions") or {}
    return str(definitions.get(metric["key"]) or metric["key"])
