"""Formats measured numbers for readers. Pure: knows no page and no plot.

A rounded number must not claim more than the exact one: only an exact 0 is written as 0, and only an exact 1 as 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MISSING = "–"
PERCENT = "\N{NO-BREAK SPACE}%"
# Digits after the decimal point before a number is written with a power of ten.
MAX_DIGITS = 6


def finite_number(value: Any) -> float | None:
    """Return a finite number as float, and None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def as_interval(entry: Any) -> Mapping[str, Any]:
    """Return an interval (a mapping with value, low, high) as it is, and anything else as an interval's value."""
    return entry if isinstance(entry, Mapping) else {"value": entry}


def format_number(value: Any, form: str | None = None) -> str:
    """Return a number in a metric's format: "percent", or zeros that stand for digits ("0.000").

    Without a format, or in an unknown one, three significant figures; MISSING if it is not a finite number.
    """
    finite = finite_number(value)
    if finite is None:
        return MISSING
    if form == "percent":
        return format_percent(finite)
    if form and set(form) <= set("0.") and form.count(".") < 2:
        digits = len(form.partition(".")[2])
        return _fixed_digits(finite, digits, (0.0, 1.0) if abs(finite) < 1 else (0.0,))
    return format_short(finite)


def format_percent(value: float) -> str:
    """Return a share in per cent with one digit, or with more where one digit would say 0 or 100."""
    if value in (0, 1):
        return f"{100 * value:.0f}{PERCENT}"
    return _fixed_digits(100 * value, 1, (0.0, 100.0)) + PERCENT


def format_short(value: float) -> str:
    """Return a number with three significant figures, and whole numbers in full."""
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.3g}"


def format_interval(entry: Mapping[str, Any], form: str | None = None) -> str:
    """Return "low to high", or "" when either end is missing."""
    low, high = finite_number(entry.get("low")), finite_number(entry.get("high"))
    if low is None or high is None:
        return ""
    return f"{format_number(low, form).removesuffix(PERCENT)} to {format_number(high, form)}"


def _fixed_digits(value: float, digits: int, bounds: tuple[float, ...]) -> str:
    """Return a number with fixed digits, or with more while it would be rounded to a bound that it doesn't equal.

    After MAX_DIGITS it is written with a power of ten.
    """
    for count in range(digits, max(digits, MAX_DIGITS) + 1):
        text = f"{value:.{count}f}"
        if value in bounds or abs(float(text)) not in bounds:
            return text
    return f"{value:.1e}"
