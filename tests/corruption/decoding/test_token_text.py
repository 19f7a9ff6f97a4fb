"""The vocabulary's bytes and folded text, for every kind of tokenizer that models come with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lethe.corruption.decoding.token_text import SortedTexts, TokenVocabulary, decode_bytes, read_vocabulary

CORPUS = [
    "The café in Kyōto (京都) opened in 1991.",
    "A civil engineer’s “Glass Harbour”",
    "smart art arts 🙂",
] * 5


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def metaspace_with_byte_fallback() -> Tokenizer:
    """As in Llama 2 and Gemma: spaces become metaspaces by rule, unknown characters become bytes."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [
        *"▁abcdefghilnorstuvTACGHK",
        "▁c",
        "▁ci",
        "▁civ",
        "il",
        "▁engineer",
        "▁Glass",
        "▁a",
        "art",
        "▁art",
    ]
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "</s>", *bytes_, *dict.fromkeys(pieces)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, metaspace_with_byte_fallback, unigram])
def test_joined_pieces_equal_the_decoded_text(
    make: Callable[[], Tokenizer],
) -> None:
    tokenizer = make()
    vocabulary = read_vocabulary(tokenizer, 100_000)
    for text in (" civil engineer", " Glass art", " the café"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        joined = b"".join(vocabulary.pieces[token] for token in ids).decode()
        assert joined.strip() == tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("make", [byte_level, metaspace_with_byte_fallback, unigram])
def test_special_tokens_have_no_text(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    special = next(t for t in ("<|end|>", "</s>", "<unk>") if tokenizer.token_to_id(t) is not None)
    vocabulary = read_vocabulary(tokenizer, 100_000)
    if special != "<unk>":
        assert vocabulary.pieces[tokenizer.token_to_id(special)] == b""


def test_a_word_piece_tokenizer_is_read_by_decoding() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "civil": 1, "##ian": 2, "engineer": 3}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    assert read_vocabulary(tokenizer, 100).texts[1:] == [" civil", "ian", " engineer"]


def test_tokens_beyond_the_logits_are_left_out() -> None:
    assert len(read_vocabulary(byte_level(), 50)) == 50


@given(st.text(max_size=6), st.integers(0, 24))
def test_a_character_split_over_pieces_is_decoded_once(text: str, cut: int) -> None:
    raw = text.encode()
    one, pending = decode_bytes(b"", raw[:cut])
    other, pending = decode_bytes(pending, raw[cut:])
    assert (one + other, pending) == (text, b"")


@given(st.lists(st.text(alphabet="ab ", max_size=5), max_size=30), st.text(alphabet="ab ", max_size=3))
def test_look_ups_equal_a_scan(texts: list[str], text: str) -> None:
    index = SortedTexts(texts, list(range(len(texts))))
    assert sorted(index.equal(text).tolist()) == [i for i, t in enumerate(texts) if t == text]
    assert sorted(index.starting(text).tolist()) == [i for i, t in enumerate(texts) if t.startswith(text)]


def test_an_incomplete_last_character_is_kept_apart() -> None:
    vocabulary = TokenVocabulary([b"caf\xc3", b"\xa9s", b" x", None])
    assert vocabulary.texts == ["caf", " s", " x", ""]
    assert vocabulary.incomplete == {0: b"\xc3"}
    assert vocabulary.continuation_tokens == [1]
