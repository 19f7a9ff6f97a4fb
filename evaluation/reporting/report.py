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

from lethe.evaluation.reporting import plots, svg
from lethe.evaluation.reporting.number_format import as_interval, interval, number, short, show
from lethe.evaluation.reporting.summary import HEADINGS, REFERENCES, best, is_forget, summary, truth_ratios

FORMAT = 1
TEMPLATES = Path(__file__).parent / "templates"
MOST_COLUMNS = 8  # of one table: what fits on paper
MOST_FIGURES = 6  # of one kind before the others are folded away
ARROWS = {"lower": "↓", "higher": "↑", "near_twin": "≈"}
SEQUENTIAL = (
    ("recall", "Recall on what is forgotten so far", True, "flagged"),
    ("false_alarms", "False alarms", True, "flagged by mistake"),
    ("utility", "Utility on what is kept", False, "utility"),
    ("fit_s", "Time to fit", False, "seconds"),
    ("judge_ms", "Time to judge a prompt", False, "milliseconds"),
)

Json = Mapping[str, Any]
# A section of the page: id, title, note (what to look for), figures, folded (more of them), tables, footnotes, details
# (folded tables), cards.
Section = dict[str, Any]
EMPTY: Section = {"note": "", "figures": [], "folded": [], "tables": [], "footnotes": [], "details": [], "cards": []}


