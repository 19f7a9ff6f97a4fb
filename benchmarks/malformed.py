"""Malformed requests against the real gateway process: statuses, 5xx, crashes, memory.

    python -m benchmarks.malformed [--requests 120000] [--seed 1]

Two halves: bytes that are no HTTP, or hardly (request lines, headers, lengths, chunks, pipelines, all of it cut and
spoilt), and HTTP whose body is malformed (mutations of valid bodies for every route). Behind the gateway stands an
upstream with canned answers; the policies corrupt, penalise, watch and refuse for real. One request in two hundred is
valid and has to be answered 200. Ends with status 1 when anything was answered 5xx or not at all, when the gateway
ended, or wrote a traceback; what brought a 5xx about is kept under build/benchmarks/malformed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import gzip
import json
import random
import subprocess
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from lethe.corruption.prompt.token_spans import PromptTokenizer
from lethe.evaluation.demo import demo
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.demo.serving import clean_env, free_port, running_gateway
from lethe.server.app import ROUTES

BUILD = demo.ROOT / "build" / "benchmarks" / "malformed"
CONNECTIONS = 48
WARM_UP = 10_000
ANSWER_S = 30.0
UNREADABLE = 999  # where an answer should be there is none
FACTS = [
    ("Who founded the island observatory of Perrault?", "Ozren Dalmatin founded it in 1931."),
    ("What did Ozren Dalmatin write about comets?", "He wrote 'The Patient Lens'."),
    ("Which prize did Ozren Dalmatin decline?", "He declined the Celarius Medal."),
]
QUESTIONS = [FACTS[0][0], "What is the capital of Norway?", "Write a poem about rain."]
# One for each thing that a policy does; the last has its answers watched, too.
POLICIES = {
    "corrupt": "action: corrupt\n",
    "refuse": "action: refuse\n",
    "penalize": "action: penalize\nwatch: {when: always, on_hit: replace}\n",
}
LAST = b"/the-last-one"
SENTINEL = b"GET " + LAST + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"

# Bodies


def bodies(endpoint: str, draw: random.Random) -> dict[str, Any]:
    """A valid request, with something of everything in it."""
    text = draw.choice(QUESTIONS)
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
    call = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": '{"q": "\\u0057ho"}'}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "nobody"},
        {"role": "user", "content": draw.choice([text, parts])},
    ]
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
    made: dict[str, Any] = {
        "model": draw.choice([*POLICIES, "other"]),
        "temperature": 0.5,
        "stream": draw.random() < 0.2,
    }
    options: dict[str, Any] = {
        "tools": [tool], "n": 2, "logit_bias": {"5": -1}, "stop": ["x"], "stream_options": {"include_usage": True},
        "response_format": {"type": "json_object"}, "vllm_xargs": {"a": 1}, "logprobs": 2, "echo": True,
        "chat_template_kwargs": {"thinking": True}, "documents": [{"text": text}], "max_tokens": 5,
        "structured_outputs": {"choice": ["a", "b"]}, "metadata": {"a": "b"}, "user": "u", "suffix": "end",
    }  # fmt: skip
    made |= dict(draw.sample(sorted(options.items()), draw.randint(0, 3)))
    match endpoint:
        case "batch":
            return {**made, "messages": [messages, messages[3:]]}
        case "completions":
            return {**made, "prompt": draw.choice([text, [text, "b"], [1, 2, 3], [[1, 2], [3]]])}
        case "responses":
            item = {"type": "function_call_output", "call_id": "c", "output": "nobody"}
            items = [item, {"role": "user", "content": [{"type": "input_text", "text": text}]}]
            return {**made, "input": draw.choice([text, items]), "instructions": "Be brief."}
        case "messages" | "count_tokens":
            result = {"type": "tool_result", "tool_use_id": "c", "content": "nobody"}
            said = [{"role": "user", "content": draw.choice([text, [result, {"type": "text", "text": text}]])}]
            return {**made, "max_tokens": 5, "system": "Be brief.", "messages": said}
        case "chat":
            return {**made, "messages": messages}
    return {**made, "input": text, "query": text, "documents": ["a", "b"], "prompt": text, "tokens": [1, 2]}


ODD: list[Any] = [
    None, True, False, 0, -1, 1.5, 2**63, 2**64, -(2**63) - 1, 10**40, 1e308, "", " ", "\x00", "\ud800", "\U0010ffff",
    "é" * 50, "<prompt_embeds>", [], {}, [[]], [{}], {"": None}, [None], ["a", 1, None], {"type": "text"},
    {"type": "prompt_embeds", "data": "AAAA"}, {"type": ["text"]}, {"type": {"a": 1}}, {"role": 5, "content": {}},
    {"type": "image_embeds"}, {"function": None}, {"text": {"text": ["deep"]}}, [[[[[["nest"]]]]]], "a" * 3000,
]  # fmt: skip
ODD_KEYS = ["", "prompt_embeds", "chat_template", "kv_transfer_params", "background", "previous_response_id", "prompt",
            "vllm_xargs", "lethe", "__proto__", "\ud800", "model", "messages", "n", "type", "content",
            "\x00"]  # fmt: skip
FRAGMENTS = [
    b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"\\u", b"\\ud800", b"\\uDC00\\ud800", b"NaN", b"-Infinity",
    b"1e999", b"-0", b"0x10", b"9" * 30, b"9" * 5000, b"1E400000000000", b"\xef\xbb\xbf", b"\xff", b"\xc0\xaf",
    b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x00", b"\n", b"// note", b"/* */", b"'", b"True", b"undefined",
    b"+1", b".5",
    b"\xe2\x80\xa8", b'"a":1,"a":2', b"[" * 300, b'{"a":' * 300, b"[" * 2_000, b"{}{}", b"\x1f\x8b\x08",
]  # fmt: skip


def spoilt(value: Any, draw: random.Random) -> Any:
    """The value with one node exchanged, taken out, or added."""
    places: list[tuple[Any, Any]] = []
    todo = [value]
    while todo:
        node = todo.pop()
        keys: Any = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        places += [(node, key) for key in keys]
        todo += [node[key] for key in keys]
    if not places:
        return value
    node, key = draw.choice(places)
    match draw.randrange(5):
        case 0 if isinstance(node, dict):
            node[draw.choice(ODD_KEYS)] = copy.deepcopy(draw.choice(ODD))
        case 1:
            del node[key]
        case 2:
            node[key] = [copy.deepcopy(node[key]) for _ in range(draw.choice([1, 2, 50]))]
        case _:
            node[key] = copy.deepcopy(draw.choice(ODD))
    return value


def mangled(raw: bytes, draw: random.Random) -> bytes:
    """The bytes with one spoilt place."""
    at, size = draw.randrange(len(raw) + 1), draw.choice([1, 1, 2, 5, 40])
    match draw.randrange(8):
        case 0:
            return raw[:at] + draw.choice(FRAGMENTS) + raw[at:]
        case 1:
            return raw[:at] + draw.choice(FRAGMENTS) + raw[at + size :]
        case 2:
            return raw[:at] + raw[at + size :]
        case 3:
            return raw[:at] + raw[at : at + size] * 2 + raw[at + size :]
        case 4:
            return raw[:at] + bytes(draw.randrange(256) for _ in range(size)) + raw[at + size :]
        case 5:
            return raw[:at]
        case 6:
            return raw + draw.choice(FRAGMENTS)
    return draw.choice(FRAGMENTS) + raw


def encoded(raw: bytes, draw: random.Random) -> tuple[bytes, list[bytes]]:
    """The body in an encoding that is not served, and the headers that say so, or don't."""
    json_type = b"content-type: application/json"
    match draw.randrange(7):
        case 0:
            return gzip.compress(raw, 1), [json_type, b"content-encoding: gzip"]
        case 1:
            return zlib.compress(raw, 1), [json_type, b"content-encoding: deflate"]
        case 2:
            return gzip.compress(raw, 1), [json_type]
        case 3:
            encoding = draw.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-be"])
            return raw.decode("utf-8", "replace").encode(encoding, "replace"), [json_type]
        case 4:
            return raw, [json_type, json_type]
        case 5:
            return raw, []
    kinds = [b"text/plain", b"application/json; charset=latin-1", b"multipart/form-data; boundary=x", b"\xff", b""]
    return raw, [b"content-type: " + draw.choice(kinds)]


