"""Many questions at once, in their order; an answer that fails is an error, never a text."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from lethe.evaluation.unlearning.client import Asker, AskError


class Echo(BaseHTTPRequestHandler):
    """Answers with the question; refuses "forbidden" as the gateway does, and breaks at "broken"."""

    seen: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append(body)
        text = body["messages"][-1]["content"]
        if text in ("forbidden", "broken"):
            status = 403 if text == "forbidden" else 500
            self._send(status, json.dumps({"error": {"message": "not here", "code": "x"}}), "application/json")
        elif body.get("stream"):
            chunks = [{"choices": [{"index": 0, "delta": {"content": part}}]} for part in (text[:2], text[2:])]
            lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]
            self._send(200, "".join(lines), "text/event-stream")
        else:
            message = {"role": "assistant", "content": text}
            self._send(200, json.dumps({"choices": [{"index": 0, "message": message}]}), "application/json")

    def _send(self, status: int, text: str, kind: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # all questions knock at once


@pytest.fixture
def url() -> Iterator[str]:
    Echo.seen.clear()
    with Server(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


QUESTIONS = [f"question {i}" for i in range(40)]


def test_answers_come_in_the_order_of_the_questions(url: str) -> None:
    assert Asker(url, "m").all(QUESTIONS) == QUESTIONS
    assert all(body["temperature"] == 0 and body["model"] == "m" for body in Echo.seen)


def test_samples_are_streamed_and_each_question_has_a_seed_of_its_own(url: str) -> None:
    assert Asker(url, "m").all(QUESTIONS, seed=2, stream=True, system="Be kind.") == QUESTIONS
    assert len({body["seed"] for body in Echo.seen}) == len(QUESTIONS)
    assert all(body["temperature"] == 1 and body["messages"][0]["role"] == "system" for body in Echo.seen)


def test_a_refusal_is_an_answer_only_where_it_is_meant(url: str) -> None:
    assert Asker(url, "m", refusals=True).all(["forbidden"]) == ["not here"]
    with pytest.raises(AskError, match="status 403: not here"):
        Asker(url, "m").all(["fine", "forbidden"])
    with pytest.raises(AskError, match="status 500"):
        Asker(url, "m", refusals=True).all(["broken"])
