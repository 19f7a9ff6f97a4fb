"""Places of texts in a rendering, and their token ranges, with one token for each character."""

from __future__ import annotations

import pytest

from lethe.corruption.prompt.token_spans import EncodedText, locate_texts, offsets_in_text, token_ranges


def encode(text: str) -> EncodedText:
    return EncodedText(text, list(map(ord, text)), [(i, i + 1) for i in range(len(text))])


@pytest.mark.parametrize(
    ("whole", "gaps", "texts", "places"),
    [
        ("<Ann|Ben>", ["<", "|", ">"], ["Ann", "Ben"], [(1, 4), (5, 8)]),
        ("<Ann>", ["<", ">"], [" Ann\n"], [(1, 4)]),
        ("<ANN>", ["<", ">"], ["Ann"], None),
        ("(Ann>", ["<", ">"], ["Ann"], None),
        ("<Ann>more", ["<", ">"], ["Ann"], None),
    ],
)
def test_texts_are_located_with_their_outer_white_space_or_without(
    whole: str, gaps: list[str], texts: list[str], places: list[tuple[int, int]] | None
) -> None:
    assert locate_texts(whole, gaps, texts) == places


def test_token_ranges_lie_exactly_between_the_gaps() -> None:
    whole, gap_ids = encode("<Ann|Ben>"), [[ord("<")], [ord("|")], [ord(">")]]
    assert token_ranges(whole, gap_ids, [(1, 4), (5, 8)]) == [(1, 4), (5, 8)]
    assert token_ranges(whole, [[ord("(")], *gap_ids[1:]], [(1, 4), (5, 8)]) is None
    assert token_ranges(whole, gap_ids, [(1, 3), (5, 8)]) is None


def test_offsets_become_those_of_the_text() -> None:
    assert offsets_in_text([(1, 2), (2, 4)], (1, 4), " Ann", "<Ann>") == ((1, 2), (2, 4))
    assert offsets_in_text([(1, 4)], None, "Ann", "<ANN>") == ((0, 3),)
    assert offsets_in_text([], None, "Ann", "<Ann>") == ()
