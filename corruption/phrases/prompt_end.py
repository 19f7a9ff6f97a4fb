"""What a prompt ends with, folded: the answer may continue a phrase that the prompt has begun.

A prompt may end inside a word or a phrase: the client writes the first half of an answer, or several texts follow one
another and a chat template joins them. An end is the last part of the prompt's folded text, as long as the longest
phrase. It begins at a word, so that a phrase can begin only where a word does. Knows texts only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from lethe.corruption.phrases.normalize import SEPARATOR, fold
from lethe.corruption.phrases.stream_filter import fold_decoded

# Characters of the prompt to read first, for each character of the longest phrase. Chosen: ordinary text is shorter
# when it is folded, by spaces and punctuation. Where it folds to much less, more is read.
_CHARACTERS_PER_LETTER = 2


def prompt_ends(texts: Sequence[str], longest: int) -> frozenset[str]:
    """Return the folded ends of a prompt that consists of `texts`, one after another.

    There is an end for each way to read the prompt: texts joined by nothing or by a separator, escapes and Markdown
    marks read literally or decoded (see `corruption/phrases/stream_filter.py`), with and without a separator after it.
    longest: characters of the longest phrase.
    """
    if not longest:
        return frozenset()
    readings: tuple[Callable[[str], str], ...] = (fold, fold_decoded)
    ends = {_end(texts, joiner, read, longest) for joiner in ("", SEPARATOR) for read in readings}
    with_separator = {end if end.endswith(SEPARATOR) else end + SEPARATOR for end in ends}
    return frozenset(end for end in ends | with_separator if end.strip())


def begun_phrases(ends: Iterable[str], phrases: Iterable[str]) -> tuple[str, ...]:
    """Return the beginnings of phrases that one of the ends consists of, or ends with, at the start of a word.

    phrases: not folded. The result is folded, sorted and unique.
    """
    folded = sorted({fold(phrase).strip() for phrase in phrases})
    begun = set()
    for end in ends:
        for at in range(len(end)):
            if (at and end[at - 1] != SEPARATOR) or end[at] == SEPARATOR:
                continue
            beginning = end[at:]
            following = bisect_left(folded, beginning)
            if following < len(folded) and folded[following].startswith(beginning):
                begun.add(beginning)
    return tuple(sorted(begun))


def _end(texts: Sequence[str], joiner: str, read: Callable[[str], str], longest: int) -> str:
    """The last `longest` characters of the joined and folded texts, from the start of a word on."""
    size = _CHARACTERS_PER_LETTER * longest
    while True:
        raw = _last_characters(texts, joiner, size)
        is_whole = len(raw) < size
        folded = read(raw)
        if is_whole or len(folded) > 2 * longest:
            break
        size *= 4
    if is_whole and len(folded) <= longest + 1:
        return folded
    # A phrase that began before the last `longest` characters would be complete.
    _, _, end = folded[-longest - 1 :].partition(SEPARATOR)
    return end


def _last_characters(texts: Sequence[str], joiner: str, size: int) -> str:
    """The last `size` characters of the joined texts; fewer where the texts are shorter."""
    parts: list[str] = []
    missing = size
    for text in reversed(texts):
        if missing <= 0:
            break
        if parts:
            parts.append(joiner)
            missing -= len(joiner)
        parts.append(text[-missing:] if missing > 0 else "")
        missing -= len(parts[-1])
    return "".join(reversed(parts))
