"""Cut a very long text into overlapping chunks, which are judged and cached one by one. Knows no view and no score.

Where a chunk ends depends on the characters near its end alone. So a text that changes in one place has the same chunks
before and, soon after it, behind that place: a changed tool description doesn't change the chunks of the other tools.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from zlib import crc32

# Characters from which a text is cut. Chosen: a chunk's edges cost a little more work, and shorter texts are judged in
# about a tenth of a second.
MIN_CUT_CHARACTERS = 40_000
# Characters of a chunk, without its overlap: after the first number a chunk ends with the next line that has the right
# hash, after the second with any word. Chosen: about 20 ms of judging, and few edges.
MIN_CHUNK_CHARACTERS, MAX_CHUNK_CHARACTERS = 6_000, 12_000
# One line in this many may end a chunk. Chosen: lines of 40 characters end it after 640 more.
LINES_PER_EDGE = 16
# Characters that a chunk shares with the one before it. Chosen: about a wide window, so that a question across the edge
# is whole in one of them, also with each letter apart.
OVERLAP_CHARACTERS = 1_500

_LINE = re.compile(r"[^\n]*\n")
_SPACE = re.compile(r"\s")


class Chunk(NamedTuple):
    """A piece of a text, and where in the text it begins."""

    start: int
    text: str


def chunks_of(text: str) -> list[Chunk]:
    """Return the text in chunks; in one, if it is short. Together they hold every character.

    A run without white space is never cut, so a chunk may be as long as the text.
    """
    if len(text) < MIN_CUT_CHARACTERS:
        return [Chunk(0, text)]
    chunks, start = [], 0
    while start < len(text):
        end = _end_of_chunk(text, start)
        first = _after_space(text, max(start - OVERLAP_CHARACTERS, 0), start)
        chunks.append(Chunk(first, text[first:end]))
        start = end
    return chunks


def _end_of_chunk(text: str, start: int) -> int:
    """Where the chunk that begins at `start` ends."""
    at, last = start + MIN_CHUNK_CHARACTERS, start + MAX_CHUNK_CHARACTERS
    if len(text) <= last:
        return len(text)
    # From the beginning of a line on, which doesn't depend on where the chunk began.
    at = text.find("\n", at, last) + 1
    while 0 < at < last:
        line = _LINE.match(text, at, last)
        if line is None:
            break
        at = line.end()
        if crc32(line[0].encode("utf-8", "surrogatepass")) % LINES_PER_EDGE == 0:
            return at
    space = _SPACE.search(text, last)
    return space.end() if space else len(text)


def _after_space(text: str, at: int, end: int) -> int:
    """The first place from `at` on, and before `end`, that follows white space; `at` itself if it does, or is 0."""
    if at == 0:
        return 0
    space = _SPACE.search(text, at - 1, end)
    return space.end() if space else end
