"""One evaluation as one HTML page: `lethe evaluate`'s JSON in, a file for people out.

Everything the page needs is in it: no script, no font, no picture from elsewhere, under a Content-Security-Policy that
allows nothing but its own style sheet. Questions, answers and names are other people's text and are escaped. Whatever
the JSON doesn't have is left out of the page. Knows no model and no server.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation import plots, svg
from evaluation.formats import as_interval, interval, number, short, show
from evaluation.summary import HEADINGS, REFERENCES, best, is_forget, summary, truth_ratios

FORMAT = 1
TEMPLATES = Path(__file__).parent / "templates"
MOST_COLUMNS = 8  # of one table: what fits on paper
ARROWS = {"lower": "↓", "higher": "↑", "near_twin": "≈"}
SEQUENTIAL = (
    ("recall", "Recall on what is forgotten so far", True, "flagged"),
    ("false_alarms", "False alarms", True, "flagged by mistake"),
    ("utility", "Utility on what is kept", False, "utility"),
    ("fit_s", "Time to fit", False, "seconds"),
    ("judge_ms", "Time to judge a prompt", False, "milliseconds"),
)

Json = Mapping[str, Any]
# A section of the page: id, title, note (what to look for), figures, tables, details (folded tables), cards.
Section = dict[str, Any]
EMPTY: Section = {"note": "", "figures": [], "tables": [], "footnotes": [], "details": [], "cards": []}


def render(report: Json) -> str:
    """The page as text. Raises ValueError for a format that this code doesn't know."""
    if report.get("format") != FORMAT:
        raise ValueError(f"format {report.get('format')!r} of the evaluation: only {FORMAT} is known")
    style = svg.style() + (TEMPLATES / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    data = json.dumps(_strict(report), ensure_ascii=False, allow_nan=False)
    meta = report.get("meta") or {}
    made = [make(report) for make in SECTIONS]
    page = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html")
    return page.render(
        digest=digest,
        style=Markup(style),
        title=f"Evaluation of {meta['policy']}" if meta.get("policy") else "Evaluation",
        meta=meta,
        data=base64.b64encode(data.encode(errors="replace")).decode(),
        file=re.sub(r"[^\w.-]+", "-", str(meta.get("policy") or "evaluation")) + ".json",
        summary=[(HEADINGS[key], lines) for key, lines in summary(report).items() if lines],
        sections=[EMPTY | section for section in made if section],
        facts=_facts(meta),
    )


def write(source: Path, output: Path) -> Path:
    """Render a file of `lethe evaluate`; the page comes whole or not at all. ValueError when it isn't one."""
    try:
        report = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{source}: not JSON: {error}") from None
    if not isinstance(report, dict):
        raise ValueError(f"{source}: not an evaluation, which is a JSON object")
    page = render(report)
    output.write_text(page, encoding="utf-8", errors="replace")
    return output


def _results(report: Json) -> Section | None:
    """The tables of all ways and metrics."""
    metrics, ways = report.get("metrics") or [], report.get("ways") or []
    if not metrics or not ways:
        return None
    notes: dict[str, int] = {}
    definitions = (report.get("meta") or {}).get("definitions") or {}
    tables = [_table(part, ways, definitions, notes) for part in _parts(metrics)]
    return {
        "id": "results",
        "title": "Every way of answering",
        "note": "Small figures are 95 % intervals. Arrows say what is better: ↓ lower, ↑ higher, ≈ nearer to the "
        "retain twin. ● marks the best value of a column; the unguarded model and the twin don't compete.",
        "tables": tables,
        "footnotes": sorted(notes, key=lambda text: notes[text]),
    }


def _parts(metrics: Sequence[Json]) -> Iterator[list[Json]]:
    """Metrics in tables that fit on paper: forget sets apart from all others, sets kept together where that fits."""
    for forget in (True, False):
        part: list[Json] = []
        chosen = [metric for metric in metrics if is_forget(metric) == forget]
        sets = dict.fromkeys(str(metric.get("set", "")) for metric in chosen)
        for name in sets:
            group = [metric for metric in chosen if str(metric.get("set", "")) == name]
            if part and len(part) + len(group) > MOST_COLUMNS:
                yield part
                part = []
            part += group
        for start in range(0, len(part), MOST_COLUMNS):
            yield part[start : start + MOST_COLUMNS]


def _table(
    metrics: Sequence[Json], ways: Sequence[Json], definitions: Mapping[str, str], notes: dict[str, int]
) -> Section:
    columns, groups = [], []
    for metric in metrics:
        name = str(metric.get("set", ""))
        if not groups or groups[-1][0] != name:
            groups.append((name, 0))
        groups[-1] = (name, groups[-1][1] + 1)
        text = definitions.get(metric["key"]) or metric.get("definition")
        columns.append(
            {
                "label": str(metric.get("label") or metric["key"]),
                "arrow": ARROWS.get(str(metric.get("better")), ""),
                "note": notes.setdefault(text, len(notes) + 1) if text else None,
                "words": False,
            }
        )
    winners = [best(metric, ways) for metric in metrics]
    rows = []
    for way in ways:
        cells = []
        for metric, winner in zip(metrics, winners, strict=True):
            entry = (way.get("values") or {}).get(metric["key"])
            cells.append(_cell(entry, metric.get("format")) | {"best": way["key"] in winner})
        rows.append({"label": str(way.get("label") or way["key"]), "key": way["key"], "cells": cells})
    caption = "On what is to be forgotten" if is_forget(metrics[0]) else "On everything else"
    return {
        "caption": caption,
        "wide": True,
        "groups": groups if any(name for name, _ in groups) else [],
        "columns": columns,
        "rows": rows,
    }


def _cell(entry: Any, form: str | None = None) -> Section:
    """A number or an interval as a cell: rounded text, exact value, interval, and what a pointer shows."""
    given = as_interval(entry)
    value = number(given.get("value"))
    told = [f"n = {short(n)}"] if (n := number(given.get("n"))) is not None else []
    if seeds := [number(seed) for seed in given.get("seeds") or ()]:
        told.append("seeds: " + ", ".join(show(seed, form) for seed in seeds))
    return {
        "text": show(value, form),
        "exact": None if value is None else repr(value),
        "under": interval(given, form) if value is not None else "",
        "more": "; ".join(told) if value is not None else "",
        "best": False,
        "words": False,
    }


def _text(text: Any) -> Section:
    return {"text": str(text), "exact": None, "under": "", "more": "", "best": False, "words": True}


def _plain(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Section]]) -> Section:
    """A table without groups; the first cell of each row heads it."""
    words = [all(row[index]["words"] for row in rows) for index in range(len(columns))]
    return {
        "caption": caption,
        "wide": False,
        "groups": [],
        "columns": [
            {"label": label, "arrow": "", "note": None, "words": left}
            for label, left in zip(columns, words, strict=True)
        ],
        "rows": [{"label": head["text"], "key": "", "cells": cells} for head, *cells in rows],
    }


