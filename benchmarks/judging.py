"""What judging costs: reading a request, all windows, the gate, the encoder. In this process, without HTTP.

The demo's artifact (400 facts), the set of ordinary prompts in `benchmarks/data` that no fit has met, and TOFU's
retain questions. CPU time is that of the judging thread; latency is wall time, one request at a time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import Answer, Claim, Round, Series, alternating
from lethe.classifier import artifact as artifacts_io
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder, load_encoder
from lethe.classifier.judge import Judge, threshold
from lethe.classifier.text import ngrams
from lethe.evaluation.demo import demo
from lethe.evaluation.unlearning import tofu
from lethe.server.guard.executor import Judging, one_thread_each
from lethe.server.guard.guard import Guard
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import Policy
from lethe.server.policy_store import seed_artifact

TITLE = "What judging a request costs"
BENIGN = Path(__file__).parent / "data" / "benign.jsonl"
SHORT = 240  # characters
MISS_RATE = 0.005
TALKS, LONGEST_TURN = 8, 400
TURN = "And what would you change about that plan, if the weather were worse than we thought it would be this week? "


def benign() -> list[str]:
    return [json.loads(line)["prompt"] for line in BENIGN.read_text(encoding="utf-8").splitlines()]


def artifact() -> Artifact:
    demo.fit_artifact()
    return artifacts_io.load(demo.ARTIFACTS / demo.ARTIFACT)


def guard(artifacts: Mapping[str, Artifact], encoder: Encoder) -> Guard:
    """A fresh guard, that remembers nothing, of one policy for each artifact."""
    encoder.forget()
    policies = {
        name: (Policy(name=name, artifact=name, action="penalize", threshold={"miss_rate": MISS_RATE}), level)
        for name, found in artifacts.items()
        for level in [threshold(found, miss_rate=MISS_RATE)]
    }
    return Guard(policies, artifacts, Judge(artifacts, encoder), Metrics(), max_prompt_chars=10**6)


def body(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"model": "m", "messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]}


def examine(one: Guard, request: dict[str, Any]) -> bool:
    """Whether a request was flagged."""
    return one.find(one.read("chat", request), one.covering(request)).action != "pass"


def each(one: Guard, requests: Sequence[dict[str, Any]]) -> dict[str, tuple[float, str]]:
    """CPU and wall time of judging some requests, one after another."""
    took = []
    began = time.thread_time()
    for request in requests:
        start = time.perf_counter()
        one.examine(one.read("chat", request))
        took.append(1e3 * (time.perf_counter() - start))
    cpu = 1e6 * (time.thread_time() - began) / len(requests)
    return {
        "CPU": (cpu, "µs a request"),
        "p50": (statistics.median(took), "ms"),
        "p99": (float(np.quantile(took, 0.99)), "ms"),
    }


def measure(quick: bool) -> Answer:
    # As the gateway does it.
    one_thread_each()
    encoder, found = load_encoder(), artifact()
    rounds = 3 if quick else 9
    ordinary, retain = benign(), [fact.question for facts in tofu.retain_facts() for fact in facts]
    some = guard({"a": found}, encoder)
    asked = ordinary + retain
    if quick:
        asked = [asked[i] for i in np.random.default_rng(0).permutation(len(asked))[:600]]
    judge = Judge({"a": found}, encoder)
    by_words = sorted({text for text in asked if _score(judge, text) == 0})
    short = [body(text) for text in by_words if len(text) <= SHORT][: 150 if quick else 500]
    # Requests that need the encoder and then pass: what a flagged one costs beyond is asked elsewhere.
    level = threshold(found, miss_rate=MISS_RATE)
    # Word for word, retained questions are let pass unread.
    near = (text for question in retain if 0 < _score(judge, text := f"And {question}") < level)
    whole = _with_pieces(encoder, near, ordinary, 128)
    encoded = list(islice((text for text in whole if 0 < _score(judge, text) < level), 40))
    long = _filled(ordinary, encoder, 8000)
    # Whole turns: one that ends inside a word is read together with the next in more ways.
    turns = [text for text in (f"{TURN}{text}" for text in ordinary) if len(text) <= LONGEST_TURN]
    talks = [[f"{i} {text}" for i, text in enumerate(turns[k * 51 : k * 51 + 51])] for k in range(TALKS)]

    def fresh(requests: Sequence[dict[str, Any]], artifacts: Mapping[str, Artifact] | None = None) -> Round:
        def once() -> dict[str, tuple[float, str]]:
            one = guard(artifacts or {"a": found}, encoder)
            examine(one, body("Warm up, please."))
            return each(one, requests)

        return once

    def seen_before() -> dict[str, tuple[float, str]]:
        for request in short:
            examine(some, request)
        return each(some, short)

    def one_more_turn() -> dict[str, tuple[float, str]]:
        one = guard({"a": found}, encoder)
        for talk in talks:
            examine(one, body(*talk[:49]))
        return each(one, [body(*talk) for talk in talks])

    measured = alternating(
        {
            "decided by words": fresh(short),
            "seen before": seen_before,
            "encoder, 128 tokens": fresh([body(text) for text in encoded]),
            "8,000 tokens": fresh([body(long)]),
            "one more turn of 50": one_more_turn,
            "1,000 policies, decided by words": fresh(short, _many(found, encoder, 1000)),
        },
        rounds,
    )
    line = alternating(
        {"32 at a time": _line(found, encoder, encoded, 32), "one at a time": _line(found, encoder, encoded, 1)}, rounds
    )
    share = Series("decided by words alone", "share", [len(by_words) / len(set(asked))] * 3)
    claims = [
        Claim.level("ordinary and retain prompts that need no encoder", share, at_least=0.8),
        Claim.level("decided by words: CPU", measured["decided by words"]["CPU"], at_most=150),
        Claim.level("seen before: CPU", measured["seen before"]["CPU"], at_most=150),
        Claim.level("encoder, 128 tokens: p50", measured["encoder, 128 tokens"]["p50"], at_most=8),
        Claim.level("encoder, 128 tokens: p99", measured["encoder, 128 tokens"]["p99"], at_most=15),
        Claim.level("8,000 tokens, fresh: p50", measured["8,000 tokens"]["p50"], at_most=400),
        Claim.level("one more turn of 50: p50", measured["one more turn of 50"]["p50"], at_most=10),
        Claim.ratio(
            "1,000 policies against 1: p50",
            measured["1,000 policies, decided by words"]["p50"], measured["decided by words"]["p50"], at_most=2,
        ),
        Claim.ratio(
            "32 at a time against one", line["32 at a time"]["throughput"], line["one at a time"]["throughput"],
            at_least=1.5,
        ),
    ]  # fmt: skip
    series = [share, *(one for part in (measured, line) for many in part.values() for one in many.values())]
    facts = {
        "prompts": {"ordinary": len(ordinary), "retain": len(retain), "asked": len(set(asked)), "short": len(short)},
        "miss_rate": MISS_RATE,
        "encoder": encoder.name,
        "prompts of 128 tokens": len(encoded),
        "characters of 8,000 tokens": len(long),
    }
    return Answer(series, claims, (), facts)


def _score(judge: Judge, text: str) -> float:
    return judge.judge([text])["a"].score


def _pieces(encoder: Encoder, text: str) -> int:
    return len(encoder.piece_starts(text))


def _with_pieces(encoder: Encoder, asked: Iterable[str], around: Sequence[str], size: int) -> Iterator[str]:
    """Questions behind ordinary text: about `size` word pieces each."""
    for i, question in enumerate(asked):
        at = i % (len(around) - 6)
        words = " ".join(around[at : at + 6]).split()[:size]
        count = len(words)
        while count and _pieces(encoder, " ".join(words[:count])) + _pieces(encoder, question) > size:
            count -= 1
        yield f"{' '.join(words[:count])} {question}"


def _filled(texts: Sequence[str], encoder: Encoder, size: int) -> str:
    whole = "\n\n".join(texts[:400])
    starts = encoder.piece_starts(whole)
    return whole[: int(starts[size])]


def _many(found: Artifact, encoder: Encoder, count: int) -> dict[str, Artifact]:
    """Artifacts as forgetting on request makes them: one base, items of their own."""
    items = [
        {"prompt": f"Where does Quillon{i} Marrowby{i} keep the ledger?", "answer": f"In box {i}."}
        for i in range(count)
    ]
    first = seed_artifact.build(found, items[:1], encoder)
    made = {}
    for i, item in enumerate(items):
        arrays = {**first.arrays}
        words = np.unique([ngrams.word_bucket(word) for word in ngrams.words(item["prompt"])]).astype(np.int32)
        shares = np.full(len(words), 1 / len(words), dtype=np.float32)
        arrays |= {"added_buckets": words, "added_shares": shares, "added_starts": np.array([0, len(words)])}
        made[f"p{i}"] = dataclasses.replace(first, arrays=arrays)
    return made


def _line(
    found: Artifact, encoder: Encoder, texts: Sequence[str], at_once: int
) -> Callable[[], dict[str, tuple[float, str]]]:
    """Requests through the line in front of the judge, as the gateway has it: two threads."""

    async def run() -> float:
        one = guard({"a": found}, encoder)
        judging = Judging(2, waiting=1000, wait_s=60, timeout_s=60, metrics=Metrics())
        places = asyncio.Semaphore(at_once)

        async def ask(text: str) -> None:
            async with places:
                await judging.run(lambda: examine(one, body(text)), size=len(text))

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for text in texts:
                group.create_task(ask(text))
        judging.close()
        return len(texts) / (time.perf_counter() - began)

    return lambda: {"throughput": (asyncio.run(run()), "requests/s")}
