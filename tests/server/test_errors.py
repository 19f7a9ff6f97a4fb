"""What an OpenAI client reads when something goes wrong."""

from __future__ import annotations

import json

import pytest

from lethe.server import errors
from lethe.server.errors import (
    BadRequest,
    GuardError,
    HeadTooLarge,
    NotFound,
    Overloaded,
    RateLimited,
    Refused,
    TooLarge,
    TooSlow,
    Unauthorized,
    UpstreamDown,
    UpstreamFailed,
    UpstreamTimeout,
    UrlTooLong,
)

TABLE = [
    (GuardError, 500, "server_error", False),
    (BadRequest, 400, "invalid_request_error", False),
    (Unauthorized, 401, "authentication_error", False),
    (NotFound, 404, "invalid_request_error", False),
    (TooSlow, 408, "timeout_error", True),
    (TooLarge, 413, "invalid_request_error", False),
    (UrlTooLong, 414, "invalid_request_error", False),
    (HeadTooLarge, 431, "invalid_request_error", False),
    (RateLimited, 429, "rate_limit_error", True),
    (Refused, 403, "policy_error", False),
    (UpstreamFailed, 502, "upstream_error", True),
    (Overloaded, 503, "overloaded_error", True),
    (UpstreamDown, 503, "upstream_error", True),
    (UpstreamTimeout, 504, "upstream_error", True),
]


@pytest.mark.parametrize(("kind", "status", "named", "retryable"), TABLE)
def test_every_error_has_its_row(kind: type[GuardError], status: int, named: str, retryable: bool) -> None:
    error = kind("what happened", param="messages", code="some_code")
    assert (error.status, error.retryable, str(error)) == (status, retryable, "what happened")
    assert json.loads(errors.body(error)) == {
        "error": {"message": "what happened", "type": named, "param": "messages", "code": "some_code"}
    }
    own = {b"www-authenticate": b"Bearer"} if kind is Unauthorized else {}
    assert dict(errors.headers(error)) == own | {
        b"content-type": b"application/json",
        b"x-should-retry": b"true" if retryable else b"false",
    }


def test_the_table_is_complete() -> None:
    kinds = {GuardError, *GuardError.__subclasses__(), *TooLarge.__subclasses__()}
    assert {row[0] for row in TABLE} == {kind for kind in kinds if kind.__module__ == errors.__name__}


@pytest.mark.parametrize(("seconds", "told"), [(0.0, b"1"), (1.0, b"1"), (1.2, b"2"), (59.001, b"60")])
def test_retry_after_is_whole_seconds_rounded_up(seconds: float, told: bytes) -> None:
    assert dict(errors.headers(RateLimited("wait", retry_after_s=seconds)))[b"retry-after"] == told


def test_a_decision_of_the_guard_is_no_server_error() -> None:
    """Official clients retry 408, 409, 429 and 5xx by themselves."""
    for kind in (BadRequest, NotFound, TooLarge, Refused):
        assert 400 <= kind.status < 500 and kind.status not in (408, 409, 429)


def test_all_four_keys_are_there_without_param_and_code() -> None:
    assert json.loads(errors.body(BadRequest("no")))["error"].keys() == {"message", "type", "param", "code"}


def test_an_error_in_a_stream_is_one_event() -> None:
    error = UpstreamFailed("line\nbreak\n\ndata: x")
    event = errors.event(error)
    assert event == b"\n\ndata: " + errors.body(error) + b"\n\n"
    assert event.strip().count(b"\n") == 0


@pytest.mark.parametrize(("path", "dialect"), [
    ("/v1/messages", "anthropic"), ("/v1/messages/count_tokens", "anthropic"), ("/v1/responses", "responses"),
    ("/v1/responses/resp_1", "responses"), ("/v1/chat/completions", "openai"), ("/score", "openai"),
])  # fmt: skip
def test_each_route_has_the_error_bodies_of_its_clients(path: str, dialect: str) -> None:
    assert errors.dialect(path) == dialect


def _every() -> list[type[GuardError]]:
    """The error classes, those of classes too."""
    found: list[type[GuardError]] = []
    todo = [GuardError]
    while todo:
        found.append(todo.pop())
        todo += found[-1].__subclasses__()
    return found


def test_anthropics_clients_read_anthropics_errors() -> None:
    from anthropic.types import ErrorResponse

    for kind in _every():
        error = kind("what happened", param="messages", code="some_code")
        told = json.loads(errors.body(error, "anthropic", "req-1"))
        assert told["type"] == "error" and told["request_id"] == "req-1"
        assert set(told["error"]) == {"type", "message"} and told["error"]["message"] == "what happened"
        if error.status not in (413, 414, 431):
            # Those are in Anthropic's documents, and not in its client's types.
            read = ErrorResponse.model_validate(told).error
            assert (read.type == "api_error") == (kind.status in (500, 502))
        lines = errors.event(error, "anthropic", "req-1").strip().split(b"\n")
        assert lines == [b"event: error", b"data: " + errors.body(error, "anthropic", "req-1")]


