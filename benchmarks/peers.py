"""Who is compared: the gateway, a bare relay, and other proxies, each a process of its own before one upstream.

Peers are installed into build/, never into the project's own environment; one that can't be had is left out.
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
from lethe.evaluation.demo.serving import StartError, free_port, running

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
class Peer:
    """One proxy. command: port, upstream's port, a folder for its files → how to start it."""

    name: str
    version: str
    command: Callable[[int, int, Path], Sequence[str]]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: str = "/health"
    headers: Callable[[int], Mapping[str, str]] = lambda upstream: {}


@dataclass(frozen=True)
class Running:
    """A proxy that serves; port is its own."""

    peer: Peer
    port: int
    pid: int
    headers: Mapping[str, str]


def lethe(*, env: Mapping[str, str] | None = None, name: str = "lethe", cores: Collection[int] = ()) -> Peer:
    """The gateway as `lethe serve` runs it: no policies unless `env` names some, audit trail and metrics on.

    cores: the only ones that it may use.
    """

    def command(port: int, upstream: int, folder: Path) -> Sequence[str]:
        (folder / "none").mkdir(exist_ok=True)
        given = {
            "LETHE_PORT": str(port), "LETHE_UPSTREAM": f"http://127.0.0.1:{upstream}", "LETHE_ADMIN_PORT": "0",
            "LETHE_POLICIES": str(folder / "none"), "LETHE_ARTIFACTS": str(folder / "none"),
            "LETHE_AUDIT": str(folder / "audit.jsonl"), "LETHE_LOG_LEVEL": "warning", **(env or {}),
        }  # fmt: skip
        held = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
        serve = [sys.executable, "-m", "lethe.server.cli.main", "serve"]
        return ["env", *(f"{key}={value}" for key, value in given.items()), *held, *serve]

    return Peer(name, version("lethe-gateway"), command, ready="/ready")


def relay() -> Peer:
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

    return Peer("bare relay", f"aiohttp {version('aiohttp')}, uvicorn {version('uvicorn')}", command)


def _nginx() -> Peer:
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        raise StartError("nginx is not installed (on Debian and Ubuntu: apt-get install nginx-light)")
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr.strip()

    def command(port: int, upstream: int, folder: Path) -> Sequence[str]:
        path = folder / "nginx.conf"
        # Only root may, and has to, say who the workers are.
        user = "user root;" if os.geteuid() == 0 else ""
        path.write_text(NGINX.format(port=port, upstream=upstream, folder=folder, user=user))
        return [program, "-c", str(path), "-p", str(folder)]

    return Peer("nginx", said.rpartition("/")[2], command)


def _from_pip(name: str) -> str:
    """The version of a package of the peers' environment, which is made at the first call."""
    python = VENV / "bin" / "python"
    stamp = VENV / ".pins"
    if not stamp.exists() or stamp.read_text() != PINS.read_text():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True, timeout=INSTALL_S)
        _install([str(python), "-m", "pip", "install", "-q", "-r", str(PINS)])
        stamp.write_text(PINS.read_text())
    asked = f"from importlib.metadata import version; print(version({name!r}))"
    return subprocess.run([str(python), "-c", asked], capture_output=True, text=True, check=True).stdout.strip()


def _install(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartError(f"{command[0]}: {error}") from None
    if done.returncode:
        raise StartError(f"{' '.join(command[:4])} failed: {done.stderr.strip()[-300:]}")


def _router() -> Peer:
    found = _from_pip("vllm-router")

    def command(port: int, upstream: int, folder: Path) -> Sequence[str]:
        return [
            str(VENV / "bin" / "vllm-router"), "--worker-urls", f"http://127.0.0.1:{upstream}", "--host", "127.0.0.1",
            "--port", str(port), "--policy", "round_robin", "--log-level", "warning",
            "--prometheus-port", str(free_port()),
        ]  # fmt: skip

    return Peer("vllm-router", found, command)


def _litellm() -> Peer:
    found = _from_pip("litellm")

    def command(port: int, upstream: int, folder: Path) -> Sequence[str]:
        path = folder / "litellm.yaml"
        path.write_text(LITELLM.format(model=fast_upstream.MODEL, upstream=upstream))
        return [str(VENV / "bin" / "litellm"), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]

    # Its price list would come from the net.
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
    env["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # checking a key would only cost it more
    return Peer("LiteLLM", found, command, env, ready="/health/liveliness")


def _portkey() -> Peer:
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
    return Peer("Portkey", PORTKEY, command, env, ready="/", headers=headers)


OTHERS: Mapping[str, Callable[[], Peer]] = {
    "nginx": _nginx,
    "vllm-router": _router,
    "LiteLLM": _litellm,
    "Portkey": _portkey,
}


@contextmanager
def serving(peer: Peer, upstream: int, folder: Path) -> Iterator[Running]:
    """The proxy in front of the upstream on that port. Raises StartError when it does not come up."""
    port = free_port()
    own = folder / peer.name.replace(" ", "-")
    own.mkdir(parents=True, exist_ok=True)
    command, url = peer.command(port, upstream, own), f"http://127.0.0.1:{port}{peer.ready}"
    with running(peer.name, command, url, own / "log", env=peer.env, timeout_s=90) as process:
        yield Running(peer, port, process.pid, peer.headers(upstream))


@contextmanager
def upstream(folder: Path) -> Iterator[tuple[int, int]]:
    """The fast upstream: its port and process."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.fast_upstream", "--port", str(port)]
    with running("upstream", command, f"http://127.0.0.1:{port}/health", folder / "upstream.log", env={}) as process:
        yield port, process.pid


def start_all(
    stack: ExitStack, others: Mapping[str, Callable[[], Peer]], upstream: int, folder: Path
) -> tuple[list[Running], list[str]]:
    """Those that come up, and a note on each that doesn't."""
    up, notes = [], []
    for name, made in others.items():
        try:
            up.append(stack.enter_context(serving(made(), upstream, folder)))
        except (StartError, subprocess.SubprocessError) as error:
            notes.append(f"{name} left out: {str(error)[:400]}")
    return up, notes
