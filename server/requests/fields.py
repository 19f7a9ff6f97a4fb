"""The fields tables: every field of vLLM's judged endpoints in exactly one group, and what messages may contain.

A field is read by a function of its own, shown to the model, judged for another reason, known to carry no text (with
the reason), or refused. `server/requests/extract.py` applies the tables, and judges a field that is in none of them.
Checked against the request classes of vLLM 0.32, member by member: `tests/server/vllm_fields.json` records the group
of each. docs/reference/endpoints.md is generated from these tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from lethe.corruption.decoding.spec import XARGS_KEY
from lethe.corruption.prompt.message_parts import TEXT_PARTS

Endpoint = Literal[
    "chat", "batch", "completions", "responses", "messages", "count_tokens",
    "tokenize", "detokenize", "embeddings", "score", "rerank", "pooling",
]  # fmt: skip

# These endpoints return numbers about the client's own text, or that text, and nothing that a model writes. They are
# not judged, but parsed as strictly, because vLLM renders templates and loads embeddings from them.
RELAYED: Final[frozenset[Endpoint]] = frozenset(["tokenize", "detokenize", "embeddings", "score", "rerank", "pooling"])

# The known words that a field may be, none of which carries text. For an object: those of its members (None: numbers
# and booleans).
Words = frozenset[str] | Mapping[str, "Words | None"]


@dataclass(frozen=True)
class FieldsTable:
    """The fields of one endpoint.

    walked: read by functions of their own (`server/requests/messages.py`), in the order in which the chat template
    shows them.
    shown: read by a template or put into the prompt, so judged as part of the conversation.
    judged: not shown, but judged.
    words: expected to be one of a few known words; anything else in them is judged, as shown.
    numeric: numbers, booleans and lists of numbers; a string in them is judged.
    harmless: strings that never reach the model, with the reason.
    refused: with the reason.
    """

    walked: tuple[str, ...]
    shown: frozenset[str] = frozenset()
    judged: frozenset[str] = frozenset()
    words: Mapping[str, Words] = field(default_factory=dict)
    numeric: frozenset[str] = frozenset()
    harmless: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


ANTHROPIC_EFFORTS: Final = frozenset({"low", "medium", "high", "xhigh", "max"})
EFFORTS: Final = ANTHROPIC_EFFORTS | {"none", "minimal"}
SUMMARIES: Final = frozenset({"auto", "concise", "detailed"})
INCLUDES: Final = frozenset({
    "code_interpreter_call.outputs", "computer_call_output.output.image_url", "file_search_call.results",
    "message.input_image.image_url", "message.output_text.logprobs", "reasoning.encrypted_content",
})  # fmt: skip
REASONING_EFFORT: Final = {"reasoning_effort": EFFORTS}
TOOL_CHOICE: Final = {"tool_choice": frozenset({"none", "auto", "required"})}
TRUNCATION: Final = {"truncation_side": frozenset({"left", "right"})}
MM_PAYLOAD: Final = {"mm_payload": frozenset({"tensors", "none"})}

# truncate_prompt_tokens and truncation can only shorten the judged text.
SAMPLING: Final = frozenset({
    "frequency_penalty", "ignore_eos", "include_stop_str_in_output", "min_p", "presence_penalty", "priority",
    "repetition_penalty", "return_mm_kwargs", "seed", "skip_special_tokens", "stop_token_ids", "stream",
    "temperature", "top_k", "top_p", "watermarking",
})  # fmt: skip
GENERATION: Final = SAMPLING | {
    "add_special_tokens", "allowed_token_ids", "echo", "length_penalty", "logprob_token_ids", "logprobs",
    "max_tokens", "min_tokens", "n", "prompt_logprobs", "return_token_ids", "return_token_offsets",
    "return_tokens_as_token_ids", "routed_experts_prompt_start", "spaces_between_special_tokens",
    "stream_interval", "thinking_token_budget", "truncate_prompt_tokens", "use_beam_search",
}  # fmt: skip
CHAT: Final = GENERATION | {
    "add_generation_prompt", "continue_final_message", "include_reasoning", "max_completion_tokens",
    "parallel_tool_calls", "return_prompt_text", "top_logprobs",
}  # fmt: skip

NAMES: Final = {
    "model": "names the model; policies read it, templates don't",
    "cache_salt": "part of the prefix cache's hash",
}
IDENTITIES: Final = NAMES | {
    "user": "ignored by vLLM",
    "request_id": "names the request in logs and in the response",
    "session_id": "names the session, for routing",
    "logit_bias": "weights of single tokens, keyed by id; the text that those with a positive weight spell is judged",
}
HARMLESS: Final = IDENTITIES | {
    "stream_options": "two booleans; their names are not read",
    "repetition_detection": "numbers that end a response; their names are not read",
}

# A forced response returns to the model as its own words; vllm_xargs is passed to plugins.
STRUCTURED: Final = frozenset({"structured_outputs", "vllm_xargs"})
# Words that end an answer, or that it may not have: the answer tells whether it would have had them.
ANSWER_WORDS: Final = frozenset({"stop", "bad_words"})
MEDIA_KWARGS: Final = frozenset({"media_io_kwargs", "mm_processor_kwargs"})

EMBEDS: Final = "client-made embeddings can't be judged as text"
TEMPLATE: Final = "a client's template could hide or change the text that is judged"
TRANSFER: Final = "it can bring in prompt tokens or cache entries that were not judged"
STORED: Final = "it refers to text that is not in this request, which can't be judged"
BACKGROUND: Final = "its response would be fetched later, without the policies of that time"
EMBEDS_REFUSED: Final = {"prompt_embeds": EMBEDS}
TRANSFERS: Final = {"kv_transfer_params": TRANSFER, "ec_transfer_params": TRANSFER}

_CHAT: Final = FieldsTable(
    walked=("messages",),
    shown=frozenset({"tools", "documents", "chat_template_kwargs", "response_format"}),
    judged=STRUCTURED | MEDIA_KWARGS | ANSWER_WORDS,
    words=REASONING_EFFORT | TOOL_CHOICE | TRUNCATION | MM_PAYLOAD,
    numeric=CHAT,
    harmless=HARMLESS,
    refused={"chat_template": TEMPLATE, **EMBEDS_REFUSED, **TRANSFERS},
)
_MESSAGES: Final = FieldsTable(
    walked=("system", "messages"),
    shown=frozenset({"tools", "chat_template_kwargs"}),
    judged=frozenset({"vllm_xargs", "stop_sequences"}),
    words={
        "output_config": {"effort": ANTHROPIC_EFFORTS, "format": {"type": frozenset({"json_schema"})}},
        "thinking": {
            "type": frozenset({"enabled", "disabled", "adaptive"}),
            "budget_tokens": None,
            "display": frozenset({"summarized", "omitted", "updates"}),
        },
        "tool_choice": {"type": frozenset({"auto", "any", "tool", "none"}), "disable_parallel_tool_use": None},
        **MM_PAYLOAD,
    },
    numeric=frozenset({"max_tokens", "return_mm_kwargs", "stream", "temperature", "top_k", "top_p", "watermarking"}),
    harmless=NAMES | {"metadata": "ignored by vLLM"},
    refused={**EMBEDS_REFUSED, **TRANSFERS},
)
TABLES: Final[dict[Endpoint, FieldsTable]] = {
    "chat": _CHAT,
    # vLLM passes unknown fields of a batch to each chat in it, so all fields of a chat count here.
    "batch": FieldsTable(
        walked=_CHAT.walked,
        shown=_CHAT.shown,
        judged=_CHAT.judged | {"guided_decoding_backend"},
        words=_CHAT.words,
        numeric=_CHAT.numeric | {"best_of", "early_stopping"},
        harmless=_CHAT.harmless,
        refused=_CHAT.refused,
    ),
    "completions": FieldsTable(
        walked=("prompt",),
        shown=frozenset({"suffix", "response_format"}),
        judged=STRUCTURED | ANSWER_WORDS,
        words=TRUNCATION | MM_PAYLOAD,
        numeric=GENERATION,
        harmless=HARMLESS,
        refused={**EMBEDS_REFUSED, **TRANSFERS},
    ),
    "responses": FieldsTable(
        walked=("instructions", "previous_input_messages", "input"),
        shown=frozenset({"tools", "chat_template_kwargs"}),
        judged=STRUCTURED | MEDIA_KWARGS | {"stop"},
        words={
            "include": INCLUDES,
            "reasoning": {"effort": EFFORTS, "summary": SUMMARIES, "generate_summary": SUMMARIES},
            "service_tier": frozenset({"auto", "default", "flex", "scale", "priority"}),
            "text": {
                "format": {"type": frozenset({"text", "json_object", "json_schema"})},
                "verbosity": frozenset({"low", "medium", "high"}),
            },
            "truncation": frozenset({"auto", "disabled"}),
            **TOOL_CHOICE, **MM_PAYLOAD,
        },
        numeric=SAMPLING | {
            "enable_response_messages", "include_reasoning", "max_output_tokens", "max_tool_calls",
            "parallel_tool_calls", "store", "top_logprobs",
        },
        harmless=IDENTITIES | {
            "metadata": "returned with the response; no template sees it",
            "prompt_cache_key": "ignored by vLLM",
        },
        refused={
            "background": BACKGROUND,
            "previous_response_id": STORED,
            "prompt": STORED,
            **EMBEDS_REFUSED, **TRANSFERS,
        },
    ),
    "messages": _MESSAGES,
    "count_tokens": _MESSAGES,
}  # fmt: skip
# Refused only when true.
SWITCHES: Final = frozenset({"background"})
# vLLM may run these tools itself and put their results into the prompt, past the gateway.
SERVER_TOOLS: Final = frozenset({"web_search_preview", "code_interpreter", "container", "mcp"})
SERVER_TOOL: Final = "vLLM would run it, and its results would reach the model unjudged"
# Refused keys of object fields: vLLM merges these objects with its own values.
REFUSED_INSIDE: Final[dict[str, dict[str, str]]] = {
    "chat_template_kwargs": {"chat_template": TEMPLATE},
    "vllm_xargs": {XARGS_KEY: "it is reserved for the gateway", **TRANSFERS},
}
# Refused on relayed endpoints: fields at the top of the body, and embeddings anywhere.
REFUSED_RELAYED: Final = {"chat_template": TEMPLATE, **TRANSFERS}
REFUSED_PARTS: Final = frozenset({"prompt_embeds", "image_embeds", "audio_embeds", "video_embeds"})
# Kinds and keys with this ending are refused too: a later vLLM may read them.
EMBEDS_SUFFIX: Final = "_embeds"
UNKNOWN_KIND: Final = "a part of a kind that is not known may hold something other than text"

# Fields of other services and of newer versions of the API that vLLM's request classes don't read: they never reach
# the model. An unknown field that is not listed here is judged.
IGNORED_ANYWHERE: Final = {
    "metadata": "labels of the request; no template sees them",
    "client_metadata": "labels of the request, by Codex",
    "litellm_metadata": "labels of the request, by LiteLLM",
    "user": "names the client's user, for logs",
    "safety_identifier": "names the client's user, for the service's own checks",
}
IGNORED: Final = IGNORED_ANYWHERE | {
    "prompt_cache_key": "names a prefix cache of another service",
    "prompt_cache_retention": "lifetime of a prefix cache of another service",
    "prompt_cache_options": "options of a prefix cache of another service",
    "litellm_call_id": "names the request, by LiteLLM",
    "litellm_session_id": "names the session, by LiteLLM",
    "litellm_trace_id": "names the trace, by LiteLLM",
    "service_tier": "priority of the request at another service",
    "inference_geo": "region of another service",
    "store": "whether another service stores the answer",
}

# Part type → key of its text, for items of the Responses API.
ITEM_PARTS: Final = TEXT_PARTS | {"reasoning_text": "text", "summary_text": "text"}
# Parts without text of their own; their other members are judged.
OTHER_PARTS: Final = frozenset(
    ["image_url", "input_image", "image_pil", "audio_url", "input_audio", "video_url", "tool_reference"]
)
BLOCKS: Final = frozenset(
    ["image", "tool_use", "tool_result", "redacted_thinking", "tool_addition", "tool_removal", *OTHER_PARTS]
)
# Parts that vLLM's classes know and its renderer rejects, in its own words; judged.
FILE_PARTS: Final = frozenset({"file", "input_file"})
ITEMS: Final = frozenset([
    "message", "reasoning", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output",
])  # fmt: skip
# Items that vLLM's classes know and its renderer doesn't show or rejects; judged, whatever is in them.
OTHER_ITEMS: Final = frozenset([
    "additional_tools", "apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "compaction",
    "compaction_trigger", "computer_call", "computer_call_output", "configuration_update", "file_search_call",
    "image_generation_call", "item_reference", "local_shell_call", "local_shell_call_output", "mcp_approval_request",
    "mcp_approval_response", "mcp_call", "mcp_list_tools", "program", "program_output", "shell_call",
    "shell_call_output", "tool_search_call", "tool_search_output", "web_search_call",
])  # fmt: skip
STATUSES: Final = frozenset({"in_progress", "completed", "incomplete"})
# Markers that clients put on parts and no template reads.
MARKS: Final[Mapping[str, Words]] = {
    "cache_control": {"type": frozenset({"ephemeral"}), "ttl": frozenset({"5m", "1h"})},
    "prompt_cache_breakpoint": {"mode": frozenset({"explicit"}), "ttl": frozenset({"30m"})},
}
ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
MESSAGE_KEYS: Final = frozenset({
    "name", "tool_calls", "tool_call_id", "function_call", "reasoning", "reasoning_content", "refusal",
    "audio", "tools", "task",
})  # fmt: skip
# Message fields that are objects of a form of their own, whose `type` names no content part.
STRUCTURED_KEYS: Final = frozenset({"tool_calls", "function_call", "audio", "tools", "action"})
# Anthropic's tool calls: their member `input` is an object of any form, which vLLM turns into text.
TOOL_CALL: Final = "tool_use"
TOOL_INPUT: Final = "input"
ITEM_KEYS: Final = MESSAGE_KEYS | {
    "id", "call_id", "arguments", "input", "output", "summary", "encrypted_content", "namespace", "action",
}  # fmt: skip
# Members of message parts whose strings are not text to the model.
HARMLESS_INSIDE: Final = {
    "InputAudio.data": "a sound in base64, which is not judged (docs/security.md)",
}
# Members of message parts that hold the address of an image, sound or film, or the data itself.
MEDIA_URLS: Final = frozenset({"image_url", "audio_url", "video_url"})
# The beginning of data in base64, with any media type and parameters.
DATA_URL: Final = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
MEDIA_TYPE: Final = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}", re.ASCII)
