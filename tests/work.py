"""Count the work of a fixed set of requests. Counts must not exceed those recorded in `work.json`.

    python -m tests.work            # count, and compare with the recorded counts
    python -m tests.work --write    # record the counts, where more work is intended

Counts of encoder calls, windows, allocations and copies are the same on every machine, however busy it is. Only counts
that depend on other libraries or on a fit may be a little higher elsewhere; `Tolerance` says by how much.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import logging
import socket
import socketserver
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import orjson
import uvloop

from benchmarks import eco_rewrite, fast_upstream, judging, load
from lethe.classifier import judge
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.text.segments import TextSegments
from lethe.corruption.embeddings.corruptor import Corruptor
from lethe.corruption.embeddings.embedding_table import EmbeddingTable
from lethe.evaluation.unlearning import tofu
from tests.server.fakes import gateway, make_guard

RECORDED_COUNTS = Path(__file__).with_name("work.json")
RECORD_COMMAND = "python -m tests.work --write"


@dataclass(frozen=True)
class Tolerance:
    """How much higher than recorded a count may be: by `share`, and by at least `minimum`. 0 stays 0."""

    share: float = 0.0
    minimum: int = 0

    def limit(self, recorded: int) -> int:
        return recorded + max(int(recorded * self.share), self.minimum) if recorded else 0


EXACT = Tolerance()
# On another processor the fitted models differ in their last bits, so a window's score may cross the threshold.
CALLS, PIECES = Tolerance(0.05, 2), Tolerance(0.05, 64)
# Other versions of Python and of libraries make other calls and objects.
LIBRARIES = Tolerance(0.2)
# Small amounts of memory are affected by a coverage measurement.
SMALL_MEMORY = Tolerance(0.2, 8)
# The system decides in how many pieces a long body arrives, and how much of a response is in flight.
ARRIVING, IN_FLIGHT = Tolerance(0.1), Tolerance(1.0)

REQUESTS_PER_KIND = 40
TURNS = 49
MAX_CHARACTERS = 240
TOKENS = 8000
LARGE_BYTES = 4 << 20  # of a body or a response
SMALL, LONG = "Which river flows through Prague?", b"A long answer, please."
ROWS, VOCABULARY, STEPS = 32, 32_000, 20


@dataclass(frozen=True)
class Count:
    """A counted value, and how much higher than recorded it may be."""

    value: int
    tolerance: Tolerance


Counts = dict[str, Count]


def count_all() -> Counts:
    """Return all counts by name."""
    return {**count_judging(), **count_penalties(), **count_rewriting(), **uvloop.run(count_relaying())}


# Judging

TOLERANCES = {"encoder calls": CALLS, "word pieces encoded": PIECES}


@contextmanager
def count_judging_work(into: dict[str, int]) -> Iterator[None]:
    """Count texts, views, windows and encoder calls inside the context."""
    run, read = Encoder._run, judge.segment_text
    into |= dict.fromkeys(("texts read", "views", "windows", "encoder calls", "word pieces encoded"), 0)

    def counted_run(self: Encoder, ids: tuple[int, ...]) -> Any:
        into["encoder calls"] += 1
        into["word pieces encoded"] += len(ids)
        return run(self, ids)

    def counted_read(*args: Any) -> TextSegments:
        segments = read(*args)
        into["texts read"] += 1
        into["views"] += len(segments._views)
        into["windows"] += len(segments.first)
        return segments

    with patch.object(Encoder, "_run", counted_run), patch.object(judge, "segment_text", counted_read):
        yield


def count_judging() -> Counts:
    """Count the work of judging requests of several kinds with the demo's artifact, and of judging them again."""
    encoder, ordinary = load_encoder(), judging.ordinary_prompts()
    guard = judging.fresh_guard({"a": judging.demo_artifact()}, encoder)
    retain, forget = (
        [fact.question for facts in sets for fact in facts][:REQUESTS_PER_KIND]
        for sets in (tofu.retain_facts(), [tofu.forget_facts()])
    )
    turns = [f"{i} {text}" for i, text in enumerate(ordinary[: TURNS + 2])]
    # A turn that needs the encoder; it is read again together with the next turn.
    turns[TURNS - 1] = f"And {forget[-1]}"
    groups = {
        "ordinary prompts": [judging.chat_body(text) for text in ordinary if len(text) <= MAX_CHARACTERS][
            :REQUESTS_PER_KIND
        ],
        "retained questions": [judging.chat_body(question) for question in retain],
        "retained questions, reworded": [judging.chat_body(f"And {question}") for question in retain],
        "forgotten questions": [judging.chat_body(question) for question in forget],
        "a prompt of 8,000 tokens": [judging.chat_body(judging.long_text(ordinary, encoder, TOKENS))],
        "a conversation": [judging.chat_body(*turns[:TURNS])],
        "… with one more turn": [judging.chat_body(*turns)],
    }
    groups["all of them again"] = list(itertools.chain(*groups.values()))
    counts = {}
    for name, requests in groups.items():
        taken: dict[str, int] = {}
        with count_judging_work(taken):
            for request in requests:
                judging.is_flagged(guard, request)
        for what, value in taken.items():
            counts[f"{name}: {what}"] = Count(value, TOLERANCES.get(what, EXACT))
    return counts


