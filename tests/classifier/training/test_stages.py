from __future__ import annotations

import io

import pytest

from lethe.classifier.training import stages
from lethe.classifier.training.stages import ProgressLines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_two_stages(out: io.StringIO) -> str:
    with ProgressLines(out) as progress:
        for done in (1, 1500, 3146):
            progress(stages.EMBED_BACKGROUND, done, 3146)
        progress(stages.TRAIN_MODELS, 0, 5)
    return out.getvalue()


def test_a_log_file_gets_a_line_at_the_start_and_at_the_end_of_a_stage() -> None:
    assert run_two_stages(io.StringIO()).splitlines() == [
        "embedding 3,146 background prompts …",
        "embedding 3,146 background prompts: 0 s",
        "training 5 sets of models (one for each fold, one for all) …",
        "training 5 sets of models (one for each fold, one for all): 0 s",
    ]


def test_a_terminal_gets_one_line_for_each_stage() -> None:
    text = run_two_stages(Terminal())
    assert text.count("\n") == 2
    assert text.startswith("embedding 3,146 background prompts …\r")
    assert "embedding 3,146 background prompts … 0 s" in text


def test_a_terminal_shows_the_share_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "UPDATE_INTERVAL_S", 0.0)
    assert "\rembedding 3,146 background prompts … 47 %" in run_two_stages(Terminal())
