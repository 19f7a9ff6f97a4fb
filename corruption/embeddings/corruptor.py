"""ECO: a flagged text reaches the model as corrupted embeddings (arXiv:2406.07933).

The text's tokens are taken in the context of the whole prompt, their rows from the model's own table,
some of them changed, and sent as vLLM's `prompt_embeds`. Template, tools, sampling, streaming and
usage stay vLLM's work. Only prompts are touched; what the model goes on to generate is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lethe.corruption.embeddings import decoy, keyed_rng
from lethe.corruption.embeddings.embedding_table import EmbeddingTable
from lethe.corruption.embeddings.noise import BATCH_VALUES, FUNCTIONS, approach, is_finite
from lethe.corruption.embeddings.torch_format import TensorFile
from lethe.corruption.prompt.message_parts import TextTarget, replaceable_texts
from lethe.corruption.prompt.prompt_tokenizer import PromptTokenizer
from lethe.corruption.prompt.token_spans import TokenSpan
from lethe.corruption.spec import NEEDS_SIGMA, CorruptionError, CorruptSpec, is_resolved

__all__ = ["CorruptSpec", "CorruptionError", "Corruptor"]

CharacterRanges = Sequence[tuple[int, int]]


class Corruptor:
    """One model's rewriter. Safe to share between threads; keep one per model folder.

    CorruptionError (a ValueError) means that this request can't be rewritten faithfully.
    """

    def __init__(
        self,
        model_dir: Path | str,
        secret: bytes,
        *,
        chat_template: str | None = None,
        chat_template_content_format: Literal["auto", "string", "openai"] = "auto",
    ) -> None:
        """Raises ValueError when the folder, its tokenizer or its embeddings are unusable."""
        self._secret = keyed_rng.check_secret(secret)
        self.prompt_tokenizer = PromptTokenizer(
            model_dir, chat_template=chat_template, chat_template_content_format=chat_template_content_format
        )
        self.table = EmbeddingTable(model_dir)

    def chat(
        self,
        body: Mapping[str, Any],
        targets: Mapping[TextTarget, CharacterRanges],
        spec: CorruptSpec | None,
        policy: str,
    ) -> dict[str, Any]:
        """A new body in which each targeted text is a `prompt_embeds` part.

        targets: (message index, part index, or None where content is a string) → character ranges of the
        evidence, empty for the whole text. All else is the body's own: it is not modified, and shares
        what didn't change. A text without tokens stays as it is.
        """
        spans = self.prompt_tokenizer.chat_spans(body, targets)
        messages = list(body["messages"])
        for target, span in spans.items():
            change = spec if target in targets else None
            m, p = target
            part = {
                "type": "prompt_embeds",
                "data": self._data(span, 0, targets.get(target, ()), change, policy),
            }
            if p is None:
                messages[m] = {**messages[m], "content": [part]}
            else:
                content = list(messages[m]["content"])
                content[p] = part
                messages[m] = {**messages[m], "content": content}
        return {**body, "messages": messages}

    def completion(
        self,
        prompt: str | Sequence[int],
        spans: CharacterRanges,
        spec: CorruptSpec | None,
        policy: str,
        *,
        add_special_tokens: bool = True,
    ) -> str:
        """The `prompt_embeds` field of a completion that has this prompt, text or token ids.

        spans: evidence as character ranges of the text, or of `text.decode(ids)`.
        """
        span, front = self.prompt_tokenizer.completion(prompt, add_special_tokens=add_special_tokens)
        if not span.ids:
            raise CorruptionError("the prompt has no tokens")
        return self._data(span, front, spans, spec, policy)

    def clean_chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Every text of the body as its own embeddings, unchanged: must answer as the text does."""
        return self.chat(body, dict.fromkeys(replaceable_texts(body["messages"]), ()), None, "")

    def clean_completion(self, prompt: str | Sequence[int], *, add_special_tokens: bool = True) -> str:
        """The prompt as its own embeddings, unchanged."""
        return self.completion(prompt, (), None, "", add_special_tokens=add_special_tokens)

    def rows(
        self, span: TokenSpan, front: int, evidence: CharacterRanges, spec: CorruptSpec | None, policy: str
    ) -> NDArray[Any]:
        """(T, D) rows of the span, changed as the spec says. front: tokens before the text (BOS)."""
        rows = np.empty((len(span.ids), self.table.width), dtype=self.table.dtype)
        self._fill(rows, span, front, evidence, spec, policy)
        return rows

    def _fill(
        self,
        rows: NDArray[Any],
        span: TokenSpan,
        front: int,
        evidence: CharacterRanges,
        spec: CorruptSpec | None,
        policy: str,
    ) -> None:
        if spec is None:
            self.table.rows(span.ids, out=rows)
            return
        chosen = self._chosen(span, front, evidence, spec)
        if spec.function == "decoy":
            self._fill_decoys(rows, span, chosen, spec, policy)
            return
        self.table.rows(span.ids, out=rows)
        assert spec.dims != "tuned"
        dims = self.table.width if spec.dims == "all" else spec.dims
        arguments: dict[str, Any] = {"dims": dims, "select": spec.select, "out": rows}
        arguments["rng"] = keyed_rng.keyed_generator(self._secret, policy, span.ids)
        if spec.function in NEEDS_SIGMA:
            assert spec.sigma is not None and is_resolved(spec.sigma)
            arguments["sigma"] = spec.sigma * (self.table.row_rms if spec.sigma_unit == "rms" else 1.0)
        try:
            FUNCTIONS[spec.function](rows, np.array(chosen, dtype=np.bool_), **arguments)
        except ValueError as error:
            raise CorruptionError(f"policy {policy!r}: {error}") from error

    def _chosen(self, span: TokenSpan, front: int, evidence: CharacterRanges, spec: CorruptSpec) -> list[bool]:
        """Which tokens to change."""
        content = [position >= front for position in range(len(span.ids))]
        if spec.tokens == "all-but-last" and span.final and content:
            content[-1] = False
        if not spec.uses_evidence:
            return content
        marked = [
            inside and any(a < end and start < max(b, a + 1) for start, end in evidence)
            for inside, (a, b) in zip(content, span.offsets, strict=True)
        ]
        if not any(marked):
            return content
        if spec.tokens == "identifying":
            for start, end in self.decoys.words(span.ids):
                if end - start > 1:
                    marked[start:end] = content[start:end]
        return marked

    def _fill_decoys(
        self, rows: NDArray[Any], span: TokenSpan, chosen: Sequence[bool], spec: CorruptSpec, policy: str
    ) -> None:
        assert is_resolved(spec.strength)
        ids = self.decoys.replace(span.ids, chosen, secret=self._secret, policy=policy)
        if spec.strength == 1.0:
            self.table.rows(ids, out=rows)
            return
        self._fill_between(rows, span.ids, ids, spec.strength)

    def _fill_between(self, rows: NDArray[Any], ids: Sequence[int], others: Sequence[int], strength: float) -> None:
        """Rows on the way from each token to the other in its place."""
        # Most words of a long text come again, and with them the same pair.
        first: dict[tuple[int, int], int] = {}
        known = [first.setdefault(pair, place) for place, pair in enumerate(zip(ids, others, strict=True))]
        pairs = list(first.items())
        many = max(1, BATCH_VALUES // self.table.width)
        clean, goal = (np.empty((many, self.table.width), dtype=rows.dtype) for _ in range(2))
        room = np.empty((2, *clean.shape), dtype=np.promote_types(rows.dtype, np.float32))
        for begin in range(0, len(pairs), many):
            some = pairs[begin : begin + many]
            here = self.table.rows([token for (token, _), _ in some], out=clean[: len(some)])
            there = self.table.rows([other for (_, other), _ in some], out=goal[: len(some)])
            approach(here, there, strength, (room[0, : len(some)], room[1, : len(some)]))
            rows[[place for _, place in some]] = here
        for place, same in enumerate(known):
            if same < place:
                rows[place] = rows[same]

    @cached_property
    def decoys(self) -> decoy.DecoyVocabulary:
        """The vocabulary by kind: about a second for 128,000 tokens, so it waits for the first decoy."""
        size = min(self.prompt_tokenizer.size, self.table.size)
        return decoy.DecoyVocabulary(
            self.prompt_tokenizer.pieces(range(size)), self.prompt_tokenizer.model_tokenizer.special_ids()
        )

    def _data(
        self, span: TokenSpan, front: int, evidence: CharacterRanges, spec: CorruptSpec | None, policy: str
    ) -> str:
        try:
            file = TensorFile(len(span.ids), self.table.width, self.table.dtype)
            self._fill(file.rows, span, front, evidence, spec, policy)
        except CorruptionError:
            raise
        except ValueError as error:
            raise CorruptionError(str(error)) from error
        if not is_finite(file.rows):
            # One row of infinities makes every logit NaN, and the engine serves others too.
            raise CorruptionError(f"policy {policy!r}: sigma is too large for {self.table.dtype}")
        return file.base64()