def _drawn(draw: Callable[..., str], *args: Any, **options: Any) -> list[Markup]:
    """A plot, or none when it would be empty. The SVG is escaped text and markup of our own making."""
    try:
        return [Markup(draw(*args, **options))]
    except plots.NothingToDraw:
        return []


def _metrics(report: Json) -> Section | None:
    ways = report.get("ways") or []
    figures = []
    for metric in report.get("metrics") or ():
        rows = [
            (way["key"], str(way.get("label") or way["key"]), as_interval((way.get("values") or {}).get(metric["key"])))
            for way in ways
        ]
        arrow = ARROWS.get(str(metric.get("better")), "")
        name = str(metric.get("label") or metric["key"])
        where = f"{name}, {metric['set']} {arrow}" if metric.get("set") else f"{name} {arrow}"
        figures += _drawn(plots.ways, where, rows, shares=metric.get("format") == "percent")
    if not ways or not figures:
        return None
    return {
        "id": "before-after",
        "title": "Before and after, metric by metric",
        "note": "The square is the unguarded model, the diamond and the dashed line the retain twin; bars are 95 % "
        "intervals.",
        "figures": figures,
    }


def _detection(report: Json) -> Section | None:
    detection = report.get("detection") or {}
    sets, threshold = detection.get("sets") or {}, detection.get("threshold")
    if not sets:
        return None
    rows = [
        [
            _text(name),
            _text("forget" if one.get("kind") == "forget" else "other"),
            _cell(one.get("flagged"), "percent"),
            _cell(len(plots.finite(one.get("scores"))) or as_interval(one.get("flagged")).get("n")),
        ]
        for name, one in sets.items()
    ]
    return {
        "id": "detection",
        "title": "Detection",
        "note": "Prompts scored at or above the threshold are flagged: orange sets should be, blue ones should not. "
        "Bars are square roots of shares, so that single prompts stay visible.",
        "figures": _drawn(plots.score_distributions, sets, threshold) + _drawn(plots.roc, sets, threshold),
        "tables": [_plain("Flagged prompts", ["set", "kind", "flagged", "prompts"], rows)],
    }


