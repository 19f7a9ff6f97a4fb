"""What the sections of a report are built from: figures, tables, cells. Knows no particular section.

All parts are dicts, because the template reads them: see `templates/report.html`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from lethe.evaluation.reporting.number_format import (
    as_interval,
    finite_number,
    format_interval,
    format_number,
    format_short,
)
from lethe.evaluation.reporting.plot_layout import NothingToDrawError
from lethe.evaluation.reporting.summary import best_systems, is_forget_metric

# Columns of one table: what fits on a printed page.
MAX_COLUMNS = 8
# How a metric's direction is marked.
ARROWS = {"lower": "↓", "higher": "↑", "near_twin": "≈"}
CAPTIONS = {True: "Forget questions", False: "Retain questions"}

Json = Mapping[str, Any]
# A dict that the template reads.
Part = dict[str, Any]
# The keys of a section; `folded` are figures and `details` tables that open on a click; `cards` are example questions.
EMPTY_SECTION: Part = {
    "note": "",
    "figures": [],
    "folded": [],
    "tables": [],
    "footnotes": [],
    "details": [],
    "cards": [],
}


def draw(plot: Callable[..., str], *args: Any, **options: Any) -> list[Markup]:
    """Return the plot as a list of one, or an empty list if it has nothing to draw.

    Marked as safe: `svg.py` escapes all text in a plot.
    """
    try:
        return [Markup(plot(*args, **options))]
    except NothingToDrawError:
        return []


def number_cell(entry: Any, form: str | None = None) -> Part:
    """Return a cell for a number or interval: rounded text, exact value, interval, and a tooltip with n and seeds."""
    interval = as_interval(entry)
    value = finite_number(interval.get("value"))
    details = [f"n = {format_short(n)}"] if (n := finite_number(interval.get("n"))) is not None else []
    if seeds := [finite_number(seed) for seed in interval.get("seeds") or ()]:
        details.append("seeds: " + ", ".join(format_number(seed, form) for seed in seeds))
    return {
        "text": format_number(value, form),
        "exact": None if value is None else repr(value),
        "interval": format_interval(interval, form) if value is not None else "",
        "tooltip": "; ".join(details) if value is not None else "",
        "best": False,
        "is_text": False,
    }


def text_cell(text: Any) -> Part:
    """Return a cell for a text."""
    return {"text": str(text), "exact": None, "interval": "", "tooltip": "", "best": False, "is_text": True}


def simple_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Part]]) -> Part:
    """Return a table without column groups. The first cell of each row is its heading."""
    is_text = [all(row[index]["is_text"] for row in rows) for index in range(len(columns))]
    return {
        "caption": caption,
        "wide": False,
        "groups": [],
        "columns": [
            {"label": label, "arrow": "", "note": None, "is_text": text}
            for label, text in zip(columns, is_text, strict=True)
        ],
        "rows": [{"label": heading["text"], "key": "", "cells": cells} for heading, *cells in rows],
    }


def metric_table(
    metrics: Sequence[Json], systems: Sequence[Json], definitions: Mapping[str, str], footnotes: dict[str, int]
) -> Part:
    """Return a table with one row per system and one column per metric.

    definitions: metric key → text. footnotes: definition → number; new definitions are added to it.
    """
    columns, groups = [], []
    for metric in metrics:
        name = str(metric.get("set", ""))
        if not groups or groups[-1][0] != name:
            groups.append((name, 0))
        groups[-1] = (name, groups[-1][1] + 1)
        definition = definitions.get(metric["key"]) or metric.get("definition")
        columns.append(
            {
                "label": str(metric.get("label") or metric["key"]),
                "arrow": ARROWS.get(str(metric.get("better")), ""),
                "note": footnotes.setdefault(definition, len(footnotes) + 1) if definition else None,
                "is_text": False,
            }
        )
    best = [best_systems(metric, systems) for metric in metrics]
    rows = []
    for system in systems:
        cells = []
        for metric, best_keys in zip(metrics, best, strict=True):
            entry = (system.get("values") or {}).get(metric["key"])
            cells.append(number_cell(entry, metric.get("format")) | {"best": system["key"] in best_keys})
        rows.append({"label": str(system.get("label") or system["key"]), "key": system["key"], "cells": cells})
    return {
        "caption": CAPTIONS[is_forget_metric(metrics[0])],
        "wide": True,
        "groups": groups if any(name for name, _ in groups) else [],
        "columns": columns,
        "rows": rows,
    }
