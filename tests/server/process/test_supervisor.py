"""Several worker processes: one port, common counts and policies; and what happens when one dies."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.mmap_dict import MmapedDict

from lethe.evaluation.serving import clean_env, free_port, running
from lethe.server.admission import api_keys
from lethe.server.atomic_file import write_atomically
from lethe.server.policy_store import seed_artifact
from lethe.server.process import sockets, supervisor, workers
from lethe.server.process.supervisor import Supervisor
from lethe.server.settings import Settings, SettingsError
from tests.integration import processes
from tests.integration.processes import until
from tests.server.conftest import ADMIN_KEY, FACTS
from tests.server.fakes import REFUSED, status_or_refused

QUESTION = FACTS[0][0]


@dataclass
class Several:
    """A gateway of two workers."""

    process: subprocess.Popen[bytes]
    url: str
    admin: str
    key: dict[str, str]
    slow: dict[str, str]
    given: Path

    @property
    def pids(self) -> dict[int, int]:
        """Worker → its process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {int(given[0]): int(child) for child in children if (given := self._arguments(int(child)))}

    def _arguments(self, pid: int) -> list[str]:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        except OSError:
            return []
        return (
            command[command.index("lethe.server.process.worker_main") + 1 :]
            if "lethe.server.process.worker_main" in command
            else []
        )

    @property
    def folder(self) -> Path:
        return Path(self._arguments(self.pids[0])[2])

    def ask(self, headers: Mapping[str, str], text: str = QUESTION) -> int | str:
        """The status of an answer, or REFUSED, over a connection of its own."""
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        answer = httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=30)
        return status_or_refused(answer.status_code, answer.content)

    def ask_often(self, count: int, headers: Mapping[str, str], text: str = QUESTION) -> list[int | str]:
        """So many at a time."""
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda _: self.ask(headers, text), range(count)))

    def change(self, what: str) -> Any:
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        answer = httpx.post(f"{self.admin}/admin/policies/p/{what}", headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def count(self, name: str) -> float:
        """A metric as the admin port shows it: all its series, summed."""
        text = httpx.get(f"{self.admin}/metrics").text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.split("{")[0].split()[0] == name)

    def on_record(self) -> list[int]:
        """The versions that the audit trail tells of."""
        lines = map(json.loads, (self.given / "audit.jsonl").read_text().splitlines())
        return [line["version"] for line in lines if line.get("event") == "policies"]

    def counted_by(self, number: int, name: str) -> float:
        """A counter as one worker has it."""
        rows = MmapedDict.read_all_values_from_file(workers.metrics_folder(self.folder) / f"counter_{number}.db")
        return sum(value for key, value, *_ in rows if json.loads(key)[1] == name)


@pytest.fixture(scope="module")
def upstream() -> Iterator[processes.Upstream]:
    made = processes.Upstream()
    try:
        made.start("--models", "m", "--tokens", "1", "--pause", "0")
        yield made
    finally:
        made.end()


@contextmanager
def gateway(home: Path, base_folder: Path, upstream: processes.Upstream, folder: Path) -> Iterator[Several]:
    shutil.copytree(home / "policies", folder / "policies")
    shutil.copytree(home / "artifacts" / "small", folder / "artifacts" / "small")
    shutil.copytree(base_folder, seed_artifact.seed_folder(Settings(artifacts=folder / "artifacts")))
    free = {"authorization": f"Bearer {api_keys.create_key(folder / 'keys.json', name='free')}"}
    slow = api_keys.create_key(folder / "keys.json", name="slow", requests_per_minute=10, concurrency=3)
    port, admin = free_port(), free_port()
    env = {
        "LETHE_WORKERS": 2, "LETHE_PORT": port, "LETHE_ADMIN_PORT": admin, "LETHE_ADMIN_KEY": ADMIN_KEY,
        "LETHE_UPSTREAM": upstream.url, "LETHE_POLICIES": folder / "policies", "LETHE_KEYS": folder / "keys.json",
        "LETHE_ARTIFACTS": folder / "artifacts", "LETHE_AUDIT": folder / "audit.jsonl", "LETHE_DRAIN_TIMEOUT_S": 5,
    }  # fmt: skip
    command = [sys.executable, "-m", "lethe.server.cli.main", "serve"]
    url, log = f"http://127.0.0.1:{port}", folder / "log"
    with running(
        "two workers", command, f"{url}/ready", log, env={key: str(value) for key, value in env.items()}
    ) as up:
        found = Several(up, url, f"http://127.0.0.1:{admin}", free, {"authorization": f"Bearer {slow}"}, folder)
        until(lambda: log.read_text().count(" serves\n") == 2, "not all workers serve")
        yield found


