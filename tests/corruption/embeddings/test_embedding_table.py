"""The embedding table: its rows, and errors that name folder, file and tensor."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lethe.corruption.embeddings.embedding_table import EmbeddingTable

NAME = "model.embed_tokens.weight"


def table(rows: int = 12, width: int = 8, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def bits(rows: Any) -> bytes:
    """The bytes of a tensor or of an array."""
    return (rows.view(torch.uint8).numpy() if isinstance(rows, torch.Tensor) else rows).tobytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_are_bit_identical_to_the_stored_ones(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = table(dtype=dtype)
    save_file({"lm_head.weight": weights + 1, NAME: weights}, tmp_path / "model.safetensors")
    found = EmbeddingTable(tmp_path)
    rows = found.rows([3, 0, 3, 11])
    assert str(dtype) == f"torch.{rows.dtype.name}"
    assert bits(rows) == bits(weights[[3, 0, 3, 11]])
    assert (found.size, found.width, found.name) == (12, 8, NAME)
    assert found.rows([]).shape == (0, 8)


def test_rows_are_read_into_contiguous_memory_only(tmp_path: Path) -> None:
    save_file({NAME: table()}, tmp_path / "model.safetensors")
    found = EmbeddingTable(tmp_path)
    space = np.zeros((5, 8), dtype=ml_dtypes.bfloat16)
    assert np.shares_memory(found.rows([4, 4, 1], out=space[1:4]), space)
    assert bits(space) == bytes(16) + bits(table()[[4, 4, 1]]) + bytes(16)
    with pytest.raises(ValueError, match="contiguous"):
        found.rows([1, 2], out=space[::2][:2])


def test_rows_are_a_copy(tmp_path: Path) -> None:
    save_file({NAME: table()}, tmp_path / "model.safetensors")
    found = EmbeddingTable(tmp_path)
    found.rows([0])[:] = 0
    assert bits(found.rows([0])) == bits(table()[[0]])


@pytest.mark.parametrize(
    "name", ["transformer.wte.weight", "tok_embeddings.weight", "transformer.word_embeddings.weight"]
)
def test_embedding_names_of_other_families_are_found(tmp_path: Path, name: str) -> None:
    others = {"transformer.wpe.weight": table(5, 3), "vision.embed_tokens.weight": table(5, 3)}
    save_file(others | {name: table()}, tmp_path / "model.safetensors")
    assert EmbeddingTable(tmp_path).name == name


def test_in_multimodal_models_the_language_models_table_is_used(tmp_path: Path) -> None:
    names = ["visual.embed_tokens.weight", "model.language_model.embed_tokens.weight"]
    save_file({names[0]: table(5, 3), names[1]: table()}, tmp_path / "model.safetensors")
    assert EmbeddingTable(tmp_path).name == names[1]


def test_the_index_names_the_shard_with_the_table(tmp_path: Path) -> None:
    save_file({"a": table(2, 2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": table(2, 2), NAME: table()}, tmp_path / "model-00002-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", NAME: "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert bits(EmbeddingTable(tmp_path).rows([5])) == bits(table()[[5]])


def test_row_rms_is_the_root_mean_square(tmp_path: Path) -> None:
    save_file({NAME: table(5000, 8)}, tmp_path / "model.safetensors")
    expected = table(5000, 8).double().square().mean().sqrt().item()
    assert EmbeddingTable(tmp_path).row_rms == pytest.approx(expected, rel=0.03)


def resident_kib(what: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+) kB", status)[1])  # type: ignore[index]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system doesn't tell what is in memory")
def test_the_table_is_never_loaded_into_memory(tmp_path: Path) -> None:
    rows, width = 16384, 2048  # 64 MiB
    values = np.zeros((rows, width), dtype=ml_dtypes.bfloat16)
    values[:, 0] = np.arange(rows)
    save_file({NAME: torch.from_numpy(values.view(np.uint16)).view(torch.bfloat16)}, tmp_path / "model.safetensors")
    found = EmbeddingTable(tmp_path)
    before = resident_kib("RssFile")
    for ids in np.random.default_rng(0).permutation(rows).reshape(-1, 128):
        assert (found.rows(ids)[:, 0] == values[ids, 0]).all()
    assert resident_kib("RssFile") - before < 4096


def test_the_error_names_a_file_that_became_shorter(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({NAME: table()}, file)
    found = EmbeddingTable(tmp_path)
    os.truncate(file, file.stat().st_size - 4)
    found.rows([0])
    with pytest.raises(ValueError, match="become shorter"):
        found.rows([0, 11])


def test_a_table_of_zeros_is_refused(tmp_path: Path) -> None:
    save_file({NAME: torch.zeros(3, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="row RMS"):
        _ = EmbeddingTable(tmp_path).row_rms


@pytest.mark.parametrize("ids", [[-1], [12], [0, 99]])
def test_an_id_outside_the_table_is_an_error(tmp_path: Path, ids: list[int]) -> None:
    save_file({NAME: table()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"not all in \[0, 12\)"):
        EmbeddingTable(tmp_path).rows(ids)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(4, 4, dtype=torch.float8_e4m3fn), "F8_E4M3.*quantised"),
        (torch.zeros(4, 4, dtype=torch.int8), "dtype I8"),
        (torch.zeros(4, 2, 2), "shape"),
    ],
)
def test_errors_name_unusable_tables(tmp_path: Path, tensor: torch.Tensor, message: str) -> None:
    save_file({NAME: tensor}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        EmbeddingTable(tmp_path)
    assert NAME in str(caught.value) and str(tmp_path) in str(caught.value)


def test_errors_name_a_missing_folder_file_or_tensor(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        EmbeddingTable(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no"):
        EmbeddingTable(tmp_path)
    save_file({"lm_head.weight": table()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="none of 1 tensors"):
        EmbeddingTable(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header of 0 bytes"),
        (b"\xff" * 40, "not a safetensors file"),
        (b"\x04\0\0\0\0\0\0\0{{{{", "no valid JSON"),
        (b"\x02\0\0\0\0\0\0\0[]", "a list, not an object"),
    ],
)
def test_errors_name_a_broken_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        EmbeddingTable(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({NAME: table()}, file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="cut off"):
        EmbeddingTable(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "no 'weight_map'"),
        ({"weight_map": {NAME: "../elsewhere.safetensors"}}, "outside the folder"),
        ({"weight_map": {NAME: "absent.safetensors"}}, "is missing"),
    ],
)
def test_errors_name_a_wrong_index(tmp_path: Path, index: dict[str, object], message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        EmbeddingTable(tmp_path)
