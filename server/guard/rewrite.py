"""From a verdict to the body that goes upstream.

Knows the two ways in (a `prompt_embeds` part, an argument in `vllm_xargs`) and what vLLM can't combine
with them. Pure but for the table and the tokenizer behind the corruptor.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lethe.classifier.artifact import Artifact, ForgetItem
from lethe.classifier.attribution import evidence
from lethe.classifier.judge import MOST_ASKED
from lethe.corruption.decoding.similar_words import WordVectors
from lethe.corruption.decoding.spec import MAX_PHRASE_CHARACTERS, MAX_PHRASES, XARGS_KEY, Penalty, encode_penalty
from lethe.corruption.phrases.extraction import content_words, forbidden_phrases, polarity
from lethe.corruption.phrases.normalize import fold
from lethe.corruption.phrases.trie import START_STATE, PhraseTrie
from lethe.corruption.spec import CorruptSpec, is_resolved
from lethe.server.policy.schema import Policy
from lethe.server.policy.verdict import Finding
from lethe.server.requests.extract import Endpoint, Target, Text, is_ids, joined

if TYPE_CHECKING:
    from lethe.corruption.embeddings.corruptor import Corruptor

Span = tuple[int, int]
WORD = re.compile(r"\w+")
# Each one costs vLLM some microseconds to prepare, and beyond the nearest few the answer only reads worse.
MOST_SOFT_WORDS = 64
# A user's message of no more characters may be a piece of a question that was split.
FRAGMENT = 64
# A user's text of more characters is no question, but holds what is to be read, as retrieved documents are given.
QUESTION = 300
# So few windows are one request in several readings; when its items hold too many phrases, the most telling do.
FEW_WINDOWS = 4


class Unsupported(Exception):
    """Embeddings can't be given for this request; the policy's `on_unsupported` decides. Names the reason."""


class CannotGuard(Exception):
    """The action can't be applied faithfully; the policy's `on_failure` decides. Names the reason."""


@dataclass(frozen=True)
class Judged:
    """A request as it was judged: its texts, and at the end of `texts` the stretches of the joined conversation."""

    endpoint: Endpoint
    body: dict[str, Any]
    pieces: list[Text]

    @cached_property
    def joined(self) -> tuple[str, ...]:
        """Made when it is asked for: most requests that no policy covers never need it."""
        return joined(self.pieces)

    @property
    def texts(self) -> list[str]:
        return [*(piece.text for piece in self.pieces), *self.joined]

    def place(self, index: int) -> str:
        """Where the text of that index stands in the body."""
        return self.pieces[index].place if index < len(self.pieces) else "conversation"


class Words:
    """An artifact's words, made ready once: how often each occurs in ordinary text, and which are alike."""

    def __init__(self, artifact: Artifact) -> None:
        self._counts: dict[str, int] = dict(zip(artifact.words, artifact.word_counts.tolist(), strict=True))
        self.list = WordVectors(artifact.words, artifact.word_vectors)

    def count(self, word: str) -> int:
        return self._counts.get(word, 0)


# Responses and Anthropic's messages have no part for embeddings: vLLM's own request classes refuse it.
TAKES_EMBEDDINGS: frozenset[Endpoint] = frozenset(["chat", "batch", "completions"])
# With embeddings in place of text vLLM refuses these, or would answer with what the prompt was made of.
NOT_WITH_EMBEDS = (
    "echo",
    "prompt_logprobs",
    "return_prompt_text",
    "return_token_ids",
    "truncate_prompt_tokens",
)


@dataclass(frozen=True)
class Targets:
    """Where to corrupt: parts with the evidence spans in their text (none: all of it), and what can't be."""

    parts: dict[Target, list[Span]]
    beyond: tuple[str, ...] = ()  # flagged places that embeddings can't take (tool schemas, names)


def targets(judged: Judged, finding: Finding, artifact: Artifact, spec: CorruptSpec) -> Targets:
    """The message parts to corrupt, and the flagged places that can't be."""
    scores = finding.score.text_scores
    # Not `>=`, so that a score that is no number counts as flagged, as it does in the verdict.
    flagged = [p for p, s in zip(judged.pieces, scores, strict=False) if not s < finding.threshold]
    beyond = tuple(piece.place for piece in flagged if piece.target is None)
    if flagged:
        return Targets({p.target: _evidence(artifact, p.text, spec) for p in flagged if p.target is not None}, beyond)
    # Only the conversation as a whole was flagged: the parts that carry the evidence, or all of them.
    pieces = {p.target: p for p in judged.pieces if p.target is not None and p.text.strip()}
    carrying = {target: spans for target, p in pieces.items() if (spans := list(evidence(artifact, p.text)))}
    # A name that is cut in two leaves no evidence in either half.
    fragments: dict[Target, list[Span]] = {
        t: [] for t, p in pieces.items() if p.role == "user" and len(p.text.strip()) <= FRAGMENT
    }
    if carrying and spec.uses_evidence:
        return Targets({**fragments, **carrying})
    chosen = [*fragments, *carrying] if carrying else pieces
    return Targets({target: [] for target in chosen}, () if pieces else ("conversation",))


