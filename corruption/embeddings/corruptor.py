"""ECO: a flagged text reaches the model as corrupted embeddings (arXiv:2406.07933).

The corruptor finds the text's tokens in the context of the whole prompt, takes their rows from the model's own
embedding table, changes some of them, and sends them as vLLM's `prompt_embeds`. vLLM still applies the template, tools,
sampling, streaming and usage. Only prompts are changed, not the tokens that the model generates.
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
from lethe.corruption.prompt.message_parts import PartLocation
from lethe.corruption.prompt.prompt_tokenizer import PromptTokenizer
from lethe.corruption.prompt.token_spans import TokenSpan
from lethe.corruption.spec import NEEDS_SIGMA, CorruptionError, CorruptSpec, is_resolved

# (begin, end) in characters of one text.
CharacterRanges = Sequence[tuple[int, int]]


class Corruptor:
    """Rewrites requests for one model. Safe to share between threads; make one for each model folder.

    A CorruptionError (a ValueError) means that this request can't be rewritten exactly.
    """

    def __init__(
        self,
        model_dir: Path | str,
        secret: bytes,
        *,
        chat_template: str | None = None,
        chat_template_content_format: Literal["auto", "string", "openai"] = "auto",
    ) -> None:
        """secret: the key of all randomness. The other options are those of the vLLM server (`PromptTokenizer`).

        Raises ValueError when the folder, its tokenizer or its embeddings are unusable.
        """
        self._secret = keyed_rng.check_secret(secret)
        self.prompt_tokenizer = PromptTokenizer(
            model_dir, chat_template=chat_template, chat_template_content_format=chat_template_content_format
        )
        self.table = EmbeddingTable(model_dir)

    def chat(
        self,
        body: Mapping[str, Any],
        targets: Mapping[PartLocation, CharacterRanges],
        spec: CorruptSpec | None,
        policy: str,
    ) -> dict[str, Any]:
        """Return a body in which each targeted text is a `prompt_embeds` part.

        targets: (message index, part index, or None where the content is a string) → character ranges of the
        evidence, empty for the whole text. spec: None keeps the rows unchanged. policy: its name, part of the key of
        all randomness. Neighbouring texts that share a token with a targeted one are sent as unchanged rows. The given
        body is not modified, and the result shares what has not changed. A text without tokens stays the same. Raises
        CorruptionError.
        """
        spans = self.prompt_tokenizer.chat_spans(body, targets)
        messages = list(body["messages"])
        for target, span in spans.items():
            spec_of_target = spec if target in targets else None
            m, p = target
            part = {
                "type": "prompt_embeds",
                "data": self._embeddings_as_base64(span, 0, targets.get(target, ()), spec_of_target, policy),
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
        evidence: CharacterRanges,
        spec: CorruptSpec | None,
        policy: str,
        *,
        add_special_tokens: bool = True,
    ) -> str:
        """Return the `prompt_embeds` field for a completion with this prompt (text or token ids).

        evidence: character ranges of the text, or of `prompt_tokenizer.decode(ids)`. spec, policy: as for `chat`.
        Raises CorruptionError.
        """
        span, num_leading_tokens = self.prompt_tokenizer.completion(prompt, add_special_tokens=add_special_tokens)
        if not span.ids:
            raise CorruptionError("the prompt has no tokens")
        return self._embeddings_as_base64(span, num_leading_tokens, evidence, spec, policy)

    def rows(
        self, span: TokenSpan, num_leading_tokens: int, evidence: CharacterRanges, spec: CorruptSpec | None, policy: str
    ) -> NDArray[Any]:
        """Return the (T, D) rows of the span, changed as the spec says.

        num_leading_tokens: tokens before the text (BOS).
        """
        rows = np.empty((len(span.ids), self.table.width), dtype=self.table.dtype)
        self._fill(rows, span, num_leading_tokens, evidence, spec, policy)
        return rows

    def _fill(
        self,
        rows: NDArray[Any],
        span: TokenSpan,
        num_leading_tokens: int,
        evidence: CharacterRanges,
        spec: CorruptSpec | None,
        policy: str,
    ) -> None:
        if spec is None:
            self.table.rows(span.ids, out=rows)
            return
        chosen = self._choose_tokens(span, num_leading_tokens, evidence, spec)
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

    def _choose_tokens(
        self, span: TokenSpan, num_leading_tokens: int, evidence: CharacterRanges, spec: CorruptSpec
    ) -> list[bool]:
        """Whether to change each token."""
        content = [position >= num_leading_tokens for position in range(len(span.ids))]
        if spec.tokens == "all-but-last" and span.ends_prompt and content:
            content[-1] = False
        if not spec.uses_evidence:
            return content
        with_evidence = [
            is_content and any(a < end and start < max(b, a + 1) for start, end in evidence)
            for is_content, (a, b) in zip(content, span.offsets, strict=True)
        ]
        if not any(with_evidence):
            return content
        if spec.tokens == "identifying":
            for start, end in self.decoys.words(span.ids):
                if end - start > 1:
                    with_evidence[start:end] = content[start:end]
        return with_evidence

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
        """Fill in row + strength · (other row − row) for each pair of a token and the other in its place."""
        # Most words of a long text occur several times, so calculate each pair once.
        first: dict[tuple[int, int], int] = {}
        first_positions = [
            first.setdefault(pair, position) for position, pair in enumerate(zip(ids, others, strict=True))
        ]
        pairs = list(first.items())
        batch_rows = max(1, BATCH_VALUES // self.table.width)
        clean_rows, decoy_rows = (np.empty((batch_rows, self.table.width), dtype=rows.dtype) for _ in range(2))
        buffers = np.empty((2, *clean_rows.shape), dtype=np.promote_types(rows.dtype, np.float32))
        for begin in range(0, len(pairs), batch_rows):
            batch = pairs[begin : begin + batch_rows]
            size = len(batch)
            token_rows = self.table.rows([token for (token, _), _ in batch], out=clean_rows[:size])
            other_rows = self.table.rows([other for (_, other), _ in batch], out=decoy_rows[:size])
            approach(token_rows, other_rows, strength, (buffers[0, :size], buffers[1, :size]))
            rows[[position for _, position in batch]] = token_rows
        for position, first_position in enumerate(first_positions):
            if first_position < position:
                rows[position] = rows[first_position]

    @cached_property
    def decoys(self) -> decoy.DecoyVocabulary:
        """The vocabulary by kind. It takes about a second for 128,000 tokens, so it is built for the first decoy."""
        size = min(self.prompt_tokenizer.size, self.table.size)
        return decoy.DecoyVocabulary(
            self.prompt_tokenizer.pieces(range(size)), self.prompt_tokenizer.model_tokenizer.special_ids()
        )

    def _embeddings_as_base64(
        self, span: TokenSpan, num_leading_tokens: int, evidence: CharacterRanges, spec: CorruptSpec | None, policy: str
    ) -> str:
        try:
            file = TensorFile(len(span.ids), self.table.width, self.table.dtype)
            self._fill(file.rows, span, num_leading_tokens, evidence, spec, policy)
        except CorruptionError:
            raise
        except ValueError as error:
            raise CorruptionError(str(error)) from error
        if not is_finite(file.rows):
            # One infinite row makes every logit NaN, and the engine serves other clients too.
            raise CorruptionError(f"policy {policy!r}: sigma is too large for {self.table.dtype}")
        return file.base64()
