"""The stages of a fit: their names, and plain progress lines for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import IO

# Called with (stage, done, total). `stage` is one of the templates below; `total` fills its {count}.
Progress = Callable[[str, int, int], None]

EMBED_FORGET = "embedding {count:,} forget texts"
EMBED_BACKGROUND = "embedding {count:,} background prompts"
EMBED_TRAINING = "embedding {count:,} training texts (rewordings, retain texts, decoys)"
EMBED_WORDS = "embedding {count:,} words of answers"
TRAIN_MODELS = "training {count:,} sets of models (one for each fold, one for all)"
FINETUNE = "fine-tuning the encoder in {count:,} steps"

# Seconds between updates of a line on a terminal: a person reads no faster.
UPDATE_INTERVAL_S = 0.5


def no_progress(stage: str, done: int, total: int) -> None:
    """Report nothing."""


class ProgressLines:
    """Prints one line for each stage: with the share done on a terminal, start and end only in a log file.

    Call it with (stage, done, total). Leaving the `with` block ends the last line.
    """

    def __init__(self, out: IO[str]) -> None:
        self._out, self._is_terminal = out, out.isatty()
        self._label, self._total = "", 0
        self._started = self._updated = 0.0

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()

    def __call__(self, stage: str, done: int, total: int) -> None:
        label = stage.format(count=total)
        now = time.monotonic()
        if label != self._label:
            self._finish()
            self._label, self._started, self._updated = label, now, now
            self._write(f"{label} …", end="" if self._is_terminal else "\n")
        elif self._is_terminal and now - self._updated >= UPDATE_INTERVAL_S:
            self._updated = now
            self._write(f"\r{label} … {100 * done // max(total, 1)} %")

    def _finish(self) -> None:
        if self._label:
            seconds = time.monotonic() - self._started
            # Blanks hide the rest of a longer line before.
            line = f"\r{self._label} … {seconds:.0f} s   " if self._is_terminal else f"{self._label}: {seconds:.0f} s"
            self._write(line, end="\n")
            self._label = ""

    def _write(self, text: str, end: str = "") -> None:
        self._out.write(text + end)
        self._out.flush()
