"""One strict parse of a request body.

An unflagged request goes upstream as the bytes that came in, so the gateway must not read them in
another way than vLLM does: whatever two JSON parsers could disagree on is refused. A flagged one is
written anew, so whatever can't be written back is refused too: no client may choose that a rewrite fails.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable
from email.message import Message
from typing import Any

import orjson

from lethe.server.errors import BadRequest


def check_headers(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises BadRequest unless the headers say: one JSON text in UTF-8, as it is.

    vLLM reads a body as JSON by its content type alone, and undoes no content encoding. A body with both a
    length and a transfer encoding has two ends, depending on who reads it.
    """
    seen: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        seen.setdefault(name, []).append(value.strip().lower())
    if any(value != b"identity" for value in seen.get(b"content-encoding", ())):
        raise BadRequest("compressed request bodies are not served", code="content_encoding")
    encodings = seen.get(b"transfer-encoding", [])
    if encodings not in ([], [b"chunked"]) or (encodings and b"content-length" in seen):
        raise BadRequest("give a content-length, or transfer-encoding: chunked", code="transfer_encoding")
    types = seen.get(b"content-type", [])
    if len(types) != 1 or not _is_json(types[0].decode("latin-1")):
        raise BadRequest("give content-type: application/json, in UTF-8, once", code="content_type")


@functools.lru_cache(64)
def _is_json(content_type: str) -> bool:
    header = Message()
    header["content-type"] = content_type
    charset = header.get_param("charset", "utf-8")
    return header.get_content_type() == "application/json" and charset in ("utf-8", "utf8")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadRequest(f"the key {twice[:80]!r} stands twice in one JSON object", code="duplicate_key")
    return made


def _constant(name: str) -> Any:
    raise BadRequest(f"{name} is not JSON", code="invalid_json")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise BadRequest(f"the number {text[:40]} is too large", code="invalid_json")
    return value


# What stands between or before two values; commas within strings are taken out where the number matters.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def _check_values(raw: bytes, most: int) -> None:
    """Raises BadRequest for more than `most` values; counted before they are made, since each costs memory."""

    def count(text: bytes) -> int:
        return sum(map(text.count, (b",", b"[", b"{"))) + 1

    if count(raw) > most and count(_STRING.sub(b"", raw)) > most:
        raise BadRequest(f"the body holds more than {most} values (LETHE_MAX_JSON_VALUES)", code="too_many_values")


def _check_depth(value: dict[str, Any], most: int) -> None:
    level: list[Any] = [value]
    for _ in range(most):
        inside = (item.values() if isinstance(item, dict) else item for item in level)
        level = [inner for values in inside for inner in values if isinstance(inner, dict | list)]
        if not level:
            return
    raise _too_deep(most)


def _too_deep(most: int) -> BadRequest:
    return BadRequest(f"the body is nested deeper than {most} (LETHE_MAX_JSON_DEPTH)", code="too_deep")


def _canonical(raw: bytes, max_depth: int) -> dict[str, Any] | None:
    """The body, if it is written as orjson writes it; None for all other spellings, good and bad.

    Most clients write so. What orjson writes back to the byte holds no key twice, no number past 64 bits, no lone
    surrogate, no NaN and nothing behind it, so that every parser reads the same in it: one pass in C shows all that.
    """
    try:
        value = orjson.loads(raw)
        if not isinstance(value, dict) or orjson.dumps(value) != raw:
            return None
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return None
    if raw.count(b"[") + raw.count(b"{") > max_depth:
        _check_depth(value, max_depth)
    return value


def parse(raw: bytes, *, max_depth: int = 254, max_values: int = 1_000_000) -> dict[str, Any]:
    """The body as a dict that `orjson.dumps` writes back. Raises BadRequest for all else.

    Refused with their own reason: not UTF-8, byte-order mark, duplicate keys, NaN and Infinity, numbers
    past 64 bits, lone surrogates, nesting too deep (254), anything that is not one object, anything after it.
    """
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") < max_values:
        found = _canonical(raw, max_depth)
        if found is not None:
            return found
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8 (byte {error.start})", code="invalid_utf8") from None
    _check_values(raw, max_values)
    if text.startswith("\ufeff"):
        raise BadRequest("the body starts with a byte-order mark", code="invalid_json")
    try:
        value = json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_float)
    except json.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error.msg} (character {error.pos})", code="invalid_json") from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    except ValueError:
        raise BadRequest("the body holds a number that is too long", code="invalid_json") from None
    if not isinstance(value, dict):
        raise BadRequest("the body is not a JSON object", code="invalid_json")
    _check_depth(value, max_depth)
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        # Numbers past 64 bits, lone surrogates, depth; the messages are fixed words, never the client's.
        raise BadRequest(f"the body can't be written back: {error}", code="invalid_json") from None
    return value
