"""vLLM with the plugin, and the gateway before it, look up no name: the whole demo runs without a network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lethe.classifier.encoder.export import prepare_named
from lethe.classifier.encoder.folders import DEFAULT_ENCODER
from tests.name_lookups import names_looked_up, unavailable

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]


def test_vllm_with_the_plugin_looks_up_no_name(tmp_path: Path) -> None:
    encoder = str(prepare_named(DEFAULT_ENCODER))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LETHE_", "ORT_"))}
    environment = {**kept, "XDG_CACHE_HOME": str(tmp_path / "cache"), "LETHE_ENCODER": encoder}
    command = [sys.executable, "-m", "lethe.evaluation.demo.demo", "--exit"]
    assert names_looked_up(command, tmp_path, env=environment) == []
    assert not (tmp_path / "cache" / "Microsoft").exists()
