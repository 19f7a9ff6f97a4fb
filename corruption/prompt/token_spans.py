"""A request's texts as the token ids that vLLM will see, in the context of the rendered chat template.

vLLM (0.32) renders a `prompt_embeds` part as one special token, tokenises, and puts the tensor's rows
in that token's place. So a rewrite is faithful when (ids before) + (our ids) + (ids after) are exactly
the ids of the text prompt. Both renderings are made here and compared: nothing is assumed about the
template, and content that occurs elsewhere in the prompt can't be mistaken for the one meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer

from lethe.corruption.prompt.chat_template import render
from lethe.corruption.prompt.conversation import (
    ContentFormat,
    TextTarget,
    content_format,
    developer_as_system,
    replaceable_texts,
    template_messages,
)
from lethe.corruption.prompt.tokenizer import ModelTokenizer
from lethe.corruption.spec import CorruptionError

PROMPT_EMBEDS_MARKER = "<prompt_embeds>"
# Keys that steer tokenisation: without effect on a text prompt, but vLLM obeys them beside embeddings.
TOKENIZING_KWARGS = frozenset(
    {"chat_template", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"}
    | {"return_assistant_tokens_mask", "tokenizer_kwargs"}
)
_PIECES_AT_ONCE = 2048
# Texts that can't be placed together are placed one by one, each with a rendering of its own.
MAX_ONE_BY_ONE = 16


@dataclass(frozen=True)
class TokenSpan:
    """One text's tokens. offsets: each token's characters in that text; final: the prompt ends with it."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    final: bool


@dataclass(frozen=True)
class _Tokens:
    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]


