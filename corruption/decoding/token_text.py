"""A tokenizer's vocabulary as folded text, sorted for look-ups by text and by prefix.

Each token is represented by the bytes that it adds to the output, so that characters split over several tokens
(byte-level BPE, SentencePiece byte fallback) are joined correctly. Two indexes over the folded texts answer which
tokens *equal* or *start with* a text, and which tokens do so after a separator inside them.
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
_LAST_CHARACTER = "\U0010ffff"  # sorts after every other one
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # SentencePiece's byte fallback
_METASPACE = "\u2581"  # SentencePiece's stand-in for a space


class SortedTexts:
    """Texts with ids, sorted: the ids of one text, and of all texts that start with a prefix."""

    def __init__(self, texts: Sequence[str], ids: Sequence[int]) -> None:
        order = sorted(range(len(texts)), key=texts.__getitem__)
        self._ids: TokenIds = np.array([ids[i] for i in order], dtype=np.int64)
        self._texts: list[str] = []
        self._starts: list[int] = []
        self._position: dict[str, int] = {}
        for position, i in enumerate(order):
            if texts[i] not in self._position:
                self._position[texts[i]] = len(self._texts)
                self._texts.append(texts[i])
                self._starts.append(position)
        self._starts.append(len(order))

    def equal(self, text: str) -> TokenIds:
        """The ids of the tokens with exactly this text."""
        position = self._position.get(text)
        return _NO_IDS if position is None else self._ids[self._starts[position] : self._starts[position + 1]]

    def starting(self, prefix: str) -> TokenIds:
        """The ids of the tokens whose text starts with `prefix`, itself included."""
        low = bisect_left(self._texts, prefix)
        high = bisect_left(self._texts, prefix + _LAST_CHARACTER, lo=low)
        return self._ids[self._starts[low] : self._starts[high]]


class TokenVocabulary:
    """What each token id adds to the output.

    pieces: the bytes of each token, in id order; empty for special tokens, which add no text. texts: each token's
    folded text when it is read from a character boundary, without an incomplete character at its end. incomplete:
    token id → the bytes of that character. continuation_tokens: the ids of tokens whose bytes start inside a
    character. initials: first letter → ids of the tokens whose text begins with it; "" → those without letters.
    whole, inner: the texts for look-up, from their beginning and from each separator inside them. longest: the
    number of characters of the longest text.
    """

    def __init__(self, pieces: Sequence[bytes | None]) -> None:
        """pieces: the bytes of each token, in id order; None for special tokens."""
        self.pieces = tuple(piece or b"" for piece in pieces)
        self.texts: list[str] = []
        self.incomplete: dict[int, bytes] = {}
        for token, piece in enumerate(self.pieces):
            text, incomplete = decode_bytes(b"", piece)
            self.texts.append(fold(text))
            if incomplete:
                self.incomplete[token] = incomplete
        # Bytes 10xxxxxx continue a character in UTF-8.
        self.continuation_tokens = [
            token for token, piece in enumerate(self.pieces) if piece and piece[0] & 0xC0 == 0x80
        ]
        with_text = [token for token, text in enumerate(self.texts) if text]
        self.longest = max((len(self.texts[token]) for token in with_text), default=0)
        self.whole = SortedTexts([self.texts[token] for token in with_text], with_text)
        inner = [(text[i + 1 :], t) for t in with_text for text in (self.texts[t],) for i in _separator_positions(text)]
        self.inner = SortedTexts([text for text, _ in inner], [token for _, token in inner])
        first: dict[str, list[int]] = {}
        for token, text in enumerate(self.texts):
            if self.pieces[token]:
                first.setdefault(text.lstrip(SEPARATOR)[:1], []).append(token)
        self.initials: dict[str, TokenIds] = {letter: np.array(ids, dtype=np.int64) for letter, ids in first.items()}

    def __len__(self) -> int:
        return len(self.pieces)


def _separator_positions(text: str) -> list[int]:
    return [i for i, character in enumerate(text) if character == SEPARATOR]


_DECODER = codecs.getincrementaldecoder("utf-8")


def decode_bytes(pending: bytes, piece: bytes) -> tuple[str, bytes]:
    """Return the text of `pending + piece` and the bytes of an incomplete character at its end.

    Bytes that can't belong to a character become U+FFFD, as they do in vLLM's answer.
    """
    decoder = _DECODER("replace")
    text = decoder.decode(pending + piece)
    return text, decoder.getstate()[0]


def read_vocabulary(tokenizer: Any, size: int) -> TokenVocabulary:
    """Return the vocabulary of a Hugging Face tokenizer, without ids beyond the model's logits.

    tokenizer: a `transformers` tokenizer or a `tokenizers.Tokenizer`. size: number of logits.
    Raises ValueError when the tokenizer offers no way to read its tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        pieces = _pieces_from_json(json.loads(backend.to_str()), backend.get_vocab(with_added_tokens=True))
    else:
        pieces = None
    if pieces is None:
        pieces = _pieces_by_decoding(tokenizer)
    ids = [token for token in pieces if 0 <= token < size]
    if not ids:
        raise ValueError(f"tokenizer {type(tokenizer).__name__} has no tokens below {size}")
    return TokenVocabulary([pieces.get(token) for token in range(max(ids) + 1)])


def _pieces_from_json(description: dict[str, Any], vocabulary: dict[str, int]) -> dict[int, bytes | None] | None:
    """Return token → bytes by the kind of decoder that tokenizer.json names; None for an unknown kind."""
    kinds = _decoder_kinds(description.get("decoder"))
    if "ByteLevel" in kinds:
        read = _byte_level_piece
    elif kinds & {"Metaspace", "ByteFallback"}:
        read = _metaspace_piece
    else:
        return None
    pieces: dict[int, bytes | None] = {token: read(text) for text, token in vocabulary.items()}
    for added in description.get("added_tokens") or ():
        # A special token is not part of the answer's text; any other added token appears in it unchanged.
        pieces[added["id"]] = None if added["special"] else added["content"].encode()
    return pieces


def _decoder_kinds(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*(_decoder_kinds(part) for part in decoder.get("decoders", ())))


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 characters themselves, the others from U+0100 on."""
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
    """Return token → the bytes that it adds to a decoded text, for tokenizers of any other kind."""
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
