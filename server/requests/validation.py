"""Whether vLLM may reject a request, as far as that is known without sending it.

Rewriting a flagged request could hide an error that vLLM would report (it removes `top_logprobs`, valid or not) or fail
because of it. In both cases the client could see that the request was flagged. So a flagged request that may be invalid
is first sent to vLLM unchanged (`server/http/gateway.py`), and if vLLM rejects it, the client gets vLLM's answer. A
false alarm costs one extra request, and nothing bypasses the guard. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from lethe.server.requests.field_types import ADAPTERS, REQUIRED_FIELDS, as_boolean
from lethe.server.requests.fields import TABLES, Endpoint

# vLLM's default of `max_tokens` for completions, in tokens.
DEFAULT_COMPLETION_TOKENS: Final = 16
# In tokens, more than any response has: elsewhere the default is what remains of the model's context.
UNLIMITED_TOKENS: Final = 100_000
# Members of `structured_outputs` of which a request may have one.
OUTPUT_CONSTRAINTS: Final = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")

# Members of `chat_template_kwargs` that are arguments of the function which renders templates, not variables of a
# template: vLLM or transformers may refuse them.
TEMPLATE_ARGUMENTS: Final = frozenset({
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "max_length",
    "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize",
    "tokenizer_kwargs", "tools", "truncation",
})  # fmt: skip

GetField = Callable[[str], Any]


def with_plain_values(endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
    """The body with numbers and booleans as vLLM reads them ("false" is False, "5" is 5); itself if all are plain.

    Values that vLLM refuses stay as they are. Without this, what is done with a flagged request could depend on the
    spelling of a value.
    """
    adapters, changed = ADAPTERS[endpoint], {}
    for name, value in body.items():
        if isinstance(value, str | int | float) and name in TABLES[endpoint].numeric and name in adapters:
            changed[name] = _plain_value(adapters[name], value)
    options = body.get("stream_options")
    if isinstance(options, dict):
        changed["stream_options"] = {key: _plain_option(value) for key, value in options.items()}
    is_same = all(
        value is body[name] or (type(value), value) == (type(body[name]), body[name]) for name, value in changed.items()
    )
    return body if is_same else {**body, **changed}


def _plain_value(adapter: TypeAdapter[Any], value: Any) -> Any:
    try:
        plain = adapter.validate_python(value)
    except ValidationError:
        return value
    return plain if isinstance(plain, bool | int | float) else value


def _plain_option(value: Any) -> Any:
    plain = as_boolean(value) if isinstance(value, str | int | float) else None
    return value if plain is None else plain


def may_be_invalid(endpoint: Endpoint, body: Mapping[str, Any]) -> bool:
    """Whether vLLM may reject the body: a field of another type or range, or fields that contradict each other."""
    if any(name not in body for name in REQUIRED_FIELDS[endpoint]):
        return True
    adapters = ADAPTERS[endpoint]
    try:
        values = {name: adapters[name].validate_python(value) for name, value in body.items() if name in adapters}
    except ValidationError:
        return True
    return _has_contradiction(endpoint, values.get)


def _has_contradiction(endpoint: Endpoint, field: GetField) -> bool:
    """Whether fields that are valid by themselves contradict each other."""
    tool_choice, tools = field("tool_choice"), field("tools")
    token_ids, is_streamed, uses_beams = field("logprob_token_ids"), field("stream"), field("use_beam_search")
    needs_logprobs = token_ids if endpoint == "completions" else token_ids or field("top_logprobs")
    return bool(
        (field("stream_options") is not None and not is_streamed)
        or (field("prompt_logprobs") and is_streamed)
        or (needs_logprobs and endpoint in ("chat", "batch", "completions") and field("logprobs") in (None, False))
        # An id that the model does not have is an error, and penalizing drops the field.
        or token_ids
        or (uses_beams and (endpoint == "batch" or field("echo")))
        or (field("continue_final_message") and (endpoint == "batch" or field("add_generation_prompt")))
        or (tool_choice is not None and tool_choice not in ("none", "auto") and not _is_offered(tool_choice, tools))
        or (tool_choice == "auto" and endpoint in ("chat", "batch") and not tools)
        or _has_not_one_constraint(field("structured_outputs"))
        or _has_odd_choices(field("structured_outputs"))
        or not TEMPLATE_ARGUMENTS.isdisjoint(field("chat_template_kwargs") or ())
        or _lacks_schema(field("response_format"))
        or (field("temperature") == 0 and (field("n") or 1) > 1)
        or (field("min_tokens") or 0) > _max_tokens(endpoint, field)
        or _thinking_exceeds_response(field("thinking"), field("max_tokens"))
    )


def _is_offered(tool_choice: Any, tools: Any) -> bool:
    """Whether the chosen tool is in the list, or there is any tool if the choice names none."""
    if not isinstance(tool_choice, dict):
        return bool(tools)
    chosen = tool_choice.get("function", tool_choice).get("name")
    names = [tool.get("function", tool).get("name") for tool in tools or ()]
    return chosen in names if chosen is not None else tool_choice.get("type") in ("auto", "any", "none")


def _max_tokens(endpoint: Endpoint, field: GetField) -> int:
    """The maximum number of tokens of a response."""
    default = DEFAULT_COMPLETION_TOKENS if endpoint == "completions" else UNLIMITED_TOKENS
    return int(field("max_completion_tokens") or field("max_tokens") or default)


def _has_not_one_constraint(outputs: Any) -> bool:
    return outputs is not None and sum(outputs.get(kind) is not None for kind in OUTPUT_CONSTRAINTS) != 1


def _has_odd_choices(outputs: Any) -> bool:
    choices = None if outputs is None else outputs.get("choice")
    if choices is None:
        return False
    return not (isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices))


def _lacks_schema(response_format: Any) -> bool:
    if response_format is None:
        return False
    return response_format["type"] == "json_schema" and "json_schema" not in response_format


def _thinking_exceeds_response(thinking: Any, max_tokens: Any) -> bool:
    return thinking is not None and thinking.get("budget_tokens", 0) >= (max_tokens or math.inf)
