"""What judging costs with very many forget prompts: `python -m benchmarks.many_prompts [--items N]`.

Two fits, of FEW and of N made-up prompts (`benchmarks/made_facts.py`), each in a process of its own, are asked the same
in turns. Every embedding is the encoder's own; those of the prompts take about 1.2 ms of CPU each the first time, and
are kept in build/many-prompts, as the fits are.

Recall: for other wordings of some of the N prompts, what the search finds is compared with all N, exactly.
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
from lethe.classifier import artifact as artifacts_io
from lethe.classifier.encoder.encoder import Encoder, load_encoder
from lethe.classifier.index import similarity
from lethe.classifier.index.similarity import Matcher, Targets
from lethe.classifier.judge import Judge, Scorer, threshold
from lethe.classifier.prefilter import Gate
from lethe.classifier.training import fit

BUILD = Path("build/many-prompts")
FEW = 1000
MOST = 3.0  # times what FEW prompts take
MISS_RATE = 0.005
ROUNDS = 5
OF_A_KIND = 60
REWORDED = 200
ENCODED_AT_ONCE = 20_000
ROWS_AT_ONCE = 8192
# A cosine by one product of matrices differs from that by another one by less.
SAME = 1e-5


def answer(number: int) -> str:
    return f"It is entry {number} of the register."


class Encoded:
    """An encoder that has encoded the first `count` prompts."""

    def __init__(self, encoder: Encoder, count: int) -> None:
        self._encoder = encoder
        path = BUILD / f"vectors-{encoder.hash[:16]}.f16"
        size = 2 * encoder.width
        done = path.stat().st_size // size if path.exists() else 0
        with path.open("ab") as file:
            file.truncate(done * size)
            for first in range(done, count, ENCODED_AT_ONCE):
                part = min(ENCODED_AT_ONCE, count - first)
                made = encoder.encode([prompt for prompt, _ in made_facts.items(part, first=first)])
                file.write(made.astype(np.float16).tobytes())
                print(f"encoded {first + part:,} of {count:,} prompts", file=sys.stderr, flush=True)
        self._vectors = np.memmap(path, dtype=np.float16, mode="r", shape=(max(done, count), encoder.width))
        self._number = {prompt: i for i, (prompt, _) in enumerate(made_facts.items(count))}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> NDArray[np.float32]:
        numbers = [self._number.get(text, -1) for text in texts]
        if min(numbers, default=-1) < 0:
            return self._encoder.encode(texts, progress)
        return self._vectors[numbers].astype(np.float32)


def fitted(encoder: Encoder, count: int) -> Path:
    """The folder of the fit."""
    place = BUILD / str(count)
    if not place.is_dir():
        rows = [{"prompt": prompt, "answer": answer(i)} for i, (prompt, _) in enumerate(made_facts.items(count))]
        known: Any = Encoded(encoder, count)
        artifacts_io.save(fit.fit(rows, None, encoder=known, progress=_say), place)
    return place


def _say(stage: str, done: int, total: int) -> None:
    if done in (0, total):
        print(f"fit: {stage}, {done:,} of {total:,}", file=sys.stderr, flush=True)


def asked(judge: Judge, level: float) -> dict[str, list[str]]:
    """Prompts by what the fit does with them."""
    ordinary = [text for text in judging.benign() if len(text) <= judging.SHORT]
    # Of people whom neither artifact knows, and of those that both know.
    strangers = [reworded for _, reworded in made_facts.items(20 * OF_A_KIND, first=1_500_000)]
    known = [reworded for _, reworded in made_facts.items(FEW)][:: FEW // (4 * OF_A_KIND)]
    kinds: dict[str, list[str]] = {"decided by words": [], "encoded, then passed": [], "flagged": []}
    for text in [*ordinary, *strangers, *known]:
        score = judge.judge([text])["a"].score
        kind = "decided by words" if score == 0 else "flagged" if score >= level else "encoded, then passed"
        kinds[kind].append(text)
    every = {"ordinary prompts": ordinary, **kinds}
    return {kind: texts[:: max(len(texts) // OF_A_KIND, 1)][:OF_A_KIND] for kind, texts in every.items()}


class Serving:
    """A process that judges with one artifact."""

    def __init__(self, place: Path, level: float) -> None:
        command = [sys.executable, "-m", "benchmarks.many_prompts", "--serve", str(place), "--level", repr(level)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, texts: Sequence[str] = ()) -> dict[str, Any]:
        """What `_serve` answers."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(list(texts)) + "\n")
        self._process.stdin.flush()
        answered: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answered

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def _serve(place: Path, level: float) -> None:
    """For each line of standard input, a list of texts, one of standard output: what judging them took. For the first
    line: what loading the artifact took."""
    encoder = load_encoder()
    sys.stdin.readline()
    before, began, cpu = _memory(), time.perf_counter(), time.process_time()
    artifact = artifacts_io.load(place)
    loaded = time.process_time() - cpu
    judge = Judge({"a": artifact}, encoder)
    judge.judge(["Warm up, plaese, my dear frend."], levels={"a": level})
    made = {"load, CPU s": loaded, "load and make ready, CPU s": time.process_time() - cpu}
    made["load and make ready, wall s"] = time.perf_counter() - began
    made |= {f"{kind}, MiB": taken - before[kind] for kind, taken in _memory().items()}
    print(json.dumps(made), flush=True)
    for line in sys.stdin:
        encoder.forget()
        judge.forget()
        wall, used, scores, meant = [], [], [], []
        for text in json.loads(line):
            began, cpu = time.perf_counter(), time.thread_time()
            score = judge.judge([text], levels={"a": level})["a"]
            used.append(1e3 * (time.thread_time() - cpu))
            wall.append(1e3 * (time.perf_counter() - began))
            scores.append(score.score)
            meant.append(score.nearest[:1])
        took = {"p50": statistics.median(wall), "CPU": statistics.median(used)}
        print(json.dumps({**took, "scores": scores, "meant": meant, "memory": _memory()}), flush=True)


