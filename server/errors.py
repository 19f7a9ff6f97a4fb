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
from typing import ClassVar, Final, Literal

import orjson

Dialect = Literal["openai", "responses", "anthropic"]

# What Anthropic's clients call each status; its documentation of errors lists them.
ANTHROPIC_KINDS: Final = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error",
    413: "request_too_large", 414: "request_too_large", 429: "rate_limit_error", 431: "request_too_large",
    503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


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


def dialect(path: str) -> Dialect:
    """Whose error bodies the clients of a route read."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "responses" if path.startswith("/v1/responses") else "openai"


def body(error: GuardError, dialect: Dialect = "openai", request_id: str | None = None) -> bytes:
    """The OpenAI error body, all four keys always there; or Anthropic's, which has others."""
    if dialect == "anthropic":
        kind = ANTHROPIC_KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        told = {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}
        return orjson.dumps(told)
    return orjson.dumps({"error": _told(error)})


def event(error: GuardError, dialect: Dialect = "openai", request_id: str | None = None) -> bytes:
    """The same as a server-sent event, for a stream that has already begun."""
    name, payload = b"", body(error, dialect, request_id)
    if dialect != "openai":
        # Their events have names, and responses' events are flat; the official clients look for `error`, too.
        name = b"event: error\n"
    if dialect == "responses":
        payload = orjson.dumps({**_told(error), "type": "error", "error": _told(error)})
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
