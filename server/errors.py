"""What can go wrong with a request, and how it reads to an OpenAI or Anthropic client.

    GuardError
    ├── BadRequest        400  the client's fault: fields, JSON, sizes
    ├── Unauthorized      401  no key, or none that is known
    ├── NotFound          404  a route that is not served, a model that the key may not use
    ├── TooSlow           408  the request did not arrive in time
    ├── TooLarge          413  body over the limit
    │   ├── UrlTooLong    414
    │   └── HeadTooLarge  431
    ├── RateLimited       429  the key's own limits
    ├── Refused           403  a policy's decision
    ├── UpstreamFailed    502  vLLM can't be reached, or broke off
    ├── Overloaded        503  the gateway is full
    ├── UpstreamDown      503  no replica of vLLM is there that could answer
    └── UpstreamTimeout   504  vLLM was silent for too long

A decision of the guard is never a 5xx: official clients retry those by themselves.
"""

from __future__ import annotations

import math
import re
import secrets
from typing import ClassVar, Final, Literal

import orjson

Dialect = Literal["openai", "responses", "anthropic"]

# What Anthropic's clients call each status; its documentation of errors lists them.
ANTHROPIC_KINDS: Final = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error",
    413: "request_too_large", 414: "request_too_large", 429: "rate_limit_error", 431: "request_too_large",
    503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip

# How much of another server's words an error repeats.
MAX_MESSAGE_CHARS: Final = 2000
# A key: within a string its quotation marks would be escaped.
_NUMBER: Final = re.compile(rb'(?<!\\)"sequence_number":\s*(\d{1,18})')


class GuardError(Exception):
    """An error that is answered with the error body of the route's clients."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """retry_after_s: how long a client had better wait; it is told in whole seconds."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


class BadRequest(GuardError):
    status = 400
    kind = "invalid_request_error"


class Unauthorized(GuardError):
    status = 401
    kind = "authentication_error"


class NotFound(GuardError):
    status = 404
    kind = "invalid_request_error"


class TooSlow(GuardError):
    status = 408
    kind = "timeout_error"
    retryable = True


class TooLarge(GuardError):
    status = 413
    kind = "invalid_request_error"


class UrlTooLong(TooLarge):
    status = 414


class HeadTooLarge(TooLarge):
    status = 431


class RateLimited(GuardError):
    status = 429
    kind = "rate_limit_error"
    retryable = True


class Refused(GuardError):
    status = 403
    kind = "policy_error"


class UpstreamFailed(GuardError):
    status = 502
    kind = "upstream_error"
    retryable = True


class Overloaded(GuardError):
    status = 503
    kind = "overloaded_error"
    retryable = True


class UpstreamDown(GuardError):
    status = 503
    kind = "upstream_error"
    retryable = True


class UpstreamTimeout(GuardError):
    status = 504
    kind = "upstream_error"
    retryable = True


# What an error of that status is called on OpenAI's routes when its own server has no name for it.
OPENAI_KINDS: Final = {kind.status: kind.kind for kind in (Unauthorized, TooSlow, RateLimited)}


def dialect(path: str) -> Dialect:
    """Whose error bodies the clients of a route read."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "responses" if path.startswith("/v1/responses") else "openai"


def new_request_id() -> str:
    return f"req-{secrets.token_hex(12)}"


def id_headers(request_id: str, dialect: Dialect) -> list[tuple[bytes, bytes]]:
    """The request's id under the name that the clients of the route look for."""
    named = [(b"x-request-id", request_id.encode())]
    return [*named, (b"request-id", request_id.encode())] if dialect == "anthropic" else named


def answer(error: GuardError, path: str, request_id: str | None = None) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of an answer that is an error, for the clients of `path`; without an id it gets a new one."""
    request_id, whose = request_id or new_request_id(), dialect(path)
    payload = body(error, whose, request_id)
    length = (b"content-length", str(len(payload)).encode())
    return [*headers(error), length, *id_headers(request_id, whose)], payload


def body(error: GuardError, dialect: Dialect = "openai", request_id: str | None = None) -> bytes:
    """The OpenAI error body, all four keys always there; or Anthropic's, which has others."""
    if dialect == "anthropic":
        return _anthropic(error.status, error.message, request_id)
    return orjson.dumps({"error": _told(error)})


def _anthropic(status: int, message: str, request_id: str | None) -> bytes:
    kind = ANTHROPIC_KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id})


def retold(status: int, raw: bytes, dialect: Dialect, request_id: str) -> bytes | None:
    """The upstream's error `raw` in the form that the route's clients read. None: it has that form, and may pass.

    vLLM tells what its web framework finds in the framework's form, or in OpenAI's on Anthropic's routes; and what
    stands between gateway and vLLM has forms of its own.
    """
    try:
        told = orjson.loads(raw)
    except orjson.JSONDecodeError:
        told = None
    told = told if isinstance(told, dict) else {}
    error = told["error"] if isinstance(told.get("error"), dict) else {}
    if isinstance(error.get("message"), str) and isinstance(error.get("type"), str):
        if (
            told.get("type") == "error"
            if dialect == "anthropic"
            else {"message", "type", "param", "code"} <= set(error)
        ):
            return None
    said = (error.get("message"), told.get("message"), told.get("detail"), told.get("error"))
    message = next((text for text in said if isinstance(text, str) and text), "")[:MAX_MESSAGE_CHARS]
    message = message or f"the model server answered with status {status}"
    if dialect == "anthropic":
        return _anthropic(status, message, request_id)
    kind = OPENAI_KINDS.get(status, BadRequest.kind if status < 500 else UpstreamFailed.kind)
    param, code = (value if isinstance(value := error.get(key), str) else None for key in ("param", "code"))
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def event(error: GuardError, dialect: Dialect = "openai", request_id: str | None = None, last: bytes = b"") -> bytes:
    """The same as a server-sent event, for a stream that has already begun.

    last: the end of what was sent of it; events of responses are numbered, and this one follows.
    """
    name, payload = b"", body(error, dialect, request_id)
    if dialect != "openai":
        # Their events have names, and responses' events are flat; the official clients look for `error`, too.
        name = b"event: error\n"
    if dialect == "responses":
        sent = _NUMBER.findall(last)
        number = int(sent[-1]) + 1 if sent else 0
        payload = orjson.dumps({**_told(error), "type": "error", "sequence_number": number, "error": _told(error)})
    # The stream may have broken off within a line; a blank line more between events is ignored.
    return b"\n\n" + name + b"data: " + payload + b"\n\n"


def _told(error: GuardError) -> dict[str, str | None]:
    return {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}


def headers(error: GuardError) -> list[tuple[bytes, bytes]]:
    made = [
        (b"content-type", b"application/json"),
        (b"x-should-retry", b"true" if error.retryable else b"false"),
    ]
    if error.retry_after_s is not None:
        made.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode()))
    if isinstance(error, Unauthorized):
        made.append((b"www-authenticate", b"Bearer"))
    return made
