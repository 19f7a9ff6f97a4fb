"""Turn a sentence-transformers model into one ONNX file, once. Knows nothing of serving.

The whole pipeline (transformer, pooling, dense layers, normalisation) is traced as sentence-transformers
runs it, so whatever a model's modules are, they need no second implementation here. Its weights are then rounded to
seven bits, which is exact on processors with and without VNNI, halves the time and quarters the memory; a model that
doesn't bear it stays as it is. Artifacts are fitted with the encoder that serves them, so nothing else has to agree.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

EXPORT_FORMAT = 2
OPSET = 18
LONGEST_WINDOW = 512
AGREEMENT = 0.9999
# Cosine that every probe must keep when the weights are rounded.
ROUNDED_AGREEMENT = 0.97

# Texts of different lengths: a graph that froze a length or ignores the padding mask can't pass them all.
PROBES = (
    "A short text.",
    "word",
    "Several sentences stand here. They are longer than the first one, so that padding is needed! Is it?",
    "numbers 12, 1984 and names like Ada Lovelace " * 6,
)

# Other formats of the same weights, which a hub repository often carries beside them.
NOT_NEEDED = ("onnx/*", "openvino/*", "*.onnx", "*.h5", "*.ot", "*.msgpack", "*.tflite", "*.mlmodel")


def model_folder(name: str) -> Path:
    """The folder of a sentence-transformers model: a folder itself, or a hub name (cached or downloaded)."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=list(NOT_NEEDED)))
    except (OSError, ValueError) as error:
        raise ValueError(f"encoder {name!r}: neither a folder nor a model that can be fetched: {error}") from error


def content_hash(folder: Path) -> str:
    """SHA-256 over the weights, the tokenizer and the settings of a model folder (hex)."""
    digest = hashlib.sha256(f"export {EXPORT_FORMAT} opset {OPSET}\n".encode())
    wanted = {".json", ".txt", ".model", ".safetensors", ".bin"}
    files = [p for p in folder.rglob("*") if p.suffix in wanted and p.is_file()]
    # A training log or a card changes nothing that is computed.
    files = [p for p in files if p.name != "data_config.json" and "onnx" not in p.parts and "openvino" not in p.parts]
    if not any(p.suffix in {".safetensors", ".bin"} for p in files):
        raise ValueError(f"encoder folder {folder}: no weights (*.safetensors or *.bin)")
    for path in sorted(files):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def prepare(name: str, folder: Path, target: Path) -> None:
    """Write `target`: encoder.onnx, tokenizer.json and encoder.json of the model in `folder`.

    Atomic: the files appear together under `target` or not at all, and of several processes that prepare
    the same model one wins and the others use its result. Raises ValueError when the exported graph
    doesn't agree with sentence-transformers.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name[:16]}-", dir=target.parent))
    try:
        _export(name, folder, partial, target.name)
        partial.chmod(0o755)
        try:
            os.rename(partial, target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _export(name: str, folder: Path, target: Path, digest: str) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    class Pipeline(torch.nn.Module):
        def __init__(self, model: Any, names: list[str]) -> None:
            super().__init__()
            self.model, self.names = model, names

        def forward(self, *tensors: Any) -> Any:
            features = dict(zip(self.names, tensors, strict=True))
            return torch.nn.functional.normalize(self.model(features)["sentence_embedding"], dim=-1)

    # Fused attention is traced with fixed lengths; the plain one keeps both axes free.
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"attn_implementation": "eager"})
    model.eval()
    sample = model.tokenizer(list(PROBES[:3]), padding=True, return_tensors="pt")
    names = [key for key in sample if key in ("input_ids", "attention_mask", "token_type_ids")]
    with warnings.catch_warnings(), torch.no_grad():
        # The tracing exporter announces its age; the newer one needs one more package to do the same.
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
    least = _agreement(expected, target)
    if least < AGREEMENT:
        raise ValueError(f"encoder {name!r}: the ONNX export differs from the model (cosine {least:.5f})")
    _round(target, expected)


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
        "limit": min(int(model.max_seq_length or LONGEST_WINDOW), LONGEST_WINDOW),
        "inputs": names,
        "prefix": model.prompts.get(model.default_prompt_name or "", ""),
        "lower": bool(getattr(model[0], "do_lower_case", False)),
    }
    (target / "encoder.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _agreement(expected: Any, folder: Path) -> float:
    """The least cosine between the probes' embeddings and those of a prepared folder."""
    from lethe.classifier.encoder.encoder import Encoder

    return float((Encoder(folder).encode(PROBES) * expected).sum(axis=1).min())


def _round(target: Path, expected: Any) -> None:
    """Replace encoder.onnx by one with rounded weights, if the probes' embeddings bear it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole, graph = target / "whole.onnx", target / "encoder.onnx"
    graph.rename(whole)
    logging.getLogger("root").addFilter(_no_advice)
    try:
        quantize_dynamic(str(whole), str(graph), per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
        if _agreement(expected, target) < ROUNDED_AGREEMENT:
            whole.replace(graph)
    finally:
        logging.getLogger("root").removeFilter(_no_advice)
        whole.unlink(missing_ok=True)


def _no_advice(record: logging.LogRecord) -> bool:
    # It advises a pass that finds nothing to do in these graphs.
    return "pre-processing" not in record.getMessage()
