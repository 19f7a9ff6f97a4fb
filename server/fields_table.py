"""The fields table: every field of vLLM's two endpoints in exactly one group, and what messages may hold.

Shown to the model, judged for another reason, known to carry no text (with the reason), or refused. The
walk through a body is `server/fields.py`; a field that no table here knows is judged there. Checked
against the request classes of vLLM 0.32.
"""

from __future__ import annotations

from typing import Final

from corruption.penalties import ARGUMENT

# Read by a chat template or put into the prompt, so part of what is judged as one conversation.
SHOWN: Final = frozenset({"tools", "documents", "chat_template_kwargs", "response_format", "suffix"})

# Not shown, and judged all the same: what the answer is forced to be comes back to the model as its own
# words; the rest is handed to other people's code.
JUDGED: Final = frozenset({"structured_outputs", "vllm_xargs", "media_io_kwargs", "mm_processor_kwargs"})

# One of a few words while well-formed; anything else in them is judged, as shown.
WORDS: Final[dict[str, frozenset[str]]] = {
    "reasoning_effort": frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max"}),
    "tool_choice": frozenset({"none", "auto", "required"}),
    "truncation_side": frozenset({"left", "right"}),
    "mm_payload": frozenset({"tensors", "none"}),
}

# Numbers, switches and lists of numbers while well-formed; a string in them is judged.
NUMERIC: Final = frozenset({
    "add_generation_prompt", "add_special_tokens", "allowed_token_ids", "continue_final_message",
    "echo", "frequency_penalty", "ignore_eos", "include_reasoning", "include_stop_str_in_output",
    "length_penalty", "logprob_token_ids", "logprobs", "max_completion_tokens", "max_tokens", "min_p",
    "min_tokens", "n", "parallel_tool_calls", "presence_penalty", "priority", "prompt_logprobs",
    "repetition_penalty", "return_mm_kwargs", "return_prompt_text", "return_token_ids",
    "return_token_offsets", "return_tokens_as_token_ids", "routed_experts_prompt_start", "seed",
    "skip_special_tokens", "spaces_between_special_tokens", "stop_token_ids", "stream",
    "stream_interval", "temperature", "thinking_token_budget", "top_k", "top_logprobs", "top_p",
    "truncate_prompt_tokens", "use_beam_search", "watermarking",
})  # fmt: skip

# Fields whose strings never reach the model, with the reason. truncate_prompt_tokens (above) can only cut
# what was judged: more is judged than seen.
HARMLESS: Final[dict[str, str]] = {
    "model": "names the model; policies look at it, no template does",
    "user": "ignored by vLLM",
    "request_id": "names the request in logs and in the answer",
    "session_id": "names the session, for routing",
    "cache_salt": "goes into the hash of the prefix cache",
    "stop": "compared with the answer",
    "bad_words": "takes words out of the answer; it can't put any in",
    "logit_bias": "weights of single tokens, keyed by id; their order in the answer is the model's",
    "stream_options": "two switches; their names are not read",
    "repetition_detection": "numbers that end an answer; their names are not read",
}

EMBEDS: Final = "client-made embeddings can't be judged as text"
TEMPLATE: Final = "a template of the client's own could hide or change the text that is judged"
TRANSFER: Final = "it can bring in prompt tokens or cache entries that were not judged"
REFUSED: Final[dict[str, str]] = {
    "prompt_embeds": EMBEDS,
    "chat_template": TEMPLATE,
    "kv_transfer_params": TRANSFER,
    "ec_transfer_params": TRANSFER,
}
# Keys of an object field that are refused: vLLM merges these objects with values of its own.
REFUSED_INSIDE: Final[dict[str, dict[str, str]]] = {
    "chat_template_kwargs": {"chat_template": TEMPLATE},
    "vllm_xargs": {
        ARGUMENT: "it is the gateway's own and can't be set by a client",
        "kv_transfer_params": TRANSFER,
        "ec_transfer_params": TRANSFER,
    },
}
REFUSED_PARTS: Final = frozenset({"prompt_embeds", "image_embeds", "audio_embeds", "video_embeds"})

# Parts whose text a chat template shows in place of the content, so their embeddings can be replaced.
TEXT_PARTS: Final[dict[str, str]] = {
    "text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking",
}  # fmt: skip
# Parts whose type says nothing that their other members don't.
OTHER_PARTS: Final = frozenset(
    ["image_url", "input_image", "image_pil", "audio_url", "input_audio", "video_url", "tool_reference"]
)
ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
MESSAGE_KEYS: Final = frozenset({
    "name", "tool_calls", "tool_call_id", "function_call", "reasoning", "reasoning_content", "refusal",
    "audio", "tools", "task",
})  # fmt: skip
MEDIA: Final = ("data:image/", "data:audio/", "data:video/")
RESERVED: Final = "<prompt_embeds>"  # vLLM's own placeholder; it answers 400 to text that holds it

# Read by functions of their own, on the endpoint that has them.
WALKED: Final = {"chat": "messages", "completions": "prompt"}
KNOWN: Final = SHOWN.union(JUDGED, WORDS, NUMERIC, HARMLESS, REFUSED)