# Penalties in the engine


def count_penalties() -> Counts:
    """Count the work of decoding steps of a batch in which all answers are guarded, and none."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from benchmarks import penalty_step
    from lethe.corruption.decoding.token_text import TokenVocabulary

    rng = penalty_step.random.Random(5)
    vocabulary = TokenVocabulary(penalty_step.made_up_pieces(VOCABULARY, rng))

    class Operations(TorchDispatchMode):
        """Counts torch operations, and the bytes of the largest new tensor."""

        count = largest = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            input_memory = {one.untyped_storage().data_ptr() for one in args if isinstance(one, torch.Tensor)}
            result = func(*args, **(kwargs or {}))
            self.count += 1
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in input_memory:
                self.largest = max(self.largest, result.untyped_storage().nbytes())
            return result

    counts = {}
    for name, guarded in (("a step, all guarded", ROWS), ("a step, none guarded", 0)):
        steps = penalty_step.Steps(vocabulary, ROWS, guarded, "cpu", rng)
        steps(STEPS)
        operations, memory = Operations(), Memory()
        for turn in range(2 * STEPS):
            for output in steps.outputs:
                output.append(rng.choice(steps.tokens))
            with memory if turn % 2 else operations:
                steps.step()
        counts |= {
            f"{name}: torch operations in {STEPS}": Count(operations.count, EXACT),
            f"{name}: bytes of the largest new tensor": Count(operations.largest, LIBRARIES),
            f"{name}: KiB of memory at peak": Count(memory.peak // 1024, SMALL_MEMORY),
        }
    return counts


# Rewriting


def count_rewriting() -> Counts:
    """Count the rows that rewriting 2,048 tokens at hidden size 4,096 reads, and its memory relative to the result."""
    counts = {}
    read = EmbeddingTable.rows
    rows = 0

    def counted_rows(self: EmbeddingTable, ids: Sequence[int], **more: Any) -> Any:
        nonlocal rows
        rows += len(set(ids))
        return read(self, ids, **more)

    with tempfile.TemporaryDirectory() as temporary:
        corruptor = Corruptor(eco_rewrite.folder(eco_rewrite.DEMO, 4096, Path(temporary)), eco_rewrite.SECRET)
        request = eco_rewrite.body(corruptor, 2048)
        for name, spec in eco_rewrite.SPECS.items():
            rewrite = partial(eco_rewrite.rewrite, corruptor, request, spec)
            sent, rows = len(rewrite()["messages"][0]["content"][0]["data"]), 0
            with patch.object(EmbeddingTable, "rows", counted_rows):
                rewrite()
            counts[f"rewrite, {name}: rows read"] = Count(rows, EXACT)
            with Memory() as memory:
                rewrite()
            share = round(100 * memory.peak / sent)
            counts[f"rewrite, {name}: memory at peak, % of what is sent"] = Count(share, LIBRARIES)
    return counts


# Relaying


async def count_relaying() -> Counts:
    """Count the work of relaying requests, without policies and with one whose verdict is cached."""
    counts: Counts = {}
    small, large, long = (
        load.openai_request("/v1/chat/completions", judging.chat_body(text))
        for text in (SMALL, "x" * LARGE_BYTES, LONG.decode())
    )
    guards = {
        "without policies": make_guard(max_prompt_chars=2 * LARGE_BYTES),
        "verdict known": judging.fresh_guard({"a": judging.demo_artifact()}, load_encoder()),
    }
    with prepared_upstream() as port:
        for name, guard in guards.items():
            async with gateway(f"http://127.0.0.1:{port}", guard, max_body_bytes=2 * LARGE_BYTES) as gate:
                with LoadConnection(gate.port) as connection:
                    send = partial(asyncio.to_thread, connection.send)
                    await send(small, REQUESTS_PER_KIND)
                    with Calls() as calls:
                        await send(small, REQUESTS_PER_KIND)
                    counts[f"relay, {name}: calls a request"] = Count(calls.count // REQUESTS_PER_KIND, LIBRARIES)
                    with Memory() as memory:
                        await send(small, REQUESTS_PER_KIND)
                    # The garbage collector is off: memory in reference cycles counts for each request.
                    counts[f"relay, {name}: bytes of memory a request"] = Count(
                        memory.peak // REQUESTS_PER_KIND, LIBRARIES
                    )
                    if guard.policies:
                        continue
                    for what, request, tolerance in (("request", large, ARRIVING), ("answer", long, IN_FLIGHT)):
                        await send(request, 1)
                        with Memory() as memory, json_sizes(memory) as sizes:
                            await send(request, 1)
                        named = f"relay of a long {what}"
                        counts[f"{named}: memory at peak, % of it"] = Count(100 * memory.peak // LARGE_BYTES, tolerance)
                        counts[f"{named}: bytes of JSON read and written"] = Count(sum(sizes), EXACT)
    return counts


@contextmanager
def json_sizes(memory: Memory) -> Iterator[list[int]]:
    """Record the sizes of all JSON that is parsed or written inside the context.

    orjson's own memory does not count: it reserves up to 17 times the size of a text and hardly touches it.
    """
    sizes: list[int] = []
    loads, dumps = orjson.loads, orjson.dumps

    def counted_loads(raw: bytes) -> Any:
        memory.record_peak()
        value = loads(raw)
        tracemalloc.reset_peak()
        sizes.append(len(raw))
        return value

    def counted_dumps(value: Any) -> bytes:
        memory.record_peak()
        raw = bytes(memoryview(dumps(value)))
        tracemalloc.reset_peak()
        sizes.append(len(raw))
        return raw

    with (
        patch.object(orjson, "loads", counted_loads),
        patch.object(orjson, "dumps", counted_dumps),
        patch.object(json, "loads", None),
    ):
        yield sizes


class _PreparedAnswers(socketserver.StreamRequestHandler):
    """A fake model server that allocates no memory while it reads and answers."""

    short = fast_upstream.http_response(fast_upstream.WHOLE)
    long = fast_upstream.http_response(b"x" * LARGE_BYTES)
    empty = fast_upstream.http_response(b"", b"text/plain")

    def handle(self) -> None:
        into = memoryview(bytearray(1 << 16))
        while line := self.rfile.readline():
            remaining, response = 0, self.short if line.startswith(b"POST ") else self.empty
            while (head := self.rfile.readline()) not in (b"\r\n", b""):
                if head.lower().startswith(b"content-length:"):
                    remaining = int(head.partition(b":")[2])
            while remaining and (size := self.rfile.readinto(into[:remaining])):
                response = self.long if LONG in into[:size].tobytes() else response
                remaining -= size
            self.wfile.write(response)


@contextmanager
def prepared_upstream() -> Iterator[int]:
    """Run the fake model server in a thread; yields its port."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _PreparedAnswers) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


