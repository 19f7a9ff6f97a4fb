"""The compared proxies: the gateway, a bare relay, and other projects' proxies, each as a process of its own.

Other proxies are installed into build/, never into the project's own environment. One that can't be installed or
started is left out, with a note.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from benchmarks import fast_upstream
from lethe.evaluation.serving import StartError, free_port, running

ROOT = Path(__file__).parents[1]
VENV, NODE = ROOT / "build" / "peers-venv", ROOT / "build" / "peers-node"
PINS = ROOT / "requirements" / "bench-peers.txt"
PORTKEY = "1.15.2"
INSTALL_S = 900

NGINX = """\
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; {user}
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder}; keepalive_requests 1000000;
  upstream model {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""
LITELLM = """\
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none}}
litellm_settings: {{telemetry: false}}
"""


@dataclass(frozen=True)
class Proxy:
    """A proxy. command: (its port, the upstream's port, a folder for its files) → the command that starts it.

    ready: path that answers 200 when it is ready. headers: upstream's port → headers that every request needs.
    """

    name: str
    version: str
    command: Callable[[int, int, Path], Sequence[str]]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: str = "/health"
    headers: Callable[[int], Mapping[str, str]] = lambda upstream: {}


@dataclass(frozen=True)
class RunningProxy:
    """A running proxy and its port."""

    proxy: Proxy
    port: int
    pid: int
    headers: Mapping[str, str]


def lethe_proxy(*, env: Mapping[str, str] | None = None, name: str = "lethe", cores: Collection[int] = ()) -> Proxy:
    """The gateway as `lethe serve` runs it: no policies unless `env` sets some, with audit records and metrics.

    cores: if given, the only CPU cores that it may use.
    """

    def command(port: int, upstream: int, folder: Path) -> Sequence[str]:
        (folder / "none").mkdir(exist_ok=True)
        variables = {
            "LETHE_PORT": str(port), "LETHE_UPSTREAM": f"http://127.0.0.1:{upstream}", "LETHE_ADMIN_PORT": "0",
            "LETHE_POLICIES": str(folder / "none"), "LETHE_ARTIFACTS": str(folder / "none"),
            "LETHE_AUDIT": str(folder / "audit.jsonl"), "LETHE_LOG_LEVEL": "warning", **(env or {}),
        }  # fmt: skip
        affinity = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
        serve = [sys.executable, "-m", "lethe.server.cli.main", "serve"]
        return ["env", *(f"{key}={value}" for key, value in variables.items()), *affinity, *serve]

    return Proxy(name, version("lethe-gateway"), command, ready="/ready")


def relay_proxy() -> Proxy:
    """The bare relay of `benchmarks/relay.py`."""

    def command(port: int, upstream: int, folder: Path) -> Sequence[str]:
        return [
            sys.executable,
            "-m",
            "benchmarks.relay",
            "--port",
            str(port),
            "--upstream",
            f"http://127.0.0.1:{upstream}",
        ]

    return Proxy("bare relay", f"aiohttp {version('aiohttp')}, uvicorn {version('uvicorn')}", command)


def _nginx() -> Proxy:
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        raise StartError("nginx is not installed (on Debian and Ubuntu: apt-get install nginx-light)")
    output = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr.strip()

    def command(port: int, upstream: int, folder: Path) -> Sequence[str]:
        path = folder / "nginx.conf"
        # nginx needs a user for its workers when root starts it, and warns otherwise.
        user = "user root;" if os.geteuid() == 0 else ""
        path.write_text(NGINX.format(port=port, upstream=upstream, folder=folder, user=user))
        return [program, "-c", str(path), "-p", str(folder)]

    return Proxy("nginx", output.rpartition("/")[2], command)


def _pip_version(name: str) -> str:
    """Return the version of a package in the proxies' own environment, which the first call creates."""
    python = VENV / "bin" / "python"
    stamp = VENV / ".pins"
    if not stamp.exists() or stamp.read_text() != PINS.read_text():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True, timeout=INSTALL_S)
        _install([str(python), "-m", "pip", "install", "-q", "-r", str(PINS)])
        stamp.write_text(PINS.read_text())
    script = f"from importlib.metadata import version; print(version({name!r}))"
    return subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def _install(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartError(f"{command[0]}: {error}") from None
    if done.returncode:
        raise StartError(f"{' '.join(command[:4])} failed: {done.stderr.strip()[-300:]}")


def _router() -> Proxy:
    installed = _pip_version("vllm-router")

    def command(port: int, upstream: int, folder: Path) -> Sequence[str]:
        return [
            str(VENV / "bin" / "vllm-router"), "--worker-urls", f"http://127.0.0.1:{upstream}", "--host", "127.0.0.1",
            "--port", str(port), "--policy", "round_robin", "--log-level", "warning",
            "--prometheus-port", str(free_port()),
        ]  # fmt: skip

    return Proxy("vllm-router", installed, command)


def _litellm() -> Proxy:
    installed = _pip_version("litellm")

    def command(port: int, upstream: int, folder: Path) -> Sequence[str]:
        path = folder / "litellm.yaml"
        path.write_text(LITELLM.format(model=fast_upstream.MODEL, upstream=upstream))
        return [str(VENV / "bin" / "litellm"), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]

    # Otherwise LiteLLM downloads its price list.
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
    env["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # a key check would cost more CPU
    return Proxy("LiteLLM", installed, command, env, ready="/health/liveliness")


def _portkey() -> Proxy:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise StartError("node and npm are not installed")
    program = NODE / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if not program.exists():
        NODE.mkdir(parents=True, exist_ok=True)
        _install([npm, "install", "--prefix", str(NODE), f"@portkey-ai/gateway@{PORTKEY}"])

    def command(port: int, upstream: int, folder: Path) -> Sequence[str]:
        return [node, str(program), f"--port={port}", "--headless"]

    def headers(upstream: int) -> Mapping[str, str]:
        return {"x-portkey-provider": "openai", "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1"}

    env = {"TRUSTED_CUSTOM_HOSTS": "127.0.0.1", "NODE_ENV": "production"}
    return Proxy("Portkey", PORTKEY, command, env, ready="/", headers=headers)


OTHER_PROXIES: Mapping[str, Callable[[], Proxy]] = {
    "nginx": _nginx,
    "vllm-router": _router,
    "LiteLLM": _litellm,
    "Portkey": _portkey,
}


@contextmanager
def run_proxy(proxy: Proxy, upstream: int, folder: Path) -> Iterator[RunningProxy]:
    """Run the proxy in front of the upstream's port. Raises StartError if it does not start."""
    port = free_port()
    proxy_folder = folder / proxy.name.replace(" ", "-")
    proxy_folder.mkdir(parents=True, exist_ok=True)
    command, url = proxy.command(port, upstream, proxy_folder), f"http://127.0.0.1:{port}{proxy.ready}"
    with running(proxy.name, command, url, proxy_folder / "log", env=proxy.env, timeout_s=90) as process:
        yield RunningProxy(proxy, port, process.pid, proxy.headers(upstream))


@contextmanager
def run_fast_upstream(folder: Path) -> Iterator[tuple[int, int]]:
    """Run `benchmarks/fast_upstream.py`; yields its port and process id."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.fast_upstream", "--port", str(port)]
    with running("upstream", command, f"http://127.0.0.1:{port}/health", folder / "upstream.log", env={}) as process:
        yield port, process.pid


def start_all(
    stack: ExitStack, others: Mapping[str, Callable[[], Proxy]], upstream: int, folder: Path
) -> tuple[list[RunningProxy], list[str]]:
    """Start the proxies; return those that run, and a note for each that did not start."""
    started, notes = [], []
    for name, create in others.items():
        try:
            started.append(stack.enter_context(run_proxy(create(), upstream, folder)))
        except (StartError, subprocess.SubprocessError) as error:
            notes.append(f"{name} left out: {str(error)[:400]}")
    return started, notes
