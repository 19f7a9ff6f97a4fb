"""Processes that tests kill, stop and start again: upstreams with canned answers, and gateways in front."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks import canned
from lethe.evaluation.demo import demo
from lethe.evaluation.serving import clean_env, free_port, running, stop_process

MODELS = ["m-refuse", "m-pass"]
BUILD = demo.ROOT / "build" / "tests" / "faults"
POLICY = (
    "name: {0}\nartifact: {1}\naction: refuse\nmodels: [m-{0}]\nthreshold: {{miss_rate: 0.0125}}\non_failure: {0}\n"
    "refuse: {{as: error}}\n"
)


def until(condition: Callable[[], Any], what: str, *, within_s: float = 20.0) -> None:
    """Wait for something that comes about by itself. Fails with `what`."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@dataclass
class Upstream:
    """A canned upstream at one port, started as often as need be."""

    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *options: str) -> None:
        self.process = subprocess.Popen(canned.command(self.port, MODELS, *options), start_new_session=True)
        until(self.answers, "the upstream did not start")

    def answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/health").status_code == 200
        return False

    def running(self) -> float:
        """How many requests it is answering, in its own words."""
        return float(httpx.get(f"{self.url}/metrics").text.split()[-1])

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def end(self) -> None:
        if self.process is not None:
            # One that is stopped can't end.
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
            stop_process(self.process, grace_s=2)


@contextlib.contextmanager
def upstreams(count: int) -> Iterator[list[Upstream]]:
    made = [Upstream() for _ in range(count)]
    try:
        for one in made:
            one.start()
        yield made
    finally:
        for one in made:
            one.end()


@dataclass
class Gateway:
    """A gateway process, and what can be learnt of it from outside."""

    process: subprocess.Popen[bytes]
    url: str
    admin: str
    folder: Path

    def count(self, name: str, **labels: str) -> float:
        """A metric's value: of all its series that have these labels, summed."""
        found = 0.0
        text = httpx.get(f"{self.admin}/metrics", headers={"connection": "close"}).text
        for given, value in re.findall(rf"^lethe_{name}(?:\{{([^}}]*)\}})? (\S+)$", text, re.MULTILINE):
            if all(f'{label}="{wanted}"' in given for label, wanted in labels.items()):
                found += float(value)
        return found

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def tasks(self) -> int:
        """How many of its tasks aren't done."""
        told = self.folder / "TASKS"
        told.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        until(told.exists, "the gateway did not say how many tasks it has")
        return int(told.read_text())

    def log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    def ask(self, model: str = "m-refuse", text: str = "hello", **more: Any) -> httpx.Response:
        headers = more.pop("headers", {})
        body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=30)


def settings(name: str, urls: Sequence[str], **given: object) -> tuple[Path, dict[str, str]]:
    """A folder for a gateway of that name, with policies that refuse, and its environment.

    The policy for model m-refuse refuses what could not be judged, that for m-pass lets it pass.
    """
    demo.prepare_artifact()
    folder = BUILD / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "policies").mkdir(parents=True)
    for on_failure in ("refuse", "pass"):
        (folder / "policies" / f"{on_failure}.yaml").write_text(POLICY.format(on_failure, demo.ARTIFACT))
    # A copy: tests spoil it.
    shutil.copytree(demo.ARTIFACTS / demo.ARTIFACT, folder / "artifacts" / demo.ARTIFACT)
    env = {
        "LETHE_PORT": free_port(), "LETHE_ADMIN_PORT": free_port(), "LETHE_UPSTREAM": ",".join(urls),
        "LETHE_POLICIES": folder / "policies", "LETHE_ARTIFACTS": folder / "artifacts",
        "LETHE_AUDIT": folder / "audit.jsonl", "LETHE_PROBE_INTERVAL_S": 0.5, "LETHE_CONNECT_TIMEOUT_S": 1,
        "LETHE_READ_TIMEOUT_S": 1, "LETHE_JUDGE_TIMEOUT_S": 1, "LETHE_DRAIN_TIMEOUT_S": 5, "FAULTS": folder,
        **given,
    }  # fmt: skip
    return folder, {key: str(value) for key, value in env.items()}


COMMAND = [sys.executable, "-m", "tests.integration.faulty"]


@contextlib.contextmanager
def gateway(name: str, urls: Sequence[str], *, largest_file: int | None = None, **given: object) -> Iterator[Gateway]:
    """A gateway process with faults to ask for. largest_file: no file of its may grow beyond so many bytes."""
    folder, env = settings(name, urls, **given)
    url, admin = (f"http://127.0.0.1:{env[key]}" for key in ("LETHE_PORT", "LETHE_ADMIN_PORT"))
    command = COMMAND
    if largest_file is not None:
        command = ["prlimit", f"--fsize={largest_file}", *COMMAND]
    with running(name, command, f"{url}/ready", folder / "gateway.log", env=env) as process:
        yield Gateway(process, url, admin, folder)


def start_fails(name: str, env: Mapping[str, str]) -> str:
    """What a gateway that can't start says. Its exit status must be 2."""
    done = subprocess.run(COMMAND, env={**clean_env(), **env}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, (name, done.stderr)
    return done.stderr
