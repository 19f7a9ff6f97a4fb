"""Long texts in overlapping chunks."""

from __future__ import annotations

import base64
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.classifier.text.chunks import (
    MAX_CHUNK_CHARACTERS,
    MIN_CUT_CHARACTERS,
    OVERLAP_CHARACTERS,
    RUN_STEP,
    Chunk,
    chunks_of,
)
from lethe.classifier.text.views import text_views

# Pieces of long texts: ordinary lines, no line breaks, no blanks at all, odd characters.
PIECES = ("a line of text\n", "word ", "x", "\n", "\r\n", "é ", "\ud800", "長い", "\u2003", "a,b;", "0123456789" * 9)


def text_of(seed: int, size: int) -> str:
    rng = random.Random(seed)
    pieces = rng.sample(PIECES, rng.randrange(1, len(PIECES)))
    return "".join(rng.choices(pieces, k=size))[:size]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(MIN_CUT_CHARACTERS, 6 * MIN_CUT_CHARACTERS))
def test_chunks_are_bounded_and_hold_every_character(seed: int, size: int) -> None:
    text = text_of(seed, size)
    chunks, covered = chunks_of(text), 0
    for chunk in chunks:
        assert text[chunk.start : chunk.start + len(chunk.text)] == chunk.text
        assert len(chunk.text) <= 2 * MAX_CHUNK_CHARACTERS + RUN_STEP
        assert chunk.start <= covered < chunk.start + len(chunk.text)
        for edge in (chunk.start, chunk.start + len(chunk.text)):
            inside = 0 < edge < len(text) and not text[edge - 1].isspace()
            # Only a long run is cut inside, at a multiple of RUN_STEP from its beginning.
        assert not inside or len(text[:edge].rsplit(None, 1)[-1]) % RUN_STEP == 0
        covered = chunk.start + len(chunk.text)
    assert covered == len(text)


ENCODERS = {
    "base64": lambda raw: base64.b64encode(raw),
    "base64 twice": lambda raw: base64.b64encode(base64.b64encode(raw)),
    "hex": lambda raw: raw.hex().encode(),
    "percent": lambda raw: "".join(f"%{byte:02x}" for byte in raw).encode(),
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("before", [0, 1, 1000, 20_001, 29_999])
def test_a_question_in_a_long_encoded_run_is_read(name: str, before: int) -> None:
    question = b" who was the first keeper of the old lighthouse? "
    text = ENCODERS[name](b"the river bank " * (before // 15) + b"x" * (before % 15) + question + b"and more " * 4000)
    read = 0
    for padding in ("", "some text before it "):
        whole = padding + text.decode()
        chunks = chunks_of(whole)
        assert len(chunks) > 2
        # What is read in the whole text is read in a chunk.
        if any(question.decode() in view.text for view in text_views(whole)):
            read += 1
            assert any(question.decode() in view.text for chunk in chunks for view in text_views(chunk.text))
    assert read or before == 1000


def test_chunks_of_ordinary_lines_are_bounded_and_overlap() -> None:
    text = "".join(f"line {i} of a long file, with a few words\n" for i in range(5000))
    chunks = chunks_of(text)
    assert max(len(chunk.text) for chunk in chunks) <= MAX_CHUNK_CHARACTERS + OVERLAP_CHARACTERS + 50
    for a, b in zip(chunks, chunks[1:], strict=False):
        assert OVERLAP_CHARACTERS - 50 < a.start + len(a.text) - b.start <= OVERLAP_CHARACTERS


def test_a_short_text_is_one_chunk() -> None:
    assert chunks_of("") == [Chunk(0, "")]
    text = "word " * ((MIN_CUT_CHARACTERS - 1) // 5)
    assert chunks_of(text) == [Chunk(0, text)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.text(min_size=1, max_size=400))
def test_a_change_leaves_most_chunks_as_they_were(seed: int, share: float, inserted: str) -> None:
    rng = random.Random(seed)
    text = "".join(f"{rng.random()} is a number among others\n" for _ in range(5000))
    at = int(share * len(text))
    before = {chunk.text for chunk in chunks_of(text)}
    after = [chunk.text for chunk in chunks_of(text[:at] + inserted + text[at:])]
    assert sum(chunk not in before for chunk in after) <= 8 < len(after) / 3