class LoadConnection:
    """One connection to the gateway. It allocates no memory while it sends and reads."""

    def __init__(self, port: int) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port))
        self._answer = self._connection.makefile("rb")
        self._into = memoryview(bytearray(1 << 16))

    def __enter__(self) -> LoadConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self._answer.close()
        self._connection.close()

    def send(self, request: bytes, times: int) -> None:
        """Send the request `times` times, each after the response to the previous one."""
        for _ in range(times):
            self._connection.sendall(request)
            assert self._answer.readline() == b"HTTP/1.1 200 OK\r\n"
            remaining = 0
            while (head := self._answer.readline()) != b"\r\n":
                if head.lower().startswith(b"content-length:"):
                    remaining = int(head.partition(b":")[2])
            while remaining:
                remaining -= self._answer.readinto(self._into[:remaining])


# Counting


class Memory:
    """peak: the most bytes allocated inside the context, in all threads; the maximum over repeated use.

    The garbage collector is off, since the time of its runs depends on everything that ran before.
    """

    peak = 0

    def __enter__(self) -> Memory:
        gc.disable()
        tracemalloc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.record_peak()
        tracemalloc.stop()
        gc.enable()

    def record_peak(self) -> None:
        self.peak = max(self.peak, tracemalloc.get_traced_memory()[1])


class Calls:
    """count: the number of functions called in this thread, in Python or C."""

    count = 0

    def __enter__(self) -> Calls:
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _profile(self, frame: object, event: str, argument: object) -> None:
        self.count += event in ("call", "c_call")


def compare_counts(counts: Counts, recorded: Mapping[str, int]) -> list[str]:
    """Return a line for each count that grew or is not recorded, and the command that records it; [] if none."""
    lines = []
    for name in sorted(counts.keys() | recorded.keys()):
        now, was = counts.get(name), recorded.get(name)
        if now is None or was is None:
            lines.append(f"{name}: {'no longer counted' if now is None else 'not recorded'}")
        elif now.value > (limit := now.tolerance.limit(was)):
            lines.append(f"{name}: was {was:,}, is {now.value:,}, limit {limit:,}")
    return [*lines, f"If this is intended: {RECORD_COMMAND}"] if lines else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="record the counts")
    args = parser.parse_args()
    logging.getLogger("lethe.corruption.vllm_plugin").setLevel(logging.CRITICAL)  # it warns that there is no tokenizer
    counts = count_all()
    if args.write:
        values = {name: count.value for name, count in counts.items()}
        RECORDED_COUNTS.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    grown = compare_counts(counts, json.loads(RECORDED_COUNTS.read_text(encoding="utf-8")))
    sys.stdout.writelines(f"{count.value:>10,}  {name}\n" for name, count in counts.items())
    sys.exit("\n".join(grown) if grown else 0)


if __name__ == "__main__":
    main()
