"""How workers ask each other: a change holds in all of them before it is answered, or not by its old policies."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server import workers
from server.errors import Overloaded
from server.metrics import Metrics
from server.workers import Worker


@dataclass
class Serving:
    """What of `Live` the workers ask for. poll: how it takes up what the files say."""

    state: str = "new"
    poll: Callable[[], None] = field(default=lambda: None)


@pytest.fixture
def enter(tmp_path: Path) -> Iterator[Callable[[int], Worker]]:
    with ExitStack() as doors:

        def entered(number: int) -> Worker:
            made = Worker.enter(number, 2, tmp_path)
            doors.enter_context(made.door)
            return made

        yield entered


async def test_a_change_is_answered_when_the_other_worker_serves_it(enter: Callable[[int], Worker]) -> None:
    first, second = enter(0), enter(1)
    live = Serving("old")
    asked, told = threading.Event(), threading.Event()

    def poll() -> None:
        asked.set()
        assert told.wait(10)
        live.state = "new"

    live.poll = poll
    async with second.answering(live, Metrics()):  # type: ignore[arg-type]
        following = asyncio.ensure_future(asyncio.to_thread(first.follow, Serving()))  # type: ignore[arg-type]
        assert await asyncio.to_thread(asked.wait, 10)
        assert not following.done()
        told.set()
        assert await following == []


async def test_a_worker_that_reads_later_is_asked_until_it_has(enter: Callable[[int], Worker]) -> None:
    first, second = enter(0), enter(1)
    live, asked = Serving("old"), 0

    def poll() -> None:
        nonlocal asked
        asked += 1
        live.state = "new" if asked == 3 else "old"

    live.poll = poll
    async with second.answering(live, Metrics()):  # type: ignore[arg-type]
        assert await asyncio.to_thread(first.follow, Serving()) == []  # type: ignore[arg-type]
    assert asked == 3


def test_nobody_waits_for_a_worker_that_is_not_there(enter: Callable[[int], Worker]) -> None:
    first = enter(0)
    assert first.follow(Serving()) == []  # type: ignore[arg-type]
    enter(1).door.close()
    assert first.follow(Serving()) == []  # type: ignore[arg-type]
    first.refresh_gauges()


@pytest.mark.parametrize("then", ["hang", "be slow to start"])
def test_a_worker_that_does_not_follow_is_ended(
    enter: Callable[[int], Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    monkeypatch.setattr(workers, "FOLLOW_S", 0.3)
    accept = "made.door.accept()" if then == "hang" else ""
    code = (
        "import sys, time; from pathlib import Path; from server.workers import Worker\n"
        f"made = Worker.enter(1, 2, Path(sys.argv[1])); print(flush=True); {accept}\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        first = enter(0)
        assert first.follow(Serving()) == [1]  # type: ignore[arg-type]
        assert other.wait(10) == -9


def test_a_change_that_may_not_hold_everywhere_is_not_confirmed(
    enter: Callable[[int], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "FOLLOW_S", 0.1)
    monkeypatch.setattr(workers, "CLOSE_S", 0.1)
    first = enter(0)
    monkeypatch.setattr(Worker, "_ask", lambda *_: (_ for _ in ()).throw(TimeoutError("timed out")))
    with pytest.raises(Overloaded, match="worker 1 may still answer"):
        first.follow(Serving())  # type: ignore[arg-type]


async def test_gauges_are_brought_up_to_date_when_asked(enter: Callable[[int], Worker]) -> None:
    first, second, metrics = enter(0), enter(1), Metrics()
    refreshed = threading.Event()
    metrics.refresh = refreshed.set  # type: ignore[method-assign]
    async with second.answering(None, metrics):
        await asyncio.to_thread(first.refresh_gauges)
    assert refreshed.is_set()


def test_what_stops_a_worker_is_told_to_the_supervisor_in_the_settings_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETHE_POLICIES", str(tmp_path / "nothere"))
    monkeypatch.setenv("LETHE_WORKERS", "2")
    ours, its = socket.socketpair()
    with ours, its:
        command = [sys.executable, "-m", "server.workers", "0", "2", str(tmp_path), str(its.fileno())]
        assert subprocess.run(command, pass_fds=[its.fileno()], timeout=60).returncode == 2
        assert b"nothere does not exist (LETHE_POLICIES)" in ours.recv(1000)
