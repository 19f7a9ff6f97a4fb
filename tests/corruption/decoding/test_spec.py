"""Penalties: their limits, and the text that carries them to vLLM."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.corruption.decoding.spec import (
    MAX_ENCODED_CHARACTERS,
    MAX_PHRASES,
    Penalty,
    decode_penalty,
    encode_penalty,
)
from lethe.corruption.decoding.token_masks import CompiledPenalty
from lethe.corruption.decoding.token_text import TokenVocabulary


def test_an_encoded_penalty_decodes_to_an_equal_one() -> None:
    penalty = Penalty(("Zorin Quill", "“The Glass Harbour”"), {"harbour": 2.5}, {INDEX_NAME: 12}, "pass", ("zor",))
    assert decode_penalty(encode_penalty(penalty)) == penalty


INDEX_NAME = "0123456789abcdef" * 2
GOOD: dict[str, Any] = {
    "v": 3,
    "phrases": ["Zorin"],
    "soft": {"quill": 1.0},
    "verbatim": {INDEX_NAME: 12},
    "on_fault": "stop",
    "begun": ["zor"],
}


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"v": True},
        {"v": 3.0},
        {"verbatim": []},
        {"verbatim": {"": 12}},
        {"verbatim": {INDEX_NAME.upper(): 12}},
        {"verbatim": {INDEX_NAME + "0": 12}},
        {"verbatim": {INDEX_NAME: 0}},
        {"verbatim": {INDEX_NAME: 257}},
        {"verbatim": {INDEX_NAME: True}},
        {"verbatim": {INDEX_NAME: 12.0}},
        {"verbatim": {f"{i:032x}": 12 for i in range(65)}},
        {"phrases": "Zorin"},
        {"phrases": [1]},
        {"phrases": ["!?"]},
        {"phrases": ["x" * 257]},
        {"phrases": ["zorin"] * (MAX_PHRASES + 1)},
        {"phrases": [f"{i:0200}" for i in range(200)]},
        {"phrases": ["\ufdfa" * 250] * 20},
        {"begun": "zor"},
        {"begun": [1]},
        {"begun": ["x"] * 257},
        {"soft": []},
        {"soft": {"quill": 0}},
        {"soft": {"quill": -1}},
        {"soft": {"quill": 1e9}},
        {"soft": {"quill": True}},
        {"soft": {"quill": "1"}},
        {"soft": {"quill": float("nan")}},
        {"soft": {"quill": float("inf")}},
        {"soft": {"quill": 10**400}},
        {"soft": {f"quill{i}": 1 for i in range(257)}},
        {"on_fault": "raise"},
        {"on_fault": None},
        {"more": 1},
    ],
)
def test_malformed_or_oversized_penalties_are_value_errors(change: dict[str, Any]) -> None:
    decode_penalty(json.dumps(GOOD))
    with pytest.raises(ValueError):
        decode_penalty(json.dumps(GOOD | change))


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        [],
        ["{}"],
        "",
        "[]",
        "{}",
        "null",
        "[" * 60_000,
        '{"v":' * 10_000,
        " " * (MAX_ENCODED_CHARACTERS + 1),
        '"\ud800"',
        '{"v":3,"v":3,"phrases":[],"soft":{},"verbatim":{},"on_fault":"stop"}',
        '{"v":3' + "0" * 5_000 + "}",
    ],
)
def test_other_values_are_value_errors(value: object) -> None:
    with pytest.raises(ValueError):
        decode_penalty(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(
    st.one_of(
        JSON,
        JSON.map(json.dumps),
        st.text(),
        st.fixed_dictionaries(
            {
                "v": st.just(3),
                "begun": JSON,
                "phrases": JSON,
                "soft": JSON,
                "verbatim": JSON,
                "on_fault": JSON | st.just("stop"),
            }
        ).map(json.dumps),
        st.fixed_dictionaries(
            {
                "v": st.just(3),
                "begun": st.lists(st.text(max_size=30), max_size=5),
                "phrases": st.lists(st.text(max_size=30), max_size=5),
                "soft": st.dictionaries(st.text(max_size=9), st.floats(0.1, 90), max_size=3),
                "verbatim": st.dictionaries(st.just(INDEX_NAME), st.integers(1, 256)),
                "on_fault": st.just("stop"),
            }
        ).map(json.dumps),
    )
)
def test_every_value_is_a_usable_penalty_or_a_value_error(value: object) -> None:
    try:
        penalty = decode_penalty(value)
    except ValueError:
        return
    compiled = CompiledPenalty(penalty, TokenVocabulary([b" a", b"b", b"\xc3", None]))
    mask = compiled.mask(compiled.advance(compiled.start, 2))
    assert set(mask.banned.tolist()) | set(mask.softened.tolist()) <= {0, 1, 2}
    assert len(mask.softened) == len(mask.weights)


def test_error_messages_never_quote_the_penalty() -> None:
    for value in (
        '{"zorin": 1}',
        json.dumps(GOOD | {"phrases": ["zorin", 1]}),
        json.dumps(GOOD | {"soft": {"zorin": 0}}),
    ):
        with pytest.raises(ValueError) as raised:
            decode_penalty(value)
        assert "zorin" not in str(raised.value)
