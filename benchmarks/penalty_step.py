"""What GUARD costs vLLM: microseconds for each decoding step, and milliseconds to prepare a request.

    python -m benchmarks.penalty_step [--device cuda] [--rows 1 32 256] [--vocabulary 32000 152000]

Times the plugin itself under vLLM's V1 interface, with synthetic vocabularies whose token lengths and leading spaces
are like a real one's. On CPU tensors it measures the CPU time of a step. On a GPU it also measures the device time of
what a step writes, and prints beside it the time that the GPU's memory needs for as many bytes (positions and values
read, sectors of the logits read and written), and whether a step ever waited for the device.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate

from benchmarks.measuring import BenchmarkResult, Claim, Round, Series, alternating
from lethe.corruption import vllm_plugin
from lethe.corruption.decoding.spec import XARGS_KEY, Penalty, encode_penalty
from lethe.corruption.decoding.token_masks import CompiledPenalty
from lethe.corruption.decoding.token_text import TokenVocabulary

TITLE = "What penalties cost in a decoding step (GUARD)"
# Phrases and soft words of one request.
PHRASES, SOFT = 150, 64
# Bytes that a GPU's memory reads or writes at once, at least.
SECTOR = 32
LETTERS = "etaoinshrdlucmfwypvbgkqjxz"


def word(rng: random.Random, letters: int) -> str:
    # Frequent letters are more likely, so that words share prefixes as in a language.
    return "".join(LETTERS[min(int(rng.expovariate(0.16)), 25)] for _ in range(letters))


def made_up_pieces(size: int, rng: random.Random) -> list[bytes]:
    """Return tokens as in byte-level BPE: bytes, words with and without a space, capitals, punctuation."""
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
    texts = [" ".join(word(rng, rng.randint(3, 10)) for _ in range(rng.randint(1, 3))) for _ in range(phrases)]
    return Penalty(tuple(dict.fromkeys(texts)), {word(rng, rng.randint(5, 10)): 3.0 for _ in range(soft)})


def spread(times: list[tuple[float, float]], scale: float) -> str:
    """Format wall time and CPU time, each as median (10th to 90th percentile): on a busy machine they differ."""
    parts = []
    for name, values in zip(("wall", "CPU"), np.array(times).T * scale, strict=True):
        low, middle, high = np.percentile(values, [10, 50, 90])
        parts.append(f"{name} {middle:.1f} ({low:.1f} to {high:.1f})")
    return ", ".join(parts)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall time and this thread's CPU time of a call, in seconds."""
    wall, cpu = time.perf_counter(), time.thread_time()
    work()
    return time.perf_counter() - wall, time.thread_time() - cpu


def processor(vocabulary: TokenVocabulary, device: str = "cpu") -> Any:
    """Return the plugin with the synthetic vocabulary instead of a tokenizer's."""
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            skip_tokenizer_init=True,
            hf_config=SimpleNamespace(eos_token_id=len(vocabulary) - 1),
            try_get_generation_config=dict,
        )
    )
    plugin = vllm_plugin.LetheLogitsProcessor(config, torch.device(device), False)
    plugin._vocabulary = vocabulary
    return plugin


class Steps:
    """Steps of a batch: each reads the newest token of every answer, looks up masks and writes logits."""

    def __init__(self, vocabulary: TokenVocabulary, batch: int, guarded: int, device: str, rng: random.Random) -> None:
        self.plugin = processor(vocabulary, device)
        self.outputs: list[list[int]] = [[] for _ in range(batch)]
        self.tokens = range(len(vocabulary))
        self.rng = rng
        added = []
        for i, output in enumerate(self.outputs):
            extra = {XARGS_KEY: encode_penalty(penalty(rng, PHRASES, SOFT))} if i < guarded else None
            added.append((i, SamplingParams(extra_args=extra), [1], output))
        self.plugin.update_state(BatchUpdate(batch, [], added, []))
        self.logits = torch.randn(batch, len(vocabulary), device=device)

    def __call__(self, count: int = 20) -> Mapping[str, tuple[float, str]]:
        """Return the median of several steps."""
        times_us = []
        for _ in range(count):
            for output in self.outputs:
                output.append(self.rng.choice(self.tokens))
            times_us.append(timed(self.step)[1] * 1e6)
        return {"CPU": (median(times_us), "µs a step")}

    def step(self) -> None:
        self.plugin.update_state(None)
        self.plugin.apply(self.logits)


def on_device(steps: Steps, count: int) -> dict[str, list[float]]:
    """Return the device time of the steps' writes in µs, and the bytes moved. Raises where a step waits for the GPU."""
    measured: dict[str, list[float]] = {"device": [], "bytes": []}
    for turn in range(count + 5):
        for output in steps.outputs:
            output.append(steps.rng.choice(steps.tokens))
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        moved = _bytes_moved(steps)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            begin.record()
            steps.step()
            end.record()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        if turn >= 5:  # the first steps warm up
            measured["device"].append(begin.elapsed_time(end) * 1e3)
            measured["bytes"].append(moved)
    return measured


