"""OpenAI's own client for Node does its ordinary work through the gateway: flagged, and not.

It is installed from tests/clients/node with `npm ci` once for each lockfile. Without Node, npm or a package registry
these tests are skipped, and say so.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lethe.evaluation.demo import demo
from tests.clients.asked import CORRUPTED, PENALIZED, UNFLAGGED, noted, work
from tests.clients.tap import Tap
from tests.integration.conftest import Closed

SOURCE = demo.ROOT / "tests" / "clients" / "node"
OLDEST = 20

Node = Callable[[str], Any]


@pytest.fixture(scope="module")
def node() -> Node:
    """Runs client.mjs with the work to do."""
    for name in ("node", "npm"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0] or 0) < OLDEST:
        pytest.skip(f"Node {OLDEST} or newer is needed, this is {version}")
    folder = _installed()

    def run(told: str) -> Any:
        command = ["node", str(folder / "client.mjs")]
        ran = subprocess.run(command, input=told, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr[-3000:]
        return json.loads(ran.stdout)

    return run


def _installed() -> Path:
    """The folder with client.mjs and what it imports. Named by the lockfile: another one is another folder."""
    lock = (SOURCE / "package-lock.json").read_bytes()
    folder = demo.ROOT / "build" / "tests" / "node" / hashlib.sha256(lock).hexdigest()[:16]
    if not (folder / "installed").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCE / name, folder / name)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
        try:
            ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            pytest.skip("npm ci took longer than 120 s")
        if ran.returncode:
            pytest.skip(f"npm ci failed: {ran.stderr.strip()[-300:]}")
        (folder / "installed").touch()
    shutil.copy(SOURCE / "client.mjs", folder / "client.mjs")
    return folder


def test_its_ordinary_work(node: Node, tapped: Tap, plain: Callable[[str], str]) -> None:
    cases = (CORRUPTED, PENALIZED, UNFLAGGED)
    for case, got in zip(cases, node(work("done", tapped.url, *cases)), strict=True):
        assert len(got["texts"]) == 9 and all(case.kept(text, plain(case.question)) for text in got["texts"])
        chats, responses, completions = got["texts"][:4], got["texts"][4:7], got["texts"][7:]
        assert len(set(chats)) == len(set(responses)) == len(set(completions)) == 1
        assert all(map(noted, got["notes"]))


def test_models_are_listed(node: Node, tapped: Tap) -> None:
    assert node(work("models", tapped.url, UNFLAGGED)) == [list(demo.WAYS.values())]


def test_errors_are_raised_as_what_they_are_and_never_asked_again(node: Node, tapped: Tap) -> None:
    [got] = node(work("wrong", tapped.url, UNFLAGGED))
    kinds = ["BadRequestError", "NotFoundError", "BadRequestError", "NotFoundError"]
    assert [error["kind"] for error in got] == kinds
    assert [error["param"] for error in got] == ["temperature", "model", "previous_response_id", None]
    assert all(error["type"] and error["message"] for error in got)
    ids = [exchange.headers["x-request-id"] for exchange in tapped.exchanges]
    assert [error["requestID"] for error in got] == ids


def test_a_refusal_is_raised_and_never_asked_again(node: Node, closed: Closed) -> None:
    [got] = node(work("refused", closed.tap.url, PENALIZED, key=closed.key))
    assert [error["kind"] for error in got] == ["BadRequestError"] * 4 + ["AuthenticationError"]
    assert {error["code"] for error in got[:4]} == {"refused_by_policy"}
    assert len(closed.tap.exchanges) == len(got)
