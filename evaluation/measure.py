"""Measure the demo through a running gateway: what was forgotten, what leaked, what it cost the rest.

    make demo                       # in one terminal
    python -m evaluation.measure    # in another; --quick for a tenth of it

Sends every question to the gateway under the demo's three model names, and to vLLM directly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import APIStatusError, AsyncOpenAI
from tqdm import tqdm

from evaluation import tofu
from evaluation.demo import WAYS
from evaluation.demo_model import FOLDERS, rouge_l_recall

CONCURRENT = 32


@dataclass(frozen=True)
class Answer:
    text: str
    prompt_tokens: int


class Asker:
    """Asks many questions at once and keeps their order."""

    def __init__(self, base_url: str) -> None:
        self._client = AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=600)
        self._free = asyncio.Semaphore(CONCURRENT)
        self.failed = 0

    async def all(self, model: str, questions: Sequence[str], *, stream: bool = False, label: str = "") -> list[Answer]:
        with tqdm(total=len(questions), desc=label or model, unit="answer", file=sys.stderr) as bar:
            return await asyncio.gather(*(self._one(model, q, stream, bar) for q in questions))

    async def _one(self, model: str, question: str, stream: bool, bar: Any) -> Answer:
        kwargs: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 120,
        }
        async with self._free:
            try:
                if not stream:
                    got = await self._client.chat.completions.create(**kwargs)
                    return Answer(got.choices[0].message.content or "", got.usage.prompt_tokens)
                text, tokens = [], 0
                chunks = await self._client.chat.completions.create(
                    **kwargs, stream=True, stream_options={"include_usage": True}
                )
                async for chunk in chunks:
                    text += [choice.delta.content or "" for choice in chunk.choices]
                    tokens = chunk.usage.prompt_tokens if chunk.usage else tokens
                return Answer("".join(text), tokens)
            except APIStatusError as error:
                self.failed += 1
                return Answer(f"<status {error.status_code}>", -1)
            finally:
                bar.update()


def rate(part: int, whole: int) -> dict[str, Any]:
    return {"count": part, "of": whole, "rate": round(part / max(whole, 1), 5)}


def leaks(answers: Sequence[Answer], secrets: Sequence[tofu.Secret]) -> dict[str, Any]:
    named = [tofu.holds(a.text, s.entity) for a, s in zip(answers, secrets, strict=True) if tofu.is_named(s.entity)]
    rest = [tofu.holds(a.text, s.entity) for a, s in zip(answers, secrets, strict=True) if not tofu.is_named(s.entity)]
    return {"named": rate(sum(named), len(named)), "rest": rate(sum(rest), len(rest))}


def twin_answers(questions: Sequence[str]) -> list[str]:
    """The retain twin's greedy answers, from its folder."""
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from evaluation.demo_model import generate

    model = LlamaForCausalLM.from_pretrained(FOLDERS["retain"], dtype=torch.bfloat16).eval()
    return generate(model, PreTrainedTokenizerFast.from_pretrained(FOLDERS["retain"]), list(questions))


async def measure(gateway: str, upstream: str, *, share: float, per_question: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    through, direct = Asker(gateway), Asker(upstream)

    def sample(rows: Sequence[Any]) -> list[Any]:
        return list(rows) if share >= 1 else rng.sample(list(rows), max(1, round(len(rows) * share)))

    forget, secrets = sample(tofu.forget_facts()), sample(tofu.secrets())
    report: dict[str, Any] = {"share": share, "seed": seed}

    corrupted = await through.all(WAYS["corrupt"], [f.question for f in forget], label="forget, corrupt")
    plain = await direct.all(WAYS["off"], [f.question for f in forget], label="forget, off")
    references = [f.answer for f in forget]
    twin = twin_answers([f.question for f in forget])
    report["forget_rouge_l_recall"] = {
        "off": round(rouge_l_recall([a.text for a in plain], references), 4),
        "corrupt": round(rouge_l_recall([a.text for a in corrupted], references), 4),
        "twin": round(rouge_l_recall(twin, references), 4),
    }
    same = [a.prompt_tokens == b.prompt_tokens for a, b in zip(plain, corrupted, strict=True)]
    report["forget_corrupt_prompt_tokens_equal"] = rate(sum(same), len(same))

    report["leaks"] = await _leaks(through, secrets, rng, per_question)
    report["elsewhere"] = await _elsewhere(through, direct, sample)
    # An answer that never came would count as forgotten: with any of these the figures mean nothing.
    report["failed_answers"] = through.failed + direct.failed
    return report


async def _leaks(
    through: Asker, secrets: Sequence[tofu.Secret], rng: random.Random, per_question: int
) -> dict[str, Any]:
    paraphrases = tofu.paraphrases()
    twin = [Answer(text, 0) for text in twin_answers([s.question for s in secrets])]
    found = {"twin": leaks(twin, secrets)}
    reworded = [(s, q) for s in secrets for q in rng.sample(paraphrases[s.question], per_question)]
    for stream in (False, True):
        how = "streamed" if stream else "whole"
        exact = await through.all(
            WAYS["penalize"], [s.question for s in secrets], stream=stream, label=f"secrets, penalize, {how}"
        )
        other = await through.all(
            WAYS["penalize"], [q for _, q in reworded], stream=stream, label=f"paraphrased, penalize, {how}"
        )
        found[f"penalize_exact_{how}"] = leaks(exact, secrets)
        found[f"penalize_paraphrased_{how}"] = leaks(other, [s for s, _ in reworded])
        if not stream:
            found["examples"] = [
                {"question": q, "secret": s.entity, "answer": a.text}
                for (s, q), a in zip(reworded, other, strict=True)
                if tofu.is_named(s.entity) and tofu.holds(a.text, s.entity)
            ][:20]
    corrupted = await through.all(WAYS["corrupt"], [s.question for s in secrets], label="secrets, corrupt")
    found["corrupt_exact_whole"] = leaks(corrupted, secrets)
    return found


async def _elsewhere(through: Asker, direct: Asker, sample: Any) -> dict[str, Any]:
    report = {}
    sets = {
        "retain": tofu.retain_facts()[0],
        "real_authors": tofu.read_facts("real_authors"),
        "world_facts": tofu.read_facts("world_facts"),
    }
    for name, facts in sets.items():
        questions = [f.question for f in sample(facts)]
        plain = await direct.all(WAYS["off"], questions, label=f"{name}, off")
        report[name] = {}
        for way in ("corrupt", "penalize"):
            got = await through.all(WAYS[way], questions, label=f"{name}, {way}")
            differs = [q for q, a, b in zip(questions, plain, got, strict=True) if a.text != b.text]
            report[name][way] = {"different": rate(len(differs), len(questions)), "examples": differs[:5]}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateway", default="http://127.0.0.1:8080")
    parser.add_argument("--upstream", default="http://127.0.0.1:8000")
    parser.add_argument("--paraphrases", type=int, default=3, help="paraphrases asked of each secret (up to 25)")
    parser.add_argument("--quick", action="store_true", help="a tenth of every set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the report here as well")
    args = parser.parse_args()
    begun = time.monotonic()
    report = asyncio.run(
        measure(
            args.gateway,
            args.upstream,
            share=0.1 if args.quick else 1.0,
            per_question=args.paraphrases,
            seed=args.seed,
        )
    )
    report["seconds"] = round(time.monotonic() - begun)
    text = json.dumps(report, indent=2, ensure_ascii=False)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")
    sys.exit(1 if report["failed_answers"] else 0)


if __name__ == "__main__":
    main()
