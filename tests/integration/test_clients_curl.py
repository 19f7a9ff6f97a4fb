"""curl, as the documents use it: whole answers, streams, errors, and what the exit status says."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients import strict
from tests.clients.asked import CASES, MOST, PENALIZED, UNFLAGGED, Case
from tests.clients.tap import Tap
from tests.integration.conftest import Closed

Plain = Callable[[str], str]
pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
each = pytest.mark.parametrize("case", CASES)


def curl(url: str, body: Any = None, *more: str) -> tuple[int, str, str]:
    """The status, the content type and the body."""
    sent = [] if body is None else ["-H", "content-type: application/json", "-d", "@-"]
    command = ["curl", "-sS", "-N", "--max-time", "60", *sent, "-w", "\n%{http_code} %{content_type}", *more, url]
    ran = subprocess.run(command, input=json.dumps(body), capture_output=True, text=True)
    assert ran.returncode == (22 if "-f" in more else 0), ran.stderr
    answer, _, told = ran.stdout.rpartition("\n")
    status, _, kind = told.partition(" ")
    return int(status), kind, answer


def chat(case: Case, **more: Any) -> dict[str, Any]:
    return {"model": case.model, "messages": case.messages, "temperature": 0, "max_tokens": MOST, **more}


@each
def test_an_answer_whole_and_streamed(case: Case, tapped: Tap, plain: Plain) -> None:
    url = f"{tapped.url}/v1/chat/completions"
    status, kind, whole = curl(url, chat(case))
    text = json.loads(whole)["choices"][0]["message"]["content"]
    assert (status, kind) == (200, "application/json") and case.kept(text, plain(case.question))
    status, kind, streamed = curl(url, chat(case, stream=True))
    assert status == 200 and kind.startswith("text/event-stream") and streamed.endswith("data: [DONE]\n\n")
    chunks = [json.loads(data) for _, data in strict.events(streamed.encode()) if data != "[DONE]"]
    assert "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]) == text


@each
def test_the_other_ways_to_ask(case: Case, tapped: Tap, plain: Plain) -> None:
    url, body = f"{tapped.url}/v1/chat/completions", chat(case)
    # A large body that waits for leave to be sent, one in chunks, HTTP/1.0, and one that may be compressed.
    ways = [("-H", "expect: 100-continue"), ("-H", "transfer-encoding: chunked"), ("--http1.0",), ("--compressed",)]
    for more in ways:
        status, _, got = curl(url, body, *more)
        assert status == 200 and case.kept(json.loads(got)["choices"][0]["message"]["content"], plain(case.question))


def test_errors_have_a_status_and_four_keys(tapped: Tap, tmp_path: Path) -> None:
    url = f"{tapped.url}/v1/chat/completions"
    asked: list[tuple[int, str, Any, tuple[str, ...]]] = [
        (400, url, chat(UNFLAGGED, temperature=-1), ()),
        (400, url, chat(UNFLAGGED), ("-H", "content-encoding: gzip")),
        (400, url, [], ()),
        (404, url, chat(UNFLAGGED) | {"model": "none"}, ()),
        (404, f"{tapped.url}/v1/files", None, ()),
        (404, f"{tapped.url}/v1/embeddings", {"model": UNFLAGGED.model, "input": "a"}, ()),
        (405, url, None, ()),
        (431, f"{tapped.url}/v1/models", None, ("-H", f"x-long: {'a' * 70_000}")),
    ]
    for status, where, body, more in asked:
        got, kind, answer = curl(where, body, *more)
        assert (got, kind) == (status, "application/json"), answer
        assert json.loads(answer)["error"].keys() == {"message", "type", "param", "code"}
    curl(url, chat(UNFLAGGED, temperature=-1), "-f")


def test_a_refusal_says_not_to_ask_again(closed: Closed) -> None:
    url, key = f"{closed.tap.url}/v1/chat/completions", ("-H", f"authorization: Bearer {closed.key}")
    # Left to itself curl asks again on 408, 429 and 5xx.
    status, _, answer = curl(url, chat(PENALIZED), *key, "--retry", "2")
    assert status == 400 and json.loads(answer)["error"]["code"] == "refused_by_policy"
    assert curl(url, chat(UNFLAGGED))[0] == 401
    assert [exchange.headers["x-should-retry"] for exchange in closed.tap.exchanges] == ["false", "false"]
    assert closed.tap.exchanges[1].headers["www-authenticate"] == "Bearer"