def _memory() -> dict[str, float]:
    """Resident memory in MiB: the process's own, and pages of files, which the system takes back when it needs them."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[key].split()[0]) / 1024 for name, key in (("own", "RssAnon"), ("files", "RssFile"))}


def recall(place: Path, encoder: Encoder) -> dict[str, float]:
    """How often the search finds what comparing with all rows finds, for other wordings of some prompts."""
    artifact = artifacts_io.load(place)
    arrays, count = artifact.arrays, len(artifact.items)
    chosen = np.random.default_rng(1).choice(count, REWORDED, replace=False)
    texts = [reworded for number in chosen for _, reworded in made_facts.items(1, first=int(number))]
    rows, words = encoder.encode(texts), similarity.row_words(texts)
    targets = Targets.of(arrays, "targets")
    scorer = Scorer(artifact, Gate({"a": artifact}).matcher("a"))
    every = Matcher(targets)
    whole = np.empty((len(texts), count), dtype=np.float32)
    for start in range(0, count, ROWS_AT_ONCE):
        whole[:, start : start + ROWS_AT_ONCE] = (
            rows @ arrays["index"][start : start + ROWS_AT_ONCE].astype(np.float32).T
        )
    nearest, match = whole.argmax(axis=1), every.best(words, whole)
    components, compared = [], []
    for i, text in enumerate(texts):
        some = similarity.some_words(words, slice(i, i + 1))
        scored = scorer.rows([text], some, np.zeros((1, 2)), rows[i : i + 1], np.zeros(1, dtype=bool))
        components.append(scored.components)
        compared.append(np.arange(count) if scored.compared[0] is None else scored.compared[0])
    found = [bool((near == row).any()) for near, row in zip(compared, nearest, strict=True)]
    own = np.flatnonzero(np.isin(arrays["index_items"], chosen))
    row_of = dict(zip(arrays["index_items"][own].tolist(), own.tolist(), strict=True))
    meant = [bool((near == row_of[int(i)]).any()) for near, i in zip(compared, chosen, strict=True)]
    searched = np.concatenate(components)
    exact = searched.copy()
    exact[:, 3] = match
    short, lost = match - searched[:, 3], scorer.fusion.logit(exact) - scorer.fusion.logit(searched)
    return {
        "prompts asked for in other words": len(texts),
        "nearest row found": float(np.mean(found)),
        "row of the prompt itself found": float(np.mean(meant)),
        "same match": float(np.mean(short < SAME)),
        "match short by at most": float(short.max()),
        "score short by at most, nats": float(lost.max()),
        "rows compared": float(np.mean([len(near) for near in compared])),
    }


def measure(count: int, rounds: int) -> dict[str, Any]:
    """Everything that is known about `count` prompts, as plain JSON."""
    encoder = load_encoder()
    BUILD.mkdir(parents=True, exist_ok=True)
    small, large = fitted(encoder, FEW), fitted(encoder, count)
    found = artifacts_io.load(small)
    level = threshold(found, miss_rate=MISS_RATE)
    kinds = asked(Judge({"a": found}, encoder), level)
    places = {f"{FEW:,}": small, f"{count:,}": large}
    levels = {name: threshold(artifacts_io.load(place), miss_rate=MISS_RATE) for name, place in places.items()}
    sides = {name: Serving(place, levels[name]) for name, place in places.items()}
    told: dict[str, Any] = {"prompts": count, "asked": {kind: len(texts) for kind, texts in kinds.items()}}
    told["ready"] = {name: side.ask() for name, side in sides.items()}
    told["on disk, MiB"] = sum(path.stat().st_size for path in large.iterdir()) / 2**20
    last: dict[str, dict[str, Any]] = {}

    def judging_of(name: str, kind: str) -> Round:
        def once() -> dict[str, tuple[float, str]]:
            last[f"{name}, {kind}"] = took = sides[name].ask(kinds[kind])
            return {"p50": (took["p50"], "ms"), "CPU": (took["CPU"], "ms")}

        return once

    try:
        measured = alternating({f"{name}, {kind}": judging_of(name, kind) for kind in kinds for name in sides}, rounds)
    finally:
        for side in sides.values():
            side.close()
    told["judging"] = {}
    for kind in kinds:
        one, other = (f"{name}, {kind}" for name in sides)
        told["judging"][kind] = {
            key: {
                **{name: round(measured[f"{name}, {kind}"][key].median, 3) for name in sides},
                "ratio": round(measured[other][key].over(measured[one][key]).median, 2),
            }
            for key in ("p50", "CPU")
        }
        scores = {name: np.array(last[f"{name}, {kind}"]["scores"]) for name in sides}
        told["judging"][kind]["decided by words"] = {name: float((found == 0).mean()) for name, found in scores.items()}
        told["judging"][kind]["flagged"] = {
            name: float((found >= levels[name]).mean()) for name, found in scores.items()
        }
        told["judging"][kind]["memory, MiB"] = {name: last[f"{name}, {kind}"]["memory"] for name in sides}
    told["recall"] = recall(large, encoder)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000, help="forget prompts of the large artifact")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--level", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _serve(options.serve, options.level)
        return
    told = measure(options.items, options.rounds)
    print(json.dumps(told, indent=1))
    ratios = {kind: found["p50"]["ratio"] for kind, found in told["judging"].items()}
    for kind, ratio in ratios.items():
        print(f"{kind}: p50 {ratio:.2f} times that of {FEW:,} prompts (target: at most {MOST})")


if __name__ == "__main__":
    main()
