"""What each claim of speed costs, measured. `make bench` runs all questions; `make bench QUICK=1` in five minutes.

A question is a module with two names, entered in `bench.QUESTIONS`:

    TITLE = "What a rewrite costs"
    def measure(quick: bool) -> Answer: ...

- `measuring.Series(name, unit, values)`: what was measured, one value a round. Nothing is averaged beforehand.
- `measuring.alternating(contestants, rounds)` runs contestants in turns (ABAB) and makes their series, so that a
  machine that others use meets all alike. A contestant is a function that returns {series: (value, unit)}.
- `measuring.Claim`: what is promised, at most or at least; `Claim.ratio(text, a, b, at_most=…)` compares two series
  round by round, `Claim.level(text, series, at_most=…)` one series with a number.
- `Answer(series, claims, notes, facts)`: notes say what was left out and why; facts are versions and checks.
- CPU time: `measuring.cpu_s(pid)` of a process and its children; `time.thread_time()` or `process_time()` for code
  that runs in the question's own process. Prefer it to wall time, and ratios to either.

`python -m benchmarks.bench --only NAME` runs one. Printing, JSON (build/bench.json) and plots are not its work.
"""
