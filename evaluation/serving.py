"""Start and stop vLLM and the gateway as child processes, for the demo, the tests and the benchmarks."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

VLLM_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


class StartError(RuntimeError):
    """A server did not start; the message names it, the reason and its log file."""


def free_port() -> int:
    """Return a free port whose successor is free too: the gateway's default admin port.

    The port lies below the system's ephemeral range, from which outgoing connections take ports at any time. Raises
    StartError if 1,000 random ports are in use.
    """
    # If the ephemeral range begins low, a port inside it is used.
    below = _first_ephemeral_port() - 1
    for port in random.sample(range(10_000, below if below > 12_000 else 32_767), 1_000):
        if _is_free(port) and _is_free(port + 1):
            return port
    raise StartError("no free port among 1,000 random ones")


def _first_ephemeral_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        return 32_768


def _is_free(port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def require_port(port: int, variable: str) -> None:
    """Raise StartError if `port` is in use. variable: the make variable that chooses another one."""
    if not _is_free(port):
        raise StartError(f"port {port} is in use; choose another with {variable}=PORT")


def vllm_command(model: Path, port: int, names: Sequence[str], *extra: str) -> list[str]:
    """Return the command that starts vLLM's OpenAI server. vLLM finds the plugin through its entry point."""
    return [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", *names, "--host", "127.0.0.1", "--port", str(port), "--enforce-eager",
        "--max-model-len", "8192", "--enable-prompt-embeds", "--no-enable-log-requests", *extra,
    ]  # fmt: skip


def clean_env() -> dict[str, str]:
    """Return the environment without LETHE_ variables, which are the user's own settings."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("LETHE_")}


@contextlib.contextmanager
def running(
    name: str, command: Sequence[str], url: str, log: Path, *, env: Mapping[str, str], timeout_s: float = 300
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `command`, wait until `url` answers 200, and stop it on exit from the context.

    A line on standard error counts the seconds. Raises StartError with the last lines of the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(command),
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**clean_env(), **env},
            # A process group of its own: vLLM starts workers, and Ctrl-C must not reach them before this process.
            start_new_session=True,
        )
    try:
        _wait_until_ready(name, process, url, log, timeout_s, sys.stderr)
        yield process
    finally:
        stop_process(process)


def running_gateway(log: Path, *, env: Mapping[str, str]) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Run `lethe serve` with the settings `env`, which include LETHE_PORT, and wait until it is ready."""
    command = [sys.executable, "-m", "lethe.server.cli.main", "serve"]
    return running("gateway", command, f"http://127.0.0.1:{env['LETHE_PORT']}/ready", log, env=env)


def _wait_until_ready(
    name: str, process: subprocess.Popen[bytes], url: str, log: Path, timeout_s: float, out: IO[str]
) -> None:
    started = time.monotonic()
    live = out.isatty()
    while True:
        seconds = time.monotonic() - started
        if live:
            out.write(f"\r{name}: starting, {seconds:3.0f} s ")
            out.flush()
        if process.poll() is not None:
            raise StartError(f"{name} exited with status {process.returncode}:\n{_last_lines(log)}\n(full log: {log})")
        with contextlib.suppress(urllib.error.URLError, OSError):
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    out.write(f"{chr(13) if live else ''}{name}: ready after {seconds:.0f} s\n")
                    return
        if seconds > timeout_s:
            raise StartError(f"{name} was not ready after {timeout_s:.0f} s:\n{_last_lines(log)}\n(full log: {log})")
        time.sleep(0.25)


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


def stop_process(process: subprocess.Popen[bytes], *, grace_s: float = 20) -> None:
    """Send SIGTERM to the process, wait, then kill what is left of its group."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
    finally:
        # Also if a second Ctrl-C interrupts the wait.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
