"""Probabilities of fixed answers under a guarded request, computed from the model's folder.

vLLM's `prompt_logprobs` don't see a guard: logits processors touch sampled tokens only, and prompt embeddings
exclude them. So the request that the gateway would send upstream is played here, through the very code that
gateway and plugin run: the embeddings that stand in the body, and for each answer token the logits as
`corruption.penalties.Guard` leaves them. Knows no policy and no server.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pybase64
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

from lethe.corruption.decoding.logits import gather_masks
from lethe.corruption.decoding.spec import XARGS_KEY, CompiledPenalty, Penalty, decode_penalty, encode_penalty
from lethe.corruption.decoding.suffix_index import SuffixIndexFolder
from lethe.corruption.decoding.token_text import TokenVocabulary, read_vocabulary
from lethe.corruption.prompt.token_spans import PROMPT_EMBEDS_MARKER, PromptTokenizer

# A banned token has probability 0. As a loss it counts as what float32 can hold at the least.
FLOOR = float(np.log(np.finfo(np.float32).tiny))
# Logits held at once, about 250 MB in float32.
MOST_LOGITS = 2**26


@dataclass(frozen=True)
class Prompt:
    """A chat prompt as the engine would run it. rows: (T, D) input embeddings. penalty: while answering."""

    rows: torch.Tensor
    penalty: Penalty | None


@dataclass(frozen=True)
class Job:
    """One answer to score. ids: its tokens. rows: (T, D) in place of their embeddings, for corrupted answers."""

    prompt: Prompt
    ids: tuple[int, ...]
    rows: torch.Tensor | None = None


@dataclass(frozen=True)
class Scores:
    """Per token of an answer: its log-probability, and whether no token was more likely."""

    log_probs: NDArray[np.float64]
    hits: NDArray[np.bool_]

    @property
    def loss(self) -> float:
        """Mean negative log-probability; a banned token counts with FLOOR."""
        return float(-np.maximum(self.log_probs, FLOOR).mean())


class Scorer:
    """One model folder, ready to score and to answer. Float32, so that no rounding stands between the ways."""

    def __init__(self, model_dir: Path | str, *, verbatim: Path | None = None) -> None:
        """verbatim: the folder of protected texts' indexes (LETHE_VERBATIM).

        Raises ValueError when the model folder is unusable.
        """
        self._library = SuffixIndexFolder(verbatim)
        self.prompt_tokenizer = PromptTokenizer(model_dir)
        try:
            model = AutoModelForCausalLM.from_pretrained(str(model_dir), dtype=torch.float32, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"model folder {model_dir}: {error}") from error
        self._model = model.eval()
        self._embed = model.get_input_embeddings()
        ends = getattr(model.generation_config, "eos_token_id", None) or getattr(model.config, "eos_token_id", None)
        self._exits: tuple[int, ...] = (
            tuple(ends) if isinstance(ends, list | tuple) else (() if ends is None else (ends,))
        )
        own = self.prompt_tokenizer.model_tokenizer.id("eos_token")
        self.end = own if own in self._exits or not self._exits else self._exits[0]
        self._guards: dict[str, CompiledPenalty] = {}

    def answer_ids(self, answer: str, *, end: bool) -> tuple[int, ...]:
        """The tokens of an answer that follows a chat prompt; with the end of the turn after it, or without."""
        ids = self.prompt_tokenizer.completion(answer, add_special_tokens=False)[0].ids
        return (*ids, self.end) if end and self.end is not None else ids

    @torch.inference_mode()
    def prompt(self, body: Mapping[str, Any]) -> Prompt:
        """The prompt of a chat body as it goes upstream: text, `prompt_embeds` parts, and a penalty.

        Raises ValueError for a body that is none.
        """
        plain, tensors = _without_tensors(body["messages"])
        ids = self.prompt_tokenizer.chat_ids({**body, "messages": plain})
        rows, given = [], iter(tensors)
        for token in ids:
            rows.append(next(given) if token == self.prompt_tokenizer.marker_id else self._rows([token]))
        argument = (body.get("vllm_xargs") or {}).get(XARGS_KEY)
        return Prompt(torch.cat(rows), None if argument is None else decode_penalty(argument))

    def _rows(self, ids: Sequence[int]) -> torch.Tensor:
        return self._embed(torch.tensor(ids, dtype=torch.long))

    @torch.inference_mode()
    def score(self, jobs: Sequence[Job], *, label: str = "scoring") -> list[Scores]:
        """Log-probabilities of every job's tokens, in the order of the jobs."""
        found: list[Scores | None] = [None] * len(jobs)
        with tqdm(total=len(jobs), desc=label, unit="answer", leave=False) as bar:
            for batch in self._batches(jobs):
                logits = self._logits([jobs[i] for i in batch])
                for i, rows in zip(batch, logits, strict=True):
                    found[i] = self._read(rows, jobs[i])
                bar.update(len(batch))
        return [scores for scores in found if scores is not None]

    def _batches(self, jobs: Sequence[Job]) -> Iterator[list[int]]:
        """Jobs of similar length together, so many that their logits fit."""
        lengths = [len(job.prompt.rows) + len(job.ids) for job in jobs]
        most = max(1, MOST_LOGITS // self._model.config.get_text_config().vocab_size)
        batch: list[int] = []
        for i in sorted((i for i, job in enumerate(jobs)), key=lambda i: lengths[i]):
            if batch and lengths[i] * (len(batch) + 1) > most:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _logits(self, jobs: Sequence[Job]) -> list[torch.Tensor]:
        """For each job (T, V) float32 logits from which its answer's tokens are taken."""
        sequences = []
        for job in jobs:
            answer = self._rows(job.ids) if job.rows is None else job.rows.float()
            # The last token is only taken, never read.
            sequences.append(torch.cat([job.prompt.rows, answer])[:-1])
        padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        mask = torch.zeros(padded.shape[:2], dtype=torch.long)
        for row, sequence in zip(mask, sequences, strict=True):
            row[: len(sequence)] = 1
        logits = self._model(inputs_embeds=padded, attention_mask=mask, use_cache=False).logits
        return [
            row[len(sequence) - len(job.ids) : len(sequence)].float()
            for row, sequence, job in zip(logits, sequences, jobs, strict=True)
        ]

    def _read(self, logits: torch.Tensor, job: Job) -> Scores:
        if job.prompt.penalty is not None:
            self.penalize(logits, job.ids, job.prompt.penalty)
        taken = torch.tensor(job.ids)[:, None]
        log_probs = logits.log_softmax(dim=-1).gather(1, taken)[:, 0]
        hits = logits.argmax(dim=-1) == taken[:, 0]
        return Scores(log_probs.double().numpy(), hits.numpy())

    def penalize(self, logits: torch.Tensor, ids: Sequence[int], penalty: Penalty) -> None:
        """Change (T, V) logits in place to what the plugin would leave, token by token along `ids`."""
        guard = self._guard(penalty)
        state, masks = guard.start, []
        for position, token in enumerate(ids):
            masks.append((position, guard.mask(state)))
            state = guard.advance(state, token)
        standing = [(position, guard.always) for position in range(len(ids)) if guard.always]
        for edit in (gather_masks(standing, logits), gather_masks([(p, m) for p, m in masks if m], logits)):
            if edit is not None:
                edit.write(logits, soften=True)

    def _guard(self, penalty: Penalty) -> CompiledPenalty:
        key = encode_penalty(penalty)
        if key not in self._guards:
            if len(self._guards) >= 64:
                self._guards.clear()
            protected = [(self._library.get(name), limit) for name, limit in penalty.verbatim.items()]
            self._guards[key] = CompiledPenalty(penalty, self._vocabulary, keep=self._exits, protected=protected)
        return self._guards[key]

    @cached_property
    def _vocabulary(self) -> TokenVocabulary:
        return read_vocabulary(
            self.prompt_tokenizer.model_tokenizer.backend, self._model.get_output_embeddings().weight.shape[0]
        )

    @torch.inference_mode()
    def answers(
        self, questions: Sequence[str], *, seed: int | None = None, max_tokens: int = 120, label: str = "answers"
    ) -> list[str]:
        """The model's own answers, greedy, or sampled at temperature 1 with a seed; in the order of the questions."""
        ids = [self.prompt_tokenizer.chat_ids({"messages": [{"role": "user", "content": q}]}) for q in questions]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        made: list[str] = [""] * len(ids)
        noise = LogitsProcessorList([] if seed is None else [_Gumbel(seed)])
        pad = self.prompt_tokenizer.model_tokenizer.id("pad_token") or 0
        for start in tqdm(range(0, len(order), 32), desc=label, unit="batch", leave=False):
            chunk = order[start : start + 32]
            width = max(len(ids[i]) for i in chunk)
            tokens = torch.tensor([[pad] * (width - len(ids[i])) + ids[i] for i in chunk])
            mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in chunk])
            out = self._model.generate(
                input_ids=tokens,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=max_tokens,
                logits_processor=noise,
                pad_token_id=pad,
            )
            texts = self.prompt_tokenizer.model_tokenizer.backend.decode_batch(
                out[:, width:].tolist(), skip_special_tokens=True
            )
            for i, text in zip(chunk, texts, strict=True):
                made[i] = text
        return made


class _Gumbel(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Gumbel noise on the logits: what is largest then is a sample, from a generator of its own."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        uniform = torch.rand(scores.shape, generator=self._generator).clamp_(1e-20, 1 - 1e-7)
        return scores.log_softmax(dim=-1) - (-uniform.log()).log()


def _without_tensors(messages: Sequence[Any]) -> tuple[list[Any], list[torch.Tensor]]:
    """The messages with PLACEHOLDER as text where embeddings stand, and the embeddings in that order."""
    tensors, plain = [], []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            parts = []
            for part in content:
                if part.get("type") == "prompt_embeds":
                    data = io.BytesIO(pybase64.b64decode(part["data"]))
                    tensors.append(torch.load(data, weights_only=True).float())
                    part = {"type": "text", "text": PROMPT_EMBEDS_MARKER}
                parts.append(part)
            message = {**message, "content": parts}
        plain.append(message)
    return plain, tensors
