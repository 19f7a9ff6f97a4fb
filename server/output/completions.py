"""Chat completions and completions: chunks of choices, and whole answers with choices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from lethe.corruption.phrases.stream_filter import AnswerFilter
from lethe.server.output.dialect import StreamDialect
from lethe.server.output.text_filter import (
    FINISH_FILTERED,
    SERVER_FIELDS,
    JsonObject,
    TextFilter,
    add_text,
    index_of,
)


class CompletionChunks(StreamDialect):
    """The chunks of a streamed answer.

    choices: how many there will be; None: unknown. wants_usage: the client asked for it. usage_added: only the gateway
    asked for usage in every chunk.
    """

    def __init__(
        self,
        rules: AnswerFilter,
        hits: Counter[str],
        *,
        choices: int | None,
        wants_usage: bool,
        usage_added: bool,
    ) -> None:
        super().__init__(rules, hits)
        self._expected_choices = choices
        self._wants_usage = wants_usage
        self._usage_added = usage_added
        self._chunk_filter = self._new_filter()
        self._choice_filters: dict[int, TextFilter] = {}
        self._ended_choices: set[int] = set()
        self._any_stopped = False
        self._chunk_fields: JsonObject = {}
        self._usage: Any = None

    def event(self, event: JsonObject) -> Iterator[JsonObject]:
        usage = event.get("usage")
        if isinstance(usage, dict):
            self._usage = usage
        fields = self._chunk_filter.apply({key: value for key, value in event.items() if key != "choices"})
        self._chunk_fields = {key: fields[key] for key in ("id", *SERVER_FIELDS) if key in fields}
        choices = []
        for choice in event["choices"]:
            index = index_of(choice)
            if index not in self._ended_choices:
                choices.append(self._filter_choice(index, choice))
        if self._usage_added and event["choices"]:
            fields.pop("usage", None)
        if choices or not event["choices"]:
            # Keys in the order in which they came.
            yield {
                key: choices if key == "choices" else fields[key] for key in event if key == "choices" or key in fields
            }
        yield from self._end_if_all_choices_ended()

    def finish(self) -> Iterator[JsonObject]:
        choices = []
        for index, choice_filter in self._choice_filters.items():
            if index not in self._ended_choices:
                is_completion = self._chunk_fields.get("object") == "text_completion"
                empty: JsonObject = {"text": ""} if is_completion else {"delta": {}}
                choice = {"index": index, **empty, "logprobs": None, "finish_reason": None}
                held_back = list(choice_filter.finish())
                for path, text in held_back:
                    add_text(choice, path, text)
                if held_back or choice_filter.stopped:
                    choices.append(self._end_filtered(index, choice) if choice_filter.stopped else choice)
        if choices:
            yield {**self._chunk_fields, "choices": choices}

    def _filter_choice(self, index: int, choice: JsonObject) -> JsonObject:
        choice_filter = self._choice_filters.setdefault(index, self._new_filter())
        filtered: JsonObject = choice_filter.apply(choice)
        if choice.get("finish_reason") is not None and not choice_filter.stopped:
            for path, text in choice_filter.finish():
                add_text(filtered, path, text)
            self._ended_choices.add(index)
        return self._end_filtered(index, filtered) if choice_filter.stopped else filtered

    def _end_filtered(self, index: int, choice: JsonObject) -> JsonObject:
        self._ended_choices.add(index)
        self._any_stopped = True
        return with_filtered_finish(choice)

    def _end_if_all_choices_ended(self) -> Iterator[JsonObject]:
        """End the stream as soon as nothing more of upstream's is needed."""
        all_ended = self._expected_choices is not None and len(self._ended_choices) >= self._expected_choices
        if self._chunk_filter.stopped or (self._any_stopped and all_ended):
            self.ended = True
            if self._wants_usage and self._usage is not None:
                yield {**self._chunk_fields, "choices": [], "usage": self._usage}


def filter_whole_completion(answer: JsonObject, rules: AnswerFilter, hits: Counter[str]) -> JsonObject:
    """A whole answer with choices, filtered. Raises MalformedAnswer."""
    fields = TextFilter(rules, set(), hits, whole=True).apply(
        {key: value for key, value in answer.items() if key != "choices"}
    )
    fields["choices"] = [_filter_whole_choice(choice, rules, hits) for choice in answer["choices"]]
    return {key: fields[key] for key in answer if key in fields}


def _filter_whole_choice(choice: Any, rules: AnswerFilter, hits: Counter[str]) -> JsonObject:
    index_of(choice)
    choice_filter = TextFilter(rules, set(), hits, whole=True)
    filtered: JsonObject = choice_filter.apply(choice)
    if choice_filter.stopped:
        with_filtered_finish(filtered)
        message = filtered.get("message")
        if isinstance(message, dict) and message.get("tool_calls") == []:
            del message["tool_calls"]
    return filtered


def with_filtered_finish(choice: JsonObject) -> JsonObject:
    """The choice, changed in place to end as a filtered one."""
    choice["finish_reason"] = FINISH_FILTERED
    if "stop_reason" in choice:
        choice["stop_reason"] = None
    return choice


def expected_choices(body: JsonObject) -> int | None:
    """How many choices the stream for a request will have; None where the request doesn't say it in plain numbers."""
    count = body.get("n", 1)
    count = 1 if count is None else count
    prompt = body.get("prompt")
    is_prompt_list = isinstance(prompt, list) and not all(type(item) is int for item in prompt)
    if type(count) is not int or count < 1 or isinstance(body.get("best_of"), int):
        return None
    return count * (len(prompt) if is_prompt_list and isinstance(prompt, list) else 1)
