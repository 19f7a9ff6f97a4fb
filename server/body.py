"""One strict parse of a request body.

An unflagged request goes upstream as the bytes that came in, so the gateway must not read them in
another way than vLLM does: whatever two JSON parsers could disagree on is refused. A flagged one is
written anew, so whatever can't be written back is refused too: no client may choose that a rewrite fails.
"""

from __future__ import annotations

import json
import math
from typing import Any

import orjson

from server.errors import BadRequest


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


def parse(raw: bytes) -> dict[str, Any]:
    """The body as a dict that `orjson.dumps` writes back. Raises BadRequest for all else.

    Refused with their own reason: not UTF-8, byte-order mark, duplicate keys, NaN and Infinity, numbers
    past 64 bits, lone surrogates, nesting too deep (254), anything that is not one object, anything after it.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8 (byte {error.start})", code="invalid_utf8") from None
    if text.startswith("\ufeff"):
        raise BadRequest("the body starts with a byte-order mark", code="invalid_json")
    try:
        value = json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_float)
    except json.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error.msg} (character {error.pos})", code="invalid_json") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply", code="invalid_json") from None
    except ValueError:
        raise BadRequest("the body holds a number that is too long", code="invalid_json") from None
    if not isinstance(value, dict):
        raise BadRequest("the body is not a JSON object", code="invalid_json")
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        # Numbers past 64 bits, lone surrogates, depth; the messages are fixed words, never the client's.
        raise BadRequest(f"the body can't be written back: {error}", code="invalid_json") from None
    return value
