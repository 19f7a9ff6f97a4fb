"""Measured numbers as a reader sees them. Pure: knows no page and no plot.

A rounded number must not claim what the exact one doesn't: only an exact 0 is written 0, only an exact 1 is written 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MISSING = "–"
PERCENT = "\N{NO-BREAK SPACE}%"
MOST_DIGITS = 6


def number(value: Any) -> float | None:
    """A finite float, or None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def as_interval(entry: Any) -> Mapping[str, Any]:
    """An interval from an interval, from a bare number, or from nothing."""
    return entry if isinstance(entry, Mapping) else {"value": entry}


def show(value: Any, form: str | None = None) -> str:
    """A number in a metric's format: "percent", or zeros that stand for digits ("0.000"); three figures without one."""
    given = number(value)
    if given is None:
        return MISSING
    if form == "percent":
        return percent(given)
    if form and set(form) <= set("0.") and form.count(".") < 2:
        digits = len(form.partition(".")[2])
        return _distinct(given, digits, (0.0, 1.0) if abs(given) < 1 else (0.0,))
    return short(given)


def percent(value: float) -> str:
    """A share in per cent with one digit, more where fewer would say 0 or 100."""
    if value in (0, 1):
        return f"{100 * value:.0f}{PERCENT}"
    return _distinct(100 * value, 1, (0.0, 100.0)) + PERCENT


def short(value: float) -> str:
    """Three figures; whole numbers in full."""
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.3g}"


def interval(entry: Mapping[str, Any], form: str | None = None) -> str:
    """The two ends of an interval, or nothing when either is missing."""
    low, high = number(entry.get("low")), number(entry.get("high"))
    if low is None or high is None:
        return ""
    return f"{show(low, form).removesuffix(PERCENT)} to {show(high, form)}"


def _distinct(value: float, digits: int, bounds: tuple[float, ...]) -> str:
    """Fixed digits, more of them while the text would equal a bound that the value isn't; then powers of ten."""
    for more in range(digits, max(digits, MOST_DIGITS) + 1):
        text = f"{value:.{more}f}"
        if value in bounds or abs(float(text)) not in bounds:
            return text
    return f"{value:.1e}"
