"""Token masks against a slow reference that reads every token."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.corruption.decoding.spec import Penalty
from lethe.corruption.decoding.token_masks import CompiledPenalty, TextState, TokenMaskCache
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
    """Return banned ids and softened ids with weights, by reading every token from the state."""
    trie = PhraseTrie(penalty.phrases, penalty.soft)
    banned, softened = set(), {}
    for token, piece in enumerate(pieces):
        text = fold(decode_bytes(state.pending, piece)[0])
        if trie.forbids(state.nodes, text):
            banned.add(token)
        if weight := trie.weight(state.nodes, text):
            softened[token] = weight
    return banned, softened


def mask_tokens(compiled: CompiledPenalty, state: TextState) -> tuple[set[int], dict[int, float]]:
    masks = [compiled.constant_mask, compiled.mask(state)]
    softened: dict[int, float] = {}
    for mask in masks:
        for token, weight in zip(mask.softened.tolist(), mask.weights.tolist(), strict=True):
            softened[token] = softened.get(token, 0.0) + weight
    return {token for mask in masks for token in mask.banned.tolist()}, softened


@settings(max_examples=300, deadline=None)
@given(PIECES, PENALTIES, st.lists(st.integers(0, 10_000), max_size=8))
def test_masks_equal_those_of_reading_every_token(pieces: list[bytes], penalty: Penalty, choices: list[int]) -> None:
    vocabulary = TokenVocabulary(pieces)
    compiled = CompiledPenalty(penalty, vocabulary)
    state = CompiledPenalty.start
    for choice in [*choices, 0]:
        banned, softened = scan(penalty, pieces, state)
        ids, weights = mask_tokens(compiled, state)
        # Inside a character, continuation tokens are read one by one, and may also be banned for the text that
        # they have by themselves.
        tolerated = set(vocabulary.continuation_tokens) if state.pending else set()
        assert banned <= ids <= banned | tolerated
        assert {t: w for t, w in weights.items() if t not in tolerated} == {
            t: w for t, w in softened.items() if t not in tolerated
        }
        allowed = [token for token in range(len(pieces)) if token not in ids]
        if not allowed:
            return
        state = compiled.advance(state, allowed[choice % len(allowed)])


@settings(max_examples=200, deadline=None)
@given(PIECES, PENALTIES, st.lists(st.integers(0, 10_000), max_size=12))
def test_an_answer_of_allowed_tokens_contains_no_phrase(
    pieces: list[bytes], penalty: Penalty, choices: list[int]
) -> None:
    compiled = CompiledPenalty(penalty, TokenVocabulary(pieces))
    state, answer = CompiledPenalty.start, b""
    for choice in choices:
        banned = mask_tokens(compiled, state)[0]
        allowed = [token for token in range(len(pieces)) if token not in banned]
        if not allowed:
            break
        token = allowed[choice % len(allowed)]
        answer += pieces[token]
        state = compiled.advance(state, token)
    words = f" {fold(answer.decode(errors='replace')).strip()} "
    assert not [phrase for phrase in penalty.phrases if f" {fold(phrase).strip()} " in words]


def test_end_tokens_are_never_banned() -> None:
    vocabulary = TokenVocabulary([b" zorin", b"zorin"])
    compiled = CompiledPenalty(Penalty(("zorin",)), vocabulary, never_ban=[0])
    assert mask_tokens(compiled, CompiledPenalty.start)[0] == {1}


def test_tokens_past_the_vocabulary_are_ignored_negative_ones_raise() -> None:
    compiled = CompiledPenalty(Penalty(("zorin",)), TokenVocabulary([b"zo"]))
    assert compiled.advance(CompiledPenalty.start, 99) == CompiledPenalty.start
    with pytest.raises(IndexError):
        compiled.advance(CompiledPenalty.start, -1)


def test_an_answer_starts_at_a_word_boundary() -> None:
    assert CompiledPenalty.start == TextState(START_STATE, b"")


@settings(deadline=None, max_examples=50)
@given(PIECES, st.lists(PENALTIES, min_size=1, max_size=3), st.lists(st.integers(0, 39), max_size=12))
def test_penalties_that_share_a_small_cache_mask_as_with_their_own(
    pieces: list[bytes], penalties: list[Penalty], tokens: list[int]
) -> None:
    vocabulary, shared = TokenVocabulary(pieces), TokenMaskCache(4_000)
    compiled_penalties = [CompiledPenalty(penalty, vocabulary, cache=shared) for penalty in penalties]
    for compiled in compiled_penalties:
        alone, state = CompiledPenalty(compiled.penalty, vocabulary), compiled.start
        for token in [*tokens, *tokens]:
            assert mask_tokens(compiled, state) == mask_tokens(alone, state)
            state = compiled.advance(state, token % len(pieces))
            assert shared.phrases.bytes <= 2_000