def _evidence(artifact: Artifact, text: str, spec: CorruptSpec) -> list[Span]:
    return list(evidence(artifact, text)) if spec.uses_evidence else []


def corrupt(
    judged: Judged, corruptor: Corruptor, policy: Policy, parts: Mapping[Target, Sequence[Span]]
) -> dict[str, Any]:
    """The body with `parts` given as corrupted embeddings (ECO, arXiv:2406.07933).

    Raises Unsupported or CorruptionError.
    """
    for key in NOT_WITH_EMBEDS:
        # A number asks for it, zero included; false and null don't.
        if judged.body.get(key) is not None and judged.body[key] is not False:
            raise Unsupported(f"{key} can't be served for embeddings")
    body = judged.body
    if judged.endpoint == "chat":
        return corruptor.chat(body, parts, policy.corrupt, policy.name)
    if judged.endpoint == "batch":
        return {**body, "messages": _corrupted_batch(body, corruptor, policy, parts)}
    prompt = body["prompt"]
    many = isinstance(prompt, list) and not (prompt and is_ids(prompt))
    # vLLM numbers embeddings before texts; giving all as embeddings keeps the order of the choices.
    embeds = [
        corruptor.completion(
            item,
            parts.get((i, None), ()),
            policy.corrupt if (i, None) in parts else None,
            policy.name,
            add_special_tokens=body.get("add_special_tokens", True) is not False,
        )
        for i, item in enumerate(prompt if many else [prompt])
    ]
    rest = {key: value for key, value in body.items() if key != "prompt"}
    return {**rest, "prompt_embeds": embeds if many else embeds[0]}


def _corrupted_batch(
    body: dict[str, Any], corruptor: Corruptor, policy: Policy, parts: Mapping[Target, Sequence[Span]]
) -> list[Any]:
    """The conversations of a batch, each rewritten as a chat of its own where one of `parts` is in it."""
    first, made = 0, []
    for messages in body["messages"]:
        size = len(messages) if isinstance(messages, list) else 1
        own = {(m - first, p): spans for (m, p), spans in parts.items() if first <= m < first + size}
        if own:
            # vLLM shows a batch's templates no tools.
            alone = {key: value for key, value in body.items() if key != "tools"} | {"messages": messages}
            messages = corruptor.chat(alone, own, policy.corrupt, policy.name)["messages"]
        made.append(messages)
        first += size
    return made


def asking(judged: Judged) -> str:
    """The user's questions: what a document, a tool or an earlier answer brings back excuses no phrase."""
    said = (piece.text for piece in judged.pieces if piece.role == "user" and piece.message)
    return "\n".join(text for text in said if len(text) <= QUESTION)


def given_away(
    finding: Finding, artifact: Artifact, known: Words, prompt: str
) -> tuple[list[list[str]], tuple[str, ...]]:
    """The answers of the items that each window asks for, and the phrases that give them away. Raises CannotGuard."""
    asked = finding.score.asked
    if len(asked) >= MOST_ASKED:
        raise CannotGuard("too many forget items are asked for at once")
    most = finding.policy.penalize.items
    answers = [[_answer(artifact.items[i]) for i in nearest[:most]] for nearest in asked]
    return answers, _phrases(answers, prompt, known)


def all_phrases(artifact: Artifact, known: Words) -> tuple[str, ...]:
    """Every phrase that gives an item of the artifact away."""
    answers = [_answer(artifact.items[i]) for i in artifact.live_items]
    return forbidden_phrases(answers, "", count=known.count, limit=sys.maxsize)


def penalty(
    judged: Judged,
    findings: Sequence[Finding],
    artifacts: Mapping[str, Artifact],
    words: Mapping[str, Words],
    indexes: Mapping[str, str],
) -> Penalty:
    """What may not be said: the phrases of the forget items that are asked for, for every policy that flagged.

    Every window that reached the threshold counts, so that several questions in one request are all kept
    (GUARD, arXiv:2505.13312, knows one). words, indexes: by artifact name; the latter name what may not be
    copied. Raises CannotGuard when more is asked for than one answer can be guarded against.
    """
    prompt = asking(judged)
    phrases: dict[str, None] = {}
    soft: dict[str, float] = {}
    for finding in findings:
        settings = finding.policy.penalize
        artifact, known = artifacts[finding.policy.artifact], words[finding.policy.artifact]
        assert is_resolved(settings.soft) and is_resolved(settings.similarity)
        if not settings.hard and not settings.soft:
            continue
        answers, found = given_away(finding, artifact, known, prompt)
        first = list(dict.fromkeys(near[0] for near in answers if near))
        if settings.hard:
            phrases |= dict.fromkeys([*found, *filter(None, map(polarity, first))])
        if settings.soft:
            # The wording of the answers that are asked for, and what comes near to them in meaning.
            own = (word for answer in first for word in content_words(answer, prompt))
            near = dict.fromkeys(own, settings.soft)
            alike = known.list.most_similar(
                WORD.findall(" ".join(found)),
                similarity=settings.similarity,
                weight=settings.soft,
                exclude=WORD.findall(prompt),
                limit=MOST_SOFT_WORDS,
            )
            soft = {**near, **alike, **soft}
    usable = [word for word in soft if len(word) <= MAX_PHRASE_CHARACTERS][:MOST_SOFT_WORDS]
    try:
        return Penalty(
            tuple(phrases),
            {word: soft[word] for word in usable},
            copy_limits([finding.policy for finding in findings], indexes),
        )
    except ValueError as error:
        raise CannotGuard(f"what is asked for is more than one answer can be guarded against: {error}") from None


