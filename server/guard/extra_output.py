"""Fields that ask for more than the answer, or steer it, as far as they would tell a right guess from a wrong one.

A flagged request must not become a way to test guesses. The log-probability of a prompt token or of a forced token, and
a choice that is missing from the answer, all show which guess is right. Pure: bodies in, bodies out.
"""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from lethe.server.requests.fields import Endpoint

Body = dict[str, Any]

# Fields that only ask for more output about the prompt. With embeddings in its place vLLM refuses them, or would return
# what the prompt was made of.
PROMPT_OUTPUT_FIELDS = ("echo", "prompt_logprobs", "return_prompt_text", "return_token_ids")
# Fields that force or forbid single tokens.
TOKEN_STEERING_FIELDS = ("allowed_token_ids", "bad_words")
# Tokens that a `logit_bias` may forbid. OpenAI's limit; with more, what is left over would be a list of guesses.
MAX_FORBIDDEN_TOKENS = 300
# JSON schema keywords whose values spell text of the answer.
SPELLED_KEYWORDS = frozenset({"default", "examples", "pattern", "patternProperties"})
# JSON schema keywords whose keys are names, not keywords.
NAMED_SCHEMAS = frozenset({"$defs", "definitions", "properties"})
# Members of `structured_outputs` that spell text, beside `choice` and `json`.
SPELLED_CONSTRAINTS = ("regex", "grammar", "structural_tag")
# The item of the responses API's `include` that asks for log-probabilities.
INCLUDED_LOGPROBS = "message.output_text.logprobs"


def asks_for(value: Any) -> bool:
    """Whether a field's value turns it on: any value except null and false does, 0 included."""
    return value is not None and value is not False


def without_prompt_output(body: Body) -> Body:
    """The body without fields that only ask for more output about the prompt."""
    return {key: value for key, value in body.items() if key not in PROMPT_OUTPUT_FIELDS}


def without_prompt_logprobs(body: Body) -> Body:
    """The body without log-probabilities of prompt tokens, which vLLM computes before any penalty.

    It returns them for `prompt_logprobs`, and for `echo` where log-probabilities of the answer are asked for.
    """
    dropped = {"prompt_logprobs"}
    if asks_for(body.get("echo")) and asks_for(body.get("logprobs")):
        dropped.add("echo")
    return {key: value for key, value in body.items() if key not in dropped}


def without_ranking(endpoint: Endpoint, body: Body) -> Body:
    """The body without what lets a client rank guesses by how the model answers; the same object if there is nothing.

    Fields that force tokens, regular expressions and grammars are dropped. A list of choices becomes one of them,
    which depends on the list alone. A JSON schema keeps its structure, but not the texts that it spells. So right and
    wrong guesses behave alike. The log-probabilities of an answer that was constrained are dropped too: those of
    forced tokens rank them.
    """
    result = {key: value for key, value in body.items() if not (key in TOKEN_STEERING_FIELDS and asks_for(value))}
    if _forces_tokens(result.get("logit_bias")):
        del result["logit_bias"]
    outputs = result.get("structured_outputs")
    if isinstance(outputs, dict) and outputs:
        result["structured_outputs"] = _safe_constraint(outputs)
    for key, value in (("response_format", result.get("response_format")), ("text", result.get("text"))):
        if (safe := _safe_format(value)) is not value:
            result[key] = safe
    if result == body:
        return body
    if result.get("structured_outputs") == {}:
        del result["structured_outputs"]
    return _without_logprobs(endpoint, result)


def _safe_constraint(outputs: Body) -> Body:
    safe = {key: value for key, value in outputs.items() if key not in SPELLED_CONSTRAINTS}
    if isinstance(safe.get("choice"), list) and safe["choice"]:
        safe["choice"] = [one_choice(safe["choice"])]
    if asks_for(safe.get("json")):
        safe["json"] = without_spelled_text(_parsed(safe["json"]))
    return safe


def _forces_tokens(bias: Any) -> bool:
    """Whether a `logit_bias` does more than forbid some tokens."""
    if not isinstance(bias, dict):
        return asks_for(bias)
    forbids = all(isinstance(value, int | float) and value <= 0 for value in bias.values())
    return bool(bias) and not (forbids and len(bias) <= MAX_FORBIDDEN_TOKENS)


def _parsed(schema: Any) -> Any:
    """A schema given as JSON text, parsed; any other value as it is."""
    if not isinstance(schema, str):
        return schema
    try:
        return orjson.loads(schema)
    except orjson.JSONDecodeError:
        return schema


def without_spelled_text(schema: Any) -> Any:
    """A JSON schema without patterns, and with one value of each `enum`. Names of properties stay."""
    if isinstance(schema, list):
        return [without_spelled_text(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: without_spelled_text(inner) for name, inner in value.items()}
        if key in NAMED_SCHEMAS and isinstance(value, dict)
        else [one_choice(value)]
        if key == "enum" and isinstance(value, list) and value
        else value
        if key == "const"
        else without_spelled_text(value)
        for key, value in schema.items()
        if key not in SPELLED_KEYWORDS
    }


def _safe_format(value: Any) -> Any:
    """An answer format, of any endpoint, whose schema spells no text; the same object if it has none."""
    if not isinstance(value, dict) or value.get("type") == "json_object":
        return value
    if value.get("type") == "structural_tag":
        return {"type": "text"}
    safe = without_spelled_text(value)
    return value if safe == value else safe


def one_choice(choices: list[Any]) -> Any:
    """One of the choices, which depends on the list alone: not on the model, and not on what is forbidden."""
    ordered = sorted(choices, key=lambda choice: orjson.dumps(choice, option=orjson.OPT_SORT_KEYS))
    digest = hashlib.sha256(orjson.dumps(ordered, option=orjson.OPT_SORT_KEYS)).digest()
    return ordered[int.from_bytes(digest[:8], "big") % len(ordered)]


def _without_logprobs(endpoint: Endpoint, body: Body) -> Body:
    dropped = ("logprobs", "logprob_token_ids") if endpoint == "completions" else ("top_logprobs", "logprob_token_ids")
    result = {key: value for key, value in body.items() if key not in dropped}
    if endpoint != "completions" and asks_for(result.get("logprobs")):
        result["logprobs"] = False
    include = result.get("include")
    if isinstance(include, list) and INCLUDED_LOGPROBS in include:
        result["include"] = [item for item in include if item != INCLUDED_LOGPROBS]
    return result


def answer_is_forced(body: Body) -> bool:
    """Whether the body leaves the model one answer only, so that there is nothing to penalise."""
    outputs = body.get("structured_outputs")
    choices = outputs.get("choice") if isinstance(outputs, dict) else None
    return isinstance(choices, list) and len(choices) == 1


def texts_required_by_schemas(body: Body) -> list[str]:
    """The values of `enum` and `const` in a body's schemas: the answer must hold them, so they can't be forbidden."""
    outputs = body.get("structured_outputs")
    stack = [outputs.get("json") if isinstance(outputs, dict) else None, body.get("response_format"), body.get("text")]
    texts = []
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, dict):
            values = item["enum"] if isinstance(item.get("enum"), list) else []
            texts += [value for value in [*values, item.get("const")] if isinstance(value, str)]
            stack.extend(item.values())
    return texts
