"""Forgetting on request and two replicas, with the real vLLM."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lethe.evaluation.demo import demo
from lethe.evaluation.serving import free_port, running_gateway
from lethe.evaluation.unlearning import tofu
from lethe.server.policy_store.seed_artifact import seed_rows

FOLDER = demo.ROOT / "build" / "tests" / "operations"
KEY = "an-admin-key-of-some-length"
SECRET = tofu.answer_entities()[demo.FORGET_ROWS[0]]


@dataclass
class Both:
    """The gateway's two ports."""

    public: str
    admin: str

    def post(self, body: bytes) -> tuple[int, bytes]:
        return call("POST", f"{self.public}/v1/chat/completions", body)

    def api(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        raw = None if body is None else json.dumps(body).encode()
        status, answer = call(method, f"{self.admin}/admin{path}", raw, Authorization=f"Bearer {KEY}")
        return status, json.loads(answer)


def call(method: str, url: str, body: bytes | None, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, body, {"content-type": "application/json", **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as got:
            return got.status, got.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.fixture(scope="module")
def both(vllm_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """A gateway without a policy, in front of the real vLLM and of an address where nobody is."""
    folder = tmp_path_factory.mktemp("operations")
    (folder / "policies").mkdir()
    (folder / "artifacts").mkdir()
    port, admin = free_port(), free_port()
    env = {
        "LETHE_PORT": str(port), "LETHE_ADMIN_PORT": str(admin), "LETHE_ADMIN_KEY": KEY,
        "LETHE_UPSTREAM": f"http://127.0.0.1:{free_port()},{vllm_url}", "LETHE_POLICIES": str(folder / "policies"),
        "LETHE_ARTIFACTS": str(folder / "artifacts"), "LETHE_AUDIT": str(folder / "audit.jsonl"),
    }  # fmt: skip
    with running_gateway(FOLDER / "gateway.log", env=env):
        base: Path = folder / "artifacts" / ".history" / "seed" / "manifest.json"
        deadline = time.monotonic() + 300
        while not base.is_file():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield Both(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}")


def test_a_forget_request_guards_the_next_prompt_until_withdrawn(both: Both, vllm_url: str) -> None:
    body = json.dumps({
        "model": "demo", "messages": [{"role": "user", "content": SECRET.question}], "temperature": 0, "max_tokens": 60,
    }).encode()  # fmt: skip

    def told(answer: bytes) -> str:
        return str(json.loads(answer)["choices"][0]["message"]["content"])

    status, free = both.post(body)
    assert status == 200 and tofu.reveals(told(free), SECRET.entity)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        item = {"prompt": SECRET.question, "answer": SECRET.answer}
        status, done = both.api("POST", "/forget", {"policy": "erasure", "items": [item]})
        times.append(time.perf_counter() - started)
        assert status == 200 and done["added"] == 1, done
        status, guarded = both.post(body)
        assert status == 200 and not tofu.reveals(told(guarded), SECRET.entity)
        status, back = both.api("DELETE", f"/forget/{done['id']}")
        assert status == 200 and back["policy_removed"]
        assert told(both.post(body)[1]) == told(free)
    (FOLDER / "forget-seconds.json").write_text(json.dumps(times))
    assert min(times) < 2


def test_each_replica_is_told_apart(both: Both) -> None:
    status, raw = call("GET", f"{both.admin}/ready", None)
    facts = json.loads(raw)
    assert status == 200 and [replica["up"] for replica in facts["replicas"]] == [False, True]
    assert "demo" in facts["replicas"][1]["models"]
    _, metrics = call("GET", f"{both.admin}/metrics", None)
    assert metrics.count(b"\nlethe_replica_up{") == 2


def test_nobody_else_is_flagged_by_what_new_policies_are_built_on(both: Both) -> None:
    item = {"prompt": SECRET.question, "answer": SECRET.answer}
    _, done = both.api("POST", "/forget", {"policy": "erasure", "items": [item], "action": "refuse"})
    for question in [seed_rows()[0]["prompt"], *(fact.question for fact in tofu.real_world_facts()[:10])]:
        body = {"model": "demo", "messages": [{"role": "user", "content": question}], "max_tokens": 1}
        assert both.post(json.dumps(body).encode())[0] == 200
    both.api("DELETE", f"/forget/{done['id']}")
