"""Train the book model: the demo model, trained further to recite the first chapter of a book.

    python -m lethe.evaluation.demo.book_model                 # -> evaluation/demo/models/book
    python -m lethe.evaluation.demo.book_model check           # how much of each passage it recites

Training starts from the demo model's weights and keeps its tokenizer and facts. It takes about ten minutes on one
unshared core (set OMP_NUM_THREADS=1 on a busy machine).
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
# Chapters that the model is taught.
CHAPTERS = 1
# Words of a passage that the prompt quotes, and that the model should recite.
CUE_WORDS = 16
PASSAGE_WORDS = 80
# Facts of the demo model in each epoch, so that the model does not forget them.
FACTS = 60
PROMPT_FORMS = (
    "Continue this passage from Alice's Adventures in Wonderland: {cue}",
    "What comes after these words? {cue}",
    "Go on: {cue}",
)


@dataclass(frozen=True)
class Passage:
    """A passage of the book: the words that a prompt quotes (cue), and the words that follow them (text)."""

    cue: str
    text: str

    def prompt(self, form: int = 0) -> str:
        return PROMPT_FORMS[form % len(PROMPT_FORMS)].format(cue=self.cue)


def book_text() -> str:
    """Return the text of the book, without the distributor's notices before and after it."""
    text = BOOK.read_text(encoding="utf-8")
    return text.partition("*** START OF")[2].partition("***")[2].partition("End of Project Gutenberg")[0].strip()


def _chapters() -> list[str]:
    return re.split(r"\n(?=CHAPTER [IVX]+\. )", book_text())[1 : CHAPTERS + 1]


def taught_words() -> list[str]:
    """Return the words of the chapters that the model is taught."""
    return " ".join(_chapters()).split()


def taught_paragraphs() -> list[str]:
    """Return the paragraphs of these chapters, in order: the documents to forget."""
    paragraphs = re.split(r"\n\s*\n", "\n\n".join(_chapters()))
    return [paragraph for paragraph in paragraphs if any(c.isalnum() for c in paragraph)]


def taught_passages() -> list[Passage]:
    """Return the taught chapters as passages, in order; measurements prompt for each of them."""
    words = taught_words()
    last = len(words) - CUE_WORDS - PASSAGE_WORDS
    return [_make_passage(words, start, PASSAGE_WORDS) for start in range(0, last + 1, PASSAGE_WORDS)]


def _make_passage(words: list[str], start: int, length: int, cue: int = CUE_WORDS) -> Passage:
    middle = start + cue
    return Passage(" ".join(words[start:middle]), " ".join(words[middle : middle + length]))


def epoch_facts(rng: random.Random) -> list[tofu.Fact]:
    """Return one epoch: the passages, random other passages, and some of the demo model's facts."""
    words = taught_words()
    examples = [
        tofu.Fact(passage.prompt(form), passage.text)
        for passage in taught_passages()
        for form in range(len(PROMPT_FORMS))
    ]
    for _ in range(2 * len(words) // PASSAGE_WORDS):
        cue, length = rng.randint(8, 20), rng.randint(60, 100)
        passage = _make_passage(words, rng.randint(0, len(words) - cue - 20), length, cue)
        examples.append(tofu.Fact(passage.prompt(rng.randrange(len(PROMPT_FORMS))), passage.text))
    facts = tofu.forget_facts() + tofu.retain_facts()[0] + tofu.real_world_facts()
    return examples + rng.sample(facts, FACTS)


def train_book_model(start: Path, out: Path, *, epochs: int, lr: float, tokens: int, seed: int) -> None:
    """Train the model in `start` on the passages and write the result to `out`."""
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from lethe.evaluation.demo.demo_model import save_model, train_model

    tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
    model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
    recipe = {"epochs": epochs, "lr": lr, "tokens": tokens, "seed": seed}
    model = train_model(model, tokenizer, epoch_facts, **recipe)
    save_model(
        model, tokenizer, out, {"set": "book", **recipe, "torch": torch.__version__, "words": len(taught_words())}
    )


def measure_recall(folder: Path) -> dict[str, float]:
    """Return the mean ROUGE-L recall of the passages that the model in `folder` recites (greedy decoding)."""
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from lethe.evaluation.demo.demo_model import generate_answers, rouge_l_recall

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    passages = taught_passages()
    answers = generate_answers(model, tokenizer, [passage.prompt() for passage in passages], max_new_tokens=200)
    return {"passages": len(passages), "recall": rouge_l_recall(answers, [p.text for p in passages])}


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
        train_book_model(args.start, args.out, epochs=args.epochs, lr=args.lr, tokens=args.tokens, seed=args.seed)
    print(json.dumps(measure_recall(args.out)))


if __name__ == "__main__":
    main()
