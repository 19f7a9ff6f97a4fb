"""Fine-tune an encoder to tell forget prompts from others, preferably on a GPU. Imports torch; serving never does.

The published method (ECO prompts, arXiv:2406.07933, appendix C.3): cross-entropy weighted by class, AdamW, a cosine
schedule, a tenth held out, and the epoch with the fewest missed forget prompts is kept. Two differences: the class is
read linearly from the mean of the last hidden states, which is the embedding that is exported, so that the rest of the
classifier stays the same; and long texts are trained on in chunks, where the published script truncates them.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from lethe.classifier.encoder import export
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.records import Record
from lethe.classifier.training import rows as corpus
from lethe.classifier.training import stages
from lethe.classifier.training.rows import request_text
from lethe.classifier.training.stages import Progress

# Word pieces of a text at most: what common encoders have positions for.
MAX_PIECES = 512
# Share of each class that is held out to choose the epoch: as published.
VALIDATION_SHARE = 0.1
# Factor on the unit embedding before the linear layer: with it, a head with weights of about 1 reaches logits of 16.
# Chosen, not measured.
EMBEDDING_SCALE = 16.0


@dataclass(frozen=True)
class FinetuneSettings:
    """The published hyper-parameters (ECO, appendix C.3). Gradients are not clipped, as published."""

    learning_rate: float = 2e-5
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-6
    weight_decay: float = 0.1
    warm_up: float = 0.1
    batch: int = 16
    epochs: int = 30
    dropout: float = 0.1


def finetune(
    forget: Sequence[Record],
    retain: Sequence[Record] | None,
    *,
    model: str | Path,
    target: Path,
    seed: int = 0,
    training: FinetuneSettings | None = None,
    progress: Progress = stages.no_progress,
) -> Encoder:
    """Train `model` (a folder or hub name), write it to `target` as a prepared encoder, and load that.

    target: a folder that must not exist; serving it needs no torch. Trains on a GPU if there is one. Deterministic on
    a CPU for equal rows, model and seed. Raises ValueError when there is nothing to forget, when `target` exists, and
    when the exported graph disagrees with the model.
    """
    if not forget:
        raise ValueError("nothing to forget: no rows")
    if target.exists():
        raise ValueError(f"{target} exists")
    folder = export.model_folder(str(model))
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        network = _Network(folder, training or FinetuneSettings())
        texts, labels = _labelled_texts(forget, retain or (), network)
        _train(network, texts, labels, np.random.default_rng(seed), progress)
    return _write_encoder(network, target)


class _Network(torch.nn.Module):
    """The encoder, its tokenizer, and a linear layer on the embedding."""

    def __init__(self, folder: Path, training: FinetuneSettings) -> None:
        super().__init__()
        rates = {"hidden_dropout_prob": training.dropout, "attention_probs_dropout_prob": training.dropout}
        self.settings = training
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.encoder: Any = AutoModel.from_pretrained(folder, **rates)
        self.dropout = torch.nn.Dropout(training.dropout)
        self.head = torch.nn.Linear(self.encoder.config.hidden_size, 2)
        positions = getattr(self.encoder.config, "max_position_embeddings", MAX_PIECES)
        # Some architectures reserve two positions for padding.
        self.limit = min(MAX_PIECES, positions - 2)

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """(B, 2) logits."""
        device = self.head.weight.device
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=self.limit, return_tensors="pt")
        batch = batch.to(device)
        hidden = self.encoder(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        embedding = functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        # The exported embedding has unit length; scaled, the linear layer can reach large logits.
        logits: torch.Tensor = self.head(self.dropout(embedding * EMBEDDING_SCALE))
        return logits


def _labelled_texts(
    forget: Sequence[Record], retain: Sequence[Record], network: _Network
) -> tuple[list[str], np.ndarray[Any, np.dtype[np.int64]]]:
    """Chunks of the forget, retain and background texts, each once, and their labels (1 = forget)."""
    forget_texts = {"".join(request_text(row).casefold().split()) for row in forget}
    others = [request_text(row) for row in retain] + list(corpus.background_prompts())
    others = [text for text in others if "".join(text.casefold().split()) not in forget_texts]
    pairs = [(chunk, 1) for row in forget for chunk in _encoder_chunks(request_text(row), network)]
    pairs += [(chunk, 0) for text in others for chunk in _encoder_chunks(text, network)]
    pairs = list(dict.fromkeys(pairs))
    return [text for text, _ in pairs], np.array([label for _, label in pairs])


def _encoder_chunks(text: str, network: _Network) -> Iterator[str]:
    """The text in chunks that the encoder can read."""
    split = network.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = split["offset_mapping"]
    size = network.limit - 2
    for first in range(0, len(offsets), size):
        last = offsets[min(first + size, len(offsets)) - 1]
        yield text[offsets[first][0] : last[1]]


def _train(
    network: _Network,
    texts: list[str],
    labels: np.ndarray[Any, np.dtype[np.int64]],
    rng: np.random.Generator,
    progress: Progress,
) -> None:
    settings = network.settings
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device)
    held_out = _held_out(labels, rng)
    rows = np.flatnonzero(~held_out)
    counts = np.bincount(labels[rows], minlength=2)
    loss = torch.nn.CrossEntropyLoss(torch.tensor(counts.sum() / np.maximum(counts, 1), dtype=torch.float32).to(device))
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    steps = settings.epochs * math.ceil(len(rows) / settings.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _learning_rate_factor(step, steps, settings.warm_up)
    )
    best: tuple[int, float] | None = None
    best_state: dict[str, torch.Tensor] = {}
    done = 0
    for _ in range(settings.epochs):
        network.train()
        order = rng.permutation(rows)
        for first in range(0, len(order), settings.batch):
            batch = order[first : first + settings.batch]
            optimizer.zero_grad()
            value = loss(network([texts[i] for i in batch]), torch.from_numpy(labels[batch]).to(device))
            value.backward()
            optimizer.step()
            schedule.step()
            done += 1
            progress(stages.FINETUNE, done, steps)
        errors = _errors(network, texts, labels, np.flatnonzero(held_out), loss)
        if best is None or errors < best:
            best = errors
            best_state = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
    network.load_state_dict(best_state)
    network.to("cpu").eval()


def _held_out(
    labels: np.ndarray[Any, np.dtype[np.int64]], rng: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """VALIDATION_SHARE of each class at random, but never all of one."""
    held_out = np.zeros(len(labels), dtype=bool)
    for label in (0, 1):
        rows = np.flatnonzero(labels == label)
        held_out[rng.permutation(rows)[: round(VALIDATION_SHARE * len(rows))]] = True
    return held_out


def _learning_rate_factor(step: int, steps: int, warm_up: float) -> float:
    """Factor on the learning rate: a linear warm-up, then half a cosine down to 0."""
    first = max(round(warm_up * steps), 1)
    if step < first:
        return (step + 1) / first
    return 0.5 * (1 + math.cos(math.pi * (step - first) / max(steps - first, 1)))


@torch.no_grad()
def _errors(
    network: _Network,
    texts: list[str],
    labels: np.ndarray[Any, np.dtype[np.int64]],
    rows: np.ndarray[Any, np.dtype[np.intp]],
    loss: torch.nn.CrossEntropyLoss,
) -> tuple[int, float]:
    """Missed forget prompts among the held-out rows, then the loss there; smaller is better."""
    if not len(rows):
        return 0, 0.0
    network.eval()
    size = network.settings.batch
    logits = torch.cat([network([texts[i] for i in rows[k : k + size]]) for k in range(0, len(rows), size)])
    expected = torch.from_numpy(labels[rows]).to(logits.device)
    missed = int(((expected == 1) & (logits.argmax(1) == 0)).sum())
    return missed, float(loss(logits, expected))


def _write_encoder(network: _Network, target: Path) -> Encoder:
    """Write the trained encoder as a prepared folder `target`, atomically, and load it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as place:
        whole = Path(place) / "whole"
        network.encoder.save_pretrained(whole)
        network.tokenizer.save_pretrained(whole)
        _write_model_files(whole, network)
        prepared = Path(place) / export.content_hash(whole)
        export.prepare_encoder(target.name, whole, prepared)
        os.rename(prepared, target)
    return Encoder(target)


def _write_model_files(folder: Path, network: _Network) -> None:
    """Write the files that make a model folder one of sentence-transformers: mean pooling, then unit length."""
    modules = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(modules)
    ]
    pooling = {"word_embedding_dimension": network.encoder.config.hidden_size, "pooling_mode_mean_tokens": True}
    for name, content in (
        ("modules.json", rows),
        ("sentence_bert_config.json", {"max_seq_length": network.limit, "do_lower_case": False}),
        ("1_Pooling/config.json", pooling),
    ):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    (folder / "2_Normalize").mkdir()
