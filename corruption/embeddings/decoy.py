"""Decoys: each token that identifies something gives way to another token of its kind.

The prompt stays one that the model could have met: as many tokens, of the same form, about something
else. The choice is keyed and depends on the word alone, so a word meets the same decoy in every turn.
Kinds come from the vocabulary, for byte-level and SentencePiece tokenizers alike.
"""

from __future__ import annotations

import struct
import unicodedata
from array import array
from collections.abc import Collection, Sequence
from itertools import pairwise

from lethe.corruption.embeddings import keyed_rng

TokenKind = tuple[bool, str, str]
# Ids follow frequency in BPE vocabularies: a decoy comes from about as common a token.
WINDOW = 512
# A digest of 32 bytes holds so many draws of 4 bytes.
DRAWS = 8
_DRAWN = struct.Struct(f">{DRAWS}I")


def token_kind(piece: str) -> TokenKind | None:
    """What a decoy must have in common with a token: (starts a word, script or digits, case or length).

    piece: the token's text with its leading space. None for what identifies nothing by itself and is
    left alone: punctuation, white space.
    """
    core = piece.strip()
    starts = piece[:1].isspace()
    if "�" in core:
        return starts, "fragment", ""
    if not any(c.isalnum() for c in core):
        return None
    if core.isdigit():
        return starts, "digits", str(len(core))
    if not core.isalpha():
        return starts, "mixed", ""
    return starts, _script(core[0]), _case(core)


class DecoyVocabulary:
    """The vocabulary by kind."""

    def __init__(self, pieces: Sequence[str], special: Collection[int]) -> None:
        """pieces: the text of every token id; special: ids that are never replaced nor used."""
        # A vocabulary has many tokens and few kinds: one object for each, and numbers without objects.
        one: dict[TokenKind | None, TokenKind | None] = {}
        kinds = [
            None if token in special else one.setdefault(found := token_kind(piece), found)
            for token, piece in enumerate(pieces)
        ]
        self._kinds = kinds
        # Parts of characters all look alike as text.
        self._folded = [f"�{token}" if "�" in piece else piece.strip().casefold() for token, piece in enumerate(pieces)]
        # For each token the ids of its kind in rising order, and where in that order it stands.
        self._alike = [array("i")] * len(pieces)
        self._place = array("i", bytes(4 * len(pieces)))
        members: dict[TokenKind, array[int]] = {}
        for token, found in enumerate(kinds):
            if found is not None:
                alike = self._alike[token] = members.setdefault(found, array("i"))
                self._place[token] = len(alike)
                alike.append(token)

    def words(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Ranges of positions, one for each word; a space, punctuation or a control token ends a word."""
        starts = []
        previous = None
        for position, token in enumerate(ids):
            this = self._kinds[token]
            if this is None or previous is None or this[0]:
                starts.append(position)
            previous = this
        return list(pairwise([*starts, len(ids)]))

    def replace(self, ids: Sequence[int], chosen: Sequence[bool], *, secret: bytes, policy: str) -> list[int]:
        """The ids with decoys in the chosen places.

        Words of which any token is chosen are replaced whole. Special tokens, punctuation, and tokens that
        are the only ones of their kind stay.
        """
        out = list(ids)
        met: dict[tuple[int, ...], list[int]] = {}
        for start, end in self.words(ids):
            if any(chosen[start:end]):
                word = tuple(ids[start:end])
                if word not in met:
                    met[word] = self._replace_word(word, secret, policy)
                out[start:end] = met[word]
        return out

    def _replace_word(self, word: tuple[int, ...], secret: bytes, policy: str) -> list[int]:
        # Without the leading space and case, so that a name at the start of a text draws the same.
        text = "".join([self._folded[token] for token in word]).encode()
        draws: list[int] = []
        for block in range(0, len(word), DRAWS):
            draws += _DRAWN.unpack(keyed_rng.keyed_digest(secret, policy, "decoy", block.to_bytes(4, "big") + text))
        return list(map(self._decoy, word, draws))

    def _decoy(self, token: int, draw: int) -> int:
        """Another token of the same kind, about as frequent; the token itself when there is none."""
        alike = self._alike[token]
        size, first = len(alike), 0
        if size > WINDOW:
            size, first = WINDOW, max(0, min(self._place[token] - WINDOW // 2, size - WINDOW))
        folded, own = self._folded, self._folded[token]
        for step in range(size):
            other = alike[first + (draw + step) % size]
            if folded[other] != own:
                return other
        return token


def _script(character: str) -> str:
    """LATIN, CYRILLIC, CJK …: the first word of the character's Unicode name."""
    return unicodedata.name(character, "OTHER").split(" ", 1)[0]


def _case(core: str) -> str:
    if core.upper() == core.lower():
        return "uncased"
    if core.islower():
        return "lower"
    if core.isupper():
        return "initial" if len(core) == 1 else "upper"
    return "title" if core[0].isupper() and core[1:].islower() else "mixed"
