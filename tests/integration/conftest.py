"""The real vLLM with the demo model and the plugin, and the gateway in front, once for the whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from lethe.evaluation.demo import demo
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.serving import VLLM_ENV, free_port, running, running_gateway, vllm_command
from lethe.server.admission import api_keys
from tests.clients import asked, strict
from tests.clients.tap import Tap

LOGS = demo.ROOT / "build" / "tests"
KEYS: dict[str, dict[str, Any]] = {"team": {}, "slow": {"requests_per_minute": 1}}


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
def admin_url(vllm_url: str) -> str:
    """The base URL of that gateway's admin port; drawn late, since the port is free only for now."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="session")
def gateway_url(vllm_url: str, audit_file: Path, admin_url: str) -> Iterator[str]:
    """The base URL of a gateway with the demo's policies, in front of vLLM."""
    demo.prepare_artifact()
    audit_file.parent.mkdir(parents=True, exist_ok=True)
    audit_file.unlink(missing_ok=True)
    port = free_port()
    env = demo.gateway_env(port, int(vllm_url.rsplit(":", 1)[1]), demo.ROOT / "policies" / "demo", audit_file)
    env["LETHE_ADMIN_PORT"] = admin_url.rsplit(":", 1)[1]
    with running_gateway(LOGS / "gateway.log", env=env):
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


@pytest.fixture(scope="session")
def tap(gateway_url: str) -> Iterator[Tap]:
    with Tap(gateway_url) as made:
        yield made


@pytest.fixture
def tapped(tap: Tap) -> Iterator[Tap]:
    """A way to the gateway on which all that is answered during the test has to be as the published types say."""
    tap.clear()
    yield tap
    assert tap.exchanges
    for exchange in tap.exchanges:
        strict.check(exchange)


@pytest.fixture(scope="session")
def plain(direct: OpenAI) -> Callable[[str], str]:
    """What vLLM itself answers to a question of one of the tests of clients."""

    @cache
    def answer(question: str) -> str:
        messages: Any = [{"role": "user", "content": question}]
        got = direct.chat.completions.create(
            model=demo.WAYS["off"], messages=messages, temperature=0, max_tokens=asked.MOST
        )
        return got.choices[0].message.content or ""

    return answer


@dataclass(frozen=True)
class Closed:
    """A gateway that asks for keys and refuses, as an error, what is flagged for the model `demo-penalize`."""

    tap: Tap
    key: str
    slow_key: str  # for one request a minute


@pytest.fixture(scope="session")
def closed_gateway(vllm_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    demo.prepare_artifact()
    folder = tmp_path_factory.mktemp("closed")
    policy = (demo.ROOT / "policies" / "demo" / "penalize.yaml").read_text(encoding="utf-8")
    refusing = policy.replace("action: penalize", "action: refuse") + "refuse: {as: error}\n"
    (folder / "refuse.yaml").write_text(refusing, encoding="utf-8")
    key, slow = (api_keys.create_key(folder / "keys.json", name=name, **limits) for name, limits in KEYS.items())
    port = free_port()
    env = demo.gateway_env(port, int(vllm_url.rsplit(":", 1)[1]), folder, LOGS / "closed-audit.jsonl")
    env |= {"LETHE_KEYS": str(folder / "keys.json"), "LETHE_ADMIN_PORT": "0"}
    with running_gateway(LOGS / "closed-gateway.log", env=env):
        with Tap(f"http://127.0.0.1:{port}") as tap:
            yield Closed(tap, key, slow)


@pytest.fixture
def closed(closed_gateway: Closed) -> Iterator[Closed]:
    """The gateway with keys, its answers held to the published types as in `tapped`."""
    closed_gateway.tap.clear()
    yield closed_gateway
    for exchange in closed_gateway.tap.exchanges:
        strict.check(exchange)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/integration/" in item.nodeid:
            item.add_marker(pytest.mark.vllm)
