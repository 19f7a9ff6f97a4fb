"""What keeping a book from being copied costs vLLM: the index, one check, and one decoding step.

Times the plugin itself under vLLM's V1 interface on CPU tensors, with a made-up vocabulary of 128,000 tokens.
Answers are ordinary ones (words of the book in another order) and, as the worst case, copies that stay at
their limit in every step. Prints medians with the 10th and 90th percentile.
Run: python -m benchmarks.verbatim_step [BOOK.txt]
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate

from benchmarks.penalty_step import made_up_pieces, processor, spread, timed, word
from lethe.corruption import vllm_plugin
from lethe.corruption.decoding.spec import XARGS_KEY, Penalty, encode_penalty
from lethe.corruption.decoding.suffix_index import INDEX_FILE, comparable_letters, load_index, save_index
from lethe.corruption.decoding.token_text import TokenVocabulary


def made_up_book(characters: int, rng: random.Random) -> str:
    known = [word(rng, rng.randint(2, 9)) for _ in range(8_000)]
    weights = [1 / (rank + 3) for rank in range(len(known))]
    return " ".join(rng.choices(known, weights, k=characters // 6))[:characters]


def answers(book: str, vocabulary: TokenVocabulary, rows: int, length: int, *, copied: bool) -> list[list[int]]:
    """Token ids of answers: runs of the book, or its words shuffled; every word one token, or its letters."""
    rng = random.Random(3)
    place = {piece: token for token, piece in enumerate(vocabulary.pieces)}
    words = book.split()
    found = []
    for _ in range(rows):
        begin = rng.randrange(len(words) - length)
        said = words[begin : begin + length] if copied else rng.choices(words, k=length)
        ids: list[int] = []
        for one in said:
            whole = place.get(f" {one}".encode())
            ids += [whole] if whole is not None else [place[bytes([byte])] for byte in f" {one}".encode()]
        found.append(ids[:length])
    return found


def steps(vocabulary: TokenVocabulary, said: list[list[int]], penalty: Penalty | None) -> list[tuple[float, float]]:
    """One step each: the newest token of every answer read, copies looked up, logits written."""
    plugin: Any = processor(vocabulary)
    outputs: list[list[int]] = [[] for _ in said]
    extra = None if penalty is None else {XARGS_KEY: encode_penalty(penalty)}
    added = [(i, SamplingParams(extra_args=extra), [1], output) for i, output in enumerate(outputs)]
    plugin.update_state(BatchUpdate(len(outputs), [], added, []))
    logits = torch.randn(len(outputs), len(vocabulary))

    def step() -> None:
        plugin.update_state(None)
        plugin.apply(logits)

    taken = []
    for i in range(min(map(len, said))):
        for output, tokens in zip(outputs, said, strict=True):
            output.append(tokens[i])
        taken.append(timed(step))
    return taken[16:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("book", nargs="?", type=Path, help="a text file (default: 600,000 made-up characters)")
    parser.add_argument("--vocabulary", type=int, default=128_000)
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    rng = random.Random(5)
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    book = args.book.read_text(encoding="utf-8") if args.book else made_up_book(600_000, rng)
    # The words of the book are tokens too, as those of any language are in a real vocabulary.
    own = [f" {one}".encode() for one in dict.fromkeys(book.split())][: args.vocabulary // 4]
    made = made_up_pieces(args.vocabulary - len(own), rng)
    vocabulary = TokenVocabulary(list(dict.fromkeys([*made[:-1], *own, made[-1]])))

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a").mkdir()
        path = Path(folder) / "a" / INDEX_FILE
        begin = time.perf_counter()
        name = save_index([book], path)
        built = time.perf_counter() - begin
        size = path.stat().st_size
        print(f"index of {len(book):,} characters: {size / 1e6:.2f} MB, made in {built:.2f} s")
        index, spelled = load_index(path), comparable_letters(book)
        pieces = [spelled[i : i + 45] for i in range(0, len(spelled) - 45, len(spelled) // 500)]
        there = [timed(lambda p=p: index.followers(p)) for p in pieces]
        other = [timed(lambda p=p: index.followers(p[::-1])) for p in pieces]
        print(f"one check, a copy: {spread(there, 1e6)} µs; something else: {spread(other, 1e6)} µs")

        os.environ["LETHE_VERBATIM"] = folder
        vllm_plugin._index_folder.cache_clear()
        penalty = Penalty(verbatim={name: args.limit})
        ordinary = answers(book, vocabulary, 32, args.steps, copied=False)
        copies = answers(book, vocabulary, 32, args.steps, copied=True)
        none = steps(vocabulary, ordinary, None)
        print(f"one step, 32 rows, none guarded:          {spread(none, 1e6)} µs")
        base = np.median([wall for wall, _ in none])
        for what, said in (("all guarded, ordinary answers", ordinary), ("all guarded, all at their limit", copies)):
            taken = steps(vocabulary, said, penalty)
            a_row = (np.median([wall for wall, _ in taken]) - base) / 32 * 1e6
            print(f"one step, 32 rows, {what}: {spread(taken, 1e6)} µs; {a_row:.1f} µs a row")


if __name__ == "__main__":
    main()
