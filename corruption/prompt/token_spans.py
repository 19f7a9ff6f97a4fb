"""Where the tokens of a text are in the whole prompt: pure functions over renderings and token ids.

The prompt is rendered twice, with its texts (`whole`) and with the marker in place of the chosen texts (`marked`).
`gaps` are the pieces of `marked` between the markers, as text; `gap_ids` are the same as token ids. A span is right
when (ids before) + (its ids) + (ids after) are exactly the ids of `whole`. `corruption/prompt/prompt_tokenizer.py`
makes the renderings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenSpan:
    """The tokens of one text.

    ids: the token ids. offsets: each token's characters in that text, (begin, end). ends_prompt: whether the text is
    the end of the prompt.
    """

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    ends_prompt: bool


@dataclass(frozen=True)
class EncodedText:
    """A text and its tokens, with their characters in it."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]


def locate_texts(whole: str, gaps: Sequence[str], texts: Sequence[str]) -> list[tuple[int, int]] | None:
    """Return where each text is in the whole rendering, unchanged or without its outer white space; None if nowhere.

    gaps: one more than texts.
    """
    if not whole.startswith(gaps[0]):
        return None
    places, cursor = [], len(gaps[0])
    for text, gap in zip(texts, gaps[1:], strict=True):
        for variant in (text, text.strip(), text.rstrip(), text.lstrip()):
            if whole.startswith(variant, cursor) and whole.startswith(gap, cursor + len(variant)):
                break
        else:
            return None
        places.append((cursor, cursor + len(variant)))
        cursor += len(variant) + len(gap)
    return places if cursor == len(whole) else None


def token_ranges(
    whole: EncodedText, gap_ids: Sequence[Sequence[int]], places: Sequence[tuple[int, int]]
) -> list[tuple[int, int]] | None:
    """Return the token range of each place, such that the tokens between them are exactly `gap_ids`; None if none."""
    ranges = []
    if whole.ids[: len(gap_ids[0])] != gap_ids[0]:
        return None
    position = len(gap_ids[0])
    for (_, char_end), gap in zip(places, gap_ids[1:], strict=True):
        end = position
        while end < len(whole.ids) and whole.offsets[end][0] < char_end:
            end += 1
        if whole.ids[end : end + len(gap)] != gap:
            return None
        ranges.append((position, end))
        position = end + len(gap)
    return ranges if position == len(whole.ids) else None


def equal_except_white_space(whole: EncodedText, gaps: Sequence[str], start: int, end: int) -> bool:
    """Whether tokens start..end cover the text between the two gaps, except for outer white space."""
    if start >= end or not (whole.text.startswith(gaps[0]) and whole.text.endswith(gaps[1])):
        return False
    covered = whole.text[whole.offsets[start][0] : whole.offsets[end - 1][1]]
    return covered.strip() == whole.text[len(gaps[0]) : len(whole.text) - len(gaps[1])].strip()


def offsets_in_text(
    offsets: Sequence[tuple[int, int]], place: tuple[int, int] | None, text: str, whole: str
) -> tuple[tuple[int, int], ...]:
    """Turn offsets in the rendering into offsets in the text; the whole text where the rendering changed it.

    place: the text's characters in the rendering; None: what the tokens cover.
    """
    if not offsets:
        return ()
    start, end = place or (offsets[0][0], offsets[-1][1])
    shift = text.find(whole[start:end])
    if shift < 0:
        return tuple((0, len(text)) for _ in offsets)
    return tuple((max(a - start, 0) + shift, min(b, end) - start + shift) for a, b in offsets)
