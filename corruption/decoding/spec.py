"""What a guarded request must not say, as a value, as an argument for vLLM, and as token ids.

`Penalty` is what the gateway decides; `to_argument` and `from_argument` carry it as one JSON string in
`vllm_xargs[ARGUMENT]`. `Guard` is a penalty made ready for one vocabulary: from the state of an answer it
tells which token ids are forbidden and which are made less likely. It knows no tensors of a model and no
vLLM. Penalties on the logits follow GUARD (arXiv:2505.13312); similar words are found once for a request.
Copies of protected texts, which are too long to travel, are named; `corruption/decoding/copy_limit.py` keeps them short.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from lethe.corruption.bounded import ByteCache
from lethe.corruption.decoding.copy_limit import MAX_COPY_LIMIT, CopyLimiter, RecentLetters
from lethe.corruption.decoding.suffix_index import NAME_LENGTH, SuffixIndex
from lethe.corruption.decoding.token_text import SortedTexts, TokenIds, TokenVocabulary, decode_bytes
from lethe.corruption.phrases.normalize import SEPARATOR, fold
from lethe.corruption.phrases.trie import BOUNDARY_NODE, START_STATE, PhraseContinuation, PhraseTrie

XARGS_KEY = "lethe"
ENCODING_VERSION = 2

# An engine serves everybody: whatever an argument says, its preparation stays in the low milliseconds.
MAX_CHARACTERS = 131_072
MAX_PHRASES = 1024
MAX_PHRASE_CHARACTERS = 256
MAX_PHRASE_TOTAL = 32_768
MAX_SOFT_WORDS = 256
MAX_SOFT_TOTAL = 8_192
MAX_WEIGHT = 100.0
MAX_TEXTS = 64
MAX_MASK_BYTES = 128 * 2**20

_NAME = re.compile(f"[0-9a-f]{{{NAME_LENGTH}}}")

OnFault = Literal["stop", "pass"]


@dataclass(frozen=True)
class Penalty:
    """Phrases that must not be said, words made less likely, and what a fault in the engine leads to.

    phrases: forbidden texts, in any spelling of case, spaces and punctuation. soft: word → weight, the
    logits subtracted, 0 < weight <= MAX_WEIGHT. verbatim: name of a protected text's index → the most tokens
    that may be copied of it in a row. on_fault: "stop" ends the answer, "pass" lets it go on unguarded.
    Raises ValueError when a limit of this module is broken or a phrase has no letter or digit.
    """

    phrases: tuple[str, ...] = ()
    soft: Mapping[str, float] = field(default_factory=dict)
    verbatim: Mapping[str, int] = field(default_factory=dict)
    on_fault: OnFault = "stop"

    def __post_init__(self) -> None:
        _check_texts("phrases", self.phrases, MAX_PHRASES, MAX_PHRASE_TOTAL)
        _check_texts("soft words", tuple(self.soft), MAX_SOFT_WORDS, MAX_SOFT_TOTAL)
        for weight in self.soft.values():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not (number and 0 < weight <= MAX_WEIGHT):
                raise ValueError(f"a soft weight is not a number in (0, {MAX_WEIGHT:g}]")
        if len(self.verbatim) > MAX_TEXTS:
            raise ValueError(f"{len(self.verbatim)} protected texts, more than {MAX_TEXTS}")
        for name, limit in self.verbatim.items():
            if not (isinstance(name, str) and _NAME.fullmatch(name)):
                raise ValueError("a protected text's name is not that of an index")
            if type(limit) is not int or not 1 <= limit <= MAX_COPY_LIMIT:
                raise ValueError(f"a copy's limit is not a whole number from 1 to {MAX_COPY_LIMIT}")
        if self.on_fault not in get_args(OnFault):
            raise ValueError(f"on_fault is not one of {', '.join(get_args(OnFault))}")


def _check_texts(what: str, texts: tuple[str, ...], most: int, total: int) -> None:
    """Messages never quote a phrase: they end in logs and in answers to clients."""
    if len(texts) > most:
        raise ValueError(f"{len(texts)} {what}, more than {most}")
    size = 0
    for text in texts:
        if not isinstance(text, str) or len(text) > MAX_PHRASE_CHARACTERS:
            raise ValueError(f"{what} hold something else than texts of up to {MAX_PHRASE_CHARACTERS} characters")
        folded = fold(text)
        size += len(folded)
        if not folded.strip():
            raise ValueError(f"{what} hold a text without letters and digits")
    if size > total:
        raise ValueError(f"{what} have {size} characters together, more than {total}")


def encode_penalty(penalty: Penalty) -> str:
    """The penalty as JSON text; `from_argument` reads back an equal one."""
    body = {
        "v": ENCODING_VERSION,
        "phrases": list(penalty.phrases),
        "soft": dict(penalty.soft),
        "verbatim": dict(penalty.verbatim),
        "on_fault": penalty.on_fault,
    }
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)


def decode_penalty(value: object) -> Penalty:
    """The penalty that a text of `to_argument` carries; ValueError for everything else."""
    if not isinstance(value, str):
        raise ValueError(f"{XARGS_KEY}: not a text")
    if len(value) > MAX_CHARACTERS:
        raise ValueError(f"{XARGS_KEY}: {len(value)} characters, more than {MAX_CHARACTERS}")
    try:
        value.encode()  # lone surrogates could not travel to the engine
        body = json.loads(value, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError(f"{XARGS_KEY}: nested too deep") from error
    except ValueError as error:
        raise ValueError(f"{XARGS_KEY}: not a JSON object with unique keys") from error
    if not isinstance(body, dict) or set(body) != {"v", "phrases", "soft", "verbatim", "on_fault"}:
        raise ValueError(f"{XARGS_KEY}: not an object of v, phrases, soft, verbatim and on_fault")
    if type(body["v"]) is not int or body["v"] != ENCODING_VERSION:
        raise ValueError(f"{XARGS_KEY}: not version {ENCODING_VERSION}")
    if not isinstance(body["phrases"], list):
        raise ValueError(f"{XARGS_KEY}: phrases is not a list")
    if not isinstance(body["soft"], dict) or not isinstance(body["verbatim"], dict):
        raise ValueError(f"{XARGS_KEY}: soft or verbatim is not an object")
    if not isinstance(body["on_fault"], str):
        raise ValueError(f"{XARGS_KEY}: on_fault is not a text")
    try:
        return Penalty(
            tuple(body["phrases"]),
            body["soft"],
            body["verbatim"],
            body["on_fault"],  # type: ignore[arg-type]
        )
    except ValueError as error:
        raise ValueError(f"{XARGS_KEY}: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


class TextState(NamedTuple):
    """Where an answer stands: the open matches of its text, and the bytes of an incomplete character.

    tail: the letters of its newest tokens, as far back as a copy of protected text is counted.
    """

    nodes: tuple[int, ...]
    pending: bytes
    tail: RecentLetters = ()


@dataclass(frozen=True)
class TokenMask:
    """Token ids: banned (-inf), and softened by the weights beside them. All of them sorted and unique."""

    banned: TokenIds
    softened: TokenIds
    weights: NDArray[np.float32]

    def __bool__(self) -> bool:
        return bool(len(self.banned) or len(self.softened))

    @property
    def nbytes(self) -> int:
        return self.banned.nbytes + self.softened.nbytes + self.weights.nbytes


class TokenMaskCache:
    """The masks of states that were met, of all guards for one vocabulary together, within a bound of memory.

    One state's mask is small in most cases, but may be half a vocabulary, and an engine serves many answers.
    """

    def __init__(self, most_bytes: int = MAX_MASK_BYTES) -> None:
        self.states: ByteCache[TokenMask] = ByteCache(most_bytes // 2, lambda mask: mask.nbytes)
        self.copies: ByteCache[TokenIds] = ByteCache(most_bytes // 2, lambda ids: ids.nbytes)


class CompiledPenalty:
    """A penalty made ready for one vocabulary. Shared by all answers with the same penalty.

    always: the mask of every state (tokens that carry a forbidden match inside them). `mask(state)` is
    what a state adds to it. `keep`: token ids that are never banned (the end of the answer). protected: the
    indexes that `penalty.verbatim` names, with their limits. masks: shared by the guards of one vocabulary.
    """

    start = TextState(START_STATE, b"")

    def __init__(
        self,
        penalty: Penalty,
        vocabulary: TokenVocabulary,
        *,
        keep: Collection[int] = (),
        protected: Sequence[tuple[SuffixIndex, int]] = (),
        masks: TokenMaskCache | None = None,
    ) -> None:
        masks = masks or TokenMaskCache()
        self.penalty = penalty
        self._vocabulary = vocabulary
        self._matcher = PhraseTrie(penalty.phrases, penalty.soft)
        self._keep = np.array(sorted(keep), dtype=np.int64)
        self._runs = CopyLimiter(protected, vocabulary, keep=keep, known=masks.copies) if protected else None
        self._masks = masks.states
        # Its entries' first key: no other guard gets it while an entry is there.
        self._own = object()
        found, begun = _Found(), _Found()
        for place in self._matcher.continuations(BOUNDARY_NODE, vocabulary.longest):
            found.add(vocabulary.inner, place.text, place)
            begun.add(vocabulary.whole, place.text, place)
        self._followers = {BOUNDARY_NODE: begun}
        self.always = self._mask_of([found])
        always = zip(self.always.softened.tolist(), self.always.weights.tolist(), strict=True)
        self._always_weight: dict[int, float] = dict(always)

    def advance(self, state: TextState, token: int) -> TextState:
        """The state after one more token. Raises IndexError for an id that is no token."""
        if token < 0:
            raise IndexError(f"token {token}")
        if token >= len(self._vocabulary):
            return state  # padding of the logits: it has no text
        if state.pending:
            text, tail = decode_bytes(state.pending, self._vocabulary.pieces[token])
            folded = fold(text)
        else:
            folded, tail = self._vocabulary.texts[token], self._vocabulary.tails.get(token, b"")
        nodes = self._matcher.step(state.nodes, folded)
        if self._runs is None or not self._vocabulary.pieces[token]:
            return TextState(nodes, tail, state.tail)
        return TextState(nodes, tail, self._runs.advance(state.tail, folded, inside=bool(state.pending)))

    def mask(self, state: TextState) -> TokenMask:
        """What is banned and softened in this state besides `always`."""
        key = (self._own, state.nodes, state.pending)
        found = self._masks.get(key)
        if found is None:
            found = self._mask(state)
            self._masks.put(key, found)
        if self._runs is not None and (followers := self._runs.followers(state.tail)):
            copying = self._runs.banned(followers, state.pending)
            banned = np.union1d(found.banned, copying) if len(found.banned) else copying
            return TokenMask(banned, found.softened, found.weights)
        return found

    def _mask(self, state: TextState) -> TokenMask:
        if not state.pending:
            return self._mask_of([self._follow(node) for node in state.nodes], added=True)
        # Only a token that starts inside a character can complete the pending one; any other makes it a
        # replacement character, which separates.
        apart = self._matcher.step(state.nodes, SEPARATOR)
        found = [self._follow(node) for node in apart]
        return self._mask_of([*found, self._completing(state)], added=True)

    def _completing(self, state: TextState) -> _Found:
        found = _Found()
        for token in self._vocabulary.broken:
            text = fold(decode_bytes(state.pending, self._vocabulary.pieces[token])[0])
            if self._matcher.forbids(state.nodes, text):
                found.banned.append(np.array([token], dtype=np.int64))
            if weight := self._matcher.weight(state.nodes, text):
                found.softened.append((np.array([token], dtype=np.int64), weight))
        return found

    def _follow(self, node: int) -> _Found:
        """The tokens that go on from one open match to a forbidden or penalised place."""
        found = self._followers.get(node)
        if found is None:
            found = self._followers[node] = _Found()
            spaced = self._matcher.follows_separator(node)
            for place in self._matcher.continuations(node, self._vocabulary.longest):
                found.add(self._vocabulary.whole, place.text, place)
                if spaced:
                    found.add(self._vocabulary.whole, SEPARATOR + place.text, place)
        return found

    def _mask_of(self, parts: list[_Found], *, added: bool = False) -> TokenMask:
        banned = _union([ids for part in parts for ids in part.banned])
        weights: dict[int, float] = {}
        for ids, weight in (pair for part in parts for pair in part.softened):
            for token in ids.tolist():
                weights[token] = max(weight, weights.get(token, 0.0))
        if added:
            # The largest weight counts, once: what `always` subtracts already is taken off.
            known = self._always_weight
            weights = {t: w - known.get(t, 0.0) for t, w in weights.items() if w > known.get(t, 0.0)}
            banned = _without(banned, self.always.banned)
        banned = _without(banned, self._keep)
        softened = sorted(weights)
        return TokenMask(
            banned,
            np.array(softened, dtype=np.int64),
            np.array([weights[token] for token in softened], dtype=np.float32),
        )


class _Found:
    """Token ids gathered from index look-ups, not yet unique."""

    def __init__(self) -> None:
        self.banned: list[TokenIds] = []
        self.softened: list[tuple[TokenIds, float]] = []

    def add(self, index: SortedTexts, text: str, place: PhraseContinuation) -> None:
        """The tokens of `index` that lead to `place` by being `text` or by starting with it as a word."""
        if (place.at_end or place.soft) and len(ids := index.equal(text)):
            self._add(ids, place.at_end, place.soft)
        if (place.whole or place.soft_whole) and len(ids := index.starting(text + SEPARATOR)):
            self._add(ids, place.whole, place.soft_whole)

    def _add(self, ids: TokenIds, banned: bool, weight: float) -> None:
        if banned:
            self.banned.append(ids)
        if weight:
            self.softened.append((ids, weight))


def _without(ids: TokenIds, others: TokenIds) -> TokenIds:
    """The ids that are not among `others`, which are sorted. Of few ids, much faster than numpy's setdiff1d."""
    if not len(ids) or not len(others):
        return ids
    left: TokenIds = ids[others.take(others.searchsorted(ids), mode="clip") != ids]
    return left


def _union(parts: list[TokenIds]) -> TokenIds:
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)
