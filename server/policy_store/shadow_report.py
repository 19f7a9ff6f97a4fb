"""What policies in shadow would have done, read from the audit trail: counts, scores and places, never a text."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

BINS = 10
BAR = 40
EXAMPLES = 5
AGES = {"m": "minutes", "h": "hours", "d": "days"}


@dataclass
class Summary:
    """One policy's decisions. hashes: the versions of its file that made them. histogram: scores in tenths."""

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
        self.judged += 1
        self.first, self.last = min(self.first, record["time"]), max(self.last, record["time"])
        self.hashes.add(finding["hash"])
        # A score that is no number is written as null, and counted as reached.
        score = 1.0 if finding["score"] is None else float(finding["score"])
        self.histogram[min(int(score * BINS), BINS - 1)] += 1
        if finding["flagged"]:
            self.flagged += 1
            self.action = finding["action"]
            self.places[re.sub(r"\d+", "N", finding["place"])] += 1
            self.models[record["model"] or "(none)"] += 1
            self.examples = [*self.examples[1 - EXAMPLES :], f"{record['request_id']} {finding['place']}"]

    def facts(self) -> dict[str, Any]:
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


def since(text: str, *, now: datetime | None = None) -> float:
    """Seconds since the epoch of "90m", "24h", "7d" ago, or of an ISO date. Raises ValueError."""
    if found := re.fullmatch(r"(\d{1,5})([mhd])", text):
        ago = timedelta(**{AGES[found[2]]: int(found[1])})
        return ((now or datetime.now(UTC)) - ago).timestamp()
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"--since {text!r}: use 90m, 24h, 7d or a date such as 2026-01-31T12:00") from None
    return (moment if moment.tzinfo else moment.astimezone()).timestamp()


def summaries(lines: Iterable[bytes], *, start: float = float("-inf")) -> tuple[list[Summary], int]:
    """Every policy in shadow, by name, and how many lines could not be read. start: seconds since the epoch."""
    found: dict[str, Summary] = {}
    unread = 0
    for line in lines:
        try:
            record = json.loads(line)
            if record["time"] < start:
                continue
            for finding in record.get("policies", ()):
                if finding["mode"] == "shadow":
                    name = finding["policy"]
                    found.setdefault(name, Summary(name, finding["action"])).add(record, finding)
        except (ValueError, KeyError, TypeError):
            unread += bool(line.strip())
    return [found[name] for name in sorted(found)], unread


def text(summary: Summary) -> Iterator[str]:
    """A summary as lines for people."""
    share = summary.flagged / summary.judged
    yield f"{summary.policy}: {summary.flagged} of {summary.judged} requests flagged ({share:.2%})"
    yield f"  would have been: {summary.action}; from {_moment(summary.first)} to {_moment(summary.last)}"
    if len(summary.hashes) > 1:
        yield f"  by {len(summary.hashes)} versions of its file: --since the last change tells more"
    most = max(summary.histogram)
    yield "  scores"
    for i, count in enumerate(summary.histogram):
        bar = "█" * -(-count * BAR // most)
        yield f"    {i / BINS:.1f}–{(i + 1) / BINS:.1f} {count:>8} {bar}".rstrip()
    for title, counts in (("places", summary.places), ("models", summary.models)):
        if counts:
            told = ", ".join(f"{name} {count}" for name, count in counts.most_common(EXAMPLES))
            yield f"  {title} of flagged requests: {told}"
    for example in summary.examples:
        yield f"  for example request {example}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")


def read(path: Path) -> Iterator[bytes]:
    """The lines of an audit file. Raises ValueError when it can't be read."""
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
