"""The types of the request fields of vLLM 0.32, as far as they can make vLLM reject a request. Pure.

Written after vLLM's request classes; tests/server/requests/test_validation.py compares with their verdicts.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Final, Literal, Required

from pydantic import Field, Strict, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic supports no other before Python 3.12

from lethe.corruption.prompt.message_parts import TEXT_PARTS
from lethe.server.requests.fields import ANTHROPIC_EFFORTS, EFFORTS, INCLUDES, ITEMS, OTHER_PARTS, Endpoint

# vLLM's default limits. A server that allows more decides itself.
MAX_LOGPROBS: Final = 20  # tokens per position; vLLM's --max-logprobs
MAX_CHOICES: Final = 16384  # answers per request; VLLM_MAX_N_SEQUENCES
MAX_STOPS: Final = 4  # stop strings per request; VLLM_MAX_STOP_STRINGS

Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
# Strict: vLLM compares the value before it would convert "5" to a number.
LogprobCount = Annotated[int, Strict(), Field(ge=0, le=MAX_LOGPROBS)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Probability = Annotated[float, Field(ge=0, le=1)]
NonEmptyString = Annotated[str, Field(min_length=1)]
StopStrings = Annotated[list[NonEmptyString], Field(max_length=MAX_STOPS)]
TokenIds = list[NonNegativeInt]
JsonObject = dict[str, Any]
XargsValue = str | int | float


class _ChatPart(TypedDict, total=False):
    type: Literal[tuple({*TEXT_PARTS, *OTHER_PARTS})]  # type: ignore[valid-type]
    text: str
    refusal: str
    thinking: str


class _FunctionTool(TypedDict, total=False):
    name: Required[str]
    description: str | None
    parameters: JsonObject | None
    strict: bool | None


class _ChatTool(TypedDict, total=False):
    type: Literal["function"]
    function: Required[_FunctionTool]


class _ChatMessage(TypedDict, total=False):
    role: Required[str]
    content: str | list[str | _ChatPart] | None
    name: str
    tool_call_id: str | None
    tool_calls: list[JsonObject] | None
    reasoning: str | None
    reasoning_content: str | None
    tools: list[JsonObject] | None
    task: str | None


class _AnthropicBlock(TypedDict, total=False):
    type: Required[
        Literal["text", "image", "tool_use", "tool_result", "tool_reference", "thinking", "redacted_thinking"]
    ]
    text: str | None
    source: JsonObject | None
    id: str | None
    tool_use_id: str | None
    name: str | None
    input: JsonObject | None
    content: str | list[JsonObject] | None
    is_error: bool | None
    tool_name: str | None
    thinking: str | None
    signature: str | None
    data: str | None


class _AnthropicMessage(TypedDict, total=False):
    role: Required[Literal["user", "assistant", "system"]]
    content: Required[str | list[_AnthropicBlock]]


class _AnthropicTool(TypedDict, total=False):
    name: Required[str]
    description: str | None
    input_schema: Required[JsonObject]
    strict: bool | None
    defer_loading: bool | None


class _AnthropicToolChoice(TypedDict, total=False):
    type: Required[Literal["auto", "any", "tool", "none"]]
    name: str | None
    disable_parallel_tool_use: bool | None


class _ResponsePart(TypedDict, total=False):
    type: Required[Literal["input_text", "output_text", "input_image", "refusal"]]
    text: str
    refusal: str


class _ResponseMessage(TypedDict, total=False):
    type: Literal["message"]
    role: Required[Literal["user", "assistant", "system", "developer"]]
    content: Required[str | list[_ResponsePart]]


class _ResponseItem(TypedDict, total=False):
    type: Required[Literal[tuple(ITEMS - {"message"})]]  # type: ignore[valid-type]


class _ResponseTool(TypedDict, total=False):
    type: Required[Literal["function", "custom"]]
    name: Required[str]
    description: str | None
    parameters: JsonObject | None
    strict: bool | None


class _ResponseToolChoice(TypedDict, total=False):
    type: Required[str]
    name: str | None


class _OutputConfig(TypedDict, total=False):
    effort: Literal[tuple(ANTHROPIC_EFFORTS)] | None  # type: ignore[valid-type]
    format: JsonObject | None


class _ResponseFormat(TypedDict, total=False):
    type: Required[Literal["text", "json_object", "json_schema", "structural_tag"]]
    json_schema: JsonObject


class _StreamOptions(TypedDict, total=False):
    include_usage: bool | None
    continuous_usage_stats: bool | None


class _ThinkingConfig(TypedDict, total=False):
    type: Required[Literal["enabled", "disabled", "adaptive"]]
    budget_tokens: Annotated[int, Field(ge=1024)]
    display: Literal["summarized", "omitted", "updates"] | None


_BOOLEAN: Final = TypeAdapter(bool)


def as_boolean(value: Any) -> bool | None:
    """A field as vLLM reads it where it expects a boolean ("false" and 0 are false); None for what it refuses."""
    try:
        return _BOOLEAN.validate_python(value)
    except ValidationError:
        return None


def _one_of(words: Collection[str]) -> Any:
    """The type of a string that is one of these words."""
    return Literal[tuple(words)]


ChatMessages = list[_ChatMessage]
BatchConversations = Annotated[list[Annotated[ChatMessages, Field(min_length=1)]], Field(min_length=1)]

# The types of fields that mean the same on every endpoint.
_COMMON_FIELDS: Final[dict[str, Any]] = {
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), Penalty | None),
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens"), PositiveInt | None),
    "stream_interval": PositiveInt | None,
    **dict.fromkeys(("min_tokens", "routed_experts_prompt_start"), NonNegativeInt),
    **dict.fromkeys(("top_logprobs", "prompt_logprobs"), LogprobCount | None),
    **dict.fromkeys(("logprob_token_ids", "stop_token_ids", "allowed_token_ids"), TokenIds | None),
    **dict.fromkeys(("best_of", "max_tool_calls"), int | None),
    **dict.fromkeys(("structured_outputs", "repetition_detection"), JsonObject | None),
    **dict.fromkeys(("chat_template_kwargs", "mm_processor_kwargs", "reasoning", "text"), JsonObject | None),
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
    "n": Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None,
    "temperature": Annotated[float, Field(ge=0, le=2)] | None,
    "top_p": Annotated[float, Field(gt=0, le=1)] | None,
    "top_k": Annotated[int, Field(ge=-1)] | None,
    "min_p": Probability | None,
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
    "stop": NonEmptyString | StopStrings | None,
    "stop_sequences": StopStrings | None,
    "bad_words": list[NonEmptyString],
    "stream_options": _StreamOptions | None,
    "media_io_kwargs": dict[str, JsonObject] | None,
    "vllm_xargs": dict[str, XargsValue | list[XargsValue]] | None,
    "tool_choice": Literal["none", "auto", "required"] | _ChatTool | None,
    "tools": Annotated[list[_ChatTool], Field(min_length=1)] | None,
    "documents": list[dict[str, str]] | None,
    "response_format": _ResponseFormat | None,
    "output_config": _OutputConfig | None,
    "thinking": _ThinkingConfig | None,
    "previous_input_messages": list[JsonObject] | None,
    "metadata": dict[str, str] | None,
    "service_tier": Literal["auto", "default", "flex", "scale", "priority"],
    "include": list[_one_of(INCLUDES)] | None,  # type: ignore[misc]
}  # fmt: skip
_ANTHROPIC_FIELDS: Final[dict[str, Any]] = {
    "model": NonEmptyString,
    "messages": list[_AnthropicMessage],
    "max_tokens": PositiveInt,
    "metadata": JsonObject | None,
    "system": str | list[_AnthropicBlock] | None,
    "tools": list[_AnthropicTool] | None,
    "tool_choice": _AnthropicToolChoice | None,
}
# The types of fields that only one endpoint has, or that it defines differently.
_ENDPOINT_FIELDS: Final[dict[Endpoint, dict[str, Any]]] = {
    "chat": {"messages": ChatMessages, "logprobs": bool | None},
    "batch": {
        "messages": BatchConversations, "logprobs": bool | None, "tools": None, "tool_choice": Literal["none"] | None,
        "n": Literal[1] | None, "return_token_ids": bool,
    },
    "completions": {
        "prompt": NonEmptyString | TokenIds | list[TokenIds] | list[str], "logprobs": LogprobCount | None,
        "n": Annotated[int, Field(ge=1, le=MAX_CHOICES)],
    },
    "responses": {
        "input": str | list[_ResponseMessage | _ResponseItem], "tools": list[_ResponseTool],
        "tool_choice": Literal["none", "auto", "required"] | _ResponseToolChoice,
    },
    "messages": _ANTHROPIC_FIELDS,
    "count_tokens": _ANTHROPIC_FIELDS,
}  # fmt: skip
REQUIRED_FIELDS: Final[dict[Endpoint, tuple[str, ...]]] = {
    "chat": ("messages",),
    "batch": ("messages",),
    "completions": ("prompt",),
    "responses": ("input",),
    "messages": ("model", "messages", "max_tokens"),
    "count_tokens": ("model", "messages"),
}
# Endpoint → field → the validator of its type.
ADAPTERS: Final = {
    endpoint: {name: TypeAdapter(kind) for name, kind in {**_COMMON_FIELDS, **own}.items()}
    for endpoint, own in _ENDPOINT_FIELDS.items()
}
