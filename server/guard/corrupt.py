"""Step `corrupt`: flagged message parts are sent as corrupted prompt embeddings (ECO, arXiv:2406.07933)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lethe.corruption.prompt.message_parts import PartLocation
from lethe.corruption.spec import CorruptionError
from lethe.server.guard.extra_output import asks_for, without_prompt_output
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.guard.plan import Context, Plan, StepFailed
from lethe.server.guard.targets import Span, corruption_targets
from lethe.server.policy.schema import Policy
from lethe.server.requests.fields import Endpoint
from lethe.server.requests.messages import is_token_ids
from lethe.server.upstream.capabilities import Needs

if TYPE_CHECKING:
    from lethe.corruption.embeddings.corruptor import Corruptor

# The responses API and Anthropic's messages have no part for embeddings: vLLM's request classes refuse it.
TAKES_EMBEDDINGS: frozenset[Endpoint] = frozenset(["chat", "batch", "completions"])
# The value of `truncate_prompt_tokens` that stands for the model's own limit, so that it cuts nothing.
MODEL_LIMIT = -1


def corrupt(plan: Plan, context: Context) -> Plan:
    """Corrupt the parts that the acting findings point to.

    Raises StepFailed: `corrupt` without parity, when the corruptor fails, or for a prompt that vLLM would cut;
    `unsupported` if the endpoint or a flagged place can't be given as embeddings. The plan that it reached then holds
    the parts that were corrupted.
    """
    findings = context.findings_for("corrupt", "both")
    if not findings:
        return plan
    request, corruptor = context.request, context.resources.corruptor
    if request.endpoint not in TAKES_EMBEDDINGS:
        raise StepFailed.unsupported(findings, f"vLLM takes no embeddings on {request.endpoint}")
    policies = [finding.policy for finding in findings]
    if corruptor is None or not context.capabilities.covers(request.model, Needs(parity=True)):
        raise StepFailed("corrupt", policies, "no parity: no replica for the model has passed the parity probe")
    # The text is corrupted once, with the settings of the first of these policies (in the order of `Guard.policies`),
    # wherever any of them found something.
    first = policies[0]
    artifacts = [context.resources.artifacts[policy.artifact] for policy in policies]
    targets = corruption_targets(request, findings, artifacts, first.corrupt, context.judge_texts)
    if targets.parts:
        truncation = request.body.get("truncate_prompt_tokens")
        if asks_for(truncation) and truncation != MODEL_LIMIT:
            raise StepFailed("corrupt", policies, "truncate_prompt_tokens can't be served for embeddings")
        try:
            body = corrupted_body(request, corruptor, first, targets.parts)
        except CorruptionError as error:
            raise StepFailed("corrupt", policies, str(error)) from None
        body = {key: value for key, value in without_prompt_output(body).items() if key != "truncate_prompt_tokens"}
        plan = replace(plan, body=body, needs=replace(plan.needs, parity=True), actions=plan.actions_with("corrupt"))
    if targets.unreachable:
        reason = f"{targets.unreachable[0]} was flagged and can't be given as embeddings"
        raise StepFailed.unsupported(findings, reason, reached=plan)
    return plan


def corrupted_body(
    request: ParsedRequest, corruptor: Corruptor, policy: Policy, parts: Mapping[PartLocation, Sequence[Span]]
) -> dict[str, Any]:
    """The request body with `parts` given as corrupted embeddings. Raises CorruptionError."""
    body = request.body
    if request.endpoint == "chat":
        return corruptor.chat(body, parts, policy.corrupt, policy.name)
    if request.endpoint == "batch":
        return {**body, "messages": _corrupted_batch(body, corruptor, policy, parts)}
    return _corrupted_completion(body, corruptor, policy, parts)


def _corrupted_completion(
    body: dict[str, Any], corruptor: Corruptor, policy: Policy, parts: Mapping[PartLocation, Sequence[Span]]
) -> dict[str, Any]:
    """All prompts given as embeddings: vLLM numbers embeddings before texts, which would reorder the choices."""
    prompt = body["prompt"]
    is_list = isinstance(prompt, list) and not (prompt and is_token_ids(prompt))
    embeddings = [
        corruptor.completion(
            item,
            parts.get((i, None), ()),
            policy.corrupt if (i, None) in parts else None,
            policy.name,
            add_special_tokens=body.get("add_special_tokens", True) is not False,
        )
        for i, item in enumerate(prompt if is_list else [prompt])
    ]
    other_fields = {key: value for key, value in body.items() if key != "prompt"}
    return {**other_fields, "prompt_embeds": embeddings if is_list else embeddings[0]}


def _corrupted_batch(
    body: dict[str, Any], corruptor: Corruptor, policy: Policy, parts: Mapping[PartLocation, Sequence[Span]]
) -> list[Any]:
    """The conversations of a batch, each rewritten as a chat of its own where one of `parts` is in it."""
    first_message, conversations = 0, []
    for messages in body["messages"]:
        size = len(messages) if isinstance(messages, list) else 1
        parts_here = {
            (message - first_message, part): spans
            for (message, part), spans in parts.items()
            if first_message <= message < first_message + size
        }
        if parts_here:
            # vLLM renders the templates of a batch without tools.
            chat = {key: value for key, value in body.items() if key != "tools"} | {"messages": messages}
            messages = corruptor.chat(chat, parts_here, policy.corrupt, policy.name)["messages"]
        conversations.append(messages)
        first_message += size
    return conversations
