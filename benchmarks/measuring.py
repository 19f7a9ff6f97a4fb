"""Measured series, ratios of series, and claims about them; CPU time and memory of processes.

What a benchmark returns (`BenchmarkResult`) and the helpers that benchmarks share. Knows no benchmark.
"""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# One measured round of one contestant: series name → (value, unit).
Round = Callable[[], Mapping[str, tuple[float, str]]]


@dataclass(frozen=True)
class Series:
    """One quantity with one value per round, in the order of measurement."""

    name: str
    unit: str
    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles; for fewer than three rounds, the smallest and the largest value."""
        if len(self.values) < 3:
            return min(self.values), max(self.values)
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    def ratio_to(self, other: Series) -> Series:
        """The ratio to another series, round by round, since both met the same load of the machine in a round."""
        pairs = zip(self.values, other.values, strict=True)
        return Series(f"{self.name} / {other.name}", "×", [value / reference for value, reference in pairs])

    def minus(self, other: Series) -> Series:
        pairs = zip(self.values, other.values, strict=True)
        return Series(f"{self.name} - {other.name}", self.unit, [mine - its for mine, its in pairs])


@dataclass(frozen=True)
class Claim:
    """A target and a measured series. The claim holds if the median is at most (or at least) `target`."""

    text: str
    measured: Series
    target: float
    at_most: bool

    @property
    def holds(self) -> bool:
        return self.measured.median <= self.target if self.at_most else self.measured.median >= self.target

    @staticmethod
    def level(text: str, measured: Series, *, at_most: float | None = None, at_least: float | None = None) -> Claim:
        """A claim about a series; give either at_most or at_least. Raises ValueError for none or both."""
        if (at_most is None) == (at_least is None):
            raise ValueError(f"claim {text!r}: give either at_most or at_least")
        return Claim(text, measured, at_least if at_most is None else at_most, at_most is not None)  # type: ignore[arg-type]

    @staticmethod
    def ratio(text: str, a: Series, b: Series, *, at_most: float | None = None, at_least: float | None = None) -> Claim:
        """A claim about a / b, round by round; give either at_most or at_least."""
        return Claim.level(text, a.ratio_to(b), at_most=at_most, at_least=at_least)


@dataclass(frozen=True)
class BenchmarkResult:
    """The result of one benchmark.

    notes: what was left out, and why. facts: versions, sizes and checks, as plain JSON.
    """

    series: Sequence[Series]
    claims: Sequence[Claim] = ()
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def alternating(contestants: Mapping[str, Round], rounds: int) -> dict[str, dict[str, Series]]:
    """Run all contestants in turns (ABAB) for `rounds` rounds; return contestant → series name → series.

    A series is named "contestant, name". A first round without measurement warms up.
    """
    values: dict[str, dict[str, list[float]]] = {name: {} for name in contestants}
    units: dict[str, str] = {}
    for turn in range(rounds + 1):
        for name, run_round in contestants.items():
            for key, (value, unit) in run_round().items():
                units[key] = unit
                if turn:
                    values[name].setdefault(key, []).append(value)
    return {
        name: {key: Series(f"{name}, {key}", units[key], numbers) for key, numbers in measured.items()}
        for name, measured in values.items()
    }


def process_tree(pid: int) -> list[int]:
    """Return a process id and those of all its living descendants."""
    pids = [pid]
    for parent in pids:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                pids += [int(child) for child in task.read_text().split()]
            except OSError:
                continue  # the thread has just ended
    return pids


def cpu_s(pid: int) -> float:
    """Return the CPU time (user and system) of a process and its living descendants, in seconds.

    Reads the processes' CPU clocks, which are exact to less than a microsecond; /proc/PID/stat counts in 0.01 s.
    """
    total = 0.0
    for process in process_tree(pid):
        try:
            # The kernel's number for the CPU clock of a process.
            total += time.clock_gettime((~process << 3) | 2)
        except OSError:
            continue  # the process has just ended
    return total


def memory_mib(pid: int, kind: str = "Pss") -> float:
    """Return the memory of a process and its descendants in MiB.

    kind: "Pss" counts shared pages in proportion, "Rss" in full.
    """
    total = 0
    for process in process_tree(pid):
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        total += int(next(line for line in rollup.splitlines() if line.startswith(f"{kind}:")).split()[1])
    return total / 1024


def sum_metrics(text: str, prefix: str) -> dict[str, float]:
    """Return the metrics of a Prometheus text whose names begin with `prefix`, summed over their labels.

    The keys have no prefix.
    """
    sums: Counter[str] = Counter()
    for name, value in re.findall(rf"^{re.escape(prefix)}(\w+)(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE):
        sums[name] += float(value)
    return dict(sums)


def timed_call(work: Callable[[], Any]) -> tuple[Any, float]:
    """Run `work`; return its result and the CPU time of this thread that it took, in milliseconds."""
    started = time.thread_time()
    result = work()
    return result, (time.thread_time() - started) * 1e3
