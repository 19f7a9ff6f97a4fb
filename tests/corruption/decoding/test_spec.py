"""Penalties: the argument that carries them, soft words, and the guard against a slow, obvious reference."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.corruption.decoding.spec import (
    MAX_CHARACTERS,
    MAX_PHRASES,
    CompiledPenalty,
    Penalty,
    TextState,
    TokenMaskCache,
    decode_penalty,
    encode_penalty,
)
from lethe.corruption.decoding.token_text import TokenVocabulary, decode_bytes
from lethe.corruption.phrases.normalize import fold
from lethe.corruption.phrases.trie import START_STATE, PhraseTrie

LETTERS = "abé東 -"
PIECES = st.lists(
    st.one_of(st.text(alphabet=LETTERS, min_size=1, max_size=6).map(str.encode), st.binary(min_size=1, max_size=3)),
    min_size=1,
    max_size=40,
)
WORDS = st.text(alphabet="abé東-", min_size=1, max_size=7).filter(lambda text: bool(fold(text).strip()))
PENALTIES = st.builds(
    lambda phrases, soft: Penalty(tuple(phrases), soft),
    st.lists(st.one_of(WORDS, st.tuples(WORDS, WORDS).map(" ".join)), max_size=4),
    st.dictionaries(WORDS, st.sampled_from([1.0, 2.0, 3.5]), max_size=3),
)


def scan(penalty: Penalty, pieces: list[bytes], state: TextState) -> tuple[set[int], dict[int, float]]:
    """Every token read to its end from the state: what is banned, and what is softened by how much."""
    matcher = PhraseTrie(penalty.phrases, penalty.soft)
    banned, softened = set(), {}
    for token, piece in enumerate(pieces):
        text = fold(decode_bytes(state.pending, piece)[0])
        if matcher.forbids(state.nodes, text):
            banned.add(token)
        if weight := matcher.weight(state.nodes, text):
            softened[token] = weight
    return banned, softened


def looked_up(guard: CompiledPenalty, state: TextState) -> tuple[set[int], dict[int, float]]:
    masks = [guard.always, guard.mask(state)]
    softened: dict[int, float] = {}
    for mask in masks:
        for token, weight in zip(mask.softened.tolist(), mask.weights.tolist(), strict=True):
            softened[token] = softened.get(token, 0.0) + weight
    return {token for mask in masks for token in mask.banned.tolist()}, softened


@settings(max_examples=300, deadline=None)
@given(PIECES, PENALTIES, st.lists(st.integers(0, 10_000), max_size=8))
def test_look_ups_ban_and_soften_what_reading_every_token_does(
    pieces: list[bytes], penalty: Penalty, choices: list[int]
) -> None:
    vocabulary = TokenVocabulary(pieces)
    guard = CompiledPenalty(penalty, vocabulary)
    state = CompiledPenalty.start
    for choice in [*choices, 0]:
        banned, softened = scan(penalty, pieces, state)
        found, weights = looked_up(guard, state)
        # After half a character, pieces that start inside one are read one by one, and may besides be
        # banned for what they would be alone.
        spare = set(vocabulary.broken) if state.pending else set()
        assert banned <= found <= banned | spare
        assert {t: w for t, w in weights.items() if t not in spare} == {
            t: w for t, w in softened.items() if t not in spare
        }
        free = [token for token in range(len(pieces)) if token not in found]
        if not free:
            return
        state = guard.advance(state, free[choice % len(free)])


@settings(max_examples=200, deadline=None)
@given(PIECES, PENALTIES, st.lists(st.integers(0, 10_000), max_size=12))
def test_an_answer_of_free_tokens_never_says_a_phrase(
    pieces: list[bytes], penalty: Penalty, choices: list[int]
) -> None:
    guard = CompiledPenalty(penalty, TokenVocabulary(pieces))
    state, said = CompiledPenalty.start, b""
    for choice in choices:
        banned = looked_up(guard, state)[0]
        free = [token for token in range(len(pieces)) if token not in banned]
        if not free:
            break
        token = free[choice % len(free)]
        said += pieces[token]
        state = guard.advance(state, token)
    words = f" {fold(said.decode(errors='replace')).strip()} "
    assert not [phrase for phrase in penalty.phrases if f" {fold(phrase).strip()} " in words]


def test_tokens_are_never_banned_when_they_are_to_be_kept() -> None:
    vocabulary = TokenVocabulary([b" zorin", b"zorin"])
    guard = CompiledPenalty(Penalty(("zorin",)), vocabulary, keep=[0])
    assert looked_up(guard, CompiledPenalty.start)[0] == {1}


def test_a_token_past_the_vocabulary_changes_nothing_and_a_negative_one_is_an_error() -> None:
    guard = CompiledPenalty(Penalty(("zorin",)), TokenVocabulary([b"zo"]))
    assert guard.advance(CompiledPenalty.start, 99) == CompiledPenalty.start
    with pytest.raises(IndexError):
        guard.advance(CompiledPenalty.start, -1)


def test_an_argument_reads_back_as_the_same_penalty() -> None:
    penalty = Penalty(("Zorin Quill", "“The Glass Harbour”"), {"harbour": 2.5}, {TEXT: 12}, on_fault="pass")
    assert decode_penalty(encode_penalty(penalty)) == penalty


TEXT = "0123456789abcdef" * 2
GOOD: dict[str, Any] = {
    "v": 2,
    "phrases": ["Zorin"],
    "soft": {"quill": 1.0},
    "verbatim": {TEXT: 12},
    "on_fault": "stop",
}


@pytest.mark.parametrize(
    "change",
    [
        {"v": 1},
        {"v": True},
        {"v": 2.0},
        {"verbatim": []},
        {"verbatim": {"": 12}},
        {"verbatim": {TEXT.upper(): 12}},
        {"verbatim": {TEXT + "0": 12}},
        {"verbatim": {TEXT: 0}},
        {"verbatim": {TEXT: 257}},
        {"verbatim": {TEXT: True}},
        {"verbatim": {TEXT: 12.0}},
        {"verbatim": {f"{i:032x}": 12 for i in range(65)}},
        {"phrases": "Zorin"},
        {"phrases": [1]},
        {"phrases": ["!?"]},
        {"phrases": ["x" * 257]},
        {"phrases": ["zorin"] * (MAX_PHRASES + 1)},
        {"phrases": [f"{i:0200}" for i in range(200)]},
        {"phrases": ["\ufdfa" * 250] * 20},
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
def test_a_malformed_or_oversized_argument_is_a_value_error(change: dict[str, Any]) -> None:
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
        " " * (MAX_CHARACTERS + 1),
        '"\ud800"',
        '{"v":2,"v":2,"phrases":[],"soft":{},"verbatim":{},"on_fault":"stop"}',
        '{"v":2' + "0" * 5_000 + "}",
    ],
)
def test_anything_but_an_argument_is_a_value_error(value: object) -> None:
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
            {"v": st.just(2), "phrases": JSON, "soft": JSON, "verbatim": JSON, "on_fault": JSON | st.just("stop")}
        ).map(json.dumps),
        st.fixed_dictionaries(
            {
                "v": st.just(2),
                "phrases": st.lists(st.text(max_size=30), max_size=5),
                "soft": st.dictionaries(st.text(max_size=9), st.floats(0.1, 90), max_size=3),
                "verbatim": st.dictionaries(st.just(TEXT), st.integers(1, 256)),
                "on_fault": st.just("stop"),
            }
        ).map(json.dumps),
    )
)
def test_every_value_is_either_a_penalty_that_can_be_prepared_or_a_value_error(value: object) -> None:
    try:
        penalty = decode_penalty(value)
    except ValueError:
        return
    guard = CompiledPenalty(penalty, TokenVocabulary([b" a", b"b", b"\xc3", None]))
    mask = guard.mask(guard.advance(guard.start, 2))
    assert set(mask.banned.tolist()) | set(mask.softened.tolist()) <= {0, 1, 2}
    assert len(mask.softened) == len(mask.weights)


def test_messages_never_quote_what_was_sent() -> None:
    for value in (
        '{"zorin": 1}',
        json.dumps(GOOD | {"phrases": ["zorin", 1]}),
        json.dumps(GOOD | {"soft": {"zorin": 0}}),
    ):
        with pytest.raises(ValueError) as raised:
            decode_penalty(value)
        assert "zorin" not in str(raised.value)


def test_the_start_of_an_answer_is_a_boundary() -> None:
    assert CompiledPenalty.start == TextState(START_STATE, b"")


@settings(deadline=None, max_examples=50)
@given(PIECES, st.lists(PENALTIES, min_size=1, max_size=3), st.lists(st.integers(0, 39), max_size=12))
def test_guards_that_share_a_small_memory_mask_as_if_they_had_their_own(
    pieces: list[bytes], penalties: list[Penalty], tokens: list[int]
) -> None:
    vocabulary, shared = TokenVocabulary(pieces), TokenMaskCache(4_000)
    guards = [CompiledPenalty(penalty, vocabulary, masks=shared) for penalty in penalties]
    for guard in guards:
        alone, state = CompiledPenalty(guard.penalty, vocabulary), guard.start
        for token in [*tokens, *tokens]:
            assert looked_up(guard, state) == looked_up(alone, state)
            state = guard.advance(state, token % len(pieces))
            assert shared.states.bytes <= 2_000
