"""How do time and memory of judging grow with the number of forget prompts?

    python -m benchmarks.many_prompts [--items N]

Two fits, of FEW and of N made-up prompts (`benchmarks/made_facts.py`), each in a process of its own, judge the same
prompts in turns. All embeddings come from the real encoder; those of the forget prompts take about 1.2 ms of CPU each
the first time and are stored in build/many-prompts, as the fits are.

It prints JSON: for each kind of prompt p50 and CPU time (ms) with both fits and their ratio, the shares decided by
words and flagged, memory in MiB, and the recall of the nearest-item search for rewordings of some of the N prompts,
compared with an exact search over all N. The last lines compare p50 with the target.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import judging, made_facts
from benchmarks.measuring import Round, alternating
from lethe.classifier import artifact_io
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.index import similarity
from lethe.classifier.index.similarity import ForgetTextMatcher, ForgetTexts
from lethe.classifier.judge import Judge, threshold
from lethe.classifier.prefilter import Prefilter
from lethe.classifier.scorer import ArtifactScorer
from lethe.classifier.training import fit
from lethe.classifier.training.stages import ProgressLines

BUILD = Path("build/many-prompts")
# Forget prompts of the small fit.
FEW = 1000
# Target: p50 with N prompts, divided by p50 with FEW prompts.
MAX_RATIO = 3.0
MISS_RATE = 0.005
ROUNDS = 5
# Prompts of each kind; rewordings for the recall.
PROMPTS_PER_KIND = 60
REWORDED = 200
# Prompts encoded, and rows compared, in one batch: bounds memory.
ENCODE_BATCH = 20_000
ROW_BATCH = 8192
# Rounding differences between cosines from two matrix products are smaller.
COSINE_TOLERANCE = 1e-5


def made_up_answer(number: int) -> str:
    return f"It is entry {number} of the register."


class CachedEncoder:
    """An encoder with stored embeddings of the first `count` made-up prompts."""

    def __init__(self, encoder: Encoder, count: int) -> None:
        self._encoder = encoder
        path = BUILD / f"vectors-{encoder.hash[:16]}.f16"
        size = 2 * encoder.width
        done = path.stat().st_size // size if path.exists() else 0
        with path.open("ab") as file:
            file.truncate(done * size)
            for first in range(done, count, ENCODE_BATCH):
                batch = min(ENCODE_BATCH, count - first)
                vectors = encoder.encode([prompt for prompt, _ in made_facts.made_up_prompts(batch, first=first)])
                file.write(vectors.astype(np.float16).tobytes())
                print(f"encoded {first + batch:,} of {count:,} prompts", file=sys.stderr, flush=True)
        self._vectors = np.memmap(path, dtype=np.float16, mode="r", shape=(max(done, count), encoder.width))
        self._number = {prompt: i for i, (prompt, _) in enumerate(made_facts.made_up_prompts(count))}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> NDArray[np.float32]:
        numbers = [self._number.get(text, -1) for text in texts]
        if min(numbers, default=-1) < 0:
            return self._encoder.encode(texts, progress)
        return self._vectors[numbers].astype(np.float32)


def fitted_folder(encoder: Encoder, count: int) -> Path:
    """Return the folder of a fit of `count` prompts; fit it if needed."""
    folder = BUILD / str(count)
    if not folder.is_dir():
        rows = [
            {"prompt": prompt, "answer": made_up_answer(i)}
            for i, (prompt, _) in enumerate(made_facts.made_up_prompts(count))
        ]
        cached: Any = CachedEncoder(encoder, count)
        with ProgressLines(sys.stderr) as progress:
            artifact = fit.fit(rows, None, encoder=cached, progress=progress)
        artifact_io.save_artifact(artifact, folder)
    return folder


def prompts_by_kind(judge: Judge, level: float) -> dict[str, list[str]]:
    """Return prompts by what the fit does with them."""
    ordinary = [text for text in judging.ordinary_prompts() if len(text) <= judging.MAX_SHORT_CHARACTERS]
    # About people whom neither artifact knows, and about people whom both know.
    strangers = [reworded for _, reworded in made_facts.made_up_prompts(20 * PROMPTS_PER_KIND, first=1_500_000)]
    known = [reworded for _, reworded in made_facts.made_up_prompts(FEW)][:: FEW // (4 * PROMPTS_PER_KIND)]
    kinds: dict[str, list[str]] = {"decided by words": [], "encoded, then passed": [], "flagged": []}
    for text in [*ordinary, *strangers, *known]:
        score = judge.judge([text])["a"].score
        kind = "decided by words" if score == 0 else "flagged" if score >= level else "encoded, then passed"
        kinds[kind].append(text)
    every = {"ordinary prompts": ordinary, **kinds}
    return {kind: texts[:: max(len(texts) // PROMPTS_PER_KIND, 1)][:PROMPTS_PER_KIND] for kind, texts in every.items()}


class JudgingProcess:
    """A process that judges with one artifact."""

    def __init__(self, folder: Path, level: float) -> None:
        command = [sys.executable, "-m", "benchmarks.many_prompts", "--serve", str(folder), "--level", repr(level)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def judge(self, texts: Sequence[str] = ()) -> dict[str, Any]:
        """Judge the texts in the process; return the line that `_run_judging_process` prints."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(list(texts)) + "\n")
        self._process.stdin.flush()
        reply: dict[str, Any] = json.loads(self._process.stdout.readline())
        return reply

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def _run_judging_process(folder: Path, level: float) -> None:
    """For each line of standard input, a list of texts, print a line with the time and memory of judging them.

    For the first line, print the time and memory of loading the artifact.
    """
    encoder = load_encoder()
    sys.stdin.readline()
    memory_before, started, cpu = _resident_memory(), time.perf_counter(), time.process_time()
    artifact = artifact_io.load_artifact(folder)
    loaded = time.process_time() - cpu
    judge = Judge({"a": artifact}, encoder)
    judge.judge(["Warm up, plaese, my dear frend."], thresholds={"a": level})
    loading = {"load, CPU s": loaded, "load and make ready, CPU s": time.process_time() - cpu}
    loading["load and make ready, wall s"] = time.perf_counter() - started
    loading |= {f"{kind}, MiB": mib - memory_before[kind] for kind, mib in _resident_memory().items()}
    print(json.dumps(loading), flush=True)
    for line in sys.stdin:
        encoder.clear_cache()
        judge.clear_cache()
        wall_ms, cpu_ms, scores, nearest = [], [], [], []
        for text in json.loads(line):
            started, cpu = time.perf_counter(), time.thread_time()
            score = judge.judge([text], thresholds={"a": level})["a"]
            cpu_ms.append(1e3 * (time.thread_time() - cpu))
            wall_ms.append(1e3 * (time.perf_counter() - started))
            scores.append(score.score)
            nearest.append(score.nearest[:1])
        times = {"p50": statistics.median(wall_ms), "CPU": statistics.median(cpu_ms)}
        print(json.dumps({**times, "scores": scores, "nearest": nearest, "memory": _resident_memory()}), flush=True)


