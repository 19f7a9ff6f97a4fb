"""The real vLLM killed in the midst of an answer: what its client gets, what the next one gets, when service is back.

    python -m benchmarks.vllm_killed

Twice, with the demo's model and a gateway in front that stays: first the whole server is killed, then its engine
alone, which the API server outlives for a moment. Exit status 1 when a client got no error, when a request in between
was answered with anything but an error that says when to come back, or when service did not return.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from lethe.evaluation.demo import demo
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.demo.serving import VLLM_ENV, free_port, running, running_gateway, vllm_command

LOGS = demo.ROOT / "build" / "benchmarks"
BODY = {
    "model": "demo-penalize", "messages": [{"role": "user", "content": "Tell me about rivers."}], "max_tokens": 6000,
    "ignore_eos": True, "temperature": 1, "stream": True,
}  # fmt: skip
SHORT = {**BODY, "max_tokens": 4, "stream": False}


def kill(pid: int, part: str) -> None:
    """The process group, or only the engine in it."""
    if part == "server":
        os.killpg(pid, signal.SIGKILL)
        return
    engines = [child for child in psutil.Process(pid).children(recursive=True) if is_engine(child)]
    for engine in engines:
        engine.kill()
    if not engines:
        raise SystemExit("vLLM has no process of that name")


def is_engine(process: psutil.Process) -> bool:
    # Not every child that has ended is gone.
    with contextlib.suppress(psutil.Error):
        return "EngineCore" in process.name()
    return False


def broken_off(gateway: str, pid: int, part: str) -> tuple[str, float]:
    """The last event of a stream whose vLLM is killed after the first ones, and seconds from there.

    A server that outlives its engine tells the error itself, and then that the stream is done.
    """
    with httpx.stream("POST", f"{gateway}/v1/chat/completions", json=BODY, timeout=120) as got:
        lines, seen, killed = got.iter_lines(), [], 0.0
        for line in lines:
            seen += [line] if line and line != "data: [DONE]" else []
            if len(seen) == 3 and not killed:
                killed = time.monotonic()
                kill(pid, part)
    return seen[-1], time.monotonic() - killed


def come_back(gateway: str, begun: float) -> tuple[set[int], set[int], float]:
    """The statuses of requests until one is served, those of them that say when to come back, and the seconds."""
    statuses, told = set(), set()
    while time.monotonic() - begun < 300:
        got = httpx.post(f"{gateway}/v1/chat/completions", json=SHORT, timeout=60)
        if got.status_code == 200:
            return statuses, told, time.monotonic() - begun
        statuses.add(got.status_code)
        if "retry-after" in got.headers or got.headers.get("x-should-retry") == "true":
            told.add(got.status_code)
        time.sleep(0.25)
    return statuses, told, float("inf")


@contextlib.contextmanager
def gateway_at(port: int) -> Iterator[str]:
    own = free_port()
    env = demo.gateway_env(own, port, demo.ROOT / "policies" / "demo", Path(LOGS / "audit.jsonl"))
    env["LETHE_PROBE_INTERVAL_S"] = "1"
    url = f"http://127.0.0.1:{own}"
    with running_gateway(LOGS / "gateway.log", env=env):
        yield url


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    demo.fit_artifact()
    LOGS.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = vllm_command(FOLDERS["full"], port, list(demo.WAYS.values()))
    health = f"http://127.0.0.1:{port}/health"
    wrong = False
    with contextlib.ExitStack() as stack:
        gateway = ""
        for part in ("server", "engine"):
            with running("vLLM", command, health, LOGS / "vllm.log", env=VLLM_ENV) as vllm:
                gateway = gateway or stack.enter_context(gateway_at(port))
                come_back(gateway, time.monotonic())
                last, seconds = broken_off(gateway, vllm.pid, part)
                failed = httpx.post(f"{gateway}/v1/chat/completions", json=SHORT, timeout=60)
            print(f"{part} killed: the stream's last event, {seconds:.2f} s after it: {last[:160]}")
            print(f"  the next request: {failed.status_code} {failed.text[:120]}", flush=True)
            with running("vLLM", command, health, LOGS / "vllm.log", env=VLLM_ENV):
                statuses, told, back_s = come_back(gateway, time.monotonic())
            print(f"  vLLM ready again: {sorted(statuses) or 'none'} before the first 200, {back_s:.2f} s later")
            wrong |= '"error"' not in last or failed.status_code < 500 or statuses != told or back_s > 60
    sys.exit(wrong)


if __name__ == "__main__":
    main()