class PromptTokenizer:
    """Tokenizer and chat template of one model folder. Safe to share between threads."""

    def __init__(
        self,
        model_dir: Path | str,
        *,
        chat_template: str | None = None,
        chat_template_content_format: Literal["auto", "string", "openai"] = "auto",
    ) -> None:
        """The two options repeat vLLM's own, when its server was started with them. Raises ValueError."""
        self.folder = Path(model_dir)
        self.model_tokenizer = ModelTokenizer(self.folder)
        self._fast = self.model_tokenizer.backend
        self.size = self._fast.get_vocab_size()
        self._fast.add_special_tokens([AddedToken(PROMPT_EMBEDS_MARKER, normalized=False, special=True)])
        self._marker_id = _id(self._fast, PROMPT_EMBEDS_MARKER)
        self._template = chat_template
        self._format = chat_template_content_format

    def chat_spans(self, body: Mapping[str, Any], targets: Iterable[TextTarget]) -> dict[TextTarget, TokenSpan]:
        """The span of each target, and of texts that have to be replaced along with them.

        A target is (message, part), part None where content is a string. Texts that the template drops
        (empty, white space) are left out. Where a token reaches over the border between two texts of one
        message, its other texts come along, so that the prompt's ids stay what they were. Raises
        CorruptionError when no split keeps the number of prompt tokens.
        """
        known = replaceable_texts(_messages(body))
        wanted = sorted(set(targets), key=_order)
        for target in wanted:
            if target not in known:
                raise CorruptionError(f"messages[{target[0]}] has no text at part {target[1]}")
        whole = self._whole(body)
        if self._marker_id in whole.ids:
            raise CorruptionError(f"the prompt contains vLLM's reserved text {PROMPT_EMBEDS_MARKER}")
        wanted = [target for target in wanted if known[target]]
        touched = {m for m, _ in wanted}
        widened = sorted((t for t, text in known.items() if t[0] in touched and text), key=_order)
        spans = self._together(body, whole, wanted, known)
        if spans is None and widened != wanted:
            spans = self._together(body, whole, widened, known)
        if spans is None:
            spans = self._one_by_one(body, whole, wanted, known)
        return {target: span for target, span in spans.items() if span.ids}

    def completion(self, prompt: str | Sequence[int], *, add_special_tokens: bool = True) -> tuple[TokenSpan, int]:
        """A completion's tokens, and how many at the front are the tokenizer's own (BOS)."""
        if isinstance(prompt, str):
            if PROMPT_EMBEDS_MARKER in prompt:
                raise CorruptionError(f"the prompt contains vLLM's reserved text {PROMPT_EMBEDS_MARKER}")
            tokens = self._encode(prompt, add_special_tokens=add_special_tokens)
            bare = self._encode(prompt).ids if add_special_tokens else tokens.ids
            front = next((n for n in range(4) if tokens.ids[n : n + len(bare)] == bare), 0)
            return TokenSpan(tuple(tokens.ids), tuple(tokens.offsets), final=True), front
        self._check_ids(prompt)
        pieces = self.pieces(prompt)
        ends = _ends(pieces)
        offsets = tuple((end - len(piece), end) for piece, end in zip(pieces, ends, strict=True))
        return TokenSpan(tuple(prompt), offsets, final=True), 0

    @property
    def marker_id(self) -> int:
        """The id that stands for a `prompt_embeds` part among the ids of `chat_ids`."""
        return self._marker_id

    def chat_ids(self, body: Mapping[str, Any]) -> list[int]:
        """The ids of the whole chat prompt, as vLLM makes them; where a text is PLACEHOLDER, `placeholder`."""
        return self._whole(body).ids

    def count_tokens(self, body: Mapping[str, Any]) -> int:
        """`usage.prompt_tokens` of the chat request as text (media count as their placeholder)."""
        return len(self.chat_ids(body))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a token-id prompt, special tokens included. Raises CorruptionError for unknown ids."""
        self._check_ids(ids)
        return str(self._fast.decode(list(ids), skip_special_tokens=False))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token's own text, with the space it starts with; "�" stands for parts of characters."""
        anchor = self._encode("a").ids[-1:]
        bare = self._fast.decode(anchor, skip_special_tokens=False)
        found: list[str] = []
        # A whole vocabulary at once would need many times its own size in memory.
        for begin in range(0, len(ids), _PIECES_AT_ONCE):
            some = [[*anchor, i] for i in ids[begin : begin + _PIECES_AT_ONCE]]
            found += [text.removeprefix(bare) for text in self._fast.decode_batch(some, skip_special_tokens=False)]
        return found

    def _check_ids(self, ids: Sequence[int]) -> None:
        if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < self.size for i in ids):
            raise CorruptionError(f"a prompt token is not a token id below {self.size}")

    def _whole(self, body: Mapping[str, Any]) -> _Tokens:
        return self._encode(self._render(body, {}), add_special_tokens=bool(body.get("add_special_tokens")))

    def _together(
        self, body: Mapping[str, Any], whole: _Tokens, targets: list[TextTarget], known: Mapping[TextTarget, str]
    ) -> dict[TextTarget, TokenSpan] | None:
        """All targets in one rendering, their ids cut out of the whole prompt; None where that fails."""
        marked = self._render(body, dict.fromkeys(targets, PROMPT_EMBEDS_MARKER))
        gaps = marked.split(PROMPT_EMBEDS_MARKER)
        around = self._split(marked)
        if len(gaps) != len(targets) + 1 or len(around) != len(gaps):
            raise CorruptionError(f"the chat template shows {len(gaps) - 1} of {len(targets)} texts")
        places = _places(whole.text, gaps, [known[t] for t in targets])
        if places is None:
            return None
        cuts = _cuts(whole, around, places)
        if cuts is None:
            return None
        spans = {}
        for target, place, (start, end) in zip(targets, places, cuts, strict=True):
            offsets = _relative(whole.offsets[start:end], place, known[target], whole.text)
            spans[target] = TokenSpan(tuple(whole.ids[start:end]), offsets, final=end == len(whole.ids))
        return spans

    def _one_by_one(
        self, body: Mapping[str, Any], whole: _Tokens, targets: list[TextTarget], known: Mapping[TextTarget, str]
    ) -> dict[TextTarget, TokenSpan]:
        """Each target alone; then all together must still make as many tokens as the text prompt."""
        if len(targets) > MAX_ONE_BY_ONE:
            raise CorruptionError(f"{len(targets)} texts don't fall on token borders together")
        placed = {target: self._alone(body, whole, target, known[target]) for target in targets}
        starts = [start for start, _ in placed.values()]
        if starts != sorted(starts):
            # vLLM hands out the tensors in the order of the messages.
            raise CorruptionError("the chat template shows the messages in another order")
        spans = {target: span for target, (_, span) in placed.items()}
        marked = self._split(self._render(body, dict.fromkeys(targets, PROMPT_EMBEDS_MARKER)))
        total = sum(map(len, marked)) + sum(len(span.ids) for span in spans.values())
        if total != len(whole.ids):
            raise CorruptionError(f"rewriting would make {total} prompt tokens out of {len(whole.ids)}")
        return spans

    def _alone(self, body: Mapping[str, Any], whole: _Tokens, target: TextTarget, text: str) -> tuple[int, TokenSpan]:
        """(start, span) of a text that shares tokens with the template, or that the template changes."""
        marked = self._render(body, {target: PROMPT_EMBEDS_MARKER})
        gaps, around = marked.split(PROMPT_EMBEDS_MARKER), self._split(marked)
        if len(around) != 2 or len(gaps) != 2:
            raise CorruptionError("the chat template doesn't show a text exactly once")
        start, end = len(around[0]), len(whole.ids) - len(around[1])
        exact = whole.ids[:start] == around[0] and whole.ids[end:] == around[1]
        # White space of the text that makes one token with the template's own may be left to it.
        if start > end or not (exact or _same_but_space(whole, gaps, start, end)):
            raise CorruptionError("a text shares tokens with the chat template around it")
        offsets = _relative(whole.offsets[start:end], None, text, whole.text)
        return start, TokenSpan(tuple(whole.ids[start:end]), offsets, final=end == len(whole.ids))

    def _split(self, marked: str) -> list[list[int]]:
        """The ids between the placeholders."""
        pieces: list[list[int]] = [[]]
        for token in self._encode(marked).ids:
            if token == self._marker_id:
                pieces.append([])
            else:
                pieces[-1].append(token)
        return pieces

    def _render(self, body: Mapping[str, Any], replacements: Mapping[TextTarget, str]) -> str:
        tools = body.get("tools") or None
        given = body.get("chat_template_kwargs") or {}
        if not isinstance(given, dict):
            raise CorruptionError("chat_template_kwargs is not an object")
        if steering := sorted(TOKENIZING_KWARGS & given.keys()):
            raise CorruptionError(f"chat_template_kwargs {steering} steer tokenisation")
        kwargs = {**self.model_tokenizer.named, **given, **_template_kwargs(body)}
        try:
            template = self.model_tokenizer.template(self._template, tools=tools is not None)
            messages = template_messages(_messages(body), self._content_format(template), replacements)
            if "'developer'" not in template and '"developer"' not in template:
                messages = developer_as_system(messages)
            return render(template, messages, tools=tools, **kwargs)
        except CorruptionError:
            raise
        except Exception as error:
            # A template is a program that runs on client data: it may raise anything, and its messages
            # may quote the prompt, which must not reach a log.
            raise CorruptionError(f"the chat template failed with {type(error).__name__}") from None

    def _content_format(self, template: str) -> ContentFormat:
        return content_format(template) if self._format == "auto" else self._format

    def _encode(self, text: str, *, add_special_tokens: bool = False) -> _Tokens:
        try:
            encoding = self._fast.encode(text, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError):
            raise CorruptionError("a text holds characters that can't be encoded (lone surrogates)") from None
        return _Tokens(text, encoding.ids, encoding.offsets)


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None
    return found


