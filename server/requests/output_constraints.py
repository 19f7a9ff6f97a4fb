"""What a request demands of the form of the answer: patterns, grammars, fixed texts and preferred tokens. Pure.

Such constraints steer the model as a prompt does. `server/steering/constraints.py` compares what they can spell with
the phrases that must not be said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

# Fields of a request that constrain the answer. `stop` and `bad_words` are judged as text.
CONSTRAINT_FIELDS: Final = (
    "structured_outputs", "response_format", "text", "output_config", "tools", "logit_bias", "allowed_token_ids",
)  # fmt: skip
# Above the ids of all tokens, of any model.
MAX_TOKEN_ID: Final = 2**32
# JSON schema keys whose strings the answer must match or be.
_TEXTS: Final = ("const", "enum", "default", "examples")


@dataclass(frozen=True)
class OutputConstraint:
    """One constraint: its field of the body, its kind, and its text, or the token ids that it prefers.

    kind: `regex` and `grammar` describe a language, `text` is a text that the answer may hold, `tokens` are preferred.
    """

    field: str
    kind: Literal["regex", "grammar", "text", "tokens"]
    text: str = ""
    tokens: tuple[int, ...] = ()


def output_constraints(body: Mapping[str, Any]) -> Iterator[OutputConstraint]:
    """Yield every constraint of a request that names characters or tokens."""
    for name in CONSTRAINT_FIELDS:
        value = body.get(name)
        if not value:
            continue
        if name in ("logit_bias", "allowed_token_ids"):
            if tokens := preferred_tokens(name, value):
                yield OutputConstraint(name, "tokens", tokens=tokens)
        else:
            found = list(dict.fromkeys(_constraints_inside(name, value)))
            yield from (constraint for constraint in found if constraint.kind != "text")
            # All fixed texts of a field as one, one to a line.
            if texts := "\n".join(constraint.text for constraint in found if constraint.kind == "text"):
                yield OutputConstraint(name, "text", texts)


def preferred_tokens(field: str, value: Any) -> tuple[int, ...]:
    """The ids of the tokens that `logit_bias` makes likelier, or that `allowed_token_ids` leaves, in their order.

    Numbers may be given as strings: vLLM converts them.
    """
    if field == "logit_bias" and isinstance(value, dict):
        keys = [key for key, bias in value.items() if (_number(bias) or 0) > 0]
    else:
        keys = value if field == "allowed_token_ids" and isinstance(value, list) else []
    return tuple(int(number) for key in keys if (number := _number(key)) is not None)


def _number(value: Any) -> float | None:
    """A number, or what vLLM reads as one; None for anything else, and for what no token id can be."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < MAX_TOKEN_ID else None


def _constraints_inside(field: str, value: Any) -> Iterator[OutputConstraint]:
    """The constraints of an object with patterns, schemas or grammars, at any depth. Not recursive."""
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack += reversed(item)
        if not isinstance(item, dict):
            continue
        for key, inner in reversed(item.items()):
            if isinstance(inner, str):
                yield from _constraint_of(field, item, key, inner, stack)
            elif key in ("choice", *_TEXTS) and isinstance(inner, list):
                yield from (OutputConstraint(field, "text", text) for text in inner if isinstance(text, str))
            else:
                if key == "patternProperties" and isinstance(inner, dict):
                    yield from (OutputConstraint(field, "regex", pattern) for pattern in inner)
                elif key == "properties" and isinstance(inner, dict):
                    yield from (OutputConstraint(field, "text", name) for name in inner)
                stack.append(inner)


def _constraint_of(
    field: str, item: Mapping[str, Any], key: str, value: str, stack: list[Any]
) -> Iterator[OutputConstraint]:
    """The constraint that a member of an object is, if it is one. stack: gets what JSON text holds."""
    if key in ("regex", "pattern"):
        yield OutputConstraint(field, "regex", value)
    elif key == "grammar":
        yield OutputConstraint(field, "grammar", value)
    elif key == "definition" and item.get("type") == "grammar":
        # A custom tool of the responses API.
        yield OutputConstraint(field, "regex" if item.get("syntax") == "regex" else "grammar", value)
    elif key in (*_TEXTS, "begin", "end", "value"):
        yield OutputConstraint(field, "text", value)
    elif key in ("json", "structural_tag", "json_schema", "schema"):
        try:
            stack.append(json.loads(value))
        except (ValueError, RecursionError):
            yield OutputConstraint(field, "text", value)
