"""Plots of measured values with their intervals: systems, attacks, tuning, successive requests, copied runs.

Each function returns SVG text, and raises NothingToDrawError if it has no number to draw. Intervals are
`{"value", "low", "high", "n"}`; a missing number is left out of a plot, not drawn as zero. Knows the shape of the
numbers, not where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

from lethe.evaluation.reporting import svg
from lethe.evaluation.reporting.number_format import as_interval, finite_number, format_percent, format_short
from lethe.evaluation.reporting.plot_layout import (
    DASHED,
    LABEL_CHARS,
    PLAIN_NUMBERS,
    ROW_HEIGHT,
    TITLE_CHARS,
    Interval,
    NothingToDrawError,
    figure_title,
    finite_numbers,
    new_figure,
    number_axis,
    row_axis,
    share_axis,
    value_with_interval,
    vertical_line_label,
    wrap_text,
)
from lethe.evaluation.reporting.svg import COLOURS, MATPLOTLIB_STYLE

# Colour and marker of the systems that others are compared with; all others are blue dots.
REFERENCE_MARKERS = {"unguarded": ("orange", "s"), "twin": ("ink", "D")}
# Ratio of the largest to the smallest tuned value above which the axis is logarithmic.
LOG_AXIS_RATIO = 30


@matplotlib.rc_context(MATPLOTLIB_STYLE)
def plot_systems(title: str, rows: Sequence[tuple[str, str, Interval]], *, shares: bool) -> str:
    """Plot one metric of every system with intervals, and a line at the retain twin's value.

    rows: (key, label, interval). shares: the metric is a share, and its axis is in per cent.
    """
    rows = [row for row in rows if finite_number(row[2].get("value")) is not None]
    twin = next((float(interval["value"]) for key, _, interval in rows if key == "twin"), None)
    dots = [(label, interval, *REFERENCE_MARKERS.get(key, ("blue", "o"))) for key, label, interval in rows]
    return _plot_dots(title, dots, shares=shares, line=twin)


@matplotlib.rc_context(MATPLOTLIB_STYLE)
def plot_attack_families(title: str, rows: Sequence[tuple[str, Interval]], *, line: float | None) -> str:
    """Plot a rate of every attack family with intervals, and a line at the required rate. rows: (label, interval)."""
    return _plot_dots(title, [(label, interval, "blue", "o") for label, interval in rows], shares=True, line=line)


def _plot_dots(title: str, rows: Sequence[tuple[str, Interval, str, str]], *, shares: bool, line: float | None) -> str:
    """Plot dots with intervals, one row each. rows: (label, interval, colour, marker). line: x of a dashed line."""
    rows = [row for row in rows if finite_number(row[1].get("value")) is not None]
    if not rows:
        raise NothingToDrawError(f"{title}: no values to draw")
    labels = [wrap_text(label, LABEL_CHARS, 2) for label, *_ in rows]
    heading = wrap_text(title, TITLE_CHARS, 3)
    extra_lines = 14 * heading.count("\n") + 8 * sum("\n" in label for label in labels)
    figure = new_figure(58 + extra_lines + ROW_HEIGHT * len(rows))
    axes = figure.subplots()
    shown = [] if line is None else [line]
    for index, (_, interval, colour, marker) in enumerate(rows):
        value = float(interval["value"])
        low, high = finite_number(interval.get("low")), finite_number(interval.get("high"))
        axes.plot(value, index, marker, color=COLOURS[colour])
        shown += [value]
        if low is not None and high is not None:
            axes.plot([low, high], [index, index], "-", color=COLOURS[colour])
            shown += [low, high]
    if line is not None:
        axes.axvline(line, color=COLOURS["ink"], linewidth=1, linestyle=DASHED, zorder=0.5)
    row_axis(axes, labels)
    share_axis(axes, "x", shown) if shares else number_axis(axes, shown)
    figure_title(figure, heading)
    description = "; ".join(f"{label} {value_with_interval(interval, shares=shares)}" for label, interval, *_ in rows)
    return svg.figure_to_svg(figure, title, description + ".")


@matplotlib.rc_context(MATPLOTLIB_STYLE)
def plot_tuning_curve(
    evaluations: list[dict[str, Any]], *, parameter: str, chosen: float, target: float | None, standalone: bool = True
) -> str:
    """Plot metric and objective against a tuned parameter.

    evaluations: {"x", "objective", "metric"} in the order in which they were made, and the objective's standard error
    as "error" where it is known. target: the metric's target value, if known. standalone: a file of its own, with
    namespace and style sheet, not part of a page.
    """
    points = {key: sorted(_points(evaluations, key)) for key in ("metric", "objective")}
    x_values = [x for pairs in points.values() for x, _ in pairs]
    if not x_values:
        raise NothingToDrawError("no evaluations to draw")
    figure = new_figure(330)
    panels = figure.subplots(2, 1, sharex=True)
    looks = (("metric", "blue", "o-"), ("objective, lower is better", "orange", "s--"))
    for panel, pairs, (label, colour, line) in zip(panels, points.values(), looks, strict=True):
        panel.plot([x for x, _ in pairs], [y for _, y in pairs], line, color=COLOURS[colour])
        if label != "metric":
            panel.errorbar(*_error_bars(evaluations), fmt="none", ecolor=COLOURS[colour], elinewidth=1)
        panel.axvline(chosen, color=COLOURS["ink"], linewidth=1)
        panel.set_ylabel(label)
        panel.margins(y=0.15)
    target = finite_number(target)
    if target is not None:
        panels[0].axhline(target, color=COLOURS["muted"], linestyle=DASHED, linewidth=1)
        # At the left end: weak values of a parameter leave the metric far from its target there.
        panels[0].annotate(
            f"target {format_short(target)}",
            (0.01, target),
            xycoords=panels[0].get_yaxis_transform(),
            ha="left",
            va="bottom",
            fontsize=9,
            color=COLOURS["muted"],
        )
    if min(x_values) > 0 and max(x_values) > LOG_AXIS_RATIO * min(x_values):
        panels[1].set_xscale("log")
        panels[1].xaxis.set_major_formatter(PLAIN_NUMBERS)
    panels[1].set_xlabel(parameter)
    panels[0].set_title(f"Tuning {parameter}: {format_short(chosen)} chosen")
    lowest = min((y for _, y in points["objective"]), default=math.nan)
    description = f"{len(evaluations)} evaluations of {parameter}; chosen {format_short(chosen)}"
    description += f", lowest objective {format_short(lowest)}"
    description += "." if target is None else f", target of the metric {format_short(target)}."
    return svg.figure_to_svg(figure, f"Metric and objective against {parameter}", description, standalone=standalone)


def _points(rows: Iterable[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    pairs = [(finite_number(row.get("x")), finite_number(row.get(key))) for row in rows]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _error_bars(rows: Iterable[Mapping[str, Any]]) -> tuple[list[float], list[float], list[float]]:
    """Return x, objective and standard error of the evaluations that have all three."""
    triples = [[finite_number(row.get(key)) for key in ("x", "objective", "error")] for row in rows]
    complete = [(x, y, error) for x, y, error in triples if x is not None and y is not None and error is not None]
    return [x for x, _, _ in complete], [y for _, y, _ in complete], [error for _, _, error in complete]


@matplotlib.rc_context(MATPLOTLIB_STYLE)
def plot_sequence(rows: Sequence[Mapping[str, Any]], key: str, title: str, *, shares: bool, unit: str) -> str:
    """Plot one quantity after each forget request with its interval, and the first interval as a grey band.

    rows: {"requests": number of requests so far, key: interval or number}.
    """
    points = []
    for row in rows:
        interval = as_interval(row.get(key))
        count, value = finite_number(row.get("requests")), finite_number(interval.get("value"))
        if count is not None and value is not None:
            low, high = finite_number(interval.get("low")), finite_number(interval.get("high"))
            points.append((count, value, value if low is None else low, value if high is None else high))
    if not points:
        raise NothingToDrawError(f"{title}: nothing to draw")
    x, y, low_ends, high_ends = (np.array(column) for column in zip(*sorted(points), strict=True))
    figure = new_figure(220)
    axes = figure.subplots()
    if high_ends[0] > low_ends[0]:
        axes.axhspan(low_ends[0], high_ends[0], color=COLOURS["grid"], linewidth=0, zorder=0)
    axes.fill_between(x, low_ends, high_ends, color=COLOURS["blue"], alpha=0.25, linewidth=0)
    axes.plot(x, y, "o-", color=COLOURS["blue"])
    axes.set_xlabel("forget requests so far")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if shares:
        share_axis(axes, "y", [*low_ends, *high_ends])
    else:
        axes.set_ylim(bottom=0, top=1.15 * float(high_ends.max()) or 1)
    axes.set_title(wrap_text(title, TITLE_CHARS, 2))
    write = format_percent if shares else format_short
    ends = [f"after {x[i]:g} requests {write(y[i])} {unit}" for i in (0, -1)]
    return svg.figure_to_svg(figure, title, f"A{ends[0][1:]}, {ends[1]}.")


@matplotlib.rc_context(MATPLOTLIB_STYLE)
def plot_longest_copies(runs: Mapping[str, Sequence[Any]], labels: Mapping[str, str], limit: float | None) -> str:
    """Plot the longest copied run of each system as a bar, each passage as a dot, and the limit as a line.

    runs: system → one length per passage, in tokens. labels: system → label.
    """
    lengths = {system: values for system, run in runs.items() if len(values := finite_numbers(run))}
    if not lengths:
        raise NothingToDrawError("no copied runs to draw")
    row_labels = [wrap_text(labels.get(system, system), LABEL_CHARS, 2) for system in lengths]
    figure = new_figure(72 + ROW_HEIGHT * len(lengths) + 8 * sum("\n" in label for label in row_labels))
    axes = figure.subplots()
    notes = []
    for row, (system, values) in enumerate(lengths.items()):
        axes.barh(row, values.max(), 0.62, color=COLOURS["grid"], edgecolor=COLOURS["muted"], linewidth=0.8)
        distinct, counts = np.unique(values, return_counts=True)
        # Equal lengths are one dot, the larger the more there are.
        sizes = 10 + 30 * counts / counts.max()
        axes.scatter(distinct, np.full(len(distinct), row), s=sizes, color=COLOURS["blue"], zorder=3, linewidth=0)
        notes.append(f"{labels.get(system, system)} {values.max():g} over {len(values)} passages")
    limit = finite_number(limit)
    if limit is not None:
        axes.axvline(limit, color=COLOURS["ink"], linewidth=1, linestyle=DASHED)
        vertical_line_label(axes, f"limit {limit:g}", limit)
    row_axis(axes, row_labels)
    axes.set_xlim(left=0)
    axes.set_xlabel("longest copied run, tokens")
    figure_title(figure, "Longest copied run")
    description = "Longest run in tokens: " + "; ".join(notes) + "."
    description += "" if limit is None else f" The limit is {limit:g} tokens."
    return svg.figure_to_svg(figure, "Longest copied run", description)
