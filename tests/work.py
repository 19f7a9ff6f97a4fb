"""How much work a fixed set of requests is: counts, no clock. What may not grow is written down in `work.json`.

    python -m tests.work            # count, and compare with what is written down
    python -m tests.work --write    # write it down anew, where more work is meant

Encoder calls, windows, allocations and copies are the same on every machine, however busy it is. Only what goes through
other people's libraries, or through a fit, may come out a little higher elsewhere: by how much, says its `Slack`.
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
from lethe.classifier.encoder.encoder import Encoder, load_encoder
from lethe.classifier.text.segments import TextSegments
from lethe.corruption.embeddings.corruptor import Corruptor
from lethe.corruption.embeddings.embedding_table import EmbeddingTable
from lethe.evaluation.unlearning import tofu
from tests.server.fakes import gateway, make_guard

WRITTEN = Path(__file__).with_name("work.json")
AGAIN = "python -m tests.work --write"


@dataclass(frozen=True)
class Slack:
    """By how much a count may come out higher than what is written down: a share, and at least so many. No work at
    all stays none."""

    share: float = 0.0
    least: int = 0

    def most(self, was: int) -> int:
        return was + max(int(was * self.share), self.least) if was else 0


EXACT = Slack()
# Another processor fits models that differ in their last bits: a window's score may lie beyond the level there.
CALLS, PIECES = Slack(0.05, 2), Slack(0.05, 64)
# Other versions of Python and of libraries make their own calls and objects.
LIBRARIES = Slack(0.2)
# Where little memory is taken, what a measurement of coverage writes down meanwhile shows.
LITTLE = Slack(0.2, 8)
# In how many pieces a long body arrives is the system's business, and how much of an answer is on its way at once.
ARRIVING, ON_ITS_WAY = Slack(0.1), Slack(1.0)

SAME = 40  # requests of a kind
TURNS = 49
CHARACTERS = 240
TOKENS = 8000
LARGE = 4 << 20  # bytes: of a body, or of an answer
SMALL, LONG = "Which river flows through Prague?", b"A long answer, please."
ROWS, VOCABULARY, STEPS = 32, 32_000, 20


@dataclass(frozen=True)
class Count:
    """So much of something."""

    value: int
    slack: Slack


Counts = dict[str, Count]


def counted() -> Counts:
    """All counts, by name."""
    return {**judged(), **penalised(), **rewritten(), **uvloop.run(relayed())}


# Judging

SLACKS = {"encoder calls": CALLS, "word pieces encoded": PIECES}


@contextmanager
def judgements(into: dict[str, int]) -> Iterator[None]:
    """Counts what is read and encoded meanwhile."""
    run, read = Encoder._run, judge.segment_text
    into |= dict.fromkeys(("texts read", "views", "windows", "encoder calls", "word pieces encoded"), 0)

    def counted_run(self: Encoder, ids: tuple[int, ...]) -> Any:
        into["encoder calls"] += 1
        into["word pieces encoded"] += len(ids)
        return run(self, ids)

    def counted_read(*given: Any) -> TextSegments:
        found = read(*given)
        into["texts read"] += 1
        into["views"] += len(found._views)
        into["windows"] += len(found.first)
        return found

    with patch.object(Encoder, "_run", counted_run), patch.object(judge, "segment_text", counted_read):
        yield


def judged() -> Counts:
    """What judging takes, with the demo's artifact: requests of several kinds, the same ones again."""
    encoder, ordinary = load_encoder(), judging.benign()
    guard = judging.guard({"a": judging.artifact()}, encoder)
    retain, forget = (
        [fact.question for facts in asked for fact in facts][:SAME]
        for asked in (tofu.retain_facts(), [tofu.forget_facts()])
    )
    turns = [f"{i} {text}" for i, text in enumerate(ordinary[: TURNS + 2])]
    # One that is read again with the next turn, and had to be encoded.
    turns[TURNS - 1] = f"And {forget[-1]}"
    groups = {
        "ordinary prompts": [judging.body(text) for text in ordinary if len(text) <= CHARACTERS][:SAME],
        "retained questions": [judging.body(question) for question in retain],
        "retained questions, reworded": [judging.body(f"And {question}") for question in retain],
        "forgotten questions": [judging.body(question) for question in forget],
        "a prompt of 8,000 tokens": [judging.body(judging._filled(ordinary, encoder, TOKENS))],
        "a conversation": [judging.body(*turns[:TURNS])],
        "… with one more turn": [judging.body(*turns)],
    }
    groups["all of them again"] = list(itertools.chain(*groups.values()))
    found = {}
    for name, requests in groups.items():
        taken: dict[str, int] = {}
        with judgements(taken):
            for request in requests:
                judging.examine(guard, request)
        for what, value in taken.items():
            found[f"{name}: {what}"] = Count(value, SLACKS.get(what, EXACT))
    return found


