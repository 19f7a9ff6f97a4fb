"""The fields table: every field of vLLM's guarded endpoints in exactly one group, and what messages may hold.

Walked by a function of its own, shown to the model, judged for another reason, known to carry no text
(with the reason), or refused. The walk through a body is `server/requests/extract.py`; a field that the endpoint's
table doesn't know is judged there. Checked against the request classes of vLLM 0.32, member by member:
`tests/server/vllm_fields.json` holds what became of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from lethe.corruption.decoding.spec import XARGS_KEY

Endpoint = Literal[
    "chat", "batch", "completions", "responses", "messages", "count_tokens",
    "tokenize", "detokenize", "embeddings", "score", "rerank", "pooling",
]  # fmt: skip

# These give back numbers about the client's own text, or that text: nothing that a model says. They are read
# as strictly, for vLLM renders and loads what stands in them, and are not judged.
RELAYED: Final[frozenset[Endpoint]] = frozenset(["tokenize", "detokenize", "embeddings", "score", "rerank", "pooling"])

# A few words that a field may be, of which none is text; of an object, its members (None: numbers and switches).
Words = frozenset[str] | Mapping[str, "Words | None"]


@dataclass(frozen=True)
class Table:
    """The fields of one endpoint.

    walked: read by functions of their own, in the order in which templates show them. shown: read by a
    template or put into the prompt, so part of what is judged as one conversation. judged: not shown, and
    judged all the same. words: one of a few words while well-formed; anything else in them is judged, as
    shown. numeric: numbers, switches and lists of numbers while well-formed; a string in them is judged.
    harmless: strings that never reach the model, with the reason. refused: with the reason.
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

# truncate_prompt_tokens and truncation can only cut what was judged: more is judged than seen.
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
    "model": "names the model; policies look at it, no template does",
    "cache_salt": "goes into the hash of the prefix cache",
}
IDENTITIES: Final = NAMES | {
    "user": "ignored by vLLM",
    "request_id": "names the request in logs and in the answer",
    "session_id": "names the session, for routing",
    "stop": "compared with the answer",
    "logit_bias": "weights of single tokens, keyed by id; their order in the answer is the model's",
}
HARMLESS: Final = IDENTITIES | {
    "bad_words": "takes words out of the answer; it can't put any in",
    "stream_options": "two switches; their names are not read",
    "repetition_detection": "numbers that end an answer; their names are not read",
}

# What the answer is forced to be comes back to the model as its own words; the rest is handed to other people's code.
STRUCTURED: Final = frozenset({"structured_outputs", "vllm_xargs"})
MEDIA_KWARGS: Final = frozenset({"media_io_kwargs", "mm_processor_kwargs"})

EMBEDS: Final = "client-made embeddings can't be judged as text"
TEMPLATE: Final = "a template of the client's own could hide or change the text that is judged"
TRANSFER: Final = "it can bring in prompt tokens or cache entries that were not judged"
STORED: Final = "it brings in text that is not in this request, so that it can't be judged"
BACKGROUND: Final = "its answer would be fetched later, past the policies that then hold"
EMBEDS_REFUSED: Final = {"prompt_embeds": EMBEDS}
TRANSFERS: Final = {"kv_transfer_params": TRANSFER, "ec_transfer_params": TRANSFER}

