"""Things that break, against real processes: upstreams that are killed, stopped or talk nonsense; a classifier that
fails; files that are spoilt; a disk that is full; a clock that jumps; the end of the gateway itself."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from lethe.classifier.encoder.folders import cache_folder
from lethe.classifier.encoder.load import load_encoder
from lethe.evaluation.demo import demo
from lethe.evaluation.unlearning import tofu
from tests.integration.faulty import RAISE, SLOW, SLOW_S
from tests.integration.processes import Gateway, Upstream, gateway, settings, start_fails, until, upstreams

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


@pytest.fixture(scope="module")
def ups() -> Iterator[list[Upstream]]:
    with upstreams(2) as made:
        yield made


@pytest.fixture(scope="module")
def _gate(ups: list[Upstream]) -> Iterator[Gateway]:
    with gateway("gateway", [one.url for one in ups]) as made:
        yield made


@pytest.fixture
def gate(_gate: Gateway, ups: list[Upstream]) -> Iterator[Gateway]:
    """The gateway with both upstreams in service; afterwards nothing of any request may be left."""
    for one in ups:
        if not one.answers():
            one.start()
    until(lambda: _gate.count("replica_up") == 2, "not both are up")
    yield _gate
    for gauge in ("requests_in_flight", "replica_in_flight", "queue_length", "judge_queue_length", "held_bytes"):
        until(lambda gauge=gauge: _gate.count(gauge) == 0, f"{gauge} is not back at zero")


def body(path: str, text: str, **more: Any) -> dict[str, Any]:
    made = {"model": "m-refuse", "max_tokens": 5, **more}
    if path == "/v1/completions":
        return {**made, "prompt": text}
    if path == "/v1/responses":
        return {**made, "input": text}
    return {**made, "messages": [{"role": "user", "content": text}]}


@contextlib.contextmanager
def streams(gate: Gateway, texts: dict[str, str]) -> Iterator[dict[str, httpx.Response]]:
    """One endless stream a path, each begun; path → response."""
    with contextlib.ExitStack() as stack, httpx.Client(timeout=30) as http:
        opened = {}
        for path, text in texts.items():
            asked = http.stream(
                "POST", gate.url + path, json=body(path, text, stream=True), headers={"x-canned": "endless"}
            )
            opened[path] = stack.enter_context(asked)
        yield opened


def read_to_the_end(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, less those that broke off."""
    events = []
    for line in response.read().decode().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            events.append(json.loads(line.removeprefix("data: ")))
    return [event for event in events if isinstance(event, dict)]


def code(event: dict[str, Any]) -> str | None:
    """What kind of error an event tells, in any of the dialects."""
    error = event.get("error") or {}
    return error.get("code") or error.get("type")


def test_a_model_server_that_is_killed_in_mid_stream(gate: Gateway, ups: list[Upstream]) -> None:
    broken = gate.count("upstream_errors_total", kind="broken")
    ended = gate.count("requests_total", status="200")
    with streams(gate, dict.fromkeys(PATHS, "hello")) as opened:
        for one in ups:
            one.kill()
        for path, response in opened.items():
            assert response.status_code == 200
            *told, last = read_to_the_end(response)
            assert told, path
            # Anthropic's clients know errors by type alone.
            assert code(last) == ("api_error" if path == "/v1/messages" else "broken"), last
    assert gate.count("upstream_errors_total", kind="broken") == broken + len(PATHS)
    until(lambda: gate.count("requests_total", status="200") == ended + len(PATHS), "not counted")
    # The first one may find out for itself that nobody is there; nobody waits long.
    begun = time.monotonic()
    got = gate.ask()
    assert got.status_code == 503 and got.json()["error"]["code"] == "no_replica"
    assert int(got.headers["retry-after"]) >= 1 and got.headers["x-should-retry"] == "true"
    assert time.monotonic() - begun < 5
    assert httpx.get(f"{gate.url}/ready").status_code == 503
    # Another is enough for service, and then for all of it.
    ups[0].start()
    until(lambda: gate.ask().status_code == 200, "service did not return", within_s=10)
    assert httpx.get(f"{gate.url}/ready").status_code == 200


