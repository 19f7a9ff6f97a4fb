"""What questions are answered with: series of rounds, ratios of them, and claims that hold or don't."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# One round of a contestant: series name → (value, unit).
Round = Callable[[], Mapping[str, tuple[float, str]]]


@dataclass(frozen=True)
class Series:
    """One quantity, one value a round, in the order in which they were measured."""

    name: str
    unit: str
    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles; of fewer than three rounds, the smallest and the largest value."""
        if len(self.values) < 3:
            return min(self.values), max(self.values)
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    def over(self, other: Series) -> Series:
        """The ratio to another series, round by round: both met the same load of the machine."""
        pairs = zip(self.values, other.values, strict=True)
        return Series(f"{self.name} / {other.name}", "×", [mine / its for mine, its in pairs])

    def minus(self, other: Series) -> Series:
        pairs = zip(self.values, other.values, strict=True)
        return Series(f"{self.name} - {other.name}", self.unit, [mine - its for mine, its in pairs])


@dataclass(frozen=True)
class Claim:
    """A target and what was measured. It holds if the median is on the right side of `target`."""

    text: str
    measured: Series
    target: float
    at_most: bool

    @property
    def holds(self) -> bool:
        return self.measured.median <= self.target if self.at_most else self.measured.median >= self.target

    @staticmethod
    def level(text: str, measured: Series, *, at_most: float | None = None, at_least: float | None = None) -> Claim:
        """A series against a number: give at_most or at_least."""
        if (at_most is None) == (at_least is None):
            raise ValueError(f"claim {text!r}: give at_most or at_least, one of them")
        return Claim(text, measured, at_least if at_most is None else at_most, at_most is not None)  # type: ignore[arg-type]

    @staticmethod
    def ratio(text: str, a: Series, b: Series, *, at_most: float | None = None, at_least: float | None = None) -> Claim:
        """a / b, round by round, against a number."""
        return Claim.level(text, a.over(b), at_most=at_most, at_least=at_least)


@dataclass(frozen=True)
class Answer:
    """All that a question found. notes: what was left out, and why. facts: versions, sizes, checks; plain JSON."""

    series: Sequence[Series]
    claims: Sequence[Claim] = ()
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def alternating(contestants: Mapping[str, Round], rounds: int) -> dict[str, dict[str, Series]]:
    """Each contestant once, then each once more, and so on; contestant → series name → series.

    A series is named "contestant, name". The first, unmeasured, round warms up.
    """
    values: dict[str, dict[str, list[float]]] = {name: {} for name in contestants}
    units: dict[str, str] = {}
    for turn in range(rounds + 1):
        for name, work in contestants.items():
            for key, (value, unit) in work().items():
                units[key] = unit
                if turn:
                    values[name].setdefault(key, []).append(value)
    return {
        name: {key: Series(f"{name}, {key}", units[key], found) for key, found in measured.items()}
        for name, measured in values.items()
    }


def family(pid: int) -> list[int]:
    """A process and all its descendants that live."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue  # that thread has just ended
    return found


def cpu_s(pid: int) -> float:
    """CPU time of a process and its living descendants, user and system, in seconds; exact to less than a microsecond.

    Read from the process's own clock: /proc/PID/stat counts in hundredths of a second.
    """
    total = 0.0
    for one in family(pid):
        try:
            total += time.clock_gettime((~one << 3) | 2)
        except OSError:
            continue  # it has just ended
    return total


def memory_mib(pid: int, kind: str = "Pss") -> float:
    """Memory of a process and its descendants in MiB; Pss: pages that others map too count in part, Rss: in full."""
    total = 0
    for one in family(pid):
        rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
        total += int(next(line for line in rollup.splitlines() if line.startswith(f"{kind}:")).split()[1])
    return total / 1024
