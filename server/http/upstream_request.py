"""What is sent upstream for one request, and what is done with the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lethe.corruption.phrases.stream_filter import AnswerFilter
from lethe.server.errors import Dialect
from lethe.server.guard.decision import Forward
from lethe.server.guard.guard import Guard
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.http.cached_tokens import CachedTokensFilter
from lethe.server.http.original_request import OriginalRequest
from lethe.server.http.relay import ByteFilter, is_compressed
from lethe.server.output.error_events import NeutralErrors
from lethe.server.output.filter import ResponseFilter
from lethe.server.policy.schema import Policy
from lethe.server.upstream.capabilities import Needs
from lethe.server.upstream.http1 import UpstreamResponse


@dataclass(frozen=True)
class UpstreamRequest:
    """What is sent upstream.

    model, affinity, needs: which replica answers, see `ReplicaPool.open`. original: the request as it came, where
    another body is sent. response_filter: the output filter;
    None: the answer is relayed as it comes. filtering: the
    policies of the output filter. hides_cached_tokens: how many prompt tokens vLLM had cached is withheld from the
    answer (`server/http/cached_tokens.py`).
    """

    payload: bytes | None
    model: Any = None
    affinity: bytes | None = None
    needs: Needs = Needs()
    original: OriginalRequest | None = None
    response_filter: ResponseFilter | None = None
    filtering: tuple[Policy, ...] = ()
    hides_cached_tokens: bool = False

    @property
    def reads_answer(self) -> bool:
        """Whether the gateway reads the answer, which must not be compressed then."""
        return self.response_filter is not None or self.hides_cached_tokens

    def byte_filters(
        self, response: UpstreamResponse, dialect: Dialect, on_hidden_error: Callable[[], None]
    ) -> list[ByteFilter]:
        """What changes the bytes of the answer; nothing where it is compressed.

        on_hidden_error: called for each error in the stream that would tell what was rewritten, and is replaced.
        """
        filters: list[ByteFilter] = []
        if is_compressed(response):
            return filters
        if self.original is not None and response.content_type == "text/event-stream":
            filters.append(NeutralErrors(dialect, on_hidden_error))
        if self.hides_cached_tokens:
            filters.append(CachedTokensFilter())
        return filters


def planned_request(
    guard: Guard, request: ParsedRequest, forward: Forward, original: OriginalRequest
) -> UpstreamRequest:
    """What a plan sends upstream, with the output filter for its answer."""
    plan, payload = forward.plan, forward.payload
    filtering = tuple(entry.policy for entry in plan.filter_rules)
    response_filter = None
    if plan.filter_rules:

        def on_unreadable(reason: str) -> None:
            """Apply `on_failure` to an answer that the filter can't read. Raises Refused."""
            if refusal := guard.refusal_after_failure(filtering, "watch", reason):
                raise refusal

        rules = AnswerFilter(entry.rule for entry in plan.filter_rules)
        response_filter = ResponseFilter(rules, request.body, on_unreadable, usage_added=plan.usage_added)
    return UpstreamRequest(
        payload=original.body if payload is None else payload,
        model=plan.model,
        affinity=original.affinity,
        needs=plan.needs,
        original=None if payload is None else original,
        response_filter=response_filter,
        filtering=filtering,
        hides_cached_tokens=guard.policies_for(request.model).corrupts,
    )
