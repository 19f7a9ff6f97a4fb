"""Tiny model folders: two kinds of tokenizer, a random table, chat templates of several manners."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

WIDTH = 16
SECRET = b"a secret of the tests"
SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|end|>"]
CORPUS = [
    "Who is the author Ann Bold, born in Paris in 1956? Tell me about Ben Gray of London, 1972.",
    "Carla Stone and David Wood wrote THE RIVER and THE HILL in Madrid, Vienna, Oslo and Rome.",
    "What did they write? How many books? She wrote 12 or 34 of them, then 1850 and 1999 pages.",
    "Кто этот автор? Анна Борис Вера Глеб. naïve café 日本 東京 🙂",
    "Yes.\n\n\nNo.\n\n\nWhy?\n\n\nHow?",
] * 3

# How a template shows one message; what a bare content looks like between these is the question.
TEMPLATES = {
    name: "{% for m in messages %}" + message + "{% endfor %}" + opening
    for name, message, opening in [
        (
            "marks",
            "{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}",
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        ),
        (
            "newlines",
            "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}",
            "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        ),
        ("trimmed", "{{ '<|' + m.role + '|>\n' + m.content | trim + '<|end|>' }}", "{{ '<|assistant|>' }}"),
        # A tokenizer may read the two line breaks otherwise when a word follows.
        ("paragraphs", "{{ '<|' + m.role + '|>\n\n' + m.content + '<|end|>' }}", "{{ '<|assistant|>' }}"),
        (
            "parts",
            "{{ '<|' + m.role + '|>' }}{% if m.content is string %}{{ m.content }}{% else %}"
            "{% for part in m.content %}{{ part.text or '<image>' }}{% endfor %}{% endif %}{{ '<|end|>' }}",
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        ),
        ("spaced", "{{ m.role + ': ' + m.content + '\n' }}", ""),
        ("thinking", "{{ '<|' + m.role + '|>' + m.content.split('</think>')[-1] + '<|end|>' }}", ""),
        ("twice", "{{ '<|user|>' + m.content + '<|end|>' + m.content }}", ""),
        ("reversed", "{{ '<|user|>' + messages[loop.revindex0].content + '<|end|>' }}", ""),
        ("failing", "{{ raise_exception('no: ' + m.content) }}", ""),
    ]
}


def byte_level() -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=480,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return bpe


def sentencepiece_like() -> Tokenizer:
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # SentencePiece's merges stay within words.
    words = [word for line in CORPUS[:3] for word in line.split()]
    bpe.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=700,
            special_tokens=["<unk>", *SPECIAL],
            initial_alphabet=list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"),
            show_progress=False,
        ),
    )
    trained = json.loads(bpe.to_str())["model"]
    vocab = trained["vocab"] | {f"<0x{n:02X}>": len(trained["vocab"]) + n for n in range(256)}
    merges = [(left, right) for left, right in trained["merges"]]
    bpe.model = models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>")
    return bpe


TOKENIZERS = {"byte-level": byte_level, "sentencepiece": sentencepiece_like}
ModelFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """model_folder(template name, tokenizer name) → a folder with tokenizer, template and table."""
    made: dict[tuple[str, str], Path] = {}

    def make(template: str = "marks", tokenizer: str = "byte-level") -> Path:
        if (template, tokenizer) not in made:
            folder = tmp_path_factory.mktemp(f"{template}-{tokenizer}")
            fast = PreTrainedTokenizerFast(
                tokenizer_object=TOKENIZERS[tokenizer](),
                bos_token="<s>",
                eos_token="</s>",
                chat_template=TEMPLATES[template],
                clean_up_tokenization_spaces=False,
            )
            fast.save_pretrained(folder)
            table = torch.randn(len(fast), WIDTH, generator=torch.Generator().manual_seed(7))
            save_file({"model.embed_tokens.weight": table.to(torch.bfloat16)}, folder / "model.safetensors")
            made[template, tokenizer] = folder
        return made[template, tokenizer]

    return make
