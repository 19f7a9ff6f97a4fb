"""`lethe serve` with faults that can't be brought about from outside the process. Tests start it as a process.

A text that holds RAISE makes the classifier raise, one that holds SLOW keeps it for SLOW_S. The file CLOCK, if
there is one, holds the seconds that the wall clock is off by. SIGUSR1 writes into the file TASKS how many tasks
of asyncio aren't done. Both files are in the folder of the environment variable FAULTS. An audit file that takes
nothing is given up after a second.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from lethe.classifier.judge import Judge, Score
from lethe.server.cli import main as cli
from lethe.server.observability import audit

RAISE, SLOW = "raise-now", "slow-now"
SLOW_S = 3.0

_judge, _time = Judge.judge, time.time
FOLDER = Path(os.environ.get("FAULTS", "."))


def judge(self: Judge, texts: Sequence[str], *, thresholds: Mapping[str, float] | None = None) -> dict[str, Score]:
    said = " ".join(texts)
    if RAISE in said:
        raise RuntimeError("as the test asked for")
    if SLOW in said:
        time.sleep(SLOW_S)
    return _judge(self, texts, thresholds=thresholds)


def clock() -> float:
    try:
        return _time() + float((FOLDER / "CLOCK").read_text())
    except (OSError, ValueError):
        return _time()


def tell(number: int, frame: FrameType | None) -> None:
    tasks = [found for found in gc.get_objects() if isinstance(found, asyncio.Task) and not found.done()]
    (FOLDER / "TASKS.new").write_text(f"{len(tasks)}\n")
    (FOLDER / "TASKS.new").rename(FOLDER / "TASKS")


if __name__ == "__main__":
    audit.CLOSE_S = 1.0
    Judge.judge = judge  # type: ignore[method-assign]
    time.time = clock
    signal.signal(signal.SIGUSR1, tell)
    cli.main(["serve"])
