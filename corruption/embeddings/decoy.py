"""Decoys: each token that identifies something is replaced by another token of its kind.

The prompt remains one that the model could have seen: as many tokens, of the same form, about something else. The
choice is keyed and depends on the word alone, so a word gets the same decoy in every turn of a conversation. Kinds
are derived from the vocabulary, for byte-level and SentencePiece tokenizers alike.
"""

from __future__ import annotations

import struct
import unicodedata
from array import array
from collections.abc import Collection, Sequence
from itertools import pairwise

from lethe.corruption.embeddings import keyed_rng

# (starts a word, script or digits, case or length)
TokenKind = tuple[bool, str, str]
# Tokens of the same kind to choose a decoy from, those with the nearest ids. Ids follow frequency in BPE vocabularies,
# so a decoy is about as common as the token. Chosen: enough that a decoy says little about the token.
CANDIDATES = 512
# Draws of 4 bytes in one digest of 32 bytes.
DRAWS_PER_DIGEST = 8
_DRAWS = struct.Struct(f">{DRAWS_PER_DIGEST}I")


def token_kind(piece: str) -> TokenKind | None:
    """Return what a decoy must have in common with a token; None for punctuation and white space.

    Those identify nothing by themselves and are never replaced. piece: the token's text with its leading space.
    """
    core = piece.strip()
    starts_word = piece[:1].isspace()
    if "�" in core:
        return starts_word, "fragment", ""
    if not any(c.isalnum() for c in core):
        return None
    if core.isdigit():
        return starts_word, "digits", str(len(core))
    if not core.isalpha():
        return starts_word, "mixed", ""
    return starts_word, _script(core[0]), _case(core)


class DecoyVocabulary:
    """The vocabulary by kind."""

    def __init__(self, pieces: Sequence[str], special: Collection[int]) -> None:
        """pieces: the text of every token id. special: ids that are never replaced and never used as decoys."""
        # A vocabulary has many tokens and few kinds, so equal kinds share one object.
        shared_kinds: dict[TokenKind | None, TokenKind | None] = {}
        kinds = [
            None if token in special else shared_kinds.setdefault(kind := token_kind(piece), kind)
            for token, piece in enumerate(pieces)
        ]
        self._kinds = kinds
        # Parts of characters all have the same text, so their ids tell them apart.
        self._folded = [f"�{token}" if "�" in piece else piece.strip().casefold() for token, piece in enumerate(pieces)]
        # For each token the ids of its kind in ascending order, and its position among them. Arrays, not lists: a
        # number in them takes 4 bytes.
        self._same_kind = [array("i")] * len(pieces)
        self._position = array("i", bytes(4 * len(pieces)))
        members: dict[TokenKind, array[int]] = {}
        for token, kind in enumerate(kinds):
            if kind is not None:
                same_kind = self._same_kind[token] = members.setdefault(kind, array("i"))
                self._position[token] = len(same_kind)
                same_kind.append(token)

    def words(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Return ranges of positions, one for each word. A space, punctuation or a control token ends a word."""
        starts = []
        previous = None
        for position, token in enumerate(ids):
            kind = self._kinds[token]
            if kind is None or previous is None or kind[0]:
                starts.append(position)
            previous = kind
        return list(pairwise([*starts, len(ids)]))

    def replace(self, ids: Sequence[int], chosen: Sequence[bool], *, secret: bytes, policy: str) -> list[int]:
        """Return the ids with decoys in the chosen positions.

        A word with any chosen token is replaced whole. Special tokens, punctuation, and the only tokens of their kind
        stay.
        """
        out = list(ids)
        decoys_by_word: dict[tuple[int, ...], list[int]] = {}
        for start, end in self.words(ids):
            if any(chosen[start:end]):
                word = tuple(ids[start:end])
                if word not in decoys_by_word:
                    decoys_by_word[word] = self._decoys_of_word(word, secret, policy)
                out[start:end] = decoys_by_word[word]
        return out

    def _decoys_of_word(self, word: tuple[int, ...], secret: bytes, policy: str) -> list[int]:
        # Without leading space and case, so that a name at the start of a text gets the same draws.
        text = "".join([self._folded[token] for token in word]).encode()
        draws: list[int] = []
        for block in range(0, len(word), DRAWS_PER_DIGEST):
            draws += _DRAWS.unpack(keyed_rng.keyed_digest(secret, policy, "decoy", block.to_bytes(4, "big") + text))
        return list(map(self._decoy, word, draws))

    def _decoy(self, token: int, draw: int) -> int:
        """Another token of the same kind, about as frequent; the token itself when there is none."""
        same_kind = self._same_kind[token]
        size, first = len(same_kind), 0
        if size > CANDIDATES:
            size, first = CANDIDATES, max(0, min(self._position[token] - CANDIDATES // 2, size - CANDIDATES))
        folded, folded_token = self._folded, self._folded[token]
        for step in range(size):
            other = same_kind[first + (draw + step) % size]
            if folded[other] != folded_token:
                return other
        return token


def _script(character: str) -> str:
    """LATIN, CYRILLIC, CJK and so on: the first word of the character's Unicode name."""
    return unicodedata.name(character, "OTHER").split(" ", 1)[0]


def _case(core: str) -> str:
    if core.upper() == core.lower():
        return "uncased"
    if core.islower():
        return "lower"
    if core.isupper():
        return "initial" if len(core) == 1 else "upper"
    return "title" if core[0].isupper() and core[1:].islower() else "mixed"
