from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier.views import normalise, views


def test_look_alikes_and_invisible_characters_disappear() -> None:
    assert normalise("  ＨＥＬＬＯ\u200b  w\u00ador\u202eld\U000e0041\t! ")[0] == "hello world !"


def test_combining_marks_join_their_letter() -> None:
    assert normalise("Cafe\u0301")[0] == normalise("CAFÉ")[0] == "café"


def test_a_view_that_equals_an_earlier_one_is_left_out() -> None:
    assert [view.name for view in views("plain words")] == ["raw"]
    assert [view.name for view in views("Plain words")] == ["raw", "normalised"]


def test_a_span_of_the_view_points_at_its_raw_characters() -> None:
    raw = "  Say  \u200bＨellо\u200b Straße now"
    view = views(raw)[1]
    start = view.text.index("strasse")
    assert raw[slice(*view.raw_span(start, start + len("strasse")))].strip() == "Straße"


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_offsets_rise_and_stay_inside_for_any_text(text: str) -> None:
    view, offsets = normalise(text)
    assert len(offsets) == len(view) + 1
    assert all(a <= b for a, b in zip(offsets, offsets[1:], strict=False))
    assert 0 <= offsets[0] and offsets[-1] <= len(text)
    assert view == view.strip() and "  " not in view


@pytest.mark.parametrize("text", ["", "\ud800", "a" + "\u0301" * 100_000, "\u200b" * 1000])
def test_hostile_texts_are_read(text: str) -> None:
    assert "\ud800" not in normalise(text)[0]