def test_the_next_request_goes_elsewhere(gate: Gateway, ups: list[Upstream]) -> None:
    ups[0].kill()
    # Conversations that would go to either: none of them notices.
    assert [gate.ask(text=f"conversation {i}").status_code for i in range(12)] == [200] * 12


def test_a_model_server_that_hangs(gate: Gateway, ups: list[Upstream]) -> None:
    with streams(gate, dict.fromkeys(PATHS[:1], "hello")) as opened, ThreadPoolExecutor(1) as pool:
        for one in ups:
            one.signal(signal.SIGSTOP)
        try:
            begun = time.monotonic()
            asked = pool.submit(gate.ask)
            (response,) = opened.values()
            assert code(read_to_the_end(response)[-1]) == "read_timeout"
            got = asked.result()
            assert got.status_code == 504 and got.json()["error"]["code"] == "read_timeout"
            assert "LETHE_READ_TIMEOUT_S" in got.json()["error"]["message"]
            assert time.monotonic() - begun < 5
            # Health checks have found out, or will: from then on nobody waits any more.
            until(lambda: gate.count("replica_up") == 0, "not noticed")
            begun = time.monotonic()
            assert gate.ask().status_code == 503 and time.monotonic() - begun < 1
        finally:
            for one in ups:
                one.signal(signal.SIGCONT)
    until(lambda: [gate.ask(text=f"{i}").status_code for i in range(4)] == [200] * 4, "service did not return")
    # What it was asked for meanwhile, it has been told to leave.
    until(lambda: sum(one.running() for one in ups) == 0, "the upstream still answers somebody")


@pytest.mark.parametrize("fault", ["not-http", "half-a-head"])
def test_an_answer_that_is_no_http_is_a_bad_gateway(gate: Gateway, fault: str) -> None:
    got = gate.ask(headers={"x-canned": fault})
    assert got.status_code == 502 and got.json()["error"]["code"] == "broken"
    assert set(got.json()["error"]) == {"message", "type", "param", "code"}


def test_half_a_chunk_ends_in_an_error_or_a_closed_connection(gate: Gateway) -> None:
    headers = {"x-canned": "half-a-chunk"}
    for path in PATHS:
        got = httpx.post(gate.url + path, json=body(path, "hello", stream=True), headers=headers)
        # Nobody takes the error for a part of the event that broke off.
        told, last = read_to_the_end(got)
        assert "word" in str(told) and code(last) in ("broken", "api_error")
    with pytest.raises(httpx.RemoteProtocolError):
        gate.ask(headers=headers)


def test_garbage_in_a_whole_answer_comes_back_as_it_is(gate: Gateway) -> None:
    got = gate.ask(headers={"x-canned": "garbage"})
    assert got.status_code == 200 and got.content.startswith(b"\xff\x00")


@pytest.mark.parametrize(("model", "status", "outcome"), [("m-refuse", 400, "refuse"), ("m-pass", 200, "pass")])
def test_a_classifier_that_fails_is_the_policys_to_decide(gate: Gateway, model: str, status: int, outcome: str) -> None:
    failures = gate.count("guard_failures_total", stage="judge", outcome=outcome)
    assert gate.ask(model, f"please {RAISE}").status_code == status
    assert gate.count("guard_failures_total", stage="judge", outcome=outcome) == failures + 1
    begun = time.monotonic()
    # Another text for each: what was judged in the end, too late, is remembered.
    assert gate.ask(model, f"please {SLOW}, {model}").status_code == 503
    assert time.monotonic() - begun < SLOW_S
    # Being too slow is overload, not a failure of the guard.
    assert gate.count("guard_failures_total", stage="judge", outcome=outcome) == failures + 1
    # Judging goes on, also when all threads were taken by what took too long.
    with ThreadPoolExecutor(4) as pool:
        slow = [pool.submit(gate.ask, model, f"again {SLOW}, {model} {i}") for i in range(2)]
        assert [one.result().status_code for one in slow] == [503] * 2
    assert gate.ask(model).status_code == 200
    assert gate.ask(model, tofu.forget_facts()[0].question).status_code == 400
    until(lambda: notes(gate) >= {"judging failed: RuntimeError"}, "not in the audit trail")


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


