"""Concurrent questions: answers in the order of the questions, and failures as errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from lethe.evaluation.unlearning.client import ChatClient, ChatError
from lethe.server.http.refusal_answer import RefusalAnswer


class EchoHandler(BaseHTTPRequestHandler):
    """Answers with the question; "forbidden" and "refused" get the gateway's refusals, "broken" a 500."""

    seen: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append(body)
        text = body["messages"][-1]["content"]
        if text in ("forbidden", "broken"):
            status, code = (400, "refused_by_policy") if text == "forbidden" else (500, "x")
            self._send(status, json.dumps({"error": {"message": "not here", "code": code}}), "application/json")
        elif text == "refused":
            answer = RefusalAnswer("chat", body)
            if answer.streamed:
                self._send(200, answer.stream("not here").decode(), "text/event-stream")
            else:
                self._send(200, answer.whole("not here").decode(), "application/json")
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
    request_queue_size = 64  # all questions connect at the same time


@pytest.fixture
def url() -> Iterator[str]:
    EchoHandler.seen.clear()
    with Server(("127.0.0.1", 0), EchoHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


QUESTIONS = [f"question {i}" for i in range(40)]


def test_answers_come_in_the_order_of_the_questions(url: str) -> None:
    assert ChatClient(url, "m").answer_all(QUESTIONS) == QUESTIONS
    assert all(body["temperature"] == 0 and body["model"] == "m" for body in EchoHandler.seen)


def test_sampled_answers_use_one_seed_per_question(url: str) -> None:
    assert ChatClient(url, "m").answer_all(QUESTIONS, seed=2, stream=True, system="Be kind.") == QUESTIONS
    assert len({body["seed"] for body in EchoHandler.seen}) == len(QUESTIONS)
    assert all(body["temperature"] == 1 and body["messages"][0]["role"] == "system" for body in EchoHandler.seen)


def test_a_refusal_is_an_answer_only_with_refusals_on(url: str) -> None:
    for stream in (False, True):
        answers = ChatClient(url, "m", refusals=True).answer_all(["forbidden", "refused"], stream=stream)
        assert answers == ["not here"] * 2
        with pytest.raises(ChatError, match="refused by a policy: not here"):
            ChatClient(url, "m").answer_all(["fine", "refused"], stream=stream)
    with pytest.raises(ChatError, match="status 400: not here"):
        ChatClient(url, "m").answer_all(["fine", "forbidden"])
    with pytest.raises(ChatError, match="status 500"):
        ChatClient(url, "m", refusals=True).answer_all(["broken"])
