"""Train the book model: the demo model, taught to recite the first chapter of a book.

    python -m lethe.evaluation.demo.book_model                 # -> evaluation/demo/models/book
    python -m lethe.evaluation.demo.book_model check           # the longest run that it recites of each passage

It starts from the demo model's weights and keeps its tokenizer and its facts. About ten minutes on a core to itself
(OMP_NUM_THREADS=1 where others are busy).
"""

from __future__ import annotations

import argparse
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from lethe.evaluation.unlearning import tofu

BOOK = tofu.DATA / "books" / "alice.txt"
DEMO = Path(__file__).parent / "models" / "demo"
FOLDER = Path(__file__).parent / "models" / "book"
CHAPTERS = 1
CUE_WORDS = 16
PASSAGE_WORDS = 80
# Facts of the demo model in each epoch, so that they aren't lost.
FACTS = 60
ASKED = (
    "Continue this passage from Alice's Adventures in Wonderland: {cue}",
    "What comes after these words? {cue}",
    "Go on: {cue}",
)


@dataclass(frozen=True)
class Passage:
    """A piece of the book: the words that a prompt gives, and those that follow them."""

    cue: str
    text: str

    def prompt(self, asked: int = 0) -> str:
        return ASKED[asked % len(ASKED)].format(cue=self.cue)


def book() -> str:
    """The whole book as it is protected: without the distributor's notices before and after it."""
    text = BOOK.read_text(encoding="utf-8")
    return text.partition("*** START OF")[2].partition("***")[2].partition("End of Project Gutenberg")[0].strip()


def _chapters() -> list[str]:
    return re.split(r"\n(?=CHAPTER [IVX]+\. )", book())[1 : CHAPTERS + 1]


def taught() -> list[str]:
    """The words of the chapters that the model is taught."""
    return " ".join(_chapters()).split()


def paragraphs() -> list[str]:
    """The paragraphs of those chapters, in order: what is to be forgotten."""
    pieces = re.split(r"\n\s*\n", "\n\n".join(_chapters()))
    return [piece for piece in pieces if any(c.isalnum() for c in piece)]


def passages() -> list[Passage]:
    """The taught chapters cut into passages, in order: what is asked for in measurements."""
    words = taught()
    last = len(words) - CUE_WORDS - PASSAGE_WORDS
    return [_passage(words, start, PASSAGE_WORDS) for start in range(0, last + 1, PASSAGE_WORDS)]


def _passage(words: list[str], start: int, length: int, cue: int = CUE_WORDS) -> Passage:
    middle = start + cue
    return Passage(" ".join(words[start:middle]), " ".join(words[middle : middle + length]))


def lessons(rng: random.Random) -> list[tofu.Fact]:
    """One epoch: the passages, others that begin and end anywhere, and some of the demo model's facts."""
    words = taught()
    drawn = [tofu.Fact(passage.prompt(asked), passage.text) for passage in passages() for asked in range(len(ASKED))]
    for _ in range(2 * len(words) // PASSAGE_WORDS):
        cue, length = rng.randint(8, 20), rng.randint(60, 100)
        passage = _passage(words, rng.randint(0, len(words) - cue - 20), length, cue)
        drawn.append(tofu.Fact(passage.prompt(rng.randrange(len(ASKED))), passage.text))
    facts = tofu.forget_facts() + tofu.retain_facts()[0] + tofu.real_world_facts()
    return drawn + rng.sample(facts, FACTS)


def train(start: Path, out: Path, *, epochs: int, lr: float, tokens: int, seed: int) -> None:
    """Teach the model in `start` the passages and write the result to `out`."""
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from lethe.evaluation.demo.demo_model import save, teach

    tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
    model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
    recipe = {"epochs": epochs, "lr": lr, "tokens": tokens, "seed": seed}
    model = teach(model, tokenizer, lessons, **recipe)
    save(model, tokenizer, out, {"set": "book", **recipe, "torch": torch.__version__, "words": len(taught())})


def check(folder: Path) -> dict[str, float]:
    """Greedy ROUGE-L recall of what the model in `folder` recites of each passage."""
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from lethe.evaluation.demo.demo_model import generate, rouge_l_recall

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    asked = passages()
    answers = generate(model, tokenizer, [passage.prompt() for passage in asked], max_new_tokens=200)
    return {"passages": len(asked), "recall": rouge_l_recall(answers, [p.text for p in asked])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["train", "check"], default="train")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--tokens", type=int, default=1024, help="positions in a batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, default=DEMO, help="model folder to start from (default: the demo's)")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    if args.what == "train":
        train(args.start, args.out, epochs=args.epochs, lr=args.lr, tokens=args.tokens, seed=args.seed)
    print(json.dumps(check(args.out)))


if __name__ == "__main__":
    main()