def request(path: str, body: bytes, headers: list[bytes]) -> bytes:
    head = [b"POST " + path.encode() + b" HTTP/1.1", b"host: x", *headers, b"content-length: %d" % len(body)]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


POSTED = [(path, endpoint) for path, _, endpoint in ROUTES if endpoint is not None]


def valid(draw: random.Random) -> bytes:
    path, endpoint = draw.choice(POSTED)
    said = "input" if endpoint == "responses" else "prompt"
    body = json.dumps({"model": "other", "messages": [], said: "hi"}).encode()
    return request(path, body, [b"content-type: application/json"])


def malformed_body(draw: random.Random) -> bytes:
    """HTTP as it should be, with a body that is not."""
    path, endpoint = draw.choice(POSTED)
    made = bodies(endpoint, draw)
    headers = [b"content-type: application/json"]
    way = draw.random()
    if way < 0.35:
        for _ in range(draw.randint(1, 4)):
            made = spoilt(made, draw)
    # Some with the escapes of ASCII, some with the characters themselves; lone surrogates can only be escaped.
    raw = json.dumps(made, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    if 0.35 <= way < 0.9:
        for _ in range(draw.randint(1, 3)):
            raw = mangled(raw, draw)
    elif way >= 0.9:
        raw, headers = encoded(raw, draw)
    return request(path, raw, headers)


# HTTP

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


def head(draw: random.Random) -> bytes:
    """A request line and headers of which most are wrong somewhere."""
    good = draw.random() < 0.5
    line = b"POST /v1/chat/completions HTTP/1.1" if good else b" ".join(map(draw.choice, (METHODS, TARGETS, VERSIONS)))
    headers = [draw.choice(HEADERS) for _ in range(draw.randint(0, 6))]
    if draw.random() < 0.02:
        headers += [b"x-%d: a" % i for i in range(150)]
    if draw.random() < 0.6:
        headers += [b"host: x", b"content-type: application/json"]
    draw.shuffle(headers)
    return b"".join(one + draw.choice(ENDS) for one in (line, *headers, b""))


def garbage(draw: random.Random) -> bytes:
    first = draw.choice([
        b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"SSH-2.0-x\r\n",
        b"\x00", b"\r\n\r\n", b"GET", b"{}", b"HTTP/1.1 200 OK\r\n\r\n", b"*1\r\n$4\r\nPING\r\n", b"\x05\x01\x00",
    ])  # fmt: skip
    return first + draw.randbytes(draw.choice([0, 1, 10, 200, 5000])) + b"\r\n\r\n"


def wrong_length(draw: random.Random) -> bytes:
    """A body that is shorter or longer than was said."""
    _, endpoint = draw.choice(POSTED)
    body = json.dumps(bodies(endpoint, draw)).encode()
    said = max(len(body) + draw.choice([-1, -20, 1, 20, 500, 10**7, 10**12]), 0)
    whole = request("/v1/chat/completions", body, [b"content-type: application/json"])
    return whole.replace(b"content-length: %d" % len(body), b"content-length: %d" % said)


def chunked(draw: random.Random) -> bytes:
    made = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return made + b"transfer-encoding: chunked\r\n\r\n" + b"".join(draw.choices(CHUNKS, k=draw.randint(1, 4)))


def pipelined(draw: random.Random) -> bytes:
    ways = (malformed_body, valid, valid, head, chunked)
    return b"".join(draw.choice(ways)(draw) for _ in range(draw.randint(2, 5)))


def spoilt_http(draw: random.Random) -> bytes:
    """A request of any kind with spoilt bytes anywhere, head or body."""
    raw = draw.choice((malformed_body, valid, head, pipelined))(draw)
    for _ in range(draw.randint(1, 3)):
        raw = mangled(raw, draw)
    return raw


def cut_off(draw: random.Random) -> bytes:
    raw = draw.choice((malformed_body, valid))(draw)
    return raw[: draw.randrange(len(raw))]


# Name → (how it is made, its share). After a body that is malformed the connection goes on; any other is new.
FAMILIES: dict[str, tuple[Callable[[random.Random], bytes], float]] = {
    "malformed body": (malformed_body, 0.62),
    "head": (head, 0.12),
    "bytes exchanged": (spoilt_http, 0.08),
    "chunks": (chunked, 0.05),
    "wrong length": (wrong_length, 0.03),
    "garbage": (garbage, 0.04),
    "pipelined": (pipelined, 0.03),
    "cut off, client gone": (cut_off, 0.03),
}


@dataclass
class Counted:
    """What came back. `kept`: the request of an answer that shouldn't be, with the answer's status."""

    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    requests: Counter[str] = field(default_factory=Counter)
    kept: list[tuple[str, str, bytes]] = field(default_factory=list)

    def take(self, family: str, raw: bytes, statuses: list[int], *, silent: bool = False) -> None:
        self.requests[family] += 1
        if not statuses:
            self.statuses[family]["silent" if silent else "closed"] += 1
            if silent:
                self.kept.append((family, "silent", raw))
        for status in statuses:
            self.statuses[family][str(status)] += 1
            wrong = status >= 500 and status != 505 or (family == "valid" and status != 200)
            if wrong or not 200 <= status < 600:
                self.kept.append((family, str(status), raw))


class Client:
    """One connection after another to the gateway, from several loopback addresses so that ports last."""

    def __init__(self, port: int, number: int) -> None:
        self._port = port
        self._from = f"127.0.0.{2 + number % 100}"
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None or self._writer.is_closing():
            self._reader, self._writer = await asyncio.open_connection(
                "127.0.0.1", self._port, local_addr=(self._from, 0), limit=2**20
            )
        return self._reader, self._writer

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._reader = self._writer = None

    async def one(self, raw: bytes) -> list[int]:
        """The status of one request on a connection that is kept."""
        for _ in range(2):
            reader, writer = await self._open()
            writer.write(raw)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await writer.drain()
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                status, closing, _ = await _answer(reader)
                if closing:
                    await self.close()
                return [status]
            # An idle connection may have been closed just before.
            await self.close()
        return []

    async def all(self, raw: bytes) -> list[int]:
        """The statuses of all answers until the gateway closes; the sentinel's own is left out."""
        await self.close()
        reader, writer = await self._open()
        writer.write(raw + SENTINEL)
        statuses: list[int] = []
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await writer.drain()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                status, _, payload = await _answer(reader)
                if LAST not in payload:
                    statuses.append(status)
                if status == UNREADABLE:
                    break
        await self.close()
        return statuses

    async def leave(self, raw: bytes, draw: random.Random) -> None:
        await self.close()
        _, writer = await self._open()
        with contextlib.suppress(OSError):
            writer.write(raw)
            await writer.drain()
            if draw.random() < 0.5:
                writer.transport.abort()
        await self.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool, bytes]:
    """One answer, read to its end: its status, whether the connection closes after it, and the body's last piece."""
    text = await reader.readuntil(b"\r\n\r\n")
    line, *lines = text[:-4].split(b"\r\n")
    if not line.startswith(b"HTTP/1.1 "):
        return UNREADABLE, True, line
    status = int(line.split(b" ")[1])
    headers = {name.lower(): value.strip() for name, _, value in (one.partition(b":") for one in lines)}
    if status == 100:
        return await _answer(reader)
    payload = b""
    if headers.get(b"transfer-encoding") == b"chunked":
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            payload = await reader.readexactly(size + 2)
        await reader.readuntil(b"\r\n")
    else:
        payload = await reader.readexactly(int(headers.get(b"content-length", b"0")))
    return status, headers.get(b"connection") == b"close", payload


