"""Whether a forbidden phrase ever gets past the output watch, and what watching costs.

Random phrases, random texts made of their pieces, cut anywhere, several choices of one answer; what leaves is
compared with a slow, obvious reading of the whole text. `python -m benchmarks.watch_streams` tries 100,000
streams and prints what got through; then it times many phrases over a long text.
"""

from __future__ import annotations

import argparse
import random
import resource
import string
import time
from collections.abc import Iterable
from dataclasses import dataclass

from lethe.corruption.phrases.normalize import SEPARATOR, count_letters, fold, fold_character
from lethe.corruption.phrases.stream_filter import AnswerFilter, FilterRule, ForbiddenPhrases, StreamMatcher

REPLACEMENT = "[removed]"
LETTERS = "abABéＡ東1"
BETWEEN = [" ", " ", " ", "-", ", ", "\n", "\u200b", "’", "\u0301", ". ", "  "]


@dataclass(frozen=True)
class Said:
    """A place in a text where a phrase stands, in characters."""

    begin: int
    end: int


def occurrences(phrases: Iterable[str], text: str) -> list[Said]:
    """Where the phrases stand in the whole text, one that it breaks off past half included."""
    folded: list[tuple[str, int]] = [(SEPARATOR, -1)]
    for at, character in enumerate(text):
        for one in fold_character(character):
            if not (one == SEPARATOR and folded[-1][0] == SEPARATOR):
                folded.append((one, at))
    ended = folded[-1][0] == SEPARATOR
    if not ended:
        folded.append((SEPARATOR, len(text)))
    line = "".join(one for one, _ in folded)
    found = []
    for phrase in {fold(phrase).strip() for phrase in phrases} - {""}:
        at = line.find(f" {phrase} ")
        while at >= 0:
            last, after = folded[at + len(phrase)][1], folded[at + len(phrase) + 1][1]
            found.append(Said(folded[at + 1][1], last + 1 if after == last else after))
            at = line.find(f" {phrase} ", at + 1)
        for size in range(len(phrase), 0, -1):
            begun = phrase[:size]
            if 2 * count_letters(begun) > count_letters(phrase):
                # A separator at the end may belong to the phrase.
                tail = line if begun.endswith(SEPARATOR) else line[:-1] if not ended else ""
                if tail.endswith(" " + begun) and (not begun.endswith(SEPARATOR) or ended):
                    found.append(Said(folded[len(tail) - size][1], len(text)))
    return sorted(found, key=lambda said: (said.begin, said.end))


def replaced(phrases: Iterable[str], text: str, replacement: str) -> str:
    """The text with every phrase replaced, phrases that overlap as one."""
    out, end, at = [], 0, -1
    for said in occurrences(phrases, text):
        if said.begin < at:
            at = end = max(at, said.end)
            continue
        out += [text[end : said.begin], replacement]
        at = end = said.end
    return "".join([*out, text[end:]])


def cut(text: str, draw: random.Random) -> list[str]:
    """The text in random pieces, some of them empty."""
    places = sorted(draw.randrange(len(text) + 1) for _ in range(draw.randrange(len(text) + 2)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def phrase(draw: random.Random) -> str:
    return "".join(draw.choice([*LETTERS, *LETTERS, " ", "-"]) for _ in range(draw.randint(1, 9)))


def passage(phrases: list[str], draw: random.Random) -> str:
    """A text of phrases, pieces of them, and letters."""
    parts = []
    for _ in range(draw.randrange(9)):
        whole = draw.choice(phrases)
        begin = draw.randrange(len(whole)) if draw.random() < 0.3 else 0
        end = draw.randint(begin, len(whole)) if draw.random() < 0.5 else len(whole)
        said = draw.choice([whole[begin:end], whole[begin:end].upper(), draw.choice(LETTERS)])
        parts += [said, draw.choice([*BETWEEN, ""])]
    return "".join(parts)


def fault(draw: random.Random) -> str | None:
    """What went wrong with one random answer of some choices; None if nothing did."""
    phrases = [phrase(draw) for _ in range(draw.randint(1, 6))]
    stop = draw.random() < 0.5
    watch = AnswerFilter([FilterRule("p", ForbiddenPhrases(phrases), None if stop else REPLACEMENT)])
    said = [passage(phrases, draw) for _ in range(draw.randint(1, 3))]
    watchers = [watch.new_matcher() for _ in said]
    out = [""] * len(said)
    pieces = [(number, piece) for number, text in enumerate(said) for piece in cut(text, draw)]
    order = sorted(range(len(pieces)), key=lambda _: draw.random())
    queues: list[list[str]] = [[piece for choice, piece in pieces if choice == number] for number in range(len(said))]
    for number in (pieces[i][0] for i in order):
        out[number] += watchers[number].feed(queues[number].pop(0))
    for number, watcher in enumerate(watchers):
        out[number] += watcher.finish()
        if wrong := _wrong(phrases, said[number], out[number], watcher, watch.replacements[0]):
            return f"{wrong}: {phrases!r} {said[number]!r} {out[number]!r}"
    return None


def _wrong(phrases: list[str], text: str, out: str, watcher: StreamMatcher, replacement: str | None) -> str | None:
    told = occurrences(phrases, text)
    if occurrences(phrases, out + " zz") != []:
        return "a phrase left"
    if bool(told) != bool(watcher.hits):
        return "the hits are wrong"
    if replacement is not None:
        return None if out == replaced(phrases, text, replacement) else "replaced otherwise"
    if not told:
        return None if out == text else "changed without a phrase"
    first = min(said.end for said in told)
    begin = min(said.begin for said in told if said.end == first)
    if not text.startswith(out) or len(out) > begin:
        return "more than the beginning left"
    return None if len(out) >= begin - 60 else "too little left"


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cost(count: int, characters: int) -> str:
    """Time and memory of one automaton of `count` phrases, over a text that holds none of them."""
    draw = random.Random(1)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 9))) for _ in range(20_000)]
    phrases = [" ".join(draw.choices(words, k=draw.randint(2, 3))) for _ in range(count)]
    before = memory_mb()
    started = time.perf_counter()
    made = ForbiddenPhrases(phrases)
    built = time.perf_counter() - started
    text = " ".join(draw.choices(words, k=characters // 7))
    watcher = AnswerFilter([FilterRule("p", made, REPLACEMENT)]).new_matcher()
    started = time.perf_counter()
    for at in range(0, len(text), 4):
        watcher.feed(text[at : at + 4])
    watcher.finish()
    spent = time.perf_counter() - started
    return (
        f"{count:>7,} phrases: made in {built * 1e3:.0f} ms, {memory_mb() - before:.0f} MB; "
        f"{spent / len(text) * 1e6:.2f} µs a character in pieces of 4"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    started = time.perf_counter()
    faults = [found for _ in range(args.streams) if (found := fault(draw)) is not None]
    print(f"{args.streams:,} answers in {time.perf_counter() - started:.0f} s, seed {args.seed}: {len(faults)} faults")
    for found in faults[:10]:
        print(" ", found)
    for count in (1_000, 20_000, 200_000):
        print(cost(count, 200_000))


if __name__ == "__main__":
    main()
