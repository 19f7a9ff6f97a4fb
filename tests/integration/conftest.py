"""The real vLLM with the demo model and the plugin, and the gateway in front, once for the whole run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from evaluation import demo
from evaluation.demo_model import FOLDERS
from evaluation.serving import VLLM_ENV, free_port, running, vllm_command

LOGS = demo.ROOT / "build" / "tests"


@pytest.fixture(scope="session")
def demo_model() -> Path:
    return FOLDERS["full"]


@pytest.fixture(scope="session")
def vllm_url(demo_model: Path) -> Iterator[str]:
    """The base URL of vLLM, which serves the demo model under the demo's three names."""
    port = free_port()
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    command = vllm_command(demo_model, port, list(demo.WAYS.values()), *tools)
    with running("vLLM", command, f"http://127.0.0.1:{port}/health", LOGS / "vllm.log", env=VLLM_ENV):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def audit_file() -> Path:
    return LOGS / "audit.jsonl"


@pytest.fixture(scope="session")
def gateway_url(vllm_url: str, audit_file: Path) -> Iterator[str]:
    """The base URL of a gateway with the demo's policies, in front of vLLM."""
    demo.fit_artifact()
    audit_file.parent.mkdir(parents=True, exist_ok=True)
    audit_file.unlink(missing_ok=True)
    port = free_port()
    env = demo.gateway_env(port, int(vllm_url.rsplit(":", 1)[1]), demo.ROOT / "policies" / "demo", audit_file)
    command = [sys.executable, "-m", "server.cli", "serve"]
    with running("gateway", command, f"http://127.0.0.1:{port}/ready", LOGS / "gateway.log", env=env):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def through(gateway_url: str) -> Iterator[OpenAI]:
    """The official client on the gateway."""
    with OpenAI(base_url=f"{gateway_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def direct(vllm_url: str) -> Iterator[OpenAI]:
    """The official client on vLLM itself."""
    with OpenAI(base_url=f"{vllm_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/integration/" in item.nodeid:
            item.add_marker(pytest.mark.vllm)