def _messages(body: Mapping[str, Any]) -> Sequence[Any]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise CorruptionError("messages is not a list with entries")
    return messages


def _template_kwargs(body: Mapping[str, Any]) -> dict[str, Any]:
    """What vLLM passes to every template besides messages and tools."""
    generate, proceed = body.get("add_generation_prompt"), body.get("continue_final_message")
    kwargs: dict[str, Any] = {
        "add_generation_prompt": True if generate is None else generate,
        "continue_final_message": False if proceed is None else proceed,
    }
    if body.get("documents") is not None:
        kwargs["documents"] = body["documents"]
    effort = body.get("reasoning_effort")
    if effort is not None:
        kwargs["reasoning_effort"] = effort
        if "enable_thinking" not in (body.get("chat_template_kwargs") or {}):
            kwargs["enable_thinking"] = effort != "none"
    return kwargs


def _order(target: TextTarget) -> tuple[int, int]:
    return target[0], -1 if target[1] is None else target[1]


def _places(whole: str, gaps: Sequence[str], contents: Sequence[str]) -> list[tuple[int, int]] | None:
    """Where each content stands in the whole rendering, as it is or with its white space trimmed."""
    if not whole.startswith(gaps[0]):
        return None
    places, cursor = [], len(gaps[0])
    for content, gap in zip(contents, gaps[1:], strict=True):
        for shown in (content, content.strip(), content.rstrip(), content.lstrip()):
            if whole.startswith(shown, cursor) and whole.startswith(gap, cursor + len(shown)):
                break
        else:
            return None
        places.append((cursor, cursor + len(shown)))
        cursor += len(shown) + len(gap)
    return places if cursor == len(whole) else None


def _cuts(
    whole: _Tokens, around: Sequence[Sequence[int]], places: Sequence[tuple[int, int]]
) -> list[tuple[int, int]] | None:
    """Token ranges of the places, such that what stands between them is exactly `around`."""
    cuts, position = [], 0
    if whole.ids[: len(around[0])] != around[0]:
        return None
    position = len(around[0])
    for (_, char_end), gap in zip(places, around[1:], strict=True):
        end = position
        while end < len(whole.ids) and whole.offsets[end][0] < char_end:
            end += 1
        if whole.ids[end : end + len(gap)] != gap:
            return None
        cuts.append((position, end))
        position = end + len(gap)
    return cuts if position == len(whole.ids) else None


def _same_but_space(whole: _Tokens, gaps: Sequence[str], start: int, end: int) -> bool:
    """Whether tokens start..end show what stands between the gaps, give or take white space."""
    if start >= end or not (whole.text.startswith(gaps[0]) and whole.text.endswith(gaps[1])):
        return False
    shown = whole.text[whole.offsets[start][0] : whole.offsets[end - 1][1]]
    return shown.strip() == whole.text[len(gaps[0]) : len(whole.text) - len(gaps[1])].strip()


def _relative(
    offsets: Sequence[tuple[int, int]], place: tuple[int, int] | None, text: str, whole: str
) -> tuple[tuple[int, int], ...]:
    """Offsets in the rendering as offsets in the text; all of the text where it can't be found."""
    if not offsets:
        return ()
    start, end = place or (offsets[0][0], offsets[-1][1])
    shift = text.find(whole[start:end])
    if shift < 0:
        return tuple((0, len(text)) for _ in offsets)
    return tuple((max(a - start, 0) + shift, min(b, end) - start + shift) for a, b in offsets)


def _ends(pieces: Iterable[str]) -> list[int]:
    ends, total = [], 0
    for piece in pieces:
        total += len(piece)
        ends.append(total)
    return ends
