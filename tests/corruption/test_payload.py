"""Tensors as torch.save writes them: what vLLM reads is what was given, bit by bit."""

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

from corruption.payload import encoded

DTYPES: list[Any] = [ml_dtypes.bfloat16, np.float16, np.float32]


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
def test_what_is_read_is_what_was_written(dtype: Any, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    # Any bits at all: subnormal numbers, both zeros, infinities and every NaN.
    unsigned = np.uint32 if dtype is np.float32 else np.uint16
    rows = data.draw(arrays.arrays(unsigned, shape)).view(dtype)
    found = read(encoded(rows))
    assert found.shape == shape and str(found.dtype) == f"torch.{np.dtype(dtype).name}"
    assert bits(found) == bits(rows)
    assert found.is_contiguous() and not found.requires_grad


@pytest.mark.parametrize("dtype", DTYPES)
def test_torchs_own_file_holds_the_same_tensor(dtype: Any) -> None:
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


def test_rows_that_lie_apart_in_memory_are_written_as_one() -> None:
    rows = np.arange(60, dtype=np.float32).reshape(6, 10)[::2, ::3]
    assert read(encoded(rows)).tolist() == rows.tolist()


def test_the_same_rows_are_the_same_text() -> None:
    rows = np.ones((2, 3), dtype=np.float16)
    assert encoded(rows) == encoded(rows.copy())


@pytest.mark.parametrize(
    "rows", [np.ones((2, 2)), np.ones((2, 2), dtype=np.int8), np.ones(3, dtype=np.float32), np.float32(1)]
)
def test_what_vllm_would_refuse_is_not_written(rows: Any) -> None:
    with pytest.raises(ValueError, match="no tensor of embeddings"):
        encoded(rows)
