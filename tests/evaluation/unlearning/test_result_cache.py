"""The work folder: finished results are reused, and computed again after a change of their inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lethe.evaluation.unlearning.result_cache import ResultCache


def test_a_result_is_computed_once_per_inputs(tmp_path: Path) -> None:
    calls = []

    def compute() -> list[int]:
        calls.append(1)
        return [len(calls)]

    assert ResultCache(tmp_path).get_or_compute("system/answers", ["a"], compute) == [1]
    assert ResultCache(tmp_path).get_or_compute("system/answers", ["a"], compute) == [1]
    assert ResultCache(tmp_path).get_or_compute("system/answers", ["b"], compute) == [2]
    assert len(calls) == 2


def test_a_failed_computation_leaves_no_file(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("gone")

    with pytest.raises(ValueError, match="gone"):
        ResultCache(tmp_path).get_or_compute("p", [], fail)
    assert ResultCache(tmp_path).get_or_compute("p", [], lambda: {"1": (2,)}) == {"1": [2]}
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]
