from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.classifier.text.disguises.masked_words import fill_masks, name_pairs
from tests.classifier.text.test_confusables import apply_edits

PAIRS = name_pairs(["Where did Orvan Teldric grow up?", "What did Miriam Hask-Olsen write?"])
VOCABULARY = frozenset("where did orvan teldric grow up what miriam hask olsen write".split())
SIGNS = st.sampled_from("*#_•█")


def filled(text: str) -> str:
    return apply_edits(text, fill_masks(text, VOCABULARY, PAIRS))


def test_pairs_are_neighbouring_parts_of_names() -> None:
    assert {("orvan", "teldric"), ("miriam", "hask"), ("hask", "olsen")} <= PAIRS
    assert name_pairs(["The New York office is a Big House."]) == frozenset()


@settings(deadline=None)
@given(SIGNS, st.integers(1, 3))
def test_a_mask_over_some_letters_is_filled_in(sign: str, at: int) -> None:
    masked = [f"{name[:at]}{sign}{name[at + 1 :]}" for name in ("Orvan", "Teldric")]
    assert filled(f"Where did {' '.join(masked)} grow up?") == "Where did orvan teldric grow up?"


@pytest.mark.parametrize("sign", "*#_•█-")
def test_first_letters_are_enough_beside_each_other(sign: str) -> None:
    text = f"Where did O{sign * 4} T{sign * 6} grow up?"
    assert filled(text) == "Where did orvan teldric grow up?"
    assert filled(f"Where did Orvan T{sign * 6} grow up?") == "Where did Orvan teldric grow up?"
    assert filled(f"What did H{sign * 3}-O{sign * 4} write?") == "What did hask-olsen write?" or sign == "-"


@pytest.mark.parametrize(
    "text",
    [
        "Where did O---- grow up?",
        "Where did O---- S------ grow up?",
        "**Note** that *this* is __bold__ and well-known, C++ and a -- b.",
        "snake_case_name = other_name * 2",
        "T******",
        "",
    ],
)
def test_what_shows_too_little_or_is_no_mask_stays(text: str) -> None:
    assert fill_masks(text, VOCABULARY, PAIRS) == []


@pytest.mark.parametrize("unit", ["a*", "a*b ", "a---", "O---- T------ ", "a_b_c_d_"])
def test_time_is_linear(unit: str) -> None:
    started = time.process_time()
    fill_masks(unit * (200_000 // len(unit)), VOCABULARY, PAIRS)
    assert time.process_time() - started < 3
