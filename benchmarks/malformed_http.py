"""Malformed HTTP: request lines, headers, lengths, chunks, pipelines, truncated requests. Deterministic for one seed.

`FAMILIES` lists all kinds of requests that `malformed.py` sends, and their shares.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from benchmarks.malformed_bodies import (
    POSTED,
    malformed_body,
    mutate_bytes,
    post_request,
    valid_body,
    valid_request,
)

HEADERS = [
    b"content-length: 5", b"content-length: -1", b"content-length: 1e3", b"content-length: 99999999999999999999999",
    b"content-length: 5, 5", b"content-length:", b"Content-Length : 5", b"transfer-encoding: chunked",
    b"transfer-encoding: gzip, chunked", b"transfer-encoding: identity", b"Transfer-Encoding:\x0bchunked",
    b"transfer-encoding: chunked, chunked", b"transfer-encoding:", b"host: a", b"host:", b"host: \xff", b"host: a b",
    b"expect: 100-continue", b"expect: 200-maybe", b"upgrade: websocket", b"connection: upgrade", b"connection: close",
    b"connection: keep-alive, close", b"connection: content-type", b"no colon", b": no name", b"na me: x",
    b"n\x00me: x", b"x: \x00", b"x: \r y", b" folded: x", b"x: a\r\n  folded", b"x: \xff\xfe", b"\xff: x", b"x\n: y",
    b"x: " + b"a" * 70_000, b"x" * 9000 + b": a", *(b"x-%d: a" % i for i in range(3)), b"x: a\nx-smuggled: b",
    b"accept-encoding: gzip;q=", b"content-encoding: gzip", b"content-type: \xff/\xfe", b"content-type: ;;;=",
    b"content-type: application/json; charset*=x''%", b"authorization: Bearer \xff", b"authorization:",
    b"x-api-key: \x01",
    b"x-request-id: \xff", b"x-request-id: " + b"i" * 500, b"x-request-id: a\tb", b"cookie: =;=;", b"te: trailers",
    b"range: bytes=9-1", b"trailer: x", b"x-lethe-action: pass", b"proxy-connection: keep-alive",
    b"keep-alive: timeout=x",
    b"http2-settings: AAAA", b"date: yesterday", b"content-length: 0x5", b"content-length: +5", b"content-length: 0",
]  # fmt: skip
TARGETS = [
    b"/v1/chat/completions", b"/v1/models", b"/health", b"/ready", b"/", b"*", b"", b"//", b"/%", b"/%zz",
    b"/%00", b"/%ff",
    b"/\xff\xfe", b"/v1/chat/completions?\xff", b"/v1/chat/completions?a=%ff&b", b"/v1/models?" + b"q" * 9000,
    b"http://x/v1/models", b"http://x:99999/v1/models", b"http://[/v1/models", b"x:443", b"/v1/models#part", b"/a b",
    b"/v1/models\x00", b"/v1/models\x7f", b"/../../etc", b"/v1/messages/%f0%9f", b"/" + b"a" * 9000, b"?", b"#", b"/\t",
    b"/v1/models?%0d%0ax: y", b"/v1/models%0d%0a", b"//x/y", b"/v1/messages?a=\x80", b"/v1/models?a=[]{}|\\^`",
]  # fmt: skip
METHODS = [b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"PATCH", b"get", b"G\x00T", b"",
           b"PROPFIND", b"PRI", b"\xff", b"POST POST", b"A" * 5000, b"M-SEARCH", b"QUERY"]  # fmt: skip
VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/1.1.1", b"http/1.1", b"", b"HTTP",
            b"HTTP/-1.1", b"HTTP/1.1 ", b"ICY/1.1", b"HTTP/1.\xff"]  # fmt: skip
ENDS = [b"\r\n"] * 8 + [b"\n", b"\r", b"\r\r\n", b"\n\r", b"\x00\r\n", b" \r\n"]
CHUNKS = [
    b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"-1\r\n", b"5\r\nhell", b"5\r\nhello0\r\n\r\n",
    b"5;ext=\xff\r\nhello\r\n",
    b"FFFFFFFFFFFFFFFFF\r\n", b"7fffffffffffffff\r\nx", b"0x5\r\nhello\r\n", b"5 \r\nhello\r\n", b"\r\n",
    b"5\nhello\n0\n\n",
    b"0\r\nx: y\r\n\r\n", b"0\r\nbad trailer\r\n\r\n", b"0\r\n" + b"x: " + b"a" * 70_000 + b"\r\n\r\n",
    b"5;" + b"a" * 20_000 + b"\r\n",
    b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", b"00000000000000000005\r\nhello\r\n0\r\n\r\n", b"2\r\n{}\r\n",
]  # fmt: skip


def malformed_head(draw: random.Random) -> bytes:
    """Return a request line and headers, most of them malformed."""
    valid_line = draw.random() < 0.5
    line = (
        b"POST /v1/chat/completions HTTP/1.1"
        if valid_line
        else b" ".join(map(draw.choice, (METHODS, TARGETS, VERSIONS)))
    )
    headers = [draw.choice(HEADERS) for _ in range(draw.randint(0, 6))]
    if draw.random() < 0.02:
        headers += [b"x-%d: a" % i for i in range(150)]
    if draw.random() < 0.6:
        headers += [b"host: x", b"content-type: application/json"]
    draw.shuffle(headers)
    return b"".join(one + draw.choice(ENDS) for one in (line, *headers, b""))


def garbage(draw: random.Random) -> bytes:
    """Return bytes of other protocols, and random bytes."""
    first = draw.choice([
        b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"SSH-2.0-x\r\n",
        b"\x00", b"\r\n\r\n", b"GET", b"{}", b"HTTP/1.1 200 OK\r\n\r\n", b"*1\r\n$4\r\nPING\r\n", b"\x05\x01\x00",
    ])  # fmt: skip
    return first + draw.randbytes(draw.choice([0, 1, 10, 200, 5000])) + b"\r\n\r\n"


def wrong_length(draw: random.Random) -> bytes:
    """Return a request whose body is shorter or longer than its content-length."""
    _, endpoint = draw.choice(POSTED)
    body = json.dumps(valid_body(endpoint, draw)).encode()
    declared = max(len(body) + draw.choice([-1, -20, 1, 20, 500, 10**7, 10**12]), 0)
    raw = post_request("/v1/chat/completions", body, [b"content-type: application/json"])
    return raw.replace(b"content-length: %d" % len(body), b"content-length: %d" % declared)


def chunked(draw: random.Random) -> bytes:
    """Return a request with malformed chunks."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return head + b"transfer-encoding: chunked\r\n\r\n" + b"".join(draw.choices(CHUNKS, k=draw.randint(1, 4)))


