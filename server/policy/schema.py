"""The schema of a policy file. `server/policy/files.py` reads the files.

A policy names an artifact (what was learned), a threshold and an action. `hash` is the hash of the file's bytes. Every
audit record holds it, so that a verdict can be traced to the text of its policy. docs/reference/policy.md is generated
from these classes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from lethe.corruption.decoding.copy_limit import DEFAULT_COPY_LIMIT, MAX_COPY_LIMIT
from lethe.corruption.spec import CorruptSpec, Tuned

Action = Literal["corrupt", "penalize", "both", "refuse", "route", "watch", "pass"]

# YAML 1.1 reads the bare word off as false.
Mode = Annotated[Literal["enforce", "shadow", "off"], BeforeValidator(lambda v: "off" if v is False else v)]

# In characters. Chosen: longer text in place of a phrase would be an answer of the operator's own.
MAX_REPLACEMENT_CHARS = 200
# The number of nearest items that a score keeps of each window: MAX_ITEMS in `classifier/index/nearest_items.py`.
MAX_PENALIZED_ITEMS = 8


class PolicyError(ValueError):
    """A policy can't be used. The message names file, key and value."""


class _PolicyPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Threshold(_PolicyPart):
    """The forget score from which a request is flagged. One key: `auto`, an error rate (conformal), or a score."""

    auto: Literal[True] | None = Field(
        default=None,
        description="As `miss_rate: 0.01`, but between 0.6 and 0.8 for fewer than 100 items, of which the rate says "
        "little, and at least 0.95 where only facts are to be forgotten. The default.",
    )
    miss_rate: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="At most this share of requests like the forget set stays unflagged (split conformal, with a "
        "finite-sample bound). A rate that the artifact's calibration set is too small to promise stops the start.",
    )
    false_alarm_rate: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="At most this share of requests like the retain set is flagged.",
    )
    value: float | None = Field(default=None, ge=0, le=1, description="The score itself. 0 flags every request.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Threshold:
        if sum(v is not None for v in (self.auto, self.miss_rate, self.false_alarm_rate, self.value)) != 1:
            raise ValueError("give exactly one of auto, miss_rate, false_alarm_rate, value")
        return self


def _check_copy_limit(value: Any) -> Any:
    # Not left to the types: 0 equals false, and true equals 1.
    if value is False or (type(value) is int and 1 <= value <= MAX_COPY_LIMIT):
        return value
    raise ValueError(f"must be false, or a whole number of tokens from 1 to {MAX_COPY_LIMIT}")


class Penalize(_PolicyPart):
    """How decoding is penalized (GUARD, arXiv:2505.13312)."""

    hard: bool = Field(
        default=True,
        description="Forbidden phrases can't be completed. If false, `soft` alone makes them less likely: closer to a "
        "model that never learned them, but without a guarantee.",
    )
    soft: Annotated[float, Field(ge=0, le=100)] | Tuned = Field(
        default=4.0,
        description="Logit penalty of words with a similar meaning, at similarity 1. 0 turns it off.",
    )
    similarity: Annotated[float, Field(gt=0, le=1)] | Tuned = Field(
        default=0.5, description="Cosine similarity from which a word gets the `soft` penalty."
    )
    items: int = Field(
        default=5,
        ge=1,
        le=MAX_PENALIZED_ITEMS,
        description="Number of nearest forget items whose phrases are forbidden.",
    )
    verbatim: Annotated[Literal[False] | int, BeforeValidator(_check_copy_limit)] = Field(
        default=DEFAULT_COPY_LIMIT,
        description="Maximum number of tokens in a row that a response may copy from the artifact's documents "
        f'(`{{"text": …}}` rows), ignoring case, white space, punctuation and quotes: 1 to {MAX_COPY_LIMIT}, or '
        "`false` for no limit. It has no effect on facts.",
    )
    always: bool = Field(
        default=False,
        description="Apply the limit of `verbatim` to every request of the covered models, flagged or not, with any "
        "action.",
    )

    @model_validator(mode="after")
    def _penalizes_something(self) -> Penalize:
        if not self.hard and not self.soft and not self.verbatim:
            raise ValueError("hard: false with soft: 0 and verbatim: false penalizes nothing")
        if self.always and not self.verbatim:
            raise ValueError("always: true needs verbatim: the number of tokens that may be copied")
        return self


class Refuse(_PolicyPart):
    """How a refusal reads."""

    form: Literal["answer", "error"] = Field(
        default="answer",
        alias="as",
        description="`answer`: status 200 and an ordinary answer that says `message` and ends as the API says of a "
        "refusal: `finish_reason: content_filter`, a `refusal` part (responses) or `stop_reason: refusal` (messages); "
        "streamed if the client wants a stream. `error`: status 400, code `refused_by_policy`, never retried.",
    )
    message: str = Field(
        default="This request can't be answered here.",
        min_length=1,
        description="The message of every refusal by this policy. It is the same for all requests; it should not say "
        "what is on the forget list.",
    )


class Route(_PolicyPart):
    """The model that answers instead."""

    model: str = Field(
        min_length=1,
        description="Another model of the same vLLM, which answers flagged requests. Required by the action `route`.",
    )


def _check_replacement(value: str) -> str:
    # The replacement may be placed inside a string of JSON text (a tool call's arguments).
    if not value.isprintable() or '"' in value or "\\" in value:
        raise ValueError("may hold neither quotes, backslashes nor control characters")
    return value


class OutputFilterOptions(_PolicyPart):
    """How the output filter treats forbidden phrases in responses (policy key `watch`)."""

    when: Literal["flagged", "always"] = Field(
        default="flagged",
        description="`flagged`: filter responses to requests that this policy flagged, for the phrases of their "
        "nearest `penalize.items` forget items. `always`: filter every response of the covered models for all "
        "phrases of the artifact.",
    )
    on_hit: Literal["stop", "replace"] = Field(
        default="stop",
        description="`stop`: the response ends before the phrase, with `finish_reason: content_filter` (messages: "
        "`stop_reason: refusal`; responses: `status: incomplete`). `replace`: `replacement` takes the phrase's place.",
    )
    replacement: Annotated[str, Field(max_length=MAX_REPLACEMENT_CHARS), AfterValidator(_check_replacement)] = Field(
        default="[removed]",
        description=f"Text in place of a phrase, up to {MAX_REPLACEMENT_CHARS} characters without quotes or "
        "backslashes. If a phrase contains one of its words, `[xxx]` is used instead.",
    )


def check_name(value: str) -> str:
    """Return the name if policies and artifacts may have it. Raises ValueError otherwise."""
    if not all(c.isalnum() or c in "-_." for c in value) or not value[:1].isalnum():
        raise ValueError("use letters, digits, '-', '_' and '.', a letter or digit first")
    return value


class Policy(_PolicyPart):
    """One policy file."""

    name: Annotated[str, AfterValidator(check_name)] = Field(
        description="Name in audit records, metrics and the keyed noise: letters, digits, `-`, `_`, `.`. Renaming a "
        "policy changes its noise."
    )
    artifact: Annotated[str, AfterValidator(check_name)] = Field(
        description="Folder under `LETHE_ARTIFACTS`, created by `lethe fit`. Several policies may share one."
    )
    mode: Mode = Field(
        default="enforce",
        description="`enforce` acts on flagged requests. `shadow` judges, counts and audits them, and changes nothing. "
        "`off` checks the file at start and then ignores it.",
    )
    action: Literal["corrupt", "penalize", "both", "refuse", "route", "watch"] = Field(
        description="What happens to a flagged request. `corrupt`: replace embeddings of the prompt (ECO). "
        "`penalize`: forbid phrases while decoding (GUARD). `both`: corrupt and penalize. `refuse`: answer in "
        "the model's place. `route`: another model answers. `watch`: filter the response."
    )
    threshold: Threshold = Field(
        default=Threshold(auto=True), description="The forget score from which a request is flagged."
    )
    on_failure: Literal["refuse", "pass"] = Field(
        default="refuse",
        description="What happens when the guard fails: judging raises an error, "
        "parity is missing, or a prompt can't be rewritten faithfully. `pass` forwards the request unguarded, and "
        "clients may be able to provoke that.",
    )
    on_unsupported: Literal["penalize", "refuse"] = Field(
        default="penalize",
        description="What happens when the flagged text can't be given as embeddings: on the Responses and Anthropic "
        "Messages endpoints, and in tool schemas or names.",
    )
    history: Literal["penalize", "refuse"] = Field(
        default="penalize",
        description="With `refuse`: what flagged earlier turns of a conversation lead to, when the current turn is not "
        "flagged. `penalize`: the answer is penalized, so that one question doesn't end the conversation; where vLLM "
        "doesn't run the plugin, or the penalty would not hold, the request is refused. `refuse`: refused for ever.",
    )
    models: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="Model names this policy covers, exactly as vLLM serves them; default: all. A request without a "
        "model name is covered by every policy. List all names of a model: a missing one bypasses the policy.",
    )
    corrupt: CorruptSpec = Field(default=CorruptSpec(), description="How embeddings are corrupted (`corrupt`, `both`).")
    penalize: Penalize = Field(
        default=Penalize(),
        description="How decoding is penalized (`penalize`, `both`, `on_unsupported: penalize`).",
    )
    watch: OutputFilterOptions | None = Field(
        default=None, description="How responses are filtered. Any policy may have it; the action `watch` implies it."
    )
    refuse: Refuse = Field(default=Refuse(), description="How a refusal reads.")
    route: Route | None = Field(default=None, description="The model that answers instead (`route`).")
    hash: str = Field(default="", description="First 16 hex digits of the SHA-256 of the file. Not a key of the file.")
    source: str = Field(default="", description="Path of the file. Not a key of the file.")

    @model_validator(mode="after")
    def _route_is_given(self) -> Policy:
        if self.action == "route" and self.route is None:
            raise ValueError("action 'route' needs route: {model: NAME}")
        return self

    @property
    def output_filter(self) -> OutputFilterOptions | None:
        """The options of the output filter; None if responses are not filtered."""
        return self.watch or (OutputFilterOptions() if self.action == "watch" else None)

    @property
    def needs_vllm(self) -> bool:
        """Whether the policy requires the real vLLM: this project's plugin, or prompt embeddings."""
        return self.action in ("corrupt", "penalize", "both") or self.penalize.always

    @property
    def corrupts(self) -> bool:
        """Whether flagged requests are corrupted."""
        return self.mode == "enforce" and self.action in ("corrupt", "both")

    @property
    def penalizes(self) -> bool:
        """Whether a flagged request may be penalized: by the action, or because it can't be corrupted."""
        return self.action in ("penalize", "both") or (self.action == "corrupt" and self.on_unsupported == "penalize")

    @property
    def penalizes_history(self) -> bool:
        """Whether flagged earlier turns are penalized instead of refused."""
        return self.mode == "enforce" and self.action == "refuse" and self.history == "penalize"

    def covers(self, model: Any) -> bool:
        """Whether this policy applies to requests for `model`. A request without a model name is covered."""
        return self.models is None or not isinstance(model, str) or not model or model in self.models
