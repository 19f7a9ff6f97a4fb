"""The token ids that a penalty forbids, and those it makes less likely, from the state of one answer.

`CompiledPenalty` is a penalty prepared for one vocabulary. It knows no tensors and no vLLM. Forbidden phrases and
soft words follow GUARD (arXiv:2505.13312), matched on text instead of token sequences (`corruption/phrases/trie.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lethe.corruption.byte_cache import ByteCache
from lethe.corruption.decoding.copy_limit import CopyLimiter, RecentLetters
from lethe.corruption.decoding.spec import Penalty
from lethe.corruption.decoding.suffix_index import SuffixIndex
from lethe.corruption.decoding.token_text import SortedTexts, TokenIds, TokenVocabulary, decode_bytes
from lethe.corruption.phrases.normalize import SEPARATOR, count_letters, fold
from lethe.corruption.phrases.trie import BOUNDARY_NODE, START_STATE, PhraseContinuation, PhraseTrie

# Bytes of all cached masks in one engine process. Chosen: one mask may hold half a vocabulary (512 KiB for 128,000
# tokens), so half of this is room for over a hundred of the largest, and all of it is small beside an engine's memory.
MAX_MASK_BYTES = 128 * 2**20
# Tokens at the end of a prompt that are read for the beginning of a phrase. Chosen: any spelling of a phrase with a
# token for each letter fits in many times; reading them takes about a millisecond.
MAX_PROMPT_TOKENS = 4096


class TextState(NamedTuple):
    """The state of an answer's text: all that decides which tokens may follow.

    nodes: the trie nodes of the open matches. pending: the bytes of an incomplete character at the end.
    recent: the letters of the newest tokens, as many as the copy limits need.
    """

    nodes: tuple[int, ...]
    pending: bytes
    recent: RecentLetters = ()


@dataclass(frozen=True)
class TokenMask:
    """Token ids to ban (logit −inf), and ids to soften, with the logits to subtract. All ids sorted and unique."""

    banned: TokenIds
    softened: TokenIds
    weights: NDArray[np.float32]

    def __bool__(self) -> bool:
        return bool(len(self.banned) or len(self.softened))

    @property
    def nbytes(self) -> int:
        return self.banned.nbytes + self.softened.nbytes + self.weights.nbytes


class TokenMaskCache:
    """Masks by state, for all compiled penalties of one vocabulary together, with a limit in bytes."""

    def __init__(self, max_bytes: int = MAX_MASK_BYTES) -> None:
        # Half for the masks of phrases, half for those of copy limits.
        self.phrases: ByteCache[TokenMask] = ByteCache(max_bytes // 2, lambda mask: mask.nbytes)
        self.copies: ByteCache[TokenIds] = ByteCache(max_bytes // 2, lambda ids: ids.nbytes)


class CompiledPenalty:
    """A penalty prepared for one vocabulary. All answers with the same penalty share it.

    start: the state of an empty answer; it holds the phrases that the prompt has begun (`Penalty.begun`).
    constant_mask: holds in every state; it covers tokens that contain a forbidden phrase inside them.
    `mask(state)` returns what a state adds to it.
    """

    start: TextState = TextState(START_STATE, b"")

    def __init__(
        self,
        penalty: Penalty,
        vocabulary: TokenVocabulary,
        *,
        never_ban: Collection[int] = (),
        protected: Sequence[tuple[SuffixIndex, int]] = (),
        cache: TokenMaskCache | None = None,
    ) -> None:
        """never_ban: the ids that end the answer. protected: the indexes that `penalty.verbatim` names, with limits.

        cache: shared by the compiled penalties of one vocabulary.
        """
        cache = cache or TokenMaskCache()
        self.penalty = penalty
        self._vocabulary = vocabulary
        self._trie = PhraseTrie(penalty.phrases, penalty.soft)
        if penalty.begun:
            self.start = TextState(self._trie.start_after(penalty.begun), b"")
        self._longest = max((len(fold(text)) for text in (*penalty.phrases, *penalty.soft)), default=0)
        self._never_ban = np.array(sorted(never_ban), dtype=np.int64)
        self._limiter = (
            CopyLimiter(protected, vocabulary, never_ban=never_ban, cache=cache.copies) if protected else None
        )
        self._cache = cache.phrases
        # First part of the cache keys: an object, so that no other penalty can have the same one.
        self._cache_key = object()
        inside, from_boundary = _TokenMatches(), _TokenMatches()
        for continuation in self._trie.continuations(BOUNDARY_NODE, vocabulary.longest):
            inside.add_continuation(vocabulary.inner, continuation.text, continuation)
            from_boundary.add_continuation(vocabulary.whole, continuation.text, continuation)
        self._matches_by_node = {BOUNDARY_NODE: from_boundary}
        self.constant_mask = self._build_mask([inside])
        constant = zip(self.constant_mask.softened.tolist(), self.constant_mask.weights.tolist(), strict=True)
        self._constant_weights: dict[int, float] = dict(constant)

    def advance(self, state: TextState, token: int) -> TextState:
        """Return the state after one more token. Raises IndexError for a negative id."""
        if token < 0:
            raise IndexError(f"token {token}")
        if token >= len(self._vocabulary):
            return state  # the logits are wider than the vocabulary; such an id has no text
        if state.pending:
            text, pending = decode_bytes(state.pending, self._vocabulary.pieces[token])
            folded = fold(text)
        else:
            folded, pending = self._vocabulary.texts[token], self._vocabulary.incomplete.get(token, b"")
        nodes = self._trie.step(state.nodes, folded)
        if self._limiter is None or not self._vocabulary.pieces[token]:
            return TextState(nodes, pending, state.recent)
        recent = self._limiter.advance(state.recent, folded, inside_character=bool(state.pending))
        return TextState(nodes, pending, recent)

    def start_after(self, prompt: Sequence[int]) -> TextState:
        """Return the state of an empty answer to a prompt of these token ids.

        The answer may begin a phrase, or continue one that the prompt has begun. Special tokens, which add no text,
        count as nothing and as a separator.
        """
        if not self._longest or not prompt:
            return self.start
        tokens, is_whole = self._end_of_prompt(prompt)
        nodes, pending = set(self.start.nodes), b""
        for separates in (False, True):
            state = TextState(START_STATE if is_whole else (), b"")
            for token in tokens:
                if separates and not self._vocabulary.pieces[token]:
                    state = TextState(self._trie.step(state.nodes, SEPARATOR), b"")
                else:
                    state = self.advance(state, token)._replace(recent=())
            nodes.update(state.nodes)
            pending = pending or state.pending
        return TextState(tuple(sorted(nodes)), pending)

    def _end_of_prompt(self, prompt: Sequence[int]) -> tuple[list[int], bool]:
        """The last tokens of a prompt that can hold a phrase, and whether they are the whole prompt."""
        tokens: list[int] = []
        letters = 0
        for token in reversed(prompt[-MAX_PROMPT_TOKENS:]):
            if letters > self._longest:
                break
            if 0 <= token < len(self._vocabulary):
                tokens.append(token)
                letters += count_letters(self._vocabulary.texts[token])
        else:
            return tokens[::-1], len(prompt) <= MAX_PROMPT_TOKENS
        return tokens[::-1], False

    def mask(self, state: TextState) -> TokenMask:
        """Return what is banned and softened in this state besides `constant_mask`."""
        key = (self._cache_key, state.nodes, state.pending)
        mask = self._cache.get(key)
        if mask is None:
            mask = self._phrase_mask(state)
            self._cache.put(key, mask)
        if self._limiter is not None and (followers := self._limiter.forbidden_letters(state.recent)):
            copying = self._limiter.banned(followers, state.pending)
            banned = np.union1d(mask.banned, copying) if len(mask.banned) else copying
            return TokenMask(banned, mask.softened, mask.weights)
        return mask

    def _phrase_mask(self, state: TextState) -> TokenMask:
        if not state.pending:
            return self._build_mask([self._matches_from(node) for node in state.nodes], additional=True)
        # Only a token that starts inside a character can complete the pending one. Any other token turns it into a
        # replacement character, which separates words.
        separated = self._trie.step(state.nodes, SEPARATOR)
        matches = [self._matches_from(node) for node in separated]
        return self._build_mask([*matches, self._matches_completing(state)], additional=True)

    def _matches_completing(self, state: TextState) -> _TokenMatches:
        """The tokens that complete the pending character and reach a forbidden or penalised place."""
        matches = _TokenMatches()
        for token in self._vocabulary.continuation_tokens:
            text = fold(decode_bytes(state.pending, self._vocabulary.pieces[token])[0])
            if self._trie.forbids(state.nodes, text):
                matches.banned.append(np.array([token], dtype=np.int64))
            if weight := self._trie.weight(state.nodes, text):
                matches.softened.append((np.array([token], dtype=np.int64), weight))
        return matches

    def _matches_from(self, node: int) -> _TokenMatches:
        """The tokens that lead from one open match to a forbidden or penalised place."""
        matches = self._matches_by_node.get(node)
        if matches is None:
            matches = self._matches_by_node[node] = _TokenMatches()
            follows_separator = self._trie.follows_separator(node)
            for continuation in self._trie.continuations(node, self._vocabulary.longest):
                matches.add_continuation(self._vocabulary.whole, continuation.text, continuation)
                if follows_separator:
                    matches.add_continuation(self._vocabulary.whole, SEPARATOR + continuation.text, continuation)
        return matches

    def _build_mask(self, matches: list[_TokenMatches], *, additional: bool = False) -> TokenMask:
        """Return the mask of these matches. additional: without what `constant_mask` has already."""
        banned = _union([ids for one in matches for ids in one.banned])
        weights: dict[int, float] = {}
        for ids, weight in (pair for one in matches for pair in one.softened):
            for token in ids.tolist():
                weights[token] = max(weight, weights.get(token, 0.0))
        if additional:
            # The largest weight counts, once: subtract what `constant_mask` subtracts already.
            constant = self._constant_weights
            weights = {t: w - constant.get(t, 0.0) for t, w in weights.items() if w > constant.get(t, 0.0)}
            banned = _without(banned, self.constant_mask.banned)
        banned = _without(banned, self._never_ban)
        softened = sorted(weights)
        return TokenMask(
            banned,
            np.array(softened, dtype=np.int64),
            np.array([weights[token] for token in softened], dtype=np.float32),
        )


class _TokenMatches:
    """Token ids collected from index look-ups, not yet unique."""

    def __init__(self) -> None:
        self.banned: list[TokenIds] = []
        self.softened: list[tuple[TokenIds, float]] = []

    def add_continuation(self, index: SortedTexts, text: str, continuation: PhraseContinuation) -> None:
        """Add the tokens of `index` whose text is `text`, or starts with `text` as a whole word."""
        if (continuation.at_end or continuation.soft) and len(ids := index.equal(text)):
            self._add(ids, continuation.at_end, continuation.soft)
        if (continuation.whole or continuation.soft_whole) and len(ids := index.starting(text + SEPARATOR)):
            self._add(ids, continuation.whole, continuation.soft_whole)

    def _add(self, ids: TokenIds, is_banned: bool, weight: float) -> None:
        if is_banned:
            self.banned.append(ids)
        if weight:
            self.softened.append((ids, weight))


def _without(ids: TokenIds, removed: TokenIds) -> TokenIds:
    """Return the ids that are not in `removed`, which is sorted. Much faster than numpy's setdiff1d for few ids."""
    if not len(ids) or not len(removed):
        return ids
    remaining: TokenIds = ids[removed.take(removed.searchsorted(ids), mode="clip") != ids]
    return remaining


def _union(parts: list[TokenIds]) -> TokenIds:
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)
