"""Whether a request has the form that vLLM takes, as far as that can be told without asking it.

A rewrite could mend what vLLM would have found wrong: it drops `top_logprobs` whatever that holds; or fail on it, which
is refused. Both would tell who asks that the request was flagged. So one whose form is in doubt is first shown to vLLM
as it came (`server/http/gateway.py`), and if vLLM refuses it, the answer is vLLM's, as for any other client. A doubt too
many costs one question, and nothing passes by it. Pure. Read from the request classes of vLLM 0.32; the tests compare
with their verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Final, Literal, Required

from pydantic import Field, Strict, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from lethe.server.requests.fields import ANTHROPIC_EFFORTS, EFFORTS, INCLUDES, ITEMS, OTHER_PARTS, TEXT_PARTS, Endpoint

# What vLLM's server allows by default (--max-logprobs, VLLM_MAX_N_SEQUENCES, VLLM_MAX_STOP_STRINGS). One that allows
# more is asked.
MOST_LOGPROBS: Final = 20
MOST_CHOICES: Final = 16384
MOST_STOPS: Final = 4
# Of a completion that doesn't say how many tokens it may have; and more than any answer has.
MOST_UNSAID: Final = 16
MOST_TOKENS: Final = 100_000
CONSTRAINTS: Final = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")

Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
# Looked at before "5" is taken for a number.
Count = Annotated[int, Strict(), Field(ge=0, le=MOST_LOGPROBS)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Filled = Annotated[str, Field(min_length=1)]
Stops = Annotated[list[Filled], Field(max_length=MOST_STOPS)]
Ids = list[Natural]
Object = dict[str, Any]
Extra = str | int | float


class _Part(TypedDict, total=False):
    type: Literal[tuple({*TEXT_PARTS, *OTHER_PARTS})]  # type: ignore[valid-type]
    text: str
    refusal: str
    thinking: str


class _Function(TypedDict, total=False):
    name: Required[str]
    description: str | None
    parameters: Object | None
    strict: bool | None


class _Tool(TypedDict, total=False):
    type: Literal["function"]
    function: Required[_Function]


class _Message(TypedDict, total=False):
    role: Required[str]
    content: str | list[str | _Part] | None
    name: str
    tool_call_id: str | None
    tool_calls: list[Object] | None
    reasoning: str | None
    reasoning_content: str | None
    tools: list[Object] | None
    task: str | None


class _Block(TypedDict, total=False):
    type: Required[
        Literal["text", "image", "tool_use", "tool_result", "tool_reference", "thinking", "redacted_thinking"]
    ]
    text: str | None
    source: Object | None
    id: str | None
    tool_use_id: str | None
    name: str | None
    input: Object | None
    content: str | list[Object] | None
    is_error: bool | None
    tool_name: str | None
    thinking: str | None
    signature: str | None
    data: str | None


class _Turn(TypedDict, total=False):
    """Anthropic's message."""

    role: Required[Literal["user", "assistant", "system"]]
    content: Required[str | list[_Block]]


class _AnthropicTool(TypedDict, total=False):
    name: Required[str]
    description: str | None
    input_schema: Required[Object]
    strict: bool | None
    defer_loading: bool | None


class _AnthropicChoice(TypedDict, total=False):
    type: Required[Literal["auto", "any", "tool", "none"]]
    name: str | None
    disable_parallel_tool_use: bool | None


class _ItemPart(TypedDict, total=False):
    type: Required[Literal["input_text", "output_text", "input_image", "refusal"]]
    text: str
    refusal: str


class _Said(TypedDict, total=False):
    """What somebody says, among a response's items."""

    type: Literal["message"]
    role: Required[Literal["user", "assistant", "system", "developer"]]
    content: Required[str | list[_ItemPart]]


class _Item(TypedDict, total=False):
    type: Required[Literal[tuple(ITEMS - {"message"})]]  # type: ignore[valid-type]


class _ResponsesTool(TypedDict, total=False):
    type: Required[Literal["function", "custom"]]
    name: Required[str]
    description: str | None
    parameters: Object | None
    strict: bool | None


class _ResponsesChoice(TypedDict, total=False):
    type: Required[str]
    name: str | None


class _Output(TypedDict, total=False):
    effort: Literal[tuple(ANTHROPIC_EFFORTS)] | None  # type: ignore[valid-type]
    format: Object | None