def notes(gate: Gateway) -> set[str]:
    return {record["note"] for record in records(gate.folder) if record.get("note")}


def test_a_spoilt_artifact_leaves_the_old_one_serving(gate: Gateway) -> None:
    """A new artifact whose copy broke off, and the same once it has come whole."""
    folder = gate.folder / "artifacts" / demo.ARTIFACT
    file, manifest = folder / "arrays.safetensors", folder / "manifest.json"
    whole, told = file.read_bytes(), manifest.read_text()
    question = tofu.forget_facts()[0].question
    os.truncate(file, len(whole) // 2)
    manifest.write_text(told + "\n")
    until(lambda: gate.count("policies_reload_failed") == 1, "not noticed")
    assert gate.ask(text=question).status_code == 400 and gate.ask().status_code == 200
    assert "arrays.safetensors: differs from the hash in its manifest" in gate.log()
    file.write_bytes(whole)
    manifest.write_text(told + "\n\n")
    until(lambda: gate.count("policies_reload_failed") == 0, "not taken up")
    assert gate.ask(text=question).status_code == 400 and gate.ask().status_code == 200


@pytest.mark.parametrize("fault", ["half an artifact", "no encoder", "half an encoder"])
def test_a_gateway_without_what_it_needs_does_not_start(fault: str) -> None:
    folder, env = settings("no-start", ["http://127.0.0.1:9"])
    if fault == "half an artifact":
        os.truncate(folder / "artifacts" / demo.ARTIFACT / "arrays.safetensors", 1000)
    else:
        env["LETHE_ENCODER"] = str(folder / "encoder")
    if fault == "half an encoder":
        load_encoder()
        prepared = max(path.parent for path in cache_folder().glob("*/encoder.onnx"))
        shutil.copytree(prepared, folder / "encoder")
        os.truncate(folder / "encoder" / "encoder.onnx", 1_000_000)
    said = start_fails(fault, env)
    assert said.startswith("lethe serve: ") and said.count("\n") == 1, said
    assert ("LETHE_ENCODER" if "encoder" in fault else "differs from the hash in its manifest") in said


def test_a_full_disk_loses_records_and_no_request(ups: list[Upstream], gate: Gateway) -> None:
    """What was counted as written is there, also after the gateway was killed."""
    with gateway("full-disk", [one.url for one in ups], largest_file=12_288, LETHE_LOG_LEVEL="error") as full:
        before = len(records(full.folder))
        asked = 40
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda i: full.ask(text=f"request {i}").status_code, range(asked)))
        assert got == [200] * asked
        until(
            lambda: full.count("audit_records_total") + full.count("audit_lost_total") >= before + asked, "not counted"
        )
        written, lost = full.count("audit_records_total"), full.count("audit_lost_total")
        assert written > 5 and lost > 5 and written + lost == before + asked
        assert "audit records can't be written" in full.log()
        os.killpg(full.process.pid, signal.SIGKILL)
        full.process.wait()
    lines = (full.folder / "audit.jsonl").read_text().split("\n")
    # The last one is torn, or empty.
    assert len(lines) - 1 == written and all(json.loads(line) for line in lines[:-1])


def test_a_trail_that_takes_nothing_holds_up_neither_requests_nor_the_end(ups: list[Upstream], gate: Gateway) -> None:
    """A pipe that nobody empties stands for a file system that hangs."""
    pipe = demo.ROOT / "build" / "tests" / "slow-trail"
    pipe.parent.mkdir(parents=True, exist_ok=True)
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    try:
        with gateway("slow-trail", [one.url for one in ups], LETHE_AUDIT=pipe) as slow:
            long = {"x-request-id": "r" * 128}
            with ThreadPoolExecutor(8) as pool:
                got = pool.map(lambda i: slow.ask(text=f"request {i}", headers=long).status_code, range(30))
                assert set(got) == {200}
            slow.process.send_signal(signal.SIGTERM)
            slow.process.wait(10)
            assert "audit records were lost" in slow.log()
    finally:
        os.close(reader)
        pipe.unlink()