def test_an_error_in_a_response_is_an_event_of_its_own_and_one_that_every_client_knows() -> None:
    from openai.types.responses import ResponseErrorEvent

    error = UpstreamFailed("gone", code="broken")
    name, data = errors.event(error, "responses").strip().split(b"\n")
    told = json.loads(data.removeprefix(b"data: "))
    assert (
        name == b"event: error"
        and told["sequence_number"] == 0
        and told["error"] == json.loads(errors.body(error, "responses"))["error"]
    )
    read = ResponseErrorEvent.model_validate(told, strict=True)
    assert (read.type, read.code, read.message, read.param) == ("error", "broken", "gone", None)


@pytest.mark.parametrize(("last", "number"), [
    (b'data: {"delta":"a","sequence_number":7,"type":"x"}\n\ndata: {"sequence_number": 8, "type', 9),
    (b'data: {"delta":"\\"sequence_number\\":99","sequence_number":7}\n\n', 8),
    (b"data: {}", 0),
])  # fmt: skip
def test_an_error_in_a_response_has_the_number_after_the_last(last: bytes, number: int) -> None:
    data = errors.event(UpstreamFailed("gone"), "responses", last=last).strip().split(b"data: ")[1]
    assert json.loads(data)["sequence_number"] == number


@pytest.mark.parametrize(("path", "names"), [
    ("/v1/chat/completions", {b"x-request-id"}), ("/v1/messages", {b"x-request-id", b"request-id"}),
])  # fmt: skip
def test_an_answer_names_its_request_as_the_clients_of_the_route_look_for_it(path: str, names: set[bytes]) -> None:
    made, payload = errors.answer(Refused("no"), path)
    ids = {name: value for name, value in made if name.endswith(b"request-id")}
    assert ids.keys() == names and len(set(ids.values())) == 1
    assert dict(made)[b"content-length"] == str(len(payload)).encode()
    assert errors.answer(Refused("no"), path)[0] != made


OURS = b'{"error": {"message":"m", "type":"BadRequestError", "param":"temperature", "code":400}}'
THEIRS = b'{"type":"error","error":{"type":"NotFoundError","message":"m"}}'


def test_the_upstreams_error_passes_in_the_form_of_the_routes_clients() -> None:
    assert errors.retold(400, OURS, "openai", "r") is errors.retold(400, OURS, "responses", "r") is None
    assert errors.retold(404, THEIRS, "anthropic", "r") is None


@pytest.mark.parametrize(("status", "raw", "told"), [
    (404, b'{"detail":"Not Found"}', ("Not Found", "invalid_request_error", None, None)),
    (401, b'{"error":"Unauthorized"}', ("Unauthorized", "authentication_error", None, None)),
    (400, b'{"error":{"message":"m","code":"c","param":"p"}}', ("m", "invalid_request_error", "p", "c")),
    (400, b'{"error":{"message":"m","type":"t","param":1}}', ("m", "invalid_request_error", None, None)),
    (400, b'{"message":"m"}', ("m", "invalid_request_error", None, None)),
    (404, THEIRS, ("m", "invalid_request_error", None, None)),
    (500, b"Internal Server Error", ("the model server answered with status 500", "upstream_error", None, None)),
    (502, b"<html>bad</html>", ("the model server answered with status 502", "upstream_error", None, None)),
    (502, b'["x"]', ("the model server answered with status 502", "upstream_error", None, None)),
    (422, b'{"detail":[1]}', ("the model server answered with status 422", "invalid_request_error", None, None)),
    (429, b"\xff", ("the model server answered with status 429", "rate_limit_error", None, None)),
])  # fmt: skip
def test_any_other_error_of_the_upstream_is_told_in_openais_form(
    status: int, raw: bytes, told: tuple[str, str, str | None, str | None]
) -> None:
    made = errors.retold(status, raw, "openai", "r")
    assert made is not None
    assert json.loads(made) == {"error": dict(zip(("message", "type", "param", "code"), told, strict=True))}
    assert errors.retold(status, made, "openai", "r") is None


@pytest.mark.parametrize(("status", "raw", "kind"), [
    (400, OURS, "invalid_request_error"), (404, b'{"detail":"m"}', "not_found_error"), (500, OURS, "api_error"),
])  # fmt: skip
def test_any_other_error_of_the_upstream_is_told_in_anthropics_form(status: int, raw: bytes, kind: str) -> None:
    made = errors.retold(status, raw, "anthropic", "r")
    assert made is not None
    assert json.loads(made) == {"type": "error", "error": {"type": kind, "message": "m"}, "request_id": "r"}
    assert errors.retold(status, made, "anthropic", "r") is None


def test_a_message_is_repeated_up_to_a_length() -> None:
    made = errors.retold(500, json.dumps({"message": "a" * 10_000}).encode(), "openai", "r")
    assert made is not None and json.loads(made)["error"]["message"] == "a" * errors.MAX_MESSAGE_CHARS
