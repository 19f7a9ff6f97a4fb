"""What policies in shadow mode would have done, from the audit file: counts, scores and places, never a text."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

# Choices for a report that fits a terminal of 80 columns.
BINS = 10  # of the score histogram: tenths
BAR_CHARS = 40  # length of the histogram's longest bar, in characters
MAX_EXAMPLES = 5  # examples, and rows in the lists of places and models
AGE_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@dataclass
class ShadowSummary:
    """The decisions of one policy. hashes: the versions of its file that made them. histogram: scores in tenths."""

    policy: str
    action: str
    judged: int = 0
    flagged: int = 0
    first: float = float("inf")
    last: float = float("-inf")
    hashes: set[str] = field(default_factory=set)
    histogram: list[int] = field(default_factory=lambda: [0] * BINS)
    places: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, record: dict[str, Any], finding: dict[str, Any]) -> None:
        """Add one finding of an audit record."""
        self.judged += 1
        self.first, self.last = min(self.first, record["time"]), max(self.last, record["time"])
        self.hashes.add(finding["hash"])
        # NaN is written as null: a NaN score counts as flagged.
        score = 1.0 if finding["score"] is None else float(finding["score"])
        self.histogram[min(int(score * BINS), BINS - 1)] += 1
        if finding["flagged"]:
            self.flagged += 1
            self.action = finding["action"]
            self.places[re.sub(r"\d+", "N", finding["place"])] += 1
            self.models[record["model"] or "(none)"] += 1
            self.examples = [*self.examples[1 - MAX_EXAMPLES :], f"{record['request_id']} {finding['place']}"]

    def to_json(self) -> dict[str, Any]:
        """The summary as an object for `--json`."""
        return {
            "policy": self.policy,
            "action": self.action,
            "judged": self.judged,
            "flagged": self.flagged,
            "share": self.flagged / self.judged,
            "first": self.first,
            "last": self.last,
            "hashes": sorted(self.hashes),
            "scores_in_tenths": self.histogram,
            "places": dict(self.places.most_common()),
            "models": dict(self.models.most_common()),
            "examples": self.examples,
        }


def parse_since(text: str, *, now: datetime | None = None) -> float:
    """Return seconds since the epoch for "90m", "24h" or "7d" ago, or for an ISO date. Raises ValueError."""
    if match := re.fullmatch(r"(\d{1,5})([mhd])", text):
        age = timedelta(**{AGE_UNITS[match[2]]: int(match[1])})
        return ((now or datetime.now(UTC)) - age).timestamp()
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"--since {text!r}: use 90m, 24h, 7d or a date such as 2026-01-31T12:00") from None
    return (moment if moment.tzinfo else moment.astimezone()).timestamp()


def summarize(lines: Iterable[bytes], *, start: float = float("-inf")) -> tuple[list[ShadowSummary], int]:
    """Return a summary per policy in shadow mode, by name, and the number of unreadable lines.

    lines: the lines of an audit file. start: earliest time, in seconds since the epoch.
    """
    by_policy: dict[str, ShadowSummary] = {}
    unreadable = 0
    for line in lines:
        try:
            record = json.loads(line)
            if record["time"] < start:
                continue
            for finding in record.get("policies", ()):
                if finding["mode"] == "shadow":
                    name = finding["policy"]
                    by_policy.setdefault(name, ShadowSummary(name, finding["action"])).add(record, finding)
        except (ValueError, KeyError, TypeError):
            unreadable += bool(line.strip())
    return [by_policy[name] for name in sorted(by_policy)], unreadable


def report_lines(summary: ShadowSummary) -> Iterator[str]:
    """A summary as lines of text."""
    share = summary.flagged / summary.judged
    yield f"{summary.policy}: {summary.flagged} of {summary.judged} requests flagged ({share:.2%})"
    yield f"  would have been: {summary.action}; from {_moment(summary.first)} to {_moment(summary.last)}"
    if len(summary.hashes) > 1:
        yield f"  by {len(summary.hashes)} versions of its file; use --since to see only the last one"
    largest = max(summary.histogram)
    yield "  scores"
    for i, count in enumerate(summary.histogram):
        bar = "█" * -(-count * BAR_CHARS // largest)
        yield f"    {i / BINS:.1f}–{(i + 1) / BINS:.1f} {count:>8} {bar}".rstrip()
    for title, counts in (("places", summary.places), ("models", summary.models)):
        if counts:
            listed = ", ".join(f"{name} {count}" for name, count in counts.most_common(MAX_EXAMPLES))
            yield f"  {title} of flagged requests: {listed}"
    for example in summary.examples:
        yield f"  for example request {example}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")


def audit_lines(path: Path) -> Iterator[bytes]:
    """The lines of an audit file. Raises ValueError if it can't be read."""
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
