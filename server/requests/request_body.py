"""Strict parsing of request bodies.

An unflagged request goes upstream byte for byte, so the gateway must read it exactly as vLLM does: JSON that two
parsers could read differently is rejected. A flagged request is serialised again, so values that orjson can't write
are rejected, too: otherwise a client could choose that the rewrite fails.
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

from lethe.server.errors import BadRequest, Unreadable


def check_headers(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Check that the headers announce one uncompressed JSON text in UTF-8. Raises BadRequest.

    headers: names in lower case. vLLM parses a body as JSON by its content type alone and decompresses nothing. With
    both a content-length and a transfer-encoding, two servers could disagree on where the body ends.
    """
    values_of: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        values_of.setdefault(name, []).append(value.strip().lower())
    if any(value != b"identity" for value in values_of.get(b"content-encoding", ())):
        raise BadRequest("compressed request bodies are not supported (content-encoding)", code="content_encoding")
    encodings = values_of.get(b"transfer-encoding", [])
    if encodings not in ([], [b"chunked"]) or (encodings and b"content-length" in values_of):
        raise BadRequest(
            "send either a content-length or transfer-encoding: chunked, not both", code="transfer_encoding"
        )
    types = values_of.get(b"content-type", [])
    if len(types) != 1 or not _is_json_type(types[0].decode("latin-1")):
        raise BadRequest("send one content-type header: application/json in UTF-8", code="content_type")


# 64 spellings: clients use few, and parsing one takes longer than the rest of the check.
@functools.lru_cache(64)
def _is_json_type(content_type: str) -> bool:
    header = Message()
    header["content-type"] = content_type
    charset = header.get_param("charset", "utf-8")
    return header.get_content_type() == "application/json" and charset in ("utf-8", "utf8")


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """json's `object_pairs_hook`. Raises BadRequest for a duplicate key."""
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadRequest(f"duplicate key {duplicate[:80]!r} in a JSON object", code="duplicate_key")
    return value


def _reject_constant(name: str) -> Any:
    """json's `parse_constant`: NaN, Infinity and -Infinity. Raises BadRequest."""
    raise BadRequest(f"{name} is not JSON", code="invalid_json")


def _finite_float(text: str) -> float:
    """json's `parse_float`. Raises BadRequest for a number that becomes infinite."""
    value = float(text)
    if math.isinf(value):
        raise BadRequest(f"the number {text[:40]} is too large", code="invalid_json")
    return value


_HOOKS: Any = {
    "object_pairs_hook": _object_without_duplicates,
    "parse_constant": _reject_constant,
    "parse_float": _finite_float,
}

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def _check_value_count(raw: bytes, max_values: int) -> None:
    """Raises BadRequest for more than `max_values` JSON values, before any is parsed, since each takes memory."""

    def count(text: bytes) -> int:
        return sum(map(text.count, (b",", b"[", b"{"))) + 1

    # Commas and brackets inside strings are not counted; removing the strings takes time, so only where it matters.
    if count(raw) > max_values and count(_STRING.sub(b"", raw)) > max_values:
        message = f"the body has more than {max_values} JSON values (LETHE_MAX_JSON_VALUES)"
        raise BadRequest(message, code="too_many_values")


def _check_depth(value: dict[str, Any], max_depth: int) -> None:
    """Raises BadRequest for nesting deeper than `max_depth`."""
    level: list[Any] = [value]
    for _ in range(max_depth):
        children = (item.values() if isinstance(item, dict) else item for item in level)
        level = [child for values in children for child in values if isinstance(child, dict | list)]
        if not level:
            return
    raise _too_deep(max_depth)


def _too_deep(max_depth: int) -> BadRequest:
    return BadRequest(f"the body is nested deeper than {max_depth} levels (LETHE_MAX_JSON_DEPTH)", code="too_deep")


def _parse_canonical(raw: bytes, max_depth: int) -> dict[str, Any] | None:
    """The body, if orjson serialises it to the same bytes; None for every other spelling, valid or not.

    Most clients send this spelling. A body that orjson reproduces byte for byte has no duplicate keys, no numbers past
    64 bits, no lone surrogates, no NaN and nothing after its end, so that every parser reads it alike.
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
    """The body as a dict that `orjson.dumps` can serialise. Raises BadRequest.

    Rejected, each with its reason: bytes that are not UTF-8, a byte-order mark, duplicate keys, NaN and Infinity,
    numbers past 64 bits, lone surrogates, nesting deeper than `max_depth` (at most 254, orjson's limit), more than
    `max_values` values, anything that is not one object, anything after it.
    """
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") < max_values:
        body = _parse_canonical(raw, max_depth)
        if body is not None:
            return body
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8 (byte {error.start})", code="invalid_utf8") from None
    _check_value_count(raw, max_values)
    if text.startswith("\ufeff"):
        raise BadRequest("the body starts with a byte-order mark", code="invalid_json")
    try:
        value = json.loads(text, **_HOOKS)
    except json.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error.msg} (character {error.pos})", code="invalid_json") from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    except ValueError:
        raise BadRequest("the body has a number of too many digits", code="invalid_json") from None
    if not isinstance(value, dict):
        raise BadRequest("the body is not a JSON object", code="invalid_json")
    _check_depth(value, max_depth)
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        if "64-bit" in str(error):
            unreadable = Unreadable(f"the body can't be serialised again: {error}", code="invalid_json")
            unreadable.body = value
            raise unreadable from None
        # Numbers past 64 bits, lone surrogates, depth. orjson's messages never quote the body.
        raise BadRequest(f"the body can't be serialised again: {error}", code="invalid_json") from None
    return value