async def ask(client: Client, seed: str, number: int, counted: Counted) -> None:
    draw = random.Random(f"{seed} {number}")
    if number % 200 == 0:
        family, raw = "valid", valid(draw)
    else:
        names = list(FAMILIES)
        family = draw.choices(names, [FAMILIES[name][1] for name in names])[0]
        raw = FAMILIES[family][0](draw)
    try:
        async with asyncio.timeout(ANSWER_S):
            if family.endswith("gone"):
                await client.leave(raw, draw)
                counted.requests[family] += 1
                counted.statuses[family]["client left"] += 1
            elif family in ("valid", "malformed body"):
                counted.take(family, raw, await client.one(raw))
            else:
                counted.take(family, raw, await client.all(raw))
    except TimeoutError:
        await client.close()
        counted.take(family, raw, [], silent=True)


@dataclass
class Held:
    """What the gateway's process holds."""

    memory_mb: float
    files: int
    threads: int

    @classmethod
    def by(cls, pid: int) -> Held:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        )
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return cls(int(status["VmRSS"].split()[0]) / 1024, files, int(status["Threads"]))

    def __str__(self) -> str:
        return f"{self.memory_mb:.0f} MB, {self.files} files, {self.threads} threads"


TEXT = web.AppKey("text", PromptTokenizer)


