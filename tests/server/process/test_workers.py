"""How workers communicate: a change is answered when all of them use it."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lethe.server.errors import Overloaded
from lethe.server.observability.metrics import Metrics
from lethe.server.process import workers
from lethe.server.process.workers import Worker


@dataclass
class Serving:
    """What of `Live` the workers ask for. poll: how it takes up what the files say."""

    state: str = "new"
    poll: Callable[[], None] = field(default=lambda: None)


@pytest.fixture
def enter(tmp_path: Path) -> Iterator[Callable[[int], Worker]]:
    with ExitStack() as doors:

        def entered(number: int) -> Worker:
            made = Worker.enter(number, 2, tmp_path, tmp_path / "keys", tmp_path / "turns")
            doors.enter_context(made.socket)
            return made

        yield entered


async def test_a_change_waits_until_the_other_worker_has_it(enter: Callable[[int], Worker]) -> None:
    first, second = enter(0), enter(1)
    live = Serving("old")
    asked, told = threading.Event(), threading.Event()

    def poll() -> None:
        asked.set()
        assert told.wait(10)
        live.state = "new"

    live.poll = poll
    async with second.serve_other_workers(live, Metrics()):  # type: ignore[arg-type]
        following = asyncio.ensure_future(asyncio.to_thread(first.wait_for_reload, Serving()))  # type: ignore[arg-type]
        assert await asyncio.to_thread(asked.wait, 10)
        assert not following.done()
        told.set()
        assert await following == []


async def test_a_slow_worker_is_asked_again_until_it_has_reloaded(enter: Callable[[int], Worker]) -> None:
    first, second = enter(0), enter(1)
    live, asked = Serving("old"), 0

    def poll() -> None:
        nonlocal asked
        asked += 1
        live.state = "new" if asked == 3 else "old"

    live.poll = poll
    async with second.serve_other_workers(live, Metrics()):  # type: ignore[arg-type]
        assert await asyncio.to_thread(first.wait_for_reload, Serving()) == []  # type: ignore[arg-type]
    assert asked == 3


def test_a_dead_worker_is_not_waited_for(enter: Callable[[int], Worker]) -> None:
    first = enter(0)
    enter(1).socket.close()
    assert first.wait_for_reload(Serving()) == []  # type: ignore[arg-type]
    first.refresh_gauges()
    enter(1).socket.close()
    assert first.wait_for_reload(Serving()) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("then", ["hang", "be slow to start", "hang for long"])
def test_a_worker_that_does_not_reload_is_killed(
    enter: Callable[[int], Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    monkeypatch.setattr(workers, "RELOAD_TIMEOUT_S", 0.3)
    accept = "made.socket.accept()" if then == "hang" else ""
    code = (
        "import sys, time; from pathlib import Path; from lethe.server.process.workers import Worker\n"
        f"made = Worker.enter(1, 2, *map(Path, sys.argv[1:])); print(flush=True); {accept}\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), "keys", "turns"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other, ExitStack() as asking:
        assert other.stdout is not None and other.stdout.readline()
        first = enter(0)
        if then == "hang for long":
            with pytest.raises(BlockingIOError):
                while True:
                    one = asking.enter_context(socket.socket(socket.AF_UNIX))
                    one.settimeout(1)
                    one.connect(str(tmp_path / "door-1"))
        assert first.wait_for_reload(Serving()) == [1]  # type: ignore[arg-type]
        assert other.wait(10) == -9


def test_a_change_that_a_worker_may_miss_is_not_confirmed(
    enter: Callable[[int], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "RELOAD_TIMEOUT_S", 0.1)
    monkeypatch.setattr(workers, "CLOSE_S", 0.1)
    # One without a door: it is about to open it, or somebody took it away.
    with pytest.raises(Overloaded, match="worker 1 may still use"):
        enter(0).wait_for_reload(Serving())  # type: ignore[arg-type]


def test_one_worker_records_each_version(enter: Callable[[int], Worker], tmp_path: Path) -> None:
    first, second = enter(0), enter(1)
    for number, workers_ in ((1, (second, first)), (2, (first, second))):
        assert [worker.should_record({"version": number, "hash": "a"}) for worker in workers_] == [True, False]
    assert first.should_record({"version": 1, "hash": "b"}), "the versions began anew"
    assert [worker.should_record({}) for worker in (second, first)] == [False, True]
    shutil.rmtree(tmp_path)
    assert second.should_record({"version": 3, "hash": "a"})


async def test_gauges_are_updated_on_request(enter: Callable[[int], Worker]) -> None:
    first, second, metrics = enter(0), enter(1), Metrics()
    refreshed = threading.Event()
    metrics.refresh = refreshed.set  # type: ignore[method-assign]
    async with second.serve_other_workers(None, metrics):
        await asyncio.to_thread(first.refresh_gauges)
    assert refreshed.is_set()


def test_a_workers_start_error_reaches_the_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.yaml").write_text(f"name: p\nartifact: a\naction: {'x' * 100_000}\n")
    monkeypatch.setenv("LETHE_POLICIES", str(tmp_path))
    monkeypatch.setenv("LETHE_WORKERS", "2")
    ours, its = socket.socketpair()
    with ours, its:
        handed_on = str(its.fileno())
        command = [sys.executable, "-m", "lethe.server.process.worker_main", "0", "2", str(tmp_path), *[handed_on] * 3]
        assert subprocess.run(command, pass_fds=[its.fileno()], timeout=60).returncode == 2
        # As much of it as the supervisor reads at a time.
        message = ours.recv(1_000_000)
        assert b"p.yaml" in message and b"action" in message and len(message) < 5000 and message.endswith(b'"\n')
