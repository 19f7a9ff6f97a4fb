"""Whether a forbidden phrase ever passes the output filter, and what filtering costs.

Random phrases, and random texts made of their parts, cut into random pieces, for several choices of one answer. The
released text is compared with a slow search of the whole text. `python -m benchmarks.watch_streams` tries 100,000
streams and prints the failures; then it times long lists of phrases over a long text.
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
from lethe.corruption.phrases.phrase_list import ForbiddenPhrases
from lethe.corruption.phrases.stream_filter import AnswerFilter, FilterRule, StreamMatcher

REPLACEMENT = "[removed]"
LETTERS = "abABéＡ東1"
BETWEEN = [" ", " ", " ", "-", ", ", "\n", "\u200b", "’", "\u0301", ". ", "  "]


@dataclass(frozen=True)
class Occurrence:
    """Where a phrase occurs in a text, in characters."""

    begin: int
    end: int


def occurrences(phrases: Iterable[str], text: str) -> list[Occurrence]:
    """Find the phrases in the whole text, and a phrase of which more than half ends the text."""
    folded: list[tuple[str, int]] = [(SEPARATOR, -1)]
    for index, character in enumerate(text):
        for letter in fold_character(character):
            if not (letter == SEPARATOR and folded[-1][0] == SEPARATOR):
                folded.append((letter, index))
    ends_with_separator = folded[-1][0] == SEPARATOR
    if not ends_with_separator:
        folded.append((SEPARATOR, len(text)))
    line = "".join(letter for letter, _ in folded)
    spans: list[Occurrence] = []
    for phrase in {fold(phrase).strip() for phrase in phrases} - {""}:
        start = line.find(f" {phrase} ")
        while start >= 0:
            last, following = folded[start + len(phrase)][1], folded[start + len(phrase) + 1][1]
            spans.append(Occurrence(folded[start + 1][1], last + 1 if following == last else following))
            start = line.find(f" {phrase} ", start + 1)
        for size in range(len(phrase), 0, -1):
            beginning = phrase[:size]
            if 2 * count_letters(beginning) > count_letters(phrase):
                # A separator at the end may belong to the phrase.
                tail = line if beginning.endswith(SEPARATOR) else line[:-1] if not ends_with_separator else ""
                if tail.endswith(" " + beginning) and (not beginning.endswith(SEPARATOR) or ends_with_separator):
                    spans.append(Occurrence(folded[len(tail) - size][1], len(text)))
    return sorted(spans, key=lambda occurrence: (occurrence.begin, occurrence.end))


def replaced(phrases: Iterable[str], text: str, replacement: str) -> str:
    """Return the text with every phrase replaced, overlapping phrases as one."""
    out, end, covered = [], 0, -1
    for occurrence in occurrences(phrases, text):
        if occurrence.begin < covered:
            covered = end = max(covered, occurrence.end)
            continue
        out += [text[end : occurrence.begin], replacement]
        covered = end = occurrence.end
    return "".join([*out, text[end:]])


def cut(text: str, rng: random.Random) -> list[str]:
    """Return the text in random pieces, some of them empty."""
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(len(text) + 2)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def phrase(rng: random.Random) -> str:
    return "".join(rng.choice([*LETTERS, *LETTERS, " ", "-"]) for _ in range(rng.randint(1, 9)))


def passage(phrases: list[str], rng: random.Random) -> str:
    """Return a text of phrases, parts of them, and letters."""
    parts = []
    for _ in range(rng.randrange(9)):
        whole = rng.choice(phrases)
        begin = rng.randrange(len(whole)) if rng.random() < 0.3 else 0
        end = rng.randint(begin, len(whole)) if rng.random() < 0.5 else len(whole)
        part = rng.choice([whole[begin:end], whole[begin:end].upper(), rng.choice(LETTERS)])
        parts += [part, rng.choice([*BETWEEN, ""])]
    return "".join(parts)


def fault(rng: random.Random) -> str | None:
    """Filter one random answer of several choices, and return what went wrong; None if nothing did."""
    phrases = [phrase(rng) for _ in range(rng.randint(1, 6))]
    stop = rng.random() < 0.5
    answer_filter = AnswerFilter([FilterRule("p", ForbiddenPhrases(phrases), None if stop else REPLACEMENT)])
    texts = [passage(phrases, rng) for _ in range(rng.randint(1, 3))]
    matchers = [answer_filter.new_matcher() for _ in texts]
    released = [""] * len(texts)
    pieces = [(number, piece) for number, text in enumerate(texts) for piece in cut(text, rng)]
    order = sorted(range(len(pieces)), key=lambda _: rng.random())
    queues: list[list[str]] = [[piece for choice, piece in pieces if choice == number] for number in range(len(texts))]
    for number in (pieces[i][0] for i in order):
        released[number] += matchers[number].feed(queues[number].pop(0))
    for number, matcher in enumerate(matchers):
        released[number] += matcher.finish()
        problem = _problem(phrases, texts[number], released[number], matcher, answer_filter.replacements[0])
        if problem is not None:
            return f"{problem}: {phrases!r} {texts[number]!r} {released[number]!r}"
    return None


def _problem(
    phrases: list[str], text: str, released: str, matcher: StreamMatcher, replacement: str | None
) -> str | None:
    expected = occurrences(phrases, text)
    if occurrences(phrases, released + " zz") != []:
        return "a phrase was released"
    if bool(expected) != bool(matcher.hits):
        return "the hits are wrong"
    if replacement is not None:
        return None if released == replaced(phrases, text, replacement) else "the replacements are wrong"
    if not expected:
        return None if released == text else "a text without a phrase was changed"
    first_end = min(occurrence.end for occurrence in expected)
    begin = min(occurrence.begin for occurrence in expected if occurrence.end == first_end)
    if not text.startswith(released) or len(released) > begin:
        return "more than the text before the phrase was released"
    return None if len(released) >= begin - 60 else "too little was released"


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cost(count: int, characters: int) -> str:
    """Return time and memory of a list of `count` phrases, over a text that contains none of them."""
    rng = random.Random(1)
    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9))) for _ in range(20_000)]
    texts = [" ".join(rng.choices(words, k=rng.randint(2, 3))) for _ in range(count)]
    memory_before = memory_mb()
    started = time.perf_counter()
    phrases = ForbiddenPhrases(texts)
    build_s = time.perf_counter() - started
    text = " ".join(rng.choices(words, k=characters // 7))
    matcher = AnswerFilter([FilterRule("p", phrases, REPLACEMENT)]).new_matcher()
    started = time.perf_counter()
    for begin in range(0, len(text), 4):
        matcher.feed(text[begin : begin + 4])
    matcher.finish()
    filter_s = time.perf_counter() - started
    return (
        f"{count:>7,} phrases: built in {build_s * 1e3:.0f} ms, {memory_mb() - memory_before:.0f} MB; "
        f"{filter_s / len(text) * 1e6:.2f} µs a character in pieces of 4"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=100_000, help="number of random answers")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random answers")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    started = time.perf_counter()
    faults = [message for _ in range(args.streams) if (message := fault(rng)) is not None]
    print(f"{args.streams:,} answers in {time.perf_counter() - started:.0f} s, seed {args.seed}: {len(faults)} faults")
    for message in faults[:10]:
        print(" ", message)
    for count in (1_000, 20_000, 200_000):
        print(cost(count, 200_000))


if __name__ == "__main__":
    main()