def render(report: Json) -> str:
    """The page as text. Raises ValueError for a format that this code doesn't know."""
    if report.get("format") != FORMAT:
        raise ValueError(f"format {report.get('format')!r} of the evaluation: only {FORMAT} is known")
    style = svg.style() + (TEMPLATES / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    data = json.dumps(_strict(report), ensure_ascii=False, allow_nan=False)
    report = {**report, "metrics": _spelled_out(report.get("metrics") or ())}
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


def write(sources: Sequence[Path], output: Path) -> Path:
    """Render files of `lethe evaluate`, `attack` and `tune` as one page. ValueError when they aren't."""
    page = render(merged({str(source): _read(source) for source in sources}))
    output.write_text(page, encoding="utf-8", errors="replace")
    return output


def _read(source: Path) -> Json:
    try:
        report = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{source}: not JSON: {error}") from None
    if not isinstance(report, dict):
        raise ValueError(f"{source}: not an evaluation, which is a JSON object")
    return tuned(report) if "curves" in report else report


def tuned(evidence: Json) -> Json:
    """The evidence of `lethe tune` as a report: one entry under "tuning" for each parameter."""
    curves = [
        {
            "parameter": name,
            "metric": evidence.get("metric"),
            "evaluations": points,
            "chosen": (evidence.get("values") or {}).get(name),
            "target": evidence.get("target"),
        }
        for name, points in evidence["curves"].items()
    ]
    return {"format": FORMAT, "meta": {"policy": evidence.get("policy")}, "tuning": curves}


def merged(reports: Mapping[str, Json]) -> Json:
    """One report of several about one policy, by file name: each adds what those before it lack."""
    whole: dict[str, Any] = {}
    for name, report in reports.items():
        ours, theirs = ((one.get("meta") or {}).get("policy") for one in (whole, report))
        if ours and theirs and ours != theirs:
            raise ValueError(f"{name}: about policy {theirs!r}, the files before it about {ours!r}")
        whole = {**report, **whole}
    return whole


def _spelled_out(metrics: Sequence[Json]) -> list[Json]:
    """The metrics with whole labels: one that begins with "…" goes on where the last whole one ended."""
    found: list[Json] = []
    start = ""
    for metric in metrics:
        label = str(metric.get("label") or metric["key"])
        if label.startswith("…"):
            label = f"{start}, {label[1:].strip()}"
        else:
            start = label
        found.append({**metric, "label": label, "set": str(metric.get("set") or "").replace("_", " ")})
    return found


def _results(report: Json) -> Section | None:
    """The tables of all ways and metrics."""
    metrics, ways = report.get("metrics") or [], report.get("ways") or []
    if not metrics or not ways:
        return None
    notes: dict[str, int] = {}
    definitions = (report.get("meta") or {}).get("definitions") or {}
    tables = [_table(part, ways, definitions, notes) for part in _parts(metrics)]
    for caption in {table["caption"] for table in tables}:
        same = [table for table in tables if table["caption"] == caption]
        for place, table in enumerate(same, 1):
            table["caption"] += f" ({place} of {len(same)})" if len(same) > 1 else ""
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
    figures: dict[bool, list[Markup]] = {True: [], False: []}
    for metric in report.get("metrics") or ():
        rows = [
            (way["key"], str(way.get("label") or way["key"]), as_interval((way.get("values") or {}).get(metric["key"])))
            for way in ways
        ]
        label, group = metric["label"], metric["set"]
        name = label if group.casefold() in label.casefold() else f"{label}, {group}"
        title = f"{name} {ARROWS.get(str(metric.get('better')), '')}".strip()
        figures[is_forget(metric)] += _drawn(plots.ways, title, rows, shares=metric.get("format") == "percent")
    if not ways or not any(figures.values()):
        return None
    names = {True: "on what is to be forgotten", False: "on everything else"}
    # Folding two or three away would hide more than it tidies.
    shown = {key: MOST_FIGURES if len(found) > MOST_FIGURES + 3 else len(found) for key, found in figures.items()}
    return {
        "id": "before-after",
        "title": "Before and after, metric by metric",
        "note": "The square is the unguarded model, the diamond and the dashed line the retain twin; bars are 95 % "
        "intervals.",
        "figures": figures[True][: shown[True]] + figures[False][: shown[False]],
        "folded": [(f"{len(more)} more {names[key]}", more) for key in names if (more := figures[key][shown[key] :])],
    }


def _detection(report: Json) -> Section | None:
    detection = report.get("detection") or {}
    sets, threshold = detection.get("sets") or {}, detection.get("threshold")
    if not sets:
        return None
    rows = [
        [
            _text(name.replace("_", " ")),
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

    figures: dict[str, list[Markup]] = {variant: [] for variant in variants}
    for variant in variants:
        for key, found in shapes.items():
            if variant in found and key not in REFERENCES:
                title = f"{ways[key].get('label') or key} ({variant})"
                told = ", ".join(
                    f"{name} {show(value)}"
                    for name in ("D", "p", "n")
                    if (value := number(found[variant].get(name))) is not None
                )
                figures[variant] += _drawn(
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
        "figures": figures[variants[0]],
        "folded": [(f"Variant: {variant}", figures[variant]) for variant in variants[1:] if figures[variant]],
        "tables": [table],
    }


def _tuning(report: Json) -> Section | None:
    given = report.get("tuning") or []
    figures, tables, notes = [], [], []
    for tuning in [given] if isinstance(given, Mapping) else given:
        evaluations, chosen = tuning.get("evaluations") or [], number(tuning.get("chosen"))
        if not evaluations or chosen is None:
            continue
        parameter = str(tuning.get("parameter") or "parameter")
        parameter = {"sigma": "σ"}.get(parameter, parameter)
        target = number(tuning.get("target"))
        figures += _drawn(
            plots.metric_curve, evaluations, parameter=parameter, chosen=chosen, target=target, standalone=False
        )
        rows = [
            [_text(order), *(_cell(one.get(key)) for key in ("x", "metric", "objective"))]
            for order, one in enumerate(evaluations, 1)
        ]
        tables.append(_plain(f"{parameter}, in the order tried", ["order", parameter, "metric", "objective"], rows))
        notes += [f"{name.capitalize()}: {tuning[name]}." for name in ("metric", "objective") if tuning.get(name)]
    if not tables:
        return None
    note = " ".join(dict.fromkeys(notes))
    return {"id": "tuning", "title": "Tuning", "note": note, "figures": figures, "tables": tables}


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
    figures, stated = [], False
    for key, title, bound in (
        ("recall", "Recall", "floor"),
        ("false_alarms", "False alarms of the same disguises", "most_false_alarms"),
    ):
        rows = [(name, as_interval(one.get(key))) for name, one in families.items()]
        line = number(report.get(bound))
        stated = stated or line is not None
        figures += _drawn(plots.families, title, rows, line=line)
    cells = [
        [_text(name), *(_cell(one.get(key), "percent") for key in ("recall", "false_alarms"))]
        for name, one in families.items()
    ]
    return {
        "id": "attack",
        "title": "Attempts to get around the detector",
        "note": "Recall: forget prompts that are still flagged when disguised. False alarms: other prompts in the same "
        "disguise." + " Dashed lines: what the policy must keep." * stated,
        "figures": figures,
        "tables": [_plain("Attack families", ["family", "recall", "false alarms"], cells)],
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
            value = ("; " if any(" " in str(one) for one in value) else ", ").join(str(one) for one in value)
        facts.append((key.replace("_", " "), str(value)))
    return facts


def _strict(value: Any) -> Any:
    """The same JSON with null for what isn't a number: strict readers know no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
