"""Fuzz the targets with coverage as the guide (atheris).

    pip install -c requirements/constraints.txt 'lethe-gateway[fuzz]'
    python -m tests.fuzz.run [TARGET ...] [--seconds 60]

Each target in a process of its own, one after another. What was found is written to build/fuzz/TARGET/found-*: put it
into FINDINGS of tests/fuzz/test_targets.py once it is mended. The corpus grows in build/fuzz/TARGET/corpus and is used
again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "fuzz"
INSTRUMENTED = ["server", "classifier", "corruption"]


def fuzz(name: str, seconds: int) -> None:
    """Does not return."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is missing: pip install 'lethe-gateway[fuzz]'")
    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.targets import SEEDS, TARGETS

    corpus = BUILD / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        "-max_len=600",
        "-timeout=30",
        f"-artifact_prefix={BUILD / name / 'found-'}",
    ]
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", str(corpus)], TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        fuzz(args.targets[0], args.seconds)
    from tests.fuzz.targets import TARGETS

    wrong = [name for name in args.targets if name not in TARGETS]
    if wrong:
        parser.error(f"no such target: {', '.join(wrong)} (there are: {', '.join(TARGETS)})")
    failed = []
    for name in args.targets or TARGETS:
        (BUILD / name).mkdir(parents=True, exist_ok=True)
        log = BUILD / name / "log"
        command = [sys.executable, "-m", "tests.fuzz.run", name, "--seconds", str(args.seconds), "--one"]
        with log.open("wb") as out:
            status = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT).returncode
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        ran = next((line.split()[-1] for line in lines if "number_of_executed_units" in line), "?")
        said = "nothing found" if status == 0 else f"FOUND SOMETHING, see {log}"
        print(f"{name}: {ran} runs, {said}", flush=True)
        failed += [name] if status else []
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
