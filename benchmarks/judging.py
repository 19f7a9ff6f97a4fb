"""How much time does judging a request take, in this process and without HTTP?

    make bench ONLY=judging

Measured are requests of several kinds with the demo's artifact (400 facts): ordinary prompts (`benchmarks/data`, not
seen by any fit) and TOFU's retain questions. "Decided by words" means that the prefilter needs no encoder. For each
kind it prints the CPU time of the judging thread per request, and p50 and p99 of the wall time of a single request.
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

from benchmarks.measuring import BenchmarkResult, Claim, Round, Series, alternating
from lethe.classifier import artifact_io
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.judge import Judge, threshold
from lethe.classifier.text import ngrams
from lethe.evaluation.demo import demo
from lethe.evaluation.unlearning import tofu
from lethe.server.guard.executor import JudgeExecutor, limit_blas_threads
from lethe.server.guard.guard import Guard
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import Policy
from lethe.server.policy_store import seed_artifact
from lethe.server.upstream.capabilities import Capabilities

TITLE = "Cost of judging a request"
ORDINARY_PROMPTS = Path(__file__).parent / "data" / "benign.jsonl"
# A short prompt has at most this many characters.
MAX_SHORT_CHARACTERS = 240
MISS_RATE = 0.005
# Conversations of 51 turns, and the most characters of a turn.
CONVERSATIONS, MAX_TURN_CHARACTERS = 8, 400
TURN = "And what would you change about that plan, if the weather were worse than we thought it would be this week? "


def ordinary_prompts() -> list[str]:
    """Return the prompts of `benchmarks/data`, which no fit has seen."""
    return [json.loads(line)["prompt"] for line in ORDINARY_PROMPTS.read_text(encoding="utf-8").splitlines()]


def demo_artifact() -> Artifact:
    """Return the demo's artifact; fit it if needed."""
    demo.prepare_artifact()
    return artifact_io.load_artifact(demo.ARTIFACTS / demo.ARTIFACT)


def fresh_guard(artifacts: Mapping[str, Artifact], encoder: Encoder) -> Guard:
    """Return a guard with empty caches and one policy for each artifact."""
    encoder.clear_cache()
    policies = {
        name: (Policy(name=name, artifact=name, action="penalize", threshold={"miss_rate": MISS_RATE}), level)
        for name, artifact in artifacts.items()
        for level in [threshold(artifact, miss_rate=MISS_RATE)]
    }
    return Guard(policies, artifacts, Judge(artifacts, encoder), Metrics(), max_prompt_chars=10**6)


def chat_body(*turns: str) -> dict[str, Any]:
    """Return a chat request with these turns, of user and assistant alternately."""
    roles = ("user", "assistant")
    return {"model": "m", "messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]}


def is_flagged(guard: Guard, request: dict[str, Any]) -> bool:
    """Judge a request; return whether it was flagged."""
    return guard.judge(guard.parse("chat", request), guard.policies_for(request.get("model"))).action != "pass"


def judge_each(guard: Guard, requests: Sequence[dict[str, Any]]) -> dict[str, tuple[float, str]]:
    """Return CPU and wall time of judging the requests one after another."""
    durations_ms = []
    cpu_started = time.thread_time()
    for request in requests:
        start = time.perf_counter()
        guard.decide(guard.parse("chat", request), Capabilities())
        durations_ms.append(1e3 * (time.perf_counter() - start))
    cpu = 1e6 * (time.thread_time() - cpu_started) / len(requests)
    return {
        "CPU": (cpu, "µs per request"),
        "p50": (statistics.median(durations_ms), "ms"),
        "p99": (float(np.quantile(durations_ms, 0.99)), "ms"),
    }


def measure(quick: bool) -> BenchmarkResult:
    # As in the gateway.
    limit_blas_threads()
    encoder, artifact = load_encoder(), demo_artifact()
    rounds = 3 if quick else 9
    ordinary, retain = ordinary_prompts(), [fact.question for facts in tofu.retain_facts() for fact in facts]
    warm_guard = fresh_guard({"a": artifact}, encoder)
    prompts = ordinary + retain
    if quick:
        prompts = [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))[:600]]
    judge = Judge({"a": artifact}, encoder)
    by_words = sorted({text for text in prompts if _score(judge, text) == 0})
    short = [chat_body(text) for text in by_words if len(text) <= MAX_SHORT_CHARACTERS][: 150 if quick else 500]
    # Requests that need the encoder and then pass; the further cost of flagged ones is in other benchmarks.
    level = threshold(artifact, miss_rate=MISS_RATE)
    # With their exact words, retain questions pass by the allowlist, before the encoder.
    near = (text for question in retain if 0 < _score(judge, text := f"And {question}") < level)
    padded = _pad_to_pieces(encoder, near, ordinary, 128)
    encoded = list(islice((text for text in padded if 0 < _score(judge, text) < level), 40))
    long = long_text(ordinary, encoder, 8000)
    # Complete turns: a turn that ends inside a word has more views when joined with the next.
    turns = [text for text in (f"{TURN}{text}" for text in ordinary) if len(text) <= MAX_TURN_CHARACTERS]
    conversations = [
        [f"{i} {text}" for i, text in enumerate(turns[k * 51 : k * 51 + 51])] for k in range(CONVERSATIONS)
    ]

    def fresh(requests: Sequence[dict[str, Any]], artifacts: Mapping[str, Artifact] | None = None) -> Round:
        def once() -> dict[str, tuple[float, str]]:
            guard = fresh_guard(artifacts or {"a": artifact}, encoder)
            is_flagged(guard, chat_body("Warm up, please."))
            return judge_each(guard, requests)

        return once

    def seen_before() -> dict[str, tuple[float, str]]:
        for request in short:
            is_flagged(warm_guard, request)
        return judge_each(warm_guard, short)

    def one_more_turn() -> dict[str, tuple[float, str]]:
        guard = fresh_guard({"a": artifact}, encoder)
        for conversation in conversations:
            is_flagged(guard, chat_body(*conversation[:49]))
        return judge_each(guard, [chat_body(*conversation) for conversation in conversations])

    measured = alternating(
        {
            "decided by words": fresh(short),
            "seen before": seen_before,
            "encoder, 128 tokens": fresh([chat_body(text) for text in encoded]),
            "8,000 tokens": fresh([chat_body(long)]),
            "one more turn of 50": one_more_turn,
            "1,000 policies, decided by words": fresh(short, _many_artifacts(artifact, encoder, 1000)),
        },
        rounds,
    )
    queued = alternating(
        {
            "32 at a time": _queued_throughput(artifact, encoder, encoded, 32),
            "one at a time": _queued_throughput(artifact, encoder, encoded, 1),
        },
        rounds,
    )
    share = Series("decided by words alone", "share", [len(by_words) / len(set(prompts))] * 3)
    claims = [
        Claim.level("ordinary and retain prompts that need no encoder", share, at_least=0.8),
        Claim.level("decided by words: CPU", measured["decided by words"]["CPU"], at_most=150),
        Claim.level("seen before: CPU", measured["seen before"]["CPU"], at_most=150),
        Claim.level("encoder, 128 tokens: p50", measured["encoder, 128 tokens"]["p50"], at_most=8),
        Claim.level("encoder, 128 tokens: p99", measured["encoder, 128 tokens"]["p99"], at_most=15),
        Claim.level("8,000 tokens, fresh: p50", measured["8,000 tokens"]["p50"], at_most=400),
        Claim.level("one more turn of 50: p50", measured["one more turn of 50"]["p50"], at_most=10),
        Claim.ratio(
            "1,000 policies compared with 1: p50",
            measured["1,000 policies, decided by words"]["p50"], measured["decided by words"]["p50"], at_most=2,
        ),
        Claim.ratio(
            "32 at a time compared with one at a time",
            queued["32 at a time"]["throughput"], queued["one at a time"]["throughput"], at_least=1.5,
        ),
    ]  # fmt: skip
    series = [share, *(one for part in (measured, queued) for many in part.values() for one in many.values())]
    facts = {
        "prompts": {"ordinary": len(ordinary), "retain": len(retain), "judged": len(set(prompts)), "short": len(short)},
        "miss_rate": MISS_RATE,
        "encoder": encoder.name,
        "prompts of 128 tokens": len(encoded),
        "characters of 8,000 tokens": len(long),
    }
    return BenchmarkResult(series, claims, (), facts)