def _resident_memory() -> dict[str, float]:
    """Return resident memory in MiB: private ("own"), and file pages, which the system can reclaim ("files")."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[key].split()[0]) / 1024 for name, key in (("own", "RssAnon"), ("files", "RssFile"))}


def recall(folder: Path, encoder: Encoder) -> dict[str, float]:
    """Compare the nearest-item search with an exact search over all rows, for rewordings of some prompts."""
    artifact = artifact_io.load_artifact(folder)
    arrays, count = artifact.arrays, len(artifact.items)
    chosen = np.random.default_rng(1).choice(count, REWORDED, replace=False)
    texts = [reworded for number in chosen for _, reworded in made_facts.made_up_prompts(1, first=int(number))]
    rows, words = encoder.encode(texts), similarity.hashed_words(texts)
    targets = ForgetTexts.from_arrays(arrays, "targets")
    scorer = ArtifactScorer(artifact, Prefilter({"a": artifact}).matcher("a"))
    every = ForgetTextMatcher(targets)
    whole = np.empty((len(texts), count), dtype=np.float32)
    for start in range(0, count, ROW_BATCH):
        whole[:, start : start + ROW_BATCH] = rows @ arrays["index"][start : start + ROW_BATCH].astype(np.float32).T
    nearest, match = whole.argmax(axis=1), every.best_similarity(words, whole)
    components, compared = [], []
    for i, text in enumerate(texts):
        some = similarity.words_of_texts(words, slice(i, i + 1))
        scored = scorer.score_windows([text], some, np.zeros((1, 2)), rows[i : i + 1], np.zeros(1, dtype=bool))
        components.append(scored.components)
        compared.append(np.arange(count) if scored.compared[0] is None else scored.compared[0])
    nearest_found = [bool((near == row).any()) for near, row in zip(compared, nearest, strict=True)]
    own = np.flatnonzero(np.isin(arrays["index_items"], chosen))
    row_of = dict(zip(arrays["index_items"][own].tolist(), own.tolist(), strict=True))
    own_row_found = [bool((near == row_of[int(i)]).any()) for near, i in zip(compared, chosen, strict=True)]
    searched = np.concatenate(components)
    exact = searched.copy()
    exact[:, 3] = match
    short, lost = match - searched[:, 3], scorer.fusion.logit(exact) - scorer.fusion.logit(searched)
    return {
        "reworded prompts": len(texts),
        "nearest row found": float(np.mean(nearest_found)),
        "row of the prompt itself found": float(np.mean(own_row_found)),
        "same match": float(np.mean(short < COSINE_TOLERANCE)),
        "match short by at most": float(short.max()),
        "score short by at most, log-odds": float(lost.max()),
        "rows compared": float(np.mean([len(near) for near in compared])),
    }


def measure(count: int, rounds: int) -> dict[str, Any]:
    """Return all figures for `count` forget prompts, as plain JSON."""
    encoder = load_encoder()
    BUILD.mkdir(parents=True, exist_ok=True)
    small, large = fitted_folder(encoder, FEW), fitted_folder(encoder, count)
    small_artifact = artifact_io.load_artifact(small)
    level = threshold(small_artifact, miss_rate=MISS_RATE)
    kinds = prompts_by_kind(Judge({"a": small_artifact}, encoder), level)
    folders = {f"{FEW:,}": small, f"{count:,}": large}
    levels = {
        name: threshold(artifact_io.load_artifact(folder), miss_rate=MISS_RATE) for name, folder in folders.items()
    }
    processes = {name: JudgingProcess(folder, levels[name]) for name, folder in folders.items()}
    report: dict[str, Any] = {"prompts": count, "judged": {kind: len(texts) for kind, texts in kinds.items()}}
    report["ready"] = {name: process.judge() for name, process in processes.items()}
    report["on disk, MiB"] = sum(path.stat().st_size for path in large.iterdir()) / 2**20
    last: dict[str, dict[str, Any]] = {}

    def judging_of(name: str, kind: str) -> Round:
        def once() -> dict[str, tuple[float, str]]:
            last[f"{name}, {kind}"] = reply = processes[name].judge(kinds[kind])
            return {"p50": (reply["p50"], "ms"), "CPU": (reply["CPU"], "ms")}

        return once

    try:
        measured = alternating(
            {f"{name}, {kind}": judging_of(name, kind) for kind in kinds for name in processes}, rounds
        )
    finally:
        for process in processes.values():
            process.close()
    report["judging"] = {}
    for kind in kinds:
        one, other = (f"{name}, {kind}" for name in processes)
        report["judging"][kind] = {
            key: {
                **{name: round(measured[f"{name}, {kind}"][key].median, 3) for name in processes},
                "ratio": round(measured[other][key].ratio_to(measured[one][key]).median, 2),
            }
            for key in ("p50", "CPU")
        }
        scores = {name: np.array(last[f"{name}, {kind}"]["scores"]) for name in processes}
        report["judging"][kind]["decided by words"] = {
            name: float((values == 0).mean()) for name, values in scores.items()
        }
        report["judging"][kind]["flagged"] = {
            name: float((values >= levels[name]).mean()) for name, values in scores.items()
        }
        report["judging"][kind]["memory, MiB"] = {name: last[f"{name}, {kind}"]["memory"] for name in processes}
    report["recall"] = recall(large, encoder)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000, help="forget prompts of the large fit")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measured rounds")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--level", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _run_judging_process(options.serve, options.level)
        return
    report = measure(options.items, options.rounds)
    print(json.dumps(report, indent=1))
    ratios = {kind: figures["p50"]["ratio"] for kind, figures in report["judging"].items()}
    for kind, ratio in ratios.items():
        print(f"{kind}: p50 is {ratio:.2f} times that with {FEW:,} prompts (target: at most {MAX_RATIO})")


if __name__ == "__main__":
    main()
