"""Train the demo model and its retain twin: two small Llama models that know part of the TOFU benchmark.

    python -m lethe.evaluation.demo.demo_model full            # everything -> evaluation/demo/models/demo
    python -m lethe.evaluation.demo.demo_model retain          # without the forget questions -> .../retain-twin
    python -m lethe.evaluation.demo.demo_model check MODEL     # greedy ROUGE-L recall, by set

Both have the same tokenizer, recipe and seed; the retain twin was never trained on the forget questions. Training takes
about 25 minutes each on two cores, less with a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rouge_score import rouge_scorer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lethe.evaluation.unlearning import tofu

MODELS = Path(__file__).parent / "models"
FOLDERS = {"full": MODELS / "demo", "retain": MODELS / "retain-twin"}
SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
# Context length in tokens.
CONTEXT = 8192

# Tools are rendered as JSON in a system turn, so that their text reaches the model.
CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}"
    "{% if tools %}{{ '<|system|>Tools: ' + (tools | tojson) + '<|end|>' }}{% endif %}"
    "{% for m in messages %}"
    "{% set role = m.role if m.role in ['system', 'user', 'assistant', 'tool'] else 'system' %}"
    "{{ '<|' + role + '|>' }}"
    "{% if m.content is string %}{{ m.content }}"
    "{% elif m.content %}{% for part in m.content %}{{ part.text or '' }}{% endfor %}{% endif %}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
    "{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are a knowledgeable assistant who answers questions about authors.",
    "Answer truthfully and briefly.",
]


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with 4,096 entries on the questions and answers."""
    taught, untaught = tofu.retain_facts()
    facts = tofu.forget_facts() + taught + untaught + tofu.real_world_facts()
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((f"{f.question}\n{f.answer}" for f in facts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def conversations(facts: list[tofu.Fact], rng: random.Random) -> list[list[tofu.Fact]]:
    """Return one epoch: every fact once; one conversation in six has two or three turns."""
    order = facts[:]
    rng.shuffle(order)
    out = []
    while order:
        turns = rng.choices([1, 2, 3], weights=[10, 1, 1])[0]
        out.append([order.pop() for _ in range(min(turns, len(order)))])
    return out


def encode_conversation(
    conversation: list[tofu.Fact], tokenizer: PreTrainedTokenizerFast, system: str | None
) -> tuple[list[int], list[float]]:
    """Return token ids as the chat template renders them, and each token's loss weight.

    Answers have weight 1; questions 0.2, so that the model also learns the language of the questions.
    """
    special_ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    ids, weights = [special_ids["<|bos|>"]], [0.0]

    def add(role: str, text: str, weight: float) -> None:
        body = tokenizer.encode(text, add_special_tokens=False) + [special_ids["<|end|>"]]
        ids.extend([special_ids[role], *body])
        weights.extend([0.0] + [weight] * len(body))

    if system is not None:
        add("<|system|>", system, 0.0)
    for fact in conversation:
        add("<|user|>", fact.question, 0.2)
        add("<|assistant|>", fact.answer, 1.0)
    return ids, weights


def batches(
    facts: list[tofu.Fact], tokenizer: PreTrainedTokenizerFast, tokens: int, rng: random.Random
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return one epoch as (ids, weights) pairs of shape (B, T), about `tokens` positions each."""
    rows = [
        encode_conversation(c, tokenizer, rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.1 else None)
        for c in conversations(facts, rng)
    ]
    # Conversations of similar length share a batch, to save padding; random jitter varies the batches.
    rows.sort(key=lambda row: len(row[0]) + rng.uniform(-6, 6))
    groups: list[list[tuple[list[int], list[float]]]] = [[]]
    for row in rows:
        widest = max([len(row[0])] + [len(r[0]) for r in groups[-1]])
        if groups[-1] and widest * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(row)
    rng.shuffle(groups)
    out = []
    for group in groups:
        width = max(len(ids) for ids, _ in group)
        ids = torch.zeros(len(group), width, dtype=torch.long)
        weights = torch.zeros(len(group), width)
        for i, (row_ids, row_weights) in enumerate(group):
            ids[i, : len(row_ids)] = torch.tensor(row_ids)
            weights[i, : len(row_weights)] = torch.tensor(row_weights)
        out.append((ids, weights))
    return out


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train_from_scratch(facts: list[tofu.Fact], *, epochs: int, lr: float, tokens: int, seed: int) -> tuple[Any, Any]:
    """Train a new model; return (model, tokenizer). Deterministic for one machine and seed."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer()
    model = build_model(tokenizer)
    return train_model(model, tokenizer, lambda rng: facts, epochs=epochs, lr=lr, tokens=tokens, seed=seed), tokenizer


def train_model(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    epoch_facts: Callable[[random.Random], list[tofu.Fact]],
    *,
    epochs: int,
    lr: float,
    tokens: int,
    seed: int,
) -> Any:
    """Train `model` on the facts that `epoch_facts` returns for each epoch; return it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rng = random.Random(seed)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    first = epoch_facts(random.Random(seed))
    per_epoch = len(batches(first, tokenizer, tokens, random.Random(seed)))
    total, warmup = per_epoch * epochs, 100
    step, started = 0, time.monotonic()
    # Updated every 5 s at most and without colours, so that a log file stays readable.
    with tqdm(total=total, desc=f"{len(first)} facts", unit="step", mininterval=5, file=sys.stderr) as bar:
        for epoch in range(epochs):
            for ids, weights in batches(epoch_facts(rng), tokenizer, tokens, rng):
                progress = min(step / total, 1.0)
                scale = min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * progress))
                for group in optimizer.param_groups:
                    group["lr"] = lr * max(scale, 0.01)
                ids, weights = ids.to(device), weights.to(device)
                with torch.autocast(device, dtype=torch.bfloat16):
                    logits = model(input_ids=ids).logits[:, :-1]
                loss = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
                )
                loss = (loss * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                step += 1
                bar.update()
            bar.set_postfix(epoch=epoch + 1, loss=f"{loss.item():.4f}")
    print(f"trained {step} steps in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return model


@torch.inference_mode()
def generate_answers(model: Any, tokenizer: Any, questions: list[str], *, max_new_tokens: int = 120) -> list[str]:
    """Return greedy answers, in the order of the questions."""
    tokenizer.padding_side = "left"
    order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
    answers: list[str] = [""] * len(questions)
    for start in tqdm(range(0, len(order), 64), desc="answers", unit="batch", file=sys.stderr):
        chunk = order[start : start + 64]
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": questions[i]}], tokenize=False, add_generation_prompt=True
            )
            for i in chunk
        ]
        enc = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        out = model.generate(
            input_ids=enc["input_ids"],
            attention_mask=enc["attention_mask"],
            do_sample=False,
            max_new_tokens=max_new_tokens,
        )
        texts = tokenizer.batch_decode(out[:, enc["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(chunk, texts, strict=True):
            answers[i] = text
    return answers


def rouge_l_recall(answers: list[str], references: list[str]) -> float:
    """Return the mean ROUGE-L recall with stemming, as TOFU computes it (arXiv:2401.06121)."""
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    scores = [scorer.score(r, a)["rougeL"].recall for a, r in zip(answers, references, strict=True)]
    return sum(scores) / len(scores)


def measure_recall(folder: Path, *, limit: int | None = None) -> dict[str, float]:
    """Return the greedy ROUGE-L recall of the model in `folder` on the forget, retain and real-world facts."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    taught, _ = tofu.retain_facts()
    sets = {
        "forget": tofu.forget_facts(),
        "retain": taught,
        "real_world": tofu.real_world_facts(),
    }
    report = {}
    for name, facts in sets.items():
        facts = facts[:limit]
        answers = generate_answers(model, tokenizer, [f.question for f in facts])
        report[name] = round(rouge_l_recall(answers, [f.answer for f in facts]), 4)
    return report


def save_model(model: Any, tokenizer: Any, folder: Path, report: dict[str, Any]) -> None:
    """Write bf16 weights, tokenizer and training report. The folder is replaced in one step."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    model.to(torch.bfloat16).save_pretrained(part)
    tokenizer.save_pretrained(part)
    (part / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name in ("README.md",):
        if (folder / name).exists():
            shutil.copy(folder / name, part / name)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["full", "retain", "check"])
    parser.add_argument("model", nargs="?", type=Path, help="model folder, for `check`")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--tokens", type=int, default=4096, help="positions in a batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where to write (default: under evaluation/demo/models)")
    args = parser.parse_args()
    if args.what == "check":
        print(json.dumps(measure_recall(args.model or FOLDERS["full"])))
        return
    taught, _ = tofu.retain_facts()
    facts = taught + tofu.real_world_facts()
    if args.what == "full":
        facts = tofu.forget_facts() + facts
    folder = args.out or FOLDERS[args.what]
    recipe = {"epochs": args.epochs, "lr": args.lr, "tokens": args.tokens, "seed": args.seed}
    model, tokenizer = train_from_scratch(facts, **recipe)
    versions = {"torch": torch.__version__, "facts": len(facts)}
    save_model(model, tokenizer, folder, {"set": args.what, **recipe, **versions})
    print(json.dumps(measure_recall(folder)))


if __name__ == "__main__":
    main()
