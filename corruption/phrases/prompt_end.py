"""What a prompt ends with, folded: the answer may continue a phrase that the prompt has begun.

A prompt may end inside a word or a phrase: the client writes the first half of an answer, or several texts follow one
another and a chat template joins them. An end is the last part of the prompt's folded text, as long as the longest
phrase. It begins at a word, so that a phrase can begin only where a word does. Knows texts only.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from lethe.corruption.phrases.normalize import SEPARATOR, fold
from lethe.corruption.phrases.stream_filter import fold_decoded

# Characters of the prompt to read first, for each character of the longest phrase. Chosen: ordinary text is shorter
# when it is folded, by spaces and punctuation. Where it folds to much less, more is read.
_CHARACTERS_PER_LETTER = 2
# Marks of chat templates and special tokens (<|end|>, </s>, [INST]), which a model may read as nothing.
_MARKUP = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{1,20}\]")


def prompt_ends(texts: Sequence[str], longest: int) -> frozenset[str]:
    """Return the folded ends of a prompt that consists of `texts`, one after another.

    There is an end for each way to read the prompt: texts joined by nothing or by a separator, or beginning at one of
    the last texts; escapes and Markdown marks read literally or decoded (see `corruption/phrases/stream_filter.py`),
    marks of chat templates as text, as nothing or as a separator; with and without a separator after it.
    longest: characters of the longest phrase.
    """
    texts = [text for text in texts if text]
    if not longest or not texts:
        return frozenset()
    ends = set(_ends(texts, "", longest))
    if len(texts) > 1:
        ends.update(_ends(texts, SEPARATOR, longest))
    num_characters = 0
    for count, text in enumerate(texts[: -longest - 1 : -1], 1):
        num_characters += len(text)
        if count == len(texts) or num_characters > _CHARACTERS_PER_LETTER * longest:
            break
        ends.update(_ends(texts[-count:], "", longest))
    with_separator = {end if end.endswith(SEPARATOR) else end + SEPARATOR for end in ends}
    return frozenset(end for end in ends | with_separator if end.strip())


def _readings(text: str) -> Iterator[str]:
    """Yield the text in each way to read it: marks of chat templates as text, as nothing, as separators."""
    yield text
    if _MARKUP.search(text):
        yield _MARKUP.sub("", text)
        yield _MARKUP.sub(SEPARATOR, text)


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


def _ends(texts: Sequence[str], joiner: str, longest: int) -> Iterator[str]:
    """Yield the last `longest` characters of the joined and folded texts in each reading, from the start of a word."""
    size = _CHARACTERS_PER_LETTER * longest
    while True:
        raw = _last_characters(texts, joiner, size)
        is_whole = len(raw) < size
        ends = [read(reading) for reading in _readings(raw) for read in (fold, fold_decoded)]
        if is_whole or all(len(end) > 2 * longest for end in ends):
            break
        size *= 4
    for end in ends:
        if is_whole and len(end) <= longest + 1:
            yield end
        else:
            # A phrase that began before the last `longest` characters would be complete.
            yield end[-longest - 1 :].partition(SEPARATOR)[2]


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
