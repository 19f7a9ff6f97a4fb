"""What GUARD costs vLLM: microseconds a step, and milliseconds to prepare a request.

    python -m benchmarks.penalty_step [--device cuda] [--rows 1 32 256] [--vocabulary 32000 152000]

Times the plugin itself under vLLM's V1 interface, with made-up vocabularies whose lengths and leading spaces are
like a real one's. CPU time of a step on CPU tensors. On a GPU also the device's own time for what a step writes,
beside the time that its memory needs to move as many bytes: places and values read, sectors of the logits read and
written; and whether a step ever waited for the device.
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
PHRASES, SOFT = 150, 64
# The least that a GPU's memory reads or writes at once.
SECTOR = 32
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


def processor(vocabulary: TokenVocabulary, device: str = "cpu") -> Any:
    """The plugin with the made-up vocabulary in place of a tokenizer's."""
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
    """Steps of a batch: the newest token of every answer read, masks looked up, logits written."""

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

    def __call__(self, times: int = 20) -> Mapping[str, tuple[float, str]]:
        """The median of several steps."""
        taken = []
        for _ in range(times):
            for output in self.outputs:
                output.append(self.rng.choice(self.tokens))
            taken.append(timed(self.step)[1] * 1e6)
        return {"CPU": (median(taken), "µs a step")}

    def step(self) -> None:
        self.plugin.update_state(None)
        self.plugin.apply(self.logits)


def on_device(steps: Steps, times: int) -> dict[str, list[float]]:
    """The device's time for what steps write, µs, and bytes moved. An exception where a step waits for it."""
    found: dict[str, list[float]] = {"device": [], "bytes": []}
    for turn in range(times + 5):
        for output in steps.outputs:
            output.append(steps.rng.choice(steps.tokens))
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        moved = _moved(steps)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            begin.record()
            steps.step()
            end.record()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        if turn >= 5:
            found["device"].append(begin.elapsed_time(end) * 1e3)
            found["bytes"].append(moved)
    return found


def _moved(steps: Steps) -> float:
    """Bytes that a step has to move: an index, a value and a sector of logits, read and written, for each place."""
    places = 0
    for answer in steps.plugin._sequences.values():
        fresh = answer.tokens[answer.num_read :]
        state = answer.state
        for token in fresh:
            state = answer.penalty.advance(state, token)
        for mask in (answer.penalty.constant_mask, answer.penalty.mask(state)):
            places += len(mask.banned) + len(mask.softened)
    return places * (8 + 4 + 2 * SECTOR)


def bandwidth(device: str) -> float:
    """Bytes a second that a plain copy on the device moves, read and written."""
    one = torch.empty(2**28, dtype=torch.uint8, device=device)
    other = torch.empty_like(one)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for turn in range(12):
        if turn == 2:
            begin.record()
        other.copy_(one)
    end.record()
    torch.cuda.synchronize()
    return 10 * 2 * one.nbytes / (begin.elapsed_time(end) / 1e3)


def cuda_answer(sizes: Sequence[int], batches: Sequence[int], times: int) -> BenchmarkResult:
    """On a GPU: what each step costs beside the bytes it must move."""
    rng = random.Random(5)
    speed = bandwidth("cuda")
    series, facts = [], {"device": torch.cuda.get_device_name(), "copy, GB/s": round(speed / 1e9)}
    for size in sizes:
        vocabulary = TokenVocabulary(made_up_pieces(size, rng))
        for batch in batches:
            name = f"vocabulary {size:,}, batch {batch}, all guarded"
            steps = Steps(vocabulary, batch, batch, "cuda", rng)
            found = on_device(steps, times)
            series.append(Series(f"{name}, device", "µs a step", found["device"]))
            series.append(Series(f"{name}, bytes moved", "B a step", found["bytes"]))
            needed = [moved / speed * 1e6 for moved in found["bytes"]]
            series.append(Series(f"{name}, those bytes at the speed of a copy", "µs a step", needed))
            own = [steps(1)["CPU"][0] for _ in range(times)]
            series.append(Series(f"{name}, CPU", "µs a step", own))
    return BenchmarkResult(series, notes=["no step waited for the device (torch.cuda.set_sync_debug_mode)"], facts=facts)


def measure(
    quick: bool, *, sizes: Sequence[int] = (128_000,), batches: Sequence[int] = (32,), device: str = "cpu"
) -> BenchmarkResult:
    torch.set_num_threads(1)
    logging.getLogger("lethe.corruption.vllm_plugin").setLevel(logging.CRITICAL)  # it misses a tokenizer
    if device != "cpu":
        return cuda_answer(sizes, batches, 20 if quick else 200)
    rng, series, claims = random.Random(5), [], []
    rounds = 10 if quick else 30
    for size in sizes:
        begin = time.process_time()
        vocabulary = TokenVocabulary(made_up_pieces(size, rng))
        series.append(Series(f"vocabulary of {size:,}, read once at start", "s", [time.process_time() - begin]))

        def prepared(vocabulary: TokenVocabulary = vocabulary) -> Mapping[str, tuple[float, str]]:
            asked = penalty(rng, PHRASES, SOFT)
            return {"CPU time": (timed(lambda: CompiledPenalty(asked, vocabulary))[1] * 1e3, "ms")}

        contestants: dict[str, Round] = {f"{size:,}: preparing {PHRASES} phrases and {SOFT} soft words": prepared}
        for batch in batches:
            for guarded in sorted({batch, 1, 0}, reverse=True):
                contestants[f"{size:,}: a step of {batch}, {guarded} guarded"] = Steps(
                    vocabulary, batch, guarded, device, rng
                )
        found = alternating(contestants, rounds)
        series += [one for measured in found.values() for one in measured.values()]
        for guarded, most in ((32, 500.0), (0, 5.0)):
            one = found.get(f"128,000: a step of 32, {guarded} guarded")
            if one is not None:
                claims.append(Claim.level(f"a step of 32 rows, {guarded} guarded", one["CPU"], at_most=most))
    return BenchmarkResult(series, claims)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--vocabulary", type=int, nargs="+")
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    cuda = args.device == "cuda"
    sizes = args.vocabulary or ([32_000, 152_000] if cuda else [128_000])
    batches = args.rows or ([1, 32, 256] if cuda else [32])
    from benchmarks.bench import print_result

    print_result(TITLE, measure(args.quick, sizes=sizes, batches=batches, device=args.device))


if __name__ == "__main__":
    main()
