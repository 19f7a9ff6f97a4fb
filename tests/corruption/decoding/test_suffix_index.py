"""The verbatim index against a slow search, its file, and the folder of indexes."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.corruption.decoding import suffix_index
from lethe.corruption.decoding.suffix_index import (
    INDEX_FILE,
    SuffixIndex,
    SuffixIndexFolder,
    build_arrays,
    comparable_letters,
    content_name,
    load_index,
    save_index,
)

TEXTS = st.lists(st.text(alphabet="abAé東🙂 ,-я", max_size=12), min_size=1, max_size=5).filter(
    lambda texts: bool(comparable_letters("".join(texts)))
)


def make_index(texts: list[str]) -> SuffixIndex:
    arrays = build_arrays(texts)
    return SuffixIndex(arrays["letters"].data, arrays["places"].data)


def search(text: str, piece: str) -> frozenset[str] | None:
    """The letters after `piece`, by reading the text at every position."""
    positions = [i for i in range(len(text)) if text.startswith(piece, i)]
    return frozenset(text[i + len(piece)] for i in positions if i + len(piece) < len(text)) if positions else None


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.data())
def test_look_ups_equal_those_of_a_slow_search(texts: list[str], data: st.DataObject) -> None:
    index, text = make_index(texts), "".join(map(comparable_letters, texts))
    begin = data.draw(st.integers(0, len(text) - 1))
    inside = text[begin : begin + data.draw(st.integers(1, 6))]
    other = data.draw(st.text(alphabet=sorted({*text, "q"}), min_size=1, max_size=5))
    for piece in (inside, other):
        assert index.followers(piece) == search(text, piece)
    assert len(index) == len(text)


def test_only_letters_count_not_case_spaces_or_punctuation() -> None:
    index = make_index(["'Oh dear!\nOh  dear! I shall be late!' — naïvely"])
    assert index.followers(comparable_letters("“OH DEAR, oh-dear. i\tshall* be ＬＡＴＥ")) == {"n"}
    assert index.followers(comparable_letters("late naively")) == frozenset()
    assert index.followers(comparable_letters("late, I")) is None


def test_the_index_does_not_depend_on_where_the_text_is_split() -> None:
    pieces = ["It was a ", "bright cold", " day in April"]
    assert content_name(pieces) == content_name(["".join(pieces)]) == make_index(pieces).name
    assert content_name(pieces) != content_name(["It was a bright cold day in May"])
    assert make_index(pieces).followers(comparable_letters("a bright cold day")) == {"i"}


@pytest.mark.parametrize("text", ["a" * 5_000, "ab" * 4_000, "the cat sat. " * 500])
def test_repetitive_texts_are_indexed_correctly(text: str) -> None:
    index, spelled = make_index([text]), comparable_letters(text)
    assert index.followers(spelled[:30]) == search(spelled, spelled[:30])
    assert index.followers(spelled) == frozenset()


def test_texts_without_a_letter_have_no_index() -> None:
    with pytest.raises(ValueError, match="0 letters"):
        build_arrays(["—", " \n", ""])


def test_a_saved_index_loads_and_takes_five_bytes_a_letter(tmp_path: Path) -> None:
    words = np.random.default_rng(0).choice("the a of rabbit went down into hole never once".split(), 20_000)
    text = " ".join(words)
    name = save_index([text], tmp_path / INDEX_FILE)
    index = load_index(tmp_path / INDEX_FILE)
    assert index.name == name == content_name([text])
    assert index.followers(comparable_letters(text)[100:140]) == make_index([text]).followers(
        comparable_letters(text)[100:140]
    )
    assert (tmp_path / INDEX_FILE).stat().st_size < 5 * len(comparable_letters(text)) + 1_000
    assert [path.name for path in tmp_path.iterdir()] == [INDEX_FILE]


def test_corrupted_and_truncated_files_are_detected(tmp_path: Path) -> None:
    path = tmp_path / INDEX_FILE
    save_index(["In a hole in the ground there lived a rabbit"], path)
    good = path.read_bytes()
    for at in range(len(good)):
        for bad in (good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], good[:at]):
            path.write_bytes(bad)
            try:
                # Only changes in the header's padding are harmless.
                assert load_index(path).name == content_name(["In a hole in the ground there lived a rabbit"])
                assert good[at : at + 1] in (b" ", b"\n", b"\t") or at < len(good) - 200
            except ValueError as error:
                assert str(path) in str(error)


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 40, b"\2\0\0\0\0\0\0\0{}", b"\2\0\0\0\0\0\0\0[]"])
def test_errors_name_a_file_that_is_no_index(tmp_path: Path, content: bytes) -> None:
    (tmp_path / INDEX_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=INDEX_FILE):
        load_index(tmp_path / INDEX_FILE)


def test_a_folder_finds_an_index_that_was_added_later(tmp_path: Path) -> None:
    indexes, name = SuffixIndexFolder(tmp_path), content_name(["One fish"])
    with pytest.raises(ValueError, match="LETHE_VERBATIM") as raised:
        indexes.get(name)
    assert name not in str(raised.value)
    for folder, text in (("a", "Two fish"), ("b", "One fish")):
        (tmp_path / folder).mkdir()
        save_index([text], tmp_path / folder / INDEX_FILE)
    assert indexes.get(name).name == name
    assert indexes.get(content_name(["Two fish"])).followers("two") == {"f"}


def test_a_folder_reloads_replaced_indexes_and_skips_broken_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / INDEX_FILE).write_bytes(b"broken")
    indexes = SuffixIndexFolder(tmp_path)
    with caplog.at_level(logging.ERROR), pytest.raises(ValueError):
        indexes.get(content_name(["One fish"]))
    assert "cannot use" in caplog.text
    save_index(["One fish"], tmp_path / "a" / INDEX_FILE)
    assert len(indexes.get(content_name(["One fish"]))) == 7


def test_without_a_folder_there_are_no_indexes() -> None:
    with pytest.raises(ValueError):
        SuffixIndexFolder(None).get("0" * suffix_index.NAME_LENGTH)
