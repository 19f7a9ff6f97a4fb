"""Tensors as torch.save writes them: vLLM reads exactly the given values."""

from __future__ import annotations

import base64
import io
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lethe.corruption.embeddings.torch_format import TensorFile

DTYPES: list[Any] = [ml_dtypes.bfloat16, np.float16, np.float32]


def encoded(rows: np.ndarray[Any, Any]) -> str:
    file = TensorFile(len(rows), rows.shape[1], rows.dtype)
    file.rows[:] = rows
    return file.base64()


def saved(data: str) -> bytes:
    return base64.b64decode(data, validate=True)


def read(data: str) -> torch.Tensor:
    """As vLLM reads it."""
    found = torch.load(io.BytesIO(saved(data)), weights_only=True, map_location=torch.device("cpu"))
    assert isinstance(found, torch.Tensor)
    return found


def bits(found: torch.Tensor | np.ndarray[Any, Any]) -> bytes:
    return (found.view(torch.uint8).numpy() if isinstance(found, torch.Tensor) else found).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_a_written_tensor_reads_back_bit_by_bit(dtype: Any, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    # Any bits at all: subnormal numbers, both zeros, infinities and every NaN.
    unsigned = np.uint32 if dtype is np.float32 else np.uint16
    rows = data.draw(arrays.arrays(unsigned, shape)).view(dtype)
    found = read(encoded(rows))
    assert found.shape == shape and str(found.dtype) == f"torch.{np.dtype(dtype).name}"
    assert bits(found) == bits(rows)
    assert found.is_contiguous() and not found.requires_grad


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tensor_equals_that_of_torch_save(dtype: Any) -> None:
    rows = np.random.default_rng(0).standard_normal((300, 64)).astype(dtype)
    ours = read(encoded(rows))
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    theirs = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))
    # And the same records, but for those that only say how the file was made.
    with (
        zipfile.ZipFile(io.BytesIO(buffer.getvalue())) as one,
        zipfile.ZipFile(io.BytesIO(saved(encoded(rows)))) as two,
    ):
        for name in ("archive/data/0", "archive/version", "archive/byteorder"):
            assert one.read(name) == two.read(name)
        assert two.testzip() is None


def test_equal_rows_give_equal_base64() -> None:
    rows = np.ones((2, 3), dtype=np.float16)
    assert encoded(rows) == encoded(rows.copy())


def test_rows_may_change_between_two_encodings() -> None:
    file = TensorFile(2, 3, np.dtype(np.float32))
    for value in (1.0, 2.0):
        file.rows[:] = value
        assert read(file.base64()).tolist() == [[value] * 3] * 2


@pytest.mark.parametrize("tokens", range(1, 40))
def test_rows_are_aligned_in_the_file_as_by_torch(tokens: int) -> None:
    rows = np.full((tokens, 3), 7, dtype=np.float16)
    data = saved(encoded(rows))
    assert data.index(rows.tobytes()) % 64 == 0


@pytest.mark.parametrize("dtype", [np.float64, np.int8])
def test_other_dtypes_are_refused(dtype: type) -> None:
    with pytest.raises(ValueError, match="can't be sent"):
        TensorFile(2, 2, np.dtype(dtype))


def test_too_large_tensors_are_refused_before_allocation() -> None:
    with pytest.raises(ValueError, match="can't be sent"):
        TensorFile(2**20, 4096, np.dtype(np.float32))