_CHAT: Final = Table(
    walked=("messages",),
    shown=frozenset({"tools", "documents", "chat_template_kwargs", "response_format"}),
    judged=STRUCTURED | MEDIA_KWARGS,
    words=REASONING_EFFORT | TOOL_CHOICE | TRUNCATION | MM_PAYLOAD,
    numeric=CHAT,
    harmless=HARMLESS,
    refused={"chat_template": TEMPLATE, **EMBEDS_REFUSED, **TRANSFERS},
)
_MESSAGES: Final = Table(
    walked=("system", "messages"),
    shown=frozenset({"tools", "chat_template_kwargs"}),
    judged=frozenset({"vllm_xargs"}),
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
    harmless=NAMES | {"metadata": "ignored by vLLM", "stop_sequences": "compared with the answer"},
    refused={**EMBEDS_REFUSED, **TRANSFERS},
)
TABLES: Final[dict[Endpoint, Table]] = {
    "chat": _CHAT,
    # vLLM hands what it doesn't know of a batch on to each chat in it, so all of chat's fields count here.
    "batch": Table(
        walked=_CHAT.walked,
        shown=_CHAT.shown,
        judged=_CHAT.judged | {"guided_decoding_backend"},
        words=_CHAT.words,
        numeric=_CHAT.numeric | {"best_of", "early_stopping"},
        harmless=_CHAT.harmless,
        refused=_CHAT.refused,
    ),
    "completions": Table(
        walked=("prompt",),
        shown=frozenset({"suffix", "response_format"}),
        judged=STRUCTURED,
        words=TRUNCATION | MM_PAYLOAD,
        numeric=GENERATION,
        harmless=HARMLESS,
        refused={**EMBEDS_REFUSED, **TRANSFERS},
    ),
    "responses": Table(
        walked=("instructions", "previous_input_messages", "input"),
        shown=frozenset({"tools", "chat_template_kwargs"}),
        judged=STRUCTURED | MEDIA_KWARGS,
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
            "metadata": "given back with the answer; no template sees it",
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
# Refused when they are on: clients may say that they are off.
SWITCHES: Final = frozenset({"background"})
# vLLM may run these tools itself, and what they find goes into the prompt without passing here.
SERVER_TOOLS: Final = frozenset({"web_search_preview", "code_interpreter", "container", "mcp"})
SERVER_TOOL: Final = "vLLM would run it, and what it finds would reach the model unjudged"
# Keys of an object field that are refused: vLLM merges these objects with values of its own.
REFUSED_INSIDE: Final[dict[str, dict[str, str]]] = {
    "chat_template_kwargs": {"chat_template": TEMPLATE},
    "vllm_xargs": {XARGS_KEY: "it is the gateway's own and can't be set by a client", **TRANSFERS},
}
# On relayed endpoints, at the top of the body; embeddings anywhere.
REFUSED_RELAYED: Final = {"chat_template": TEMPLATE, **TRANSFERS}
REFUSED_PARTS: Final = frozenset({"prompt_embeds", "image_embeds", "audio_embeds", "video_embeds"})

# Parts whose text a chat template shows in place of the content, so their embeddings can be replaced.
TEXT_PARTS: Final[dict[str, str]] = {
    "text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking",
}  # fmt: skip
# What responses have beside those.
ITEM_PARTS: Final = TEXT_PARTS | {"reasoning_text": "text", "summary_text": "text"}
# Parts whose type says nothing that their other members don't.
OTHER_PARTS: Final = frozenset(
    ["image_url", "input_image", "image_pil", "audio_url", "input_audio", "video_url", "tool_reference"]
)
BLOCKS: Final = frozenset(
    ["image", "tool_use", "tool_result", "redacted_thinking", "tool_addition", "tool_removal", *OTHER_PARTS]
)
ITEMS: Final = frozenset([
    "message", "reasoning", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output",
])  # fmt: skip
STATUSES: Final = frozenset({"in_progress", "completed", "incomplete"})
# Marks of clients that no template reads, on whatever part they stand.
MARKS: Final[Mapping[str, Words]] = {
    "cache_control": {"type": frozenset({"ephemeral"}), "ttl": frozenset({"5m", "1h"})},
    "prompt_cache_breakpoint": {"mode": frozenset({"explicit"}), "ttl": frozenset({"30m"})},
}
ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
MESSAGE_KEYS: Final = frozenset({
    "name", "tool_calls", "tool_call_id", "function_call", "reasoning", "reasoning_content", "refusal",
    "audio", "tools", "task",
})  # fmt: skip
ITEM_KEYS: Final = MESSAGE_KEYS | {
    "id", "call_id", "arguments", "input", "output", "summary", "encrypted_content", "namespace", "action",
}  # fmt: skip
# Members of what messages hold whose strings are no text to the model.
HARMLESS_INSIDE: Final = {
    "InputAudio.data": "a sound, in base64: not judged (docs/LIMITS.md)",
}
MEDIA: Final = ("data:image/", "data:audio/", "data:video/")
RESERVED: Final = "<prompt_embeds>"  # vLLM's own placeholder; it answers 400 to text that holds it
