"""What do clients get when vLLM is killed during an answer, and how soon does the gateway serve again?

    python -m benchmarks.vllm_killed

Two runs with the demo's model and one gateway: first the whole vLLM server is killed, then its engine process only,
which the API server survives for a moment. It prints the last event of the interrupted stream, the response to the next
request, and the statuses and seconds until requests are served again after vLLM was restarted. Exit status 1 if the
client got no error, if a request in between got no error with retry headers, or if service did not return in 60 s.
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

from benchmarks.demo_servers import LOGS, POLICIES
from lethe.evaluation.demo import demo
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.serving import VLLM_ENV, free_port, running, running_gateway, vllm_command

BODY = {
    "model": "demo-penalize", "messages": [{"role": "user", "content": "Tell me about rivers."}], "max_tokens": 6000,
    "ignore_eos": True, "temperature": 1, "stream": True,
}  # fmt: skip
SHORT = {**BODY, "max_tokens": 4, "stream": False}


def kill(pid: int, part: str) -> None:
    """Kill the process group (part "server") or only the engine process in it (part "engine")."""
    if part == "server":
        os.killpg(pid, signal.SIGKILL)
        return
    engines = [child for child in psutil.Process(pid).children(recursive=True) if is_engine(child)]
    for engine in engines:
        engine.kill()
    if not engines:
        raise SystemExit("vLLM has no engine process")


def is_engine(process: psutil.Process) -> bool:
    # A child may have exited meanwhile.
    with contextlib.suppress(psutil.Error):
        return "EngineCore" in process.name()
    return False


def interrupt_stream(gateway: str, pid: int, part: str) -> tuple[str, float]:
    """Kill vLLM after three events of a stream; return the last event and the seconds until the stream ended.

    An API server that survives its engine sends the error itself, followed by [DONE].
    """
    with httpx.stream("POST", f"{gateway}/v1/chat/completions", json=BODY, timeout=120) as response:
        lines, events, killed = response.iter_lines(), [], 0.0
        for line in lines:
            events += [line] if line and line != "data: [DONE]" else []
            if len(events) == 3 and not killed:
                killed = time.monotonic()
                kill(pid, part)
    return events[-1], time.monotonic() - killed


def wait_for_service(gateway: str, started: float) -> tuple[set[int], set[int], float]:
    """Send requests until one is served.

    Returns the error statuses before it, those of them with retry headers, and the seconds since `started`.
    """
    statuses, with_retry = set(), set()
    while time.monotonic() - started < 300:
        response = httpx.post(f"{gateway}/v1/chat/completions", json=SHORT, timeout=60)
        if response.status_code == 200:
            return statuses, with_retry, time.monotonic() - started
        statuses.add(response.status_code)
        if "retry-after" in response.headers or response.headers.get("x-should-retry") == "true":
            with_retry.add(response.status_code)
        time.sleep(0.25)
    return statuses, with_retry, float("inf")


@contextlib.contextmanager
def run_gateway(vllm_port: int) -> Iterator[str]:
    own = free_port()
    env = demo.gateway_env(own, vllm_port, POLICIES, Path(LOGS / "audit.jsonl"))
    env["LETHE_PROBE_INTERVAL_S"] = "1"
    url = f"http://127.0.0.1:{own}"
    with running_gateway(LOGS / "gateway.log", env=env):
        yield url


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    demo.prepare_artifact()
    LOGS.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = vllm_command(FOLDERS["full"], port, list(demo.WAYS.values()))
    health = f"http://127.0.0.1:{port}/health"
    failed_checks = False
    with contextlib.ExitStack() as stack:
        gateway = ""
        for part in ("server", "engine"):
            with running("vLLM", command, health, LOGS / "vllm.log", env=VLLM_ENV) as vllm:
                gateway = gateway or stack.enter_context(run_gateway(port))
                wait_for_service(gateway, time.monotonic())
                last, seconds = interrupt_stream(gateway, vllm.pid, part)
                next_response = httpx.post(f"{gateway}/v1/chat/completions", json=SHORT, timeout=60)
            print(f"{part} killed: last event of the stream, {seconds:.2f} s later: {last[:160]}")
            print(f"  next request: {next_response.status_code} {next_response.text[:120]}", flush=True)
            with running("vLLM", command, health, LOGS / "vllm.log", env=VLLM_ENV):
                statuses, with_retry, back_s = wait_for_service(gateway, time.monotonic())
            print(f"  vLLM restarted: {sorted(statuses) or 'no errors'} before the first 200, {back_s:.2f} s later")
            failed_checks |= (
                '"error"' not in last or next_response.status_code < 500 or statuses != with_retry or back_s > 60
            )
    sys.exit(failed_checks)


if __name__ == "__main__":
    main()
