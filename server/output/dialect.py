"""What the streams of all API dialects have in common, and the filter for streams of an unknown dialect."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator

from lethe.corruption.phrases.stream_filter import AnswerFilter
from lethe.server.output.text_filter import JsonObject, TextFilter


class StreamDialect(ABC):
    """One stream of events. `hits` counts the rules that were hit; `ended`: the answer ended before upstream's did."""

    def __init__(self, rules: AnswerFilter, hits: Counter[str]) -> None:
        self._rules = rules
        self.hits = hits
        self._clean: set[str] = set()
        self.ended = False

    @abstractmethod
    def event(self, event: JsonObject) -> Iterator[JsonObject]:
        """The events to send in place of one of upstream's. Raises what a malformed event raises."""

    def finish(self) -> Iterator[JsonObject]:
        """The events to send when upstream's stream has ended."""
        yield from ()

    def _new_filter(self, *, whole: bool = False) -> TextFilter:
        return TextFilter(self._rules, self._clean, self.hits, whole=whole)


class UnknownDialect(StreamDialect):
    """A stream of objects of another form: every text is filtered, and what is held back at the end is lost."""

    def __init__(self, rules: AnswerFilter, hits: Counter[str]) -> None:
        super().__init__(rules, hits)
        self._filter = self._new_filter()

    def event(self, event: JsonObject) -> Iterator[JsonObject]:
        if "error" in event:
            yield self._new_filter(whole=True).apply(event, is_word=True)
            return
        yield self._filter.apply(event)
        self.ended = self._filter.stopped
