"""Spellings of dates."""

from __future__ import annotations

import pytest

from lethe.corruption.phrases.dates import date_spellings


@pytest.mark.parametrize(
    "text",
    ["May 11, 1991", "11 May 1991", "the 11th of May, 1991", "May 11th 1991", "1991-05-11", "11/05/1991"],
)
def test_a_date_in_any_spelling_yields_all_spellings(text: str) -> None:
    spellings = set(date_spellings(text))
    assert {"May 11, 1991", "11th of May 1991", "11/5/1991", "05/11/1991", "1991-05-11", "1991"} <= spellings


@pytest.mark.parametrize("text", ["", "99/99/1991", "May 1991", "version 1.2.3", "maybe 11 years, 1991 pages"])
def test_incomplete_dates_yield_nothing(text: str) -> None:
    assert not [spelling for spelling in date_spellings(text) if "1991" in spelling]


def test_days_have_ordinal_endings() -> None:
    spellings = set(date_spellings("2 May 1991 and 12 May 1991 and 23 May 1991"))
    assert {"2nd May 1991", "12th May 1991", "23rd May 1991"} <= spellings