def _bytes_moved(steps: Steps) -> float:
    """The bytes that a step must move: for each position an index, a value, and a sector of logits read and written."""
    positions = 0
    for sequence in steps.plugin._sequences.values():
        state = sequence.state
        for token in sequence.tokens[sequence.num_read :]:
            state = sequence.penalty.advance(state, token)
        for mask in (sequence.penalty.constant_mask, sequence.penalty.mask(state)):
            positions += len(mask.banned) + len(mask.softened)
    return positions * (8 + 4 + 2 * SECTOR)


def bandwidth(device: str) -> float:
    """Return the bytes a second that a plain copy on the device moves, reads and writes together."""
    source = torch.empty(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for turn in range(12):
        if turn == 2:
            begin.record()
        target.copy_(source)
    end.record()
    torch.cuda.synchronize()
    return 10 * 2 * source.nbytes / (begin.elapsed_time(end) / 1e3)


def measure_cuda(sizes: Sequence[int], batches: Sequence[int], count: int) -> BenchmarkResult:
    """Measure on a GPU what each step costs, beside the bytes that it must move."""
    rng = random.Random(5)
    speed = bandwidth("cuda")
    series, facts = [], {"device": torch.cuda.get_device_name(), "copy, GB/s": round(speed / 1e9)}
    for size in sizes:
        vocabulary = TokenVocabulary(made_up_pieces(size, rng))
        for batch in batches:
            name = f"vocabulary {size:,}, batch {batch}, all guarded"
            steps = Steps(vocabulary, batch, batch, "cuda", rng)
            measured = on_device(steps, count)
            series.append(Series(f"{name}, device", "µs a step", measured["device"]))
            series.append(Series(f"{name}, bytes moved", "B a step", measured["bytes"]))
            copy_us = [moved / speed * 1e6 for moved in measured["bytes"]]
            series.append(Series(f"{name}, those bytes at the speed of a copy", "µs a step", copy_us))
            cpu_us = [steps(1)["CPU"][0] for _ in range(count)]
            series.append(Series(f"{name}, CPU", "µs a step", cpu_us))
    return BenchmarkResult(
        series, notes=["no step waited for the device (torch.cuda.set_sync_debug_mode)"], facts=facts
    )


def measure(
    quick: bool, *, sizes: Sequence[int] = (128_000,), batches: Sequence[int] = (32,), device: str = "cpu"
) -> BenchmarkResult:
    torch.set_num_threads(1)
    # The plugin reports that it finds no tokenizer.
    logging.getLogger("lethe.corruption.vllm_plugin").setLevel(logging.CRITICAL)
    if device != "cpu":
        return measure_cuda(sizes, batches, 20 if quick else 200)
    rng, series, claims = random.Random(5), [], []
    rounds = 10 if quick else 30
    for size in sizes:
        begin = time.process_time()
        vocabulary = TokenVocabulary(made_up_pieces(size, rng))
        series.append(Series(f"vocabulary of {size:,}, read once at start", "s", [time.process_time() - begin]))

        def compile_penalty(vocabulary: TokenVocabulary = vocabulary) -> Mapping[str, tuple[float, str]]:
            one = penalty(rng, PHRASES, SOFT)
            return {"CPU time": (timed(lambda: CompiledPenalty(one, vocabulary))[1] * 1e3, "ms")}

        contestants: dict[str, Round] = {
            f"{size:,}: preparing {PHRASES} phrases and {SOFT} soft words": compile_penalty
        }
        for batch in batches:
            for guarded in sorted({batch, 1, 0}, reverse=True):
                contestants[f"{size:,}: a step of {batch}, {guarded} guarded"] = Steps(
                    vocabulary, batch, guarded, device, rng
                )
        measured = alternating(contestants, rounds)
        series += [one for by_name in measured.values() for one in by_name.values()]
        for guarded, max_us in ((32, 500.0), (0, 5.0)):
            step = measured.get(f"128,000: a step of 32, {guarded} guarded")
            if step is not None:
                claims.append(Claim.level(f"a step of 32 rows, {guarded} guarded", step["CPU"], at_most=max_us))
    return BenchmarkResult(series, claims)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where the logits are")
    parser.add_argument("--vocabulary", type=int, nargs="+", help="numbers of tokens in the synthetic vocabularies")
    parser.add_argument("--rows", type=int, nargs="+", help="numbers of answers in a batch")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    args = parser.parse_args()
    cuda = args.device == "cuda"
    sizes = args.vocabulary or ([32_000, 152_000] if cuda else [128_000])
    batches = args.rows or ([1, 32, 256] if cuda else [32])
    from benchmarks.bench import print_result

    print_result(TITLE, measure(args.quick, sizes=sizes, batches=batches, device=args.device))


if __name__ == "__main__":
    main()
