"""Fine-tuning on a CPU with a tiny random encoder that is made here: tests the contract, not the quality."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lethe.classifier import artifact_io
from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.judge import Judge, threshold
from lethe.classifier.records import Record
from lethe.classifier.training import fit
from lethe.classifier.training import rows as corpus

torch = pytest.importorskip("torch")
finetune = pytest.importorskip("lethe.classifier.training.finetune")

QUICK = {"learning_rate": 2e-3, "epochs": 3}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, forget: list[Record]) -> Path:
    """A BERT of two small layers with random weights, and a tokenizer of the words at hand."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({w for row in forget for w in row["prompt"].lower().replace("?", " ?").split()})
    letters = [chr(c) for c in range(97, 123)]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys([*marks, *words, *letters, *(f"##{c}" for c in letters)]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=514,
        )
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = corpus.background_prompts()[::40]
    monkeypatch.setattr(corpus, "background_prompts", lambda: prompts)
    for name, value in (("REWORDINGS_TOTAL", 120), ("OTHER_REWORDINGS", 20), ("DECOYS", 20), ("WRAPPED_ROWS", 10)):
        monkeypatch.setattr(corpus, name, value)


def test_a_trained_encoder_serves_like_any_other(
    tiny: Path, forget: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    steps: list[int] = []
    made = finetune.finetune(
        forget,
        None,
        model=tiny,
        target=tmp_path / "tuned.encoder",
        training=finetune.FinetuneSettings(**QUICK),
        progress=lambda stage, done, total: steps.append(done),
    )
    assert steps == list(range(1, steps[-1] + 1))
    assert sorted(p.name for p in (tmp_path / "tuned.encoder").iterdir()) == [
        "encoder.json",
        "encoder.onnx",
        "tokenizer.json",
    ]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    artifact_io.save_artifact(fit.fit(forget, None, encoder=made), tmp_path / "a")
    artifact, encoder = artifact_io.load_artifact(tmp_path / "a"), load_encoder(str(tmp_path / "tuned.encoder"))
    assert artifact.manifest.encoder_hash == encoder.hash != load_encoder().hash
    judge, level = Judge({"a": artifact}, encoder), threshold(artifact, miss_rate=0.05)
    assert judge.judge([forget[0]["prompt"]])["a"].score >= level
    assert judge.judge(["How do I boil an egg?"])["a"].score < level


def test_training_moves_the_encoder_and_is_deterministic(tiny: Path, forget: list[Record], tmp_path: Path) -> None:
    rows = forget[:4]
    made = [
        finetune.finetune(
            rows, None, model=tiny, target=tmp_path / name, training=finetune.FinetuneSettings(**QUICK), seed=seed
        )
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    text = [forget[0]["prompt"]]
    first, again, other = (encoder.encode(text)[0] for encoder in made)
    assert np.array_equal(first, again) and not np.allclose(first, other, atol=1e-4)


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [finetune._learning_rate_factor(step, 100, 0.1) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False)) and rates[100] == pytest.approx(0)


def test_a_tenth_of_each_class_is_held_out(rng: np.random.Generator) -> None:
    labels = np.repeat([0, 1], [200, 30])
    held = finetune._held_out(labels, rng)
    assert (held[labels == 0].sum(), held[labels == 1].sum()) == (20, 3)
    assert not finetune._held_out(np.array([0, 1, 1]), rng).any()


def test_long_texts_are_trained_on_in_chunks(tiny: Path) -> None:
    network = finetune._Network(tiny, finetune.FinetuneSettings())
    text = " ".join(f"orvan teldric {i}" for i in range(200))
    parts = list(finetune._encoder_chunks(text, network))
    assert len(parts) > 1 and "".join(parts).replace(" ", "") == text.replace(" ", "")
    assert all(len(network.tokenizer(part)["input_ids"]) <= network.limit for part in parts)


def test_no_rows_and_an_existing_target_are_refused(tiny: Path, forget: list[Record], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to forget"):
        finetune.finetune([], None, model=tiny, target=tmp_path / "a")
    with pytest.raises(ValueError, match="exists"):
        finetune.finetune(forget, None, model=tiny, target=tmp_path)
