"""Benchmarks: what each claim about speed, memory and reliability is measured with.

`make bench` runs the benchmarks in `bench.BENCHMARKS` in one run; `make bench QUICK=1` takes five minutes, and
`python -m benchmarks.bench --only NAME` runs one. The other modules are scripts of their own: `python -m
benchmarks.NAME --help` says what they measure.

To add a benchmark to `make bench`, write a module with two names and add it to `bench.BENCHMARKS`:

    TITLE = "Cost of rewriting a request"
    def measure(quick: bool) -> BenchmarkResult: ...

- `measuring.Series(name, unit, values)`: one measured quantity, one value per round; no averages.
- `measuring.alternating(contestants, rounds)` runs contestants in turns (ABAB) and makes their series, so that other
  load on the machine affects all alike. A contestant is a function that returns {series: (value, unit)}.
- `measuring.Claim`: an upper or lower limit. `Claim.ratio(text, a, b, at_most=…)` compares two series round by round,
  `Claim.level(text, series, at_most=…)` compares one series with a number.
- `measuring.BenchmarkResult(series, claims, notes, facts)`: notes say what was left out and why; facts are versions and
  checks.
- CPU time: `measuring.cpu_s(pid)` of a process and its children; `time.thread_time()` or `process_time()` for code in
  the benchmark's own process. Prefer CPU time to wall time, and ratios to both.

Benchmarks do not print, write JSON (build/bench.json) or plot: `bench.py` does. Begin reading there.
"""
