"""What a copy limit on a book costs vLLM: the index, one look-up, and one decoding step.

    python -m benchmarks.verbatim_step [BOOK.txt]

Times the plugin itself under vLLM's V1 interface on CPU tensors, with a synthetic vocabulary of 128,000 tokens. The
answers are ordinary ones (words of the book in random order) and, as the worst case, copies that are at their limit in
every step. Prints medians with the 10th and 90th percentile.
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
    words = [word(rng, rng.randint(2, 9)) for _ in range(8_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]  # Zipf's law
    return " ".join(rng.choices(words, weights, k=characters // 6))[:characters]


def answers(book: str, vocabulary: TokenVocabulary, rows: int, length: int, *, copied: bool) -> list[list[int]]:
    """Return token ids of answers: passages of the book, or its words at random. A word is one token, or its bytes."""
    rng = random.Random(3)
    token_of = {piece: token for token, piece in enumerate(vocabulary.pieces)}
    words = book.split()
    answers = []
    for _ in range(rows):
        begin = rng.randrange(len(words) - length)
        chosen = words[begin : begin + length] if copied else rng.choices(words, k=length)
        ids: list[int] = []
        for one in chosen:
            whole = token_of.get(f" {one}".encode())
            ids += [whole] if whole is not None else [token_of[bytes([byte])] for byte in f" {one}".encode()]
        answers.append(ids[:length])
    return answers


def steps(
    vocabulary: TokenVocabulary, token_ids: list[list[int]], penalty: Penalty | None
) -> list[tuple[float, float]]:
    """Time steps. Each reads the newest token of every answer, looks up copies and writes logits."""
    plugin: Any = processor(vocabulary)
    outputs: list[list[int]] = [[] for _ in token_ids]
    extra = None if penalty is None else {XARGS_KEY: encode_penalty(penalty)}
    added = [(i, SamplingParams(extra_args=extra), [1], output) for i, output in enumerate(outputs)]
    plugin.update_state(BatchUpdate(len(outputs), [], added, []))
    logits = torch.randn(len(outputs), len(vocabulary))

    def step() -> None:
        plugin.update_state(None)
        plugin.apply(logits)

    times = []
    for i in range(min(map(len, token_ids))):
        for output, tokens in zip(outputs, token_ids, strict=True):
            output.append(tokens[i])
        times.append(timed(step))
    return times[16:]  # the first steps have no copy yet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "book", nargs="?", type=Path, help="a text file (default: 600,000 characters of synthetic text)"
    )
    parser.add_argument("--vocabulary", type=int, default=128_000, help="number of tokens")
    parser.add_argument("--limit", type=int, default=12, help="copy limit in tokens")
    parser.add_argument("--steps", type=int, default=200, help="number of decoding steps")
    args = parser.parse_args()
    rng = random.Random(5)
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    book = args.book.read_text(encoding="utf-8") if args.book else made_up_book(600_000, rng)
    # The words of the book are tokens too, as common words are in a real vocabulary.
    book_words = [f" {one}".encode() for one in dict.fromkeys(book.split())][: args.vocabulary // 4]
    pieces = made_up_pieces(args.vocabulary - len(book_words), rng)
    vocabulary = TokenVocabulary(list(dict.fromkeys([*pieces[:-1], *book_words, pieces[-1]])))

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a").mkdir()
        path = Path(folder) / "a" / INDEX_FILE
        begin = time.perf_counter()
        name = save_index([book], path)
        build_s = time.perf_counter() - begin
        size = path.stat().st_size
        print(f"index of {len(book):,} characters: {size / 1e6:.2f} MB, built in {build_s:.2f} s")
        index, letters = load_index(path), comparable_letters(book)
        runs = [letters[i : i + 45] for i in range(0, len(letters) - 45, len(letters) // 500)]
        hits = [timed(lambda run=run: index.followers(run)) for run in runs]
        misses = [timed(lambda run=run: index.followers(run[::-1])) for run in runs]
        print(f"one look-up, a copy: {spread(hits, 1e6)} µs; another text: {spread(misses, 1e6)} µs")

        os.environ["LETHE_VERBATIM"] = folder
        vllm_plugin._index_folder.cache_clear()
        penalty = Penalty(verbatim={name: args.limit})
        ordinary = answers(book, vocabulary, 32, args.steps, copied=False)
        copies = answers(book, vocabulary, 32, args.steps, copied=True)
        unguarded = steps(vocabulary, ordinary, None)
        print(f"one step, 32 rows, none guarded:          {spread(unguarded, 1e6)} µs")
        base = np.median([wall for wall, _ in unguarded])
        for what, token_ids in (
            ("all guarded, ordinary answers", ordinary),
            ("all guarded, all at their limit", copies),
        ):
            guarded = steps(vocabulary, token_ids, penalty)
            a_row = (np.median([wall for wall, _ in guarded]) - base) / 32 * 1e6
            print(f"one step, 32 rows, {what}: {spread(guarded, 1e6)} µs; {a_row:.1f} µs a row")


if __name__ == "__main__":
    main()
