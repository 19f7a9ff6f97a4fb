"""What all plots share: size, axes, labels, and reading numbers from the report's JSON. Knows no particular plot."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from lethe.evaluation.reporting.number_format import finite_number, format_percent, format_short
from lethe.evaluation.reporting.svg import COLOURS, printable

Interval = Mapping[str, Any]
Scores = NDArray[np.float64]

# Width of every figure in pixels (one pixel to the point), so that pages can place them side by side without scaling.
WIDTH = 360
# Height of one row of dots or bars, in pixels.
ROW_HEIGHT = 24
# Characters of a line in a row's label and in a title, at the font sizes used.
LABEL_CHARS = 26
TITLE_CHARS = 52
# Line styles of curves and reference lines.
DASHED = (0, (4, 3))
# Ticks as plain numbers: matplotlib writes powers of ten as formulas, and the page shows text only.
PLAIN_NUMBERS = FuncFormatter(lambda x, _: f"{x:g}")


class NothingToDrawError(ValueError):
    """A plot has not one number to draw."""


def finite_numbers(values: Any) -> Scores:
    """Return the finite numbers of a list in order, and an empty array for None."""
    return np.array([x for value in (() if values is None else values) if (x := finite_number(value)) is not None])


def new_figure(height: float) -> Figure:
    """Return an empty figure of the common width. height: in pixels."""
    return Figure(figsize=(WIDTH / 72, height / 72))


def wrap_text(text: str, width: int, max_lines: int) -> str:
    """Return a text in lines of `width` characters, with " …" at the end of the last one if it is too long."""
    return "\n".join(textwrap.wrap(printable(text), width, max_lines=max_lines, placeholder=" …")) or " "


def shorten(text: str, width: int) -> str:
    """Return a text of at most `width` characters, with "…" at its end if it was longer."""
    return text if len(text) <= width else text[: width - 1] + "…"


def padded_range(values: Scores) -> tuple[float, float]:
    """Return the smallest and the largest value with 4 % room on both sides; never an empty range."""
    low, high = float(values.min()), float(values.max())
    room = 0.04 * (high - low) or 0.5
    return low - room, high + room


def row_axis(axes: Axes, labels: Sequence[str]) -> None:
    """Label one row per entry on the y axis, from top to bottom."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
    axes.grid(axis="y", visible=False)


def share_axis(axes: Axes, which: str, values: Sequence[float]) -> None:
    """Set limits that show all shares with little room beyond [0, 1], and ticks in per cent. which: "x" or "y"."""
    low, high = min(values), max(values)
    room = max(0.08 * (high - low), 0.004)
    low, high = max(low - room, -0.02 * (high - low) - 0.001), min(high + room, 1 + 0.02 * (high - low) + 0.001)
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axis.set_major_locator(MaxNLocator(4 if which == "x" else 5))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.4g} %"))


def number_axis(axes: Axes, values: Sequence[float]) -> None:
    """Set the x axis for any numbers: a log scale over four orders of magnitude, else from 0 if they are near it."""
    low, high = min(values), max(values)
    if low > 0 and high > 1e4 * low:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_major_formatter(PLAIN_NUMBERS)
        axes.minorticks_off()
        return
    if low >= 0 and high <= 1:
        share_axis(axes, "x", [0.0, *values] if low < 0.6 * high else values)
        axes.xaxis.set_major_formatter(PLAIN_NUMBERS)
        return
    start, end = padded_range(np.array(values))
    axes.set_xlim(0 - 0.02 * high if 0 <= low < 0.6 * high else start, end)
    axes.xaxis.set_major_locator(MaxNLocator(4))


def vertical_line_label(axes: Axes, text: str, x: float, *, left: bool = False) -> None:
    """Write a small label above the axes next to a vertical line at x, to its right, or to its left."""
    axes.annotate(
        text,
        (x, 1),
        (-4 if left else 4, 3),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        ha="right" if left else "left",
        fontsize=9,
        color=COLOURS["muted"],
    )


def figure_title(figure: Figure, text: str) -> None:
    """Write the title at the figure's left edge, where it doesn't depend on the width of the row labels."""
    figure.suptitle(text, x=0.02, ha="left", fontsize=11, fontweight="bold")


def value_with_interval(interval: Interval, *, shares: bool) -> str:
    """Return "value (low to high)" for a plot's description."""
    write = format_percent if shares else format_short
    low, high = finite_number(interval.get("low")), finite_number(interval.get("high"))
    bounds = "" if low is None or high is None else f" ({write(low)} to {write(high)})"
    return write(float(interval["value"])) + bounds
