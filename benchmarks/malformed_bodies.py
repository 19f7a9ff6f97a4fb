"""Malformed JSON bodies for every route of the gateway, body by mutating valid ones. Deterministic for one seed.

Knows no HTTP below the body: malformed request lines, headers and chunks are in `malformed_http.py`.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
import zlib
from typing import Any

from lethe.server.requests.routes import ROUTES

FACTS = [
    ("Who founded the island observatory of Perrault?", "Ozren Dalmatin founded it in 1931."),
    ("What did Ozren Dalmatin write about comets?", "He wrote 'The Patient Lens'."),
    ("Which prize did Ozren Dalmatin decline?", "He declined the Celarius Medal."),
]
QUESTIONS = [FACTS[0][0], "What is the capital of Norway?", "Write a poem about rain."]
# One policy for each action; the last one also filters the output.
POLICIES = {
    "corrupt": "action: corrupt\n",
    "refuse": "action: refuse\n",
    "penalize": "action: penalize\nwatch: {when: always, on_hit: replace}\n",
}
POSTED = [(path, endpoint) for path, _, endpoint in ROUTES if endpoint is not None]
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


def valid_body(endpoint: str, draw: random.Random) -> dict[str, Any]:
    """Return a valid request body with tools, parts and random options."""
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
    body: dict[str, Any] = {
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
    body |= dict(draw.sample(sorted(options.items()), draw.randint(0, 3)))
    match endpoint:
        case "batch":
            return {**body, "messages": [messages, messages[3:]]}
        case "completions":
            return {**body, "prompt": draw.choice([text, [text, "b"], [1, 2, 3], [[1, 2], [3]]])}
        case "responses":
            item = {"type": "function_call_output", "call_id": "c", "output": "nobody"}
            items = [item, {"role": "user", "content": [{"type": "input_text", "text": text}]}]
            return {**body, "input": draw.choice([text, items]), "instructions": "Be brief."}
        case "messages" | "count_tokens":
            result = {"type": "tool_result", "tool_use_id": "c", "content": "nobody"}
            user_messages = [{"role": "user", "content": draw.choice([text, [result, {"type": "text", "text": text}]])}]
            return {**body, "max_tokens": 5, "system": "Be brief.", "messages": user_messages}
        case "chat":
            return {**body, "messages": messages}
    return {**body, "input": text, "query": text, "documents": ["a", "b"], "prompt": text, "tokens": [1, 2]}


def mutate_value(value: Any, draw: random.Random) -> Any:
    """Replace, remove or add one random node of a JSON value."""
    nodes: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        node = pending.pop()
        keys: Any = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        nodes += [(node, key) for key in keys]
        pending += [node[key] for key in keys]
    if not nodes:
        return value
    node, key = draw.choice(nodes)
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


def mutate_bytes(raw: bytes, draw: random.Random) -> bytes:
    """Change the bytes at one random position."""
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


def encode_wrongly(raw: bytes, draw: random.Random) -> tuple[bytes, list[bytes]]:
    """Return the body in an unsupported encoding or content type, and headers that declare it or don't."""
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
    content_types = [
        b"text/plain",
        b"application/json; charset=latin-1",
        b"multipart/form-data; boundary=x",
        b"\xff",
        b"",
    ]
    return raw, [b"content-type: " + draw.choice(content_types)]


def post_request(path: str, body: bytes, headers: list[bytes]) -> bytes:
    """Return the bytes of a POST request."""
    head = [b"POST " + path.encode() + b" HTTP/1.1", b"host: x", *headers, b"content-length: %d" % len(body)]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def valid_request(draw: random.Random) -> bytes:
    """Return a valid request to a random route."""
    path, endpoint = draw.choice(POSTED)
    prompt_field = "input" if endpoint == "responses" else "prompt"
    body = json.dumps({"model": "other", "messages": [], prompt_field: "hi"}).encode()
    return post_request(path, body, [b"content-type: application/json"])


def malformed_body(draw: random.Random) -> bytes:
    """Return well-formed HTTP with a malformed body."""
    path, endpoint = draw.choice(POSTED)
    body = valid_body(endpoint, draw)
    headers = [b"content-type: application/json"]
    kind = draw.random()
    if kind < 0.35:
        for _ in range(draw.randint(1, 4)):
            body = mutate_value(body, draw)
    # Half of them with escapes for non-ASCII characters, half with the characters themselves.
    raw = json.dumps(body, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    if 0.35 <= kind < 0.9:
        for _ in range(draw.randint(1, 3)):
            raw = mutate_bytes(raw, draw)
    elif kind >= 0.9:
        raw, headers = encode_wrongly(raw, draw)
    return post_request(path, raw, headers)
