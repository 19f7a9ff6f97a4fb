"""The plots of an evaluation, each as SVG text.

Knows the shape of the numbers; not where they come from, nor the page they stand on. Every figure is about 360 pixels
wide, so that a page can lay them side by side or below each other without scaling text. Intervals are
`{"value", "low", "high", "n"}`; what is missing or not a number is left out of a plot, never drawn as zero, and a plot
without anything to draw is NothingToDraw.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from lethe.evaluation.reporting import svg
from lethe.evaluation.reporting.number_format import as_interval, number, percent, short
from lethe.evaluation.reporting.svg import COLOURS, STYLE, clean

Interval = Mapping[str, Any]
Scores = NDArray[np.float64]

WIDTH = 360  # pixels, one to the point
ROW = 24  # pixels a row of dots takes
EDGE = 1e-4  # probabilities nearer to 0 or 1 than this share the outermost bin
LINES = (("blue", "-"), ("green", (0, (5, 2))), ("purple", (0, (1, 1.5))), ("orange", (0, (6, 2, 1, 2))))
PLAIN = FuncFormatter(lambda x, _: f"{x:g}")  # matplotlib's own writes powers as mathematics, which text isn't here
# Ways that are compared with rather than proposed: colour and marker.
MARKS = {"unguarded": ("orange", "s"), "twin": ("ink", "D")}


class NothingToDraw(ValueError):
    """A plot was asked for, and not one number of it is there."""


@matplotlib.rc_context(STYLE)
def metric_curve(
    evaluations: list[dict[str, Any]], *, parameter: str, chosen: float, target: float | None, standalone: bool = True
) -> str:
    """Metric and objective against the tuned parameter, as SVG text.

    evaluations: {"x", "objective", "metric"} in the order they were made, with the standard error of the objective
    as "error" where it's known. target: where the metric should be, if known.
    standalone: a file of its own (namespace, styles inside), not a part of a page.
    """
    drawn = {key: sorted(_points(evaluations, key)) for key in ("metric", "objective")}
    every = [x for points in drawn.values() for x, _ in points]
    if not every:
        raise NothingToDraw("no evaluations to draw")
    figure = _figure(330)
    panels = figure.subplots(2, 1, sharex=True)
    looks = (("metric", "blue", "o-"), ("objective, lower is better", "orange", "s--"))
    for panel, points, (label, colour, line) in zip(panels, drawn.values(), looks, strict=True):
        panel.plot([x for x, _ in points], [y for _, y in points], line, color=COLOURS[colour])
        if label != "metric":
            panel.errorbar(*_bars(evaluations), fmt="none", ecolor=COLOURS[colour], elinewidth=1)
        panel.axvline(chosen, color=COLOURS["ink"], linewidth=1)
        panel.set_ylabel(label)
        panel.margins(y=0.15)
    if (wanted := number(target)) is not None:
        panels[0].axhline(wanted, color=COLOURS["muted"], linestyle=(0, (4, 3)), linewidth=1)
        _note(panels[0], f"target {short(wanted)}", wanted)
    if min(every) > 0 and max(every) > 30 * min(every):
        panels[1].set_xscale("log")
        panels[1].xaxis.set_major_formatter(PLAIN)
    panels[1].set_xlabel(parameter)
    panels[0].set_title(f"Tuning {parameter}: {short(chosen)} chosen")
    best = min((y for _, y in drawn["objective"]), default=math.nan)
    told = f"{len(evaluations)} evaluations of {parameter}; chosen {short(chosen)}, lowest objective {short(best)}"
    told += "." if wanted is None else f", target of the metric {short(wanted)}."
    return svg.render(figure, f"Metric and objective against {parameter}", told, standalone=standalone)


@matplotlib.rc_context(STYLE)
def score_distributions(sets: Mapping[str, Mapping[str, Any]], threshold: float | None) -> str:
    """A row of bars for the scores of every set, with the threshold through all of them.

    sets: name → {"kind": "forget" or else, "scores", "flagged": interval}. Bar heights are square roots of shares, so
    that three prompts among thousands can be seen. Probabilities are drawn by their logit.
    """
    scores = {name: finite(one.get("scores")) for name, one in sets.items()}
    scores = {name: values for name, values in scores.items() if len(values)}
    if not scores:
        raise NothingToDraw("no scores to draw")
    pooled = np.concatenate(list(scores.values()))
    logit = bool(pooled.min() >= 0 and pooled.max() <= 1 and number(threshold) is not None and 0 < threshold < 1)
    position = _logit if logit else np.asarray
    shown = pooled if (at := number(threshold)) is None else np.append(pooled, at)
    low, high = (-_logit(1 - EDGE), _logit(1 - EDGE)) if logit else _span(shown)
    edges = np.linspace(low, high, 41)
    figure = _figure(86 + 46 * len(scores))
    axes = figure.subplots()
    roots = {name: np.sqrt(np.histogram(position(values), edges)[0] / len(values)) for name, values in scores.items()}
    scale = 0.56 / max(root.max() for root in roots.values())
    told = []
    for row, (name, values) in enumerate(scores.items()):
        kind = sets[name].get("kind")
        height = np.where(roots[name] > 0, np.maximum(scale * roots[name], 0.03), 0.0)
        colour = COLOURS["orange" if kind == "forget" else "blue"]
        axes.bar(edges[:-1], height, np.diff(edges), bottom=-row, align="edge", color=colour, linewidth=0)
        flagged = number(as_interval(sets[name].get("flagged")).get("value"))
        note = f"{name.replace('_', ' ')} · {len(values):,}" + (
            f" · {percent(flagged)} flagged" if flagged is not None else ""
        )
        axes.text(0.01, -row + 0.6, note, transform=axes.get_yaxis_transform(), fontsize=9, va="bottom")
        told.append(note)
    if at is not None:
        x = float(position(np.array(at)))
        axes.axvline(x, color=COLOURS["ink"], linewidth=1, linestyle=(0, (4, 3)))
        right = x > (edges[0] + edges[-1]) / 2
        axes.annotate(
            f"threshold {short(at)}",
            (x, 1),
            (-4 if right else 4, 3),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=9,
            color=COLOURS["muted"],
        )
    axes.set_ylim(-len(scores) + 0.9, 0.98)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    if logit:
        ticks = [0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999]
        places = _logit(np.array(ticks))
        if not pooled.all():
            # A logit has no place for 0, the score of what words alone have let pass: it stands in the first bin.
            ticks, places = [0, *ticks], np.append((edges[0] + edges[1]) / 2, places)
        axes.set_xticks(places, [f"{one:g}" for one in ticks])
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("forget score" + (" (logit scale)" if logit else ""))
    figure.suptitle("Scores of each set of prompts", x=0.02, ha="left", fontsize=11, fontweight="bold")
    where = "" if at is None else f" The threshold is {short(at)}."
    return svg.render(
        figure, "Scores of each set of prompts", "Prompts and flagged share: " + "; ".join(told) + "." + where
    )


def roc_curve(forget: Scores, other: Scores) -> tuple[Scores, Scores]:
    """False-alarm rate and recall at every threshold, from the strictest down. forget: (n,), other: (m,) scores."""
    thresholds = np.unique(np.concatenate([forget, other]))[::-1]
    below = [np.searchsorted(np.sort(scores), thresholds, side="left") / len(scores) for scores in (other, forget)]
    return np.concatenate([[0.0], 1 - below[0]]), np.concatenate([[0.0], 1 - below[1]])


def area(forget: Scores, other: Scores) -> float:
    """The chance that a forget prompt scores above another one, ties counted half: the area under the ROC curve."""
    ranked = np.sort(other)
    wins = np.searchsorted(ranked, forget, side="left") + np.searchsorted(ranked, forget, side="right")
    return float(wins.mean() / 2 / len(other))


@matplotlib.rc_context(STYLE)
def roc(sets: Mapping[str, Mapping[str, Any]], threshold: float | None) -> str:
    """Recall of every forget set against the false alarms of all other sets together, which run on a log scale."""
    scores = {name: finite(one.get("scores")) for name, one in sets.items()}
    forget = {name: values for name, values in scores.items() if sets[name].get("kind") == "forget" and len(values)}
    others = [values for name, values in scores.items() if name not in forget and len(values)]
    if not forget or not others:
        raise NothingToDraw("a ROC curve needs scores of both kinds")
    other = np.concatenate(others)
    edge = 0.5 / len(other)
    figure = _figure(300)
    axes = figure.subplots()
    told, lowest = [], 1.0
    for index, (name, values) in enumerate(forget.items()):
        colour, line = LINES[index % len(LINES)]
        alarms, recall = roc_curve(values, other)
        under = area(values, other)
        axes.step(
            np.maximum(alarms, edge),
            recall,
            where="post",
            color=COLOURS[colour],
            linestyle=line,
            label=f"{_cut(name, 30)}: area {_near_one(under)}",
        )
        lowest = min(lowest, float(recall[alarms <= edge].max()))
        told.append(f"{name} area {_near_one(under)}")
        if (at := number(threshold)) is not None:
            point = float((other >= at).mean()), float((values >= at).mean())
            axes.plot(max(point[0], edge), point[1], "o", color=COLOURS[colour], markersize=7)
            lowest = min(lowest, point[1])
            told[-1] += f", recall {percent(point[1])} at {percent(point[0])} false alarms"
    axes.set_xscale("log")
    axes.set_xlim(edge, 1)
    floor = max(0.0, min(0.95, lowest - 0.25 * (1 - lowest)))
    axes.set_ylim(floor, 1 + 0.04 * (1 - floor))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g} %"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
    axes.minorticks_off()
    axes.set_xlabel(f"false alarms among {len(other):,} other prompts (log scale)")
    axes.set_ylabel("recall")
    axes.set_title("ROC" + (", dots at the threshold" if number(threshold) is not None else ""))
    axes.legend(loc="lower right")
    return svg.render(figure, "ROC", "; ".join(told) + ".")


@matplotlib.rc_context(STYLE)
def ways(title: str, rows: Sequence[tuple[str, str, Interval]], *, shares: bool) -> str:
    """One metric for every way of answering, with intervals; the twin's value runs through as a line.

    rows: (key, label, interval). shares: the metric is a share and its axis is written in per cent.
    """
    rows = [row for row in rows if number(row[2].get("value")) is not None]
    twin = next((float(interval["value"]) for key, _, interval in rows if key == "twin"), None)
    return _dots(
        title,
        [(label, interval, *MARKS.get(key, ("blue", "o"))) for key, label, interval in rows],
        shares=shares,
        line=twin,
    )


@matplotlib.rc_context(STYLE)
def families(title: str, rows: Sequence[tuple[str, Interval]], *, line: float | None) -> str:
    """A rate for every attack family, with intervals, and a line at the rate that is promised."""
    return _dots(title, [(label, interval, "blue", "o") for label, interval in rows], shares=True, line=line)


def _dots(title: str, rows: Sequence[tuple[str, Interval, str, str]], *, shares: bool, line: float | None) -> str:
    """Dots with intervals, a row each; rows are (label, interval, colour, marker)."""
    rows = [row for row in rows if number(row[1].get("value")) is not None]
    if not rows:
        raise NothingToDraw(f"{title}: no values to draw")
    labels = [_wrapped(label, 26, 2) for label, *_ in rows]
    heading = _wrapped(title, 52, 3)
    figure = _figure(58 + 14 * heading.count("\n") + ROW * len(rows) + 8 * sum("\n" in label for label in labels))
    axes = figure.subplots()
    bounds = [] if line is None else [line]
    for index, (_, interval, colour, marker) in enumerate(rows):
        value = float(interval["value"])
        low, high = number(interval.get("low")), number(interval.get("high"))
        axes.plot(value, index, marker, color=COLOURS[colour])
        bounds += [value]
        if low is not None and high is not None:
            axes.plot([low, high], [index, index], "-", color=COLOURS[colour])
            bounds += [low, high]
    if line is not None:
        axes.axvline(line, color=COLOURS["ink"], linewidth=1, linestyle=(0, (4, 3)), zorder=0.5)
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
    axes.grid(axis="y", visible=False)
    _share_axis(axes, "x", bounds) if shares else _free_axis(axes, bounds)
    figure.suptitle(heading, x=0.02, ha="left", fontsize=11, fontweight="bold")
    told = "; ".join(f"{label} {_with_interval(interval, shares)}" for label, interval, *_ in rows)
    return svg.render(figure, title, told + ".")


@matplotlib.rc_context(STYLE)
def truth_ratios(title: str, ratios: Scores, twin: Scores, unguarded: Scores | None, note: str) -> str:
    """Cumulative shares of the truth ratios of one way, of the twin and of the unguarded model; the gap D is marked."""
    curves = [
        ("unguarded", unguarded, "orange", (0, (1, 1.5))),
        ("twin", twin, "ink", (0, (4, 2))),
        ("this way", ratios, "blue", "-"),
    ]
    drawn = [
        (name, np.sort(np.log10(values[values > 0])), *look) for name, values, *look in curves if values is not None
    ]
    if any(not len(values) for _, values, *_ in drawn):
        raise NothingToDraw(f"{title}: no truth ratios to draw")
    figure = _figure(270)
    axes = figure.subplots()
    for name, values, colour, line in drawn:
        axes.step(
            values,
            np.arange(1, len(values) + 1) / len(values),
            where="post",
            color=COLOURS[colour],
            linestyle=line,
            label=name,
        )
    at, low, high = _gap(drawn[-1][1], drawn[-2][1])
    axes.plot([at, at], [low, high], "_-", color=COLOURS["muted"], markersize=8)
    pooled = np.concatenate([values for _, values, *_ in drawn])
    axes.set_xlim(*_span(np.quantile(pooled, [0.005, 0.995])))
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("truth ratio, log10")
    axes.set_ylabel("share of questions below")
    axes.set_title(_wrapped(title, 52, 2) + f"\n{note}", fontsize=10)
    axes.legend(loc="lower right")
    return svg.render(figure, f"Truth ratios: {title}", f"{note}. Largest gap to the twin {short(abs(high - low))}.")


def _gap(ratios: Scores, twin: Scores) -> tuple[float, float, float]:
    """Where two cumulative shares differ most, and both shares there. Sorted (n,) and (m,)."""
    every = np.concatenate([ratios, twin])
    shares = [np.searchsorted(values, every, side="right") / len(values) for values in (ratios, twin)]
    widest = int(np.argmax(np.abs(shares[0] - shares[1])))
    return float(every[widest]), float(shares[0][widest]), float(shares[1][widest])


@matplotlib.rc_context(STYLE)
def sequential(rows: Sequence[Mapping[str, Any]], key: str, title: str, *, shares: bool, unit: str) -> str:
    """One quantity after each forget request, as a line with its interval; the first interval runs through as a band.

    rows: {"requests", key: interval or number}.
    """
    points = []
    for row in rows:
        interval = as_interval(row.get(key))
        x, y = number(row.get("requests")), number(interval.get("value"))
        if x is not None and y is not None:
            low, high = number(interval.get("low")), number(interval.get("high"))
            points.append((x, y, y if low is None else low, y if high is None else high))
    if not points:
        raise NothingToDraw(f"{title}: nothing to draw")
    x, y, low, high = (np.array(column) for column in zip(*sorted(points), strict=True))
    figure = _figure(220)
    axes = figure.subplots()
    if high[0] > low[0]:
        axes.axhspan(low[0], high[0], color=COLOURS["grid"], linewidth=0, zorder=0)
    axes.fill_between(x, low, high, color=COLOURS["blue"], alpha=0.25, linewidth=0)
    axes.plot(x, y, "o-", color=COLOURS["blue"])
    axes.set_xlabel("forget requests so far")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if shares:
        _share_axis(axes, "y", [*low, *high])
    else:
        axes.set_ylim(bottom=0, top=1.15 * float(high.max()) or 1)
    axes.set_title(_wrapped(title, 52, 2))
    write = percent if shares else short
    told = f"After {x[0]:g} requests {write(y[0])} {unit}, after {x[-1]:g} requests {write(y[-1])} {unit}."
    return svg.render(figure, title, told)


@matplotlib.rc_context(STYLE)
def longest_runs(runs: Mapping[str, Sequence[Any]], labels: Mapping[str, str], limit: float | None) -> str:
    """A bar to the longest exact copy of each way, a dot for every passage, and the limit. runs: way → tokens."""
    drawn = {way: values for way, given in runs.items() if len(values := finite(given))}
    if not drawn:
        raise NothingToDraw("no runs to draw")
    names = [_wrapped(labels.get(way, way), 26, 2) for way in drawn]
    figure = _figure(72 + ROW * len(drawn) + 8 * sum("\n" in name for name in names))
    axes = figure.subplots()
    told = []
    for row, (way, values) in enumerate(drawn.items()):
        axes.barh(row, values.max(), 0.62, color=COLOURS["grid"], edgecolor=COLOURS["muted"], linewidth=0.8)
        lengths, counts = np.unique(values, return_counts=True)
        axes.scatter(
            lengths,
            np.full(len(lengths), row),
            s=10 + 30 * counts / counts.max(),
            color=COLOURS["blue"],
            zorder=3,
            linewidth=0,
        )
        told.append(f"{labels.get(way, way)} {values.max():g} over {len(values)} passages")
    if (most := number(limit)) is not None:
        axes.axvline(most, color=COLOURS["ink"], linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"limit {most:g}",
            (most, 1),
            (4, 3),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            fontsize=9,
            color=COLOURS["muted"],
        )
    axes.set_yticks(range(len(drawn)), names)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
    axes.grid(axis="y", visible=False)
    axes.set_xlim(left=0)
    axes.set_xlabel("longest exact copy, tokens")
    figure.suptitle("Longest copied run", x=0.02, ha="left", fontsize=11, fontweight="bold")
    bound = "" if most is None else f" The limit is {most:g} tokens."
    return svg.render(figure, "Longest copied run", "Longest run in tokens: " + "; ".join(told) + "." + bound)


def finite(values: Any) -> Scores:
    """The finite numbers of a list, in order; none of anything else."""
    return np.array([x for value in (() if values is None else values) if (x := number(value)) is not None])


def _near_one(value: float) -> str:
    """Four digits, more where they'd round to one."""
    digits = next((digits for digits in (4, 5, 6, 7) if value == 1 or float(f"{value:.{digits}f}") < 1), 8)
    return f"{value:.{digits}f}"


