"""The usual English and numeric spellings of a date."""

from __future__ import annotations

import re
from collections.abc import Iterator

_MONTHS = "January February March April May June July August September October November December".split()
_MONTH = "|".join(f"{name}|{name[:3]}" for name in _MONTHS)
_NUMERIC = re.compile(r"\b(\d{1,4})\s?[/.\-]\s?(\d{1,2})\s?[/.\-]\s?(\d{2,4})\b")
_MONTH_FIRST = re.compile(
    rf"\b({_MONTH})\.?\s+(?:the\s+)?(\d{{1,2}})(?:st|nd|rd|th)?(?:\s*,\s*|\s+)(\d{{4}})\b", re.IGNORECASE
)
_DAY_FIRST = re.compile(
    rf"\b(\d{{1,2}})(?:st|nd|rd|th)?\s+(?:day\s+)?(?:of\s+)?({_MONTH})\.?(?:\s*,\s*|\s+)(\d{{4}})\b",
    re.IGNORECASE,
)


def date_spellings(text: str) -> Iterator[str]:
    """Yield the usual spellings of each full date in the text. Numeric dates are read as day-month and month-day."""
    for year, month, day in sorted(set(_dates(text))):
        yield from _spellings(year, month, day)


def _dates(text: str) -> Iterator[tuple[int, int, int]]:
    for match in _NUMERIC.finditer(text):
        one, two, three = (int(group) for group in match.groups())
        orders = [(one, two, three)] if len(match[1]) == 4 else [(three, one, two), (three, two, one)]
        yield from (date for date in orders if _is_date(*date))
    for match in _MONTH_FIRST.finditer(text):
        date = int(match[3]), _month_number(match[1]), int(match[2])
        if _is_date(*date):
            yield date
    for match in _DAY_FIRST.finditer(text):
        date = int(match[3]), _month_number(match[2]), int(match[1])
        if _is_date(*date):
            yield date


def _is_date(year: int, month: int, day: int) -> bool:
    return 1 <= month <= 12 and 1 <= day <= 31


def _month_number(name: str) -> int:
    return 1 + [month[:3].casefold() for month in _MONTHS].index(name[:3].casefold())


def _spellings(year: int, month: int, day: int) -> Iterator[str]:
    ordinal = f"{day}{_suffix(day)}"
    for name in dict.fromkeys((_MONTHS[month - 1], _MONTHS[month - 1][:3])):
        for number in (str(day), ordinal):
            yield f"{name} {number}, {year}"
            yield f"{name} the {number}, {year}"
            yield f"{number} {name} {year}"
            yield f"{number} of {name} {year}"
            yield f"{number} day of {name} {year}"
    for one, two in ((day, month), (month, day)):
        yield f"{one}/{two}/{year}"
        yield f"{one:02}/{two:02}/{year}"
    yield f"{year}-{month:02}-{day:02}"
    yield f"{year}-{month}-{day}"
    yield str(year)


def _suffix(day: int) -> str:
    if day in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
