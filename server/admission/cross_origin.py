"""Which web pages may call the gateway from a browser (CORS), by the list of origins in LETHE_CORS_ORIGINS.

Without the list no page may, as browsers have it. Keys are sent as headers that a page sets itself, so credentials of
the browser (cookies) are never allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.types import Message, Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]

ANY_ORIGIN = "*"
# Seconds for which a browser may remember the answer to a preflight. Chosen: one in ten minutes costs little.
PREFLIGHT_MAX_AGE_S = 600
# Headers of responses that a page may read.
EXPOSED_HEADERS = b"request-id, retry-after, x-request-id, x-should-retry"
# What a browser sends as the names of the headers that a page wants to set; anything else is not repeated.
_HEADER_NAMES = re.compile(rb"[a-zA-Z0-9,_ \t-]{1,2000}")


class CrossOrigin:
    """The headers and answers of CORS. origins: as the setting has them, in lower case."""

    def __init__(self, origins: str) -> None:
        self._origins = frozenset(origin for origin in origins.split(",") if origin)

    def __bool__(self) -> bool:
        return bool(self._origins)

    def _allowed_origin(self, headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
        """The origin of a request, if pages from there may call."""
        origins = [value for name, value in headers if name == b"origin"]
        if len(origins) != 1 or not origins[0]:
            return None
        is_allowed = ANY_ORIGIN in self._origins or origins[0].decode("latin-1").lower() in self._origins
        return origins[0] if is_allowed else None

    def response_headers(self, request_headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """What a response to a request with these headers gets in addition."""
        if not self._origins:
            return []
        origin = self._allowed_origin(request_headers)
        allowed = [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED_HEADERS)]
        return [(b"vary", b"origin"), *((name, value) for name, value in allowed if origin and value)]

    def preflight_headers(self, method: str, headers: Headers) -> Headers | None:
        """The headers of the answer to a preflight from an allowed origin; None for any other request."""
        values = dict(headers)
        if method != "OPTIONS" or b"access-control-request-method" not in values:
            return None
        if self._allowed_origin(headers) is None:
            return None
        answer = [
            *self.response_headers(headers),
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-max-age", b"%d" % PREFLIGHT_MAX_AGE_S),
        ]
        requested = values.get(b"access-control-request-headers", b"")
        if _HEADER_NAMES.fullmatch(requested):
            answer.append((b"access-control-allow-headers", requested))
        return answer

    async def answer_preflight(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer the request if it is a preflight from an allowed origin. Whether it was one."""
        headers = self.preflight_headers(scope["method"], scope["headers"])
        if headers is None:
            return False
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
        return True

    def sending_headers(self, scope: Scope, send: Send) -> Send:
        """`send`, with the headers of CORS on the response."""
        extra = self.response_headers(scope["headers"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        return send_with_headers
