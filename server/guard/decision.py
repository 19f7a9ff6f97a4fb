"""The result of the guard: forward the request by a plan, or refuse it."""

from __future__ import annotations

from dataclasses import dataclass

from lethe.server.errors import Refused
from lethe.server.guard.plan import Plan
from lethe.server.policy.verdict import Verdict


@dataclass(frozen=True)
class Forward:
    """Send `plan.body` upstream. payload: the body as JSON; None: the bytes that the client sent."""

    plan: Plan
    payload: bytes | None


@dataclass(frozen=True)
class Reply:
    """Refuse the request: the client gets `error`, or an ordinary answer that says so (`error.as_answer`).

    Nothing of the request is sent for an answer, with two exceptions in the gateway: it may ask vLLM whether the
    original is valid, and it forwards a `count_tokens` request whose refusal would be an answer.
    """

    error: Refused


@dataclass(frozen=True)
class Decision:
    """What is done with one request, and why.

    verdict: None where the guard failed. action: what is done, as audit trail and metrics name it. note: why something
    else than the policy's action is done; for a refusal that the policy wants, its error code. judge_ms, rewrite_ms:
    wall-clock milliseconds.
    """

    result: Forward | Reply
    verdict: Verdict | None
    action: str
    note: str | None
    judge_ms: float = 0.0
    rewrite_ms: float = 0.0

    @property
    def payload(self) -> bytes | None:
        """The rewritten body; None where the bytes that came in are sent, or nothing is."""
        return self.result.payload if isinstance(self.result, Forward) else None

    @property
    def refusal(self) -> Refused | None:
        """The refusal; None where the request is forwarded."""
        return self.result.error if isinstance(self.result, Reply) else None

    @property
    def is_hidden(self) -> bool:
        """Whether the client must not notice that the request was rewritten, or that it was flagged.

        True for a rewritten request, and for a refusal that stands in for a rewrite which failed. A policy that says
        `refuse` shows it openly.
        """
        match self.result:
            case Forward(_, payload):
                return payload is not None
            case Reply():
                return self.verdict is not None and self.verdict.action != "refuse"