def _truth_ratios(report: Json) -> Section | None:
    ways = {way["key"]: way for way in report.get("ways") or ()}
    shapes = {key: found for key, way in ways.items() if (found := truth_ratios(way))}
    variants = list(dict.fromkeys(variant for found in shapes.values() for variant in found))
    if not variants:
        return None

    def ratios(key: str, variant: str) -> plots.Scores:
        # Of the twin and the unguarded model there may be one variant only: nothing is corrupted there.
        found = shapes.get(key, {})
        return plots.finite((found.get(variant) or next(iter(found.values()), {})).get("ratios"))

    figures = []
    for variant in variants:
        for key, found in shapes.items():
            if variant in found and key not in REFERENCES:
                title = f"{ways[key].get('label') or key} ({variant})"
                told = ", ".join(
                    f"{name} {show(value)}"
                    for name in ("D", "p", "n")
                    if (value := number(found[variant].get(name))) is not None
                )
                figures += _drawn(
                    plots.truth_ratios,
                    title,
                    ratios(key, variant),
                    ratios("twin", variant),
                    ratios("unguarded", variant),
                    told,
                )
    names = ("D", "p", "n")
    cells = {
        key: [_cell(found.get(variant, {}).get(name)) for variant in variants for name in names]
        for key, found in shapes.items()
    }
    table = _plain(
        "Distance to the retain twin (Kolmogorov-Smirnov)",
        ["way", *names * len(variants)],
        [[_text(ways[key].get("label") or key), *row] for key, row in cells.items()],
    )
    table["columns"] = table["columns"][1:]
    table["groups"] = [(variant, len(names)) for variant in variants]
    return {
        "id": "truth-ratios",
        "title": "Truth ratios",
        "note": "Forgotten means that the solid line lies on the dashed one, the retain twin's. D is the widest gap "
        "between the two, p the chance of a gap this wide if there were no difference.",
        "figures": figures,
        "tables": [table],
    }


def _tuning(report: Json) -> Section | None:
    tuning = report.get("tuning") or {}
    evaluations, chosen = tuning.get("evaluations") or [], number(tuning.get("chosen"))
    if not evaluations or chosen is None:
        return None
    parameter = {"sigma": "σ"}.get(tuning.get("parameter", ""), tuning.get("parameter", "parameter"))
    rows = [
        [_text(index), *(_cell(one.get(key)) for key in ("x", "metric", "objective"))]
        for index, one in enumerate(evaluations, 1)
    ]
    return {
        "id": "tuning",
        "title": f"Tuning of {parameter}",
        "note": f"Objective: {tuning['objective']}." if tuning.get("objective") else "",
        "figures": _drawn(
            plots.metric_curve,
            evaluations,
            parameter=parameter,
            chosen=chosen,
            target=number(tuning.get("target")),
            standalone=False,
        ),
        "tables": [_plain("Evaluations in their order", ["order", parameter, "metric", "objective"], rows)],
    }