class _Format(TypedDict, total=False):
    type: Required[Literal["text", "json_object", "json_schema", "structural_tag"]]
    json_schema: Object


class _Usage(TypedDict, total=False):
    include_usage: bool | None
    continuous_usage_stats: bool | None


class _Thinking(TypedDict, total=False):
    type: Required[Literal["enabled", "disabled", "adaptive"]]
    budget_tokens: Annotated[int, Field(ge=1024)]
    display: Literal["summarized", "omitted", "updates"] | None


def _one_of(words: Collection[str]) -> Any:
    """The type of one of these words."""
    return Literal[tuple(words)]


Chat = list[_Message]
Conversations = Annotated[list[Annotated[Chat, Field(min_length=1)]], Field(min_length=1)]

# What a field holds, where it means the same on every endpoint that has it.
_FIELDS: Final[dict[str, Any]] = {
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), Penalty | None),
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens", "stream_interval"), Positive | None),
    **dict.fromkeys(("min_tokens", "routed_experts_prompt_start"), Natural),
    **dict.fromkeys(("top_logprobs", "prompt_logprobs"), Count | None),
    **dict.fromkeys(("logprob_token_ids", "stop_token_ids", "allowed_token_ids"), Ids | None),
    **dict.fromkeys(("best_of", "max_tool_calls"), int | None),
    **dict.fromkeys(("structured_outputs", "repetition_detection"), Object | None),
    **dict.fromkeys(("chat_template_kwargs", "mm_processor_kwargs", "reasoning", "text"), Object | None),
    **dict.fromkeys(("model", "user", "session_id", "suffix", "guided_decoding_backend"), str | None),
    **dict.fromkeys(("instructions", "prompt_cache_key"), str | None),
    **dict.fromkeys(
        (
            "stream", "parallel_tool_calls", "watermarking", "return_tokens_as_token_ids", "return_token_ids",
            "return_token_offsets", "return_prompt_text", "return_mm_kwargs", "store", "background",
        ),
        bool | None,
    ),
    **dict.fromkeys(
        (
            "use_beam_search", "include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "early_stopping",
            "spaces_between_special_tokens", "echo", "add_generation_prompt", "continue_final_message",
            "add_special_tokens", "include_reasoning", "enable_response_messages",
        ),
        bool,
    ),
    "n": Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None,
    "temperature": Annotated[float, Field(ge=0, le=2)] | None,
    "top_p": Annotated[float, Field(gt=0, le=1)] | None,
    "top_k": Annotated[int, Field(ge=-1)] | None,
    "min_p": Share | None,
    "repetition_penalty": Annotated[float, Field(gt=0)] | None,
    "length_penalty": float,
    "seed": Int64 | None,
    "priority": Literal[0],
    "request_id": str,
    "truncate_prompt_tokens": Annotated[Int64, Field(ge=-1)] | None,
    "truncation_side": Literal["left", "right"] | None,
    "truncation": Literal["auto", "disabled"] | None,
    "mm_payload": Literal["tensors", "none"],
    "cache_salt": Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^@/\\\x00]*$")] | None,
    "thinking_token_budget": Annotated[int, Strict(), Field(ge=-1)] | None,
    "reasoning_effort": _one_of(EFFORTS) | None,
    "logit_bias": dict[Annotated[str, Field(pattern=r"^\d+$")], float] | None,
    "stop": Filled | Stops | None,
    "stop_sequences": Stops | None,
    "bad_words": list[Filled],
    "stream_options": _Usage | None,
    "media_io_kwargs": dict[str, Object] | None,
    "vllm_xargs": dict[str, Extra | list[Extra]] | None,
    "tool_choice": Literal["none", "auto", "required"] | _Tool | None,
    "tools": Annotated[list[_Tool], Field(min_length=1)] | None,
    "documents": list[dict[str, str]] | None,
    "response_format": _Format | None,
    "output_config": _Output | None,
    "thinking": _Thinking | None,
    "previous_input_messages": list[Object] | None,
    "metadata": dict[str, str] | None,
    "service_tier": Literal["auto", "default", "flex", "scale", "priority"],
    "include": list[_one_of(INCLUDES)] | None,  # type: ignore[misc]
}  # fmt: skip
_MESSAGES: Final[dict[str, Any]] = {
    "model": Filled,
    "messages": list[_Turn],
    "max_tokens": Positive,
    "metadata": Object | None,
    "system": str | list[_Block] | None,
    "tools": list[_AnthropicTool] | None,
    "tool_choice": _AnthropicChoice | None,
}
# What else, or otherwise, one endpoint's fields hold.
_OWN: Final[dict[Endpoint, dict[str, Any]]] = {
    "chat": {"messages": Chat, "logprobs": bool | None},
    "batch": {
        "messages": Conversations, "logprobs": bool | None, "tools": None, "tool_choice": Literal["none"] | None,
        "n": Literal[1] | None, "return_token_ids": bool,
    },
    "completions": {
        "prompt": Filled | Ids | list[Ids] | list[str], "logprobs": Count | None,
        "n": Annotated[int, Field(ge=1, le=MOST_CHOICES)],
    },
    "responses": {
        "input": str | list[_Said | _Item], "tools": list[_ResponsesTool],
        "tool_choice": Literal["none", "auto", "required"] | _ResponsesChoice,
    },
    "messages": _MESSAGES,
    "count_tokens": _MESSAGES,
}  # fmt: skip
_REQUIRED: Final[dict[Endpoint, tuple[str, ...]]] = {
    "chat": ("messages",),
    "batch": ("messages",),
    "completions": ("prompt",),
    "responses": ("input",),
    "messages": ("model", "messages", "max_tokens"),
    "count_tokens": ("model", "messages"),
}
_ADAPTERS: Final = {
    endpoint: {name: TypeAdapter(kind) for name, kind in {**_FIELDS, **own}.items()} for endpoint, own in _OWN.items()
}