# Penalties in the engine


def penalised() -> Counts:
    """What a step of a batch takes in which every answer is guarded, and one in which none is."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from benchmarks import penalty_step
    from lethe.corruption.decoding.token_text import TokenVocabulary

    rng = penalty_step.random.Random(5)
    vocabulary = TokenVocabulary(penalty_step.made_up_pieces(VOCABULARY, rng))

    class Operations(TorchDispatchMode):
        """Counts torch's operations, and the largest memory that one of them asks for."""

        done = largest = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            known = {one.untyped_storage().data_ptr() for one in args if isinstance(one, torch.Tensor)}
            made = func(*args, **(kwargs or {}))
            self.done += 1
            if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in known:
                self.largest = max(self.largest, made.untyped_storage().nbytes())
            return made

    found = {}
    for name, guarded in (("a step, all guarded", ROWS), ("a step, none guarded", 0)):
        steps = penalty_step.Steps(vocabulary, ROWS, guarded, "cpu", rng)
        steps(STEPS)
        operations, memory = Operations(), Memory()
        for turn in range(2 * STEPS):
            for output in steps.outputs:
                output.append(rng.choice(steps.tokens))
            with memory if turn % 2 else operations:
                steps.step()
        found |= {
            f"{name}: torch operations in {STEPS}": Count(operations.done, EXACT),
            f"{name}: bytes of the largest new tensor": Count(operations.largest, LIBRARIES),
            f"{name}: KiB of memory at peak": Count(memory.peak // 1024, LITTLE),
        }
    return found


# Rewriting


def rewritten() -> Counts:
    """What a rewrite of 2,048 tokens at hidden size 4,096 takes, beside what it sends."""
    found = {}
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
            found[f"rewrite, {name}: rows read"] = Count(rows, EXACT)
            with Memory() as memory:
                rewrite()
            share = round(100 * memory.peak / sent)
            found[f"rewrite, {name}: memory at peak, % of what is sent"] = Count(share, LIBRARIES)
    return found


# Relaying


async def relayed() -> Counts:
    """What the gateway takes to relay, without policies and with one whose verdict is known."""
    found: Counts = {}
    small, large, long = (
        load.post("/v1/chat/completions", judging.body(text)) for text in (SMALL, "x" * LARGE, LONG.decode())
    )
    guards = {
        "without policies": make_guard(max_prompt_chars=2 * LARGE),
        "verdict known": judging.guard({"a": judging.artifact()}, load_encoder()),
    }
    with upstream() as port:
        for name, guard in guards.items():
            async with gateway(f"http://127.0.0.1:{port}", guard, max_body_bytes=2 * LARGE) as gate:
                with Client(gate.port) as client:
                    ask = partial(asyncio.to_thread, client.ask)
                    await ask(small, SAME)
                    with Calls() as calls:
                        await ask(small, SAME)
                    found[f"relay, {name}: calls a request"] = Count(calls.done // SAME, LIBRARIES)
                    with Memory() as memory:
                        await ask(small, SAME)
                    # Nothing is collected meanwhile: what a request leaves in cycles counts for each of them.
                    found[f"relay, {name}: bytes of memory a request"] = Count(memory.peak // SAME, LIBRARIES)
                    if guard.policies:
                        continue
                    for what, request, slack in (("request", large, ARRIVING), ("answer", long, ON_ITS_WAY)):
                        await ask(request, 1)
                        with Memory() as memory, passes(memory) as sizes:
                            await ask(request, 1)
                        named = f"relay of a long {what}"
                        found[f"{named}: memory at peak, % of it"] = Count(100 * memory.peak // LARGE, slack)
                        found[f"{named}: bytes of JSON read and written"] = Count(sum(sizes), EXACT)
    return found


@contextmanager
def passes(memory: Memory) -> Iterator[list[int]]:
    """Sizes of all JSON that is read or written meanwhile.

    Without the library's own memory: orjson asks for up to seventeen times a text's size, and hardly touches it.
    """
    sizes: list[int] = []
    loads, dumps = orjson.loads, orjson.dumps

    def counted_loads(raw: bytes) -> Any:
        memory.note()
        value = loads(raw)
        tracemalloc.reset_peak()
        sizes.append(len(raw))
        return value

    def counted_dumps(value: Any) -> bytes:
        memory.note()
        made = bytes(memoryview(dumps(value)))
        tracemalloc.reset_peak()
        sizes.append(len(made))
        return made

    with (
        patch.object(orjson, "loads", counted_loads),
        patch.object(orjson, "dumps", counted_dumps),
        patch.object(json, "loads", None),
    ):
        yield sizes


class _Upstream(socketserver.StreamRequestHandler):
    """A model server that takes no memory while it reads and answers."""

    short = fast_upstream._whole(fast_upstream.WHOLE)
    long = fast_upstream._whole(b"x" * LARGE)
    empty = fast_upstream._whole(b"", b"text/plain")

    def handle(self) -> None:
        into = memoryview(bytearray(1 << 16))
        while line := self.rfile.readline():
            left, wanted = 0, self.short if line.startswith(b"POST ") else self.empty
            while (head := self.rfile.readline()) not in (b"\r\n", b""):
                if head.lower().startswith(b"content-length:"):
                    left = int(head.partition(b":")[2])
            while left and (got := self.rfile.readinto(into[:left])):
                wanted = self.long if LONG in into[:got].tobytes() else wanted
                left -= got
            self.wfile.write(wanted)


@contextmanager
def upstream() -> Iterator[int]:
    """Its port."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Upstream) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


class Client:
    """One connection. It takes no memory while it asks and reads."""

    def __init__(self, port: int) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port))
        self._answer = self._connection.makefile("rb")
        self._into = memoryview(bytearray(1 << 16))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._answer.close()
        self._connection.close()

    def ask(self, request: bytes, times: int) -> None:
        """Once the last answer is there."""
        for _ in range(times):
            self._connection.sendall(request)
            assert self._answer.readline() == b"HTTP/1.1 200 OK\r\n"
            left = 0
            while (head := self._answer.readline()) != b"\r\n":
                if head.lower().startswith(b"content-length:"):
                    left = int(head.partition(b":")[2])
            while left:
                left -= self._answer.readinto(self._into[:left])


# Counting


class Memory:
    """peak: so many bytes were held at most, beyond what was there before, in all threads; of several times, the most.

    Nothing is collected meanwhile: when that happens depends on all that ran before.
    """

    peak = 0

    def __enter__(self) -> Memory:
        gc.disable()
        tracemalloc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.note()
        tracemalloc.stop()
        gc.enable()

    def note(self) -> None:
        self.peak = max(self.peak, tracemalloc.get_traced_memory()[1])


class Calls:
    """done: so many functions were called in this thread, of Python or of C."""

    done = 0

    def __enter__(self) -> Calls:
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: object, event: str, argument: object) -> None:
        self.done += event in ("call", "c_call")


def more(counts: Counts, written: Mapping[str, int]) -> list[str]:
    """What has grown, or is not written down, a line each, and what to do then; nothing where all is well."""
    lines = []
    for name in sorted(counts.keys() | written.keys()):
        now, was = counts.get(name), written.get(name)
        if now is None or was is None:
            lines.append(f"{name}: {'is not counted any more' if now is None else 'is not written down'}")
        elif now.value > (most := now.slack.most(was)):
            lines.append(f"{name}: was {was:,}, is {now.value:,}, at most {most:,} pass")
    return [*lines, f"If that is meant: {AGAIN}"] if lines else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    logging.getLogger("lethe.corruption.vllm_plugin").setLevel(logging.CRITICAL)  # it misses a tokenizer
    counts = counted()
    if args.write:
        values = {name: count.value for name, count in counts.items()}
        WRITTEN.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    grown = more(counts, json.loads(WRITTEN.read_text(encoding="utf-8")))
    sys.stdout.writelines(f"{count.value:>10,}  {name}\n" for name, count in counts.items())
    sys.exit("\n".join(grown) if grown else 0)


if __name__ == "__main__":
    main()
