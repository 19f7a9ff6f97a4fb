"""vLLM with the demo's model and the gateway with the demo's policies, for benchmarks that need both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lethe.evaluation.demo import demo
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.serving import VLLM_ENV, free_port, running, running_gateway, vllm_command

POLICIES = demo.ROOT / "policies" / "demo"
LOGS = demo.ROOT / "build" / "benchmarks"


@dataclass(frozen=True)
class DemoServers:
    """URLs and process ids of both servers."""

    vllm: str
    gateway: str
    admin: str
    vllm_pid: int
    gateway_pid: int


@contextlib.contextmanager
def demo_servers(
    folder: Path = LOGS,
    *,
    policies: Path = POLICIES,
    models: Mapping[str, str] = demo.WAYS,
    settings: Mapping[str, str] | None = None,
) -> Iterator[DemoServers]:
    """Start vLLM and the gateway, and stop both on exit from the context.

    folder: for logs and audit records. models: way → name under which vLLM serves the model. settings: further
    environment variables of the gateway.
    """
    demo.prepare_artifact()
    folder.mkdir(parents=True, exist_ok=True)
    vllm_port, gateway_port, admin_port = free_port(), free_port(), free_port()
    vllm, gateway = f"http://127.0.0.1:{vllm_port}", f"http://127.0.0.1:{gateway_port}"
    command = vllm_command(FOLDERS["full"], vllm_port, list(models.values()))
    env = demo.gateway_env(gateway_port, vllm_port, policies, folder / "audit.jsonl")
    env |= {"LETHE_ADMIN_PORT": str(admin_port), **(settings or {})}
    with (
        running("vLLM", command, f"{vllm}/health", folder / "vllm.log", env=VLLM_ENV) as vllm_process,
        running_gateway(folder / "gateway.log", env=env) as gateway_process,
    ):
        yield DemoServers(vllm, gateway, f"http://127.0.0.1:{admin_port}", vllm_process.pid, gateway_process.pid)