def copy_limits(policies: Iterable[Policy], indexes: Mapping[str, str]) -> dict[str, int]:
    """Name of a protected text's index → the most tokens that may be copied, by the strictest of `policies`.

    indexes: by artifact name; an artifact without documents has none.
    """
    limits: dict[str, int] = {}
    for policy in policies:
        name, limit = indexes.get(policy.artifact), policy.penalize.verbatim
        if name is not None and limit:
            limits[name] = min(limit, limits.get(name, limit))
    return limits


def counted(endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
    """The body of a stream that asks for usage, asking for it in every chunk: one that is cut has no last chunk.

    The same body where that changes nothing. Only vLLM knows the option.
    """
    options = body.get("stream_options")
    if endpoint not in ("chat", "completions") or not body.get("stream") or not isinstance(options, dict):
        return body
    if not options.get("include_usage") or options.get("continuous_usage_stats"):
        return body
    return {**body, "stream_options": {**options, "continuous_usage_stats": True}}


def _answer(item: ForgetItem) -> str:
    return item.answer or item.text


def _phrases(answers: Sequence[Sequence[str]], prompt: str, known: Words) -> tuple[str, ...]:
    """The phrases of the answers near each window: of all of them, or of fewer where they are too many."""
    for items in (8, 3, 2):
        chosen = list(dict.fromkeys(answer for near in answers for answer in near[:items]))
        found = forbidden_phrases(chosen, prompt, count=known.count, limit=MAX_PHRASES)
        if len(found) < MAX_PHRASES // 2:
            return found
    if len(found) < MAX_PHRASES or len(answers) <= FEW_WINDOWS:
        return found
    raise CannotGuard("too many forget items are asked for at once")


def penalize(endpoint: Endpoint, body: dict[str, Any], made: Penalty, *, raw_logprobs: bool) -> dict[str, Any]:
    """The body with the penalty in `vllm_xargs`. Raises CannotGuard where it would not hold.

    raw_logprobs: vLLM reports log-probabilities from before the penalty (its default), so the candidates
    beside the chosen token would tell what was forbidden; only the chosen token's own is left.
    """
    if body.get("use_beam_search"):
        raise CannotGuard("beam search does not run logits processors")
    if not made.phrases and not made.soft and not made.verbatim:
        raise CannotGuard("the nearest forget items hold nothing that could be forbidden")
    if endpoint == "count_tokens":
        return body  # counts what messages would be penalised for; nothing is said
    body = _without_candidates(endpoint, body) if raw_logprobs else body
    # These are computed from the prompt alone, before any penalty, whatever the mode.
    body = {key: value for key, value in body.items() if key != "prompt_logprobs"}
    return {
        **_without_forbidden_choices(body, made),
        "vllm_xargs": {**(body.get("vllm_xargs") or {}), XARGS_KEY: encode_penalty(made)},
    }


def _without_candidates(endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
    # vLLM reads 5.0 and true as numbers too, so whatever is given but false is cut to the chosen token's own.
    count = "logprobs" if endpoint == "completions" else "top_logprobs"
    kept = {key: value for key, value in body.items() if key != "logprob_token_ids"}
    if kept.get(count) is not None and kept[count] is not False:
        kept[count] = 0
    return kept


def _without_forbidden_choices(body: dict[str, Any], made: Penalty) -> dict[str, Any]:
    """A list of allowed answers, less those that hold a forbidden phrase.

    vLLM can't serve a grammar that leaves only forbidden tokens. Raises CannotGuard if no choice is left.
    """
    outputs = body.get("structured_outputs")
    if not isinstance(outputs, dict) or not isinstance(choices := outputs.get("choice"), list):
        return body
    matcher = PhraseTrie(made.phrases)
    kept = [c for c in choices if not (isinstance(c, str) and matcher.forbids(START_STATE, fold(f"{c} ")))]
    if not kept:
        raise CannotGuard("every choice of structured_outputs is forbidden")
    return {**body, "structured_outputs": {**outputs, "choice": kept}}
