"""A tokenizer's vocabulary as folded text, sorted for look-ups by text and by prefix.

Every token is known by the bytes that it adds to the output, so that characters split over several tokens
(byte-level BPE, SentencePiece byte fallback) are joined rightly. Two indexes over the folded texts answer
which tokens *are* or *start with* a text, and which tokens do so after a separator inside them.
"""

from __future__ import annotations

import codecs
import json
import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lethe.corruption.phrases.normalize import SEPARATOR, fold

TokenIds = NDArray[np.int64]

_NO_IDS: TokenIds = np.empty(0, dtype=np.int64)
_AFTER_ALL = "\U0010ffff"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_METASPACE = "\u2581"


class SortedTexts:
    """Texts with ids, sorted: the ids of one text, and of all texts that start with a prefix."""

    def __init__(self, texts: Sequence[str], ids: Sequence[int]) -> None:
        order = sorted(range(len(texts)), key=texts.__getitem__)
        self._ids: TokenIds = np.array([ids[i] for i in order], dtype=np.int64)
        self._texts: list[str] = []
        self._starts: list[int] = []
        self._place: dict[str, int] = {}
        for position, i in enumerate(order):
            if texts[i] not in self._place:
                self._place[texts[i]] = len(self._texts)
                self._texts.append(texts[i])
                self._starts.append(position)
        self._starts.append(len(order))

    def equal(self, text: str) -> TokenIds:
        """The ids of the tokens with exactly this text."""
        place = self._place.get(text)
        return _NO_IDS if place is None else self._ids[self._starts[place] : self._starts[place + 1]]

    def starting(self, prefix: str) -> TokenIds:
        """The ids of the tokens whose text starts with `prefix`, itself included."""
        low = bisect_left(self._texts, prefix)
        high = bisect_left(self._texts, prefix + _AFTER_ALL, lo=low)
        return self._ids[self._starts[low] : self._starts[high]]


class TokenVocabulary:
    """What every token id adds to the output.

    pieces: the bytes of each token, in id order; None for tokens that add no text (special tokens).
    texts: each token's folded text when it is read from a character boundary; an incomplete character at
    its end is not part of it but in `tails`. broken: the tokens whose bytes start inside a character.
    initials: first letter of its text → the tokens that have it, "" for those with bytes but without letters.
    """

    def __init__(self, pieces: Sequence[bytes | None]) -> None:
        self.pieces = tuple(piece or b"" for piece in pieces)
        self.texts: list[str] = []
        self.tails: dict[int, bytes] = {}
        for token, piece in enumerate(self.pieces):
            text, tail = decode_bytes(b"", piece)
            self.texts.append(fold(text))
            if tail:
                self.tails[token] = tail
        self.broken = [token for token, piece in enumerate(self.pieces) if piece and piece[0] & 0xC0 == 0x80]
        filled = [token for token, text in enumerate(self.texts) if text]
        self.longest = max((len(self.texts[token]) for token in filled), default=0)
        self.whole = SortedTexts([self.texts[token] for token in filled], filled)
        inner = [(text[i + 1 :], t) for t in filled for text in (self.texts[t],) for i in _separators(text)]
        self.inner = SortedTexts([text for text, _ in inner], [token for _, token in inner])
        first: dict[str, list[int]] = {}
        for token, text in enumerate(self.texts):
            if self.pieces[token]:
                first.setdefault(text.lstrip(SEPARATOR)[:1], []).append(token)
        self.initials: dict[str, TokenIds] = {letter: np.array(ids, dtype=np.int64) for letter, ids in first.items()}

    def __len__(self) -> int:
        return len(self.pieces)


def _separators(text: str) -> list[int]:
    return [i for i, character in enumerate(text) if character == SEPARATOR]


_DECODER = codecs.getincrementaldecoder("utf-8")


def decode_bytes(pending: bytes, piece: bytes) -> tuple[str, bytes]:
    """The text of `pending + piece` and the bytes of an incomplete character at its end.

    Bytes that can't belong to a character become U+FFFD, as they do in the answer.
    """
    decoder = _DECODER("replace")
    text = decoder.decode(pending + piece)
    return text, decoder.getstate()[0]


def read_vocabulary(tokenizer: Any, size: int) -> TokenVocabulary:
    """The vocabulary of a Hugging Face tokenizer, as wide as the model's logits at most.

    tokenizer: a `transformers` tokenizer or a `tokenizers.Tokenizer`. size: number of logits.
    Raises ValueError when the tokenizer offers no way to read its tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        pieces = _pieces_of_json(json.loads(backend.to_str()), backend.get_vocab(with_added_tokens=True))
    else:
        pieces = None
    if pieces is None:
        pieces = _pieces_by_decoding(tokenizer)
    ids = [token for token in pieces if 0 <= token < size]
    if not ids:
        raise ValueError(f"tokenizer {type(tokenizer).__name__} has no tokens below {size}")
    return TokenVocabulary([pieces.get(token) for token in range(max(ids) + 1)])


def _pieces_of_json(description: dict[str, Any], vocabulary: dict[str, int]) -> dict[int, bytes | None] | None:
    """Token → bytes by the kind of decoder that tokenizer.json names; None when it isn't one we read."""
    kinds = _decoder_kinds(description.get("decoder"))
    if "ByteLevel" in kinds:
        read = _byte_level_piece
    elif kinds & {"Metaspace", "ByteFallback"}:
        read = _metaspace_piece
    else:
        return None
    pieces: dict[int, bytes | None] = {token: read(text) for text, token in vocabulary.items()}
    for added in description.get("added_tokens") or ():
        # A special token is not part of the answer's text; any other added token stands in it as it is.
        pieces[added["id"]] = None if added["special"] else added["content"].encode()
    return pieces


def _decoder_kinds(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*(_decoder_kinds(part) for part in decoder.get("decoders", ())))


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 as it is, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _byte_level_piece(text: str) -> bytes:
    table = _byte_of_character()
    if all(character in table for character in text):
        return bytes(table[character] for character in text)
    return text.encode("utf-8", "replace")


def _metaspace_piece(text: str) -> bytes:
    if match := _BYTE_PIECE.fullmatch(text):
        return bytes([int(match[1], 16)])
    return text.replace(_METASPACE, " ").encode("utf-8", "replace")


def _pieces_by_decoding(tokenizer: Any) -> dict[int, bytes | None]:
    """Token → the bytes by which it makes a decoded text longer, for tokenizers of any other kind."""
    special = set(getattr(tokenizer, "all_special_ids", ()))
    vocabulary = tokenizer.get_vocab()
    anchor = next((i for text, i in vocabulary.items() if text.isalpha() and i not in special), None)
    if anchor is None:
        raise ValueError(f"tokenizer {type(tokenizer).__name__} has no token of letters")
    before = str(tokenizer.decode([anchor]))
    pieces: dict[int, bytes | None] = {}
    for token in vocabulary.values():
        text = str(tokenizer.decode([anchor, token]))
        added = text[len(before) :] if text.startswith(before) else str(tokenizer.decode([token]))
        pieces[token] = None if token in special else added.encode("utf-8", "replace")
    return pieces
