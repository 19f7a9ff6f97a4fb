"""Load an encoder by name, preparing it first if it never was. Knows no artifact."""

from __future__ import annotations

from pathlib import Path

from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.folders import DEFAULT_ENCODER, default_model_folder, prepared_folder


def load_encoder(name: str = DEFAULT_ENCODER, *, threads: int = 1) -> Encoder:
    """The encoder called `name`, prepared now if it never was.

    name: DEFAULT_ENCODER (weights carried by a Python package), a folder of a sentence-transformers model, a folder
    that was already prepared, or a hub name. Raises ValueError when it can't be found, or can't be prepared because
    the packages of the `fit` extra are missing.
    """
    if (Path(name) / "encoder.onnx").is_file():
        return Encoder(Path(name), threads=threads)
    source = default_model_folder() if name == DEFAULT_ENCODER else Path(name)
    if source is None or not source.is_dir():
        # The weights aren't here: an earlier preparation is enough.
        if folder := prepared_folder(name):
            return Encoder(folder, threads=threads)
    try:
        from lethe.classifier.encoder import export

        return Encoder(export.prepare_named(name), threads=threads)
    except ImportError as error:
        raise ValueError(f"encoder {name!r} isn't prepared yet; that needs the extra `fit` ({error})") from error