def doubtful(endpoint: Endpoint, body: Mapping[str, Any]) -> bool:
    """Whether vLLM may find the body wrong: what one of its fields holds, or what two of them say together."""
    if any(name not in body for name in _REQUIRED[endpoint]):
        return True
    adapters = _ADAPTERS[endpoint]
    try:
        read = {name: adapters[name].validate_python(value) for name, value in body.items() if name in adapters}
    except ValidationError:
        return True
    return _contradictory(endpoint, read.get)


def _contradictory(endpoint: Endpoint, given: Callable[[str], Any]) -> bool:
    """Whether fields that are well-formed by themselves don't go together."""
    choice, tools = given("tool_choice"), given("tools")
    ids, streamed, beams = given("logprob_token_ids"), given("stream"), given("use_beam_search")
    asked = ids if endpoint == "completions" else ids or given("top_logprobs")
    return bool(
        (given("stream_options") is not None and not streamed)
        or (given("prompt_logprobs") and streamed)
        or (asked and endpoint in ("chat", "batch", "completions") and given("logprobs") in (None, False))
        or (ids and (beams or given("echo")))
        or (beams and (endpoint == "batch" or given("echo")))
        or (given("continue_final_message") and (endpoint == "batch" or given("add_generation_prompt")))
        or (choice is not None and choice not in ("none", "auto") and not _offers(choice, tools))
        or (choice == "auto" and endpoint in ("chat", "batch") and not tools)
        or _several(given("structured_outputs"))
        or _lacks_schema(given("response_format"))
        or (given("temperature") == 0 and (given("n") or 1) > 1)
        or (given("min_tokens") or 0) > _longest(endpoint, given)
        or _thinks_longer(given("thinking"), given("max_tokens"))
    )


def _offers(choice: Any, tools: Any) -> bool:
    """Whether there is the tool that is chosen, or any where any will do."""
    if not isinstance(choice, dict):
        return bool(tools)
    chosen = choice.get("function", choice).get("name")
    names = [tool.get("function", tool).get("name") for tool in tools or ()]
    return chosen in names if chosen is not None else choice.get("type") in ("auto", "any", "none")


def _longest(endpoint: Endpoint, given: Callable[[str], Any]) -> int:
    """The most tokens of an answer; where the model's context is the limit, more than any."""
    default = MOST_UNSAID if endpoint == "completions" else MOST_TOKENS
    return int(given("max_completion_tokens") or given("max_tokens") or default)


def _several(outputs: Any) -> bool:
    """Whether an answer is to have more than one form, or none."""
    return outputs is not None and sum(outputs.get(kind) is not None for kind in CONSTRAINTS) != 1


def _lacks_schema(wanted: Any) -> bool:
    return wanted is not None and wanted["type"] == "json_schema" and "json_schema" not in wanted


def _thinks_longer(thinking: Any, most: Any) -> bool:
    return thinking is not None and thinking.get("budget_tokens", 0) >= (most or math.inf)