@pytest.fixture(scope="module")
def several(
    home: Path, base_folder: Path, upstream: processes.Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Several]:
    with gateway(home, base_folder, upstream, tmp_path_factory.mktemp("several")) as made:
        yield made


def test_both_workers_serve_and_one_metrics_response_counts_both(several: Several) -> None:
    assert several.ask_often(30, several.key, "What is the weather like?") == [200] * 30
    each = [several.counted_by(number, "lethe_requests_total") for number in range(2)]
    assert min(each) > 0 and sum(each) == several.count("lethe_requests_total") == 30
    assert several.count("lethe_workers") == 2
    assert several.count("lethe_request_seconds_count") == 30 and several.count("lethe_requests_in_flight") == 0


def test_key_limits_count_over_all_workers(several: Several, upstream: processes.Upstream) -> None:
    begun = time.monotonic()
    upstream.signal(signal.SIGSTOP)
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(several.ask, several.slow, "Hello?") for _ in range(12)]
        until(lambda: sum(one.done() for one in asked) == 9, "not as many as the key may have wait for an answer")
        upstream.signal(signal.SIGCONT)
        assert sorted(one.result() for one in asked) == [200] * 3 + [429] * 9
    left = several.ask_often(3, several.slow, "Hello?")
    answers = left + [several.ask(several.slow, "Hello?") for _ in range(12)]
    assert 7 <= answers.count(200) <= 7 + (time.monotonic() - begun) / 6 + 1
    assert several.count("lethe_requests_in_flight") == 0


def test_a_policy_change_is_answered_when_all_workers_use_it(several: Several) -> None:
    for number in range(2):
        assert "workers_ended" not in several.change("disable")
        assert several.ask_often(8, several.key) == [200] * 8
        assert several.change("enable")["version"] == 3 + 2 * number
        assert several.ask_often(8, several.key) == [REFUSED] * 8


@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_worker_is_restarted_and_keeps_its_counters(several: Several, number: int) -> None:
    requests, starts = several.count("lethe_requests_total"), several.count("lethe_worker_starts_total")
    before = several.pids
    versions = several.on_record()
    os.kill(before[number], signal.SIGKILL)
    until(lambda: number not in several.pids, "it is not dead")
    if number == 0:
        # Nothing lies there for the next one, to be carried out when its sender has given up.
        with pytest.raises(httpx.ConnectError):
            several.change("disable")
    policy = several.given / "policies" / "p.yaml"
    write_atomically(policy, policy.read_bytes() + b"# changed\n")
    until(lambda: several.pids.get(number, before[number]) != before[number], "it is not started again")

    def back() -> bool:
        try:
            return several.count("lethe_worker_starts_total") == starts + 1
        except httpx.HTTPError:
            return False

    until(back, "it does not serve again")
    assert several.pids[1 - number] == before[1 - number]
    assert several.count("lethe_requests_total") == requests and several.count("lethe_workers") == 2
    assert set(several.ask_often(8, several.key)) == {REFUSED}
    assert several.on_record() == [*versions, versions[-1] + 1]
    assert "workers_ended" not in several.change("shadow") and "workers_ended" not in several.change("enable")


