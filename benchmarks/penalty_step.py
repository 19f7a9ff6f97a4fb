"""What GUARD costs vLLM: microseconds a step, and milliseconds to prepare a request.

Times the plugin itself under vLLM's V1 interface on CPU tensors, with a made-up vocabulary of 128,000 tokens
whose lengths and leading spaces are like a real one's. Prints medians with the 10th and 90th percentile.
Run: python -m benchmarks.penalty_step
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import random
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate

from corruption import vllm_plugin
from corruption.penalties import ARGUMENT, Guard, Penalty, to_argument
from corruption.vocabulary import Vocabulary

LETTERS = "etaoinshrdlucmfwypvbgkqjxz"


def word(rng: random.Random, letters: int) -> str:
    # Skewed to frequent letters, so that prefixes are shared as in a language.
    return "".join(LETTERS[min(int(rng.expovariate(0.16)), 25)] for _ in range(letters))


def made_up_pieces(size: int, rng: random.Random) -> list[bytes]:
    """Tokens as byte-level BPE has them: bytes, words with and without a space, capitals, punctuation."""
    pieces = [bytes([byte]) for byte in range(256)]
    while len(pieces) < size - 1:
        text = word(rng, min(1 + int(rng.gammavariate(3.2, 1.9)), 20))
        kind = rng.random()
        if kind < 0.6:
            text = " " + text
        if kind < 0.2:
            text = text.title()
        if kind > 0.97:
            text += rng.choice([". ", ", ", "\n", "-", "("]) + word(rng, 2)
        pieces.append(text.encode())
    return pieces


def penalty(rng: random.Random, phrases: int, soft: int) -> Penalty:
    said = [" ".join(word(rng, rng.randint(3, 10)) for _ in range(rng.randint(1, 3))) for _ in range(phrases)]
    return Penalty(tuple(dict.fromkeys(said)), {word(rng, rng.randint(5, 10)): 3.0 for _ in range(soft)})


def spread(taken: list[tuple[float, float]], scale: float) -> str:
    """Wall and own CPU time, each as median (10th to 90th percentile): on a busy machine they differ."""
    shown = []
    for name, times in zip(("wall", "CPU"), np.array(taken).T * scale, strict=True):
        low, middle, high = np.percentile(times, [10, 50, 90])
        shown.append(f"{name} {middle:.1f} ({low:.1f} to {high:.1f})")
    return ", ".join(shown)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    wall, own = time.perf_counter(), time.thread_time()
    work()
    return time.perf_counter() - wall, time.thread_time() - own


def processor(vocabulary: Vocabulary) -> Any:
    """The plugin with the made-up vocabulary in place of a tokenizer's."""
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            skip_tokenizer_init=True,
            hf_config=SimpleNamespace(eos_token_id=len(vocabulary) - 1),
            try_get_generation_config=dict,
        )
    )
    plugin = vllm_plugin.LetheLogitsProcessor(config, torch.device("cpu"), False)
    plugin._vocabulary = vocabulary
    return plugin


def step_times(vocabulary: Vocabulary, rows: int, args: argparse.Namespace, rng: random.Random) -> str:
    """One step: the newest token of every answer read, masks looked up, logits written."""
    plugin = processor(vocabulary)
    outputs: list[list[int]] = [[] for _ in range(max(rows, 32))]
    added = []
    for i, output in enumerate(outputs):
        extra = {ARGUMENT: to_argument(penalty(rng, args.phrases, args.soft))} if i < rows else None
        added.append((i, SamplingParams(extra_args=extra), [1], output))
    plugin.update_state(BatchUpdate(len(outputs), [], added, []))
    logits = torch.randn(len(outputs), len(vocabulary))
    fresh = [rng.choices(range(len(vocabulary)), k=args.steps + 8) for _ in outputs]

    def step() -> None:
        plugin.update_state(None)
        plugin.apply(logits)

    taken = []
    for i in range(args.steps + 8):
        for output, tokens in zip(outputs, fresh, strict=True):
            output.append(tokens[i])
        taken.append(timed(step))
    return spread(taken[8:], 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=128_000)
    parser.add_argument("--phrases", type=int, default=150)
    parser.add_argument("--soft", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    rng = random.Random(5)
    torch.set_num_threads(1)
    names = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy"))
    load = os.getloadavg()[0]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load:.1f}")
    print(f"Python {platform.python_version()}, {names}; one thread; median (10 % to 90 %)")

    pieces = made_up_pieces(args.vocabulary, rng)
    begin = time.perf_counter()
    vocabulary = Vocabulary(pieces)
    print(f"vocabulary of {len(pieces):,} read once at start: {time.perf_counter() - begin:.2f} s")
    prepared = [penalty(rng, args.phrases, args.soft) for _ in range(40)]
    preparation = spread([timed(lambda p=p: Guard(p, vocabulary)) for p in prepared], 1e3)
    print(f"prepare {args.phrases} phrases, {args.soft} soft words: {preparation} ms")
    print(f"one step, 32 rows of 32 guarded: {step_times(vocabulary, 32, args, rng)} µs")
    print(f"one step,  1 row of 32 guarded:  {step_times(vocabulary, 1, args, rng)} µs")
    print(f"one step,  0 rows of 32 guarded: {step_times(vocabulary, 0, args, rng)} µs")


if __name__ == "__main__":
    main()
