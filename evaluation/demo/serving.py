"""Start and stop the real vLLM and the gateway as processes of their own, for the demo and the tests."""

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
    """A server did not come up; the message says which, why, and where its log is."""


def free_port() -> int:
    """A port that was free a moment ago, and the one after it too: the gateway's admin port unless told otherwise.

    Below the range from which the system takes ports for outgoing connections: one of those may come at any time.
    """
    # Where that range begins low, whatever is free now must do.
    below = _first_ephemeral() - 1
    for port in random.sample(range(10_000, below if below > 12_000 else 32_767), 1_000):
        if _free(port) and _free(port + 1):
            return port
    raise StartError("none of 1,000 ports tried is free")


def _first_ephemeral() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        return 32_768


def _free(port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def require_port(port: int, variable: str) -> None:
    """Raise StartError when somebody listens on `port` already."""
    if not _free(port):
        raise StartError(f"port {port} is in use; choose another with {variable}=PORT")


def vllm_command(model: Path, port: int, names: Sequence[str], *extra: str) -> list[str]:
    """vLLM's OpenAI server; the plugin is found through its entry point, with no flag of ours."""
    return [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", *names, "--host", "127.0.0.1", "--port", str(port), "--enforce-eager",
        "--max-model-len", "8192", "--enable-prompt-embeds", "--no-enable-log-requests", *extra,
    ]  # fmt: skip


def clean_env() -> dict[str, str]:
    """The environment without the user's own LETHE_ settings, which are not meant for the demo."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("LETHE_")}


@contextlib.contextmanager
def running(
    name: str, command: Sequence[str], url: str, log: Path, *, env: Mapping[str, str], timeout_s: float = 300
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `command`, wait until `url` answers 200, and stop it again on leaving.

    A line on standard error counts the seconds. Raises StartError with the log's last lines.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(command),
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**clean_env(), **env},
            # A group of its own: vLLM starts workers, and Ctrl-C is ours to pass on.
            start_new_session=True,
        )
    try:
        _wait(name, process, url, log, timeout_s, sys.stderr)
        yield process
    finally:
        stop(process)


def running_gateway(log: Path, *, env: Mapping[str, str]) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """`lethe serve` with the settings `env` (LETHE_PORT among them), as `running` has it, until it is ready."""
    command = [sys.executable, "-m", "lethe.server.cli.main", "serve"]
    return running("gateway", command, f"http://127.0.0.1:{env['LETHE_PORT']}/ready", log, env=env)


def _wait(name: str, process: subprocess.Popen[bytes], url: str, log: Path, timeout_s: float, out: IO[str]) -> None:
    started = time.monotonic()
    live = out.isatty()
    while True:
        seconds = time.monotonic() - started
        if live:
            out.write(f"\r{name}: starting, {seconds:3.0f} s ")
            out.flush()
        if process.poll() is not None:
            raise StartError(f"{name} ended with status {process.returncode}:\n{_tail(log)}\n(whole log: {log})")
        with contextlib.suppress(urllib.error.URLError, OSError):
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    out.write(f"{chr(13) if live else ''}{name}: ready after {seconds:.0f} s\n")
                    return
        if seconds > timeout_s:
            raise StartError(f"{name} was not ready after {timeout_s:.0f} s:\n{_tail(log)}\n(whole log: {log})")
        time.sleep(0.25)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


def stop(process: subprocess.Popen[bytes], *, grace_s: float = 20) -> None:
    """Ask the process to end, wait, then end whatever is left of its group."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
    finally:
        # Also when a second Ctrl-C cuts the waiting short.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
