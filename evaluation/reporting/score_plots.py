"""Plots of distributions: forget scores, ROC curves, truth ratios. Each returns SVG text.

Knows the shape of the numbers, not where they come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lethe.evaluation.reporting import svg
from lethe.evaluation.reporting.number_format import as_interval, finite_number, format_percent, format_short
from lethe.evaluation.reporting.plot_layout import (
    DASHED,
    TITLE_CHARS,
    NothingToDrawError,
    Scores,
    figure_title,
    finite_numbers,
    new_figure,
    padded_range,
    shorten,
    vertical_line_label,
    wrap_text,
)
from lethe.evaluation.reporting.svg import COLOURS, MATPLOTLIB_STYLE

# Probabilities nearer to 0 or 1 than this share the outermost bin of a logit scale.
LOGIT_EDGE = 1e-4
# Ticks of a logit scale.
LOGIT_TICKS = [0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999]
# Bins of a histogram: 40 bars of 9 pixels.
BINS = 40
# Height of the tallest bar, and of the shortest one that is drawn, in rows.
MAX_BAR, MIN_BAR = 0.56, 0.03
# Colour and line style of each ROC curve in turn.
CURVE_STYLES = (("blue", "-"), ("green", (0, (5, 2))), ("purple", (0, (1, 1.5))), ("orange", (0, (6, 2, 1, 2))))


@matplotlib.rc_context(MATPLOTLIB_STYLE)
def plot_scores(sets: Mapping[str, Mapping[str, Any]], threshold: float | None) -> str:
    """Plot a histogram of each set's forget scores, and the threshold.

    sets: name → {"kind": "forget" or other, "scores", "flagged": interval}. Bar heights are square roots of shares, so
    that three prompts among thousands are visible. Probabilities are on a logit scale.
    """
    scores = _scores_by_set(sets)
    if not scores:
        raise NothingToDrawError("no scores to draw")
    pooled = np.concatenate(list(scores.values()))
    limit = finite_number(threshold)
    logit = bool(pooled.min() >= 0 and pooled.max() <= 1 and limit is not None and 0 < limit < 1)
    position = _logit if logit else np.asarray
    limits = (
        (-_logit(1 - LOGIT_EDGE), _logit(1 - LOGIT_EDGE))
        if logit
        else padded_range(pooled if limit is None else np.append(pooled, limit))
    )
    edges = np.linspace(*limits, BINS + 1)
    figure = new_figure(86 + 46 * len(scores))
    axes = figure.subplots()
    roots = {name: np.sqrt(np.histogram(position(values), edges)[0] / len(values)) for name, values in scores.items()}
    scale = MAX_BAR / max(root.max() for root in roots.values())
    notes = []
    for row, (name, values) in enumerate(scores.items()):
        height = np.where(roots[name] > 0, np.maximum(scale * roots[name], MIN_BAR), 0.0)
        colour = COLOURS["orange" if sets[name].get("kind") == "forget" else "blue"]
        axes.bar(edges[:-1], height, np.diff(edges), bottom=-row, align="edge", color=colour, linewidth=0)
        flagged = finite_number(as_interval(sets[name].get("flagged")).get("value"))
        note = f"{name.replace('_', ' ')} · {len(values):,}"
        note += f" · {format_percent(flagged)} flagged" if flagged is not None else ""
        axes.text(0.01, -row + 0.6, note, transform=axes.get_yaxis_transform(), fontsize=9, va="bottom")
        notes.append(note)
    if limit is not None:
        x = float(position(np.array(limit)))
        axes.axvline(x, color=COLOURS["ink"], linewidth=1, linestyle=DASHED)
        label = f"threshold {format_short(limit)}"
        vertical_line_label(axes, label, x, left=x > (edges[0] + edges[-1]) / 2)
    axes.set_ylim(-len(scores) + 0.9, 0.98)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    if logit:
        _set_logit_ticks(axes, edges, zero=not pooled.all())
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("forget score" + (" (logit scale)" if logit else ""))
    title = "Forget scores of each set of prompts"
    figure_title(figure, title)
    description = "Number of prompts and flagged share: " + "; ".join(notes) + "."
    description += "" if limit is None else f" The threshold is {format_short(limit)}."
    return svg.figure_to_svg(figure, title, description)


def _scores_by_set(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Scores]:
    scores = {name: finite_numbers(one.get("scores")) for name, one in sets.items()}
    return {name: values for name, values in scores.items() if len(values)}


def _logit(probabilities: Any) -> Any:
    clipped = np.clip(probabilities, LOGIT_EDGE, 1 - LOGIT_EDGE)
    return np.log10(clipped / (1 - clipped))


def _set_logit_ticks(axes: Axes, edges: Scores, *, zero: bool) -> None:
    """Label a logit scale with probabilities. zero: whether a score of 0 occurs, which gets the first bin."""
    ticks, positions = LOGIT_TICKS, _logit(np.array(LOGIT_TICKS))
    if zero:
        ticks, positions = [0, *ticks], np.append((edges[0] + edges[1]) / 2, positions)
    axes.set_xticks(positions, [f"{tick:g}" for tick in ticks])


def roc_curve(forget: Scores, other: Scores) -> tuple[Scores, Scores]:
    """Return false-alarm rate and recall at every threshold, highest threshold first. forget: (N,), other: (M,)."""
    thresholds = np.unique(np.concatenate([forget, other]))[::-1]
    below = [np.searchsorted(np.sort(scores), thresholds, side="left") / len(scores) for scores in (other, forget)]
    return np.concatenate([[0.0], 1 - below[0]]), np.concatenate([[0.0], 1 - below[1]])


def roc_area(forget: Scores, other: Scores) -> float:
    """Return the area under the ROC curve: the chance that a forget prompt scores higher, with ties counted half."""
    ranked = np.sort(other)
    wins = np.searchsorted(ranked, forget, side="left") + np.searchsorted(ranked, forget, side="right")
    return float(wins.mean() / 2 / len(other))


@matplotlib.rc_context(MATPLOTLIB_STYLE)
def plot_roc(sets: Mapping[str, Mapping[str, Any]], threshold: float | None) -> str:
    """Plot recall of each forget set against the false-alarm rate of all other sets together, on a log scale.

    sets: as for `plot_scores`.
    """
    scores = _scores_by_set(sets)
    forget = {name: values for name, values in scores.items() if sets[name].get("kind") == "forget"}
    others = [values for name, values in scores.items() if name not in forget]
    if not forget or not others:
        raise NothingToDrawError("a ROC curve needs scores of forget sets and of other sets")
    other = np.concatenate(others)
    # A log scale has no 0: a rate of no false alarm is drawn at half of one.
    min_rate = 0.5 / len(other)
    limit = finite_number(threshold)
    figure = new_figure(300)
    axes = figure.subplots()
    notes, lowest_recall = [], 1.0
    for index, (name, values) in enumerate(forget.items()):
        colour, line = CURVE_STYLES[index % len(CURVE_STYLES)]
        false_alarms, recall = roc_curve(values, other)
        area = _digits_below_one(roc_area(values, other))
        label = f"{shorten(name, 30)}: area {area}"
        x = np.maximum(false_alarms, min_rate)
        axes.step(x, recall, where="post", color=COLOURS[colour], linestyle=line, label=label)
        lowest_recall = min(lowest_recall, float(recall[false_alarms <= min_rate].max()))
        notes.append(f"{name} area {area}")
        if limit is not None:
            point = float((other >= limit).mean()), float((values >= limit).mean())
            axes.plot(max(point[0], min_rate), point[1], "o", color=COLOURS[colour], markersize=7)
            lowest_recall = min(lowest_recall, point[1])
            notes[-1] += f", recall {format_percent(point[1])} at {format_percent(point[0])} false alarms"
    axes.set_xscale("log")
    axes.set_xlim(min_rate, 1)
    floor = max(0.0, min(0.95, lowest_recall - 0.25 * (1 - lowest_recall)))
    axes.set_ylim(floor, 1 + 0.04 * (1 - floor))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g} %"))
    axes.minorticks_off()
    axes.set_xlabel(f"false alarms among {len(other):,} other prompts (log scale)")
    axes.set_ylabel("recall")
    axes.set_title("ROC curve" + (", dots at the threshold" if limit is not None else ""))
    axes.legend(loc="lower right")
    return svg.figure_to_svg(figure, "ROC curve", "; ".join(notes) + ".")


def _digits_below_one(value: float) -> str:
    """Return an area with four digits, or with more where four would round it to one."""
    digits = next((digits for digits in (4, 5, 6, 7) if value == 1 or float(f"{value:.{digits}f}") < 1), 8)
    return f"{value:.{digits}f}"


@matplotlib.rc_context(MATPLOTLIB_STYLE)
def plot_truth_ratios(title: str, ratios: Scores, twin: Scores, unguarded: Scores | None, note: str) -> str:
    """Plot the cumulative distributions of truth ratios: one system's, the twin's and the unguarded model's.

    The largest vertical gap to the twin is marked: the statistic D of the Kolmogorov-Smirnov test.
    """
    curves = [
        ("unguarded", unguarded, "orange", (0, (1, 1.5))),
        ("retain twin", twin, "ink", (0, (4, 2))),
        ("this system", ratios, "blue", "-"),
    ]
    drawn = [
        (name, np.sort(np.log10(values[values > 0])), *look) for name, values, *look in curves if values is not None
    ]
    if any(not len(values) for _, values, *_ in drawn):
        raise NothingToDrawError(f"{title}: no truth ratios to draw")
    figure = new_figure(270)
    axes = figure.subplots()
    for name, values, colour, line in drawn:
        cumulative = np.arange(1, len(values) + 1) / len(values)
        axes.step(values, cumulative, where="post", color=COLOURS[colour], linestyle=line, label=name)
    x, low, high = largest_gap(drawn[-1][1], drawn[-2][1])
    axes.plot([x, x], [low, high], "_-", color=COLOURS["muted"], markersize=8)
    pooled = np.concatenate([values for _, values, *_ in drawn])
    axes.set_xlim(*padded_range(np.quantile(pooled, [0.005, 0.995])))
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("truth ratio, log10")
    axes.set_ylabel("share of questions below")
    axes.set_title(wrap_text(title, TITLE_CHARS, 2) + f"\n{note}", fontsize=10)
    axes.legend(loc="lower right")
    gap = format_short(abs(high - low))
    return svg.figure_to_svg(figure, f"Truth ratios: {title}", f"{note}. Largest gap to the twin {gap}.")


def largest_gap(ratios: Scores, twin: Scores) -> tuple[float, float, float]:
    """Return where two cumulative distributions differ most, and both shares there. Takes sorted (N,) and (M,)."""
    pooled = np.concatenate([ratios, twin])
    shares = [np.searchsorted(values, pooled, side="right") / len(values) for values in (ratios, twin)]
    widest = int(np.argmax(np.abs(shares[0] - shares[1])))
    return float(pooled[widest]), float(shares[0][widest]), float(shares[1][widest])
