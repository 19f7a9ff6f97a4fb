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
# Fewest and most characters of a chunk, without its overlap and but for long runs without white space. Chosen: about
# 20 ms of judging, and few edges.
MIN_CHUNK_CHARACTERS, MAX_CHUNK_CHARACTERS = 2_000, 12_000
# After the minimum, one character in this many is in a line that ends a chunk. Chosen: between the two.
CHARACTERS_PER_EDGE = 5_000
# Characters that a chunk shares with the one before it. Chosen: about a wide window, so that a question across the edge
# is whole in one of them, also with each letter apart.
OVERLAP_CHARACTERS = 1_500
# A run without white space is cut at multiples of this many characters, and its chunks overlap by as many. Chosen:
# divisible by 2, 3, 4, 5, 6 and 8, the characters of one encoded byte or group, and by 4³ for Base64 inside Base64.
RUN_STEP = 3_840

_LINE = re.compile(r"[^\n]*\n")
_SPACE = re.compile(r"\s")


class Chunk(NamedTuple):
    """A piece of a text, and where in the text it begins."""

    start: int
    text: str


def chunks_of(text: str) -> list[Chunk]:
    """Return the text in chunks; in one, if it is short. Together they hold every character.

    Only runs without white space that are longer than a chunk are cut inside, at a multiple of RUN_STEP: so what is
    encoded in them can be decoded.
    """
    if len(text) < MIN_CUT_CHARACTERS:
        return [Chunk(0, text)]
    chunks, start = [], 0
    while start < len(text):
        end = _end_of_chunk(text, start)
        first = _start_of_overlap(text, start)
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
        if crc32(line[0].encode("utf-8", "surrogatepass")) % CHARACTERS_PER_EDGE < len(line[0]):
            return at
    space = _SPACE.search(text, last, last + MAX_CHUNK_CHARACTERS)
    if space:
        return space.end()
    # The run without white space that reaches past `last`, or begins there.
    run = last if text[last - 1].isspace() else last - len(text[start:last].rsplit(None, 1)[-1])
    return run if run > start else min(start + MAX_CHUNK_CHARACTERS // RUN_STEP * RUN_STEP, len(text))


def _start_of_overlap(text: str, start: int) -> int:
    """Where the chunk begins whose own characters begin at `start`: after white space, or inside a long run."""
    if start and not text[start - 1].isspace():
        return start - RUN_STEP
    at = max(start - OVERLAP_CHARACTERS, 0)
    if at == 0:
        return 0
    space = _SPACE.search(text, at - 1, start)
    return space.end() if space else start