def _points(rows: Iterable[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    pairs = [(number(row.get("x")), number(row.get(key))) for row in rows]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _bars(rows: Iterable[Mapping[str, Any]]) -> tuple[list[float], list[float], list[float]]:
    """x, objective and its standard error, of the evaluations that have all three."""
    found = [[number(row.get(key)) for key in ("x", "objective", "error")] for row in rows]
    whole = [(x, y, error) for x, y, error in found if x is not None and y is not None and error is not None]
    return [x for x, _, _ in whole], [y for _, y, _ in whole], [error for _, _, error in whole]


def _logit(probabilities: Any) -> Any:
    inside = np.clip(probabilities, EDGE, 1 - EDGE)
    return np.log10(inside / (1 - inside))


def _span(values: Scores) -> tuple[float, float]:
    """From the lowest to the highest with a little room, never empty."""
    low, high = float(values.min()), float(values.max())
    room = 0.04 * (high - low) or 0.5
    return low - room, high + room


def _share_axis(axes: Axes, which: str, values: Sequence[float]) -> None:
    """Limits that show all values and never leave [0, 1] by more than a marker's width; ticks in per cent."""
    low, high = min(values), max(values)
    room = max(0.08 * (high - low), 0.004)
    low, high = max(low - room, -0.02 * (high - low) - 0.001), min(high + room, 1 + 0.02 * (high - low) + 0.001)
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axis.set_major_locator(MaxNLocator(4 if which == "x" else 5))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.4g} %"))


def _free_axis(axes: Axes, values: Sequence[float]) -> None:
    """A log scale for what spans many magnitudes; else from 0 when all are positive and that costs little room."""
    low, high = min(values), max(values)
    if low > 0 and high > 1e4 * low:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_major_formatter(PLAIN)
        axes.minorticks_off()
        return
    if low >= 0 and high <= 1:
        _share_axis(axes, "x", [0.0, *values] if low < 0.6 * high else values)
        axes.xaxis.set_major_formatter(PLAIN)
        return
    start, end = _span(np.array(values))
    axes.set_xlim(0 - 0.02 * high if 0 <= low < 0.6 * high else start, end)
    axes.xaxis.set_major_locator(MaxNLocator(4))


def _with_interval(interval: Interval, shares: bool) -> str:
    write = percent if shares else short
    low, high = number(interval.get("low")), number(interval.get("high"))
    bounds = "" if low is None or high is None else f" ({write(low)} to {write(high)})"
    return write(float(interval["value"])) + bounds


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _wrapped(text: str, width: int, lines: int) -> str:
    return "\n".join(textwrap.wrap(clean(text), width, max_lines=lines, placeholder=" …")) or " "


def _figure(height: float) -> Figure:
    """An empty figure; height in pixels."""
    return Figure(figsize=(WIDTH / 72, height / 72))


def _note(axes: Axes, text: str, y: float) -> None:
    """A small note above a horizontal line, at its left end: a weak guard leaves a metric far from its target there."""
    axes.annotate(
        text, (0.01, y), xycoords=axes.get_yaxis_transform(), ha="left", va="bottom", fontsize=9, color=COLOURS["muted"]
    )
