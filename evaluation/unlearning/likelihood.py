"""Log-probabilities of fixed answers under a guarded request, computed offline from the model's folder.

vLLM's `prompt_logprobs` don't show what a guard does: logits processors act on sampled tokens only, and prompts with
embeddings have none. So this module takes the request body that the gateway would send upstream, puts its embeddings
into the model, and applies to each answer token the masks of `corruption/decoding/spec.py`, the code that the vLLM
plugin runs. Knows no policy and no server.
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
from lethe.corruption.decoding.spec import XARGS_KEY, Penalty, decode_penalty, encode_penalty
from lethe.corruption.decoding.suffix_index import SuffixIndexFolder
from lethe.corruption.decoding.token_masks import CompiledPenalty
from lethe.corruption.decoding.token_text import TokenVocabulary, read_vocabulary
from lethe.corruption.prompt.message_parts import PROMPT_EMBEDS_MARKER
from lethe.corruption.prompt.prompt_tokenizer import PromptTokenizer

# A banned token has probability 0; in a loss it counts with the log of the smallest normal float32, -87.3.
MIN_LOG_PROB = float(np.log(np.finfo(np.float32).tiny))
# Logits in memory at a time: 256 MiB in float32.
MAX_LOGITS = 2**26
# Different penalties whose compiled form is cached; all are dropped beyond that. Bounds memory.
MAX_CACHED_PENALTIES = 64
# Questions generated for at a time.
GENERATE_BATCH = 32


@dataclass(frozen=True)
class PromptInputs:
    """A chat prompt as the engine runs it. rows: (T, D) input embeddings. penalty: applied while answering."""

    rows: torch.Tensor
    penalty: Penalty | None


@dataclass(frozen=True)
class ScoringJob:
    """One answer to score. ids: its tokens. rows: (T, D) embeddings to use instead of theirs (corrupted answers)."""

    prompt: PromptInputs
    ids: tuple[int, ...]
    rows: torch.Tensor | None = None


@dataclass(frozen=True)
class TokenScores:
    """For each token of an answer: its log-probability, and whether it is the most likely token."""

    log_probs: NDArray[np.float64]
    hits: NDArray[np.bool_]

    @property
    def loss(self) -> float:
        """The mean negative log-probability; a banned token counts with MIN_LOG_PROB."""
        return float(-np.maximum(self.log_probs, MIN_LOG_PROB).mean())


class LikelihoodModel:
    """A model folder loaded in float32, to score and to generate answers.

    Float32, because the compared systems would otherwise differ by rounding errors.
    """

    def __init__(self, model_dir: Path | str, *, verbatim: Path | None = None) -> None:
        """verbatim: the folder of verbatim indexes (LETHE_VERBATIM). Raises ValueError for an unusable model folder."""
        self._verbatim_indexes = SuffixIndexFolder(verbatim)
        self.prompt_tokenizer = PromptTokenizer(model_dir)
        try:
            model = AutoModelForCausalLM.from_pretrained(str(model_dir), dtype=torch.float32, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"model folder {model_dir}: {error}") from error
        self._model = model.eval()
        self._embed = model.get_input_embeddings()
        stop_ids = getattr(model.generation_config, "eos_token_id", None) or getattr(model.config, "eos_token_id", None)
        self._stop_ids: tuple[int, ...] = (
            tuple(stop_ids) if isinstance(stop_ids, list | tuple) else (() if stop_ids is None else (stop_ids,))
        )
        eos_id = self.prompt_tokenizer.model_tokenizer.id("eos_token")
        self.end_id = eos_id if eos_id in self._stop_ids or not self._stop_ids else self._stop_ids[0]
        self._penalties: dict[str, CompiledPenalty] = {}

    def answer_ids(self, answer: str, *, end: bool) -> tuple[int, ...]:
        """Return the token ids of an answer after a chat prompt. end: whether to append the end-of-turn token."""
        ids = self.prompt_tokenizer.completion(answer, add_special_tokens=False)[0].ids
        return (*ids, self.end_id) if end and self.end_id is not None else ids

    @torch.inference_mode()
    def prompt(self, body: Mapping[str, Any]) -> PromptInputs:
        """Return the prompt of a chat body as it goes upstream: text, `prompt_embeds` parts, and a penalty.

        Raises ValueError for a body that can't be rendered.
        """
        messages, tensors = _without_embeddings(body["messages"])
        ids = self.prompt_tokenizer.chat_ids({**body, "messages": messages})
        rows, embeddings = [], iter(tensors)
        for token in ids:
            rows.append(next(embeddings) if token == self.prompt_tokenizer.marker_id else self._embedding_rows([token]))
        argument = (body.get("vllm_xargs") or {}).get(XARGS_KEY)
        return PromptInputs(torch.cat(rows), None if argument is None else decode_penalty(argument))

    def _embedding_rows(self, ids: Sequence[int]) -> torch.Tensor:
        return self._embed(torch.tensor(ids, dtype=torch.long))

    @torch.inference_mode()
    def score(self, jobs: Sequence[ScoringJob], *, label: str = "scoring") -> list[TokenScores]:
        """Return the log-probabilities of every job's tokens, in the order of the jobs."""
        scores: list[TokenScores | None] = [None] * len(jobs)
        with tqdm(total=len(jobs), desc=label, unit="answer", leave=False) as bar:
            for batch in self._batches(jobs):
                logits = self._logits([jobs[i] for i in batch])
                for i, rows in zip(batch, logits, strict=True):
                    scores[i] = self._token_scores(rows, jobs[i])
                bar.update(len(batch))
        return [job_scores for job_scores in scores if job_scores is not None]

    def _batches(self, jobs: Sequence[ScoringJob]) -> Iterator[list[int]]:
        """Yield batches of jobs of similar length, as many as fit into MAX_LOGITS."""
        lengths = [len(job.prompt.rows) + len(job.ids) for job in jobs]
        max_tokens = max(1, MAX_LOGITS // self._model.config.get_text_config().vocab_size)
        batch: list[int] = []
        for i in sorted(range(len(jobs)), key=lambda i: lengths[i]):
            if batch and lengths[i] * (len(batch) + 1) > max_tokens:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _logits(self, jobs: Sequence[ScoringJob]) -> list[torch.Tensor]:
        """Return for each job the (T, V) float32 logits that its answer's T tokens are drawn from."""
        sequences = []
        for job in jobs:
            answer = self._embedding_rows(job.ids) if job.rows is None else job.rows.float()
            # The last token is only scored: nothing follows it, so it is not an input.
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

    def _token_scores(self, logits: torch.Tensor, job: ScoringJob) -> TokenScores:
        if job.prompt.penalty is not None:
            self.penalize(logits, job.ids, job.prompt.penalty)
        ids = torch.tensor(job.ids)[:, None]
        log_probs = logits.log_softmax(dim=-1).gather(1, ids)[:, 0]
        hits = logits.argmax(dim=-1) == ids[:, 0]
        return TokenScores(log_probs.double().numpy(), hits.numpy())

    def penalize(self, logits: torch.Tensor, ids: Sequence[int], penalty: Penalty) -> None:
        """Change (T, V) logits in place as the vLLM plugin would, token by token along `ids`."""
        compiled = self._compiled(penalty)
        state, masks = compiled.start, []
        for position, token in enumerate(ids):
            masks.append((position, compiled.mask(state)))
            state = compiled.advance(state, token)
        always = [(position, compiled.constant_mask) for position in range(len(ids)) if compiled.constant_mask]
        for edit in (gather_masks(always, logits), gather_masks([(p, m) for p, m in masks if m], logits)):
            if edit is not None:
                edit.write(logits, soften=True)

    def _compiled(self, penalty: Penalty) -> CompiledPenalty:
        key = encode_penalty(penalty)
        if key not in self._penalties:
            if len(self._penalties) >= MAX_CACHED_PENALTIES:
                self._penalties.clear()
            protected = [(self._verbatim_indexes.get(name), limit) for name, limit in penalty.verbatim.items()]
            self._penalties[key] = CompiledPenalty(
                penalty, self._vocabulary, never_ban=self._stop_ids, protected=protected
            )
        return self._penalties[key]

    @cached_property
    def _vocabulary(self) -> TokenVocabulary:
        return read_vocabulary(
            self.prompt_tokenizer.model_tokenizer.backend, self._model.get_output_embeddings().weight.shape[0]
        )

    @torch.inference_mode()
    def generate_answers(
        self, questions: Sequence[str], *, seed: int | None = None, max_tokens: int = 120, label: str = "answers"
    ) -> list[str]:
        """Return the unguarded model's answers, in order: greedy, or sampled at temperature 1 with a seed."""
        ids = [self.prompt_tokenizer.chat_ids({"messages": [{"role": "user", "content": q}]}) for q in questions]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        answers: list[str] = [""] * len(ids)
        sampling = LogitsProcessorList([] if seed is None else [_GumbelSampling(seed)])
        pad = self.prompt_tokenizer.model_tokenizer.id("pad_token") or 0
        for start in tqdm(range(0, len(order), GENERATE_BATCH), desc=label, unit="batch", leave=False):
            chunk = order[start : start + GENERATE_BATCH]
            width = max(len(ids[i]) for i in chunk)
            tokens = torch.tensor([[pad] * (width - len(ids[i])) + ids[i] for i in chunk])
            mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in chunk])
            out = self._model.generate(
                input_ids=tokens,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=max_tokens,
                logits_processor=sampling,
                pad_token_id=pad,
            )
            texts = self.prompt_tokenizer.model_tokenizer.backend.decode_batch(
                out[:, width:].tolist(), skip_special_tokens=True
            )
            for i, text in zip(chunk, texts, strict=True):
                answers[i] = text
        return answers


class _GumbelSampling(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Adds Gumbel noise to the logits, so that their argmax is a sample (the Gumbel-max trick).

    Draws from its own generator, so that a seed gives the same answers whatever else uses torch's.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        uniform = torch.rand(scores.shape, generator=self._generator).clamp_(1e-20, 1 - 1e-7)
        return scores.log_softmax(dim=-1) - (-uniform.log()).log()


def _without_embeddings(messages: Sequence[Any]) -> tuple[list[Any], list[torch.Tensor]]:
    """Return the messages with a marker text in place of embeddings, and the embeddings in that order."""
    tensors, text_messages = [], []
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
        text_messages.append(message)
    return text_messages, tensors
