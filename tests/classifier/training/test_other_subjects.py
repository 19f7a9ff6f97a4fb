from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.classifier.names.tokens import name_tokens
from lethe.classifier.training.other_subjects import about_somebody_else, sorted_names

WORDS = "where did the old captain keep seven brass lamps in winter and who sold them".split()
NAMES = ["Zorin Quill", "Quill", "Zorin", "Ysra Tamlin"]


@given(
    st.lists(st.sampled_from(WORDS), max_size=8),
    st.sampled_from(NAMES),
    st.sampled_from([str, str.upper, str.lower]),
    st.sampled_from(["", "'s", ",", "?"]),
    st.lists(st.sampled_from(WORDS), max_size=8),
    st.integers(0, 1000),
)
def test_all_other_words_stay_and_no_own_name(
    before: list[str], name: str, case: type[str], after_name: str, after: list[str], seed: int
) -> None:
    start, end = "".join(f"{word} " for word in before), "".join(f" {word}" for word in after)
    text = f"{start}{case(name)}{after_name}{end}"
    other = about_somebody_else(text, NAMES, np.random.default_rng(seed))
    assert other.startswith(start) and other.endswith(f"{after_name}{end}")
    replaced = set(name_tokens(other.removeprefix(start).removesuffix(f"{after_name}{end}")))
    assert replaced and not replaced & {"zorin", "quill", "ysra", "tamlin"}


def test_other_names_of_the_text_are_exchanged_too() -> None:
    other = about_somebody_else("Did Zorin Quill meet Ysra Tamlin?", ["Zorin Quill"], np.random.default_rng(0))
    assert re.fullmatch(r"Did .+ meet .+\?", other) and "Tamlin" not in other and "Quill" not in other


def test_numbers_keep_their_length() -> None:
    other = about_somebody_else("the phone number 555-0192 and 7", [], np.random.default_rng(0))
    assert re.fullmatch(r"the phone number \d{3}-\d{4} and \d", other) and "555-0192" not in other


@pytest.mark.parametrize("text", ["how do I boil an egg?", "Where did I leave it?", "", "…"])
def test_a_text_without_name_and_number_stays_as_it_is(text: str) -> None:
    assert about_somebody_else(text, ["Zorin Quill", ""], np.random.default_rng(0)) == text


def test_a_part_of_another_word_is_no_name() -> None:
    text = "the quills and the Quillers' tranquillity"
    assert about_somebody_else(text, ["quill"], np.random.default_rng(0)).startswith("the quills and the ")


def test_a_chinese_name_is_exchanged_inside_its_sentence() -> None:
    other = about_somebody_else("欧阳泽霖出生在哪里？", ["欧阳泽霖"], np.random.default_rng(0))
    assert other.endswith("出生在哪里？") and "欧阳泽霖" not in other and len(other) > len("出生在哪里？")


def test_one_seed_gives_one_text_and_seeds_differ() -> None:
    text = "Where did Zorin Quill live in 1961?"
    others = [about_somebody_else(text, ["Zorin Quill"], np.random.default_rng(seed)) for seed in range(20)]
    assert others == [about_somebody_else(text, ["Zorin Quill"], np.random.default_rng(seed)) for seed in range(20)]
    assert len(set(others)) > 15


def test_names_are_in_a_fixed_order_and_capitalised() -> None:
    assert {"Peter", "Anna"} <= set(sorted_names("first")) and "Jones" in sorted_names("last")
    assert list(sorted_names("last")) == sorted(sorted_names("last"))