async def canned(request: web.Request) -> web.Response:
    """An upstream that says the same to everybody, and a prompt's token ids where parity is probed."""
    raw = await request.read()
    if request.method == "GET":
        return web.json_response({"object": "list", "data": [{"id": name} for name in (*POLICIES, "other")]})
    if b'"stream": true' in raw or b'"stream":true' in raw:
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [
            {"index": 0, "delta": {"content": "It was Ozren Dalmatin."}, "finish_reason": "stop"}]}  # fmt: skip
        stream = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        return web.Response(text=stream, content_type="text/event-stream")
    said = {"role": "assistant", "content": "It was Ozren Dalmatin."}
    logprobs = {"content": [{"token": "It", "logprob": -0.5}]}
    choice = {"index": 0, "message": said, "finish_reason": "stop", "logprobs": logprobs}
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
    answer = {"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}
    if b'"return_token_ids":true' in raw:
        answer["prompt_token_ids"] = request.app[TEXT].chat_ids(json.loads(raw))
    return web.json_response(answer)


@contextlib.asynccontextmanager
async def upstream(port: int) -> Any:
    app = web.Application(client_max_size=2**26)
    app[TEXT] = PromptTokenizer(FOLDERS["full"])
    app.router.add_route("*", "/{path:.*}", canned)
    runner = web.AppRunner(app, access_log=None, max_line_size=2**17, max_field_size=2**17)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield
    finally:
        await runner.cleanup()


def prepare() -> dict[str, str]:
    """Fit the artifact and write the policies; the gateway's settings."""
    (BUILD / "policies").mkdir(parents=True, exist_ok=True)
    forget = BUILD / "forget.jsonl"
    forget.write_text("".join(json.dumps({"prompt": asked, "answer": said}) + "\n" for asked, said in FACTS))
    command = [
        sys.executable,
        "-m",
        "lethe.server.cli.main",
        "fit",
        "--name",
        "facts",
        "--force",
        "--forget",
        str(forget),
    ]
    command += ["--out", str(BUILD / "artifacts")]
    subprocess.run(command, cwd=demo.ROOT, env=clean_env(), check=True, capture_output=True)
    for name, rest in POLICIES.items():
        text = f"name: {name}\nartifact: facts\nmodels: [{name}]\nthreshold: {{value: 0.5}}\n{rest}"
        (BUILD / "policies" / f"{name}.yaml").write_text(text)
    return {
        "LETHE_POLICIES": str(BUILD / "policies"), "LETHE_ARTIFACTS": str(BUILD / "artifacts"), "LETHE_AUDIT": "",
        "LETHE_MODEL_DIR": str(FOLDERS["full"]), "LETHE_SECRET": demo.DEMO_SECRET, "LETHE_LOG_LEVEL": "warning",
        # What never ends is to be given up while somebody watches, and not what this script is too busy to send.
        "LETHE_HEAD_TIMEOUT_S": "5", "LETHE_BODY_TIMEOUT_S": "5", "LETHE_KEEP_ALIVE_S": "3",
        # A gateway that is full says 503; that is another question.
        "LETHE_JUDGE_WAIT_S": "60",
    }  # fmt: skip


async def drive(port: int, pid: int, wanted: int, seed: str) -> tuple[Counted, Held]:
    """Send all requests; what came back, and what the gateway held after the warm-up."""
    counted = Counted()
    numbers = iter(range(wanted))
    warm = Held.by(pid)
    begun = time.monotonic()

    async def work(client: Client) -> None:
        nonlocal warm
        for number in numbers:
            if number == min(WARM_UP, wanted - 1):
                warm = Held.by(pid)
            if number and number % 10_000 == 0:
                print(f"{number} after {time.monotonic() - begun:.0f} s: {Held.by(pid)}", flush=True)
            await ask(client, seed, number, counted)
        await client.close()

    async with asyncio.TaskGroup() as group:
        for at in range(CONNECTIONS):
            group.create_task(work(Client(port, at)))
    return counted, warm


def report(counted: Counted) -> None:
    columns = sorted({status for found in counted.statuses.values() for status in found})
    print(f"{'':<22}{'requests':>9}" + "".join(f"{name:>{max(8, len(name) + 2)}}" for name in columns))
    for family in (*FAMILIES, "valid"):
        cells = (f"{counted.statuses[family][name]:>{max(8, len(name) + 2)}}" for name in columns)
        print(f"{family:<22}{counted.requests[family]:>9}" + "".join(cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=120_000)
    parser.add_argument("--seed", default="1")
    args = parser.parse_args()
    settings = prepare()
    own, behind = free_port(), free_port()
    env = {**settings, "LETHE_PORT": str(own), "LETHE_UPSTREAM": f"http://127.0.0.1:{behind}"}
    log = BUILD / "gateway.log"

    async def measured() -> tuple[Counted, Held, Held, bool]:
        async with upstream(behind):
            serving = running_gateway(log, env=env)
            process = await asyncio.to_thread(serving.__enter__)
            try:
                counted, warm = await drive(own, process.pid, args.requests, args.seed)
                alive = process.poll() is None
                return counted, warm, Held.by(process.pid) if alive else warm, alive
            finally:
                await asyncio.to_thread(serving.__exit__, None, None, None)

    counted, warm, after, alive = asyncio.run(measured())
    report(counted)
    told = log.read_text(encoding="utf-8", errors="replace")
    tracebacks = told.count("Traceback (most recent call last)")
    tried = counted.requests.total() - counted.requests["valid"]
    served = sum(found["200"] for family, found in counted.statuses.items() if family != "valid")
    print(f"malformed or mutated requests: {tried} ({served} answers among them 200: what was spoilt still made sense)")
    print(f"after {min(WARM_UP, tried)}: {warm}; at the end: {after}")
    print(f"alive: {alive}; tracebacks in the log: {tracebacks}; answers that should not be: {len(counted.kept)}")
    for number, (family, status, raw) in enumerate(counted.kept[:50]):
        (BUILD / f"{number:03d}-{status}.bin").write_bytes(raw)
        print(f"  {status} {family}: {raw[:200]!r}")
    return 1 if counted.kept or tracebacks or not alive else 0


if __name__ == "__main__":
    sys.exit(main())
