"""Every text of one choice under the output filter, whatever the shape of the JSON around it.

Every string of an answer is filtered, except the server's own identifiers. Some are texts that arrive in pieces
(content, reasoning, refusals, tool-call arguments, and any field that no table here lists), each filtered by itself
for each choice and tool call. Others are single words that arrive whole (roles, names, ids). What repeats the answer
in another form (log-probabilities with their tokens, token ids) is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from lethe.corruption.phrases.stream_filter import AnswerFilter, StreamMatcher

# Where a text is: the keys and indexes that lead to it from its choice.
TextPath = tuple[str | int, ...]
JsonObject = dict[str, Any]

# Fields that the server writes, never the model.
SERVER_FIELDS: Final = frozenset({"object", "model", "created", "system_fingerprint", "service_tier", "item_id"})
# Fields that hold one word or name, which arrives whole.
WORD_FIELDS: Final = frozenset({
    "call_id", "finish_reason", "id", "name", "namespace", "phase", "role", "server_label", "signature", "status",
    "stop_reason", "stop_sequence", "tool_call_id", "type",
})  # fmt: skip
# Fields that repeat the answer as tokens, or show what else it could have been.
DROPPED_FIELDS: Final = frozenset({
    "bytes", "input_messages", "logprobs", "output_messages", "prompt_logprobs", "token_ids", "top_logprobs",
})  # fmt: skip
# Fields that echo the request or hold counters: their strings arrive whole.
ECHO_FIELDS: Final = frozenset({"prompt_text", "usage"})
# Fields that are generated before the rest of the message, wherever they are in the JSON.
REASONING_FIELDS: Final = ("reasoning", "reasoning_content")

FINISH_FILTERED: Final = "content_filter"  # OpenAI's finish reason for a filtered answer
STOP_REFUSAL: Final = "refusal"  # Anthropic's stop reason

# Size of the cache of whole strings without a phrase (names and ids repeat in every chunk), as the number of entries
# and as the characters of an entry. Bounds memory; not measured.
MAX_CLEAN = 1024


class MalformedAnswer(ValueError):
    """An answer, or an event of one, that has no known form, so that it can't be filtered."""


class TextFilter:
    """The texts of one choice, each filtered by its path in it.

    whole: every text arrives whole, not in pieces. clean: whole strings without a phrase, shared by the choices of an
    answer. hits: counts the rules that were hit. `stopped`: the choice ended at a phrase.
    """

    def __init__(self, rules: AnswerFilter, clean: set[str], hits: Counter[str], *, whole: bool = False) -> None:
        self._rules = rules
        self._clean = clean
        self._hits = hits
        self._whole = whole
        self._matchers: dict[TextPath, StreamMatcher] = {}
        self._names: dict[TextPath, str] = {}
        self.stopped = False

    def apply(self, value: Any, path: TextPath = (), *, is_word: bool = False) -> Any:
        """The value with what may be sent of its texts. is_word: its strings arrive whole."""
        if isinstance(value, str):
            return self._filter_word(value) if is_word else self._filter_text(value, path)
        if isinstance(value, dict):
            return self._filter_object(value, path, is_word)
        if isinstance(value, list):
            return self._filter_list(value, path, is_word)
        return value

    def finish(self) -> Iterator[tuple[TextPath, str]]:
        """What is still held back of each text, now that the choice has ended."""
        for path, matcher in self._matchers.items():
            if self.stopped:
                return
            held_back = matcher.finish()
            self._collect_hits(matcher)
            if held_back:
                yield path, held_back

    def _filter_list(self, items: list[Any], path: TextPath, is_word: bool) -> list[Any]:
        filtered = []
        for position, item in enumerate(items):
            if self.stopped and not is_word and isinstance(item, dict | str):
                break  # the answer ended before this tool call, part or item
            index = item.get("index") if isinstance(item, dict) else None
            key = index if type(index) is int else position
            filtered.append(self.apply(item, (*path, key), is_word=is_word))
        return filtered

    def _filter_object(self, fields: JsonObject, path: TextPath, is_word: bool) -> JsonObject:
        filtered: JsonObject = {}
        for key in sorted(fields, key=lambda key: key not in REASONING_FIELDS):
            value = fields[key]
            if key in DROPPED_FIELDS:
                filtered[key] = [] if isinstance(value, list) and key == "logprobs" else None
            elif not isinstance(value, dict | list) and (key in SERVER_FIELDS or (key == "id" and not path)):
                filtered[key] = value
            elif self._filter_word(key) != key:
                continue
            elif key == "name" and isinstance(value, str) and not self._whole:
                filtered[key] = self._filter_name(value, (*path, key))
            else:
                arrives_whole = is_word or key in ECHO_FIELDS or (key in WORD_FIELDS and isinstance(value, str))
                filtered[key] = self.apply(value, (*path, key), is_word=arrives_whole)
        return {key: filtered[key] for key in fields if key in filtered}

    def _filter_text(self, piece: str, path: TextPath) -> str:
        if self.stopped:
            return ""
        if self._whole:
            matcher = self._rules.new_matcher()
            text = matcher.whole(piece)
        else:
            matcher = self._matchers.get(path) or self._rules.new_matcher()
            self._matchers[path] = matcher
            text = matcher.feed(piece)
        self._collect_hits(matcher)
        return text

    def _filter_name(self, piece: str, path: TextPath) -> str:
        """A piece of a tool's name. Servers send names whole; one that is cut in pieces is filtered as a whole too."""
        name = self._names[path] = (self._names.get(path, "") + piece)[-MAX_CLEAN:]
        return piece if self._filter_word(name) == name else ""

    def _filter_word(self, text: str) -> str:
        """A string that arrives whole: only a phrase that it holds completely counts."""
        if text in self._clean:
            return text
        matcher = self._rules.new_matcher(continues_prompt=False)
        filtered = matcher.feed(f"{text} ")
        if not matcher.hits:
            if len(self._clean) < MAX_CLEAN and len(text) < MAX_CLEAN:
                self._clean.add(text)
            return text
        filtered += matcher.finish()
        self._collect_hits(matcher)
        return filtered.removesuffix(" ")

    def _collect_hits(self, matcher: StreamMatcher) -> None:
        self._hits.update(matcher.hits)
        matcher.hits.clear()
        self.stopped = self.stopped or matcher.stopped


def add_text(node: Any, path: TextPath, text: str) -> None:
    """Append a text at its path in a choice; what is missing on the way is created."""
    key, following = path[0], path[1:]
    if isinstance(node, list):
        entry = next((item for item in node if isinstance(item, dict) and item.get("index") == key), None)
        if entry is None:
            entry = {"index": key}
            node.append(entry)
        add_text(entry, following or ("text",), text)
    elif not following:
        node[key] = (node.get(key) or "") + text
    else:
        if not isinstance(node.get(key), dict | list):
            node[key] = [] if isinstance(following[0], int) else {}
        add_text(node[key], following, text)


def index_of(value: Any) -> int:
    """The `index` of a choice or content block. Raises MalformedAnswer."""
    index = value.get("index") if isinstance(value, dict) else None
    if type(index) is not int:
        raise MalformedAnswer("a choice or block without an index")
    return index