def gone(pids: Iterable[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_shutdown_finishes_requests_and_leaves_no_files(several: Several, upstream: processes.Upstream) -> None:
    pids, folder = several.pids, several.folder
    upstream.signal(signal.SIGSTOP)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(several.ask, several.key, "What is the weather like?") for _ in range(4)]
        until(lambda: several.count("lethe_requests_in_flight") == 4, "they are not on their way")
        several.process.send_signal(signal.SIGTERM)
        upstream.signal(signal.SIGCONT)
        assert [one.result() for one in asked] == [200] * 4
    assert several.process.wait(10) == -signal.SIGTERM
    assert gone(pids.values()) and not folder.exists()


def test_a_killed_supervisor_leaves_no_processes_or_files(
    home: Path, base_folder: Path, upstream: processes.Upstream, tmp_path: Path
) -> None:
    with gateway(home, base_folder, upstream, tmp_path) as several:
        pids, folder = several.pids, several.folder
        assert len(pids) == 2 and folder.is_dir()
        several.process.kill()
        until(lambda: gone(pids.values()) and not folder.exists(), "workers are left")
    # There were no requests: the one line is that of the version at the start.
    assert several.on_record() == [1] and (tmp_path / "audit.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize(("given", "error_text"), [
    ({"LETHE_POLICIES": "{0}/nothere"}, "lethe serve: the policies folder {0}/nothere does not exist (LETHE_POLICIES)"),
    ({"LETHE_MAX_REQUESTS": "1"}, "lethe serve: environment variable LETHE_MAX_REQUESTS = 1 is too little for "
     "LETHE_WORKERS = 2: each worker gets an equal share and needs at least 1"),
])  # fmt: skip
def test_an_error_at_start_is_reported_once(tmp_path: Path, given: dict[str, str], error_text: str) -> None:
    env = {"LETHE_WORKERS": "2", "LETHE_PORT": str(free_port()), "LETHE_POLICIES": str(tmp_path), "LETHE_AUDIT": ""}
    env |= {key: value.format(tmp_path) for key, value in given.items()}
    command = [sys.executable, "-m", "lethe.server.cli.main", "serve"]
    done = subprocess.run(command, env={**clean_env(), **env}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, error_text.format(tmp_path) + "\n")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have workers be a few lines of shell instead. $number and $control are theirs; $life begins at 1."""

    def made(script: str) -> None:
        place = tmp_path / "fake"
        lives = f'lives={place}.$4; echo >>"$lives"; life=$(wc -l <"$lives")'
        place.write_text(f"#!/bin/bash\nnumber=$4 control=$7; {lives}\n{script}\n")
        place.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(place))

    return made


def test_a_worker_killed_at_start_stops_the_gateway(fake: Callable[[str], None]) -> None:
    fake("kill -KILL $$")
    with pytest.raises(SettingsError, match=r"^worker \d failed at start with status -9$"):
        supervisor.serve_with_workers(Settings(workers=2, port=free_port()))


@pytest.mark.parametrize("taken", ["port", "admin_port"])
def test_two_gateways_started_together_share_no_port(fake: Callable[[str], None], taken: str) -> None:
    fake("kill -KILL $$")
    settings = Settings(workers=2, port=free_port(), admin_port=free_port())
    with (
        sockets.reserve_address("127.0.0.1", getattr(settings, taken), "LETHE_PORT", shared=taken == "port"),
        pytest.raises(SettingsError, match=f"can't listen on 127.0.0.1:{getattr(settings, taken)}"),
    ):
        supervisor.serve_with_workers(settings)


def test_a_temporary_folder_with_a_long_path_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (long := tmp_path / ("x" * 80)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(SettingsError, match="TMPDIR"):
        supervisor.serve_with_workers(Settings(workers=2, port=free_port()))


async def test_an_ended_worker_does_not_stop_signals_to_others(tmp_path: Path) -> None:
    made = Supervisor(Settings(workers=2), tmp_path)
    ended = await asyncio.create_subprocess_exec("true")
    await ended.wait()
    running = await asyncio.create_subprocess_exec("sleep", "60")
    made._running = {0: ended, 1: running}
    made._signal_all(signal.SIGTERM)
    assert await running.wait() == -signal.SIGTERM


@pytest.mark.parametrize("says", [
    "printf '\"%0100000d\"\\n' 0 >&$control; exit 2",
    "printf '\"cut off' >&$control; kill -KILL $$",
])  # fmt: skip
async def test_other_workers_serve_whatever_happens_to_one(
    fake: Callable[[str], None], says: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed, what all share is cleared away, and it can't be started again, for it says nonsense."""
    caplog.set_level(logging.INFO, "lethe.workers")
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.01)
    fake(f"[ $number$life = 12 ] && {{ {says}; }}; echo ready >&$control; exec sleep 60")

    async def wait_for_log(what: str, times: int = 1) -> None:
        async with asyncio.timeout(10):
            while caplog.text.count(what) < times:
                await asyncio.sleep(0.02)

    with supervisor._shared_folder() as folder:
        with pytest.raises(BlockingIOError):
            os_folder = os.open(folder, os.O_RDONLY)
            fcntl.flock(os_folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(os_folder)
        made = Supervisor(Settings(workers=2), folder)
        running = asyncio.ensure_future(made.run())
        await wait_for_log(" serves\n", 2)
        shutil.rmtree(folder)
        made._running[1].kill()
        await wait_for_log("worker 1 ended with status", 2)
        await wait_for_log("worker 1 serves\n", 2)
        assert made._running[0].returncode is None and not running.done()
        made._stop()
        await running


def test_each_worker_gets_threads_for_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    made = supervisor.worker_environment(3, {"OMP_NUM_THREADS": "7", "PYTHONPATH": "/elsewhere", "LETHE_WORKERS": "3"})
    assert made["PYTHONPATH"] == "/elsewhere"
    assert made["OMP_NUM_THREADS"] == "7" and made["OPENBLAS_NUM_THREADS"] == made["RAYON_NUM_THREADS"] == "2"
    assert supervisor.worker_environment(16, {})["OMP_NUM_THREADS"] == "1"