def _sequential(report: Json) -> Section | None:
    steps = report.get("sequential") or []
    if not steps:
        return None
    keys = [entry for entry in SEQUENTIAL if any(step.get(entry[0]) is not None for step in steps)]
    figures = [
        figure
        for key, title, shares, unit in keys
        for figure in _drawn(plots.sequential, steps, key, title, shares=shares, unit=unit)
    ]
    rows = [
        [
            _text(step.get("requests")),
            *(_cell(step.get(key), "percent" if shares else None) for key, _, shares, _ in keys),
        ]
        for step in steps
    ]
    heads = ["requests", *(f"{title}, {unit}" if not shares else title for _, title, shares, unit in keys)]
    return {
        "id": "sequential",
        "title": "Forget requests one after another",
        "note": "The grey band is the interval after the first request: inside it nothing has measurably changed.",
        "figures": figures,
        "details": [_plain("After each request", heads, rows)],
    }


def _verbatim(report: Json) -> Section | None:
    verbatim = report.get("verbatim") or {}
    labels = {way["key"]: str(way.get("label") or way["key"]) for way in report.get("ways") or ()}
    runs = {way: values for way, given in (verbatim.get("runs") or {}).items() if len(values := plots.finite(given))}
    if not runs:
        return None
    rows = [
        [
            _text(labels.get(way, way)),
            _cell(float(values.max())),
            _cell(float(np.median(values))),
            _cell(len(values)),
        ]
        for way, values in runs.items()
    ]
    return {
        "id": "verbatim",
        "title": "Copies of protected text",
        "note": "The longest run of tokens that an answer shares with the protected text, for each passage asked for.",
        "figures": _drawn(plots.longest_runs, runs, labels, verbatim.get("limit")),
        "tables": [_plain("Longest copied run, in tokens", ["way", "longest", "median", "passages"], rows)],
    }


def _attack(report: Json) -> Section | None:
    families = report.get("attack") or {}
    if not families:
        return None
    figures = []
    for key, title in (("recall", "Recall"), ("false_alarms", "False alarms of the same wrappers")):
        figures += _drawn(plots.families, title, [(name, as_interval(one.get(key))) for name, one in families.items()])
    rows = [
        [_text(name), *(_cell(one.get(key), "percent") for key in ("recall", "false_alarms"))]
        for name, one in families.items()
    ]
    return {
        "id": "attack",
        "title": "Attempts to get around the detector",
        "note": "Recall: forget prompts that are still flagged when disguised. False alarms: other prompts in the same "
        "disguise.",
        "figures": figures,
        "tables": [_plain("Attack families", ["family", "recall", "false alarms"], rows)],
    }


def _examples(report: Json) -> Section | None:
    examples = report.get("examples") or []
    if not examples:
        return None
    order = {way["key"]: str(way.get("label") or way["key"]) for way in report.get("ways") or ()}
    cards = []
    for example in examples:
        answers = example.get("answers") or {}
        keys = [key for key in order if key in answers] + [key for key in answers if key not in order]
        cards.append(
            {
                "kind": {"forget": "to be forgotten", "retain": "to be kept"}.get(
                    example.get("kind"), example.get("kind")
                ),
                "question": example.get("question"),
                "reference": example.get("reference"),
                "answers": [(order.get(key, key), answers[key]) for key in keys if answers[key] is not None],
            }
        )
    return {"id": "examples", "title": "Answers side by side", "note": "", "cards": cards}


SECTIONS: tuple[Callable[[Json], Section | None], ...] = (
    _results,
    _metrics,
    _detection,
    _truth_ratios,
    _tuning,
    _sequential,
    _verbatim,
    _attack,
    _examples,
)


def _facts(meta: Json) -> list[tuple[str, str]]:
    """What the figures were made with, for the foot of the page."""
    facts = []
    for key, value in meta.items():
        if key == "definitions" or value in (None, "", [], {}):
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {one}" for name, one in value.items())
        elif isinstance(value, list):
            value = ", ".join(str(one) for one in value)
        facts.append((key.replace("_", " "), str(value)))
    return facts


def _strict(value: Any) -> Any:
    """The same JSON with null for what isn't a number: strict readers know no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