def _score(judge: Judge, text: str) -> float:
    return judge.judge([text])["a"].score


def _count_pieces(encoder: Encoder, text: str) -> int:
    return len(encoder.piece_starts(text))


def _pad_to_pieces(encoder: Encoder, prompts: Iterable[str], around: Sequence[str], size: int) -> Iterator[str]:
    """Yield the questions after ordinary text, with about `size` word pieces each."""
    for i, question in enumerate(prompts):
        at = i % (len(around) - 6)
        words = " ".join(around[at : at + 6]).split()[:size]
        count = len(words)
        while count and _count_pieces(encoder, " ".join(words[:count])) + _count_pieces(encoder, question) > size:
            count -= 1
        yield f"{' '.join(words[:count])} {question}"


def long_text(texts: Sequence[str], encoder: Encoder, size: int) -> str:
    """Return the beginning of the joined texts with `size` word pieces."""
    joined = "\n\n".join(texts[:400])
    starts = encoder.piece_starts(joined)
    return joined[: int(starts[size])]


def _many_artifacts(fitted: Artifact, encoder: Encoder, count: int) -> dict[str, Artifact]:
    """Return artifacts as forget requests make them: one shared base, one item each."""
    items = [
        {"prompt": f"Where does Quillon{i} Marrowby{i} keep the ledger?", "answer": f"In box {i}."}
        for i in range(count)
    ]
    first = seed_artifact.artifact_from_seed(fitted, items[:1], encoder)
    artifacts = {}
    for i, item in enumerate(items):
        arrays = {**first.arrays}
        words = np.unique([ngrams.word_bucket(word) for word in ngrams.split_words(item["prompt"])]).astype(np.int32)
        shares = np.full(len(words), 1 / len(words), dtype=np.float32)
        arrays |= {"added_buckets": words, "added_idf_share": shares, "added_starts": np.array([0, len(words)])}
        artifacts[f"p{i}"] = dataclasses.replace(first, arrays=arrays)
    return artifacts


def _queued_throughput(
    fitted: Artifact, encoder: Encoder, texts: Sequence[str], at_once: int
) -> Callable[[], dict[str, tuple[float, str]]]:
    """Judge requests through the gateway's queue with two threads, `at_once` at a time."""

    async def run() -> float:
        guard = fresh_guard({"a": fitted}, encoder)
        judging = JudgeExecutor(2, max_waiting=1000, wait_s=60, timeout_s=60, metrics=Metrics())
        slots = asyncio.Semaphore(at_once)

        async def judge_one(text: str) -> None:
            async with slots:
                await judging.run(lambda: is_flagged(guard, chat_body(text)), size=len(text))

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for text in texts:
                group.create_task(judge_one(text))
        judging.close()
        return len(texts) / (time.perf_counter() - started)

    return lambda: {"throughput": (asyncio.run(run()), "requests/s")}
