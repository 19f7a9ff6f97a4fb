"""The report's sections about the compared systems: all metrics, each metric, truth ratios, example answers.

Each function takes the report's JSON and returns a section for the template, or None if the JSON has nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from lethe.evaluation.reporting import page_parts, plots, score_plots
from lethe.evaluation.reporting.number_format import as_interval, finite_number, format_number
from lethe.evaluation.reporting.page_parts import (
    ARROWS,
    MAX_COLUMNS,
    Json,
    Part,
    metric_table,
    number_cell,
    simple_table,
    text_cell,
)
from lethe.evaluation.reporting.plot_layout import Scores, finite_numbers
from lethe.evaluation.reporting.summary import REFERENCES, is_forget_metric, truth_ratio_variants

# Figures of one kind that are shown at once; the others open on a click.
MAX_FIGURES = 6
# Figures beyond MAX_FIGURES that are still shown: hiding two or three would save little space.
EXTRA_FIGURES = 3
EXAMPLE_KINDS = {"forget": "forget question", "retain": "retain question"}


def all_metrics_section(report: Json) -> Part | None:
    """Tables of all systems and metrics."""
    metrics, systems = report.get("metrics") or [], report.get("ways") or []
    if not metrics or not systems:
        return None
    footnotes: dict[str, int] = {}
    definitions = (report.get("meta") or {}).get("definitions") or {}
    tables = [metric_table(part, systems, definitions, footnotes) for part in _table_parts(metrics)]
    for caption in {table["caption"] for table in tables}:
        same = [table for table in tables if table["caption"] == caption]
        for number, table in enumerate(same, 1):
            table["caption"] += f" ({number} of {len(same)})" if len(same) > 1 else ""
    return {
        "id": "results",
        "title": "All systems and metrics",
        "note": "Small numbers are 95 % confidence intervals. Arrows show which values are better: ↓ lower, ↑ higher, "
        "≈ closer to the retain twin. ● marks the best system of a column; the unguarded model and the retain twin are "
        "there for comparison and are never marked.",
        "tables": tables,
        "footnotes": sorted(footnotes, key=lambda text: footnotes[text]),
    }


def _table_parts(metrics: Sequence[Json]) -> Iterator[list[Json]]:
    """Split the metrics into tables that fit on a page: forget metrics first, and sets together where they fit."""
    for forget in (True, False):
        part: list[Json] = []
        chosen = [metric for metric in metrics if is_forget_metric(metric) == forget]
        for name in dict.fromkeys(str(metric.get("set", "")) for metric in chosen):
            group = [metric for metric in chosen if str(metric.get("set", "")) == name]
            if part and len(part) + len(group) > MAX_COLUMNS:
                yield part
                part = []
            part += group
        for start in range(0, len(part), MAX_COLUMNS):
            yield part[start : start + MAX_COLUMNS]


def each_metric_section(report: Json) -> Part | None:
    """One plot for each metric."""
    systems = report.get("ways") or []
    figures: dict[bool, list[Markup]] = {True: [], False: []}
    for metric in report.get("metrics") or ():
        rows = [
            (one["key"], str(one.get("label") or one["key"]), as_interval((one.get("values") or {}).get(metric["key"])))
            for one in systems
        ]
        label, group = metric["label"], metric["set"]
        name = label if group.casefold() in label.casefold() else f"{label}, {group}"
        title = f"{name} {ARROWS.get(str(metric.get('better')), '')}".strip()
        shares = metric.get("format") == "percent"
        figures[is_forget_metric(metric)] += page_parts.draw(plots.plot_systems, title, rows, shares=shares)
    if not systems or not any(figures.values()):
        return None
    shown = {
        forget: MAX_FIGURES if len(found) > MAX_FIGURES + EXTRA_FIGURES else len(found)
        for forget, found in figures.items()
    }
    hidden = {forget: found[shown[forget] :] for forget, found in figures.items()}
    names = {True: "forget questions", False: "retain questions"}
    return {
        "id": "before-after",
        "title": "Each metric without and with the guard",
        "note": "Square: the unguarded model. Diamond and dashed line: the retain twin. Bars: 95 % confidence "
        "intervals.",
        "figures": figures[True][: shown[True]] + figures[False][: shown[False]],
        "folded": [(f"{len(more)} more metrics on {names[forget]}", more) for forget, more in hidden.items() if more],
    }


def truth_ratio_section(report: Json) -> Part | None:
    """The distribution of truth ratios of each system, and its distance to the retain twin's."""
    systems = {system["key"]: system for system in report.get("ways") or ()}
    variants_of = {key: variants for key, system in systems.items() if (variants := truth_ratio_variants(system))}
    names = list(dict.fromkeys(name for variants in variants_of.values() for name in variants))
    if not names:
        return None

    def ratios(key: str, variant: str) -> Scores:
        # The twin and the unguarded model may have one variant only, because nothing is corrupted there.
        variants = variants_of.get(key, {})
        return finite_numbers((variants.get(variant) or next(iter(variants.values()), {})).get("ratios"))

    figures: dict[str, list[Markup]] = {name: [] for name in names}
    for variant in names:
        for key, variants in variants_of.items():
            if variant in variants and key not in REFERENCES:
                figures[variant] += page_parts.draw(
                    score_plots.plot_truth_ratios,
                    f"{systems[key].get('label') or key} ({variant})",
                    ratios(key, variant),
                    ratios("twin", variant),
                    ratios("unguarded", variant),
                    _test_result(variants[variant]),
                )
    statistics = ("D", "p", "n")
    table = simple_table(
        "Distance to the retain twin (Kolmogorov-Smirnov test)",
        ["system", *statistics * len(names)],
        [
            [
                text_cell(systems[key].get("label") or key),
                *(number_cell(variants.get(name, {}).get(statistic)) for name in names for statistic in statistics),
            ]
            for key, variants in variants_of.items()
        ],
    )
    table["columns"] = table["columns"][1:]
    table["groups"] = [(name, len(statistics)) for name in names]
    return {
        "id": "truth-ratios",
        "title": "Truth ratios",
        "note": "A truth ratio compares how probable the model finds a correct answer and wrong ones. A system that "
        "has forgotten has the same distribution as the retain twin: its solid line lies on the dashed one. D is the "
        "largest gap between the two lines, and p the probability of a gap at least this large if there were no "
        "difference.",
        "figures": figures[names[0]],
        "folded": [(f"Variant: {variant}", figures[variant]) for variant in names[1:] if figures[variant]],
        "tables": [table],
    }


def _test_result(variant: Json) -> str:
    values = {name: finite_number(variant.get(name)) for name in ("D", "p", "n")}
    return ", ".join(f"{name} {format_number(value)}" for name, value in values.items() if value is not None)


def examples_section(report: Json) -> Part | None:
    """Some questions with the answers of every system."""
    examples = report.get("examples") or []
    if not examples:
        return None
    labels = {system["key"]: str(system.get("label") or system["key"]) for system in report.get("ways") or ()}
    cards = []
    for example in examples:
        answers = example.get("answers") or {}
        keys = [key for key in labels if key in answers] + [key for key in answers if key not in labels]
        cards.append(
            {
                "kind": EXAMPLE_KINDS.get(example.get("kind"), example.get("kind")),
                "question": example.get("question"),
                "reference": example.get("reference"),
                "answers": [(labels.get(key, key), answers[key]) for key in keys if answers[key] is not None],
            }
        )
    return {"id": "examples", "title": "Example answers", "note": "", "cards": cards}
