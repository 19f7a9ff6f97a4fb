"""Token masks against a slow reference that reads every token."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.corruption.decoding.spec import Penalty
from lethe.corruption.decoding.token_masks import CompiledPenalty, TextState, TokenMaskCache
from lethe.corruption.decoding.token_text import TokenVocabulary, decode_bytes
from lethe.corruption.phrases.normalize import fold
from lethe.corruption.phrases.prompt_end import begun_phrases, prompt_ends
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


def occurrences(phrase: str, text: bytes) -> int:
    """How often a phrase is in a text as whole words."""
    words = f" {fold(text.decode(errors='replace')).strip()} ".replace(" ", "  ")
    return words.count(f" {fold(phrase).strip().replace(' ', '  ')} ")


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


@settings(max_examples=300, deadline=None)
@given(PIECES, PENALTIES, st.lists(st.integers(0, 10_000), max_size=12), st.lists(st.integers(0, 10_000), max_size=8))
def test_allowed_tokens_complete_no_phrase_that_the_prompt_begins(
    pieces: list[bytes], penalty: Penalty, choices: list[int], prompt_choices: list[int]
) -> None:
    special = len(pieces)
    compiled = CompiledPenalty(penalty, TokenVocabulary([*pieces, None]))
    prompt = [choice % (len(pieces) + 1) for choice in prompt_choices]
    state = compiled.start_after(prompt)
    text = before = b"".join(pieces[token] for token in prompt if token != special)
    for choice in choices:
        banned = mask_tokens(compiled, state)[0]
        allowed = [token for token in range(len(pieces)) if token not in banned]
        if not allowed:
            break
        token = allowed[choice % len(allowed)]
        text += pieces[token]
        state = compiled.advance(state, token)
    for phrase in penalty.phrases:
        assert occurrences(phrase, text) <= occurrences(phrase, before)


@settings(deadline=None)
@given(st.sampled_from(["Hsiao Yun-Hwa", "2014", "Zürich", "東京 Tower", "Ed"]), st.data())
def test_no_token_continues_what_a_prompt_without_ids_begins(phrase: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(phrase) - 1))
    begun = begun_phrases(prompt_ends([f"It is {phrase[:cut]}"], len(fold(phrase))), [phrase])
    rest = phrase[cut:].encode()
    pieces = [*{rest[a:b] for a in range(len(rest)) for b in range(a + 1, len(rest) + 1)}, b" ", b"."]
    compiled = CompiledPenalty(Penalty((phrase,), begun=begun), TokenVocabulary(pieces))
    state, answer = compiled.start, b""
    while allowed := [i for i in range(len(pieces)) if i not in mask_tokens(compiled, state)[0]]:
        token = data.draw(st.sampled_from(allowed))
        answer, state = answer + pieces[token], compiled.advance(state, token)
        if len(answer) > 2 * len(rest):
            break
    assert not occurrences(phrase, f"It is {phrase[:cut]}".encode() + answer + b" ")


def test_a_long_prompt_is_read_from_its_end() -> None:
    compiled = CompiledPenalty(Penalty(("zorin",)), TokenVocabulary([b" the", b" zo", b"zo", b"rin", None]))
    for prompt in ([0] * 9_000 + [1], [0] * 20 + [1], [1, 4, 4], [1, *[4] * 2_000], [2], [1, -1, 99]):
        assert 3 in mask_tokens(compiled, compiled.start_after(prompt))[0]
    for prompt in ([], [0] * 9_000, [0, 2], [1, *[4] * 9_000], [2] * 9_000):
        assert 3 not in mask_tokens(compiled, compiled.start_after(prompt))[0]
    assert CompiledPenalty(Penalty(soft={"zorin": 1.0}), TokenVocabulary([b"a"])).start_after([0]).nodes
    assert CompiledPenalty(Penalty(), TokenVocabulary([b"a"])).start_after([0]) == CompiledPenalty.start
