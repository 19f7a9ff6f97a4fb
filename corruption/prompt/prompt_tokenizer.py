"""A request's prompt as the token ids that vLLM will see, and the tokens of each of its texts.

vLLM (0.32) renders a `prompt_embeds` part as one special token, tokenises the prompt, and puts the tensor's rows in
that token's place. So a rewrite is faithful when (ids before) + (our ids) + (ids after) are exactly the ids of the text
prompt. Both renderings are made here and compared. So nothing is assumed about the template, and a content that also
occurs elsewhere in the prompt can't be confused with the right one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer

from lethe.corruption.prompt.chat_template import render
from lethe.corruption.prompt.content_format import ContentFormat, detect_content_format
from lethe.corruption.prompt.conversation import developer_as_system, template_messages
from lethe.corruption.prompt.message_parts import PROMPT_EMBEDS_MARKER, PartLocation, replaceable_texts
from lethe.corruption.prompt.model_tokenizer import ModelTokenizer
from lethe.corruption.prompt.token_spans import (
    EncodedText,
    TokenSpan,
    equal_except_white_space,
    locate_texts,
    offsets_in_text,
    token_ranges,
)
from lethe.corruption.spec import CorruptionError

# Keys that control tokenisation: without effect on a text prompt, but vLLM obeys them beside embeddings.
TOKENIZING_KWARGS = frozenset(
    {"chat_template", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"}
    | {"return_assistant_tokens_mask", "tokenizer_kwargs"}
)
# Token ids to decode at once. Chosen: decoding a whole vocabulary at once takes many times its size in memory.
_DECODE_BATCH = 2048
# Texts that can't be located together are located one by one, each with two renderings. Chosen: more of them would
# make one request take too long.
MAX_ONE_BY_ONE = 16
# Tokens that a tokenizer may add in front of a prompt (BOS and similar), at most: known ones add one or two.
_MAX_TOKENS_IN_FRONT = 3


class PromptTokenizer:
    """Tokenizer and chat template of one model folder. Safe to share between threads.

    size: number of the model's token ids. marker_id: the id that stands for a `prompt_embeds` part in `chat_ids`.
    """

    def __init__(
        self,
        model_dir: Path | str,
        *,
        chat_template: str | None = None,
        chat_template_content_format: Literal["auto", "string", "openai"] = "auto",
    ) -> None:
        """The two options are those of the vLLM server. chat_template: a template, or the name of one in the folder.

        Raises ValueError when the folder has no usable tokenizer.
        """
        self.folder = Path(model_dir)
        self.model_tokenizer = ModelTokenizer(self.folder)
        self._backend = self.model_tokenizer.backend
        self.size = self._backend.get_vocab_size()
        self._backend.add_special_tokens([AddedToken(PROMPT_EMBEDS_MARKER, normalized=False, special=True)])
        self.marker_id = _token_id(self._backend, PROMPT_EMBEDS_MARKER)
        self._template = chat_template
        self._content_format = chat_template_content_format

    def chat_spans(self, body: Mapping[str, Any], targets: Iterable[PartLocation]) -> dict[PartLocation, TokenSpan]:
        """Return the span of each target, and of texts that must be replaced along with them.

        Texts that the template drops (empty, white space) are left out. Where a token extends over the border between
        two texts of one message, the message's other texts are included, so that the prompt's ids stay the same.
        Raises CorruptionError when no split keeps the number of prompt tokens.
        """
        texts = replaceable_texts(_messages(body))
        chosen = sorted(set(targets), key=_order)
        for target in chosen:
            if target not in texts:
                raise CorruptionError(f"messages[{target[0]}] has no text at part {target[1]}")
        whole = self._encode_chat(body)
        if self.marker_id in whole.ids:
            raise CorruptionError(f"the prompt contains vLLM's reserved text {PROMPT_EMBEDS_MARKER}")
        chosen = [target for target in chosen if texts[target]]
        messages = {m for m, _ in chosen}
        whole_messages = sorted((t for t, text in texts.items() if t[0] in messages and text), key=_order)
        spans = self._locate_together(body, whole, chosen, texts)
        if spans is None and whole_messages != chosen:
            spans = self._locate_together(body, whole, whole_messages, texts)
        if spans is None:
            spans = self._locate_one_by_one(body, whole, chosen, texts)
        return {target: span for target, span in spans.items() if span.ids}

    def completion(self, prompt: str | Sequence[int], *, add_special_tokens: bool = True) -> tuple[TokenSpan, int]:
        """Return a completion prompt's tokens, and the number of leading tokens that the tokenizer has added (BOS).

        Offsets are characters of the text, or of `decode(ids)`. Raises CorruptionError for ids outside the vocabulary.
        """
        if isinstance(prompt, str):
            if PROMPT_EMBEDS_MARKER in prompt:
                raise CorruptionError(f"the prompt contains vLLM's reserved text {PROMPT_EMBEDS_MARKER}")
            tokens = self._encode(prompt, add_special_tokens=add_special_tokens)
            bare = self._encode(prompt).ids if add_special_tokens else tokens.ids
            starts = range(_MAX_TOKENS_IN_FRONT + 1)
            num_leading_tokens = next((n for n in starts if tokens.ids[n : n + len(bare)] == bare), 0)
            return TokenSpan(tuple(tokens.ids), tuple(tokens.offsets), ends_prompt=True), num_leading_tokens
        self._check_ids(prompt)
        pieces = self.pieces(prompt)
        ends = accumulate(map(len, pieces))
        offsets = tuple((end - len(piece), end) for piece, end in zip(pieces, ends, strict=True))
        return TokenSpan(tuple(prompt), offsets, ends_prompt=True), 0

    def chat_ids(self, body: Mapping[str, Any]) -> list[int]:
        """Return the ids of the whole chat prompt, as vLLM makes them, with `marker_id` where a text is the marker.

        Their number is the request's `usage.prompt_tokens` (media count as their placeholder).
        """
        return self._encode_chat(body).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a token-id prompt, special tokens included. Raises CorruptionError for unknown ids."""
        self._check_ids(ids)
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return each token's own text, with its leading space; "�" stands for parts of characters."""
        # Decoders drop the space at the beginning of a text, so decode each token after another one.
        anchor = self._encode("a").ids[-1:]
        anchor_text = self._backend.decode(anchor, skip_special_tokens=False)
        pieces: list[str] = []
        for begin in range(0, len(ids), _DECODE_BATCH):
            batch = [[*anchor, i] for i in ids[begin : begin + _DECODE_BATCH]]
            texts = self._backend.decode_batch(batch, skip_special_tokens=False)
            pieces += [text.removeprefix(anchor_text) for text in texts]
        return pieces

    def _check_ids(self, ids: Sequence[int]) -> None:
        if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < self.size for i in ids):
            raise CorruptionError(f"a prompt token is not a token id below {self.size}")

    def _locate_together(
        self,
        body: Mapping[str, Any],
        whole: EncodedText,
        targets: list[PartLocation],
        texts: Mapping[PartLocation, str],
    ) -> dict[PartLocation, TokenSpan] | None:
        """Locate all targets with one rendering; None where they don't start and end at token borders."""
        marked = self._render(body, dict.fromkeys(targets, PROMPT_EMBEDS_MARKER))
        gaps = marked.split(PROMPT_EMBEDS_MARKER)
        gap_ids = self._gap_ids(marked)
        if len(gaps) != len(targets) + 1 or len(gap_ids) != len(gaps):
            raise CorruptionError(f"the chat template shows {len(gaps) - 1} of {len(targets)} texts")
        places = locate_texts(whole.text, gaps, [texts[target] for target in targets])
        ranges = None if places is None else token_ranges(whole, gap_ids, places)
        if places is None or ranges is None:
            return None
        spans = {}
        for target, place, (start, end) in zip(targets, places, ranges, strict=True):
            offsets = offsets_in_text(whole.offsets[start:end], place, texts[target], whole.text)
            spans[target] = TokenSpan(tuple(whole.ids[start:end]), offsets, ends_prompt=end == len(whole.ids))
        return spans

    def _locate_one_by_one(
        self,
        body: Mapping[str, Any],
        whole: EncodedText,
        targets: list[PartLocation],
        texts: Mapping[PartLocation, str],
    ) -> dict[PartLocation, TokenSpan]:
        """Locate each target alone; then all together must make as many tokens as the text prompt."""
        if len(targets) > MAX_ONE_BY_ONE:
            raise CorruptionError(f"{len(targets)} texts don't start and end at token borders")
        located = {target: self._locate_alone(body, whole, target, texts[target]) for target in targets}
        starts = [start for start, _ in located.values()]
        if starts != sorted(starts):
            # vLLM assigns the tensors in the order of the messages.
            raise CorruptionError("the chat template shows the messages in another order")
        spans = {target: span for target, (_, span) in located.items()}
        gap_ids = self._gap_ids(self._render(body, dict.fromkeys(targets, PROMPT_EMBEDS_MARKER)))
        total = sum(map(len, gap_ids)) + sum(len(span.ids) for span in spans.values())
        if total != len(whole.ids):
            raise CorruptionError(f"rewriting would make {total} prompt tokens instead of {len(whole.ids)}")
        return spans

    def _locate_alone(
        self, body: Mapping[str, Any], whole: EncodedText, target: PartLocation, text: str
    ) -> tuple[int, TokenSpan]:
        """Return (start, span) of a text that shares tokens with the template, or that the template changes."""
        marked = self._render(body, {target: PROMPT_EMBEDS_MARKER})
        gaps, gap_ids = marked.split(PROMPT_EMBEDS_MARKER), self._gap_ids(marked)
        if len(gap_ids) != 2 or len(gaps) != 2:
            raise CorruptionError("the chat template doesn't show a text exactly once")
        start, end = len(gap_ids[0]), len(whole.ids) - len(gap_ids[1])
        exact = whole.ids[:start] == gap_ids[0] and whole.ids[end:] == gap_ids[1]
        # White space of the text that forms one token with the template's own may stay in the template.
        if start > end or not (exact or equal_except_white_space(whole, gaps, start, end)):
            raise CorruptionError("a text shares tokens with the chat template around it")
        offsets = offsets_in_text(whole.offsets[start:end], None, text, whole.text)
        return start, TokenSpan(tuple(whole.ids[start:end]), offsets, ends_prompt=end == len(whole.ids))

    def _gap_ids(self, marked: str) -> list[list[int]]:
        """The ids before, between and after the markers of a rendering."""
        gaps: list[list[int]] = [[]]
        for token in self._encode(marked).ids:
            if token == self.marker_id:
                gaps.append([])
            else:
                gaps[-1].append(token)
        return gaps

    def _encode_chat(self, body: Mapping[str, Any]) -> EncodedText:
        return self._encode(self._render(body, {}), add_special_tokens=bool(body.get("add_special_tokens")))

    def _render(self, body: Mapping[str, Any], replacements: Mapping[PartLocation, str]) -> str:
        """The chat prompt as text. Raises CorruptionError, which never quotes the prompt."""
        tools = body.get("tools") or None
        client_kwargs = body.get("chat_template_kwargs") or {}
        if not isinstance(client_kwargs, dict):
            raise CorruptionError("chat_template_kwargs is not an object")
        if refused := sorted(TOKENIZING_KWARGS & client_kwargs.keys()):
            raise CorruptionError(f"chat_template_kwargs {refused} control tokenisation")
        kwargs = {**self.model_tokenizer.named, **client_kwargs, **_template_kwargs(body)}
        try:
            template = self.model_tokenizer.template(self._template, tools=tools is not None)
            messages = template_messages(_messages(body), self._format_of(template), replacements)
            if "'developer'" not in template and '"developer"' not in template:
                messages = developer_as_system(messages)
            return render(template, messages, tools=tools, **kwargs)
        except CorruptionError:
            raise
        except Exception as error:
            # A template is a program that runs on client data. It may raise anything, and its messages may quote the
            # prompt, which must not reach a log.
            raise CorruptionError(f"the chat template failed with {type(error).__name__}") from None

    def _format_of(self, template: str) -> ContentFormat:
        return detect_content_format(template) if self._content_format == "auto" else self._content_format

    def _encode(self, text: str, *, add_special_tokens: bool = False) -> EncodedText:
        try:
            encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError):
            raise CorruptionError("a text contains characters that can't be encoded (lone surrogates)") from None
        return EncodedText(text, encoding.ids, encoding.offsets)


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None
    return token_id


def _messages(body: Mapping[str, Any]) -> Sequence[Any]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise CorruptionError("messages is not a list with entries")
    return messages


def _template_kwargs(body: Mapping[str, Any]) -> dict[str, Any]:
    """What vLLM passes to every template besides messages and tools."""
    generation, continuation = body.get("add_generation_prompt"), body.get("continue_final_message")
    kwargs: dict[str, Any] = {
        "add_generation_prompt": True if generation is None else generation,
        "continue_final_message": False if continuation is None else continuation,
    }
    if body.get("documents") is not None:
        kwargs["documents"] = body["documents"]
    effort = body.get("reasoning_effort")
    if effort is not None:
        kwargs["reasoning_effort"] = effort
        if "enable_thinking" not in (body.get("chat_template_kwargs") or {}):
            kwargs["enable_thinking"] = effort != "none"
    return kwargs


def _order(target: PartLocation) -> tuple[int, int]:
    return target[0], -1 if target[1] is None else target[1]