@pytest.mark.parametrize("jump_s", [-86_400 * 400, 86_400 * 400])
def test_a_clock_that_jumps_changes_nothing_but_the_times_on_record(gate: Gateway, jump_s: int) -> None:
    waiting: list[Future[httpx.Response]] = []
    with streams(gate, dict.fromkeys(PATHS[:1], "hello")) as opened, ThreadPoolExecutor(1) as pool:
        waiting.append(pool.submit(gate.ask, "m-refuse", "while it jumps"))
        (gate.folder / "CLOCK").write_text(str(jump_s))
        try:
            ejections, restarts = gate.count("replica_ejections_total"), gate.count("replica_restarts_total")
            assert waiting[0].result().status_code == 200
            assert gate.ask().status_code == 200
            assert gate.ask(text=tofu.forget_facts()[0].question).status_code == 400
            # The stream goes on, the replicas stay, policies are still watched.
            (response,) = opened.values()
            assert response.status_code == 200
            policy = gate.folder / "policies" / "pass.yaml"
            version = gate.count("policies_version")
            policy.write_text(policy.read_text() + "# touched\n")
            os.utime(policy, (time.time() + jump_s, time.time() + jump_s))
            until(lambda: gate.count("policies_version") > version, "policies are no longer watched")
            assert gate.count("replica_up") == 2
            assert gate.count("replica_ejections_total") == ejections
            assert gate.count("replica_restarts_total") == restarts
            assert abs(records(gate.folder)[-1]["time"] - time.time() - jump_s) < 60
        finally:
            (gate.folder / "CLOCK").unlink()


def test_the_end_under_load_loses_no_request_and_takes_no_new_one(ups: list[Upstream], gate: Gateway) -> None:
    for one in ups:
        one.kill()
    # Answers of about a second each.
    for one in ups:
        one.start("--tokens", "20", "--pause", "0.05")
    gone = threading.Event()
    got: list[tuple[int, bytes]] = []
    refused: list[str] = []

    def ask(ending: Gateway, number: int) -> None:
        """One request after another until the gateway takes no more; each either answered in full or not taken."""
        with httpx.Client(timeout=30) as http:
            while not gone.is_set():
                path = PATHS[number % len(PATHS)]
                asked = body(path, f"request {number}", stream=bool(number % 2))
                try:
                    answer = http.post(ending.url + path, json=asked)
                except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError) as error:
                    refused.append(type(error).__name__)
                    return
                got.append((answer.status_code, answer.content))

    with gateway("ending", [one.url for one in ups], LETHE_READ_TIMEOUT_S=30) as ending:
        with ThreadPoolExecutor(16) as pool:
            for number in range(16):
                pool.submit(ask, ending, number)
            until(lambda: ending.count("requests_in_flight") >= 12, "no load")
            served = ending.count("requests_total")
            ending.process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            status = ending.process.wait(20)
            took = time.monotonic() - begun
            gone.set()
        assert status in (0, -signal.SIGTERM)
    assert took < 5, "it waited for more than what was in flight"
    assert {status for status, _ in got} == {200}
    assert all(content.count(b"word") == 20 for _, content in got)
    assert len(got) >= served + 12
    # Whoever came after that was told so by the connection; nobody's answer broke off.
    assert len(refused) == 16 and set(refused) <= {"ConnectError", "RemoteProtocolError", "ReadError"}
    # None was judged whose answer did not come.
    assert sum("endpoint" in record for record in records(ending.folder)) == len(got)
    shutil.rmtree(ending.folder, ignore_errors=True)
