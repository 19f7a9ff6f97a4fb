"""Number formats: a rounded number never claims more than the exact one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.evaluation.reporting.number_format import (
    MISSING,
    PERCENT,
    finite_number,
    format_interval,
    format_number,
    format_percent,
    format_short,
)


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (0.1554, "0.000", "0.155"),
        (0.0, "0.000", "0.000"),
        (1.0, "0.000", "1.000"),
        (0.9996, "0.000", "0.9996"),
        (0.0004, "0.000", "0.0004"),
        (1.83e-21, "0.000", "1.8e-21"),
        (12.34, "0.0", "12.3"),
        (1.004, "0.00", "1.00"),
        (0.5, "0", "0.5"),
        (0.123, "percent", "12.3" + PERCENT),
        (1.0, "percent", "100" + PERCENT),
        (0.9999, "percent", "99.99" + PERCENT),
        (0.0, "percent", "0" + PERCENT),
        (0.00012, "percent", "0.01" + PERCENT),
        (1234.0, None, "1,234"),
        (0.05834, None, "0.0583"),
        (None, "percent", MISSING),
        (math.nan, "0.000", MISSING),
        (math.inf, None, MISSING),
        ("0.5", "0.0", MISSING),
        (True, None, MISSING),
    ],
)
def test_numbers_are_shown_in_their_format(value: object, form: str | None, text: str) -> None:
    assert format_number(value, form) == text


@given(st.floats(0, 1))
def test_only_exact_bounds_are_written_as_bounds(value: float) -> None:
    shown = float(format_number(value, "0.000")), float(format_percent(value).removesuffix(PERCENT)) / 100
    assert [text == 0 for text in shown] == [value == 0] * 2
    # Beyond the last digit a number near 1 is written as 1: 0.99999999.
    assert [text == 1 for text in shown] == [value > 1 - 5e-7, value > 1 - 5e-9]


def test_an_interval_needs_both_ends() -> None:
    assert format_interval({"low": 0.1, "high": 0.25}, "percent") == f"10.0 to 25.0{PERCENT}"
    assert format_interval({"low": None, "high": 0.25}) == ""
    assert format_interval({}) == ""


def test_finite_number_accepts_finite_numbers_only() -> None:
    assert (
        finite_number(3) == 3.0
        and finite_number(None) is None
        and finite_number(math.nan) is None
        and finite_number(True) is None
    )


def test_whole_numbers_are_written_in_full() -> None:
    assert format_short(10_000) == "10,000" and format_short(3.14159) == "3.14"