def pipelined(draw: random.Random) -> bytes:
    """Return several requests in one piece."""
    makers = (malformed_body, valid_request, valid_request, malformed_head, chunked)
    return b"".join(draw.choice(makers)(draw) for _ in range(draw.randint(2, 5)))


def mutated_http(draw: random.Random) -> bytes:
    """Return a request of any kind with bytes changed anywhere, in head or body."""
    raw = draw.choice((malformed_body, valid_request, malformed_head, pipelined))(draw)
    for _ in range(draw.randint(1, 3)):
        raw = mutate_bytes(raw, draw)
    return raw


def truncated(draw: random.Random) -> bytes:
    """Return the beginning of a request."""
    raw = draw.choice((malformed_body, valid_request))(draw)
    return raw[: draw.randrange(len(raw))]


# Name → (function that makes a request, share of all requests). Only "malformed body" reuses its connection.
FAMILIES: dict[str, tuple[Callable[[random.Random], bytes], float]] = {
    "malformed body": (malformed_body, 0.62),
    "head": (malformed_head, 0.12),
    "bytes changed": (mutated_http, 0.08),
    "chunks": (chunked, 0.05),
    "wrong length": (wrong_length, 0.03),
    "garbage": (garbage, 0.04),
    "pipelined": (pipelined, 0.03),
    "truncated, client disconnects": (truncated, 0.03),
}
