"""The report's sections about the policy: detection, tuning, successive requests, copied text, attacks.

Each function takes the report's JSON and returns a section for the template, or None if the JSON has nothing for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lethe.evaluation.reporting import page_parts, plots, score_plots
from lethe.evaluation.reporting.number_format import as_interval, finite_number
from lethe.evaluation.reporting.page_parts import Json, Part, number_cell, simple_table, text_cell
from lethe.evaluation.reporting.plot_layout import finite_numbers


class SequenceQuantity(NamedTuple):
    """One quantity that is measured after each forget request. share: whether it is shown in per cent."""

    key: str
    title: str
    share: bool
    unit: str


SEQUENCE_QUANTITIES = (
    SequenceQuantity("recall", "Recall on forget questions so far", True, "flagged"),
    SequenceQuantity("false_alarms", "False alarms", True, "flagged by mistake"),
    SequenceQuantity("utility", "Utility on retain questions", False, "utility"),
    SequenceQuantity("fit_s", "Time to fit", False, "seconds"),
    SequenceQuantity("judge_ms", "Time to judge a prompt", False, "milliseconds"),
)


def detection_section(report: Json) -> Part | None:
    """Which prompts the policy flags."""
    detection = report.get("detection") or {}
    sets, threshold = detection.get("sets") or {}, detection.get("threshold")
    if not sets:
        return None
    rows = [
        [
            text_cell(name.replace("_", " ")),
            text_cell("yes" if one.get("kind") == "forget" else "no"),
            number_cell(one.get("flagged"), "percent"),
            number_cell(len(finite_numbers(one.get("scores"))) or as_interval(one.get("flagged")).get("n")),
        ]
        for name, one in sets.items()
    ]
    figures = page_parts.draw(score_plots.plot_scores, sets, threshold)
    return {
        "id": "detection",
        "title": "Detection of prompts",
        "note": "A prompt is flagged if its forget score reaches the threshold. Orange sets should be flagged, blue "
        "sets should not. Bar heights are square roots of shares, so that single prompts are visible.",
        "figures": figures + page_parts.draw(score_plots.plot_roc, sets, threshold),
        "tables": [simple_table("Flagged prompts", ["set", "should be flagged", "flagged", "prompts"], rows)],
    }


def tuning_section(report: Json) -> Part | None:
    """How each tuned parameter was chosen."""
    entries = report.get("tuning") or []
    figures, tables, notes = [], [], []
    for tuning in [entries] if isinstance(entries, Mapping) else entries:
        evaluations, chosen = tuning.get("evaluations") or [], finite_number(tuning.get("chosen"))
        if not evaluations or chosen is None:
            continue
        parameter = str(tuning.get("parameter") or "parameter")
        parameter = {"sigma": "σ"}.get(parameter, parameter)
        target = finite_number(tuning.get("target"))
        figures += page_parts.draw(
            plots.plot_tuning_curve, evaluations, parameter=parameter, chosen=chosen, target=target, standalone=False
        )
        rows = [
            [text_cell(number), *(number_cell(one.get(key)) for key in ("x", "metric", "objective"))]
            for number, one in enumerate(evaluations, 1)
        ]
        caption = f"{parameter}, in the order of evaluation"
        tables.append(simple_table(caption, ["evaluation", parameter, "metric", "objective"], rows))
        notes += [f"{name.capitalize()}: {tuning[name]}." for name in ("metric", "objective") if tuning.get(name)]
    if not tables:
        return None
    note = " ".join(dict.fromkeys(notes))
    return {
        "id": "tuning",
        "title": "Tuning of the policy's strength",
        "note": note,
        "figures": figures,
        "tables": tables,
    }


def sequence_section(report: Json) -> Part | None:
    """Recall, false alarms, utility and cost after each of several forget requests."""
    steps = report.get("sequential") or []
    if not steps:
        return None
    quantities = [one for one in SEQUENCE_QUANTITIES if any(step.get(one.key) is not None for step in steps)]
    figures = [
        figure
        for one in quantities
        for figure in page_parts.draw(plots.plot_sequence, steps, one.key, one.title, shares=one.share, unit=one.unit)
    ]
    rows = [
        [
            text_cell(step.get("requests")),
            *(number_cell(step.get(one.key), "percent" if one.share else None) for one in quantities),
        ]
        for step in steps
    ]
    columns = ["requests", *(one.title if one.share else f"{one.title}, {one.unit}" for one in quantities)]
    return {
        "id": "sequential",
        "title": "Successive forget requests",
        "note": "The grey band is the 95 % confidence interval after the first request. A value inside it has not "
        "measurably changed.",
        "figures": figures,
        "details": [simple_table("After each request", columns, rows)],
    }


def copies_section(report: Json) -> Part | None:
    """How many tokens of protected text the answers copy."""
    verbatim = report.get("verbatim") or {}
    labels = {system["key"]: str(system.get("label") or system["key"]) for system in report.get("ways") or ()}
    runs = {key: values for key, run in (verbatim.get("runs") or {}).items() if len(values := finite_numbers(run))}
    if not runs:
        return None
    rows = [
        [
            text_cell(labels.get(key, key)),
            number_cell(float(values.max())),
            number_cell(float(np.median(values))),
            number_cell(len(values)),
        ]
        for key, values in runs.items()
    ]
    return {
        "id": "verbatim",
        "title": "Copies of protected text",
        "note": "The longest run of tokens that an answer copies from the protected text, for each passage.",
        "figures": page_parts.draw(plots.plot_longest_copies, runs, labels, verbatim.get("limit")),
        "tables": [simple_table("Longest copied run, in tokens", ["system", "longest", "median", "passages"], rows)],
    }


def attack_section(report: Json) -> Part | None:
    """How many disguised prompts the policy flags."""
    families = report.get("attack") or {}
    if not families:
        return None
    figures, has_limits = [], False
    for key, title, limit_key in (
        ("recall", "Recall on disguised forget prompts", "floor"),
        ("false_alarms", "False alarms on other disguised prompts", "most_false_alarms"),
    ):
        rows = [(name, as_interval(one.get(key))) for name, one in families.items()]
        limit = finite_number(report.get(limit_key))
        has_limits = has_limits or limit is not None
        figures += page_parts.draw(plots.plot_attack_families, title, rows, line=limit)
    cells = [
        [text_cell(name), *(number_cell(one.get(key), "percent") for key in ("recall", "false_alarms"))]
        for name, one in families.items()
    ]
    return {
        "id": "attack",
        "title": "Attempts to evade the detector",
        "note": "Recall: share of forget prompts that are still flagged in a disguise. False alarms: share of other "
        "prompts that are flagged in the same disguise." + " Dashed lines: the limits that were required." * has_limits,
        "figures": figures,
        "tables": [simple_table("Kinds of attack", ["attack", "recall", "false alarms"], cells)],
    }
